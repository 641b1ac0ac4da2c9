"""Links in a folder of packages: followed inside of it and into installers' caches, and nowhere else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from process_support import COMMAND
from support import Open

from supdist.engine import TaskError
from supdist.engine.jail import package_links, rootfs

pytestmark = pytest.mark.anyio

TAG = "Signature: 8a477f597d28d172789f06886806bc55"


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def open_to_all(folder: Path) -> None:
    """Sandboxes of root are of other users."""
    for base, folders, names in os.walk(folder):
        for name in (*folders, *names):
            if not os.path.islink(os.path.join(base, name)):
                os.chmod(os.path.join(base, name), 0o755)
    folder.chmod(0o755)


def uv_cache(folder: Path) -> Path:
    """A folder of uv's cache with the package ``lib``, as uv 0.9 lays it out."""
    write(folder / "CACHEDIR.TAG", TAG)
    package = folder / "archive-v0" / "tSoA7vMTwa4lszQ4"
    write(package / "lib/__init__.py", "from .deep.part import VALUE\n")
    write(package / "lib/deep/part.py", "VALUE = 7\n")
    write(package / "single.py", "VALUE = 8\n")
    open_to_all(folder)
    return package


def link_files(source: Path, folder: Path) -> None:
    """As `uv pip install --link-mode symlink --target folder`: folders are made, files are links."""
    for path in sorted(source.rglob("*")):
        place = folder / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)


LOOK = """
import lib, single, own, os
print(lib.VALUE + single.VALUE + own.VALUE, lib.__file__, single.__file__)
print(os.path.realpath(lib.__file__).startswith("/opt/linked/"), HOST in repr(list(os.walk("/opt"))))
print(any(HOST in os.readlink(os.path.join(at, name)) for at, _, names in os.walk("/opt/packages")
      for name in names if os.path.islink(os.path.join(at, name))))
"""


@pytest.mark.parametrize("are_folders", [False, True])
async def test_links_into_uvs_cache_are_followed_and_name_no_host_path(
    small: Open, tmp_path: Path, are_folders: bool
) -> None:
    source = uv_cache(tmp_path / "cache")
    folder = tmp_path / "packages"
    write(folder / "own.py", "VALUE = 1\n")
    if are_folders:
        (folder / "lib").symlink_to(source / "lib")
        (folder / "single.py").symlink_to(source / "single.py")
    else:
        link_files(source, folder)
    open_to_all(folder)
    async with small(packages=str(folder)) as sandbox:
        result = await sandbox.execute(LOOK.replace("HOST", repr(str(tmp_path))))
    assert result.stdout == (
        "16 /opt/packages/lib/__init__.py /opt/packages/single.py\nTrue False\nFalse\n"
    ), result


async def test_only_the_packages_of_a_cache_that_links_lead_to_are_there(small: Open, tmp_path: Path) -> None:
    source = uv_cache(tmp_path / "cache")
    write(source.parent / "another/private.py", "SECRET = 1")
    open_to_all(source.parent)
    link_files(source, tmp_path / "packages")
    open_to_all(tmp_path / "packages")
    code = "import os; print(sum('private.py' in names for _, _, names in os.walk('/opt')))"
    async with small(packages=str(tmp_path / "packages")) as sandbox:
        result = await sandbox.execute(code)
    assert result.stdout == "0\n", result


async def test_links_into_condas_cache_are_followed(small: Open, tmp_path: Path) -> None:
    write(tmp_path / "conda/pkgs/urls.txt")
    source = tmp_path / "conda/pkgs/lib-1.0-py311_0/lib/python3.11/site-packages"
    write(source / "lib.py", "VALUE = 5\n")
    open_to_all(tmp_path / "conda")
    link_files(source, tmp_path / "packages")
    async with small(packages=str(tmp_path / "packages")) as sandbox:
        result = await sandbox.execute("import lib; print(lib.VALUE)")
    assert result.stdout == "5\n", result


async def test_links_that_stay_inside_are_followed(small: Open, tmp_path: Path) -> None:
    """Absolute ones too, and one that leaves the folder and comes back. A path inside is another one."""
    folder = tmp_path / "packages"
    write(folder / "real/__init__.py", "VALUE = 1\n")
    write(folder / "real/deep/module.py", "VALUE = 2\n")
    (folder / "relative").symlink_to("real")
    (folder / "absolute").symlink_to(folder / "real")
    (folder / "chain").symlink_to("absolute")
    (folder / "back").symlink_to("../packages/real")
    (folder / "real/deep/up.py").symlink_to("../../real/deep/module.py")
    (tmp_path / "other").symlink_to(folder)
    (folder / "around.py").symlink_to(tmp_path / "other/real/deep/module.py")
    open_to_all(folder)
    code = """
import relative, absolute, chain, back, around, real.deep.up
print([each.VALUE for each in (relative, absolute, chain, back, around, real.deep.up)], back.__file__)
"""
    async with small(packages=str(tmp_path / "other")) as sandbox:
        result = await sandbox.execute(code)
    assert result.stdout == "[1, 1, 1, 1, 2, 2] /opt/packages/back/__init__.py\n", result


async def test_links_that_lead_nowhere_or_to_what_every_sandbox_has_are_left(
    small: Open, tmp_path: Path
) -> None:
    folder = tmp_path / "packages"
    write(folder / "own.py", "VALUE = 1\n")
    # An editor's lock, a loop, and a program of the system.
    (folder / ".#own.py").symlink_to("user@host.123:456")
    (folder / "loop").symlink_to("loop")
    (folder / "sh").symlink_to("/usr/bin/env")
    async with small(packages=str(folder)) as sandbox:
        result = await sandbox.execute("import os, own; print(own.VALUE, os.path.exists('/opt/packages/sh'))")
    assert result.stdout == "1 True\n", result


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "outside of the folder"),
        ("/proc/self/environ", "outside of the folder"),
        ("../beside/lib", "outside of the folder"),
        ("../cache/gone", "which is gone"),
        ("../cache/archive-v0/gone/lib.py", "which is gone"),
        ("../cache/archive-v0", "outside of the folder"),
        ("../cache", "outside of the folder"),
        ("../cache/archive-v0/swapped/secret", "outside of the folder"),
        ("../cache/archive-v0/swapped", "outside of the folder"),
        ("../unmarked/archive-v0/hash/lib.py", "outside of the folder"),
        ("../cache/archive-v0/pipe", "no file or folder"),
    ],
)
@pytest.mark.parametrize("deep", ["", "inner/"])
async def test_a_link_that_leads_out_is_refused_by_name(
    small: Open, tmp_path: Path, name: str, reason: str, deep: str
) -> None:
    uv_cache(tmp_path / "cache")
    write(tmp_path / "beside/lib/__init__.py")
    write(tmp_path / "beside/secret")
    write(tmp_path / "unmarked/archive-v0/hash/lib.py")
    (tmp_path / "cache/archive-v0/swapped").symlink_to(tmp_path / "beside")
    os.mkfifo(tmp_path / "cache/archive-v0/pipe")
    folder = tmp_path / "packages"
    (folder / deep).mkdir(parents=True)
    link = folder / deep / "lib.py"
    link.symlink_to(name if name.startswith("/") else tmp_path / name[3:])
    with pytest.raises(TaskError) as caught:
        async with small(packages=str(folder)):
            pass
    message = str(caught.value)
    assert f"the link {link} leads to {os.path.realpath(link)}" in message
    assert reason in message
    assert "`uv pip install --link-mode copy --target DIR PACKAGE ...`" in message


@pytest.mark.parametrize("part", ["cache", "cache/archive-v0/tSoA7vMTwa4lszQ4", "single.py", "link", "tag"])
def test_a_cache_of_another_user_is_refused(tmp_path: Path, part: str) -> None:
    """All of it must be of the folder's owner. Root can make such a one; for others the folder is root's."""
    source = uv_cache(tmp_path / "cache")
    link_files(source, tmp_path / "packages")
    folder = tmp_path / "packages"
    if os.geteuid() != 0:
        (tmp_path / "packages/other.py").symlink_to(os.__file__)
        with pytest.raises(package_links.LinkRefused):
            package_links.find(str(folder), [])
        return
    if part == "cache":
        os.chown(source.parent, 1234, 1234)
    elif part == "single.py":
        os.chown(source / part, 1234, 1234)
    elif part == "link":
        os.chown(folder / "single.py", 1234, 1234, follow_symlinks=False)
    elif part == "tag":
        os.chown(tmp_path / "cache/CACHEDIR.TAG", 1234, 1234)
    else:
        os.chown(source, 1234, 1234)
    with pytest.raises(package_links.LinkRefused, match=r"another user|outside"):
        package_links.find(str(folder), rootfs.system_folders())


def test_what_was_put_in_the_way_after_the_check_is_not_bound(tmp_path: Path) -> None:
    source = uv_cache(tmp_path / "cache")
    link_files(source, tmp_path / "packages")
    found = package_links.find(str(tmp_path / "packages"), []).sources[1]
    os.close(package_links.open_source(found))
    source.rename(tmp_path / "kept")
    source.mkdir()
    with pytest.raises(OSError, match="replaced"):
        package_links.open_source(found)
    source.rmdir()
    source.symlink_to(tmp_path / "kept")
    with pytest.raises(NotADirectoryError):
        package_links.open_source(found)
    # A link above it, too.
    source.unlink()
    (tmp_path / "kept").rename(source)
    (tmp_path / "cache").rename(tmp_path / "moved")
    (tmp_path / "cache").symlink_to(tmp_path / "moved")
    with pytest.raises(NotADirectoryError):
        package_links.open_source(found)


async def test_a_virtual_environment_is_told_from_a_folder_with_links(tmp_path: Path, small: Open) -> None:
    folder = tmp_path / ".venv"
    write(folder / "pyvenv.cfg")
    write(folder / "lib/python3.11/site-packages/mine.py", "VALUE = 3")
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to("/usr/bin/env")
    open_to_all(tmp_path)
    with pytest.raises(
        TaskError, match=r"is a virtual environment; give '.*\.venv/lib/python3.11/site-packages'$"
    ):
        async with small(packages=str(folder)):
            pass
    async with small(packages=folder / "lib/python3.11/site-packages") as sandbox:
        assert (await sandbox.execute("import mine; print(mine.VALUE)")).stdout == "3\n"


def test_the_command_names_the_link(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/users.py").symlink_to("/etc/passwd")
    done = subprocess.run(
        [*COMMAND, "exec", "--packages", "packages", "import users"],
        cwd=tmp_path, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"the link {tmp_path}/packages/users.py leads to /etc/passwd" in done.stderr
