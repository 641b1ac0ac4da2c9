"""Run the console script ``supdist-engine`` as ``python -m supdist.engine``, with all its commands."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

# The console script is in tools, which the engine must not import: its entry point names it.
scripts = entry_points(group="console_scripts", name="supdist-engine")
if not scripts:
    sys.exit("supdist-engine is not installed for this Python; in a checkout: pip install -e .")
next(iter(scripts)).load()()
