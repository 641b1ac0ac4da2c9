"""Build the zygote's root file system in a mount namespace, under neutral paths.

``find_layout`` runs in the engine. ``main`` runs in a fresh interpreter with the standard library, and
becomes the zygote::

    /lower          folders of the host for sandboxes, each a bind
    /template       the rest of a sandbox's tree
    /usr /lib ...   links into /lower: a path means the same here and in a sandbox
    /hostlib        modules of zygote and shim, for no sandbox
    /guest          where a sandbox mounts its root (``mounts.py``)
    /proc           the host's, to map ids
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, TypedDict

from ...sandbox_image.environment import COMMANDS, INSTALLERS
from . import interpreter, package_links, subordinate_ids
from . import syscalls as sc
from .package_links import LINKED, PACKAGES, Links, Source
from .setup_errors import SetupError, setup_step

_ROOT = Path(__file__).resolve().parents[2]
_OUR_MODULES = ("engine/jail", "sandbox_image")
HOST_MODULES = ("msgspec", "cloudpickle", "pyseccomp")

_SYSTEM = (
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/share/zoneinfo",
)
_ROOT_LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
_ETC_COPIES = ("/etc/ld.so.cache",)
_ETC_FILES = {
    "passwd": "root:x:0:0:root:/:/bin/sh\nsandbox:x:65534:65534:sandbox:/work:/bin/sh\n",
    "group": "root:x:0:\nsandbox:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "fonts/fonts.conf": "<fontconfig><cachedir>/tmp/fontconfig</cachedir></fontconfig>\n",  # for matplotlib
}
# Of a folder whose links are replaced. It bounds the kernel's memory.
_MOST_LINKS = 1_000_000
DEVICES = ("null", "zero", "full", "random", "urandom")
_MOUNT_POINTS = ("proc", "tmp", "work", "dev/shm")

LOWER, TEMPLATE, EMPTY = "/lower", "/template", "/empty"

# A program that imports `jail` and `sandbox_image` from their folders, installed or not. It makes the
# packages above `jail` itself: the zygote's root holds no other part of the engine.
BOOT = (
    "import sys, types; sys.path[:0] = {path!r}\n"
    "for name, folder in (('supdist', {root!r}), ('supdist.engine', {root!r} + '/engine')):\n"
    "    sys.modules[name] = package = types.ModuleType(name); package.__path__ = [folder]\n"
    "from supdist.engine.jail.{module} import main; main()"
)


class PackagesFolder(NamedTuple):
    """A folder of packages that was checked, and whether links in it must be replaced."""

    source: Source
    has_links: bool


class RootLayout(TypedDict):
    """What the root holds, as pairs of a host path and its path in the root."""

    binds: list[list[str]]
    copies: list[list[str]]
    modules: list[list[str]]
    python: str
    library: str
    links: dict[str, str]


class ZygoteStart(RootLayout):
    """A root's layout, the engine's control descriptor, and the number of ``SetupFailed``."""

    control: int
    failed: int
    packages: PackagesFolder | None
    system: list[str]


def system_folders() -> list[str]:
    """Return the host's folders that have the same path in a sandbox."""
    return [path for path in (*_SYSTEM, "/etc/alternatives") if os.path.isdir(path)]


def find_layout() -> RootLayout:
    """Find what the root holds on this host."""
    found = interpreter.find()
    binds = [[path, path] for path in system_folders()] + found.binds
    modules: list[list[str]] = []
    for part in _OUR_MODULES:
        modules += resolve_links(str(_ROOT / part), f"/hostlib/supdist/{part}")
    for module in HOST_MODULES:
        for source in _module_files(module):
            modules += resolve_links(str(source), f"/hostlib/{source.name}")
    return {
        "binds": [[os.path.realpath(source), target] for source, target in binds]
        + [[path, path] for path in _ROOT_LINKS if os.path.isdir(path) and not os.path.islink(path)],
        "copies": found.copies,
        "modules": modules,
        "python": found.executable,
        "library": found.library,
        "links": {path: os.readlink(path) for path in _ROOT_LINKS if os.path.islink(path)},
    }


def _module_files(name: str) -> list[Path]:
    # Its file or folder, and the `.libs` folder of its wheel. Without an import, which would load it into the
    # engine.
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {name!r}; reinstall supdist-engine", name=name)
    if not spec.submodule_search_locations:
        return [Path(spec.origin)]
    folder = Path(spec.origin).parent
    return [folder, *(path for path in folder.parent.glob(f"*{name}.libs") if path.is_dir())]


def resolve_links(source: str, target: str) -> list[list[str]]:
    """Return the binds for a file or folder; each file apart if links are below it (``uv --link-mode``)."""
    files: list[list[str]] = []
    has_links = False
    for folder, folders, names in os.walk(source, followlinks=True):
        has_links |= any(os.path.islink(os.path.join(folder, name)) for name in (*folders, *names))
        inside = target + folder[len(source) :]
        paths = ((os.path.realpath(os.path.join(folder, name)), f"{inside}/{name}") for name in names)
        files += [[path, place] for path, place in paths if os.path.isfile(path)]
    return files if has_links else [[os.path.realpath(source), target]]


def command_for_containers(control_fd: int, contexts: str) -> list[str]:
    """Return the command line of a zygote for containers, which needs no root."""
    # The zygote removes `contexts`, the folder with the guests' contexts, at its end.
    path = sorted({str(_module_files(module)[0].parent) for module in HOST_MODULES})
    boot = BOOT.format(path=path, root=str(_ROOT), module="start")
    return [sys.executable, "-I", "-S", "-c", boot, str(control_fd), json.dumps(contexts)]


def command(control_fd: int, packages: PackagesFolder | None = None) -> list[str]:
    """Return the command line that becomes the zygote; it inherits ``control_fd``."""
    # Here, since the interpreter that runs `main` has no msgspec.
    from ...sandbox_image.protocol import SetupFailed, tag

    boot = BOOT.format(path=[], root=str(_ROOT), module="rootfs")
    start: ZygoteStart = {
        **find_layout(),
        "control": control_fd,
        "failed": tag(SetupFailed),
        "packages": packages,
        "system": system_folders(),
    }
    return [sys.executable, "-I", "-S", "-c", boot, json.dumps(start)]


def main() -> None:
    """Build the root and execute the zygote in it."""
    start: ZygoteStart = json.loads(sys.argv[1])
    # Each sandbox has its own uid, and must be able to read the root.
    os.umask(0o022)
    try:
        with setup_step("packages"):
            packages = _find_packages(start)
        _build(start, packages)
        with setup_step("exec"):
            folders = _folders(start, packages)
            boot = BOOT.format(path=["/hostlib"], root="/hostlib/supdist", module="start")
            arguments = [
                start["python"],
                "-I",
                "-S",
                "-c",
                boot,
                str(start["control"]),
                json.dumps(folders),
            ]
            os.execve(start["python"], arguments, {"LANG": "C.UTF-8"})
    except SetupError as failure:
        os.write(start["control"], setup_failed(start["failed"], failure))
        sys.exit(1)


def setup_failed(number: int, failure: SetupError) -> bytes:
    """Return ``protocol.SetupFailed`` as MessagePack: array of 3, str of at most 31 bytes, uint16."""
    # By hand: msgspec cannot be imported in this interpreter.
    name = failure.step.encode()
    return bytes((0x93, number, 0xA0 | len(name))) + name + b"\xcd" + failure.errno.to_bytes(2, "big")


class _Packages(NamedTuple):
    places: list[tuple[Source, str]]
    links: Links


def _find_packages(start: ZygoteStart) -> _Packages:
    # Once more, in this process: what is bound below is what was found here. Before the namespaces, in which
    # other users look alike.
    if start["packages"] is None:
        return _Packages([], Links([], {}))
    source, has_links = start["packages"]
    source = Source(*source)  # a list, in JSON
    if not has_links:
        return _Packages([(source, PACKAGES)], Links([source], {}))
    # What was refused is not followed.
    links = package_links.find(source.path, start["system"], is_strict=False)
    places = [(each, f"{LINKED}/{number}") for number, each in enumerate(links.sources)]
    return _Packages(places, links)


def _build(start: ZygoteStart, packages: _Packages) -> None:
    _enter_mount_namespace(start, packages)
    with setup_step("zygote_root"):
        # Two pivots (pivot_root(2)). The first moves the host's tree to /host, so that also sources below
        # /tmp can be bound. The second detaches it.
        sc.mount("tmpfs", "/tmp", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=0755,size=16m")
        os.chdir("/tmp")
        for folder in ("host", "root"):
            os.mkdir(folder)
        sc.pivot_root(".", "host")
        os.chdir("/")
        sc.mount("tmpfs", "/root", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=0755,size=256m")
        os.chdir("/root")
        _fill(start, packages)
        sc.pivot_root_here()


def _enter_mount_namespace(start: ZygoteStart, packages: _Packages) -> None:
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        with setup_step("zygote_root"):
            sc.unshare(sc.CLONE_NEWNS)
    else:
        # An ordinary user becomes uid 0 of a user namespace: only uid 0 keeps its capabilities over execve(2)
        # (capabilities(7)).
        private = _private_paths(start, packages)
        with setup_step("user_namespace"), subordinate_ids.mapper(uid, gid, private) as map_ids:
            sc.unshare(sc.CLONE_NEWUSER | sc.CLONE_NEWNS)
            map_ids()
        with setup_step("id_map"):
            for name, own in (("uid_map", uid), ("gid_map", gid)):
                if Path(f"/proc/self/{name}").read_text():
                    continue  # with subordinate ids
                if name == "gid_map":
                    # Required before an unprivileged gid_map (user_namespaces(7)).
                    Path("/proc/self/setgroups").write_text("deny")
                Path(f"/proc/self/{name}").write_text(f"0 {own} 1")
    with setup_step("zygote_root"):
        # Else mounts made here would appear on the host (shared subtrees, mount_namespaces(7)).
        sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)


# Paths that may belong to the user alone, and that sandboxes must be able to read.
def _private_paths(start: ZygoteStart, packages: _Packages) -> list[str]:
    own = [source for source, target in start["binds"] if target.startswith(interpreter.FOLDER)]
    own += [source.path for source, _ in packages.places]
    paths = [*own, os.__file__]
    for folder in own:
        with suppress(OSError):  # it has gone: the bind reports that
            paths += [entry.path for entry in os.scandir(folder)]
    return paths


def _fill(start: ZygoteStart, packages: _Packages) -> None:
    for folder in ("proc", "dev", "hostlib", "lower", "template", "empty", "guest"):
        os.mkdir(folder)
    for source, target in start["binds"]:
        _bind(source, f"lower{target}")
    with setup_step("packages"):
        _bind_packages(packages)
    # After all binds: a bind can lie below another one.
    for target in (*(target for _, target in start["binds"]), *_packages_folders(packages)):
        sc.protect(f"lower{target}", sc.ATTR_RDONLY | sc.ATTR_NOSUID | sc.ATTR_NODEV)
    _copy_interpreter(start)
    _fill_template(start, packages)
    links = (
        {f"/{name}": f"{LOWER}/{name}" for name in os.listdir("lower")}
        | start["links"]
        | {"/etc": f"{TEMPLATE}/etc"}
    )
    for path, target in links.items():
        os.symlink(target, path[1:])

    for source, target in start["modules"]:
        _bind(source, target[1:])
        sc.protect(target[1:], sc.ATTR_RDONLY | sc.ATTR_NOSUID | sc.ATTR_NODEV)
    for name in DEVICES:
        _bind(f"/dev/{name}", f"dev/{name}")
    sc.mount("/host/proc", "proc", None, sc.MS_BIND | sc.MS_REC)
    if os.path.isdir("/host/sys/fs/cgroup"):
        _bind("/sys/fs/cgroup", "sys/fs/cgroup")


def _bind_packages(packages: _Packages) -> None:
    for source, target in packages.places:
        os.makedirs(f"lower{target}")
        # Not by path: its owner, who may be another user, could put a link in the way.
        descriptor = package_links.open_source(source, "/host")
        sc.mount(f"/host/proc/self/fd/{descriptor}", f"lower{target}", None, sc.MS_BIND | sc.MS_REC)
        os.close(descriptor)
    if packages.links.texts:
        os.mkdir(f"lower{PACKAGES}")
        options = f"mode=0755,size=64m,nr_inodes={_MOST_LINKS}"
        sc.mount("tmpfs", f"lower{PACKAGES}", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, options)
        package_links.build(f"lower{LINKED}/0", packages.links, f"lower{PACKAGES}")


def _packages_folders(packages: _Packages) -> list[str]:
    folders = [target for _, target in packages.places]
    return [*folders, PACKAGES] if packages.links.texts else folders


def _copy_interpreter(start: ZygoteStart) -> None:
    for source, target in start["copies"]:
        os.makedirs(os.path.dirname(f"lower{target}"), exist_ok=True)
        if target == start["python"]:
            interpreter.copy(f"/host{source}", f"lower{target}", start["library"])
        else:
            shutil.copyfile(f"/host{source}", f"lower{target}")
        os.chmod(f"lower{target}", 0o555)  # noqa: S103 - every sandbox has its own uid
    if start["library"]:
        os.symlink(start["library"], f"lower{interpreter.LIBRARY}")


def _folders(start: ZygoteStart, packages: _Packages) -> list[str]:
    copied = [os.path.dirname(target) for _, target in start["copies"]]
    bound = [target for _, target in start["binds"]]
    return list(dict.fromkeys([*bound, *_packages_folders(packages), *copied]))


def _fill_template(start: ZygoteStart, packages: _Packages) -> None:
    template = Path("template")
    folders = _folders(start, packages)
    for folder in ("etc/fonts", "dev", *_MOUNT_POINTS, *(path[1:] for path in folders)):
        (template / folder).mkdir(parents=True, exist_ok=True)
    for path, target in start["links"].items():
        os.symlink(target, template / path[1:])
    for name, text in _ETC_FILES.items():
        (template / "etc" / name).write_text(text)
    for path in _ETC_COPIES:
        if os.path.exists(f"/host{path}"):
            shutil.copyfile(f"/host{path}", template / path[1:])
    if start["library"]:
        os.symlink(start["library"], template / interpreter.LIBRARY[1:])
    _fill_commands(template / COMMANDS[1:], start)
    for name in DEVICES:
        (template / "dev" / name).touch()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", template / "dev" / name)
    os.symlink("/proc/self/fd", template / "dev/fd")


def _fill_commands(folder: Path, start: ZygoteStart) -> None:
    python = start["python"]
    folder.mkdir(parents=True)
    for _, target in start["binds"]:
        if target.startswith(interpreter.FOLDER):
            # A virtual environment made by COMMANDS/python looks for its library beside that folder.
            os.symlink(target, folder.parent / os.path.basename(target))
    for name in {"python", "python3", os.path.basename(python)}:
        os.symlink(python, folder / name)
    shutil.copyfile(f"/host{_ROOT / 'sandbox_image/commands/pip.py'}", folder / "pip.py")
    (folder / "pip.py").chmod(0o555)
    for name in INSTALLERS:
        os.symlink("pip.py", folder / name)


def _bind(source: str, target: str) -> None:
    # By path: a descriptor of another mount namespace cannot be bound.
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    if os.path.isdir(f"/host{source}"):
        Path(target).mkdir(exist_ok=True)
    else:
        Path(target).touch()
    sc.mount(f"/host{source}", target, None, sc.MS_BIND | sc.MS_REC)
