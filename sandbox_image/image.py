"""The names and labels of the sandbox image."""

from __future__ import annotations

from typing import Literal, get_args

Variant = Literal["data"]

# `data` has numpy, pandas, matplotlib and pillow.
VARIANTS: tuple[Variant, ...] = get_args(Variant)

REPOSITORY = "supdist-sandbox"
BASE = "python:3.12-slim"

# Its value is `protocol.VERSION`. An engine refuses images with another version.
PROTOCOL_LABEL = "supdist.protocol"

# Major and minor version of Python. Functions pickled by value need the version of the host.
PYTHON_LABEL = "supdist.python"


def default_tag(variant: Variant | None = None) -> str:
    """Return the tag of this version's image."""
    from importlib.metadata import version

    suffix = f"-{variant}" if variant else ""
    return f"{REPOSITORY}:{version('supdist-engine')}{suffix}"
