"""Trains a student by each of several methods, one after the other, in this process or in those of torchrun.

python tests/support/every_method.py SAVE_DIR TEACHER FLAGS METHOD,METHOD...
"""
import shlex
import sys

import torch

import train_student
from helper import build
from helper.util import distributed
from tests.support import cpu_sync_bn


def check_shares():
    """Every sample is exactly one process's: of the test images, and of each batch of a plan."""
    for samples in (3, 7, 355):
        seen = torch.zeros(samples)
        seen[distributed.own_slice(samples)] += 1
        assert distributed.all_reduce_sum(seen).eq(1).all(), samples
        plan = torch.arange(samples), torch.arange(samples)
        own, view = distributed.own_share(plan, 8)
        assert distributed.all_reduce_sum(torch.bincount(own, minlength=samples)).eq(1).all(), samples
        assert own.equal(view)
        assert (len(own[own < 8]) - min(8, samples) / distributed.world_size()) < 1, samples


if __name__ == "__main__":
    save_dir, teacher, flags, methods = sys.argv[1:]
    build.convert_sync_batchnorm = cpu_sync_bn.convert_sync_batchnorm
    for method in methods.split(","):
        sys.argv = ["train_student.py", "--path_t", teacher, "--save_dir", save_dir, "--distill", method,
                    *shlex.split(flags)]
        train_student.main()
    check_shares()
    distributed.destroy()
