"""Needles in a haystack: numbers or chains of variables, hidden in a long text.

A sample example: to "What is the special magic number for tall-otter?" 7215043 is right. After Kamradt (2023)
and RULER (Hsieh et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from .base import Ask, Example, Score
from .metrics import share_found
from .options import CHARACTERS_PER_TOKEN, Length, TaskWithOptions
from .prose import GENERATOR, haystack, listed

# RULER's S-NIAH; with numbers of other keys; several numbers of one key; several keys asked for; which
# variables hold a value.
Variant = Literal["single", "multi-key", "multi-value", "multi-query", "variable-tracking"]
_VARIANTS: tuple[Variant, ...] = ("single", "multi-key", "multi-value", "multi-query", "variable-tracking")

_ADJECTIVES = listed(
    "amber|ancient|brave|bright|calm|clever|copper|crimson|curious|dusty|eager|early|electric|fancy"
    "|gentle|giant|golden|grand|happy|hidden|hollow|humble|icy|idle|jolly|keen|lively|lonely|lucky|mellow"
    "|mighty|misty|modest|noble|odd|pale|patient|plain|polite|proud|purple|quick|quiet|rapid|rare|royal"
    "|rusty|shy|silent|silver|simple|sleepy|small|solemn|speedy|steady|strange|sunny|tall|tidy|tiny"
    "|velvet|vivid|wild|wise"
)
_NOUNS = listed(
    "acorn|anchor|antelope|badger|bamboo|beacon|beaver|bison|button|cactus|camel|candle|canyon|cedar"
    "|comet|coral|cricket|dolphin|eagle|falcon|fern|ferret|galaxy|gecko|glacier|hammer|heron|iguana"
    "|island|jaguar|kettle|koala|ladder|lemur|lizard|magnet|mango|meadow|meteor|mirror|newt|ocelot"
    "|octopus|orchid|otter|owl|panda|pebble|pelican|penguin|pepper|piano|puffin|quail|rabbit|raven|rocket"
    "|salmon|sparrow|spruce|teapot|tiger|tulip|turtle|violin|walnut|walrus|zebra"
)
# Without vowels, so that no variable is part of an English word.
_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
# Characters, more than any hidden sentence has.
_SENTENCE_ROOM = 100


class Needle(TaskWithOptions):
    """Find numbers, or follow variables, that are hidden in a long text (S-NIAH and RULER)."""

    name: ClassVar[str] = "needle"

    variant: Literal[Variant, "all"] = Field(
        default="single", description="what is hidden; all takes each variant in turn"
    )
    length: Length = Field(
        default=32_000, description="tokens of each text, four characters each; 128k and 10M are understood"
    )
    n: int = Field(default=100, ge=1, le=100_000, description="number of examples; each has its own text")
    seed: int = Field(default=0, description="another seed gives other texts and questions")
    keys: int = Field(default=4, ge=2, le=2_000, description="multi-key: number of keys; one is asked for")
    values: int = Field(default=4, ge=2, le=100, description="multi-value: how many numbers the key has")
    queries: int = Field(default=4, ge=2, le=100, description="multi-query: number of keys asked for")
    hops: int = Field(
        default=4, ge=1, le=100, description="variable-tracking: variables after the first of a chain"
    )
    chains: int = Field(
        default=2, ge=1, le=100, description="variable-tracking: number of chains; one is asked for"
    )
    depth: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="single: where the needle is, from 0 (beginning) to 1 (end); anywhere by default",
    )

    @model_validator(mode="after")
    def _fits(self) -> Needle:
        most = max(self.keys, self.values, self.queries, self.chains * (self.hops + 1))
        if most * _SENTENCE_ROOM > self.length * CHARACTERS_PER_TOKEN:
            raise ValueError(
                f"{most} hidden sentences do not fit a length of {self.length} tokens; "
                "hide fewer, or use a longer text"
            )
        return self

    def examples(self) -> list[Example]:
        """Return ``n`` examples."""
        return [self._hidden(index)[0] for index in range(self.n)]

    def context(self, example: Example) -> str:
        """Return the text of an example."""
        _, needles, random = self._hidden(int(example.data["index"]))
        return haystack(random, self.length * CHARACTERS_PER_TOKEN, needles)

    async def score(self, example: Example, answer: str | None, judge: Ask | None = None) -> Score:
        """Return the share of references in the answer."""
        # RULER measures recall only: an answer that lists everything scores 1.
        found = share_found(answer or "", example.references)
        return Score(value=found, correct=found == 1.0, metrics={"found": found})

    def data_hash(self) -> str:
        """Hash the options and the generator's version."""
        return self.hash_of(GENERATOR, self.model_dump())

    def _hidden(self, index: int) -> tuple[Example, list[tuple[float, str]], Random]:
        # The third value continues with the text: one generator makes the whole example.
        variant = _VARIANTS[index % len(_VARIANTS)] if self.variant == "all" else self.variant
        random = Random(f"{self.name}:{self.seed}:{variant}:{index}")  # noqa: S311 - not for secrets
        query, references, sentences = self._question(random, variant)
        depths = sorted(random.random() for _ in sentences)
        if variant == "single" and self.depth is not None:
            depths = [self.depth]
        example = Example(
            id=f"{self.name}-{index:04d}",
            query=query,
            references=tuple(references),
            document=f"{self.name}-{self.seed}-{index:04d}",
            kind=variant,
            data={"index": index, "depths": [round(depth, 4) for depth in depths]},
        )
        return example, list(zip(depths, sentences, strict=True)), random

    def _question(self, random: Random, variant: Variant) -> tuple[str, Sequence[str], list[str]]:
        # Query, references, sentences to hide in order.
        if variant == "variable-tracking":
            return _tracking(random, self.chains, self.hops)
        keys = _distinct_keys(random, {"multi-key": self.keys, "multi-query": self.queries}.get(variant, 1))
        numbers = _distinct_numbers(random, self.values if variant == "multi-value" else len(keys))
        owners = keys * self.values if variant == "multi-value" else keys
        article = "one" if variant == "multi-value" else "the"
        hidden = [
            f"Keep this in mind: {article} special magic number for {key} is {number}."
            for key, number in zip(owners, numbers, strict=True)
        ]
        random.shuffle(hidden)
        if variant == "multi-value":
            query = f"What are all the special magic numbers for {keys[0]}? Give every one, in digits."
            return query, numbers, hidden
        if variant == "multi-query":
            asked = ", ".join(keys[:-1]) + " and " + keys[-1]
            return f"What are the special magic numbers for {asked}? Give each, in digits.", numbers, hidden
        return f"What is the special magic number for {keys[0]}?", numbers[:1], hidden


def _distinct_keys(random: Random, count: int) -> list[str]:
    places = random.sample(range(len(_ADJECTIVES) * len(_NOUNS)), count)
    return [f"{_ADJECTIVES[place // len(_NOUNS)]}-{_NOUNS[place % len(_NOUNS)]}" for place in places]


def _distinct_numbers(random: Random, count: int) -> list[str]:
    # Seven digits each, so that no number is part of another.
    return [str(number) for number in random.sample(range(1_000_000, 10_000_000), count)]


def _tracking(random: Random, chains: int, hops: int) -> tuple[str, Sequence[str], list[str]]:
    # The chains alternate; a variable is assigned before it is read.
    names = _distinct_variables(random, chains * (hops + 1))
    numbers = _distinct_numbers(random, chains)
    turns = [chain for chain in range(chains) for _ in range(hops + 1)]
    random.shuffle(turns)
    hidden, done = list[str](), [0] * chains
    for chain in turns:
        place = chain * (hops + 1) + done[chain]
        source = numbers[chain] if done[chain] == 0 else f"the value of variable {names[place - 1]}"
        hidden.append(f"Note in the margin: variable {names[place]} is set to {source}.")
        done[chain] += 1
    query = (
        f"Which variables hold the value {numbers[0]}? The margin notes set each variable once, to a number"
        " or to another variable's value. Name all that end up with it."
    )
    return query, names[: hops + 1], hidden


def _distinct_variables(random: Random, count: int) -> list[str]:
    found = dict[str, None]()
    while len(found) < count:
        found["".join(random.choices(_LETTERS, k=5))] = None
    return list(found)
