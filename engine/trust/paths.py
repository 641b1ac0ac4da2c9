"""Decide which paths a file may have read and written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...sandbox_image.paths import is_visible_below
from ..errors import TaskError
from ..private_files import ResolvedPath, resolved
from .questions import Ask, Question, command, shown
from .settings import Direction, PathRule, Settings, change_settings


@dataclass(slots=True)
class PathRules:
    """The rules for one file, and the paths that the user allowed."""

    subject: Path
    settings: Settings
    ask: Ask
    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()

    def within(self, path: Path, name: str, direction: Direction) -> ResolvedPath:
        """Return the real path if the file may use it. Ask the user if no rule decides.

        Raises:
            TaskError: the file may not use it.
        """
        try:
            place, root = ResolvedPath(resolved(Path(path))), resolved(self.subject.parent)
            if _is_part_of(place, root, direction) or self._is_allowed(place, root, direction):
                return place
            if direction == "read":
                # A missing file is an error, and no question.
                place.stat()
        except OSError as error:
            raise TaskError(
                f"{shown(self.subject)}: {name}: cannot use {shown(path)}: {error.strerror}"
            ) from error
        where = f"outside its folder {shown(root)}"
        if place.is_relative_to(root):
            where = "its whole folder" if place == root else "a hidden file"
        wish = f"{shown(self.subject)}: {name} would {direction} {shown(place)}, {where}"
        answer = self.ask(Question(f"{wish}. Allow it?", ("once", "always", "no")))
        if answer not in ("once", "always"):
            raise TaskError(f"{wish}. To allow it: {command(f'--allow-{direction}', place)}")
        if answer == "always":
            rule = PathRule(asking=str(root), folder=str(place), direction=direction)
            self.settings = change_settings(lambda settings: settings.with_path(rule))
        elif direction == "write":
            self.write = (*self.write, place)
        else:
            self.read = (*self.read, place)
        return place

    def _is_allowed(self, place: Path, root: Path, direction: Direction) -> bool:
        remembered = (
            Path(rule.folder)
            for rule in self.settings.paths
            # Who may write a path may read it.
            if rule.asking == str(root) and rule.direction in (direction, "write")
        )
        typed = self.write if direction == "write" else (*self.read, *self.write)
        return any(place.is_relative_to(resolved(each)) for each in (*typed, *remembered))


def _is_part_of(place: Path, root: Path, direction: Direction) -> bool:
    # The whole folder holds more than what belongs to the file.
    return is_visible_below(place, root) and (direction == "write" or place != root)
