"""Generates records for ``oolong`` and ``pairs``: messages to a shop.

A sample example: "#17 | 2023-04-02 | user 31 | Hello, my card shows two payments for one desk lamp."
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random

from .options import CHARACTERS_PER_TOKEN
from .prose import listed, picker

# Each message is about one of these and does not name it. The sentences are the project's own.
MATTERS: dict[str, str] = {
    "billing": "money that was taken, owed or should come back",
    "delivery": "where a parcel is, or how it arrived",
    "login": "getting into the customer's own pages",
    "defect": "a thing that does not work or is broken",
    "praise": "thanks and compliments, and nothing asked for",
    "cancellation": "calling off an order that was made",
    "enquiry": "a question about the goods before buying",
}

_TEXTS: dict[str, tuple[str, ...]] = {
    "billing": (
        "my card shows two payments for one %s.",
        "I paid for a %s in March and the money was taken again this week.",
        "the refund for the %s that I sent back has not reached my bank yet.",
        "the amount on my statement for the %s is higher than the price in your shop.",
        "why did you take eleven dollars more than agreed for the %s?",
        "could you send me a receipt with my company's tax number for the %s?",
    ),
    "delivery": (
        "the courier never came with my %s, though I waited at home all day.",
        "tracking says that my %s has been sitting in a depot for nine days.",
        "the driver left the box with the %s in the rain behind the bins.",
        "my neighbour got the parcel with the %s that was meant for me.",
        "it has been three weeks and there is still no sign of the %s that you posted.",
        "only one of two boxes arrived, the one without the %s.",
    ),
    "login": (
        "your site does not take my password any more, so that I cannot see my order of a %s.",
        "I never get the code by text message, and so cannot get in to look up my %s.",
        "since I changed my e-mail address I am locked out and cannot find my %s.",
        (
            "the page says that too many attempts were made and shuts me out,"
            " and I only wanted to look at my %s."
        ),
        "I forgot the answer to my security question and cannot open the page with my %s.",
        "the reset link that you mailed me leads to an empty page, and my %s is behind it.",
    ),
    "defect": (
        "the %s stopped working after two days and nothing brings it back.",
        "there is a crack right through the side of the %s.",
        "my %s makes a grinding noise and smells of burnt rubber.",
        "the %s rattles, and one of its screws has come loose.",
        "out of the box, the %s would not even switch on.",
        "one leg of the %s is shorter than the others, so that it wobbles.",
    ),
    "praise": (
        "I only want to say how happy I am with my %s.",
        "the %s is the best thing that I have bought in years, well done.",
        "my whole family loves the %s, and your staff could not have been kinder.",
        "what a beautiful %s, it is even nicer than in the pictures.",
        "five stars for the %s and for the hand-written card in the box.",
        "you have made my mother very happy with the %s.",
    ),
    "cancellation": (
        "please stop my order of the %s, I have changed my mind.",
        "I ordered a %s last night by mistake and do not want it any more.",
        "if the %s has not left yet, please do not send it at all.",
        "we are moving abroad, so kindly take the %s off our order.",
        "I found the %s elsewhere and would like to withdraw from the purchase.",
        "my son clicked on buy for a %s; please undo that before you pack it.",
    ),
    "enquiry": (
        "does the %s come in dark green as well?",
        "is the %s suitable for a child of six?",
        "how heavy is the %s, and would it fit a shelf of forty centimetres?",
        "will you have the %s in stock again before the summer?",
        "can the %s be used outdoors in winter?",
        "what is the difference between the small and the large %s?",
    ),
}
_ITEMS = listed(
    "desk lamp|garden chair|bread oven|record player|wool blanket|bicycle pump|folding table"
    "|coffee grinder|tent|kite|rain jacket|wall clock|fountain pen|hand mixer|sewing machine|chess set"
    "|camping stove|bookshelf|telescope|kettle|sleeping bag|radio|umbrella stand|picnic basket|hammock"
    "|microscope|piano stool|step ladder|toaster|globe"
)
_OPENINGS = (
    "Hello, ",
    "Hi, ",
    "Good morning, ",
    "Dear all, ",
    "Hello there, ",
    "Good evening, ",
    "To whom it concerns: ",
)
_CLOSINGS = (
    "",
    " Thanks.",
    " Kind regards.",
    " I look forward to hearing from you.",
    " Have a good day.",
    " All the best.",
)

FIRST_DAY = date(2023, 1, 1)
DAYS = 730
# Mean characters of a record with its line end, without its two numbers. Measured: a text's length is right
# within a few percent.
_MEAN_RECORD = 124
_RECORDS_PER_USER = 12


@dataclass(slots=True)
class Mailbox:
    """The matter, day and user of each record."""

    matters: list[str]
    # 0 is FIRST_DAY.
    days: list[int]
    users: list[int]

    def text(self, random: Random) -> str:
        """Return one line for each record."""
        pick, dates = picker(random), [day(number) for number in range(DAYS)]
        return "\n".join(
            f"#{number} | {dates[when]} | user {user} | {_message(pick, matter)}"
            for number, (matter, when, user) in enumerate(
                zip(self.matters, self.days, self.users, strict=True)
            )
        )


def draw(random: Random, length: int, weights: Sequence[float]) -> Mailbox:
    """Return a mailbox of about ``length`` tokens whose matters have these weights."""
    characters = length * CHARACTERS_PER_TOKEN
    # A record holds two numbers, its own and its user's.
    digits = 2 * len(str(characters // _MEAN_RECORD))
    count = characters // (_MEAN_RECORD + digits)
    users = random.sample(range(10, 10 + 5 * count), max(4, count // _RECORDS_PER_USER))
    return Mailbox(
        matters=random.choices(list(MATTERS), weights, k=count),
        days=random.choices(range(DAYS), k=count),
        users=random.choices(users, k=count),
    )


def day(number: int) -> str:
    """Return a day as ISO date."""
    return (FIRST_DAY + timedelta(days=number)).isoformat()


def explained() -> str:
    """Return the matters with their explanations."""
    return "; ".join(f"{matter} ({meaning})" for matter, meaning in MATTERS.items())


def _message(pick: Callable[[Sequence[str]], str], matter: str) -> str:
    return f"{pick(_OPENINGS)}{pick(_TEXTS[matter]) % pick(_ITEMS)}{pick(_CLOSINGS)}"
