"""Runs a benchmark: ``python tools/run_experiment.py --task qasper -n 20``; the same as ``supdist-engine eval``."""

# A file that is run by its path belongs to no package, so that relative imports fail.
from supdist.tools.evals.eval_cli import main

if __name__ == "__main__":
    main()
