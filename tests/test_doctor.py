"""The doctor: what it finds here, and what it says where something is missing."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from test_cli import supdist

from supdist.engine.jail.syscalls import syscall
from supdist.engine.sandbox import doctor, open_sandbox
from supdist.engine.sandbox.diagnostics import sandbox_unavailable_for
from supdist.engine.sandbox.doctor import Finding, Layer, default_level_holds, examine

pytestmark = pytest.mark.anyio


async def test_the_default_level_holds_where_the_tests_run() -> None:
    findings = await examine()
    assert {finding.layer for finding in findings} >= {
        Layer.NAMESPACES,
        Layer.NETWORK,
        Layer.SYSTEM_CALLS,
        Layer.MEMORY,
        Layer.TIME,
    }
    assert default_level_holds(findings), [finding for finding in findings if not finding.holds]


async def test_a_wall_that_cannot_be_built_is_a_finding_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise sandbox_unavailable_for("user_namespace", 28)

    monkeypatch.setattr(doctor, "open_sandbox", refuse)
    (finding,) = await examine()
    assert not default_level_holds([finding])
    assert "User namespaces cannot be created" in finding.measured
    assert "max_user_namespaces" in finding.remedy
    assert open_sandbox is not refuse


def test_what_is_not_required_does_not_fail_the_level() -> None:
    extra = Finding(Layer.LANDLOCK, holds=False, required=False, measured="not active")
    assert default_level_holds([extra])


def test_the_command_prints_a_table_and_json(tmp_path: Path) -> None:
    done = supdist("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "ok  namespaces" in done.stdout
    assert "The default level holds." in done.stdout
    data = json.loads(supdist("doctor", "--json", cwd=tmp_path).stdout)
    assert data["holds"] is True
    assert all(
        {"layer", "holds", "required", "measured", "remedy"} == finding.keys() for finding in data["findings"]
    )


async def test_a_long_path_of_the_folder_for_temporary_files_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert default_level_holds(await examine())
    assert not list(folder.iterdir())


async def test_landlock_holds_where_the_kernel_has_it() -> None:
    """No other layer shows its absence: it repeats what they enforce."""
    try:
        version = syscall(444, None, 0, 1)  # landlock_create_ruleset(2), LANDLOCK_CREATE_RULESET_VERSION
    except OSError:
        version = 0
    (finding,) = (each for each in await examine() if each.layer is Layer.LANDLOCK)
    assert finding.holds == (version >= 4), "TCP rules came with version 4"
