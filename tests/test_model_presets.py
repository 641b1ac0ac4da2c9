"""A model by a short name, wherever a specification may stand; its key goes to its own provider alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from process_support import COMMAND, clean_environment

from supdist.engine import TaskError, arun, run
from supdist.engine.model_presets import PRESETS, fields_of
from supdist.engine.model_specs import OpenAISpec, configured, model_named
from supdist.engine.taskfile import ModelsFile, TaskFile, json_schema
from supdist.engine.trust import Bound, Environment
from supdist.engine.trust.environment import load_environment
from supdist.engine.trust.servers import SERVERS
from supdist.engine.trust.settings import Settings
from supdist.engine.validation import checked
from supdist.handlers import OpenAIHandler
from supdist.tools.evals.command import Place, eval_with
from supdist.tools.evals.config import ExperimentConfig
from supdist.tools.testing.fake_openai import FakeOpenAI
from supdist.tools.testing.replies import Text

KEYS = {"OPENAI_API_KEY": "o", "VLLM_API_KEY": "v", "OPENROUTER_API_KEY": "r", "TOGETHER_API_KEY": "t"}


@pytest.mark.parametrize(
    ("name", "model", "url", "key"),
    [
        ("ollama/qwen3:8b", "qwen3:8b", "http://localhost:11434/v1", "none"),
        ("ollama/hf.co/a/b:Q4_K_M", "hf.co/a/b:Q4_K_M", "http://localhost:11434/v1", "none"),
        ("lmstudio/qwen/qwen3-8b", "qwen/qwen3-8b", "http://localhost:1234/v1", "none"),
        ("llamacpp/qwen3", "qwen3", "http://localhost:8080/v1", "none"),
        ("vllm/Qwen/Qwen3-8B", "Qwen/Qwen3-8B", "http://localhost:8000/v1", "none"),
        ("together/meta/x", "meta/x", "https://api.together.xyz/v1", "TOGETHER_API_KEY"),
        ("openrouter/qwen/qwen3-8b", "qwen/qwen3-8b", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
        ("openai/gpt-4.1", "gpt-4.1", None, None),
    ],
)
def test_a_preset_has_an_endpoint_and_a_key(name: str, model: str, url: str | None, key: str | None) -> None:
    preset: Any = name.partition("/")[0]
    server = preset if preset in SERVERS else None
    expected = OpenAISpec(handler="openai", model=model, base_url=url, api_key_env=key, server=server)
    assert model_named(name, {}) == expected


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("gpu-box", "http://gpu-box:11434/v1"),
        ("gpu-box:99", "http://gpu-box:99/v1"),
        ("http://gpu-box", "http://gpu-box/v1"),
        ("https://gpu-box/ollama/", "https://gpu-box/ollama/v1"),
        ("http://gpu-box:99/v1/", "http://gpu-box:99/v1"),
        ("0.0.0.0", "http://localhost:11434/v1"),
        ("[::]:99", "http://localhost:99/v1"),
        (":99", "http://localhost:99/v1"),
        ("::1", "http://[::1]:11434/v1"),
        (' "10.0.0.1" ', "http://10.0.0.1:11434/v1"),
    ],
)
def test_ollama_host_moves_the_server_as_it_moves_ollamas_own_client(address: str, url: str) -> None:
    assert fields_of("ollama/m", {"OLLAMA_HOST": address})["base_url"] == url


def test_every_local_server_can_be_moved_and_a_wrong_address_names_its_variable() -> None:
    for preset, variable in [
        ("lmstudio", "LMSTUDIO_BASE_URL"),
        ("llamacpp", "LLAMACPP_BASE_URL"),
        ("vllm", "VLLM_BASE_URL"),
    ]:
        assert fields_of(f"{preset}/m", {variable: "http://box:1/v1"})["base_url"] == "http://box:1/v1"
        for wrong in ("two words", "http://box:99999", "ftp://box"):
            with pytest.raises(TaskError, match=variable):
                fields_of(f"{preset}/m", {variable: wrong})


@pytest.mark.parametrize(
    ("environ", "url", "key"),
    [
        # Together's, OpenAI's and vLLM's keys are no business of Ollama.
        ({}, "http://localhost:11434/v1", None),
        ({"OLLAMA_HOST": "gpu-box"}, "http://gpu-box:11434/v1", None),
        (
            {"OLLAMA_HOST": "https://ollama.com", "OLLAMA_API_KEY": "l"},
            "https://ollama.com/v1",
            "OLLAMA_API_KEY",
        ),
    ],
)
def test_a_file_that_names_ollama_gets_no_other_providers_key(
    environ: Mapping[str, str], url: str, key: str | None
) -> None:
    whole = Environment({**KEYS, **environ})
    bound = Bound(Path("task.json"), whole, settings=Settings())
    spec = model_named("ollama/m", whole)
    assert isinstance(spec, OpenAISpec)
    handler = spec.build("worker", Path(), 8, bound)
    assert isinstance(handler, OpenAIHandler)
    assert handler.base_url == url
    assert not bound.withheld
    assert bound.granted_keys().decided == ({} if key is None else {(url, key): key})


def test_a_moved_server_gets_its_key_if_one_place_names_both() -> None:
    def bind(process: Mapping[str, str], file: Mapping[str, str]) -> None:
        environ = Environment(process, file)
        model_named("vllm/m", environ).check("worker", Path(), Bound(Path("t"), environ, settings=Settings()))

    moved, key = {"VLLM_BASE_URL": "gpu-box:8000"}, {"VLLM_API_KEY": "v"}
    bind(moved | key, {})
    bind({}, moved | key)
    bind(moved, key)
    bind(key, {})
    with pytest.raises(TaskError, match="would send the key in VLLM_API_KEY to gpu-box:8000 over http"):
        bind(key, moved)


def test_a_dot_env_file_moves_a_server(tmp_path: Path) -> None:
    (tmp_path / "variables").write_text("OLLAMA_HOST=gpu-box\nVLLM_BASE_URL=box:1\nOPENAI_ORG_ID=x\n")
    process: dict[str, str] = {}
    found = load_environment(tmp_path / "variables", process)
    assert process == {"OLLAMA_HOST": "gpu-box", "VLLM_BASE_URL": "box:1"}
    assert found.not_passed_on == ["OPENAI_ORG_ID"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("olama/qwen3:8b", "ollama/qwen3:8b"),
        ("lm-studio/m", "lmstudio/m"),
        ("llama.cpp/m", "llamacpp/m"),
        ("OpenAI/gpt-4.1", "openai/gpt-4.1"),
        ("google/gemini-2.5-pro", "gemini/gemini-2.5-pro"),
        ("gpt-4.1", "openai/gpt-4.1"),
        ("claude-sonnet-4-5", "anthropic/claude-sonnet-4-5"),
        ("qwen3:8b", "ollama/qwen3:8b"),
        ("Qwen/Qwen3-8B", "vllm/Qwen/Qwen3-8B"),
        ("built-in", "builtin"),
    ],
)
def test_an_unknown_preset_names_the_nearest_and_all_known(name: str, nearest: str) -> None:
    with pytest.raises(TaskError) as found:
        model_named(name)
    assert f"did you mean {nearest}" in str(found.value)
    for preset in (*PRESETS, "builtin"):
        assert preset in str(found.value)


def test_a_preset_without_a_model_says_how_to_name_one() -> None:
    for name in ("ollama/", "ollama/ "):
        with pytest.raises(TaskError, match="names no model: write ollama/MODEL"):
            model_named(name)


def test_a_name_stands_for_a_specification_in_every_file() -> None:
    spec = model_named("vllm/m")
    task = checked(TaskFile, {"query": "q", "context": "c", "supervisor": "vllm/m"}, "")
    assert task.supervisor == spec
    assert checked(ModelsFile, {"worker": "vllm/m"}, "").worker == spec
    config = checked(ExperimentConfig, {"worker": "vllm/m", "judge": "vllm/m"}, "")
    assert (config.worker, config.judge) == (spec, spec)
    assert checked(ExperimentConfig, {"judge": "none"}, "").judge == "none"
    for model, wrong in (
        (TaskFile, {"query": "q", "context": "c", "worker": "vlm/m"}),
        (ModelsFile, {"worker": "vlm/m"}),
    ):
        with pytest.raises(
            TaskError, match="worker: 'vlm/m' begins with no known preset; did you mean vllm/m"
        ):
            checked(model, wrong, "wrong:")


def test_the_schema_for_editors_takes_a_name() -> None:
    kinds = json_schema()["properties"]["supervisor"]["anyOf"]
    assert {"type": "string"} in kinds


def test_a_variable_names_a_preset_where_no_endpoint_is_configured() -> None:
    name = {"WORKER_MODEL": "openai/gpt-oss-20b"}
    spec = configured(name, "worker")
    assert isinstance(spec, OpenAISpec)
    assert spec.model == "gpt-oss-20b"
    # A name of Together's that was there before presets.
    spec = configured(name | KEYS, "worker")
    assert isinstance(spec, OpenAISpec)
    assert (spec.model, spec.base_url) == ("openai/gpt-oss-20b", "https://api.together.xyz/v1")
    assert configured({"WORKER_MODEL": "small"}, "worker") is None


async def test_run_takes_names_and_sends_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    async with FakeOpenAI([Text("```repl\nFINAL(worker('w'))\n```"), Text("found")]) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.base_url)
        result = await arun(query="q", context="c", supervisor="ollama/big", worker="ollama/small")
    assert result.answer == "found"
    chats = [request for request in server.requests if request.path == "/v1/chat/completions"]
    assert [request.model for request in chats] == ["big", "small"]
    assert {request.key for request in chats} == {"none"}
    assert not {request.key for request in server.requests} & set(KEYS.values())


def test_run_says_which_name_is_wrong() -> None:
    with pytest.raises(TaskError, match=r"^worker: 'olama/m' begins with no known preset"):
        run(query="q", context="c", supervisor="builtin", worker="olama/m")
    assert run(query="Who?", context="Ann did it.", supervisor="builtin", worker="builtin").answer


async def test_the_command_line_takes_names(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(json.dumps({"query": "q", "context": "c"}))
    async with FakeOpenAI([Text("```repl\nFINAL(worker('w'))\n```"), Text("found")]) as server:
        command = [*COMMAND, "run", "task.json", "--supervisor", "vllm/m"]
        environ = clean_environment(VLLM_BASE_URL=server.base_url)
        done = await anyio.run_process(command, check=False, cwd=tmp_path, env=environ)
    assert (done.returncode, done.stdout) == (0, b"found\n"), done.stderr
    # The only model that is typed serves both roles.
    assert [request.model for request in server.requests if request.model] == ["m", "m"]
    command[-2:] = ["--worker", "vlm/m"]
    done = await anyio.run_process(command, check=False, cwd=tmp_path, env=clean_environment())
    assert done.returncode == 2
    assert b"--worker: 'vlm/m' begins with no known preset; did you mean vllm/m" in done.stderr


def test_eval_takes_names_beside_those_of_an_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = {"task": "needle", "task_options": ["length=2000"], "n": 1, "supervisor": "builtin"}
    assert eval_with(flags, None, Place(Path("out"), None), retry_failed=False, as_json=True) == 0
    config = json.loads(Path("out/config.json").read_text())
    assert (config["supervisor"], config["worker"]) == ({"handler": "builtin"}, {"handler": "builtin"})
    with pytest.raises(TaskError, match="give one of them"):
        eval_with(
            flags | {"supervisor_model": "m"}, None, Place(None, None), retry_failed=False, as_json=True
        )
