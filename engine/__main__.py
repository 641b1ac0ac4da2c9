"""``python -m supdist.engine``: the console script ``supdist-engine``, with all its commands."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

# The console script is in tools, which no import of the engine may reach: it is found by its name.
scripts = entry_points(group="console_scripts", name="supdist-engine")
if not scripts:
    sys.exit("supdist-engine is not installed for this Python; in a checkout: pip install -e .")
next(iter(scripts)).load()()
