#!/bin/sh
# Makes a table by scripts/reproduce.py: sh scripts/table.sh same|different|ikd|methods, or by the scripts
# table_same.sh, table_different.sh, table_ikd.sh, run_cifar_distill.sh. The same command again resumes what is
# unfinished, leaves what is done, and tries again what failed.
#
# --dry_run prints the command lines; other arguments go to reproduce.py too.
# Overrides, as in EPOCHS=20 TRIALS=1 METHODS=ce,kd,dkd sh scripts/table_same.sh:
#   TEACHERS  fetch, train, a folder, or NAME=FILE ... (fetch)
#   TEACHER   of one pair: a checkpoint (the published one)
#   STUDENT   of one pair: a model (the table's)
#   PAIRS     teacher:student,... (those of the table)
#   METHODS   method,... (those of the table)
#   AVG       of table ikd: weights of the IKD term (1,3,6.5,10)
#   INTRA_T   of table ikd: its temperatures (1,2,4)
#   TRIALS    trials (1,2,3; of table methods: 1)
#   EPOCHS    epochs (240)
#   DATASET   data set (cifar100)
#   SAVE_DIR  where runs go (./save)
#   JOBS      runs at a time, on each GPU where there are any (one a GPU, one a core)
#   SLURM     a partition: run there, as job arrays
#   FLAGS     any further flags of train_student.py
. "$(dirname "$0")/common.sh"

name=${1:-}
case $name in
same | different | ikd | methods) shift ;;
*)
    echo "error: say which table: sh scripts/table.sh same, different, ikd or methods; see --help" >&2
    exit 2
    ;;
esac
if [ -n "${TEACHER:-}${STUDENT:-}" ]; then
    PAIRS=${TEACHER:-resnet32x4}:${STUDENT:-resnet8x4}
fi
[ "$name" = methods ] && trials=${TRIAL:-1} || trials=1,2,3
if [ "$name" = ikd ]; then
    set -- --grid "avg=${AVG:-1,3,6.5,10} intra_T=${INTRA_T:-1,2,4}" "$@"
fi
exec "$python" scripts/reproduce.py --table "$name" --teachers ${TEACHERS:-fetch} --trials "${TRIALS:-$trials}" \
    --dataset "${DATASET:-cifar100}" --save_dir "${SAVE_DIR:-./save}" --flags "${FLAGS:-}" \
    ${PAIRS:+--pairs "$PAIRS"} ${METHODS:+--methods "$METHODS"} ${EPOCHS:+--epochs "$EPOCHS"} \
    ${JOBS:+--jobs "$JOBS"} ${SLURM:+--slurm "$SLURM"} "$@"
