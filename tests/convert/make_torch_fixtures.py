"""Writes fixtures.tar.gz and golden.txt beside it, with PyTorch and DeepSpeed: python make_torch_fixtures.py

The build unpacks the archive. Needs torch, numpy and deepspeed (its classes end up in the pickles, and its own converter makes the universal
checkpoint and checks the Megatron-DeepSpeed ones). Everything is deterministic but torch's ids of saving. Read the
diff of golden.txt before committing.
"""
import argparse
import collections
import gzip
import math
import os
import shutil
import tarfile
import tempfile

import numpy
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from llama_state import Model, golden_lines, make_state, make_training_state
from megatron_checkpoint import Progress, check_universal, convert, save_megatron

def save_dcp(rank, directory, state, port):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))

    def shard(name, tensor):
        if "embed_tokens" in name or "input_layernorm" in name:
            return distribute_tensor(tensor, mesh, [Shard(0)])
        if "o_proj" in name:
            return distribute_tensor(tensor, mesh, [Shard(1)])
        return tensor

    optimizer = {name: {"exp_avg": shard(name, parts[1]), "exp_avg_sq": shard(name, parts[2]),
                        "step": torch.tensor(120.0)} for name, parts in state.items()}
    dcp.save({"model": {name: shard(name, parts[0]) for name, parts in state.items()},
              "optim": {"state": optimizer, "param_groups": [{"lr": 0.1, "params": list(state)}]},
              "iteration": 120}, checkpoint_id=directory)
    dist.destroy_process_group()


def save_types(path):
    base = torch.arange(24, dtype=torch.float32)
    torch.save({
        "none": None, "true": True, "false": False, "ints": [0, 255, 256, 65535, 65536, -1, -(2**31), 2**31, 2**62, -(2**63)],
        "float": -2.5, "text": "h\u00e9llo", "bytes": b"\x00\xff", "tuple": (), "tuples": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "ordered": collections.OrderedDict(a=1, b=2), "size": torch.Size([2, 3]), "device": torch.device("cpu"), "dtype": torch.bfloat16,
        "set": {1}, "numpy": numpy.float64(0.5), "namespace": argparse.Namespace(x=1),
        "f32": torch.tensor([[1.5, -0.0], [float("inf"), 1e-45]]), "bf16": torch.tensor([1.5, -3e38, 1e-40], dtype=torch.bfloat16),
        "f16": torch.tensor([1.5, -65504, 6e-8, float("-inf")], dtype=torch.float16), "f64": torch.tensor([0.1], dtype=torch.float64),
        "i64": torch.tensor([7]), "bool": torch.tensor([True]), "scalar": torch.tensor(120.0), "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)), "part": base[5:9], "transposed": base.view(4, 6).t(),
        "columns": base.view(4, 6)[:, 1:5:2], "expanded": base[3:4].expand(5),
    }, path)


def pack(directory, path):
    """Equal content gives equal bytes."""
    def plain(entry):
        entry.mtime = entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for root, folders, files in os.walk(directory):
                folders.sort()
                for name in sorted(files):
                    full = os.path.join(root, name)
                    tar.add(full, os.path.relpath(full, directory), filter=plain)


def main(directory, scratch):
    golden = []
    one, two = Model(1), Model(2)
    for label, model, layout, kind, padded, seed in [("t2p2d2", two, (2, 2, 2), "torch", 20, 1),
                                                     ("t1p1d3", one, (1, 1, 3), "zero", 18, 2),
                                                     ("t4p1d2", one, (4, 1, 2), "fused", 24, 3)]:
        state = make_state(model, seed)
        where = save_megatron(f"{directory}/{label}", model, state, layout, kind, padded)
        convert(where, f"{scratch}/{label}")
        check_universal(f"{scratch}/{label}", model, state)
        golden += golden_lines(label, state)
        if label == "t4p1d2":
            shutil.copytree(f"{scratch}/{label}", f"{directory}/universal/global_step120")
            with open(f"{directory}/universal/latest_universal", "w") as f:
                f.write("global_step120")
            golden += golden_lines("universal", state)
    # Of a model that perdure run accepts, in the middle of its decay: what tests/launch trains on. All files of Megatron's.
    trained = Model(2, heads=4, kv_heads=2, head_dim=8, vocab=60)
    state = make_training_state(trained, 6)
    rate = 3e-4 + 0.5 * (1 + math.cos(math.pi * (320 - 64) / (800 - 64))) * (3e-3 - 3e-4)
    where = save_megatron(f"{directory}/trained/megatron", trained, state, (2, 2, 2), "zero", 64,
                          Progress(step=40, samples=320, tokens=320 * 32, rate=rate), all_layers=True)
    convert(where, f"{directory}/trained/universal")
    check_universal(f"{directory}/trained/universal", trained, state)
    state = make_state(one, 4)
    torch.multiprocessing.spawn(save_dcp, args=(f"{directory}/dcp", state, 29517), nprocs=2)
    golden += golden_lines("dcp", state)
    rounded = {name: parts[0].bfloat16() for name, parts in make_state(one, 5).items()}
    dcp.save(rounded, checkpoint_id=f"{directory}/dcp_bf16")
    golden += golden_lines("dcp_bf16", {name: [value] for name, value in rounded.items()}, parts=1)
    save_types(f"{directory}/types.pt")
    here = os.path.dirname(os.path.abspath(__file__))
    pack(directory, os.path.join(here, "fixtures.tar.gz"))
    with open(os.path.join(here, "golden.txt"), "w") as f:
        f.writelines(golden)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as converted:
        main(made, converted)
