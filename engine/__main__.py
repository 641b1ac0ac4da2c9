"""``python -m supdist.engine``: the console script ``supdist-engine``, with all its commands."""

from __future__ import annotations

from importlib.metadata import entry_points

# The console script is in tools, which no import of the engine may reach: it is found by its name.
(script,) = entry_points(group="console_scripts", name="supdist-engine")
script.load()()
