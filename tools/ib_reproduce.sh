#!/usr/bin/env bash
# All combinations of two supervisors and two workers: bash tools/ib_reproduce.sh [-n 2] [--dry-run] [...], as of grid.py.
# PYTHON names an interpreter that has the package.
set -euo pipefail
here=$(dirname -- "${BASH_SOURCE[0]}")
exec "${PYTHON:-python3}" "$here/grid.py" "$here/ib_reproduce.toml" --out logs/qasper "$@"
