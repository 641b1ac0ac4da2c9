"""Runs ``eval``: ``python tools/run_experiment.py --task qasper -n 20``."""

# A file that is run by its path belongs to no package, so that relative imports fail.
from supdist.tools.evals.eval_cli import main

if __name__ == "__main__":
    main()
