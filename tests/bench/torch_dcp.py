"""Saves and loads a state with PyTorch's distributed checkpoint: torch_dcp.py DIRECTORY TENSORS.json ROUNDS

TENSORS.json: [[name, rows, columns], …]; each has a parameter and two moments, fp32. One process, as ckpt_bench. Files
are synced before a save counts, and the page cache has nothing of them before a load. Prints, as JSON, the version and
for each number of threads the seconds of saves and loads.
"""
import json
import os
import pathlib
import shutil
import sys
import time

import torch
import torch.distributed.checkpoint as dcp

THREADS = (1, 2, 4)


def make_state(tensors, fill):
    make = torch.rand if fill else torch.zeros
    return {f"{part}.{name}": make(rows, cols) for part in ("param", "exp_avg", "exp_avg_sq") for name, rows, cols in tensors}


def forget(folder):
    for path in pathlib.Path(folder).iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main():
    directory, tensors, rounds = sys.argv[1], json.loads(pathlib.Path(sys.argv[2]).read_text()), int(sys.argv[3])
    torch.manual_seed(1)
    state, other = make_state(tensors, True), make_state(tensors, False)
    folder = os.path.join(directory, "torch-dcp")
    result = {"torch": torch.__version__, "save": {t: [] for t in THREADS}, "load": []}
    for i in range(rounds + 1):  # The first one warms up.
        for threads in THREADS:
            shutil.rmtree(folder, ignore_errors=True)
            writer = dcp.FileSystemWriter(folder, thread_count=threads, sync_files=True)
            took = seconds(lambda: dcp.save(state, storage_writer=writer, no_dist=True))
            if i:
                result["save"][threads].append(took)
        forget(folder)
        took = seconds(lambda: dcp.load(other, storage_reader=dcp.FileSystemReader(folder), no_dist=True))
        if i:
            result["load"].append(took)
    if any(not torch.equal(state[name], other[name]) for name in state):
        sys.exit("what PyTorch loaded is not what it saved")
    shutil.rmtree(folder)
    print(json.dumps(result))


main()
