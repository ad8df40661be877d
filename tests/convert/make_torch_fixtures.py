"""Writes fixtures.tar.gz and golden.txt beside it, with PyTorch and DeepSpeed: python make_torch_fixtures.py

The build unpacks the archive. Needs torch, numpy and deepspeed (its classes end up in the pickles, and its own converter makes the universal
checkpoint and checks the Megatron-DeepSpeed ones). Everything is deterministic but torch's ids of saving. Read the
diff of golden.txt before committing.
"""
import argparse
import collections
import gzip
import os
import shutil
import tarfile
import tempfile

import numpy
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from llama_state import PARTS, Model, golden_lines, make_state, megatron_slices

UNIVERSAL_INFO = {
    "universal_checkpoint_version": 0.2,
    "vocabulary_parameter_patterns": [r"\d+.word_embeddings.weight", r"\d+.lm_head.weight"],
    "tp_replicated_parameter_patterns": [r"\d+.input_layernorm.weight", r"\d+.post_attention_layernorm.weight",
                                         r"\d+.weight"],
    "parameter_with_row_parallelism_patterns": [r"\d+.mlp.dense_4h_to_h.weight",
                                                r"\d+.self_attention.dense.weight"],
    "parameter_with_2_sub_params_cat_dim_0": [r"\d+.mlp.dense_h_to_4h.weight"],
}


def megatron_args(model, layout, padded):
    return argparse.Namespace(
        num_layers=model.layers, hidden_size=model.hidden, num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads, kv_channels=model.head_dim, ffn_hidden_size=model.ffn,
        layernorm_epsilon=1e-5, normalization="rmsnorm", swiglu=True, add_bias_linear=False,
        untie_embeddings_and_output_weights=True, apply_layernorm_1p=False, use_rotary_position_embeddings=True,
        rotary_percent=1.0, padded_vocab_size=padded, tensor_model_parallel_size=layout[0],
        pipeline_model_parallel_size=layout[1], consumed_train_samples=960, consumed_train_tokens=61440,
        num_experts=[1], seed=1234, lr=3e-4, data_path=None, params_dtype=torch.bfloat16)


def stage_of(name, model, stages):
    index = int(name.split(".")[0])
    layer = min(max(index - 2, 0), model.layers - 1)
    return layer * stages // model.layers


class Partition:
    """One data rank's share of a parameter group, as DeepSpeed lays it out."""

    def __init__(self, names, tensors_by_part, data_rank, data_ranks):
        self.maps, self.flat = collections.OrderedDict(), []
        sizes = [tensors_by_part[0][name].numel() for name in names]
        total = sum(sizes)
        padded = -(-total // (2 * data_ranks)) * 2 * data_ranks
        share = padded // data_ranks
        begin = data_rank * share
        self.padding = padded - total if data_rank == data_ranks - 1 else 0
        for tensors in tensors_by_part:
            flat = torch.cat([tensors[name].reshape(-1) for name in names] + [torch.zeros(padded - total)])
            self.flat.append(flat[begin:begin + share].clone())
        offset = 0
        for name, size in zip(names, sizes):
            first, last = max(offset, begin), min(offset + size, begin + share)
            if first < last:
                self.maps[name] = fragment_address(numel=last - first, start=first - begin)
            offset += size


def save_partition(path, groups, kind, data_ranks, step):
    states, values = {}, []
    for i, group in enumerate(groups):
        states[i] = {"exp_avg": group.flat[1], "exp_avg_sq": group.flat[2]}
        if kind == "torch":
            states[i] = {"step": torch.tensor(float(step))} | states[i]
        keep = len(group.flat[0]) - (group.padding if kind == "zero" else 0)
        values.append(group.flat[0][:keep].clone())
    param_groups = [{"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": decay, "params": [i]}
                    for i, decay in enumerate([0.1, 0.0])]
    if kind != "torch":
        for group in param_groups:
            group["step"] = step
    optimizer = {"clip_grad": 1.0, "base_optimizer_state": {"state": states, "param_groups": param_groups},
                 "single_partition_of_fp32_groups": values, "group_paddings": [g.padding for g in groups],
                 "partition_count": [data_ranks] * len(groups), "ds_version": "0.15.0",
                 "param_slice_mappings": [g.maps for g in groups]}
    if kind == "zero":
        optimizer |= {"zero_stage": ZeroStageEnum.optimizer_states, "loss_scaler": LossScaler(1.0),
                      "dynamic_loss_scale": False, "overflow": False}
    torch.save({"optimizer_state_dict": optimizer, "ds_config": {}, "ds_version": "0.15.0"}, path)


def save_megatron(directory, model, state, layout, kind, padded, step=120):
    """kind: "torch" (bf16 optimizer over Adam), "fused" (over FusedAdam) or "zero" (ZeRO 1)."""
    tensor, stages, data = layout
    where = os.path.join(directory, f"global_step{step}")
    os.makedirs(where)
    slices = [megatron_slices(model, state, part, tensor, padded) for part in range(3)]
    for stage in range(stages):
        names = [name for name in slices[0] if stage_of(name, model, stages) == stage]
        for rank in range(tensor):
            mp = stage * tensor + rank
            own = [{name: slices[part][name][rank] for name in names} for part in range(3)]
            grouped = [[n for n in names if own[0][n].dim() == 2], [n for n in names if own[0][n].dim() == 1]]
            for data_rank in range(data):
                groups = [Partition(group, own, data_rank, data) for group in grouped]
                prefix = "zero_pp_rank" if kind == "zero" else "bf16_zero_pp_rank"
                save_partition(f"{where}/{prefix}_{data_rank}_mp_rank_{mp:02d}_optim_states.pt", groups, kind, data, step)
            shapes = [collections.OrderedDict((name, own[0][name].shape) for name in group) for group in grouped]
            content = {"module": None, "args": megatron_args(model, layout, padded), "checkpoint_version": 3.0,
                       "iteration": step, "tokens": 61440, "param_shapes": shapes, "global_steps": step,
                       "universal_checkpoint_info": UNIVERSAL_INFO | {"original_vocab_size": model.vocab,
                                                                      "padded_vocab_size": padded},
                       "dp_world_size": data, "mp_world_size": tensor}
            if kind == "zero":
                content["rng_state"] = [{"np_rng_state": ("MT19937", numpy.arange(8, dtype=numpy.uint32), 3, 0, 0.0),
                                         "torch_rng_state": torch.arange(8, dtype=torch.uint8),
                                         "random_rng_state": (3, (2**31, 2**32 - 1), None)}]
            torch.save(content, f"{where}/mp_rank_{mp:02d}_model_states.pt")
    if stages > 1:
        for rank in range(tensor):
            torch.save({"word_embeddings.weight": slices[0]["1.word_embeddings.weight"][rank].bfloat16()},
                       f"{where}/layer_01-model_{rank:02d}-model_states.pt")
    with open(os.path.join(directory, "latest"), "w") as f:
        f.write(f"global_step{step}")
    return where


def convert(source, output):
    ds_to_universal.main(argparse.Namespace(
        input_folder=source, output_folder=output, num_extract_workers=1, num_merge_workers=1, keep_temp_folder=False,
        strict=True, inject_missing_state=False))


def check_universal(directory, model, state):
    """DeepSpeed's own merge must give what the fixture was made from."""
    for part, file in enumerate(["fp32", "exp_avg", "exp_avg_sq"]):
        expected = megatron_slices(model, state, part, 1, model.vocab)
        for name, slices in expected.items():
            got = torch.load(f"{directory}/zero/{name}/{file}.pt", weights_only=False)["param"]
            assert torch.equal(got.reshape(slices[0].shape), slices[0]), (name, file)


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
