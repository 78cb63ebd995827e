# Sourced by the scripts beside it: --help, the repository's root as the folder, and $python.

case " $* " in
*" --help "* | *" -h "*)
    # The comment at the script's head.
    sed -n '2,/^[^#]/{ s/^# \{0,1\}//p; }' "$0"
    exit 0
    ;;
esac

# Prints a command, and with --dry_run does no more.
run() {
    echo
    echo "\$ $*"
    [ -n "${dry_run:-}" ] || "$@"
}

# As run, of a training script; it ends with this one, however that ends.
train() {
    echo
    echo "\$ python $*"
    [ -n "${dry_run:-}" ] || "$python" -m helper.util.children "$@"
}

# Takes --dry_run, and refuses whatever else.
only_dry_run() {
    dry_run=
    for argument in "$@"; do
        if [ "$argument" != --dry_run ]; then
            echo "error: $argument is not understood: see --help" >&2
            exit 2
        fi
        dry_run=yes
    done
}

# cd must not look elsewhere, nor print.
unset CDPATH
cd "$(dirname "$0")/.." || exit 1
python=python
if [ -x .venv/bin/python ]; then
    python=.venv/bin/python
elif ! command -v python >/dev/null; then
    python=python3
fi
