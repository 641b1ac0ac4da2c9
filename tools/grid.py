"""Runs a grid: ``python tools/grid.py grid.toml``."""

# A file that is run by its path belongs to no package, so that relative imports fail.
from supdist.tools.evals.grid_cli import main

if __name__ == "__main__":
    main()
