#!/bin/sh
# Trains the teachers of the published tables, with the labels alone.
# A teacher that is finished is not trained again; one that fails does not stop the others.
#
# --dry_run prints the command lines.
# Overrides, as in MODELS="resnet56 vgg13" EPOCHS=4 sh scripts/run_cifar_vanilla.sh:
#   MODELS    models (wrn_40_2 resnet56 resnet110 resnet32x4 vgg13 ResNet50)
#   DATASET   data set (cifar100)
#   EPOCHS    epochs (240)
#   SAVE_DIR  where runs go (./save)
#   TRIAL     trial (0)
#   FLAGS     any further flags of train_teacher.py
. "$(dirname "$0")/common.sh"
only_dry_run "$@"

failed=
for model in ${MODELS:-wrn_40_2 resnet56 resnet110 resnet32x4 vgg13 ResNet50}; do
    train train_teacher.py --model "$model" --dataset "${DATASET:-cifar100}" --epochs "${EPOCHS:-240}" \
        --save_dir "${SAVE_DIR:-./save}" --trial "${TRIAL:-0}" ${FLAGS:-}
    code=$?
    # Stopped by a signal: the user means all of it.
    [ $code -ge 128 ] && exit $code
    [ $code -eq 0 ] || failed="$failed $model"
done
if [ -n "$failed" ]; then
    echo "error: these failed, see above:$failed" >&2
    exit 1
fi
