#!/bin/sh
# Checks this code on the machine's GPU, then times it: sh scripts/verify_gpu.sh [--out DIR] [--patience X] [--dry_run]
. "$(dirname "$0")/common.sh"
exec "$python" scripts/verify_gpu.py "$@"
