"""The contract of an MCP server over a Python session, with the SDK's client, for every server."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import sys
from asyncio.subprocess import Process
from pathlib import Path

import pytest
from mcp import MCPError
from mcp.types import BlobResourceContents, EmbeddedResource, ImageContent
from mcp_support import PNG, SERVERS, Server, StdioClient, call, connected, printed, python, text
from process_support import COMMAND, alive, descendants, processes_running, started
from support import REPOSITORY, eventually

pytestmark = [pytest.mark.slow, pytest.mark.anyio]


LOCAL = [server for server in SERVERS if server.local]
CONTAINERS = [server for server in SERVERS if not server.local]


@pytest.fixture(params=SERVERS, ids=lambda server: server.name)
def server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.param
    if not server.local:
        request.getfixturevalue("docker")
    return server


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_session_lasts_until_it_is_reset(server: Server, mode: str) -> None:
    """Over revisions of the protocol with a handshake and without."""
    async with connected(server, mode=mode) as client:
        assert await printed(client, "x = 40\nprint('set')") == "set\n"
        assert await printed(client, "x + 2") == "42"
        reset = await call(client, "reset")
        assert not reset.is_error
        gone = await python(client, "x")
        assert gone.is_error
        assert "NameError: name 'x' is not defined" in text(gone)


async def test_what_code_does_wrong_is_a_result_that_says_so(server: Server) -> None:
    async with connected(server) as client:
        await printed(client, "x = 1")
        raised = await python(client, "import sys\nprint('out')\nprint('err', file=sys.stderr)\n1 / 0")
        assert raised.is_error
        blocks = [getattr(block, "text", "") for block in raised.content]
        assert blocks[:2] == ["out\n", "stderr:\nerr\n"]
        assert 'File "<cell 2>", line 4' in blocks[2]
        assert "ZeroDivisionError" in blocks[2]
        broken = await python(client, "def (")
        assert broken.is_error
        assert "SyntaxError" in text(broken)
        left = await python(client, "import sys; sys.exit(3)")
        assert left.is_error
        assert await printed(client, "x") == "1"
        assert await printed(client, "y = 2") == "(no output)"


async def test_code_that_takes_too_long_is_stopped_and_its_variables_stay(server: Server) -> None:
    async with connected(server, "--timeout", "30") as client:
        stopped = await python(client, "x = 1\nwhile True: pass", timeout=0.3)
        assert stopped.is_error
        assert "it took longer than 0.3 s. The variables are kept." in text(stopped)
        assert await printed(client, "x") == "1"


async def test_a_calls_timeout_is_capped_by_the_servers(server: Server) -> None:
    async with connected(server, "--timeout", "0.3") as client:
        stopped = await python(client, "while True: pass", timeout=10_000)
        assert "it took longer than 0.3 s" in text(stopped)


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.kill(os.getpid(), 9)",
        "import os; os._exit(3)",
        "import ctypes; ctypes.string_at(0)",
        "import os; os.closerange(3, 300)\nwhile True: pass",
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
    ],
)
async def test_a_lost_interpreter_is_told_of_and_replaced(server: Server, code: str) -> None:
    async with connected(server, "--timeout", "2") as client:
        await call(client, "put_file", path="kept.txt", content="x")
        await printed(client, "x = 1")
        lost = await python(client, code)
        assert lost.is_error
        words = (
            "Every variable is lost, the files are kept"
            if server.keeps_files
            else "Every variable and file is lost"
        )
        assert f"{words}; a new session has begun." in text(lost)
        assert await printed(client, "'x' in globals()") == "False"
        listed = await call(client, "list_files")
        assert listed.structured_content == {
            "files": [{"path": "kept.txt", "size": 1}] if server.keeps_files else [],
            "more": False,
        }


async def test_what_a_session_has_started_ends_with_it(server: Server) -> None:
    """Daemons that have cut their ties too, at a reset and at the end."""
    seconds = [f"{90_000 + os.getpid() % 10_000}.{number}" for number in range(2)]
    code = "import subprocess; p = subprocess.Popen(['setsid', '-f', 'sleep', '{}']); p.wait()"
    async with connected(server) as client:
        for number, reset in enumerate((True, False)):
            await printed(client, code.format(seconds[number]))
            await eventually(lambda number=number: processes_running("sleep", seconds[number]), 20)
            if reset:
                await call(client, "reset")
                assert not processes_running("sleep", seconds[0])
    await eventually(lambda: not processes_running("sleep", seconds[1]), 20)


@pytest.mark.parametrize("server", CONTAINERS, indirect=True, ids=lambda server: server.name)
async def test_a_fork_bomb_ends_with_its_interpreter(server: Server) -> None:
    """A sandbox has attacks of its own for that; without a container nothing bounds it."""
    async with connected(server, "--timeout", "2") as client:
        await python(client, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass")
        await call(client, "reset")
        count = "import os; sum(name.isdecimal() for name in os.listdir('/proc'))"
        assert int(await printed(client, count)) <= 3


@pytest.mark.parametrize("server", CONTAINERS, indirect=True, ids=lambda server: server.name)
async def test_memory_that_a_container_does_not_have_is_told_as_such(server: Server) -> None:
    async with connected(server) as client:
        killed = await python(client, "x = [bytearray(1 << 20) for _ in range(10_000)]")
        assert "it needed more memory than there is" in text(killed)
        assert await printed(client, "1 + 1") == "2"


async def test_the_guests_init_may_die_too() -> None:
    """Only without walls can code reach it."""
    async with connected(SERVERS[0], "--timeout", "10") as client:
        lost = await python(client, "import os; os.kill(os.getppid(), 9)\nwhile True: pass")
        assert "The Python process crashed." in text(lost)
        assert await printed(client, "1 + 1") == "2"


async def test_images_are_images(server: Server) -> None:
    code = f"""
import base64
class Pixel:
    def _repr_png_(self): return base64.b64decode({PNG!r})
Pixel()
"""
    async with connected(server) as client:
        shown = await python(client, code)
        assert [block for block in shown.content if isinstance(block, ImageContent)] == [
            ImageContent(data=PNG, mime_type="image/png")
        ]
        await printed(
            client, f"with open('pixel.png', 'wb') as file: _ = file.write(base64.b64decode({PNG!r}))"
        )
        (block,) = (await call(client, "get_file", path="pixel.png")).content
        assert block == ImageContent(data=PNG, mime_type="image/png")


async def test_a_file_of_a_megabyte_comes_and_goes(server: Server) -> None:
    data = bytes(range(256)) * 4096
    prose = "zażółć\r\n\0\x1b[31m" * 60_000
    async with connected(server) as client:
        put = await call(
            client, "put_file", path="a/b.bin", content=base64.b64encode(data).decode(), encoding="base64"
        )
        assert text(put) == f"{len(data)} bytes written."
        await call(client, "put_file", path="prose.txt", content=prose)
        size = len(prose.encode())
        assert await printed(client, "import os; os.path.getsize('prose.txt')") == str(size)
        await printed(client, "_ = open('a/back.bin', 'wb').write(open('a/b.bin', 'rb').read()[::-1])")
        (block,) = (await call(client, "get_file", path="a/back.bin")).content
        assert isinstance(block, EmbeddedResource)
        assert isinstance(block.resource, BlobResourceContents)
        assert base64.b64decode(block.resource.blob) == data[::-1]
        assert text(await call(client, "get_file", path="prose.txt")) == prose
        listed = await call(client, "list_files")
        files = [
            {"path": "prose.txt", "size": size},
            {"path": "a/b.bin", "size": len(data)},
            {"path": "a/back.bin", "size": len(data)},
        ]
        assert listed.structured_content == {"files": files, "more": False}
        assert json.loads(text(listed)) == listed.structured_content


async def test_wrong_arguments_are_results_that_say_what_is_wrong(server: Server) -> None:
    async with connected(server) as client:
        for tool, arguments, words in (
            ("python", {}, "`code`: Field required"),
            ("python", {"code": 1}, "`code`: Input should be a valid string"),
            ("python", {"code": "1", "timeout": 0}, "`timeout`: Input should be greater than 0"),
            ("python", {"code": "1", "tiemout": 1}, "`tiemout`: Extra inputs"),
            ("reset", {"now": True}, "`now`: Extra inputs"),
            ("put_file", {"path": "x", "content": "é", "encoding": "base64"}, "is not valid base64"),
            ("put_file", {"path": "../x", "content": ""}, "a path must be relative"),
            ("put_file", {"path": "/etc/x", "content": ""}, "a path must be relative"),
            ("put_file", {"path": "", "content": ""}, "a path must be relative"),
            ("put_file", {"path": "x\0", "content": ""}, "a path must be relative"),
            ("get_file", {"path": "absent"}, "there is no such file"),
            ("get_file", {"path": "/etc/passwd"}, "a path must be relative"),
        ):
            result = await call(client, tool, **arguments)
            assert result.is_error, tool
            assert words in text(result)
        await printed(client, "import os; os.symlink('/etc/passwd', 'link')")
        assert "no regular file" in text(await call(client, "get_file", path="link"))
        assert (await call(client, "list_files")).structured_content == {"files": [], "more": False}
        with pytest.raises(MCPError, match="the tool is unknown"):
            await call(client, "rm")


async def test_output_is_cut_in_the_middle_and_stopped_where_it_has_no_end(server: Server) -> None:
    async with connected(server, "--output-limit", "1000", "--output", "200000") as client:
        cut = await printed(client, "print('a' * 5000 + 'b' * 5000)")
        assert cut.startswith("a" * 500 + "\n[... 9,001 characters left out ...]\n")
        assert cut.endswith("b" * 499 + "\n")
        endless = await python(client, "x = 1\nwhile True: print('y' * 1000)")
        assert endless.is_error
        assert "it wrote too much output. The variables are kept." in text(endless)
        assert len(text(endless)) < 5000
        assert await printed(client, "x") == "1"


async def test_control_characters_pass_or_act_as_in_a_terminal(server: Server) -> None:
    strange = "\0\x07\n\u2028\x85é\U0001f600"
    async with connected(server) as client:
        bar = "import sys; _ = sys.stdout.write(''.join(f'\\r\\x1b[32m{n}%' for n in range(101)) + '\\r\\n')"
        assert await printed(client, bar) == "100%\n"
        assert await printed(client, f"import sys; _ = sys.stdout.write({strange!r})") == strange
        assert await printed(client, "import os; _ = os.write(1, b'\\xff\\n')") == "\ufffd\n"
        assert await printed(client, "print('\\ud800')") == "\\ud800\n"


async def test_calls_are_one_after_another_and_a_cancelled_one_makes_room(server: Server) -> None:
    seconds = f"{80_000 + os.getpid() % 10_000}.5"
    async with connected(server) as client:
        await printed(client, "import subprocess; done = []")
        hanging = asyncio.create_task(
            python(client, f"subprocess.run(['sleep', '{seconds}'])\ndone.append('too much')")
        )
        await eventually(lambda: processes_running("sleep", seconds), 20)
        others = [asyncio.create_task(printed(client, f"done.append({number})")) for number in range(5)]
        await asyncio.sleep(0)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        await asyncio.gather(*others)
        assert await printed(client, "print(sorted(done))") == "[0, 1, 2, 3, 4]\n"
        assert not processes_running("sleep", seconds)


_HOSTILE = """
import os, subprocess, sys
mark = b'{"jsonrpc": "2.0", "id": 2, "result": {"forged": true}}\\n'
os.write(1, mark); os.write(2, mark)
subprocess.run(['sh', '-c', 'echo \\'{"forged": 1}\\'; echo \\'{"forged": 1}\\' >&2'])
above, pid = [], os.getpid()
for _ in range(2):
    with open(f'/proc/{pid}/status') as status:
        pid = int(next(line for line in status if line.startswith('PPid')).split()[1])
    if pid == 0: break
    above.append(pid)
tried = 0
for pid in ['self', *above]:
    for fd in range(64):
        try:
            target = os.open(f'/proc/{pid}/fd/{fd}', os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            tried += 1
            continue
        os.set_blocking(target, False)
        if pid == 'self' and fd not in (1, 2): continue
        os.write(target, mark)
print('tried', tried > 0)
"""


async def test_stdout_carries_the_protocol_alone(server: Server) -> None:
    """Whatever code writes wherever it can, to the descriptors of the processes above it too."""
    async with started(*server.command) as process:
        client = StdioClient(process)
        await client.initialize()
        result = await client.python(_HOSTILE)
        assert "forged" in result["content"][0]["text"], "what is written to fd 1 is the code's output"
        assert (await client.python("import sys; sys.__stdout__.write('x'); print(1)"))["content"][0]["text"]
        assert await client.close() == b""
        async with asyncio.timeout(30):
            assert await process.wait() == 0


async def test_its_tools_are_described_for_models(server: Server) -> None:
    async with connected(server, "--timeout", "77") as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert list(tools) == ["python", "reset", "put_file", "get_file", "list_files"]
    description = tools["python"].description or ""
    for words in ("variables", "no network", "77 s", "The working directory is /"):
        assert words in description
    for name, tool in tools.items():
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is (name in ("get_file", "list_files"))
        assert tool.annotations.open_world_hint is False
    assert tools["list_files"].output_schema is not None
    assert tools["python"].output_schema is None, "clients that see structured content show no images"


@pytest.mark.parametrize("server", LOCAL, indirect=True, ids=lambda server: server.name)
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (None, 0)], ids=["int", "term", "eof"]
)
async def test_it_ends_when_it_is_asked_and_leaves_nothing(
    server: Server, number: signal.Signals | None, status: int
) -> None:
    """Also while code runs that does not want to end."""
    async with started(*server.command) as process:
        client = StdioClient(process)
        await client.initialize()
        code = "import signal, time; signal.signal(2, signal.SIG_IGN)\nprint('x')\nwhile True: time.sleep(1)"
        client.send(
            {"id": 9, "method": "tools/call", "params": {"name": "python", "arguments": {"code": code}}}
        )
        below = descendants(process.pid)
        assert below
        if number is None:
            await client.close()
        else:
            process.send_signal(number)
        async with asyncio.timeout(30):
            assert await process.wait() == status
        assert process.stderr is not None
        assert b"Traceback" not in await process.stderr.read()
        await eventually(lambda: not alive(below), 20)


@pytest.mark.parametrize("server", LOCAL, indirect=True, ids=lambda server: server.name)
async def test_a_client_that_is_killed_leaves_nothing(server: Server) -> None:
    client = """
import asyncio, json, sys
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
async def main():
    command, *arguments = sys.argv[1:]
    parameters = StdioServerParameters(command=command, args=arguments)
    async with Client(stdio_client(parameters), mode="legacy") as client:
        code = "import subprocess; p = subprocess.Popen(['sleep', '1234'])"
        await client.call_tool("python", {"code": code})
        print("ready", flush=True)
        await client.call_tool("python", {"code": "while True: pass"})
asyncio.run(main())
"""
    async with started(sys.executable, "-c", client, *server.command) as process:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"ready\n"
        below = descendants(process.pid)
        assert len(below) >= 3
        process.kill()
        await eventually(lambda: not alive(below), 30)


async def _refused(*command: str) -> tuple[int, str]:
    async with started(*command) as process:
        return await _end(process)


async def _end(process: Process) -> tuple[int, str]:
    async with asyncio.timeout(60):
        output, complaints = await process.communicate()
    assert output == b""
    assert process.returncode is not None
    assert b"Traceback" not in complaints
    return process.returncode, complaints.decode()


async def test_the_images_server_refuses_to_run_where_nothing_is_around_it() -> None:
    status, complaints = await _refused(sys.executable, "-I", "-m", "supdist.sandbox_image.mcp")
    assert status == 2
    assert "runs only in the image's container" in complaints
    assert "supdist-engine mcp" in complaints


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--memory", "1KiB"], "--memory: "),
        (["--output", "x"], "--output: "),
        (["--backend", "chroot"], "--backend"),
        (["--packages", "/nowhere"], "/nowhere"),
        (["--timeout", "0"], "--timeout"),
        (["--http", "0.0.0.0:8000"], "127.0.0.1 only"),
        (["--http", "0.0.0.0"], "127.0.0.1 only"),
        (["--http", "http"], "is no port"),
        (["--http", "70000"], "is no port"),
        (["--token-file", "x"], "is for --http"),
        (["--http", "--token-file", "/nowhere"], "--token-file: "),
        (["--http", "--token-file", "short"], "16 characters or more"),
    ],
)
async def test_wrong_options_are_exit_2_and_say_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    (tmp_path / "short").write_text("secret\n")
    monkeypatch.chdir(tmp_path)
    status, complaints = await _refused(*COMMAND, "mcp", *options)
    assert status == 2
    assert words in complaints


async def test_where_no_sandbox_can_be_had_it_says_so_and_is_exit_4() -> None:
    """In a user namespace that may have none below it."""
    script = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    status, complaints = await _refused("unshare", "-Ur", "sh", "-c", script, "sh", *COMMAND, "mcp")
    assert status == 4
    assert complaints


async def test_the_configurations_of_the_readme_work() -> None:
    """With this Python's engine in place of an installed one."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in re.findall(r"`(\{\"(?:mcpServers|servers)\".*\})`", readme)]
    lines.append(
        {"servers": {"agents": json.loads(re.findall(r"MCPServerStdio\(params=(\{.*?\})\)", readme)[0])}}
    )
    assert len(lines) == 3
    for line in lines:
        ((_, entry),) = next(iter(line.values())).items()
        assert entry["command"] == "supdist-engine"
        server = Server("readme", (*COMMAND, *entry["args"]), keeps_files=False)
        async with connected(server) as client:
            assert await printed(client, "6 * 7") == "42"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (
            (
                b'{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"python","arguments":'
                b'{"code":"print(\'\\ud83d\')","timeout":"5"}}}'
            ),
            b'"id":3,"result"',
        ),
        (b"no JSON", b"-32700"),
        (b'{"id": 4}', b'"id":4,"error"'),
    ],
    ids=["half an emoji, a number as text", "no JSON", "no message"],
)
async def test_every_line_of_a_client_gets_an_answer(line: bytes, answer: bytes) -> None:
    import asyncio
    import json
    import sys

    begin = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"},
        },
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "supdist.engine", "mcp", stdin=-1, stdout=-1
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(60):
        process.stdin.write(json.dumps(begin).encode() + b"\n")
        await process.stdout.readline()
        process.stdin.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n' + line + b"\n")
        got = await process.stdout.readline()
        process.stdin.close()
        await process.wait()
    assert answer in got
