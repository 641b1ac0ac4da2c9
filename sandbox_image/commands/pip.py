#!/usr/bin/env python3
"""Stand in for pip, uv and conda in a sandbox: say how packages come in."""

from __future__ import annotations

import sys

MESSAGE = (
    "packages cannot be installed here: the sandbox has no network. Whoever opens the sandbox adds them: "
    "run `pip install --target DIR NAME` outside of it, and pass `--packages DIR`, "
    'SandboxConfig(packages=DIR) or a task\'s "sandbox": {"packages": DIR}. With containers, an image has '
    "them"
)


def main(arguments: object = None) -> int:
    """Write the message; return the exit code."""
    sys.stderr.write(f"{MESSAGE}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
