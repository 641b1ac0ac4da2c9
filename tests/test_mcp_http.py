"""`supdist-engine mcp --http`: who comes in, who does not, and what is left of whom."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_support import call, printed, python, text
from process_support import COMMAND, alive, descendants, processes_running, started
from support import eventually

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

TOKEN = "a-token-for-tests-only"


@dataclass(frozen=True)
class Service:
    """A server of HTTP, and where it is."""

    process: Process
    url: str

    @property
    def guests(self) -> set[int]:
        """The processes of sandboxes that have users: two each are named so."""
        found: set[int] = set()
        for pid in descendants(self.process.pid):
            try:
                process = psutil.Process(pid)
                if process.name() == "python" and process.parent() is not None:
                    found.add(pid)
            except psutil.NoSuchProcess:
                continue
        return found


@asynccontextmanager
async def serving(folder: Path, *options: str) -> AsyncGenerator[Service]:
    (folder / "token").write_text(TOKEN + "\n")
    command = (*COMMAND, "mcp", "--http", "--token-file", str(folder / "token"), *options)
    async with started(*command) as process:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            url = (await process.stdout.readline()).decode().strip()
        assert url, (await process.communicate())[1]
        yield Service(process, url)


@asynccontextmanager
async def client_of(service: Service, token: str = TOKEN, mode: str = "legacy") -> AsyncGenerator[Client]:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        asyncio.timeout(120),
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(service.url, http_client=http), mode=mode) as client,
    ):
        yield client


def opening(**changes: str) -> dict[str, Any]:
    """The arguments of a request that opens a session, or would if its headers were right."""
    params = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "0"},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    headers = {
        "Authorization": f"Bearer {TOKEN}",
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
        **changes,
    }
    return {"content": json.dumps(body), "headers": headers}


async def opened(service: Service, http: httpx2.AsyncClient) -> dict[str, str]:
    """The headers of requests to a new session."""
    answer = await http.post(service.url, **opening())
    headers = {**opening()["headers"], "Mcp-Session-Id": answer.headers["mcp-session-id"]}
    await http.post(
        service.url, headers=headers, json={"jsonrpc": "2.0", "method": "notifications/initialized"}
    )
    return headers


def calling(number: int, code: str) -> dict[str, Any]:
    params = {"name": "python", "arguments": {"code": code}}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_every_session_has_a_sandbox_of_its_own(tmp_path: Path, mode: str) -> None:
    """A client of the newest revision, which has no sessions, falls back to one with them."""
    async with serving(tmp_path) as service, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(service, mode=mode)) for _ in range(3)]
        await asyncio.gather(
            *(printed(client, f"x = {number}") for number, client in enumerate(clients)),
            *(
                call(client, "put_file", path="f", content=str(number))
                for number, client in enumerate(clients)
            ),
        )
        seen = await asyncio.gather(*(printed(client, "print(x, open('f').read())") for client in clients))
        assert seen == ["0 0\n", "1 1\n", "2 2\n"]
        killed = await python(clients[0], "import os; os.kill(os.getpid(), 9)")
        assert "Every variable and file is lost" in text(killed)
        assert await printed(clients[1], "x") == "1"


async def test_sessions_run_beside_each_other_and_a_cancelled_call_is_interrupted(tmp_path: Path) -> None:
    seconds = f"{70_000 + os.getpid() % 10_000}.5"
    async with (
        serving(tmp_path) as service,
        client_of(service) as other,
        httpx2.AsyncClient(timeout=60) as http,
    ):
        headers = await opened(service, http)
        code = f"import subprocess; n = 1; subprocess.run(['sleep', '{seconds}'])"
        endless = asyncio.create_task(http.post(service.url, headers=headers, json=calling(2, code)))
        await eventually(lambda: processes_running("sleep", seconds), 30)
        assert await printed(other, "1 + 1") == "2"
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}}
        await http.post(service.url, headers=headers, json=cancel)
        assert (await endless).json()["error"]["code"] == -32800
        assert not processes_running("sleep", seconds)
        after = (await http.post(service.url, headers=headers, json=calling(3, "n"))).json()
        assert after["result"]["content"][0]["text"] == "1"


async def test_a_large_file_comes_and_goes(tmp_path: Path) -> None:
    data = "zażółć\n" * 1_000_000
    async with serving(tmp_path) as service, client_of(service) as client:
        await call(client, "put_file", path="f", content=data)
        assert text(await call(client, "get_file", path="f")) == data


async def test_who_has_not_the_token_or_comes_from_elsewhere_gets_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as service, httpx2.AsyncClient(timeout=60) as http:
        port = urlsplit(service.url).port
        before = service.guests
        for status, changes in (
            (401, {"Authorization": ""}),
            (401, {"Authorization": "Bearer"}),
            (401, {"Authorization": f"Bearer {TOKEN}x"}),
            (401, {"Authorization": f"Basic {TOKEN}"}),
            (401, {"Authorization": "Bearer t\u00f6ken"}),
            (403, {"Origin": "https://evil.example"}),
            (403, {"Origin": f"http://evil.example:{port}"}),
            (403, {"Origin": "null"}),
            (403, {"Origin": f"http://localhost:{port}.evil.example"}),
            (421, {"Host": "evil.example"}),
            (421, {"Host": f"evil.example:{port}"}),
            (421, {"Host": f"127.0.0.1:{port}.evil.example"}),
            (400, {"Mcp-Protocol-Version": "2026-07-28"}),
            (404, {"Mcp-Session-Id": "0" * 32}),
            (406, {"Accept": "text/html"}),
        ):
            request = opening(**changes)
            request["headers"] = [
                (name, value.encode("latin-1")) for name, value in request["headers"].items()
            ]
            answer = await http.post(service.url, **request)
            assert answer.status_code == status, changes
            assert TOKEN not in answer.text
        assert (await http.get(service.url)).status_code == 401
        assert (await http.get(service.url, headers={"Authorization": f"Bearer {TOKEN}"})).status_code == 400
        elsewhere = service.url.replace("/mcp", "/")
        assert (await http.post(elsewhere, **opening())).status_code == 404
        assert (await http.post(elsewhere)).status_code == 401
        request = opening()
        request["content"] = b" " * (40 << 20)
        assert (await http.post(service.url, **request)).status_code == 413
        await eventually(lambda: service.guests == before, 30)
        answer = await http.post(
            service.url, **opening(Origin=f"http://localhost:{port}", Host=f"localhost:{port}")
        )
        assert answer.status_code == 200


async def test_no_more_sessions_than_allowed_and_room_where_one_ends(tmp_path: Path) -> None:
    async with serving(tmp_path, "--sessions", "2") as service, httpx2.AsyncClient(timeout=60) as http:
        answers = await asyncio.gather(*(http.post(service.url, **opening()) for _ in range(30)))
        assert sorted(answer.status_code for answer in answers) == [200] * 2 + [503] * 28
        (first, _) = [answer for answer in answers if answer.status_code == 200]
        name = {"Mcp-Session-Id": first.headers["mcp-session-id"]}
        assert (await http.delete(service.url, headers={**opening()["headers"], **name})).status_code == 200

        async def is_admitted() -> bool:
            return (await http.post(service.url, **opening())).status_code == 200

        async with asyncio.timeout(30):
            while not await is_admitted():
                await asyncio.sleep(0.05)
        assert (await http.post(service.url, **opening(**name))).status_code == 404


HALF_REQUESTS = {
    "nothing": b"",
    "half a header": b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bea",
    "half a body, no token": b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999\r\n\r\n{",
    "garbage": b"\x00\xff\r\n\r\n",
}


async def test_half_requests_without_the_token_take_nothing_from_its_owner(tmp_path: Path) -> None:
    async with serving(tmp_path) as service, httpx2.AsyncClient(timeout=60) as http:
        port = urlsplit(service.url).port
        for data in HALF_REQUESTS.values():
            with ExitStack() as held:
                for _ in range(200):
                    caller = held.enter_context(socket.create_connection(("127.0.0.1", port)))
                    caller.sendall(data)
                async with asyncio.timeout(1):
                    assert (await http.post(service.url, **opening())).status_code == 200
        service.process.terminate()
        assert service.process.stderr is not None
        assert await service.process.stderr.read() == b"", "strangers write nothing there"


async def test_a_client_that_is_gone_without_a_word_leaves_nothing_once_it_is_overdue(tmp_path: Path) -> None:
    code = """
import asyncio, sys
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
async def main():
    async with httpx2.AsyncClient(headers={"Authorization": "Bearer " + sys.argv[2]}) as http:
        async with Client(streamable_http_client(sys.argv[1], http_client=http), mode="legacy") as client:
            code = "import subprocess; p = subprocess.Popen(['sleep', '1234'])"
            await client.call_tool("python", {"code": code})
            print("ready", flush=True)
            await client.call_tool("python", {"code": "while True: pass"})
asyncio.run(main())
"""
    async with serving(tmp_path, "--idle", "1", "--timeout", "3") as service:
        idle = service.guests
        async with started(sys.executable, "-c", code, service.url, TOKEN) as client:
            assert client.stdout is not None
            async with asyncio.timeout(60):
                assert await client.stdout.readline() == b"ready\n"
            assert service.guests - idle
            client.kill()
            await eventually(lambda: not service.guests - idle, 30)
        async with client_of(service) as another:
            assert await printed(another, "1") == "1"


async def test_it_is_on_this_machine_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        port = urlsplit(service.url).port
        assert urlsplit(service.url).hostname == "127.0.0.1"
        for address in ("127.0.0.2", socket.gethostbyname(socket.gethostname())):
            if address != "127.0.0.1":
                with pytest.raises(OSError, match="refused"):
                    socket.create_connection((address, port), timeout=5)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
async def test_it_ends_in_good_order_with_clients_connected(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    async with serving(tmp_path) as service, httpx2.AsyncClient(timeout=60) as http:
        headers = await opened(service, http)
        hanging = calling(2, "while True: pass")
        request = asyncio.create_task(http.post(service.url, headers=headers, json=hanging))
        await eventually(lambda: service.guests, 30)
        below = descendants(service.process.pid)
        service.process.send_signal(number)
        async with asyncio.timeout(30):
            assert await service.process.wait() == status
        assert (
            await request
        ).is_error  # answered, not left hanging; which status it is depends on the SDK's release
        assert service.process.stderr is not None
        assert await service.process.stderr.read() == b""
        await eventually(lambda: not alive(below), 20)


async def test_a_token_is_made_where_none_is_given_and_only_told_on_stderr() -> None:
    async with started(*COMMAND, "mcp", "--http") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        async with asyncio.timeout(60):
            told = (await process.stderr.readline()).decode()
            url = (await process.stdout.readline()).decode().strip()
        assert told.startswith("bearer token: ")
        token = told.removeprefix("bearer token: ").strip()
        assert len(token) >= 32
        async with client_of(Service(process, url), token) as client:
            assert await printed(client, "1") == "1"
