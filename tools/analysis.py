"""The results table of runs: ``python tools/analysis.py DIR…``, or ``python -m supdist.tools.analysis DIR…``.

Its import is absolute, because a file that is run by its path is in no package.
"""

from supdist.tools.experiments.analyze_cli import main

if __name__ == "__main__":
    main()
