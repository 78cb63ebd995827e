#!/bin/sh
# Sets up as scripts/quickstart.sh does, checks style, imports, types and docs, and runs the tests; arguments go to pytest.
#
# --dry_run prints the command lines, and installs nothing.
. "$(dirname "$0")/common.sh"
set -eu
if [ "${1:-}" = --dry_run ]; then
    only_dry_run "$@"
    shift
fi
requirements=requirements-test.txt
[ -n "${dry_run:-}" ] || . scripts/setup.sh

run "$python" -m ruff check .
run "$python" scripts/check_imports.py
run "$python" -m mypy .
run "$python" scripts/docs_tables.py --check
# As many processes as cores (eight at most), of one thread each.
export OMP_NUM_THREADS=1
run "$python" -m pytest -n auto --maxprocesses 8 --dist worksteal "$@"
