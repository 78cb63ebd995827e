#!/bin/sh
# One student per method with the published weights, resnet32x4 -> resnet8x4, and a table of them.
# A student that is finished is not trained again; one that fails does not stop the others.
#
# Overrides, as in DATASET=digits EPOCHS=4 FLAGS="--warm_up 0" sh scripts/run_cifar_distill.sh:
#   TEACHER   checkpoint (./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth)
#   STUDENT   model (resnet8x4)
#   DATASET   data set (cifar100)
#   EPOCHS    epochs (240)
#   SAVE_DIR  where runs go (./save)
#   TRIAL     trial (1)
#   FLAGS     any further flags of train_student.py
cd "$(dirname "$0")/.." || exit
python=python
[ -x .venv/bin/python ] && python=.venv/bin/python

SAVE_DIR=${SAVE_DIR:-./save}
failed=
student() {
    echo
    echo "\$ python train_student.py $*"
    $python train_student.py --path_t "${TEACHER:-./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth}" \
        --model_s "${STUDENT:-resnet8x4}" --dataset "${DATASET:-cifar100}" --epochs "${EPOCHS:-240}" \
        --save_dir "$SAVE_DIR" --trial "${TRIAL:-1}" "$@" $FLAGS
    code=$?
    # Stopped by a signal: the user means all of it.
    [ $code -ge 128 ] && exit $code
    [ $code -eq 0 ] || failed="$failed
    $*"
}

student --distill kd -r 0.1 -a 0.9 -b 0
student --distill dkd -r 1 -a 1 -b 8
student --distill nkd -r 1 -b 1.5 --kd_T 1
student --distill wttm -r 1 -a 0.1 -b 3
student --distill hint -a 0 -b 100
student --distill attention -a 0 -b 1000
student --distill similarity -a 0 -b 3000
student --distill correlation -a 0 -b 0.02
student --distill vid -a 0 -b 1
student --distill rkd -a 0 -b 1
student --distill pkt -a 0 -b 30000
student --distill abound -a 0 -b 1
student --distill factor -a 0 -b 200
student --distill fsp -a 0 -b 1
student --distill nst -a 0 -b 50
student --distill kdsvd -a 0 -b 1   # no weight is published
student --distill crd -a 0 -b 0.8
student --distill crd -a 1 -b 0.8   # CRD+KD
# IKD's weight and temperature are published with dkd alone; with kd they are the same two.
student --distill kd -r 0.1 -a 0.9 -b 0 --avg 6.5 --intra_T 1.0
student --distill dkd -r 1 -a 1 -b 8 --avg 6.5 --intra_T 1.0

# Beyond the published code: later methods at their authors' weights, see docs/methods.md.
student --distill kd -r 0.1 -a 9 -b 0 --kd_T 2 --logit_std on
student --distill ctkd -r 0.1 -a 0.9 -b 0
student --distill dist -r 1 -a 0 -b 2
student --distill mlkd -r 0.1 -a 0 -b 0.9
student --distill reviewkd -r 1 -a 0 -b 5
student --distill sdd -r 1 -a 1 -b 8 --sdd_M 1,2
student --distill catkd -r 1 -a 0 -b 15 --cat_size 2 --cat_norm off
student --distill norm -r 0.1 -a 0 -b 1
student --distill rld -r 1 -a 1 -b 8
student --distill ldrld -r 1 -a 10.5 -b 7

echo
$python scripts/summary.py --save_dir "$SAVE_DIR"
if [ -n "$failed" ]; then
    echo "error: these failed, see above:$failed" >&2
    exit 1
fi
