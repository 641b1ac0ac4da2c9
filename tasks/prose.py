"""Generates text to hide needles in: an endless chronicle of a harbour town."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

# The version of all generated texts, part of each task's hash. Increase it when any text changes.
GENERATOR = 1


def listed(text: str) -> tuple[str, ...]:
    """Split a text at its bars."""
    return tuple(text.split("|"))


# The words are the project's own. None has a digit, so that every number in a text is a needle's.
_PEOPLE = listed(
    "ferryman|harbour master|baker's widow|schoolteacher|chandler|night watchman|apothecary"
    "|young surveyor|miller|organist|lighthouse keeper|tailor|postmistress|beekeeper|cooper"
    "|retired captain|innkeeper|glazier|net mender|town clerk|orchard keeper|clockmaker|bookbinder|carter"
    "|midwife|quarryman|piano tuner|saddler|customs officer|botanist from the coast"
    "|carpenter's apprentice|shepherd|printer|choirmaster|visiting painter|laundress"
)
_DEEDS = listed(
    "talked at length about|asked nobody in particular about|wrote a long letter about"
    "|had grown tired of hearing about|kept a careful notebook on|told a story about"
    "|quarrelled with a neighbour over|had strong opinions on|remembered something odd about"
    "|could not stop thinking about|made a small drawing of|read aloud a report on"
    "|refused to say a word about|laughed softly at the thought of|promised to look into"
    "|had once been wrong about|learned a good deal about|wondered what would become of"
    "|spent the evening pondering|complained, not for the first time, about"
)
_THINGS = listed(
    "the price of lamp oil|the new footbridge over the weir|the choir's winter programme"
    "|the leaking roof of the granary|the herring that came late that year|the old road across the marsh"
    "|the bell with the cracked rim|the empty house on the quay|the map that hung in the reading room"
    "|the frost in the orchards|the ferry's worn-out rope|the quarrel about the common pasture"
    "|the swallows under the market roof|the shipment of roof slates|the letters that nobody collected"
    "|the gardens behind the mill|the sound of the mill wheel at night|the fog that stayed for a week"
    "|the painted sign of the inn|the schoolhouse stove|the missing page of the parish register"
    "|the colour of the sea before a storm|the wool that was sold too early"
    "|the stranger who paid in foreign coins|the path to the upper lighthouse"
    "|the clock that ran ahead of the sun|the smell of tar along the slipway"
    "|the summer when the wells ran dry|the pear trees on the south wall|the orchestra that never arrived"
    "|the ice on the inner harbour|the lanterns for the autumn fair"
)
_TIMES = listed(
    "before the market opened|while the kettle boiled|on the way down to the quay|as the tide went out"
    "|after the last bell|over a bowl of barley soup|in the shade of the boathouse"
    "|until the candles burned low|with the window open to the street|between two showers of rain"
    "|to anyone who would listen|while the nets were drying|on the steps of the chapel"
    "|without looking up from the work|in a voice that carried across the square|long after supper"
    "|at the turn of the season|as if there were all the time in the world"
    "|in the company of two patient dogs|when the wind had dropped"
)
_OPENINGS = listed(
    "In the second week of rain|Late in the autumn|On market day|Some years earlier|That same evening"
    "|Toward the end of the harvest|On the morning after the storm|As far as anyone could recall"
    "|During the long thaw|In those quiet weeks|Not long afterwards|At the beginning of spring"
    "|When the first boats returned|For reasons that were never explained|By all accounts|Once again"
)
_ASIDES = listed(
    "Nobody took much notice.|It was that kind of town.|The gulls did not seem to mind."
    "|Little came of it.|There the matter rested.|People nodded and went on with their work."
    "|The weather settled the question in the end.|It made a good story, at least."
    "|Opinions were divided, as they usually were.|The rest of the day passed without incident."
)


def paragraphs(random: Random) -> Iterator[list[str]]:
    """Yield paragraphs, as lists of sentences, without end."""
    pick = picker(random)
    while True:
        yield [_sentence(random.random(), pick) for _ in range(random.randrange(3, 9))]


def picker(random: Random) -> Callable[[Sequence[str]], str]:
    """Return a function that chooses one of several texts."""
    # Random.choices without its overhead: a text of 10M tokens needs millions of choices.
    # Random.random gives the same numbers for a seed on every machine and supported Python.
    draw = random.random
    return lambda texts: texts[int(draw() * len(texts))]


def _sentence(shape: float, pick: Callable[[Sequence[str]], str]) -> str:
    if shape > 0.9:
        return pick(_ASIDES)
    if shape > 0.55:
        return f"{pick(_OPENINGS)}, the {pick(_PEOPLE)} {pick(_DEEDS)} {pick(_THINGS)}."
    if shape > 0.4:
        first = f"The {pick(_PEOPLE)} {pick(_DEEDS)} {pick(_THINGS)}"
        return f"{first}, and the {pick(_PEOPLE)} {pick(_DEEDS)} it {pick(_TIMES)}."
    return f"The {pick(_PEOPLE)} {pick(_DEEDS)} {pick(_THINGS)} {pick(_TIMES)}."


def haystack(random: Random, characters: int, needles: Sequence[tuple[float, str]]) -> str:
    """Return prose with sentences hidden in it.

    Args:
        characters: the largest length; the text is less than a paragraph shorter.
        needles: depth (0 to 1) and sentence of each.

    Raises:
        ValueError: the needles alone are longer.
    """
    waiting = sorted(needles, key=lambda needle: needle[0])
    room = characters - sum(len(text) + 1 for _, text in waiting)
    if room < 0:
        raise ValueError(f"{len(waiting)} hidden sentences do not fit {characters} characters")
    parts, written, placed = list[str](), 0, 0
    for paragraph in paragraphs(random):
        size = sum(map(len, paragraph)) + len(paragraph) + 1
        if written + size > room:
            break
        due = placed
        while due < len(waiting) and waiting[due][0] * room < written + size:
            due += 1
        new = [text for _, text in waiting[placed:due]]
        parts.append(" ".join(_merged(random, paragraph, new) if new else paragraph))
        placed = due
        written += size
    last = " ".join(text for _, text in waiting[placed:])
    return "\n\n".join(parts) + (" " if parts and last else "") + last


def _merged(random: Random, sentences: list[str], needles: list[str]) -> list[str]:
    # Both sentences and needles keep their order.
    places = sorted(random.randrange(len(sentences) + 1) for _ in needles)
    merged = list[str]()
    for place in range(len(sentences) + 1):
        while places and places[0] == place:
            places.pop(0)
            merged.append(needles.pop(0))
        merged += sentences[place : place + 1]
    return merged
