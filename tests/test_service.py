"""The broker service and its handler: what crosses, in what order, and what happens when one side ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from broker_support import GatedHandler, Place, RawClient, client_of, greeted, ipc_place, serving, tcp_place
from hypothesis import given, settings
from hypothesis import strategies as st
from support import eventually, user_messages

from supdist.engine import TaskError
from supdist.engine.broker.handler_queue import CallTimeout
from supdist.engine.broker.prices import price_of
from supdist.engine.service import (
    RemoteHandler,
    Service,
    handlers_at,
    make_client_keys,
    make_server_keys,
    protocol,
    read_server_keys,
)
from supdist.engine.service.credit import Credit
from supdist.engine.service.protocol import Cancel, ChatReply, ChatRequest, encode
from supdist.handlers import (
    BatchItem,
    Completion,
    ContextTooLong,
    HandlerError,
    Message,
    ModelHandler,
    Price,
    Rejected,
    ScriptedHandler,
    Unavailable,
    Usage,
)
from supdist.handlers import errors as handler_errors


def shout(messages: Sequence[Message]) -> str:
    return messages[-1]["content"].upper()


# --- what crosses ---------------------------------------------------------------------------------


async def test_a_completion_crosses_whole(place: Place) -> None:
    usage = Usage(10, 20, 3, cache_read_tokens=4, cache_write_tokens=0, reasoning_tokens=7)
    said = Completion("é \x00 漢字", usage, "length", "hm", 2, 0.5)
    model = ScriptedHandler([said])
    conversation: list[Message] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "naïve?"},
        {"role": "assistant", "content": ""},
    ]
    async with serving(place, model) as service:
        got = await client_of(service, place).chat(conversation)
    assert model.calls == [conversation]
    assert got.queued >= said.queued
    assert got == Completion("é \x00 漢字", usage, "length", "hm", 2, got.queued)


class Described(ModelHandler):
    model = "big"
    window = 4096
    max_tokens = 512
    price = Price(0.5, 1.5, 0.05, 0.6)
    max_concurrency = 7
    samples = False
    base_url = "http://user:secret@gpu:8000/v1"

    async def chat(self, messages: Sequence[Message]) -> Completion:
        return Completion("x")

    def identity(self) -> dict[str, Any] | None:
        return {"model": "big", "endpoint": self.base_url, "sampling": {"temperature": 0, "stop": None}}


async def test_the_handler_describes_itself_as_the_model_does_and_keeps_its_logins(place: Place) -> None:
    async with (
        serving(place, {"supervisor": Described(), "worker": ScriptedHandler([], model="small")}) as service,
        client_of(service, place, "supervisor") as remote,
    ):
        assert (remote.model, remote.window, remote.max_tokens) == ("big", 4096, 512)
        assert (remote.price, remote.samples, remote.max_concurrency) == (Described.price, False, 14)
        assert remote.base_url == "http://gpu:8000/v1"
        assert remote.identity() == {
            "model": "big",
            "endpoint": "http://gpu:8000/v1",
            "sampling": {"temperature": 0, "stop": None},
        }
        assert remote.count_tokens(user_messages("x")) is None
        offered = await handlers_at(service.address, curve_keys=place.client_keys)
    assert {role: handler.model for role, handler in offered.items()} == {
        "supervisor": "big",
        "worker": "small",
    }


async def test_cached_tokens_cost_the_same_through_the_server(place: Place) -> None:
    usage = Usage(1_000_000, 0, 1, cache_read_tokens=900_000, cache_write_tokens=0)
    model = ScriptedHandler([Completion("x", usage)], model="big")
    model.price = Price(1.0, 2.0, 0.1, 1.25)
    async with serving(place, model) as service, client_of(service, place) as remote:
        got = await remote.chat(user_messages("x"))
        rate = price_of(remote)
    assert rate is not None
    assert rate.of(got.usage) == model.price.of(usage) == pytest.approx(0.19)


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (Unavailable("busy", retry_after=2.5), Unavailable, "busy"),
        (CallTimeout("late"), CallTimeout, "late"),
        (Rejected("no \ud800"), Rejected, "no \ufffd"),
        (ContextTooLong("long"), ContextTooLong, "long"),
        (HandlerError("other"), HandlerError, "other"),
        (Rejected("no client for https://me:secret@host/v1"), Rejected, "no client for https://host/v1"),
        (RuntimeError("sk-secret"), Unavailable, "the model failed with RuntimeError"),
    ],
)
async def test_errors_keep_their_class(
    tmp_path: Path, raised: Exception, kind: type[HandlerError], words: str
) -> None:
    class Failing(ModelHandler):
        async def chat(self, messages: Sequence[Message]) -> Completion:
            raise raised

    place = ipc_place(tmp_path)
    async with serving(place, Failing()) as service:
        with pytest.raises(HandlerError) as caught:
            await client_of(service, place).chat(user_messages("x"))
    assert type(caught.value) is kind
    assert str(caught.value) == words
    if isinstance(caught.value, Unavailable) and isinstance(raised, Unavailable):
        assert caught.value.retry_after == raised.retry_after


def error_tree(kind: type[HandlerError] = HandlerError) -> list[type[HandlerError]]:
    """All kinds of handlers/errors.py."""
    found = [kind] if kind.__module__ == handler_errors.__name__ else []
    return found + [each for below in kind.__subclasses__() for each in error_tree(below)]


@pytest.mark.parametrize("kind", [*error_tree(), CallTimeout])
async def test_every_kind_of_handler_error_comes_back_as_itself(
    tmp_path: Path, kind: type[HandlerError]
) -> None:
    """By enumeration: a kind that the protocol lacks would arrive as its parent, and NoAccess as Rejected."""
    raised = kind("why")
    if isinstance(raised, Unavailable):
        raised.retry_after, raised.reason = 1.5, "rate_limit"
    place = ipc_place(tmp_path)
    async with serving(place, ScriptedHandler([raised])) as service:
        with pytest.raises(HandlerError) as caught:
            await client_of(service, place).chat(user_messages("x"))
    assert type(caught.value) is kind
    assert vars(caught.value) == vars(raised)
    assert str(caught.value) == "why"


async def test_text_that_is_none_stays_at_its_side(tmp_path: Path) -> None:
    place = ipc_place(tmp_path)
    async with (
        serving(place, ScriptedHandler(["half \ud800 a pair", "whole"])) as service,
        client_of(service, place) as remote,
    ):
        assert (await remote.chat(user_messages("x"))).text == "half \ufffd a pair"
        with pytest.raises(Rejected, match="cannot be encoded as text"):
            await remote.chat(user_messages("\ud800"))
        with pytest.raises(Rejected, match="a role"):
            await remote.chat([{"role": "user", "content": 5}])  # pyright: ignore[reportArgumentType]  # wrong on purpose
        with pytest.raises(ContextTooLong, match="bytes"):
            await remote.chat(user_messages("x" * protocol.MAX_BYTES))
        assert (await remote.chat(user_messages("x"))).text == "whole"


async def test_an_answer_that_is_too_large_is_refused_and_the_connection_stays(tmp_path: Path) -> None:
    place = ipc_place(tmp_path)
    async with (
        serving(place, ScriptedHandler(["x" * protocol.MAX_BYTES, "small"])) as service,
        client_of(service, place) as remote,
    ):
        with pytest.raises(Rejected, match="the answer has"):
            await remote.chat(user_messages("x"))
        assert (await remote.chat(user_messages("x"))).text == "small"


async def test_a_role_that_is_not_served_is_named(place: Place) -> None:
    async with serving(place, ScriptedHandler([])) as service:
        with pytest.raises(Rejected, match="serves no supervisor, only worker; add it"):
            await client_of(service, place, "supervisor").chat(user_messages("x"))


async def test_pieces_of_a_stream_are_the_whole_text(tmp_path: Path) -> None:
    place, pieces = ipc_place(tmp_path), list[str]()
    async with serving(place, ScriptedHandler(["the answer"])) as service:
        await client_of(service, place).chat_stream(user_messages("x"), pieces.append)
    assert pieces == ["the answer"]


# --- who waits for whom ---------------------------------------------------------------------------


async def test_a_cancelled_call_is_cancelled_at_the_model_and_its_slot_goes_on(place: Place) -> None:
    gate = GatedHandler(slots=1)
    async with serving(place, gate) as service, client_of(service, place) as remote:
        first = asyncio.create_task(remote.chat(user_messages("first")))
        await eventually(lambda: gate.arrived == ["first"])
        second = asyncio.create_task(remote.chat(user_messages("second")))
        third = asyncio.create_task(remote.chat(user_messages("third")))
        await eventually(lambda: service.load.queued == 2)
        second.cancel()
        first.cancel()
        gate.release("second", "third")
        assert (await third).text == "third"
        await asyncio.wait([first, second])
        assert gate.cancelled == ["first"]
        assert "second" not in gate.arrived
        assert service.load.running == service.load.queued == 0


async def test_a_call_that_is_late_is_cancelled_too(place: Place) -> None:
    gate = GatedHandler()
    async with serving(place, gate) as service:
        with pytest.raises(CallTimeout, match=r"did not answer within 0\.2 s"):
            await client_of(service, place, timeout=0.2).chat(user_messages("x"))
        await eventually(lambda: gate.cancelled == ["x"])


async def test_the_flood_of_one_client_delays_another_by_no_more_than_a_slot(place: Place) -> None:
    gate = GatedHandler(slots=2)
    floods = [f"flood {number}" for number in range(600)]
    async with (
        serving(place, gate) as service,
        client_of(service, place) as flooding,
        client_of(service, place) as modest,
    ):
        flood = [asyncio.create_task(flooding.chat(user_messages(text))) for text in floods]
        await eventually(lambda: len(gate.arrived) == 2)
        call = asyncio.create_task(modest.chat(user_messages("modest")))
        await eventually(lambda: service.load.queued == 599)
        assert gate.arrived == ["flood 0", "flood 1"]
        gate.release("flood 0", "flood 1")
        await eventually(lambda: len(gate.arrived) == 4)
        assert "modest" in gate.arrived[2:4]
        gate.release("modest")
        assert (await call).text == "modest"
        gate.release(*floods)
        assert [each.text for each in await asyncio.gather(*flood)] == floods


async def test_what_clients_ask_together_goes_to_the_model_together(place: Place) -> None:
    class Batching(ModelHandler):
        max_concurrency = batch_size = 8
        batch_wait = 0.05

        def __init__(self) -> None:
            self.sizes: list[int] = []

        async def chat(self, messages: Sequence[Message]) -> Completion:
            raise AssertionError("it has a chat_batch")

        async def chat_batch(self, message_batches: Sequence[Sequence[Message]]) -> list[BatchItem]:
            self.sizes.append(len(message_batches))
            return [Completion(shout(messages)) for messages in message_batches]

    model = Batching()
    async with (
        serving(place, model) as service,
        client_of(service, place) as one,
        client_of(service, place) as other,
    ):
        calls = [client.chat(user_messages(f"{number}a")) for number, client in enumerate([one, other] * 4)]
        answers = await asyncio.gather(*calls)
    assert [answer.text for answer in answers] == [f"{number}A" for number in range(8)]
    assert model.sizes == [8]


async def test_a_client_waits_for_room_before_it_sends(place: Place) -> None:
    """More at once than the protocol allows: all answered, and the service never saw too many."""
    most = 0

    def answer(messages: Sequence[Message]) -> str:
        nonlocal most
        load = service.load
        most = max(most, load.running + load.queued)
        return shout(messages)

    texts = [f"{number} " + "x" * 100 for number in range(1500)]
    async with serving(place, ScriptedHandler(answer)) as service, client_of(service, place) as remote:
        answers = await asyncio.gather(*(remote.chat(user_messages(text)) for text in texts))
        large = await asyncio.gather(*(remote.chat(user_messages(letter * (20 << 20))) for letter in "abcd"))
    assert [each.text for each in answers] == [text.upper() for text in texts]
    assert [each.text[0] for each in large] == list("ABCD")
    assert 0 < most <= protocol.CREDIT // protocol.LEAST_COST


@given(st.lists(st.tuples(st.integers(1, 10), st.booleans()), max_size=30))
def test_credit_is_never_exceeded_never_lost_and_in_order(parts: list[tuple[int, bool]]) -> None:
    """Whatever is taken, and whoever gives up waiting."""

    async def play() -> None:
        credit, held, served = Credit(10), 0, list[int]()
        done = asyncio.Event()

        async def use(index: int, part: int) -> None:
            nonlocal held
            await credit.acquire(part)
            try:
                held += part
                assert held <= 10
                served.append(index)
                await done.wait()
            finally:
                held -= part
                credit.release(part)

        tasks = [asyncio.create_task(use(index, part)) for index, (part, _) in enumerate(parts)]
        await asyncio.sleep(0)
        for task, (_, leaves) in zip(tasks, parts, strict=True):
            if leaves:
                task.cancel()
        done.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert served == sorted(served)
        assert set(served) >= {index for index, (_, leaves) in enumerate(parts) if not leaves}
        async with asyncio.timeout(1):
            await credit.acquire(10)

    asyncio.run(play())


STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "cancel", "let", "turn"]), st.integers(0, 12)), max_size=40
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_every_request_is_answered_once_or_cancelled_and_its_credit_comes_back(
    steps: list[tuple[str, int]],
) -> None:
    """However asking, cancelling and answering come together."""

    async def play(place: Place) -> None:
        gate, asked_for, cancelled, answers = GatedHandler(slots=2), 0, set[int](), dict[int, str]()
        async with serving(place, gate) as service, RawClient(service, place) as raw:
            await greeted(raw)
            for step, number in steps:
                if step == "ask":
                    await raw.socket.send(
                        encode(ChatRequest(asked_for, "worker", [("user", str(asked_for))]))
                    )
                    asked_for += 1
                elif step == "cancel" and number < asked_for:
                    await raw.socket.send(encode(Cancel(number)))
                    cancelled.add(number)
                elif step == "let":
                    gate.release(str(number))
                else:
                    await asyncio.sleep(0)
            gate.release(*map(str, range(asked_for + 1)))
            await raw.socket.send(encode(ChatRequest(asked_for, "worker", [("user", str(asked_for))])))
            while not answers.keys() >= set(range(asked_for + 1)) - cancelled:
                answer = await raw.next()
                assert isinstance(answer, ChatReply)
                assert answer.request not in answers
                answers[answer.request] = answer.text
            assert answers == {number: str(number) for number in answers}
            await eventually(lambda: service.load.running == service.load.queued == 0)
            (engine,) = service._engines.values()  # pyright: ignore[reportPrivateUsage]  # the test looks at private state
            assert (engine.credit, engine.pending) == (protocol.CREDIT, {})

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(ipc_place(Path(folder))))


# --- ends and beginnings --------------------------------------------------------------------------


@pytest.mark.timing
async def test_nobody_there_is_unavailable_by_the_deadline(tmp_path: Path) -> None:
    started = time.monotonic()
    remote = RemoteHandler("worker", f"ipc://{tmp_path}/none", connect_timeout=0.3)
    with pytest.raises(Unavailable, match=r"did not answer within 0\.3 s"):
        await asyncio.gather(*(remote.chat(user_messages("x")) for _ in range(20)))
    assert time.monotonic() - started < 5, "all waited for one attempt"


async def test_a_host_that_nobody_knows_is_unavailable_at_once(tmp_path: Path) -> None:
    place = tcp_place(tmp_path)
    with pytest.raises(Unavailable, match="DNS lookup of the host failed"):
        await RemoteHandler("worker", "tcp://a..b:5555", curve_keys=place.client_keys).chat(
            user_messages("x")
        )


async def test_a_service_that_ends_fails_what_is_under_way_and_the_next_is_used(place: Place) -> None:
    gate = GatedHandler(slots=1)
    async with serving(place, gate) as service:
        remote = client_of(service, place)
        place = Place(service.address, place.keys)
        await remote.__aenter__()
        calls = [asyncio.create_task(remote.chat(user_messages(text))) for text in "ab"]
        await eventually(lambda: service.load.queued == 1 and gate.arrived)
    for call in calls:
        with pytest.raises(Unavailable, match=r"the broker service has ended|was lost"):
            await call
    assert gate.cancelled == ["a"]
    assert gate.arrived == ["a"], "nothing is sent again"
    model = ScriptedHandler(shout)
    async with serving(place, model), asyncio.timeout(10):
        while model.calls != [user_messages("c")]:
            with contextlib.suppress(
                Unavailable
            ):  # as long as it has not noticed that the connection is gone
                assert (await remote.chat(user_messages("c"))).text == "C"
    await remote.__aexit__(None, None, None)


async def test_a_client_waits_for_a_service_that_is_about_to_start(tmp_path: Path) -> None:
    place = ipc_place(tmp_path)
    call = asyncio.create_task(RemoteHandler("worker", place.address).chat(user_messages("x")))
    await asyncio.sleep(0)
    async with serving(place, ScriptedHandler(shout)):
        assert (await call).text == "X"


async def test_a_client_that_leaves_takes_its_requests_with_it(place: Place) -> None:
    gate = GatedHandler(slots=1)
    gate.release("other")
    async with serving(place, gate) as service, client_of(service, place) as other:
        remote = client_of(service, place)
        await remote.__aenter__()
        calls = [asyncio.create_task(remote.chat(user_messages(text))) for text in "ab"]
        await eventually(lambda: gate.arrived == ["a"])
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await remote.__aexit__(None, None, None)
        assert (await other.chat(user_messages("other"))).text == "other"
        assert gate.arrived in (["a", "other"], ["a", "b", "other"])
        await eventually(lambda: service.load.engines == 1)


# --- keys and addresses ---------------------------------------------------------------------------


async def test_a_key_that_is_not_authorized_gets_nothing(tmp_path: Path) -> None:
    place = tcp_place(tmp_path)
    strange = tmp_path / "strange"
    make_server_keys(strange)
    folder = make_client_keys(strange, "eve")
    (folder / "server.key").write_bytes((tmp_path / "keys/server.key").read_bytes())
    model = ScriptedHandler(shout)
    async with serving(place, model) as service:
        stranger = RemoteHandler("worker", service.address, curve_keys=folder)
        with pytest.raises(Rejected, match=r"does not know the key .* keygen"):
            await stranger.chat(user_messages("x"))
        assert service.load.engines == 0
        assert (await client_of(service, place).chat(user_messages("y"))).text == "Y"
        (tmp_path / "keys/authorized_keys/eve.key").write_bytes((folder / "client.key").read_bytes())
        assert (await stranger.chat(user_messages("z"))).text == "Z", "keys are read anew"
        (tmp_path / "keys/authorized_keys/eve.key").unlink()
        (tmp_path / "keys/authorized_keys/broken.key").write_text("no key")
        with pytest.raises(Rejected):
            await stranger.chat(user_messages("x"))
        assert (await client_of(service, place).chat(user_messages("y"))).text == "Y"
    assert [call[-1]["content"] for call in model.calls] == ["y", "z", "y"]


async def test_a_service_with_another_key_is_not_talked_to(tmp_path: Path) -> None:
    place = tcp_place(tmp_path)
    other = tmp_path / "other"
    make_server_keys(other)
    (tmp_path / "keys/clients/friend/server.key").write_bytes((other / "server.key").read_bytes())
    async with serving(place, ScriptedHandler(shout)) as service:
        with pytest.raises(Unavailable, match=r"check that .*server.key is its key"):
            await client_of(service, place, connect_timeout=0.5).chat(user_messages("x"))


async def test_keys_on_one_side_alone_are_refused(tmp_path: Path) -> None:
    keyed = tcp_place(tmp_path)
    secret = Place(f"ipc://{tmp_path}/secret", keyed.keys)
    async with serving(secret, ScriptedHandler(shout)) as service:
        with pytest.raises(Rejected, match=r"requires keys \(--curve-keys\)"):
            await RemoteHandler("worker", service.address).chat(user_messages("x"))
        assert (await client_of(service, secret).chat(user_messages("x"))).text == "X"
    async with serving(ipc_place(tmp_path), ScriptedHandler(shout)) as service:
        with pytest.raises(Rejected, match="has no keys"):
            await client_of(service, keyed).chat(user_messages("x"))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("tcp://127.0.0.1:5555", "tcp needs keys.*keygen"),
        ("tcp://127.0.0.1", "no address"),
        ("tcp://127.0.0.1:65536", "no address"),
        ("tcp://a b:5555", "no address"),
        ("inproc://x", "no address"),
        ("127.0.0.1:5555", "no address"),
        ("ipc://", "an ipc address"),
        ("ipc://@abstract", "an ipc address"),
        ("ipc://*", "an ipc address"),
        ("ipc:///" + "x" * 107, "an ipc address"),
    ],
)
def test_addresses_that_cannot_be_safe_are_refused_at_both_ends(address: str, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        Service({}, address)
    with pytest.raises(TaskError, match=words):
        RemoteHandler("worker", address)


async def test_addresses_that_cannot_be_used_are_task_errors(tmp_path: Path) -> None:
    place = tcp_place(tmp_path)
    async with serving(place, ScriptedHandler([])) as service:
        with pytest.raises(TaskError, match=r"cannot listen at .* in use"):
            async with serving(Place(service.address, place.keys), ScriptedHandler([])):
                pass
    with pytest.raises(TaskError, match="no address to connect to"):
        await RemoteHandler("worker", "tcp://127.0.0.1:*", curve_keys=place.client_keys).chat(
            user_messages("x")
        )
    with pytest.raises(TaskError, match="no key in"):
        await RemoteHandler("worker", "tcp://127.0.0.1:7000", curve_keys=tmp_path).chat(user_messages("x"))
    with pytest.raises(TaskError, match=r"folder, .*clients/NAME"):
        await RemoteHandler("worker", "tcp://127.0.0.1:7000", curve_keys=place.keys).chat(user_messages("x"))


async def test_an_ipc_socket_is_its_owners_alone_and_goes_with_the_service(tmp_path: Path) -> None:
    path = tmp_path / "new" / "broker"
    async with serving(Place(f"ipc://{path}"), ScriptedHandler([])):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        with pytest.raises(TaskError, match=r"listens at .* already"):
            async with serving(Place(f"ipc://{path}"), ScriptedHandler([])):
                pass
    assert not path.exists()


async def test_an_ipc_socket_takes_the_place_of_a_dead_one_and_of_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "broker"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(Place(f"ipc://{path}"), ScriptedHandler(shout)) as service:
        assert (await RemoteHandler("worker", service.address).chat(user_messages("x"))).text == "X"
    path.write_text("precious")
    with pytest.raises(TaskError, match="is not a socket"):
        async with serving(Place(f"ipc://{path}"), ScriptedHandler([])):
            pass
    assert path.read_text() == "precious"


async def test_an_ipc_socket_is_not_put_where_others_may_replace_it(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(TaskError, match="choose a folder of your own"):
        async with serving(Place(f"ipc://{tmp_path}/open/broker"), ScriptedHandler([])):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a moment")
async def test_without_keys_a_socket_of_another_user_is_not_talked_to(tmp_path: Path) -> None:
    path = tmp_path / "broker"
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(str(path))
        os.seteuid(1234)
        try:
            squatter.listen()
        finally:
            os.seteuid(0)
        with pytest.raises(Rejected, match="runs as user 1234"):
            await RemoteHandler("worker", f"ipc://{path}").chat(user_messages("x"))


def test_keys_are_their_owners_alone_and_never_written_over(tmp_path: Path) -> None:
    place = tcp_place(tmp_path)
    assert place.keys is not None
    for path in [place.keys, *place.keys.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
    before = {path: path.read_bytes() for path in place.keys.rglob("*.key*")}
    assert len(before) == 6
    with pytest.raises(TaskError, match="not overwritten"):
        make_server_keys(place.keys)
    with pytest.raises(TaskError, match="not overwritten"):
        make_client_keys(place.keys, "friend")
    for name in ("../x", "", ".", ".hidden", "a/b", "a b", "x" * 65):
        with pytest.raises(TaskError, match="is no name"):
            make_client_keys(place.keys, name)
    assert before == {path: path.read_bytes() for path in place.keys.rglob("*.key*")}


@pytest.mark.parametrize(
    "content", ["", "public-key = 5", "secret-key = 'x'", 'public-key = "' + "#" * 40 + '"']
)
def test_a_file_that_holds_no_key_is_a_task_error(tmp_path: Path, content: str) -> None:
    make_server_keys(tmp_path)
    (tmp_path / "server.key_secret").write_text(content)
    with pytest.raises(TaskError, match="no key in"):
        read_server_keys(tmp_path)


def test_a_secret_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    make_server_keys(tmp_path)
    (tmp_path / "server.key_secret").chmod(0o640)
    with pytest.raises(TaskError, match=r"other users can read the secret key .* chmod 600"):
        read_server_keys(tmp_path)


def test_keys_are_in_no_repr(tmp_path: Path) -> None:
    make_server_keys(tmp_path)
    keys = read_server_keys(tmp_path)
    assert keys.pair.secret.decode() not in repr(keys)
