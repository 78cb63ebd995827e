"""Trains a student by each of several methods, one after the other, in this process or in those of torchrun.

python tests/every_method.py SAVE_DIR TEACHER FLAGS METHOD,METHOD...
"""
import shlex
import sys

import train_student
from helper import processes

if __name__ == "__main__":
    save_dir, teacher, flags, methods = sys.argv[1:]
    for method in methods.split(","):
        sys.argv = ["train_student.py", "--path_t", teacher, "--save_dir", save_dir, "--distill", method,
                    *shlex.split(flags)]
        train_student.main()
    processes.leave()
