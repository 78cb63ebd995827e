#!/bin/sh
# From a bare Python to a distilled student: a teacher and five students on scikit-learn's digits, by the same scripts
# that train on CIFAR-100, and a table of them. Minutes on two cores, the installation into .venv left aside.
#
# --dry_run prints the command lines, and installs nothing.
. "$(dirname "$0")/common.sh"
only_dry_run "$@"
set -eu
requirements=requirements.txt
[ -n "$dry_run" ] || . scripts/setup.sh

save=save/quickstart
common="--dataset digits --epochs 12 --lr_decay_epochs 8,10 --save_dir $save"
teacher=$save/models/resnet20_digits_lr_0.05_decay_0.0005_trial_0/resnet20_last.pth

train train_teacher.py --model resnet20 $common
student() { train train_student.py --path_t "$teacher" --model_s resnet8 --warm_up 0 $common "$@"; }
student --distill kd -r 1 -a 0
student --distill kd -r 0.1 -a 0.9
student --distill kd -r 0.1 -a 0.9 --avg 0.5
student --distill dkd -a 1 -b 2
student --distill dkd -a 1 -b 2 --avg 0.5

run "$python" scripts/summary.py --save_dir "$save"
