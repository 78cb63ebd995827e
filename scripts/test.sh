#!/bin/sh
# Sets up as scripts/quickstart.sh does, checks the style and runs the tests; arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
requirements=requirements-test.txt
. scripts/setup.sh

.venv/bin/python -m ruff check .
.venv/bin/python scripts/check_imports.py
# As many processes as cores (eight at most), of one thread each.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal "$@"
