"""Where the zygote begins: before it imports what shims and guests need."""

from __future__ import annotations

from ...sandbox_image.guest import fork_hooks


def main() -> None:
    """See ``zygote.main``."""
    fork_hooks.keep()
    from .zygote import main

    main()
