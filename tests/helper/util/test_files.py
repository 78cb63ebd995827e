"""Files appear whole or not at all."""
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from helper.util.files import whole, write_json, write_torch
from tests.support import scripts

WRITER = """
import sys
sys.path.insert(0, {root!r})
import torch
from helper.util.files import write_torch
number = 0
while True:
    number += 1
    write_torch({path!r}, {{"number": torch.full((200_000,), float(number))}})
    print(number, flush=True)
"""


def test_a_file_is_whole_whenever_its_writer_is_killed(tmp_path):
    path = tmp_path / "state.pth"
    script = tmp_path / "writer.py"
    script.write_text(WRITER.format(root=str(scripts.ROOT), path=str(path)))
    moments, numbers = random.Random(0), set()
    for _ in range(15):
        process = scripts.Process(str(script))
        process.until("1\n")
        time.sleep(moments.uniform(0, 0.1))
        process.signal(signal.SIGKILL)
        process.wait()
        number = torch.load(path, weights_only=True)["number"]
        assert (number == number[0]).all() and number[0] >= len(process.stdout.split()) - 1
        numbers.add(number[0].item())
    assert len(numbers) > 1


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_json(str(path), {"good": True})
    with pytest.raises(OSError, match="No space left"), whole(str(path)) as file, open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), file.fileno())
        file.write(b"lost")
    assert path.read_text() == '{\n  "good": true\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
    write_torch(str(path), {"more": 1})
    assert torch.load(path, weights_only=True) == {"more": 1}


def test_processes_that_write_one_path_do_not_meet(tmp_path):
    """Each writes a name of its own beside the place, so that all succeed and the place is whole at any time."""
    path = tmp_path / "shared.json"
    code = ("import sys; from helper.util.files import write_json\n"
            "for i in range(60): write_json(sys.argv[1], {'number': [int(sys.argv[2])] * 2000})")
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(i)], cwd=scripts.ROOT,
                                stderr=subprocess.PIPE, text=True) for i in range(4)]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            number = json.loads(path.read_text())["number"]
            assert len(number) == 2000 and len(set(number)) == 1
    assert [writer.wait() for writer in writers] == [0] * 4, [writer.stderr.read() for writer in writers]
    assert [entry.name for entry in tmp_path.iterdir()] == ["shared.json"]
