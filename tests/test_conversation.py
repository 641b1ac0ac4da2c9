"""What is left out of a conversation that grows too long, and what stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from supdist.engine.supervisor.conversation import Conversation

NOTE = "[$number left out: $characters characters]"


def talk(*lengths: int) -> Conversation:
    """Instructions, a question, and turns of such lengths."""
    conversation = Conversation()
    conversation.add("system", "s" * 1000)
    conversation.add("user", "q" * 1000)
    for number, length in enumerate(lengths):
        conversation.add("user" if number % 2 else "assistant", chr(97 + number % 26) * length)
    return conversation


def size(conversation: Conversation) -> int:
    return sum(len(message["content"]) for message in conversation.sent)


def test_what_fits_stays_as_it_is() -> None:
    conversation = talk(5000, 5000, 5000, 5000)
    assert conversation.leave_out(lambda _: True, NOTE) == []
    assert conversation.sent == conversation.history


def test_the_oldest_outputs_go_first_then_the_oldest_code() -> None:
    conversation = talk(*[5000] * 8)
    assert conversation.leave_out(lambda _: size(conversation) < 38_000, NOTE) == [3]
    assert conversation.sent[3]["content"] == "[3 left out: 5,000 characters]"
    assert conversation.leave_out(lambda _: size(conversation) < 30_000, NOTE) == [5, 2]
    assert conversation.leave_out(lambda _: False, NOTE) == [4]
    assert conversation.leave_out(lambda _: False, NOTE) == [], "what is left must stay"


def test_history_has_everything() -> None:
    conversation = talk(*[5000] * 8)
    before = conversation.show()
    conversation.leave_out(lambda _: False, NOTE)
    assert conversation.show() == before
    assert conversation.show(3, 4) == [{"role": "user", "content": "b" * 5000}]


def test_a_message_taken_back_is_gone_from_both() -> None:
    conversation = talk(10, 20)
    assert conversation.remove_last() == "b" * 20
    assert len(conversation.sent) == len(conversation.history) == 3


@given(lengths=st.lists(st.integers(0, 2000), max_size=12), room=st.integers(0, 20_000))
def test_order_roles_question_and_the_last_turns_always_stay(lengths: list[int], room: int) -> None:
    conversation = talk(*lengths)
    left_out = conversation.leave_out(lambda _: size(conversation) <= room, NOTE)
    assert [message["role"] for message in conversation.sent] == [
        message["role"] for message in conversation.history
    ]
    assert conversation.sent[:2] == conversation.history[:2]
    assert conversation.sent[-4:] == conversation.history[-4:]
    changed = [
        n for n, (a, b) in enumerate(zip(conversation.sent, conversation.history, strict=True)) if a != b
    ]
    assert changed == sorted(left_out)
