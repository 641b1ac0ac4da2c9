"""Start the zygote."""

from __future__ import annotations

from ...sandbox_image.guest import fork_hooks


def main() -> None:
    """Run the zygote; see ``zygote.main``."""
    # Before the import: the modules that the zygote imports register fork hooks.
    fork_hooks.defer()
    from .zygote import main

    main()
