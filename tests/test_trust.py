"""The rules of trust, one by one: keys and hosts, variables of a .env, answers to questions."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as some
from pydantic import ValidationError

from supdist.engine import CacheError, TaskError
from supdist.engine.broker.cache import ResponseCache
from supdist.engine.model_specs import OpenAISpec, from_environment, specified_by
from supdist.engine.private_files import PrivateFolder, ResolvedPath, open_file, read_file
from supdist.engine.trust import Answer, Bound, Environment, Question, load_environment
from supdist.engine.trust.hosts import keys_of, origin_of, parse_host
from supdist.engine.trust.questions import always_no
from supdist.engine.trust.seals import Seal
from supdist.engine.trust.settings import HostRule, Settings, change_settings, read_settings
from supdist.handlers import Completion, OpenAIHandler
from supdist.tools.evals.records import Record

OPENAI, TOGETHER, BOX = "https://api.openai.com/v1", "https://api.together.xyz/v1", "https://gpu-box/v1"
LOCAL, PLAIN = "http://localhost:11434/v1", "http://gpu-box:8000/v1"


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def bound(
    process: Mapping[str, str] = {},
    file: Mapping[str, str] = {},
    answers: list[Answer] | None = None,
    **more: Any,
) -> Bound:
    environment = Environment(process, file, Path(".env"))

    def ask(question: Question) -> Answer:
        assert answers is not None
        return answers.pop(0)

    return Bound(Path("task.json"), environment, ask=always_no if answers is None else ask, **more)


def key(url: str, variable: str | None, permissions: Bound) -> str | None:
    found = permissions.keys([url], variable, "supervisor.base_url")
    assert isinstance(found, dict)
    return found[url]


# Which key goes where

P_OPENAI, P_TOGETHER = {"OPENAI_API_KEY": "o"}, {"TOGETHER_API_KEY": "t"}


@pytest.mark.parametrize(
    ("url", "variable", "process", "file", "sent"),
    [
        (OPENAI, None, P_OPENAI, {}, "OPENAI_API_KEY"),
        (OPENAI, "OPENAI_API_KEY", {}, P_OPENAI, "OPENAI_API_KEY"),
        (OPENAI, None, {}, {}, "OPENAI_API_KEY"),  # the handler says that it is not set
        (TOGETHER, None, P_OPENAI | P_TOGETHER, {}, "TOGETHER_API_KEY"),
        ("https://openrouter.ai/api/v1", None, P_OPENAI | {"OPENROUTER_API_KEY": "r"}, {},
            "OPENROUTER_API_KEY"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", None, {"GOOGLE_API_KEY": "g"}, {},
            "GOOGLE_API_KEY"),
        ("https://router.huggingface.co/v1", None, {"HF_TOKEN": "h"}, {}, "HF_TOKEN"),
        (LOCAL, None, P_OPENAI, {}, None),
        (LOCAL, None, {"VLLM_API_KEY": "v"}, {}, "VLLM_API_KEY"),
        (LOCAL, "VLLM_API_KEY", {"VLLM_API_KEY": "v"}, {}, "VLLM_API_KEY"),
        (BOX, None, P_OPENAI, {}, None),
        (BOX, None, P_OPENAI | {"BASE_URL": BOX}, {}, "OPENAI_API_KEY"),
        (BOX, None, P_TOGETHER | {"BASE_URL": BOX}, {}, "TOGETHER_API_KEY"),
        (PLAIN, None, P_OPENAI | {"OPENAI_BASE_URL": PLAIN}, {}, "OPENAI_API_KEY"),
        (BOX, None, {}, P_OPENAI | {"BASE_URL": BOX}, "OPENAI_API_KEY"),
        (BOX, None, {"BASE_URL": BOX}, P_OPENAI, "OPENAI_API_KEY"),
        (BOX, None, P_OPENAI, {"BASE_URL": BOX}, None),
        (BOX, None, P_TOGETHER | {"OPENAI_BASE_URL": BOX}, {}, None),
    ],
)  # fmt: skip
def test_a_key_goes_to_hosts_to_which_it_belongs(
    url: str, variable: str | None, process: dict[str, str], file: dict[str, str], sent: str | None
) -> None:
    assert key(url, variable, bound(process, file)) == sent


@pytest.mark.parametrize(
    ("url", "variable"),
    [(BOX, "OPENAI_API_KEY"), (PLAIN, "OPENAI_API_KEY"), (LOCAL, "AWS_SECRET_ACCESS_KEY"),
     (OPENAI, "TOGETHER_API_KEY"), (TOGETHER, "OPENAI_API_KEY"),
     ("http://api.openai.com/v1", "OPENAI_API_KEY"), (BOX, "AWS_SECRET_ACCESS_KEY")],
)  # fmt: skip
def test_any_other_pairing_needs_the_user(url: str, variable: str) -> None:
    process = {variable: "k", "BASE_URL": BOX if variable.startswith("AWS") else "https://another/v1"}
    with pytest.raises(TaskError) as caught:
        key(url, variable, bound(process))
    host = origin_of(url)
    assert variable in str(caught.value)
    assert f"supdist-engine trust host {host.url} --key {variable}" in str(caught.value)
    assert ("over http, where the network can read it" in str(caught.value)) == (
        url.startswith("http:") and not host.is_loopback
    )
    assert key(url, variable, bound(process, trust_endpoint=True)) == variable
    assert key(url, variable, bound(process, answers=["once"])) == variable
    rule = HostRule(host=host.url, key=variable)
    assert key(url, variable, bound(process, settings=Settings(hosts=(rule,)))) == variable


def test_a_question_is_asked_once_for_a_host_and_remembered_if_wished() -> None:
    asked: list[Answer] = ["once"]
    permissions = bound(P_OPENAI, answers=asked)
    assert [key(BOX, "OPENAI_API_KEY", permissions) for _ in range(3)] == ["OPENAI_API_KEY"] * 3
    assert (asked, read_settings()) == ([], Settings())
    assert key(BOX, "OPENAI_API_KEY", bound(P_OPENAI, answers=["always"])) == "OPENAI_API_KEY"
    assert key(BOX, "OPENAI_API_KEY", bound(P_OPENAI)) == "OPENAI_API_KEY"
    assert key(BOX, None, bound(P_OPENAI, answers=[])) == "OPENAI_API_KEY"
    assert key(PLAIN, None, bound(P_OPENAI, answers=["never"])) is None
    assert key(PLAIN, None, bound(P_OPENAI, answers=[])) is None
    with pytest.raises(TaskError):
        key(PLAIN, "OPENAI_API_KEY", bound(P_OPENAI, answers=[]))


def test_a_rule_for_https_is_none_for_http() -> None:
    for typed, covered in (("gpu-box:8000", [True, True]), ("http://gpu-box:8000", [True, False]),
        ("https://gpu-box:8000", [False, True]), ("gpu-box", [False, False])):  # fmt: skip
        rule = parse_host(typed)
        urls = ("http://gpu-box:8000/v1", "https://gpu-box:8000/v1")
        assert [rule.covers(origin_of(url)) for url in urls] == covered, typed
    assert parse_host("https://gpu-box:8000/v1") == parse_host("https://gpu-box:8000")
    assert parse_host("gpu-box").covers(origin_of("https://GPU-box/v1"))
    for wrong in ("gpu box", "ftp://x", "a/b", "", "x:99999", "https://user@x", "https://x/v1#"):
        with pytest.raises(TaskError):
            parse_host(wrong)


@example("?\x1b")
@given(some.text(max_size=60))
def test_no_text_makes_another_host_of_a_known_one(text: str) -> None:
    """What is taken for OpenAI is OpenAI for the HTTP library as well."""
    httpx = pytest.importorskip("httpx")
    for url in (f"https://{text}", f"https://api.openai.com{text}", f"https://{text}api.openai.com/v1"):
        try:
            origin = origin_of(url)
        except TaskError:
            continue
        if keys_of(origin):
            assert httpx.URL(url).host == origin.host.strip("[]")
            assert (httpx.URL(url).port or 443) == origin.port


def test_a_query_takes_a_host_out_of_the_table() -> None:
    """It would choose another path there than that of the chat API."""
    with pytest.raises(TaskError):
        key(f"{OPENAI}/files?x=", "OPENAI_API_KEY", bound(P_OPENAI))


def test_a_file_names_no_other_host_in_a_header() -> None:
    spec = OpenAISpec(handler="openai", model="m", base_url=LOCAL, extra_headers={"hOst": "evil.example"})
    with pytest.raises(TaskError, match="base_url names the host"):
        spec.build("worker", Path(), 8, bound(P_OPENAI))
    for name in ("Content-Length", "transfer-encoding", "Connection"):
        with pytest.raises(ValueError, match="set by the HTTP library"):
            OpenAIHandler("m", extra_headers={name: "1"})


def test_endpoints_of_a_list_have_each_their_own_key() -> None:
    spec = OpenAISpec(handler="openai", model="m", base_url=[OPENAI, TOGETHER, LOCAL])
    permissions = bound(P_OPENAI | P_TOGETHER)
    handler = spec.build("worker", Path(), 8, permissions)
    assert isinstance(handler, OpenAIHandler)
    expected = {OPENAI: "OPENAI_API_KEY", TOGETHER: "TOGETHER_API_KEY", LOCAL: None}
    assert permissions.granted_keys().keys([OPENAI, TOGETHER, LOCAL], None, "") == expected
    assert permissions.granted_keys().keys([BOX], None, "") == {BOX: None}


def test_the_handler_itself_sends_the_key_that_the_program_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python API is not bound; OPENAI_BASE_URL is heeded."""
    monkeypatch.setenv("OPENAI_BASE_URL", PLAIN)
    assert OpenAIHandler("m").base_url == PLAIN
    assert OpenAIHandler("m", base_url=BOX).base_url == BOX


@pytest.mark.parametrize(
    ("environ", "url", "variable"),
    [
        ({"OPENAI_BASE_URL": PLAIN, **P_OPENAI}, PLAIN, "OPENAI_API_KEY"),
        ({"OPENAI_BASE_URL": PLAIN, **P_TOGETHER}, PLAIN, None),
        ({"BASE_URL": BOX, "OPENAI_BASE_URL": PLAIN, **P_OPENAI}, BOX, "OPENAI_API_KEY"),
        ({"BASE_URL": TOGETHER, **P_OPENAI, **P_TOGETHER}, TOGETHER, "TOGETHER_API_KEY"),
        ({"BASE_URL": "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY": "r"},
            "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
        (Environment(P_OPENAI, {"BASE_URL": BOX}), BOX, None),
        (Environment({}, {"BASE_URL": BOX, **P_OPENAI}), BOX, "OPENAI_API_KEY"),
        (Environment(P_TOGETHER, {"BASE_URL": TOGETHER}), TOGETHER, "TOGETHER_API_KEY"),
    ],
)  # fmt: skip
def test_the_environment_pairs_urls_and_keys(
    environ: Mapping[str, str], url: str, variable: str | None
) -> None:
    whole = (
        environ.with_value("WORKER_MODEL", "m")
        if isinstance(environ, Environment)
        else {**environ, "WORKER_MODEL": "m"}
    )
    spec = specified_by(whole, "worker")
    assert spec is not None
    assert (spec.base_url, spec.api_key_env) == (url, variable)
    handler = from_environment("worker", whole)
    assert handler is not None
    assert handler.base_url == url


# .env files


def _loaded(folder: Path, text: str | bytes, process: dict[str, str], mode: int = 0o600) -> Environment:
    path = folder / "variables"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return load_environment(path, process)


def test_a_file_gives_what_the_process_has_not_and_only_keys_and_models_reach_libraries(
    tmp_path: Path,
) -> None:
    process = {"OPENAI_API_KEY": "mine"}
    text = (
        "export OPENAI_API_KEY=its\nHF_TOKEN='h # t'\nBASE_URL=u\nWORKER_MODEL=m\nHTTPS_PROXY=p\nA=1\n"
        "B=${A}2 # c\n"
    )
    found = _loaded(tmp_path, text, process)
    assert (found["OPENAI_API_KEY"], found["HF_TOKEN"], found["BASE_URL"], found["B"]) == (
        "mine",
        "h # t",
        "u",
        "12",
    )
    assert process == {"OPENAI_API_KEY": "mine", "HF_TOKEN": "h # t", "WORKER_MODEL": "m"}
    assert found.not_passed_on == ["HTTPS_PROXY"]
    assert (found.is_from_file("BASE_URL"), found.is_from_file("OPENAI_API_KEY")) == (True, False)
    assert len(found) == len(list(found)) == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A=${HOME}\n", "line 1: ${HOME} is not set above"),
        ("A=1\nno assignment here\n", "line 2: it is no NAME=VALUE"),
        (b"A=b\n\xff\0\1\2", "binary file, and no text"),
        (b"A" * (2 << 20), "larger than 1 MiB"),
        (
            "A=" + "x" * 1000 + "\n" + "".join(f"A{n}=${{A}}${{A}}\nA=${{A{n}}}\n" for n in range(20)),
            "values are too long",
        ),
        ("A_KEY=a\0b\n", "a null character"),
    ],
)
def test_a_file_that_is_none_of_variables_says_so(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(TaskError) as caught:
        _loaded(tmp_path, text, {})
    assert words in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_are_read_alike(tmp_path: Path, encoding: str, end: str) -> None:
    """PowerShell writes UTF-16, Notepad a byte order mark, old editors Latin-1."""
    text = f"# caf\xe9{end}A_KEY=k-1{end}NAME='a caf\xe9 there'{end}WORKER_MODEL=m # c{end}"
    found = _loaded(tmp_path, text.encode(encoding), process := {})
    assert dict(found) == {"A_KEY": "k-1", "NAME": "a caf\xe9 there", "WORKER_MODEL": "m"}
    assert process == {"A_KEY": "k-1", "WORKER_MODEL": "m"}
    guessed = f"{found.path} is not UTF-8; it is read as cp1252. If that is wrong, save it as UTF-8"
    assert found.warnings == ([guessed] if encoding == "cp1252" else [])


@pytest.mark.parametrize("data", [b"hello there\n", b"A=1\n\xff\0\1\2", b"A=${B}\n", b"A" * (2 << 20)])
def test_a_broken_file_that_nobody_named_stops_only_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(data)
    (tmp_path / ".env").chmod(0o600)
    found = load_environment(process={"A_KEY": "k"})
    assert found.broken
    assert found["A_KEY"] == "k"
    with pytest.raises(TaskError) as caught:
        found.get("BASE_URL")
    assert str(caught.value) == (
        f"BASE_URL is not set in the shell. .env may set it, and is broken: {found.broken}. "
        "To read another file: --env-file FILE; to read none: --env-file /dev/null"
    )
    # What a command adds of its own does not hide that.
    with pytest.raises(TaskError):
        found.with_value("WORKER_MODEL", "m").get("SUPERVISOR_MODEL")


def test_a_default_stands_for_a_variable_that_is_not_set(tmp_path: Path) -> None:
    assert _loaded(tmp_path, "A=${B:-c}\n", {"B": "of the process"})["A"] == "c"


def test_a_file_that_was_named_must_be_there_and_may_be_a_pipe(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="No such file"):
        load_environment(tmp_path / "none", {})
    assert load_environment(Path("/dev/null"), {}) == {}
    read, write = os.pipe()
    os.write(write, b"A=1\n")
    os.close(write)
    assert load_environment(Path(f"/dev/fd/{read}"), {})["A"] == "1"
    os.close(read)


def test_a_folder_of_that_name_is_no_file_of_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_environment(process={}) == {}


# Settings


def test_settings_are_the_users_alone_and_changed_by_one_at_a_time(tmp_path: Path) -> None:
    program = (
        "import sys; from supdist.engine.trust.settings import *\n"
        "for n in range(20): change_settings(lambda s: s.with_host(HostRule(host=f'h{sys.argv[1]}-{n}:1',"
        " key='K')))"
    )
    workers = [subprocess.Popen([sys.executable, "-c", program, str(number)]) for number in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    assert len(read_settings().hosts) == 60
    folder = tmp_path / "config/supdist-engine"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "trust.json").stat().st_mode & 0o777 == 0o600


def test_settings_that_another_could_have_written_count_for_nothing(tmp_path: Path) -> None:
    change_settings(lambda settings: settings.with_host(HostRule(host="h:1", key="K")))
    path = tmp_path / "config/supdist-engine/trust.json"
    path.chmod(0o666)
    with pytest.raises(TaskError, match="make it yours alone"):
        read_settings()
    with pytest.raises(TaskError, match="make it yours alone"):
        change_settings(lambda settings: settings.with_host(HostRule(host="i:1", key="K")))
    path.chmod(0o600)
    assert len(read_settings().hosts) == 1
    path.rename(tmp_path / "dotfiles")
    path.symlink_to(tmp_path / "dotfiles")
    change_settings(lambda settings: settings.with_host(HostRule(host="https://h:1", key="K", allowed=False)))
    assert len(read_settings().hosts) == 2
    change_settings(lambda settings: settings.with_host(HostRule(host="h:1", key="K")))
    assert len(read_settings().hosts) == 1
    assert path.is_symlink()
    path.write_text("{")
    with pytest.raises(TaskError, match="damaged"):
        read_settings()


def test_a_mark_is_of_one_user_one_purpose_and_these_parts(tmp_path: Path) -> None:
    seal = Seal.open("one")
    mark = seal.mark(b"a", b"b")
    assert Seal.open("one").is_own(mark, b"a", b"b")
    for other, parts in (
        (seal, (b"ab",)),
        (seal, (b"a", b"c")),
        (Seal.open("two"), (b"a", b"b")),
        (Seal("one", b"x" * 32), (b"a", b"b")),
    ):
        assert not other.is_own(mark, *parts)
    nobody = Seal("one", None)
    assert nobody.mark(b"a") == ""
    assert not nobody.is_own("", b"a")


# Caches


async def test_a_cache_passes_over_what_others_kept_unless_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, key_ = tmp_path / "answers", b"k" * 32
    async with ResponseCache(path, own=True) as cache:
        await cache.put(key_, Completion("mine"))
        assert (await cache.get(key_)) == Completion("mine")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another user"))
    async with ResponseCache(path) as named:
        assert (await named.get(key_)) == Completion("mine")
    async with ResponseCache(path, own=True) as cache:
        assert await cache.get(key_) is None
        await cache.put(key_, Completion("theirs"))
        assert (await cache.get(key_)) == Completion("theirs")
        await cache.put(key_, Completion("again"))
        assert (await cache.get(key_)) == Completion("theirs")
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE marks SET mark = 'é'")
    async with ResponseCache(path, own=True) as cache:
        assert await cache.get(key_) is None


# Files


def test_files_are_made_for_their_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with PrivateFolder.open(tmp_path / "a/b", create=True) as folder:
            folder.append("log").close()
            os.close(folder.update("lock"))
            with folder.replacing("table") as file:
                file.write(b"x")
            made = [tmp_path / "a", tmp_path / "a/b", *(tmp_path / "a/b" / name for name in folder.names())]
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in made] == [0o700, 0o700, 0o600, 0o600, 0o600]


def test_a_file_of_ones_own_is_closed_to_others_when_it_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("old\n")
    (tmp_path / "log").chmod(0o644)
    with PrivateFolder.open(tmp_path) as folder, folder.append("log") as file:
        file.write(b"new\n")
    assert (tmp_path / "log").read_text() == "old\nnew\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "folder", "hard link"])
def test_what_is_no_file_of_ones_own_is_not_written_to(tmp_path: Path, kind: str) -> None:
    why = "it is a link|it is no regular file|it has another hard link|Is a directory"
    target, planted = tmp_path / "target", tmp_path / "planted"
    if kind != "dangling":
        target.write_text("precious")
    match kind:
        case "link" | "dangling":
            planted.symlink_to(target)
        case "fifo":
            os.mkfifo(planted)
        case "folder":
            planted.mkdir()
        case _:
            planted.hardlink_to(target)
    with PrivateFolder.open(tmp_path) as folder:
        for write in (folder.append, folder.update):
            with pytest.raises(OSError, match=why):
                write("planted")
        if kind != "hard link":
            with pytest.raises(OSError, match=why):
                folder.read("planted")
        if kind != "folder":
            with folder.replacing("planted") as file:
                file.write(b"new")
            assert planted.read_text() == "new"
    assert not target.exists() if kind == "dangling" else target.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_resolved_path_is_opened_without_following_what_became_a_link_since(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("x")
    place = ResolvedPath(os.path.realpath(tmp_path)) / "folder" / "file"
    assert isinstance(place, ResolvedPath)
    assert read_file(place) == b"x"
    (tmp_path / "folder").rename(tmp_path / "elsewhere")
    (tmp_path / "folder").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="it is a link"):
        read_file(place)
    with open_file(tmp_path / "folder/file") as file:
        assert file.read() == b"x"  # the user typed this one
    with pytest.raises(OSError, match=r"no '\.\.'"):
        read_file(ResolvedPath("/tmp/../etc/hostname"))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(100 << 30)
    for path in (tmp_path / "file", ResolvedPath(os.path.realpath(tmp_path / "file")), Path("/dev/zero")):
        with pytest.raises(OSError, match="larger than 1 MiB"):
            read_file(path, 1 << 20)


def test_a_new_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "table").write_text("old")
    with pytest.raises(ZeroDivisionError), PrivateFolder.open(tmp_path) as folder, folder.replacing("table"):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["table"]
    assert (tmp_path / "table").read_text() == "old"


async def test_a_cache_with_a_view_or_a_trigger_is_not_used(tmp_path: Path) -> None:
    """They would run as the file is read and written, the one without end."""
    for sql in (
        "CREATE VIEW v AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT x FROM c",
        "CREATE TRIGGER t AFTER INSERT ON answers BEGIN DELETE FROM answers; END",
    ):
        path = tmp_path / sql.split()[1]
        async with ResponseCache(path):
            pass
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(sql)
        with pytest.raises(CacheError, match="damaged"):
            async with ResponseCache(path):
                pass


@pytest.mark.parametrize(
    "field",
    ['"score": NaN', '"score": 1e308', '"steps": 1e400', '"seconds": Infinity', '"context_chars": -1'],
)
def test_a_record_of_which_no_table_can_be_made_is_none(field: str) -> None:
    good = {
        "index": 0, "example": "e", "strategy": "direct", "query": "q", "references": ["a"], "answer": "a",
        "score": 1.0, "correct": True, "steps": 1, "stop_reason": "final", "context_chars": 1, "seconds": 1.0,
    }  # fmt: skip
    Record.model_validate_json(json.dumps(good))
    name = field.split('"')[1]
    text = json.dumps({key: value for key, value in good.items() if key != name})
    with pytest.raises(ValidationError):
        Record.model_validate_json(text[:-1] + f", {field}}}")
