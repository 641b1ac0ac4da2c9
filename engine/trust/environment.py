"""The environment of a command: variables of the process, then of one ``.env`` file."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path

from ...handlers.text_files import NotText, decode_text, guess_warning
from ..errors import TaskError
from ..private_files import others_may_write
from .servers import ADDRESS_VARIABLES

ENV_FILE = ".env"

_OTHER_FILE = ". To read another file: --env-file FILE; to read none: --env-file /dev/null"
_MOST_BYTES = 1 << 20
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(KEY|TOKEN)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MODELS = frozenset({"SUPERVISOR_MODEL", "WORKER_MODEL", "JUDGE_MODEL"})
_OF_ENGINE = frozenset({"BASE_URL", "OPENAI_BASE_URL", "LOG_DIR"})
# Only the engine reads what is passed on: keys, models, and addresses of local servers.
_OF_LIBRARIES = re.compile(
    r"(?i).*_proxy|(CUDA|CURL|DOCKER|HF|LD|OPENAI|PYTHON|RAY|REQUESTS|SSL|SUPDIST|VLLM|XDG)_\w+|TMPDIR"
)


# A .env file may come with another person's folder, so it is data: it never redirects a key of the process.
# Its other variables (proxies, certificates, DOCKER_HOST) reach no library.
class Environment(Mapping[str, str]):
    """Variables of the process, and more from a file."""

    def __init__(
        self,
        process: Mapping[str, str],
        file: Mapping[str, str] | None = None,
        path: Path | None = None,
        *,
        warnings: Sequence[str] = (),
        broken: str = "",
    ) -> None:
        """Make one of variables that were read.

        Args:
            warnings: what to tell about the file, each a sentence.
            broken: why the file could not be read. Then a name that the process has not is an error: the
                file may set it.
        """
        self.process = process
        self.file = file or {}
        self.path = path
        self.warnings = warnings
        self.broken = broken

    def __getitem__(self, name: str) -> str:
        if name in self.process:
            return self.process[name]
        if self.broken:
            raise TaskError(
                f"{name} is not set in the shell. {self.path} may set it, and is broken: "
                f"{self.broken}{_OTHER_FILE}"
            )
        return self.file[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.process
        yield from (name for name in self.file if name not in self.process)

    def __len__(self) -> int:
        return len(self.process.keys() | self.file.keys())

    def is_from_file(self, name: str) -> bool:
        """Return whether only the file sets a variable."""
        return name in self.file and name not in self.process

    def redirects(self, url_name: str, key_name: str) -> bool:
        """Return whether the file's URL would get the process's key."""
        return self.is_from_file(url_name) and not self.is_from_file(key_name)

    def openai_url(self) -> str | None:
        """Return the address that replaces OpenAI's own."""
        # A key of the process is never sent to an address of the file, so a broken file hides nothing.
        is_hidden = self.broken and "OPENAI_API_KEY" in self.process
        return self.process.get("OPENAI_BASE_URL") if is_hidden else self.get("OPENAI_BASE_URL")

    def with_value(self, name: str, value: str) -> Environment:
        """Return a copy with one more variable."""
        process = {**self.process, name: value}
        return Environment(process, self.file, self.path, warnings=self.warnings, broken=self.broken)

    @property
    def not_passed_on(self) -> list[str]:
        """Names in the file that would change libraries."""
        kept = {*_MODELS, *_OF_ENGINE, *ADDRESS_VARIABLES}
        return [
            name
            for name in self.file
            if name not in kept and not _KEY.fullmatch(name) and _OF_LIBRARIES.fullmatch(name)
        ]


def load_environment(
    file: Path | None = None, process: MutableMapping[str, str] | None = None
) -> Environment:
    """Return the variables of the process and of ``file``, by default ``.env`` in the working directory.

    Args:
        file: of any owner, as the user named it.
        process: by default ``os.environ``. It gets the file's keys, models and addresses of local servers.

    Raises:
        TaskError: a named file cannot be read, or an unnamed ``.env`` is not the user's alone.
    """
    target = os.environ if process is None else process
    path = Path(ENV_FILE) if file is None else file
    try:
        data = _read(path, is_named=file is not None)
        if data is None:
            return Environment(dict(target))
        text, guessed = _decoded(data, path)
        variables = _parse(text, path)
    except _Broken as error:
        # It may belong to another program. It stops only a run that needs it.
        if file is None:
            return Environment(dict(target), path=path, broken=str(error))
        raise TaskError(str(error)) from error
    warnings = [] if guessed is None else [guess_warning(path, guessed)]
    found = Environment(dict(target), variables, path, warnings=warnings)
    for name, value in found.file.items():
        if _KEY.fullmatch(name) or name in _MODELS or name in ADDRESS_VARIABLES:
            target.setdefault(name, value)
    return found


def env_file_above() -> Path | None:
    """Return the caller's nearest ``.env`` above the working directory."""
    # It is not read. The command warns: without its BASE_URL, prompts would go to another host.
    try:
        folders = Path.cwd().parents
    except OSError:
        return None
    for folder in folders:
        path = folder / ENV_FILE
        try:
            found = path.lstat()
        except OSError:
            continue
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            return path
    return None


class _Broken(Exception):
    """A file cannot be read as variables."""


def _read(path: Path, *, is_named: bool) -> bytes | None:
    descriptor = None
    try:
        descriptor = _open(path, is_named=is_named)
        if descriptor is None:
            return None
        if not is_named:
            _check_own(path, os.fstat(descriptor))
        data = _read_up_to(descriptor, _MOST_BYTES + 1)
    except OSError as error:
        raise _Broken(f"cannot read {path}: {error.strerror}") from error
    finally:
        if descriptor is not None:
            os.close(descriptor)
    if len(data) > _MOST_BYTES:
        raise _Broken(f"{path} is larger than {_MOST_BYTES >> 20} MiB: it is no file of variables")
    return data


def _decoded(data: bytes, path: Path) -> tuple[str, str | None]:
    # PowerShell writes UTF-16, old editors Latin-1.
    try:
        return decode_text(data)
    except NotText as error:
        raise _Broken(f"{path}: {error}: save it as UTF-8") from error


def _open(path: Path, *, is_named: bool) -> int | None:
    if is_named:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # O_NONBLOCK: opening a FIFO would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if path.is_symlink():
            raise
        return None
    except PermissionError:
        if os.access(os.curdir, os.X_OK):
            raise
        # The working directory itself is closed to this user, as after `sudo -u`.
        return None
    # A virtual environment may have this name.
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return descriptor


def _read_up_to(descriptor: int, most: int) -> bytes:
    data = b""
    while len(data) < most and (block := os.read(descriptor, most - len(data))):
        data += block
    return data


def _check_own(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _Broken(f"{path} is no regular file")
    place = f"{path} in {_working_directory()}"
    read = f"To read it all the same: --env-file {path}; to read none: --env-file /dev/null"
    for each, what in ((found, place), (path.lstat(), f"the link {place}")):
        if each.st_uid != os.geteuid():
            raise TaskError(f"{what} belongs to another user (uid {each.st_uid}), and is refused. {read}")
    if others_may_write(found):
        raise TaskError(f"{place} can be written by other users, and is refused: chmod go-w {path}. {read}")


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "the working directory"


def _parse(text: str, path: Path) -> dict[str, str]:
    from dotenv.parser import parse_stream
    from dotenv.variables import parse_variables

    found, size = dict[str, str](), 0
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            raise _Broken(f"{path}, line {binding.original.line}: it is no NAME=VALUE")
        if binding.key is None or binding.value is None:
            continue
        parts: list[str] = []
        for atom in parse_variables(binding.value):
            # ``${NAME}`` is a variable of the file only: a URL with a key of the process in it would send
            # that key.
            name: str | None = getattr(atom, "name", None)
            if name is not None and name not in found and getattr(atom, "default", None) is None:
                raise _Broken(
                    f"{path}, line {binding.original.line}: ${{{name}}} is not set above; only variables of "
                    "this file can be used"
                )
            parts.append(atom.resolve(found))
        value = "".join(parts)
        size += len(value)
        if size > _MOST_BYTES:
            raise _Broken(f"{path}, line {binding.original.line}: the values are too long")
        if "\0" in value:
            raise _Broken(f"{path}, line {binding.original.line}: a value with a null character")
        if _NAME.fullmatch(binding.key):
            found[binding.key] = value
    return found
