"""What the sandbox's image is called and labelled. ``supdist-engine image build`` makes it (see ``Dockerfile``)."""

from __future__ import annotations

from typing import Literal, get_args

Variant = Literal["data"]

VARIANTS: tuple[Variant, ...] = get_args(Variant)
"""``data`` has numpy, pandas, matplotlib and pillow."""

REPOSITORY = "supdist-sandbox"
BASE = "python:3.12-slim"

PROTOCOL_LABEL = "supdist.protocol"
"""Its value is ``protocol.VERSION``: an engine takes no image that speaks another version."""

PYTHON_LABEL = "supdist.python"
"""Major and minor version of the image's Python: functions that the host pickles by value need the host's own."""


def default_tag(variant: Variant | None = None) -> str:
    """The name under which ``image build`` of this version leaves the image, and engines look for it."""
    from importlib.metadata import version

    suffix = f"-{variant}" if variant else ""
    return f"{REPOSITORY}:{version('supdist-engine')}{suffix}"
