"""Prints the results table of runs: ``python tools/analysis.py DIR…``."""

# A file that is run by its path belongs to no package, so that relative imports fail.
from supdist.tools.evals.analyze_cli import main

if __name__ == "__main__":
    main()
