#!/bin/sh
# Fetches the six published teachers, or those that are named, into save/models; see --help.
set -eu
unset CDPATH
cd "$(dirname "$0")/.."
python=python3
if [ -x .venv/bin/python ]; then
    python=.venv/bin/python
fi
exec "$python" scripts/fetch_pretrained_teachers.py "$@"
