"""The commands ``supdist-engine trust``: what files may do without a question."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Annotated

import typer

from ...sandbox_image.text import printable
from .command import group_with_default, with_examples

app = typer.Typer(
    cls=group_with_default(
        "folder",
        "supdist-engine trust tasks/",
        "supdist-engine trust host gpu-box:8000 --key OPENAI_API_KEY",
        "supdist-engine trust list",
    ),
    help="Allow what a file may do only with your permission: import the Python code of its folder "
    "(`trust FOLDER`), or send a key to a host of your own (`trust host HOST --key VARIABLE`). "
    "To allow a path, answer `always` when you are asked.",
    epilog="Exit codes: 0 done, 2 the rule cannot be made, or the settings cannot be written.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("folder", cls=with_examples("supdist-engine trust folder tasks/"))
def trust_folder(
    folder: Annotated[
        Path, typer.Argument(help="The folder that holds task files and the code that they import.")
    ],
) -> None:
    """Let the task files of a folder import its Python code. You are asked again when a file changes."""
    from ..trust import folders
    from ..trust.settings import change_settings

    rule = folders.record(folder)
    change_settings(lambda settings: settings.with_folder(rule))
    print(printable(f"{rule.folder}: trusted with {len(rule.files)} files"))


@app.command(
    "host",
    cls=with_examples(
        "supdist-engine trust host gpu-box:8000 --key OPENAI_API_KEY",
        "supdist-engine trust host https://llm.example.org --key MY_KEY",
    ),
)
def trust_host(
    host: Annotated[
        str,
        typer.Argument(
            help="HOST:PORT for http and https. https://HOST[:PORT] or http://HOST[:PORT] for one of them. "
            "HOST alone means https.",
        ),
    ],
    *,
    key: Annotated[
        str, typer.Option(help="The name of the variable that holds the key, such as OPENAI_API_KEY.")
    ],
) -> None:
    """Allow one API key to go to one host."""
    from ..errors import TaskError
    from ..trust.hosts import parse_host
    from ..trust.settings import HostRule, change_settings

    origin = parse_host(host)
    is_set = bool(os.environ.get(key))
    if not (key.isidentifier() and key.isascii() and (key.isupper() or is_set)):
        # The value is not shown: it may be the key itself.
        raise TaskError("--key must be the name of a variable, such as OPENAI_API_KEY, not the key itself")
    change_settings(lambda settings: settings.with_host(HostRule(host=origin.url, key=key)))
    plain = ", over plain http too, which the network can read" if origin.is_readable_by_network else ""
    print(f"{key} may go to {origin.url}{plain}")
    if not is_set:
        print(f"{key} is not set in this shell", file=sys.stderr)


@app.command("list", cls=with_examples("supdist-engine trust list"))
def list_rules() -> None:
    """Print the rules as JSON."""
    from ..trust.settings import as_json, read_settings

    print(as_json(read_settings()))


@app.command("remove", cls=with_examples("supdist-engine trust remove gpu-box:8000"))
def remove(
    subject: Annotated[str, typer.Argument(help="A host or a folder, as `trust list` prints it.")],
) -> None:
    """Remove all rules about a host or a folder."""
    from ..errors import TaskError
    from ..trust.hosts import parse_host
    from ..trust.settings import Settings, change_settings, read_settings

    before = read_settings()
    # The rule may have the path without links, or the host with a scheme.
    names = {subject, str(Path(subject).resolve())}
    for scheme in ("", "http://", "https://"):
        with suppress(TaskError):  # it is a folder, or has its scheme
            names.add(parse_host(scheme + subject).url)
    found = [name for name in sorted(names) if before.without(name) != before]
    if not found:
        raise TaskError(f"there is no rule about {subject}; `supdist-engine trust list` prints all rules")
    change_settings(lambda settings: reduce(Settings.without, found, settings))
    print(printable(f"{', '.join(found)}: rules removed"))
