#!/bin/sh
# The students of the same family as their teacher: 7 pairs, every method of the published table, and IKD.
# The same command goes on with what is unfinished, leaves what is done, and tries again what failed.
#
# Overrides, as in EPOCHS=20 TRIALS=1 METHODS=ce,kd,dkd sh scripts/table_same.sh; further arguments go to reproduce.py:
#   TEACHERS  fetch, train, a folder, or NAME=FILE ... (fetch)
#   PAIRS     teacher:student,... (those of the table)
#   METHODS   method,... (those of the table)
#   TRIALS    trials (1,2,3)
#   EPOCHS    epochs (240)
#   DATASET   data set (cifar100)
#   SAVE_DIR  where runs go (./save)
#   JOBS      runs at a time, on each GPU where there are any (one a GPU, one a core)
#   SLURM     a partition: run there, as job arrays
#   FLAGS     any further flags of train_student.py
cd "$(dirname "$0")/.." || exit
python=python
[ -x .venv/bin/python ] && python=.venv/bin/python

exec $python scripts/reproduce.py --table same --teachers ${TEACHERS:-fetch} --trials "${TRIALS:-1,2,3}" \
    --dataset "${DATASET:-cifar100}" --save_dir "${SAVE_DIR:-./save}" --flags "$FLAGS" \
    ${PAIRS:+--pairs "$PAIRS"} ${METHODS:+--methods "$METHODS"} ${EPOCHS:+--epochs "$EPOCHS"} \
    ${JOBS:+--jobs "$JOBS"} ${SLURM:+--slurm "$SLURM"} "$@"
