"""Runs scripts in processes of their own without importing PyTorch and torchvision anew for each.

Reads a JSON line {"root", "argv", "out", "err", "environment"} and answers with the pid of a fork that has them
loaded, and nothing of this repository; it runs `python argv...` in `root`, with what is added to the environment, its
output going to the two files. Reads {"wait": pid} and answers with its exit code (negative for a signal) once it has
ended.
"""
import gc
import json
import os
import runpy
import sys
import time
import traceback

import sklearn.datasets  # noqa: F401
import torch
import torchvision.transforms.v2  # noqa: F401

running, ended = set(), {}


def run(root, argv, out, err, environment):
    os.chdir(root)
    os.environ.update(environment)
    for name, number in ((out, 1), (err, 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv, sys.path[0] = argv, root
    code = 0
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else end.code is not None
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # tearing PyTorch down, page by copied page, would take most of a second


torch.set_num_threads(1)
gc.freeze()  # so that the collector of a fork does not write to, and thus copy, what it shares
for line in sys.stdin:
    command = json.loads(line)
    if "wait" in command:
        pid = command["wait"]
        # Not a blocking wait: the asker may give up and ask for another.
        deadline = time.monotonic() + command["timeout"]
        while pid in running and time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                running.discard(pid)
                ended[pid] = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.01)
        answer = ended.get(pid)
    else:
        answer = os.fork()
        if answer == 0:
            run(**command)
        running.add(answer)
    print(json.dumps(answer), flush=True)
