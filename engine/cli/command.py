"""The base classes of commands: help pages in groups, with examples, and mistakes with a near name."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from .help_page import write_commands, write_examples, write_parameters
from .near_names import advice_on_command, advice_on_option, plain, shown

_MOST_COLUMNS, _LEAST_COLUMNS = 80, 24


class Command(TyperCommand):
    """A command.

    Attributes:
        examples: whole command lines that work as typed; tests/test_help.py runs them.
    """

    examples: Sequence[str] = ()

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Return the context; its help page fits the terminal, also a narrow one."""
        extra.setdefault("terminal_width", _columns())
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. An error names what is near."""
        with _helpful_errors(self, ctx):
            return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line behind the command."""
        return [self.options_metavar or "", *map(_place, _arguments(self, ctx))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and the options in groups."""
        write_parameters(formatter, ctx, self.get_params(ctx))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the end: exit codes, then examples."""
        super().format_epilog(ctx, formatter)
        write_examples(formatter, self.examples)


class Group(TyperGroup):
    """A command that has commands.

    Attributes:
        examples: as of ``Command``.
        default: the command whose name may be left out.
    """

    examples: Sequence[str] = ()
    default: str | None = None

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Return the context; its help page fits the terminal, also a narrow one."""
        extra.setdefault("terminal_width", _columns())
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. An error names what is near."""
        with _helpful_errors(self, ctx):
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command. An error names what is near."""
        visible = [name for name, each in self.commands.items() if not each.hidden]
        if args and args[0] not in self.commands and not ctx.resilient_parsing and args[0][:1] != "-":
            ctx.fail(advice_on_command(args[0], visible))
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands and the options, each in groups."""
        write_commands(formatter, [(name, self.commands[name]) for name in self.list_commands(ctx)])
        write_parameters(formatter, ctx, self.get_params(ctx))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the end: exit codes, then examples."""
        super().format_epilog(ctx, formatter)
        write_examples(formatter, self.examples)


def with_examples(*examples: str, base: type[Command] = Command) -> type[Command]:
    """Return a class of commands with these examples."""

    return type(base.__name__, (base,), {"examples": examples})


def with_group_examples(*examples: str) -> type[Group]:
    """Return a class of groups with these examples."""
    return type(Group.__name__, (Group,), {"examples": examples})


def group_with_default(command: str, *examples: str) -> type[Group]:
    """Return a group in which the name of one command may be left out."""

    class DefaultGroup(Group):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            # `broker models.json` means `broker serve models.json`, but `broker keygn` is a mistake.
            if args and args[0] not in (*self.commands, "--help", "-h"):
                if (near := _mistyped(args[0], self.commands)) is not None:
                    ctx.fail(f"No such command '{shown(args[0])}'. Did you mean '{near}'?")
                args = [command, *args]
            return super().parse_args(ctx, args)

    DefaultGroup.examples, DefaultGroup.default = examples, command
    return DefaultGroup


def _mistyped(word: str, commands: Iterable[str]) -> str | None:
    if word.startswith("-") or os.path.lexists(word):
        return None
    return next(iter(difflib.get_close_matches(word, list(commands), n=1, cutoff=0.7)), None)


@contextmanager
def _helpful_errors(command: Any, ctx: Any) -> Generator[None]:
    try:
        yield
    # Typer exports no class of its other errors.
    except Exception as error:
        found: Any = error
        if isinstance(error, typer.BadParameter):
            found.message = plain(found.message, choices=_choices(found.param, ctx))
        elif hasattr(error, "possibilities"):
            names = [name for each in command.get_params(ctx) if not _is_hidden(each) for name in each.opts]
            found.message = advice_on_option(
                found.option_name, names, of_program=ctx.parent is None and isinstance(command, Group)
            )
            found.possibilities = None
        raise


def _choices(param: Any, ctx: Any) -> list[str]:
    if param is None or not hasattr(param, "shell_complete"):
        return []
    return [str(each.value) for each in param.shell_complete(ctx, "")]


def _is_hidden(param: Any) -> bool:
    return param.param_type_name != "option" or bool(getattr(param, "hidden", False))


def _arguments(command: Any, ctx: Any) -> list[Any]:
    return [each for each in command.get_params(ctx) if each.param_type_name == "argument"]


def _place(argument: Any) -> str:
    many = "" if argument.nargs == 1 or argument.metavar else "..."
    name = f"{argument.metavar or argument.name.upper()}{many}"
    return name if argument.required or " " in name else f"[{name}]"


def _columns() -> int:
    # Click's own formatter is never narrower than 50 columns.
    return max(_LEAST_COLUMNS, min(shutil.get_terminal_size().columns, _MOST_COLUMNS)) - 2
