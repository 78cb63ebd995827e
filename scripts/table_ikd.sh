#!/bin/sh
# IKD's weight and temperature: dkd+IKD over a grid of --avg and --intra_T, resnet32x4 -> resnet8x4, beside dkd.
# The same command goes on with what is unfinished, leaves what is done, and tries again what failed.
#
# Overrides, as in EPOCHS=20 TRIALS=1 METHODS=ce,kd,dkd sh scripts/table_ikd.sh; further arguments go to reproduce.py:
#   TEACHERS  fetch, train, a folder, or NAME=FILE ... (fetch)
#   PAIRS     teacher:student,... (those of the table)
#   METHODS   method,... (those of the table)
#   AVG       weights of the IKD term (1,3,6.5,10)
#   INTRA_T   its temperatures (1,2,4)
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

exec $python scripts/reproduce.py --table ikd --teachers ${TEACHERS:-fetch} --trials "${TRIALS:-1,2,3}" \
    --dataset "${DATASET:-cifar100}" --save_dir "${SAVE_DIR:-./save}" --flags "$FLAGS" \
    ${AVG:+--avg "$AVG"} ${INTRA_T:+--intra_T "$INTRA_T"} \
    ${PAIRS:+--pairs "$PAIRS"} ${METHODS:+--methods "$METHODS"} ${EPOCHS:+--epochs "$EPOCHS"} \
    ${JOBS:+--jobs "$JOBS"} ${SLURM:+--slurm "$SLURM"} "$@"
