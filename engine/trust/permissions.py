"""Decide what a file on the command line may do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...handlers.openai_options import OPENAI_URL
from ..errors import TaskError
from . import folders
from .environment import Environment
from .keys import KeyRules
from .paths import PathRules
from .questions import Ask, Question, always_no, command, shown
from .settings import Settings, change_settings, read_settings

# As ``api_key_env`` of ``OpenAIHandler``.
KeyNames = str | Mapping[str, str | None] | None


# A task file, models file or experiment is data, not a program.
# It may use its own folder and name any endpoint.
# The user allows more by an option, by a rule in the settings, or by an answer on the terminal.
class Permissions(Protocol):
    """What a file may do. Every method raises ``TaskError`` for what is not permitted."""

    # In every method ``name`` is the setting, for the message.
    def readable(self, path: Path, name: str) -> Path:
        """Return the path to read at."""
        ...

    def writable(self, path: Path, name: str) -> Path:
        """Return the path to write at."""
        ...

    @property
    def default_url(self) -> str | None:
        """The endpoint if the file names none; None means the handler's."""
        ...

    def keys(self, urls: Sequence[str], variable: str | None, name: str) -> KeyNames:
        """Return the variables whose keys go to some URLs; ``variable`` is the one that the file names."""
        ...

    def require_trust(self, name: str, what: str) -> None:
        """Check that the user trusts the code of the file's folder."""
        ...


class AllowAll:
    """Allows everything: the user's own Python program."""

    def readable(self, path: Path, name: str) -> Path:
        """See ``Permissions``."""
        return path

    def writable(self, path: Path, name: str) -> Path:
        """See ``Permissions``."""
        return path

    @property
    def default_url(self) -> str | None:
        """See ``Permissions``."""
        return None

    def keys(self, urls: Sequence[str], variable: str | None, name: str) -> KeyNames:
        """See ``Permissions``."""
        return variable

    def require_trust(self, name: str, what: str) -> None:
        """See ``Permissions``."""


UNBOUND = AllowAll()


@dataclass(frozen=True, slots=True)
class GrantedKeys(AllowAll):
    """Earlier decisions about keys; it holds no key."""

    default: str
    decided: Mapping[tuple[str, str | None], str | None]

    @property
    def default_url(self) -> str | None:
        """See ``Permissions``."""
        return self.default

    def keys(self, urls: Sequence[str], variable: str | None, name: str) -> KeyNames:
        """Return the decided variables."""
        # A URL without a decision gets no key.
        return {url: self.decided.get((url, variable)) for url in urls}


# The name of a task that comes from stdin.
STDIN = Path("-")


class Bound:
    """Permissions of a file on the command line.

    Args:
        read, write: more paths that the user allowed.
        trust_endpoint: whether every endpoint of the file may get keys.
        is_own: whether the user wrote it; then only its keys are checked.
        settings: by default the user's.

    Raises:
        TaskError: the settings are damaged.
    """

    def __init__(
        self,
        subject: Path,
        environment: Environment,
        *,
        read: Sequence[Path] = (),
        write: Sequence[Path] = (),
        trust_endpoint: bool = False,
        ask: Ask = always_no,
        is_own: bool = False,
        settings: Settings | None = None,
    ) -> None:
        self.subject = subject
        self.environment = environment
        self._settings = read_settings() if settings is None else settings
        self._ask = ask
        self._is_trusted = self._is_own = is_own
        self._keys = KeyRules(subject, environment, self._settings, ask, trust_endpoint)
        self._paths = PathRules(subject, self._settings, ask, tuple(read), tuple(write))
        self._decided: dict[tuple[str, str | None], str | None] = {}

    @property
    def withheld(self) -> Sequence[str]:
        """Messages about keys that were not sent."""
        return self._keys.withheld

    def readable(self, path: Path, name: str) -> Path:
        """Return the path without links."""
        return path if self._is_own else self._paths.within(path, name, "read")

    def writable(self, path: Path, name: str) -> Path:
        """See ``readable``."""
        return path if self._is_own else self._paths.within(path, name, "write")

    @property
    def default_url(self) -> str:
        """See ``Permissions``."""
        return self.environment.openai_url() or OPENAI_URL

    def keys(self, urls: Sequence[str], variable: str | None, name: str) -> KeyNames:
        """See ``Permissions``."""
        for url in urls:
            if (url, variable) not in self._decided:
                self._decided[url, variable] = (
                    self._keys.default_variable(url)
                    if variable is None
                    else self._keys.named_variable(url, variable, name)
                )
        return {url: self._decided[url, variable] for url in urls}

    def granted_keys(self) -> GrantedKeys:
        """Return the decisions about keys."""
        return GrantedKeys(self.default_url, dict(self._decided))

    def require_trust(self, name: str, what: str) -> None:
        """See ``Permissions``."""
        if self._is_trusted:
            return
        if self.subject == STDIN:
            # A rule holds the hash of the file that it trusts.
            raise TaskError(
                f"stdin: {name} {what}; only a file can be trusted with that. "
                "Save the task beside its modules, and run the file: supdist-engine run task.json"
            )
        why = folders.distrust_reason(self._settings, self.subject)
        if why is not None:
            folder = folders.folder_of(self._settings, self.subject)
            # Before the question: a folder that others can change raises here.
            rule = folders.record(folder)
            wish = f"{shown(self.subject)}: {name} {what}, and {why}"
            if self._ask(Question(f"{wish}. Trust {shown(folder)} as it is now?", ("yes", "no"))) != "yes":
                raise TaskError(
                    f"{wish}. If you have read what is in it: {command('supdist-engine trust', folder)}"
                )
            change_settings(lambda settings: settings.with_folder(rule))
        self._is_trusted = True


def readable_files(permissions: Permissions, path: Path, name: str) -> Path:
    """Return the path to read a file or a folder's files at.

    Raises:
        TaskError: one may not be read.
    """
    place = permissions.readable(path, name)
    if place.is_dir():
        # A link in the folder may lead out of it.
        for each in place.iterdir():
            if each.is_symlink():
                permissions.readable(each, name)
            # Reading it would wait for a writer.
            if each.is_fifo():
                raise TaskError(f"{name}: {shown(each)} is no regular file")
    return place
