"""The commands started where somebody else has prepared files: what they do, read, write and send.

Each surrounding has a server that records what it is sent, keys in the environment, and a folder of the
user's that no file there may read or write. A surrounding is an example of its kind; ``test_trust.py`` has
the rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from process_support import clean_environment

from supdist.tools.testing.fake_openai import FakeOpenAI, Request, Text

KEY, OTHER = "sk-canary-openai", "canary-of-aws"
SECRET = "canary-of-a-file"
READ_PACKAGE = (
    "```repl\nimport os\n"
    "FINAL(str([open(os.path.join(d, f)).read() for d, _, n in os.walk('/opt/packages') for f in n]))\n```"
)

MODEL = {"handler": "openai", "model": "m", "base_url": "URL", "api_key_env": "AWS_SECRET_ACCESS_KEY"}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")


@dataclass
class Place:
    """A folder to start a command in, the user's own folder beside it, and a server."""

    folder: Path
    home: Path
    server: FakeOpenAI
    environ: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def url(self) -> str:
        return self.server.base_url

    def write(self, name: str, content: object, mode: int = 0o644) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        path.chmod(mode)
        return path

    def task(self, **changes: Any) -> str:
        scripted = {"handler": "scripted", "replies": ["```repl\nFINAL(str(context))\n```"] * 3}
        whole = {"query": "q", "context": "c", "supervisor": scripted, "worker": {"handler": "builtin"}}
        self.write(
            "task.json", {name: value for name, value in (whole | changes).items() if value is not None}
        )
        return "task.json"

    def model(self, **changes: Any) -> dict[str, Any]:
        return {"handler": "openai", "model": "m", "base_url": self.url, "max_retries": 0, **changes}

    def filled(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Changes of a task or an experiment, with paths and URLs of this place."""
        return json.loads(json.dumps(changes).replace("HOME", str(self.home)).replace("URL", self.url))

    def endpoint(self) -> str:
        """What a .env says to have everything sent to the server."""
        return f"BASE_URL={self.url}\nSUPERVISOR_MODEL=m\nWORKER_MODEL=m\n"

    async def start(self, *command: str, program: str = "supdist.engine") -> subprocess.CompletedProcess[str]:
        run = [sys.executable, "-m", program, *command]
        return await asyncio.to_thread(
            subprocess.run,
            run,
            cwd=self.folder,
            env=clean_environment(**self.environ),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )


def _answer(request: Request) -> Text:
    del request
    return Text("```repl\nFINAL('from the server')\n```")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[Place]:
    folder, home = tmp_path / "prepared", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    for name in ("secret.txt", "config.json", "system.txt", "replies.json", ".bashrc"):
        (home / name).write_text(json.dumps([SECRET]))
    before = sorted((path, path.read_bytes()) for path in home.rglob("*"))
    async with FakeOpenAI(_answer) as server:
        environ = {
            "OPENAI_API_KEY": KEY,
            "AWS_SECRET_ACCESS_KEY": OTHER,
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
        }
        yield Place(folder, home, server, environ)
        sent = " ".join(f"{request.headers} {request.body} {request.path}" for request in server.requests)
    assert KEY not in sent
    assert OTHER not in sent
    assert SECRET not in sent
    after = sorted((path, path.read_bytes()) for path in home.rglob("*"))
    assert after == before, "something was written"


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> None:
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in said
    assert SECRET not in said
    for word in words:
        assert word in done.stderr


# .env files


async def test_a_dot_env_above_is_not_read(place: Place) -> None:
    (place.folder.parent / ".env").write_text(place.endpoint())
    place.write("task.json", {"query": "q", "context": "The answer is 42."})
    del place.environ["OPENAI_API_KEY"]
    done = await place.start("run", "task.json")
    assert (done.returncode, place.server.requests) == (0, [])
    assert "is not a language model" in done.stderr
    assert f"--env-file {place.folder.parent / '.env'}" in done.stderr


@as_root
async def test_a_dot_env_of_another_user_is_refused(place: Place) -> None:
    os.chown(place.write(".env", place.endpoint()), 1234, 1234)
    place.task()
    refused(await place.start("run", "task.json"), ".env", "another user (uid 1234)", "--env-file .env")
    assert place.server.requests == []
    assert (await place.start("run", "task.json", "--env-file", "/dev/null")).returncode == 0


@as_root
async def test_a_dot_env_through_a_link_of_another_user_is_refused(place: Place) -> None:
    own = place.home.parent / "own.env"
    own.write_text(place.endpoint())
    (place.folder / ".env").symlink_to(own)
    os.lchown(place.folder / ".env", 1234, 1234)
    place.task()
    refused(await place.start("run", "task.json"), "another user (uid 1234)")


async def test_a_dot_env_that_others_can_write_is_refused(place: Place) -> None:
    place.write(".env", place.endpoint(), mode=0o666)
    place.task()
    refused(await place.start("run", "task.json"), "can be written by other users", "chmod go-w .env")
    assert place.server.requests == []


async def test_a_dot_env_does_not_redirect_a_key_of_the_process(place: Place) -> None:
    place.write(".env", place.endpoint())
    place.write("task.json", {"query": "q", "context": "c"})
    done = await place.start("run", "task.json")
    assert (done.returncode, done.stdout) == (0, "from the server\n"), done.stderr
    assert place.server.requests[0].headers["authorization"] == "Bearer none"


async def test_a_key_of_the_dot_env_goes_where_the_dot_env_says(place: Place) -> None:
    del place.environ["OPENAI_API_KEY"]
    place.write(".env", place.endpoint() + "OPENAI_API_KEY=its-own\n")
    place.write("task.json", {"query": "q", "context": "c"})
    assert (await place.start("run", "task.json")).returncode == 0
    assert place.server.requests[0].headers["authorization"] == "Bearer its-own"


async def test_a_task_does_not_get_a_key_of_the_dot_env(place: Place) -> None:
    """The .env is the user's, the task is not."""
    del place.environ["OPENAI_API_KEY"]
    place.write(".env", f"OPENAI_API_KEY={KEY}\n")
    place.task(supervisor=place.model())
    assert (await place.start("run", "task.json")).returncode == 0
    assert place.server.requests[0].headers["authorization"] == "Bearer none"


async def test_a_dot_env_takes_no_value_of_the_process_into_a_url(place: Place) -> None:
    place.write(".env", f"BASE_URL={place.url}/${{OPENAI_API_KEY}}\nSUPERVISOR_MODEL=m\nWORKER_MODEL=m\n")
    place.write("task.json", {"query": "q", "context": "c"})
    refused(await place.start("run", "task.json"), "${OPENAI_API_KEY}", "line 1")


async def test_a_dot_env_sets_no_proxy_and_no_certificates(place: Place) -> None:
    place.write(".env", f"HTTP_PROXY={place.url}\nHTTPS_PROXY={place.url}\nSSL_CERT_FILE=evil.pem\n")
    place.task(supervisor=place.model(base_url="http://127.0.0.1:9/v1"))
    done = await place.start("run", "task.json")
    refused(
        done,
        "only keys, models and addresses of local servers are read from it, "
        "not HTTP_PROXY, HTTPS_PROXY, SSL_CERT_FILE",
        code=5,
    )
    assert place.server.requests == []


# Task files: keys


async def test_a_task_that_names_an_endpoint_gets_no_key(place: Place) -> None:
    place.task(supervisor=place.model())
    assert (await place.start("run", "task.json")).returncode == 0
    assert place.server.requests[0].headers["authorization"] == "Bearer none"


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"])
async def test_a_task_that_names_a_key_for_its_endpoint_is_refused(place: Place, variable: str) -> None:
    place.task(supervisor=place.model(api_key_env=variable))
    host = place.url.removesuffix("/v1")
    done = await place.start("run", "task.json")
    refused(done, variable, f"supdist-engine trust host {host} --key {variable}", "--trust-endpoint")
    assert place.server.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://api.openai.com/v1",
        "https://api.openai.com.evil.example/v1",
        "https://api.openai.com:8443/v1",
        "https://api.openai.com@evil.example/v1",
        "https://evil.example\\@api.openai.com/v1",
        "https://evil.example#@api.openai.com/v1",
        "https://evil.example/\thttps://api.openai.com/v1",
        "https://аpi.openai.com/v1",  # noqa: RUF001 - it is not an a
    ],
)
async def test_a_host_that_looks_like_a_known_one_is_another(place: Place, url: str) -> None:
    """Refused before a packet is sent."""
    place.task(supervisor=place.model(base_url=[url], api_key_env="OPENAI_API_KEY"))
    done = await place.start("run", "task.json")
    refused(done)
    assert "trust host" in done.stderr or "is no URL of an endpoint" in done.stderr


# Task files: paths


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ("context_file", {"context": None, "context_file": "HOME/config.json"}),
        ("context_file", {"context": None, "context_file": "../home/secret.txt"}),
        ("context_file", {"context": None, "context_file": "link.txt"}),
        ("context_file", {"context": None, "context_file": ".hidden/notes.txt"}),
        ("sandbox.packages", {"sandbox": {"packages": "HOME"}}),
        ("sandbox.packages", {"sandbox": {"packages": "linked"}}),
        ("sandbox.packages", {"sandbox": {"packages": "/"}}),
        ("sandbox.packages", {"sandbox": {"packages": "."}}),
        ("prompts_dir", {"prompts_dir": "HOME"}),
        ("prompts_dir", {"prompts_dir": "prompts"}),
        ("supervisor.replies_file",
            {"supervisor": {"handler": "scripted", "replies_file": "../home/replies.json"}}),
        ("supervisor.curve_keys",
            {"supervisor": {"handler": "broker", "address": "tcp://127.0.0.1:9", "curve_keys": "HOME"}}),
        ("log_dir", {"log_dir": "HOME/deep/new"}),
        ("log_dir", {"log_dir": "linked/logs"}),
        ("cache", {"cache": "HOME/cache.sqlite"}),
        ("cache", {"cache": "linked/cache.sqlite"}),
    ],
)  # fmt: skip
async def test_a_task_reads_and_writes_in_its_folder_alone(
    place: Place, setting: str, changes: dict[str, Any]
) -> None:
    place.write(".hidden/notes.txt", SECRET)
    (place.folder / "link.txt").symlink_to(place.home / "secret.txt")
    (place.folder / "linked").symlink_to(place.home)
    (place.folder / "prompts").mkdir()
    (place.folder / "prompts/system.txt").symlink_to(place.home / "system.txt")
    replies = {"handler": "scripted", "replies": [READ_PACKAGE] * 3}
    place.task(**({"supervisor": replies} | place.filled(changes)))
    what = "write" if setting in ("log_dir", "cache") else "read"
    refused(await place.start("run", "task.json"), f"{setting} would {what}", f"--allow-{what}")


async def test_a_fifo_in_the_folder_is_waited_for_by_nobody(place: Place) -> None:
    for name in ("context.txt", "prompts/system.txt", "cache.sqlite-journal"):
        (place.folder / name).parent.mkdir(exist_ok=True)
        os.mkfifo(place.folder / name)
    place.task(context=None, context_file="context.txt")
    refused(await place.start("run", "task.json"), "it is no regular file")
    place.task(prompts_dir="prompts")
    refused(await place.start("run", "task.json"), "is no regular file")
    place.task(cache="cache.sqlite")
    refused(await place.start("run", "task.json"), "it is no regular file", code=6)
    place.write("q.jsonl", {"query": "q", "context_file": "context.txt", "answer": "a"})
    command = ["eval", "--task", "jsonl", "--strategy", "builtin", "--out", "out"]
    for data in ("q.jsonl", "context.txt"):
        refused(await place.start(*command, "-T", f"path={data}"), "it is not a regular file")


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
async def test_a_hard_link_beside_a_cache_is_not_written_to(place: Place, suffix: str) -> None:
    (place.folder / f"cache.sqlite{suffix}").hardlink_to(place.home / ".bashrc")
    place.task(cache="cache.sqlite")
    refused(await place.start("run", "task.json"), "it has another hard link", code=6)


async def test_a_file_that_is_no_cache_is_left_as_it_is(place: Place) -> None:
    script = place.write("tool.sh", "#!/bin/sh\n" * 100, mode=0o755)
    place.task(cache="tool.sh")
    refused(await place.start("run", "task.json"), "no SQLite database", code=6)
    assert script.stat().st_mode & 0o777 == 0o755


async def test_a_refusal_shows_no_line_of_the_files_own_and_no_command_of_its_own(place: Place) -> None:
    for name in ("x$(touch ran)\n\nsupdist-engine: all is well", "x$(touch ran)"):
        (place.folder.parent / name).mkdir()
        (place.folder.parent / name / "a.txt").write_text("a")
    place.task(context=None, context_file="../x$(touch ran)\n\nsupdist-engine: all is well/a.txt")
    done = await place.start("run", "task.json")
    refused(done, "\\n\\nsupdist-engine: all is well")
    assert len(done.stderr.splitlines()) == 1
    place.task(context=None, context_file="../x$(touch ran)/a.txt")
    refused(
        await place.start("run", "task.json"), f"--allow-read '{place.folder.parent}/x$(touch ran)/a.txt'"
    )
    place.task(supervisor=place.model(api_key_env="X; touch ran"))
    refused(await place.start("run", "task.json"), "api_key_env: must be the name of an environment variable")


# Task files: code


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ("tools", {"tools": {"t": "evil:run"}}),
        ("tools", {"tools": {"t": "os:system"}}),
        ("worker.model", {"worker": {"handler": "vllm", "model": "s3://bucket/model"}}),
        ("worker.engine_args",
            {"worker": {"handler": "vllm", "model": "m", "engine_args": {"trust_remote_code": True}}}),
        ("sandbox.isolation", {"sandbox": {"isolation": "best_effort"}}),
    ],
)  # fmt: skip
async def test_a_task_runs_nothing_on_the_host(place: Place, setting: str, changes: dict[str, Any]) -> None:
    place.write("evil.py", "open('ran', 'w')\ndef run(): pass\n")
    place.task(**changes)
    done = await place.start("run", "task.json")
    refused(done, f"task.json: {setting}", f"supdist-engine trust {place.folder}")
    assert not (place.folder / "ran").exists()


async def test_a_trusted_folder_runs_what_was_trusted_and_asks_again_when_it_has_changed(
    place: Place,
) -> None:
    place.write("mine.py", "def tool(): return 1\n")
    place.task(
        tools={"t": "mine:tool"}, supervisor={"handler": "scripted", "replies": ["```repl\nFINAL(t())\n```"]}
    )
    assert (await place.start("trust", ".")).returncode == 0
    done = await place.start("run", "task.json")
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    (place.folder / "evil").mkdir()
    for name, text in (("mine.py", "def tool(): return 2\n"), ("evil/__init__.py", ""), ("mine.so", "")):
        before = (place.folder / name).read_text() if (place.folder / name).exists() else None
        place.write(name, text)
        refused(await place.start("run", "task.json"), "has changed since it was trusted", name)
        (place.folder / name).unlink() if before is None else place.write(name, before)
    assert (await place.start("run", "task.json")).returncode == 0
    place.task(tools={"t": "mine:tool", "u": "os:system"})
    refused(await place.start("run", "task.json"), "has changed since it was trusted: task.json")


async def test_a_link_to_a_task_of_a_trusted_folder_runs_no_code_of_another(place: Place) -> None:
    mine = place.folder.parent / "mine"
    mine.mkdir()
    place.task(tools={"t": "mytools:fn"})
    (place.folder / "task.json").rename(mine / "task.json")
    (mine / "mytools.py").write_text("def fn(): pass\n")
    place.write("mytools.py", "open('ran', 'w')\ndef fn(): pass\n")
    (place.folder / "task.json").symlink_to("../mine/task.json")
    assert (await place.start("trust", str(mine))).returncode == 0
    refused(await place.start("run", "task.json"), f"supdist-engine trust {place.folder}")
    assert not (place.folder / "ran").exists()


@pytest.mark.parametrize("name", ["pkg.:fn", "__pycache__.evil:fn", "pkg..evil:fn"])
async def test_a_module_that_no_record_holds_is_not_imported(place: Place, name: str) -> None:
    for path in ("pkg/.py", "__pycache__/evil.py"):
        place.write(path, "open('ran', 'w')\ndef fn(): pass\n")
    place.task(tools={"t": name})
    assert (await place.start("trust", ".")).returncode == 0
    refused(await place.start("run", "task.json"), "tools.t: ")
    assert not (place.folder / "ran").exists()


async def test_a_cached_module_in_place_of_a_trusted_source_does_not_run(place: Place) -> None:
    import importlib.util
    import py_compile

    source = place.write("mine.py", "def tool(): return 'evil'\n")
    cached = Path(importlib.util.cache_from_source(str(source)))
    cached.parent.mkdir()
    place.write("mine.py", "def tool(): return 'good'\n")
    evil = place.write("other.py", "def tool(): return 'evil'\n")
    times = source.stat()
    os.utime(evil, ns=(times.st_atime_ns, times.st_mtime_ns))
    py_compile.compile(str(evil), cfile=str(cached), dfile=str(source))
    evil.unlink()
    place.task(
        tools={"t": "mine:tool"}, supervisor={"handler": "scripted", "replies": ["```repl\nFINAL(t())\n```"]}
    )
    assert (await place.start("trust", ".")).returncode == 0
    done = await place.start("run", "task.json")
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr


@as_root
async def test_a_folder_of_another_user_cannot_be_trusted(place: Place) -> None:
    os.chown(place.write("evil.py", ""), 1234, 1234)
    refused(await place.start("trust", "."), "evil.py belongs to another user (uid 1234)")


# Log folders, caches


@pytest.mark.parametrize("name", ["supervisor.jsonl", "worker.jsonl", "repl.jsonl"])
async def test_a_link_under_the_name_of_a_log_is_not_written_through(place: Place, name: str) -> None:
    (place.folder / "logs").mkdir()
    (place.folder / "logs" / name).symlink_to(place.home / ".bashrc")
    place.task()
    refused(await place.start("run", "task.json", "--log-dir", "logs"), name, "it is a link", code=6)


async def test_a_link_under_the_name_of_a_context_is_replaced(place: Place) -> None:
    import hashlib

    place.task(context="c" * 50)
    name = f"context-{hashlib.sha256(b'c' * 50).hexdigest()[:16]}.txt"
    (place.folder / "logs").mkdir()
    (place.folder / "logs" / name).symlink_to(place.home / "secret.txt")
    assert (await place.start("run", "task.json", "--log-dir", "logs")).returncode == 0
    assert (place.folder / "logs" / name).read_text() == "c" * 50


async def test_logs_and_caches_are_their_owners_alone(place: Place) -> None:
    place.task(log_dir="logs/deep", cache="caches/answers.sqlite")
    os.umask(os.umask(0o022))
    assert (await place.start("run", "task.json")).returncode == 0
    made = [place.folder / "logs", *place.folder.glob("logs/**/*"), *place.folder.glob("caches/**/*")]
    # The folder logs, deep, three logs, the context, .run and the cache.
    assert len(made) == 8
    assert {oct(path.stat().st_mode & 0o777) for path in made} == {"0o700", "0o600"}


# Experiments


def _experiment(place: Place, **changes: Any) -> dict[str, Any]:
    builtin = {"handler": "builtin"}
    return {
        "task": "needle",
        "task_options": {"length": "2k"},
        "n": 1,
        "supervisor": builtin,
        "worker": builtin,
        **changes,
    }


async def _begun(place: Place) -> Path:
    """An experiment of the user's own, which somebody changes then."""
    done = await place.start(
        "eval", "--task", "needle", "-T", "length=2k", "-n", "1", "--strategy", "builtin", "--out", "out"
    )
    assert done.returncode == 0, done.stderr
    return place.folder / "out"


def _changed(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (folder / "results.jsonl").unlink()


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["supervisor.api_key_env", "AWS_SECRET_ACCESS_KEY"],
            {"strategy": "direct", "worker": None, "window": 4000, "supervisor": MODEL}),
        (["prompts_dir would read"], {"prompts_dir": "HOME"}),
        (["cache would write"], {"cache": "HOME/cache.sqlite"}),
        (["sandbox.packages would read"], {"sandbox": {"packages": "HOME"}}),
        (["task_options.path would read"], {"task": "jsonl", "task_options": {"path": "HOME/config.json"}}),
        (["task_options.dataset names a folder"], {"task": "qasper", "task_options": {"dataset": "HOME"}}),
        (["ray_address joins a Ray cluster"], {"executor": "ray", "ray_address": "192.0.2.1:6379"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["--resume", "--config"])
async def test_settings_of_an_experiment_from_elsewhere_are_bound(
    place: Place, how: str, words: list[str], changes: dict[str, Any]
) -> None:
    if how == "--resume":
        folder = await _begun(place)
        _changed(folder, **place.filled(changes))
        refused(await place.start("eval", "--resume", "out"), *words)
    else:
        place.write("config.json", _experiment(place, **place.filled(changes)))
        refused(await place.start("eval", "--config", "config.json", "--out", "out"), *words)
    assert place.server.requests == []


async def test_an_experiment_of_ones_own_goes_on_without_a_question(place: Place) -> None:
    """Its data lie elsewhere, as the user typed them."""
    data = place.home.parent / "data"
    data.mkdir()
    (data / "q.jsonl").write_text(json.dumps({"query": "q?", "context": "c", "answer": "c"}) + "\n")
    command = ["eval", "--task", "jsonl", "-T", f"path={data}/q.jsonl", "--strategy", "builtin", "-n", "1"]
    assert (await place.start(*command, "--out", "out")).returncode == 0
    (place.folder / "out/results.jsonl").unlink()
    done = await place.start("eval", "--resume", "out")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["results.jsonl", "config.json", ".lock", "examples", "cache.sqlite"])
async def test_links_in_a_folder_that_is_resumed_lead_nowhere(place: Place, name: str) -> None:
    folder = await _begun(place)
    victim = place.home if name == "examples" else place.home / "config.json"
    (folder / "results.jsonl").unlink()
    if name != "results.jsonl":
        (folder / name).rename(folder / f"{name}.old")
    (folder / name).symlink_to(victim)
    done = await place.start("eval", "--resume", "out")
    why = (
        "it is no regular file" if name == "cache.sqlite" else "it is a link, and links are not followed here"
    )
    refused(done, why, code=done.returncode)
    assert done.returncode in (2, 6)


async def test_a_cache_from_elsewhere_answers_nothing(place: Place) -> None:
    """The forged answer is found by its key, but has no mark of this user's."""
    import sqlite3

    place.environ["BASE_URL"] = place.url
    place.environ["OPENAI_API_KEY"] = "its-own"
    command = [
        "eval",
        "--task",
        "needle",
        "-T",
        "length=2k",
        "-n",
        "1",
        "--strategy",
        "direct",
        "--window",
        "4000",
    ]
    command += ["--supervisor-model", "m", "--judge-model", "none", "--out", "out"]
    assert (await place.start(*command)).returncode == 0
    asked = len(place.server.requests)
    with contextlib.closing(sqlite3.connect(place.folder / "out/cache.sqlite")) as connection, connection:
        connection.execute("UPDATE answers SET answer = replace(answer, 'from the server', 'forged')")
    (place.folder / "out/results.jsonl").unlink()
    assert (await place.start("eval", "--resume", "out")).returncode == 0
    assert len(place.server.requests) == asked + 1
    assert "forged" not in (place.folder / "out/results.jsonl").read_text()


async def test_a_data_set_reads_no_document_outside_its_folder(place: Place) -> None:
    (place.folder / "link.txt").symlink_to(place.home / "secret.txt")
    place.write(".docker/config.json", [SECRET])
    for name in (str(place.home / "secret.txt"), "../home/config.json", "link.txt", ".docker/config.json"):
        place.write("q.jsonl", {"query": "q", "context_file": name, "answer": "a"})
        done = await place.start(
            "eval", "--task", "jsonl", "-T", "path=q.jsonl", "--strategy", "builtin", "--out", "out"
        )
        refused(done, "outside")


async def test_a_grid_is_bound(place: Place) -> None:
    base = 'n = 1\ntask = "needle"\n'
    for out, worker, words in (
        (f'out = "{place.home}/runs"\n', 'handler = "builtin"', "out would write"),
        ("",
            (f'handler = "openai"\nmodel = "m"\nbase_url = "{place.url}"\n'
            f'api_key_env = "AWS_SECRET_ACCESS_KEY"'), "worker.api_key_env"),
    ):  # fmt: skip
        place.write("grid.toml", f'{out}supervisor = ["builtin"]\n[base]\n{base}[[worker]]\n{worker}\n')
        refused(await place.start("grid.toml", program="supdist.tools.grid"), words)
    assert place.server.requests == []


async def test_a_link_under_the_name_of_a_grids_experiment_leads_nowhere(place: Place) -> None:
    place.write(
        "grid.toml",
        'out = "runs"\nsupervisor = ["builtin"]\n[base]\nn = 1\ntask = "needle"\n'
        'task_options.length = "2k"\n',
    )
    listed = await place.start("grid.toml", "--dry-run", program="supdist.tools.grid")
    name = listed.stdout.split("/")[-1].strip()
    (place.folder / "runs").mkdir()
    (place.folder / "runs" / name).symlink_to(place.home)
    done = await place.start("grid.toml", program="supdist.tools.grid")
    # What cannot be written is 6 for a grid, too, where it stops every combination.
    refused(done, "it is a link", code=6)


async def test_an_experiment_that_was_copied_elsewhere_is_anothers(place: Place) -> None:
    """Its paths count from the working directory, where they are other files."""
    data = place.write("data/q.jsonl", {"query": "q?", "context": "c", "answer": "c"})
    command = [
        "eval",
        "--task",
        "jsonl",
        "-T",
        "path=data/q.jsonl",
        "--strategy",
        "builtin",
        "-n",
        "1",
        "--out",
        "out",
    ]
    assert (await place.start(*command)).returncode == 0
    (place.folder / "out/results.jsonl").unlink()
    elsewhere = place.folder / "elsewhere"
    elsewhere.mkdir()
    for name in ("out", "data"):
        (place.folder / name).rename(elsewhere / name)
    place.folder = elsewhere
    assert data.exists() is False
    refused(await place.start("eval", "--resume", "out"), "task_options.path would read")


async def test_a_matplotlibrc_of_the_working_directory_configures_nothing(place: Place) -> None:
    pytest.importorskip("matplotlib")
    await _begun(place)
    place.write("matplotlibrc", "text.usetex: True\nbackend: module://evil\nsavefig.dpi: 1\n")
    done = await place.start("analyze", "out", "--plots", "plots")
    assert done.returncode == 0, done.stderr
    assert len(list((place.folder / "plots").glob("*.svg"))) > 0


async def test_a_models_file_of_a_broker_is_bound(place: Place) -> None:
    place.write("models.json", {"worker": place.model(api_key_env="AWS_SECRET_ACCESS_KEY")})
    done = await place.start("broker", "models.json", "--bind", f"ipc://{place.folder}/s")
    refused(done, "worker.api_key_env", "AWS_SECRET_ACCESS_KEY")


# Exports


async def test_a_replay_takes_neither_packages_nor_larger_limits_nor_logs_from_elsewhere(
    place: Place,
) -> None:
    await _begun(place)
    exported = await place.start("export", "out", "--format", "sft", "--out", "ex")
    assert exported.returncode == 0, exported.stderr
    for log in place.folder.glob("out/examples/*/supervisor.jsonl"):
        events = [json.loads(line) for line in log.read_text().splitlines()]
        events[0]["sandbox"] |= {"packages": str(place.home), "memory": 3 << 30}
        log.write_text("".join(json.dumps(event) + "\n" for event in events))
    for path in place.folder.glob("ex/[tv]*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            next(m for m in line["messages"] if m["role"] == "assistant")["content"] = READ_PACKAGE
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = await place.start("ex", program="supdist.tools.replay")
    assert SECRET not in done.stdout + done.stderr
    assert f"the run's sandbox had packages {place.home}" in done.stderr
    assert "the run's sandbox had memory 3221225472" in done.stderr
    # Another's export: the same, and it names folders of this user's as its logs.
    path = place.folder / "ex/sources.jsonl"
    path.write_text(path.read_text().replace("../out/", "../out/./"))
    refused(await place.start("ex", program="supdist.tools.replay"), "run would read", "--allow-read")


async def test_links_in_logs_are_not_read_by_analyze_and_export(place: Place) -> None:
    folder = await _begun(place)
    (log,) = folder.glob("examples/*/supervisor.jsonl")
    log.rename(place.folder / "log")
    log.symlink_to(place.folder / "log")
    done = await place.start("export", "out", "--format", "sft", "--out", "ex")
    assert "runs left out: 1 (unreadable)" in done.stderr
    (folder / "results.jsonl").rename(place.folder / "records")
    (folder / "results.jsonl").symlink_to(place.folder / "records")
    done = await place.start("analyze", "out")
    assert "results.jsonl cannot be read" in done.stderr
    assert "it is a link" in done.stderr
