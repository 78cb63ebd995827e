#!/bin/sh
# Sets up as scripts/quickstart.sh does, checks the style and runs the tests; arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
requirements=requirements-test.txt
. scripts/setup.sh

.venv/bin/python -m ruff check .
exec .venv/bin/python -m pytest "$@"
