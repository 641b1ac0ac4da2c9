"""The bounds hold over real tokenizers of the kinds that chat models have, trained here on a little text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import REPOSITORY, WordTokenizer, user_messages
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from supdist.engine.broker import tokens
from supdist.engine.slices import finish
from supdist.handlers import Message, ModelHandler, ScriptedHandler, Usage

# What cuts a text in Llama 3 and GPT-4; Qwen's differs in the digits alone.
_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MARKS = ["<|im_start|>", "<|im_end|>"]


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def corpus() -> list[str]:
    """Every word more than once, so that whole words and long runs become tokens."""
    return 3 * [text_of(name) for name in ("README.md", "CONTRIBUTING.md", "engine/api.py")] + 9 * [" " * 128]


def byte_level(
    cut: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cut  # pyright: ignore[reportAttributeAccessIssue]  # the stubs of tokenizers lack the setter
    if normalizer is not None:
        tokenizer.normalizer = normalizer  # pyright: ignore[reportAttributeAccessIssue]  # the stubs of tokenizers lack the setter
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=20_000, initial_alphabet=alphabet, special_tokens=_MARKS, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def gpt2() -> Tokenizer:
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def _llama3_cut() -> pre_tokenizers.PreTokenizer:
    cut = pre_tokenizers.Split(Regex(_CUT), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def llama3() -> Tokenizer:
    return byte_level(_llama3_cut())


def qwen() -> Tokenizer:
    return byte_level(_llama3_cut(), normalizers.NFC())


def sentencepiece() -> Tokenizer:
    """Trained by line, as SentencePiece trains."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]  # the stubs of tokenizers lack the setter
    single = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=20_000, special_tokens=_MARKS + single, show_progress=False)
    tokenizer.train_from_iterator((line for text in corpus() for line in text.splitlines()), trainer)
    return tokenizer


KINDS: list[Callable[[], Tokenizer]] = [gpt2, llama3, qwen, sentencepiece]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def count(request: pytest.FixtureRequest) -> Callable[[str], int]:
    tokenizer: Tokenizer = request.param()
    return lambda text: len(tokenizer.encode(text).ids)


def min_prompt_tokens(handler: ModelHandler, messages: Sequence[Message], enough: int | None = None) -> int:
    return finish(tokens.min_prompt_tokens(handler, messages, enough=enough))


def max_prompt_tokens(handler: ModelHandler, messages: Sequence[Message]) -> int:
    return finish(tokens.max_prompt_tokens(handler, messages))


def fits(handler: ModelHandler, messages: Sequence[Message], window: int) -> bool:
    return finish(tokens.fits(handler, messages, window))


def in_a_template(messages: Sequence[Message]) -> str:
    turns = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


HANDLER = ScriptedHandler([])


def assert_bounds(count: Callable[[str], int], *contents: str) -> None:
    messages = user_messages(*contents)
    assert min_prompt_tokens(HANDLER, messages) <= sum(map(count, contents))
    assert count(in_a_template(messages)) <= max_prompt_tokens(HANDLER, messages)


ODD = ["\n\n", "    ", "=" * 40, "0123456789", "गगन", "\U0001d160"]
WORDS = st.sampled_from([*text_of("README.md").split()[:100], *ODD])
TEXTS = (
    st.text(max_size=60)
    | st.lists(WORDS, max_size=20).map(" ".join)
    | st.lists(WORDS, max_size=9).map("".join)
)


@settings(max_examples=50)
@given(contents=st.lists(TEXTS, min_size=1, max_size=3))
def test_the_true_count_lies_between_the_bounds(count: Callable[[str], int], contents: list[str]) -> None:
    assert_bounds(count, *contents)


@pytest.mark.parametrize("name", ["README.md", "engine/api.py", "pyproject.toml", "LICENSE"])
def test_the_bounds_hold_for_whole_files(count: Callable[[str], int], name: str) -> None:
    assert_bounds(count, text_of(name))


@pytest.mark.parametrize("length", [1, 127, 128, 255, 256, 257])
def test_the_bounds_hold_for_runs_of_one_character(count: Callable[[str], int], length: int) -> None:
    for character in (" ", "a", "\n", "é", "語", "1"):
        assert_bounds(count, character * length)


def test_the_bounds_hold_for_long_texts(count: Callable[[str], int]) -> None:
    assert_bounds(count, text_of("LICENSE") * 8)


def test_characters_that_grow_when_they_are_normalised_are_counted_as_grown() -> None:
    growing = "\U0001d160"
    assert max_prompt_tokens(HANDLER, user_messages(growing * 100)) >= 12 * 100


def test_a_prompt_of_prose_that_passes_a_window_by_a_third_is_known_to() -> None:
    prose = text_of("LICENSE")
    assert min_prompt_tokens(HANDLER, user_messages(prose)) == len(prose.split())


def test_words_are_counted_no_further_than_is_enough() -> None:
    long = user_messages("word " * 10**6)
    assert 999_900 < min_prompt_tokens(HANDLER, long) <= 10**6
    assert 1000 < min_prompt_tokens(HANDLER, long, enough=1000) < 30_000


def test_text_that_no_tokenizer_takes_has_bounds_all_the_same() -> None:
    assert min_prompt_tokens(HANDLER, user_messages("\ud800")) <= max_prompt_tokens(
        HANDLER, user_messages("\ud800")
    )


class Exact(ScriptedHandler):
    """Knows its own count, of which no bound may make another."""

    def count_tokens(self, messages: Sequence[Message]) -> int | None:
        return 7


def test_a_handler_with_a_tokenizer_is_believed() -> None:
    assert (
        min_prompt_tokens(Exact([]), user_messages("a b c d e f g h i j"))
        == max_prompt_tokens(Exact([]), user_messages(""))
        == 7
    )


def test_only_what_may_pass_the_window_is_counted_and_the_count_decides() -> None:
    handler = WordTokenizer([])
    assert fits(handler, user_messages("word " * 10), 1000)
    assert handler.counted == 0
    assert fits(handler, user_messages("word " * 999), 1000)
    assert not fits(handler, user_messages("word " * 1000), 1000)
    assert handler.counted == 2


def test_an_answer_is_as_long_as_its_handler_says_and_no_longer_than_the_window() -> None:
    def using(max_tokens: int | None, window: int | None) -> Usage:
        handler = Exact([])
        handler.max_tokens, handler.window = max_tokens, window
        return finish(tokens.max_usage(handler, []))

    assert using(512, None) == Usage(7, 512, 1)
    assert using(512, 100) == Usage(7, 100, 1)
    assert using(None, None) == Usage(7, 4096, 1)
    assert using(None, 100) == Usage(7, 100, 1)
