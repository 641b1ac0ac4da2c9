"""Group 8: the guest speaks the protocol itself, and does not keep to it."""

from __future__ import annotations

import asyncio
import random
import struct
import time

import msgspec
import pytest
from attacks.lab import OK, RAW, Arena, Attack, ShimGrowth, assert_alive, breach, cpu_of_shims, name, timed

from supdist.engine import CellResult, Display, HostTool, Outcome, SandboxLost
from supdist.engine.sandbox import CallError, WorkerCall
from supdist.sandbox_image import protocol

VIOLATION = (Outcome.PROTOCOL_VIOLATION,)


BREACHES: list[Attack] = [
    *(
        breach(f"RP1-{size:#x}", f"raw({struct.pack('<I', size)!r})", f"a frame of {size} bytes")
        for size in (0, 1 << 31, (1 << 32) - 1, (64 << 20) + 1)
    ),
    breach("RP1-tebibyte", f"raw({struct.pack('<Q', 1 << 40)!r})"),
    breach("RP1-negative", f"raw({struct.pack('<q', -5)!r})"),
    breach("RP2-empty", "raw(bytes(4) * 10_000)"),
    breach("RP2-tiny", "raw(protocol.frame(b'x') * 10_000)"),
    breach("RP7-nested", "raw(protocol.frame(b'\\x91' * 100_000 + b'\\x00'))"),
    breach("RP7-nested-inside", "raw(protocol.frame(b'\\x93\\x17\\x01' + b'\\x91' * 100_000 + b'\\x00'))"),
    breach("RP7-keys", "send(23, cell, {str(i): i for i in range(100_000)})"),
    breach("RP7-number", "send(23, 1 << 63, 'x')"),
    breach("RP7-nan", "send(23, float('nan'), 'x')"),
    breach("RP7-infinity", "send(23, float('inf'), 'x')"),
    breach("RP7-minus-zero", "send(23, -0.0, 'x')"),
    breach("RP7-length-lie", "raw(protocol.frame(b'\\x93\\x17\\x01\\xdb\\xff\\xff\\xff\\xff'))"),
    breach("RP7-array-lie", "raw(protocol.frame(b'\\xdd\\xff\\xff\\xff\\xff\\x17'))"),
    breach("RP9-invalid-utf8", "raw(protocol.frame(b'\\x93\\x17' + bytes([cell]) + b'\\xa2\\xff\\xfe'))"),
    breach("RP9-surrogate", "raw(protocol.frame(b'\\x93\\x17' + bytes([cell]) + b'\\xa3\\xed\\xa0\\x80'))"),
    breach("RP9-overlong", "raw(protocol.frame(b'\\x93\\x17' + bytes([cell]) + b'\\xa2\\xc0\\x80'))"),
    breach("RP11-unknown-message", "send(99, cell)"),
    breach("RP11-version", "send(20, 999, [{}, 0, 0, True, [], False])"),
    breach("RP11-type", "send(23, cell, 5)"),
    breach("RP11-missing", "send(23, cell)"),
    breach("RP11-too-many", "send(23, cell, 'x', 'y')"),
    breach("RP11-bool-as-int", "send(23, True, 'x')"),
    breach("RP11-int-as-text", "send('23', cell, 'x')"),
    breach("RP11-map", "raw(protocol.frame(protocol.encode({'type': 23, 'cell': cell})))"),
    breach("RP11-stream-3", "send(21, cell, 3, b'x')"),
    breach("RP11-nothing", "raw(protocol.frame(b'\\xc0'))"),
    breach("RP11-trailing", "raw(protocol.frame(protocol.encode(protocol.Final(cell, 'x')) + b'\\x00'))"),
    *(breach(f"RP13-{tag}", f"send({fields})") for tag, fields in {
        "start": "1, 'q', 1, 1, 1", "load": "2, 'object', -1, b'cos\\nsystem\\n.'",
        "execute": "3, 2, 'x', 1.0", "reply": "4, 1, ['forged']", "interrupt": "5, cell", "kill": "40",
        "hello": "44, {}", "cell-end": "41, cell, 'ok', None, 0.0, 0.0, False, False, 0, ''",
        "exit": "42, 'ok', ''", "setup-failed": "43, 'mounts', 1", "spawn": "60, b's', []",
        "shim-exit": "62, b's', 0",
    }.items()),
    breach("RP14-same-call", "send(22, 1, cell, ['a']); send(22, 1, cell, ['a'])", "used before"),
    breach("RP14-after", "send(22, 5, cell, ['a']); import time; time.sleep(0.2); send(22, 5, cell, ['a'])"),
    breach("RP14-lower", "send(22, 5, cell, ['a']); send(22, 4, cell, ['a'])"),
    breach("RP14-absurd", "send(22, 1 << 62, cell, ['a'])"),
    *(breach(f"RP13-init-{tag}", f"send({fields})") for tag, fields in {
        "file": "26, 1, b'x', None", "list": "29, 1, [], False", "discard": "9", "hung-up": "10",
    }.items()),
    breach("RP17-future-call", "send(22, 1, cell + 1, ['a'])", "cell that was never started"),
    breach("RP17-future-final", "send(23, cell + 1, 'x')"),
    breach("RP17-future-output", "send(21, cell + 7, 1, b'x')"),
    breach("RP17-cell-zero", "send(23, 0, 'x')"),
    breach("RP17-negative", "send(23, -1, 'x')"),
    breach("RP11-no-prompt", "send(22, 1, cell, [])"),
    breach("RP2-displays", "for _ in range(40): send(28, cell, {'text/plain': ''}, {})", "too many"),
    breach("RP2-display-size", "send(28, cell, {}, {'image/png': b'x' * ((8 << 20) + 1)})",
        "displays larger"),
    breach("RP2-display-sum", "for _ in range(5): send(28, cell, {'text/html': 'x' * (2 << 20)}, {})",
        "displays larger"),
    breach("RP9-display",
        "raw(protocol.frame(b'\\x94\\x1c' + bytes([cell]) + b'\\x81\\xaatext/plain\\xa2\\xff\\xfe\\x80'))"),
    breach("RP11-display-form", "send(28, cell, {'application/x-python': 'x'}, {})"),
    breach("RP11-display-type", "send(28, cell, {'text/plain': b'x'}, {})"),
    breach("RP11-display-of-nothing", "send(28, cell, {}, {})", "an empty display"),
    breach("RP17-future-display", "send(28, cell + 1, {'text/plain': 'x'}, {})",
        "cell that was never started"),
    breach("RP22-output", "send(21, cell, 1, b'x')"),
    breach("RP22-nothing", "send(21, cell, 1, b'')"),
    breach("RP22-long-array", "raw(protocol.frame(b'\\xdc\\x00\\x04\\x15\\x01\\x01\\xc4\\x01x'))"),
    breach("RP23-prompts", "send(22, 1, cell, ['a'] * 257)"),
    breach("RP23-sum", "send(22, 1, cell, ['a' * (1 << 20)] * 2)", "the guest's library sends in several"),
    breach("RP23-a-million-texts",
        "raw(protocol.frame(b'\\x94\\x16\\x01\\x01\\xdd\\0\\x10\\0\\0' + b'\\xa1z' * (1 << 20)))"),
    breach("RP11-ready-again", "send(20, protocol.VERSION, [{}, 0, 0, True, [], False])"),
]  # fmt: skip


async def answer_nothing(call: WorkerCall) -> list[str | CallError]:
    """A worker of few words."""
    return [""] * len(call.prompts)


@pytest.mark.parametrize("attack", BREACHES, ids=name)
async def test_a_breach_ends_the_session_at_once(arena: Arena, attack: Attack) -> None:
    arena.most_growth = 48 << 20
    asked: list[int] = []

    async def answer(call: WorkerCall) -> list[str | CallError]:
        asked.append(call.call)
        return ["answer"] * len(call.prompts)

    async with arena.open(on_call=answer) as sandbox:
        result = await timed(sandbox, attack.code, attack.timeout, attack.within)
        assert (result.outcome, result.state_lost, result.final) == (Outcome.PROTOCOL_VIOLATION, True, None)
        assert attack.detail in result.detail
        with pytest.raises(SandboxLost, match="reset"):
            await sandbox.execute("1")
    assert len(asked) == len(set(asked)), "what came twice was not asked twice"


async def test_the_raw_way_works_when_it_keeps_to_the_protocol(arena: Arena) -> None:
    """The control of this group: the same helpers, with frames that are right."""
    code = (
        RAW + "print('raw'); send(28, cell, {'text/plain': 'x'}, {}); send(23, cell, 'by hand');"
        " send(22, 7, cell, ['prompt'])\nimport time; time.sleep(0.2)"
    )
    asked: list[str] = []

    async def answer(call: WorkerCall) -> list[str | CallError]:
        asked.extend(call.prompts)
        return ["answer"]

    async with arena.open(on_call=answer) as sandbox:
        result = await timed(sandbox, code)
        await assert_alive(sandbox)
    assert (result.outcome, result.stdout, result.final, asked) == (OK, "raw\n", "by hand", ["prompt"])
    assert result.display == (Display({"text/plain": "x"}),)


async def test_rp13_a_repl_cannot_tell_of_its_death_in_inits_name(arena: Arena) -> None:
    """Only init knows how a repl ended. On a shared stream the guest dies of it; no backend believes it."""
    code = RAW + "send(25, 0, False); import time; time.sleep(60)"
    async with arena.open() as sandbox:
        result = await timed(sandbox, code, timeout=5, within=1.5)
    assert result.outcome in (Outcome.PROTOCOL_VIOLATION, Outcome.CRASHED)
    assert result.state_lost


@pytest.mark.timing
async def test_rp2_a_repl_that_hangs_up_is_gone_whatever_it_does_next(arena: Arena) -> None:
    code = (
        RAW + "import socket, time; channel._sock.shutdown(socket.SHUT_WR); print('still here', flush=True);"
        " time.sleep(60)"
    )
    async with arena.open() as sandbox:
        used = cpu_of_shims()
        result = await timed(sandbox, code, timeout=5, within=2)
        assert cpu_of_shims() - used < 0.3, "the shim does not wait on what has ended"
    assert (result.outcome, result.state_lost) == (Outcome.CRASHED, True)
    assert "closed its stream" in result.detail


async def test_rp2_a_stream_of_large_frames_is_cut(arena: Arena) -> None:
    arena.most_growth = 64 << 20
    code = (
        RAW + "data = protocol.frame(protocol.encode(protocol.Final(cell - 1, 'x' * (1 << 20))))\n"
        "for _ in range(300): raw(data)"
    )
    async with arena.open() as sandbox:
        await timed(sandbox, "1")
        growth = ShimGrowth()
        task = asyncio.create_task(timed(sandbox, code, timeout=3, within=5))
        while not task.done():
            growth.look()
            await asyncio.sleep(0.02)
        result = await task
    assert result.outcome in (OK, Outcome.TIMEOUT), result
    assert (result.final, result.dropped > 0) == (None, True)
    assert growth.most < 64 << 20, "the shim does not grow with what is sent"


async def test_rp3_there_is_nothing_to_connect_to(arena: Arena) -> None:
    """The engine's socket by every name that the host knows it by, two thousand times."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
        names = sorted({line.split()[7] for line in file if len(line.split()) > 7 and "engine" in line})
    names += ["/run/engine", "/proc/1/root/run/engine", "@/run/engine", "/tmp/engine"]
    code = f"""
import socket
names = {names!r}
reached = 0
for turn in range(2000):
    name = names[turn % len(names)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try: sock.connect("\\0" + name[1:] if name.startswith("@") else name); reached += 1
        except OSError: pass
print(reached)
"""
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    assert result.stdout == "0\n"


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        ("raw(b'\\x10\\x00')", "return"),
        ("raw(b'\\x10\\x00\\x00\\x00half')", "return"),
        ("raw(b'\\x10')", "wait"),
    ],
    ids=["RP4-half-header", "RP4-half-frame", "RP4-wait"],
)
async def test_half_a_frame_holds_nobody_up(arena: Arena, code: str, ends: str) -> None:
    rest = "\nimport time; time.sleep(60)" if ends == "wait" else ""
    async with arena.open() as sandbox:
        result = await timed(sandbox, RAW + code + rest, timeout=0.5, within=2)
    assert result.outcome in (Outcome.TIMEOUT, Outcome.PROTOCOL_VIOLATION), result
    assert result.state_lost


async def test_rp5_replies_that_nobody_reads_are_bounded(arena: Arena) -> None:
    """Each refusal of a full batch is fifty times as long as the call; the shim may not keep them all."""
    code = (
        RAW
        + """
batch = [""] * 1024
for call in range(1, 3001):
    send(22, call, cell, batch)
import time
time.sleep(60)
"""
    )

    async def never(_: WorkerCall) -> list[str | CallError]:
        await asyncio.Event().wait()
        return []

    async with arena.open(on_call=never, pending_calls=1) as sandbox:
        growth = ShimGrowth()
        result = await growth.watch(sandbox, code)
    assert growth.most < 48 << 20, f"the shim grew by {growth.most >> 20} MiB"
    assert result.outcome in (Outcome.PROTOCOL_VIOLATION, Outcome.OOM, Outcome.KILLED, Outcome.CRASHED), (
        result
    )


async def never(_: WorkerCall) -> list[str | CallError]:
    """Answer nothing."""
    await asyncio.Event().wait()
    return []


@pytest.mark.parametrize(
    "prompts",
    ["['a' * ((4 << 20) - 8) + chr(0x1F600)]", "['a' * 4000 + chr(0x1F600)] * 200", "[chr(1) * (4 << 20)]",
        "['']"],
    ids=["RP24-wide", "RP24-wide-and-short", "RP24-escaped", "RP24-tiny"],
)  # fmt: skip
async def test_pending_prompts_are_counted_by_their_memory(arena: Arena, prompts: str) -> None:
    """The engine holds 64 MiB at most for a guest, however many bytes a character takes."""
    arena.most_growth = 64 << 20
    code = f"{RAW}\nprompts = {prompts}\nfor call in range(1, 20_000): send(22, call, cell, prompts)"
    async with arena.open(on_call=never, memory="512MiB") as sandbox:
        growth = ShimGrowth()
        result = await growth.watch(sandbox, code)
    assert type(result.outcome) is Outcome
    assert growth.most < 64 << 20, f"the shim grew by {growth.most >> 20} MiB"


@pytest.mark.parametrize("count", [1, 256], ids=["RP25-one", "RP25-batch"])
async def test_answers_that_nobody_reads_are_counted_by_what_comes_back(arena: Arena, count: int) -> None:
    arena.most_growth = 64 << 20

    async def answer(call: WorkerCall) -> list[str | CallError]:
        await asyncio.sleep(0.05)
        return [f"{number:6}" + "x" * 60_000 for number in range(len(call.prompts))]

    code = f"{RAW}\nfor call in range(1, 4000): send(22, call, cell, ['p'] * {count})"
    async with arena.open(on_call=answer) as sandbox:
        growth = ShimGrowth()
        result = await growth.watch(sandbox, code)
    assert type(result.outcome) is Outcome
    assert growth.most < 64 << 20, f"the shim grew by {growth.most >> 20} MiB"


@pytest.mark.timing
@pytest.mark.parametrize(
    "flood",
    ["late = protocol.frame(protocol.encode(protocol.Final(cell - 1, '')))\nwhile True: raw(late * 2000)",
        "raw(bytes([0, 0, 64, 0]))\nwhile True: os.write(channel._sock.fileno(), b'x')"],
    ids=["RP26-late", "RP26-pieces"],
)  # fmt: skip
async def test_what_a_frame_costs_outside_is_charged_by_a_rate(arena: Arena, flood: str) -> None:
    async with arena.open() as sandbox:
        await timed(sandbox, "1")
        used = cpu_of_shims()
        result = await timed(sandbox, RAW + flood, timeout=2, within=6)
        assert result.outcome in (Outcome.TIMEOUT, Outcome.PROTOCOL_VIOLATION)
        assert cpu_of_shims() - used < 0.8, "of two seconds"


def _shapes() -> dict[str, bytes]:
    pack = msgspec.msgpack.encode
    return {
        "RP7-depth": b"\x91" * 100_000 + b"\x00",
        "RP7-a-million-keys": pack({str(key): key for key in range(1_000_000)}),
        "RP7-ten-megabytes": pack([23, 1, "9" * 10_000_000]),
        "RP7-announced": b"\xdd\xff\xff\xff\xff",
        "RP7-announced-map": b"\xdf\xff\xff\xff\xff",
        "RP7-announced-bytes": b"\x94\x15\x01\x01\xc6\xff\xff\xff\xff",
        "RP7-extension": b"\xc9\xff\xff\xff\xff\x01",
        "RP7-timestamp": b"\x93\x17\xd6\xff\x00\x00\x00\x00\x00",
    }


SHAPES = _shapes()


@pytest.mark.timing
@pytest.mark.parametrize("shape", SHAPES)
async def test_the_decoder_is_quick_and_closed(arena: Arena, shape: str) -> None:
    payload = SHAPES[shape]
    started = time.monotonic()
    try:
        decoded = await asyncio.to_thread(protocol.decode_from_guest, payload)
    except (msgspec.MsgspecError, RecursionError):
        decoded = None
    assert time.monotonic() - started < 1
    assert (decoded is not None) is (shape == "RP7-ten-megabytes")


@pytest.mark.parametrize(
    ("answer", "text"),
    [("b'\\xa1\\x00'", "\0"), ("b'\\xa3\\xef\\xbb\\xbf'", "\ufeff"), ("b'\\xa4\\xf0\\x9f\\x99\\x82'", "🙂"),
        ("b'\\xa3\\xef\\xbf\\xbe'", "\ufffe")],
    ids=["RP9-nul", "RP9-bom", "RP9-astral", "RP9-noncharacter"],
)  # fmt: skip
async def test_odd_but_valid_text_is_text(arena: Arena, answer: str, text: str) -> None:
    async with arena.open() as sandbox:
        result = await timed(sandbox, RAW + f"raw(protocol.frame(b'\\x93\\x17' + bytes([cell]) + {answer}))")
    assert (result.outcome, result.final) == (OK, text)


async def test_rp15_a_session_cannot_speak_for_another(arena: Arena) -> None:
    asked: dict[str, list[str]] = {"a": [], "b": []}

    def answer(who: str) -> object:
        async def note(call: WorkerCall) -> list[str | CallError]:
            asked[who] += call.prompts
            return ["answer"] * len(call.prompts)

        return note

    code = RAW + "for call in range(1, 51): send(22, call, cell, ['from a'])\nsend(23, cell, 'final of a')"
    async with arena.open(on_call=answer("a")) as one, arena.open(on_call=answer("b")) as other:
        waiting = asyncio.create_task(timed(other, "import time; time.sleep(0.5); print(worker('from b'))"))
        await timed(one, code)
        result = await waiting
    assert (result.stdout, result.final) == ("answer\n", None)
    assert asked["b"] == ["from b"]
    assert set(asked["a"]) <= {"from a"}


async def test_rp17_a_call_of_an_ended_cell_is_not_made(arena: Arena) -> None:
    asked: list[str] = []

    async def answer(call: WorkerCall) -> list[str | CallError]:
        asked.extend(call.prompts)
        return ["answer"] * len(call.prompts)

    async with arena.open(on_call=answer) as sandbox:
        await timed(sandbox, "x = 1")
        result = await timed(sandbox, RAW + "send(22, 1, cell - 1, ['late']); send(23, cell - 1, 'late')")
        again = await timed(sandbox, "print(worker('now'))")
    assert (result.outcome, result.final) == (OK, None)
    assert result.dropped + again.dropped >= 2
    assert asked in (["now"], []), "the library's numbers begin below those that were used"


@pytest.mark.timing
async def test_rp19_a_flood_of_calls_is_slowed_and_harms_nobody_else(arena: Arena) -> None:
    asked = 0

    async def answer(call: WorkerCall) -> list[str | CallError]:
        nonlocal asked
        asked += len(call.prompts)
        return ["answer"] * len(call.prompts)

    code = RAW + "import time\nfor call in range(1, 20_001): send(22, call, cell, ['x'])\ntime.sleep(0.3)"
    started = time.monotonic()
    async with arena.open(on_call=answer, calls_per_second=50) as sandbox:
        result = await timed(sandbox, code, timeout=2, within=8)
    elapsed = time.monotonic() - started
    assert type(result.outcome) is Outcome
    assert asked <= 50 * (elapsed + 2)


async def test_rp21_the_name_of_a_class_is_text(arena: Arena, tmp_path: object) -> None:
    code = (
        RAW + "send(24, cell, ['os.system', 'touch /work/x', '__import__(\"os\").abort()'])\n"
        "import time; time.sleep(60)"
    )
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    assert result.outcome is Outcome.USER_ERROR
    assert result.error is not None
    assert (result.error.type, result.error.message) == ("os.system", "touch /work/x")
    assert type(result.error) is protocol.ErrorInfo


# Raw bytes through the real shim


def _valid(cell: int) -> list[bytes]:
    """Frames that would be right."""
    messages: list[protocol.FromGuest] = [
        protocol.Output(cell, 1, b"text"), protocol.Call(1, cell, ["a", "b"]), protocol.Final(cell, "answer"),
        protocol.ToolCall(2, cell, 0, b'[["x"],{}]'), protocol.ToolCall(3, cell, 1, b"[[],{}]"),
        protocol.Display(cell, {"text/plain": "x"}, {"image/png": b"x"}), protocol.Done(cell, None),
        protocol.Done(cell, protocol.ErrorInfo("E", "m", "t")), protocol.ReplExit(0, hung_up=False),
    ]  # fmt: skip
    return [protocol.frame(protocol.encode(message)) for message in messages]


def _mutant(dice: random.Random) -> bytes:
    data = bytearray(b"".join(dice.choices(_valid(1), k=dice.randint(1, 3))))
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(data))
        match dice.randrange(4):
            case 0:
                data[place] = dice.randrange(256)
            case 1:
                del data[place : place + dice.randint(1, 4)]
            case 2:
                data[place:place] = dice.randbytes(dice.randint(1, 8))
            case _:
                data[place] ^= 1 << dice.randrange(8)
        data = data or bytearray(b"\0")
    return bytes(data)


@pytest.mark.parametrize("seed", range(6))
async def test_rp11_fuzz_through_the_shim_is_only_ever_a_result(arena: Arena, seed: int) -> None:
    """Ten inputs each: random bytes, and valid frames with a few bytes changed."""
    arena.most_growth = 48 << 20
    dice = random.Random(seed)
    inputs = [dice.randbytes(dice.randint(1, 300)) if turn % 3 == 0 else _mutant(dice) for turn in range(10)]

    async def one(data: bytes) -> CellResult | SandboxLost:
        try:
            async with arena.open(tools={"shout": HostTool(str.upper)}, timeout=0.4, grace=0.1) as sandbox:
                first = await sandbox.execute(RAW + f"raw({data!r})")
                if not first.state_lost:
                    await sandbox.execute("print(1 + 1)")
                return first
        except SandboxLost as lost:
            return lost

    for start in range(0, len(inputs), 5):
        for result in await asyncio.gather(*map(one, inputs[start : start + 5])):
            assert isinstance(result, SandboxLost) or type(result.outcome) is Outcome
