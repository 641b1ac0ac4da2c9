"""The user's rules about keys, paths and folders, and a secret."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import TaskError
from ..private_files import PrivateFolder, open_file, others_may_write, resolved
from .hosts import parse_host

# In $XDG_CONFIG_HOME/supdist-engine. The secret is for the marks of seals.py.
FILE, SECRET = "trust.json", "secret"

_LOCK = ".lock"
_SECRET_BYTES = 32
_MOST_BYTES = 64 << 20

Direction = Literal["read", "write"]


class HostRule(BaseModel):
    """Whether a host gets a key."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    host: str
    key: str
    # If false, the user is not asked again.
    allowed: bool = True


class PathRule(BaseModel):
    """A path that files in the folder ``asking`` may use."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    asking: str
    folder: str
    direction: Direction


class FolderRule(BaseModel):
    """A folder of trusted code."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    folder: str
    # Hashes by paths.
    files: dict[str, str]


class Settings(BaseModel):
    """The content of ``trust.json``."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    hosts: tuple[HostRule, ...] = ()
    paths: tuple[PathRule, ...] = ()
    folders: tuple[FolderRule, ...] = Field(default=())

    def with_host(self, rule: HostRule) -> Settings:
        """Replace or add a rule."""
        origin = parse_host(rule.host)
        others = tuple(
            each for each in self.hosts if each.key != rule.key or not origin.covers(parse_host(each.host))
        )
        return self.model_copy(update={"hosts": (*others, rule)})

    def with_path(self, rule: PathRule) -> Settings:
        """Add a rule."""
        return self.model_copy(update={"paths": (*(each for each in self.paths if each != rule), rule)})

    def with_folder(self, rule: FolderRule) -> Settings:
        """Replace or add a rule."""
        others = tuple(each for each in self.folders if each.folder != rule.folder)
        return self.model_copy(update={"folders": (*others, rule)})

    def without(self, subject: str) -> Settings:
        """Remove the rules about a host or a folder."""
        return Settings(
            hosts=tuple(each for each in self.hosts if each.host != subject),
            paths=tuple(each for each in self.paths if subject not in (each.asking, each.folder)),
            folders=tuple(each for each in self.folders if each.folder != subject),
        )


def config_folder() -> Path:
    """Return the folder of the settings, or raise a ``TaskError`` without a home folder."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        home = Path(base) if os.path.isabs(base) else Path.home() / ".config"
    except RuntimeError as error:
        raise TaskError("you have no home folder for settings: set HOME or XDG_CONFIG_HOME") from error
    return home / "supdist-engine"


def read_settings() -> Settings:
    """Return the settings; empty if there are none.

    Raises:
        TaskError: they are damaged, or others could have written them.
    """
    try:
        path = config_folder() / FILE
    except TaskError:
        return Settings()
    try:
        # Links are followed: in the user's own folder they are the user's own.
        with open_file(resolved(path)) as file:
            found = os.fstat(file.fileno())
            if not _is_own(found):
                raise TaskError(
                    f"{path} belongs to another user, or others can write it: make it yours alone "
                    "(chmod 600), or set "
                    "XDG_CONFIG_HOME"
                )
            text = file.read(_MOST_BYTES)
    except OSError:
        return Settings()
    try:
        return Settings.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise TaskError(f"{path} is damaged ({where} {problem['msg']}): correct it or remove it") from error


def change_settings(change: Callable[[Settings], Settings]) -> Settings:
    """Change the settings under a lock, and return them.

    Raises:
        TaskError: they cannot be written, or are damaged.
    """
    try:
        with PrivateFolder.open(config_folder(), create=True) as folder, _locked(folder):
            settings = change(read_settings())
            # Resolved: a link of the user's stays a link.
            place = resolved(config_folder() / FILE)
            with PrivateFolder.open(place.parent) as target, target.replacing(place.name) as file:
                file.write(settings.model_dump_json(indent=1).encode() + b"\n")
    except OSError as error:
        raise TaskError(f"cannot write {error.filename or config_folder()}: {error.strerror}") from error
    return settings


def user_secret() -> bytes | None:
    """Return the user's secret, or make it; None if it cannot be kept."""
    try:
        if (found := _own_file(SECRET)) is not None and len(found) == _SECRET_BYTES:
            return found
        with PrivateFolder.open(config_folder(), create=True) as folder, _locked(folder):
            if (found := _own_file(SECRET)) is None or len(found) != _SECRET_BYTES:
                found = secrets.token_bytes(_SECRET_BYTES)
                with folder.replacing(SECRET) as file:
                    file.write(found)
            return found
    except (OSError, TaskError):
        return None


def as_json(settings: Settings) -> str:
    """Return the rules as JSON, without hashes."""
    whole = settings.model_dump()
    whole["folders"] = [{"folder": each.folder, "files": len(each.files)} for each in settings.folders]
    return json.dumps(whole, indent=1)


def _own_file(name: str) -> bytes | None:
    # A file that another user could have written counts as missing.
    with suppress(OSError), PrivateFolder.open(config_folder()) as folder, folder.read(name) as file:
        found = os.fstat(file.fileno())
        return file.read(_MOST_BYTES) if _is_own(found) else None
    return None


def _is_own(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not others_may_write(found)


@contextmanager
def _locked(folder: PrivateFolder) -> Generator[None]:
    lock = folder.update(_LOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
