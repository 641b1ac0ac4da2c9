"""Record folders whose code may run in the engine."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from importlib.machinery import all_suffixes
from pathlib import Path

from ..errors import TaskError
from ..private_files import others_may_write
from .questions import shown
from .settings import FolderRule, Settings

_CODE = tuple(all_suffixes())
_DESCRIPTIONS = (".json", ".toml")
_MOST_SHOWN = 10
_MOST_FILES = 20_000
_MOST_CODE_BYTES = 256 << 20
# A larger JSON or TOML file is data.
_MOST_DESCRIPTION_BYTES = 8 << 20


def record(folder: Path) -> FolderRule:
    """Return a rule with the hashes of a folder's modules, JSON and TOML files.

    Raises:
        TaskError: it is too large, or others can change it.
    """
    try:
        place = folder.resolve()
        if not place.is_dir():
            raise TaskError(f"{shown(folder)} is no folder")
        return FolderRule(folder=str(place), files=dict(_files(place, (*_CODE, *_DESCRIPTIONS))))
    except OSError as error:
        raise TaskError(f"cannot read {shown(error.filename or folder)}: {error.strerror}") from error


def folder_of(settings: Settings, description: Path) -> Path:
    """Return the folder to trust for a file: its own, or a trusted one above."""
    folder = description.parent.resolve()
    rule = _rule_for(settings, folder)
    return folder if rule is None else Path(rule.folder)


def distrust_reason(settings: Settings, description: Path) -> str | None:
    """Return why a file's folder is not trusted, if so.

    Raises:
        TaskError: as ``record``.
    """
    # The file itself is not resolved: its code is imported from the folder in which the link lies.
    place = description.parent.resolve() / description.name
    rule = _rule_for(settings, place.parent)
    if rule is None:
        return f"{shown(place.parent)} is not trusted"
    root = Path(rule.folder)
    name = str(place.relative_to(root))
    try:
        now = dict(_files(root, _CODE)) | {name: _hash(place)}
        problem = _foreign_access(place)
    except OSError as error:
        raise TaskError(f"cannot read {shown(error.filename or root)}: {error.strerror}") from error
    if problem:
        return problem
    then = {path: digest for path, digest in rule.files.items() if path.endswith(_CODE) or path == name}
    changed = sorted(path for path in now.keys() | then.keys() if now.get(path) != then.get(path))
    if not changed:
        return None
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    names = ", ".join(shown(path) for path in changed[:3])
    return f"{shown(root)} has changed since it was trusted: {names}{more}"


def _rule_for(settings: Settings, folder: Path) -> FolderRule | None:
    # The folder's own rule, else that of the nearest folder above it.
    rules = {rule.folder: rule for rule in settings.folders}
    return next((rules[str(each)] for each in (folder, *folder.parents) if str(each) in rules), None)


def _files(root: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    # Links are followed, as an import follows them.
    count = size = 0
    problems: list[str] = []
    for path in _walk(root, suffixes):
        if problem := _foreign_access(path):
            problems.append(problem)
            continue
        if not path.is_file():
            continue
        length = path.stat().st_size
        if not path.name.endswith(_CODE) and length > _MOST_DESCRIPTION_BYTES:
            continue
        count, size = count + 1, size + length
        if count > _MOST_FILES or size > _MOST_CODE_BYTES:
            raise TaskError(
                f"{shown(root)} holds more than {_MOST_FILES:,} files or {_MOST_CODE_BYTES >> 20} MiB "
                "to check: put the "
                "file and its code into a folder of their own"
            )
        yield str(path.relative_to(root)), _hash(path)
    if problems:
        more = [f"and {len(problems) - _MOST_SHOWN} more"] if len(problems) > _MOST_SHOWN else []
        lines = "\n".join(f"  {each}" for each in (*problems[:_MOST_SHOWN], *more))
        raise TaskError(
            f"{shown(root)} cannot be trusted, because others could change it. Copy it, or correct:\n{lines}"
        )


def _walk(root: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    seen, waiting = set[str](), [root]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        yield folder
        for path in sorted(folder.iterdir()):
            # No import finds these: see toolbox/loading.py for caches.
            if path.name.startswith(".") or path.name == "__pycache__":
                continue
            try:
                is_folder = stat.S_ISDIR(path.stat().st_mode)
            # A broken link, or a closed folder: an import cannot read it either.
            except OSError:
                continue
            if is_folder:
                waiting.append(path)
            elif path.name.endswith(suffixes):
                yield path


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _foreign_access(path: Path) -> str:
    found, link = path.stat(), path.lstat()
    for each in (found, link):
        if each.st_uid not in (os.geteuid(), 0):
            return f"{shown(path)} belongs to another user (uid {each.st_uid})"
    if others_may_write(found):
        return f"{shown(path)} can be written by other users (chmod go-w)"
    return ""
