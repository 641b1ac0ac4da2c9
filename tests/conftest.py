from __future__ import annotations

import gc
import json
import os
import warnings
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import parallel
import pytest
from audit import deserialised
from broker_support import Place, ipc_place, tcp_place
from hypothesis import HealthCheck, settings
from support import BACKENDS, SHARED, SMALL, Open

from supdist.engine import SandboxConfig, SandboxRuntime, SandboxUnavailable, open_sandbox
from supdist.engine.sandbox.context import NO_CONTEXT
from supdist.engine.sandbox.image import daemon
from supdist.engine.sandbox.loop_thread import stop_loop_thread
from supdist.sandbox_image.image import default_tag

if TYPE_CHECKING:
    from docker import DockerClient

# How long an example takes depends on who else uses the machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def audited() -> list[str]:
    """What the engine deserialised so far."""
    return deserialised


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_deserialised() -> Generator[None]:
    """Over everything that ran since this file was loaded."""
    yield
    assert deserialised == []


@pytest.fixture(autouse=True)
def _no_test_inherits_zygotes() -> Generator[None]:
    """Blocking calls keep theirs until the process ends, and tests count them."""
    yield
    stop_loop_thread()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(parallel)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=sorted(BACKENDS),
        default="process",
        help="what the sandboxes are made of, for the tests that hold for every backend",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what says of itself, with a reason, that it cannot hold over the chosen backend."""
    chosen = config.getoption("--backend")
    without = [item for item in items if any(chosen in mark.args for mark in item.iter_markers("not_over"))]
    config.hook.pytest_deselected(items=without)
    items[:] = [item for item in items if item not in without]


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What of a sandbox's config says what it is made of; the contract suite runs over each backend."""
    return BACKENDS[str(request.config.getoption("--backend"))]


@pytest.fixture(scope="module")
async def engine(anyio_backend: str, backend: dict[str, Any]) -> AsyncGenerator[SandboxRuntime]:
    """What makes sandboxes, for the module's tests."""
    async with SandboxRuntime(SandboxConfig.model_validate(backend)) as engine:
        yield engine


@pytest.fixture(scope="session")
def limits(backend: dict[str, Any]) -> SandboxConfig:
    """Small limits, for the chosen backend."""
    return SandboxConfig.model_validate({**backend, **SMALL})


@pytest.fixture
def small(engine: SandboxRuntime, backend: dict[str, Any]) -> Open:
    """Opens sandboxes with small limits; keyword arguments change the limits."""

    def open_small(
        *,
        context: object = NO_CONTEXT,
        query: str | None = None,
        on_call: Any = None,
        tools: Any = None,
        on_tool: Any = None,
        **limits: Any,
    ) -> Any:
        config = SandboxConfig.model_validate({**backend, **SMALL, **limits})
        return open_sandbox(
            config, context=context, query=query, on_call=on_call, tools=tools, on_tool=on_tool
        )

    return open_small


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, proxy or certificate of this machine."""
    for name in os.environ:
        if name.startswith(
            ("OPENAI_", "TOGETHER_", "ANTHROPIC_", "GEMINI_", "GOOGLE_", "SSL_CERT_")
        ) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    # No certificate is needed here, and the machine's take 50 ms to load for every client.
    monkeypatch.setenv("SSL_CERT_DIR", str(Path(__file__).parent))


@pytest.fixture(scope="session")
def docker() -> Generator[DockerClient]:
    """Return a client of a daemon with the sandbox's image; skip the test if there is none."""
    with ExitStack() as stack:
        client = _daemon_with_image(stack)
        if isinstance(client, str):
            reason = f"{client} (the sandbox's image is made by `supdist-engine image build`)"
            if os.environ.get("SUPDIST_REQUIRE_DOCKER"):
                pytest.fail(reason)
            pytest.skip(reason)
        yield client


def _daemon_with_image(stack: ExitStack) -> DockerClient | str:
    """It, or why there is none."""
    from docker.errors import ImageNotFound

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # the SDK leaves a socket open that it could not connect
        try:
            client = stack.enter_context(daemon())
            client.images.get(default_tag())
        except (SandboxUnavailable, ImageNotFound) as error:
            reason = str(error)
        else:
            return client
        gc.collect()
    return reason


@pytest.fixture
def papers() -> list[dict[str, Any]]:
    """Real papers with real questions."""
    path = SHARED / "data" / "papers.jsonl"
    if not path.exists():
        pytest.skip("the real papers (../shared/data/papers.jsonl) are not beside this checkout")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(params=["ipc", "tcp"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a broker service can be had: a socket's file, and a port of this machine with keys."""
    return {"ipc": ipc_place, "tcp": tcp_place}[request.param](tmp_path)
