#!/bin/sh
# Makes .venv with a file of requirements in it: sh scripts/setup.sh [requirements.txt]
# What is installed already is reused. --dry_run says what would be done. The scripts beside this one source it, with
# $requirements set, in the repository's root.
case $0 in
*setup.sh)
    . "$(dirname "$0")/common.sh"
    requirements=requirements.txt
    case ${1:-} in
    --dry_run)
        echo "would make .venv, unless it is there, and install $requirements into it"
        exit 0
        ;;
    ?*) requirements=$1 ;;
    esac
    if [ ! -f "$requirements" ]; then
        echo "error: $requirements: no such file in $(pwd): give requirements.txt, or see --help" >&2
        exit 2
    fi
    ;;
esac

if [ ! -x .venv/bin/python ]; then
    for setup_python in "${PYTHON:-}" python3.12 python3.11 python3.10 python3 python; do
        if [ -n "$setup_python" ] && "$setup_python" -c \
            'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            break
        fi
        setup_python=
    done
    if [ -z "$setup_python" ]; then
        echo "error: Python 3.10, 3.11 or 3.12 is needed: install one, or name it, as in PYTHON=/path/to/python3.11 sh $0" >&2
        exit 2
    fi
    echo "making .venv with $("$setup_python" --version)"
    "$setup_python" -m venv .venv || {
        echo "error: $setup_python cannot make a virtual environment: install its venv module (python3-venv)" >&2
        exit 2
    }
fi
# The stamp holds the requirements that were installed; all files count, since one names another.
setup_stamp=".venv/installed-$requirements"
if [ "$(cat requirements*.txt)" != "$(cat "$setup_stamp" 2>/dev/null)" ]; then
    echo "installing $requirements into .venv (once; PyTorch with CUDA takes about 5 GB)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements" || {
        echo "error: the installation failed: see above, then run this again" >&2
        exit 1
    }
    cat requirements*.txt >"$setup_stamp"
fi
python=.venv/bin/python
