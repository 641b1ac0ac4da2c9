"""The broker service as its users have it: processes of their own, tcp with CURVE, a model behind HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from process_support import COMMAND, clean_environment, ended, restore_sigint, started
from support import block, eventually

from supdist.engine.service import RemoteHandler, make_client_keys, make_server_keys
from supdist.tools.testing.fake_openai import FakeOpenAI, Reply, Request, Text

pytestmark = pytest.mark.slow

START_SECONDS = 60.0
"""For a process to start, connect and ask, on a machine that is busy with other tests."""

TCP = "tcp://127.0.0.1:*"


def supdist(*arguments: object, cwd: Path) -> AbstractAsyncContextManager[Process]:
    """Start a command."""
    return started(*COMMAND, *map(str, arguments), cwd=cwd, env=clean_environment())


@asynccontextmanager
async def broker(folder: Path, bind: str, *arguments: object) -> AsyncGenerator[tuple[str, Process]]:
    """A service, and the address that it tells."""
    async with supdist("broker", "models.json", "--bind", bind, *arguments, cwd=folder) as process:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            address = (await process.stdout.readline()).decode().strip()
        assert address, (await ended(process))[2]
        yield address, process


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Of a service and of one client."""
    make_server_keys(tmp_path / "keys")
    make_client_keys(tmp_path / "keys", "friend")
    return tmp_path / "keys"


def models(folder: Path, server: FakeOpenAI, **changes: Any) -> None:
    spec = {"handler": "openai", "model": "small", "base_url": server.base_url, **changes}
    (folder / "models.json").write_text(json.dumps({"worker": spec}))


def task(folder: Path, name: str, *blocks: str, **changes: Any) -> Path:
    """A task whose supervisor sends these blocks, one a turn."""
    replies = list(map(block, blocks))
    path = folder / f"{name}.json"
    supervisor = {"handler": "scripted", "replies": replies}
    path.write_text(json.dumps({"query": "q", "context": "c", "supervisor": supervisor, **changes}))
    return path


def prompt(request: Request) -> str:
    return request.body["messages"][-1]["content"]


def shout(request: Request) -> Reply:
    return Text(prompt(request).upper())


async def test_engines_of_several_processes_share_one_service_and_a_stranger_gets_nothing(
    tmp_path: Path, keys: Path
) -> None:
    make_server_keys(tmp_path / "other")
    strange = make_client_keys(tmp_path / "other", "eve")
    (strange / "server.key").write_bytes((keys / "server.key").read_bytes())
    tasks = {
        name: task(tmp_path, name, f"FINAL(' '.join(worker_batch(['{name}' + str(i) for i in range(9)])))")
        for name in ("ann", "bob", "eve")
    }
    async with FakeOpenAI(shout) as server:
        models(tmp_path, server)
        async with broker(tmp_path, TCP, "--curve-keys", keys) as (address, _):

            async def run(name: str, folder: Path) -> tuple[int | None, str, str]:
                arguments = ("run", tasks[name], "--broker", address, "--curve-keys", folder)
                async with supdist(*arguments, cwd=tmp_path) as process:
                    return await ended(process)

            ann, bob, eve = await asyncio.gather(
                run("ann", keys / "clients/friend"), run("bob", keys / "clients/friend"), run("eve", strange)
            )
    assert ann[:2] == (0, " ".join(f"ANN{number}" for number in range(9)) + "\n")
    assert bob[:2] == (0, " ".join(f"BOB{number}" for number in range(9)) + "\n")
    assert eve[0] == 5
    assert "does not know the key in" in eve[2]
    assert "Traceback" not in eve[2]
    asked = sorted(map(prompt, server.requests))
    assert asked == sorted(f"{name}{number}" for name in ("ann", "bob") for number in range(9))
    assert len(server.ledger) == 18


async def test_killing_one_client_cancels_its_calls_and_the_other_goes_on(tmp_path: Path, keys: Path) -> None:
    """The killed client holds the only slot: the other's call arrives once that one is cancelled."""
    release = asyncio.Event()

    async def play(request: Request) -> Reply:
        if prompt(request).startswith("killed"):
            await release.wait()
        return shout(request)

    killed = task(tmp_path, "killed", "FINAL(str(worker_batch(['killed ' + str(i) for i in range(20)])))")
    other = task(tmp_path, "other", "FINAL(worker('other'))")
    with_keys = ("--curve-keys", keys / "clients/friend")
    async with FakeOpenAI(play) as server:
        models(tmp_path, server, max_concurrency=1)
        async with (
            broker(tmp_path, TCP, "--curve-keys", keys) as (address, _),
            supdist("run", killed, "--broker", address, *with_keys, cwd=tmp_path) as victim,
        ):
            await eventually(lambda: server.requests, START_SECONDS)
            async with supdist("run", other, "--broker", address, *with_keys, cwd=tmp_path) as survivor:
                victim.kill()
                # No other call can arrive while the slot is held, however slowly the other client starts.
                await eventually(lambda: len(server.requests) == 2, START_SECONDS)
                assert (await ended(survivor))[:2] == (0, "OTHER\n")
        release.set()
    assert list(map(prompt, server.requests)) == ["killed 0", "other"]
    assert len(server.ledger) == 1, "what the killed one had asked is billed to nobody"


async def test_a_modest_client_is_answered_while_another_floods(tmp_path: Path) -> None:
    """Behind the flood it would wait for a minute and a half."""
    flood = task(tmp_path, "flood", "FINAL(len(worker_batch(['flood ' + str(i) for i in range(900)])))")
    modest = task(tmp_path, "modest", "FINAL(worker('modest'))")
    async with FakeOpenAI(lambda request: Text(prompt(request), delay=0.1)) as server:
        models(tmp_path, server, max_concurrency=1)
        async with (
            broker(tmp_path, f"ipc://{tmp_path}/broker") as (address, _),
            supdist("run", flood, "--broker", address, cwd=tmp_path),
        ):
            await eventually(lambda: len(server.requests) > 2, 30)
            async with supdist("run", modest, "--broker", address, cwd=tmp_path) as process:
                status, answer, _ = await ended(process)
        assert (status, answer) == (0, "modest\n")
        assert len(server.requests) < 600


async def test_a_run_outlives_a_service_that_is_killed_and_started_again(tmp_path: Path) -> None:
    async def play(request: Request) -> Reply:
        if prompt(request) == "lost":
            await asyncio.Event().wait()
        return shout(request)

    path = task(
        tmp_path,
        "task",
        "print(worker('first'))",
        "codes = [getattr(r, 'code', r) for r in worker_batch(['lost'], return_errors=True)]",
        "FINAL(str(codes) + worker('last'))",
    )
    bind = f"ipc://{tmp_path}/broker"
    async with FakeOpenAI(play) as server:
        models(tmp_path, server)
        async with (
            broker(tmp_path, bind) as (address, service),
            supdist("run", path, "--broker", address, cwd=tmp_path) as engine,
        ):
            await eventually(lambda: "lost" in map(prompt, server.requests), 30)
            service.kill()
            await service.wait()
            async with broker(tmp_path, bind):
                assert (await ended(engine))[:2] == (0, "['unavailable']LAST\n")
        assert list(map(prompt, server.requests)) == ["first", "lost", "last"], "nothing is sent twice"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_service_that_is_told_to_end_says_so_to_its_clients(
    tmp_path: Path, number: signal.Signals
) -> None:
    async def never(_: Request) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    path = task(
        tmp_path, "task", "FINAL(getattr(worker_batch(['x'], return_errors=True)[0], 'code', 'answered'))"
    )
    async with FakeOpenAI(never) as server:
        models(tmp_path, server)
        async with (
            broker(tmp_path, f"ipc://{tmp_path}/broker") as (address, service),
            supdist("run", path, "--broker", address, cwd=tmp_path) as engine,
        ):
            await eventually(lambda: server.requests, 30)
            service.send_signal(number)
            status, output, complaints = await ended(service)
            answer = await ended(engine)
    assert (status, output, complaints) == (0, "", "serving worker small; Ctrl-C ends it\n")
    # Its worker answered nothing, so what the code made of it is no answer of a run that went well.
    assert answer[:2] == (5, "unavailable\n")
    assert not (tmp_path / "broker").exists()
    assert not server.ledger


async def test_supervisor_and_worker_can_both_be_served_and_a_task_can_name_the_service(
    tmp_path: Path,
) -> None:
    def play(request: Request) -> Reply:
        return Text("```repl\nFINAL(worker('hi'))\n```") if request.model == "big" else shout(request)

    async with FakeOpenAI(play) as server:
        (tmp_path / "models.toml").write_text(
            f'[supervisor]\nhandler = "openai"\nmodel = "big"\nbase_url = "{server.base_url}"\n'
            f'[worker]\nhandler = "openai"\nmodel = "small"\nbase_url = "{server.base_url}"\n'
        )
        (tmp_path / "models.json").symlink_to("models.toml")
        bind = ("--bind", f"ipc://{tmp_path}/broker")
        spec = {"handler": "broker", "address": bind[1]}
        named = task(tmp_path, "named", supervisor=spec, worker=spec)
        bare = task(tmp_path, "bare", supervisor={"handler": "scripted", "replies_file": "there is none"})
        async with supdist("broker", "models.toml", *bind, cwd=tmp_path) as service:
            assert service.stdout is not None
            assert (await service.stdout.readline()).decode() == f"{bind[1]}\n"
            for arguments in ((named,), (bare, "--broker", bind[1])):
                async with supdist("run", *arguments, "--json", "--log-dir", "logs", cwd=tmp_path) as engine:
                    status, output, complaints = await ended(engine)
                assert (status, complaints) == (0, "")
                assert json.loads(output)["answer"] == "HI"
    logged = [json.loads(line) for line in (tmp_path / "logs/worker.jsonl").read_text().splitlines()]
    assert {line["model"] for line in logged if line["event"] == "worker"} == {"small"}


async def test_a_client_that_floods_pings_and_dies_does_not_end_the_service(
    tmp_path: Path, keys: Path
) -> None:
    """What made libzmq abort the whole process, where its receive queue had a limit."""
    code = """
import sys, time, zmq
from pathlib import Path
from supdist.engine.service.keys import read_client_keys
from supdist.engine.service.protocol import Cancel, Hello, encode
keys = read_client_keys(Path(sys.argv[2]))
socket = zmq.Context().socket(zmq.DEALER)
socket.sndhwm, socket.heartbeat_ivl, socket.heartbeat_timeout = 0, 1, 60_000
socket.curve_publickey, socket.curve_secretkey = keys.pair.public, keys.pair.secret
socket.curve_serverkey = keys.server
socket.connect(sys.argv[1])
socket.send(encode(Hello(1)))
print("begins", flush=True)
while True:
    for number in range(25):
        socket.send(encode(Cancel(number)))
    time.sleep(0.0005)
"""
    async with FakeOpenAI(shout) as server:
        models(tmp_path, server)
        async with broker(tmp_path, TCP, "--curve-keys", keys) as (address, service):
            for _ in range(5):
                flood = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-c", code, address, str(keys / "clients/friend")), stdout=PIPE
                )
                assert flood.stdout is not None
                assert await flood.stdout.readline() == b"begins\n"
                await asyncio.sleep(0.3)  # the time in which it floods
                flood.kill()
                await flood.communicate()
            remote = RemoteHandler("worker", address, curve_keys=keys / "clients/friend")
            answer = await remote.chat([{"role": "user", "content": "still there"}])
            assert answer.text == "STILL THERE"
            assert service.returncode is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["broker", "models.json", "--bind", "tcp://127.0.0.1:0"], "tcp needs keys.*--curve-keys"),
        (["broker", "models.json", "--bind", "x"], "no address of a broker service"),
        (["broker", "models.json", "--bind", "ipc://nodir/new/s"], "the folder nodir does not exist"),
        (["broker", "models.json"], "Missing option '--bind'"),
        (
            ["broker", "models.json", "--bind", "ipc://s", "--curve-keys", "none"],
            "none: no such folder.*keygen",
        ),
        (["broker", "none.json", "--bind", "ipc://s"], "cannot read the models file"),
        (["broker", "empty.json", "--bind", "ipc://s"], "needs `worker`, `supervisor`, or both"),
        (["broker", "wrong.toml", "--bind", "ipc://s"], "wroker: unknown key; did you mean `worker`"),
        (["broker", "empty.toml", "--bind", "ipc://s"], "needs `worker`"),
        (["broker", "--bind", "ipc://s"], "no model to serve: .* OPENAI_API_KEY"),
        (["broker", "keygen", "keys"], "keys/server.key_secret exists, and keys are not overwritten"),
        (["broker", "keygen", "keys", "--client", "friend"], "exists, and keys are not overwritten"),
        (["broker", "keygen", "keys", "--client", "../x"], "is no name for a client"),
        (["run", "task.json", "--broker", "tcp://127.0.0.1:5555"], "tcp needs keys"),
        (["run", "task.json", "--broker", "x"], "no address of a broker service"),
        (["run", "task.json", "--curve-keys", "keys"], "name it with --broker"),
        (
            ["run", "task.json", "--broker", "tcp://127.0.0.1:5555", "--curve-keys", "keys"],
            "give a client's folder, keys/clients/NAME",
        ),
    ],
)
@pytest.mark.usefixtures("keys")
async def test_wrong_arguments_are_exit_2_and_say_what_is_wrong(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    import re

    (tmp_path / "models.json").write_text('{"worker": {"handler": "builtin"}}')
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / "empty.toml").write_text("")
    (tmp_path / "wrong.toml").write_text('[wroker]\nhandler = "builtin"\n')
    task(tmp_path, "task", "FINAL(1)")
    async with supdist(*arguments, cwd=tmp_path) as process:
        status, output, complaints = await ended(process)
    assert (status, output) == (2, "")
    assert re.search(words, complaints)
    assert "Traceback" not in complaints


async def test_a_service_that_is_not_there_is_exit_5(tmp_path: Path) -> None:
    path = task(tmp_path, "task", "FINAL(1)")
    async with supdist("run", path, "--broker", f"ipc://{tmp_path}/none", cwd=tmp_path) as process:
        status, _, complaints = await ended(process)
    assert status == 5
    assert "the model failed: the broker at" in complaints
    assert "did not answer within 10 s" in complaints


async def test_keygen_makes_all_that_is_needed_at_once_and_more_clients_later(tmp_path: Path) -> None:
    for name in ("ann", "bob"):
        async with supdist("broker", "keygen", "keys", "--client", name, cwd=tmp_path) as process:
            status, output, _ = await ended(process)
        assert status == 0
        assert f"keys/clients/{name}: for --curve-keys of {name}" in output
    secrets = list(tmp_path.rglob("*.key_secret"))
    assert len(secrets) == 3
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert sorted(path.name for path in (tmp_path / "keys/authorized_keys").iterdir()) == [
        "ann.key",
        "bob.key",
    ]


async def test_on_a_terminal_a_line_tells_what_it_does(tmp_path: Path) -> None:
    import pty

    (tmp_path / "models.json").write_text('{"worker": {"handler": "scripted", "replies": ["yes"]}}')
    controller, terminal = pty.openpty()
    address = f"ipc://{tmp_path}/broker"
    shown = b""

    def read() -> None:
        nonlocal shown
        with contextlib.suppress(OSError):
            shown += os.read(controller, 65536)

    loop = asyncio.get_running_loop()
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "broker", "models.json", "--bind", address),
        cwd=tmp_path,
        stdin=terminal,
        stdout=PIPE,
        stderr=terminal,
        preexec_fn=restore_sigint,
    )
    try:
        loop.add_reader(controller, read)
        await eventually(lambda: "0 clients · 0 running · 0 queued · 0 done".encode() in shown, 30)
        async with RemoteHandler("worker", address) as remote:
            await remote.chat([{"role": "user", "content": "x"}])
            await eventually(lambda: "1 client · 0 running · 0 queued · 1 done".encode() in shown, 30)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    finally:
        loop.remove_reader(controller)
        if process.returncode is None:
            process.kill()
        await process.communicate()
        os.close(controller)
        os.close(terminal)
    assert b"serving worker scripted; Ctrl-C ends it" in shown
    assert b"Traceback" not in shown


async def test_the_latency_of_a_call_is_measured(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "supdist.tools.broker_latency", "--calls", "20")
    process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stdout=PIPE, stderr=PIPE)
    status, output, complaints = await ended(process)
    assert (status, complaints) == (0, "")
    names = [line.split(" | ")[0].strip() for line in output.splitlines()]
    assert names[0] == "connection"
    assert names[2:] == ["direct", "ipc", "tcp + CURVE"]
