"""Megatron-DeepSpeed's checkpoint of a small Llama, as DeepSpeed lays it out, and DeepSpeed's own conversion of it.

Shared by make_torch_fixtures.py and tests/bench/reshard_bench.py, which calls it as a script: it then writes the
checkpoint that a JSON text describes. Stage by stage, with tensors that are made on demand, so that a state need not fit
into memory. Needs torch, numpy and deepspeed.
"""
import argparse
import collections
import json
import os
import sys
import zlib

import numpy
import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from llama_state import PARTS, Model, megatron_layer, megatron_slices

UNIVERSAL_INFO = {
    "universal_checkpoint_version": 0.2,
    "vocabulary_parameter_patterns": [r"\d+.word_embeddings.weight", r"\d+.lm_head.weight"],
    "tp_replicated_parameter_patterns": [r"\d+.input_layernorm.weight", r"\d+.post_attention_layernorm.weight",
                                         r"\d+.weight"],
    "parameter_with_row_parallelism_patterns": [r"\d+.mlp.dense_4h_to_h.weight",
                                                r"\d+.self_attention.dense.weight"],
    "parameter_with_2_sub_params_cat_dim_0": [r"\d+.mlp.dense_h_to_4h.weight"],
}


class Progress:
    def __init__(self, step=120, samples=960, tokens=61440, rate=3e-4):
        self.step, self.samples, self.tokens, self.rate = step, samples, tokens, rate


class Partition:
    """One data rank's share of a parameter group, as DeepSpeed lays it out."""

    def __init__(self, flat, sizes, data_rank, data_ranks):
        total = sum(sizes.values())
        padded = len(flat[0])
        share = padded // data_ranks
        begin = data_rank * share
        self.maps, self.padding = collections.OrderedDict(), padded - total if data_rank == data_ranks - 1 else 0
        self.flat = [part[begin:begin + share].clone() for part in flat]
        offset = 0
        for name, size in sizes.items():
            first, last = max(offset, begin), min(offset + size, begin + share)
            if first < last:
                self.maps[name] = fragment_address(numel=last - first, start=first - begin)
            offset += size


def partitions(own, names, data_ranks):
    sizes = {name: own[0][name].numel() for name in names}
    total = sum(sizes.values())
    padding = torch.zeros(-(-total // (2 * data_ranks)) * 2 * data_ranks - total)
    flat = [torch.cat([part[name].reshape(-1) for name in names] + [padding]) for part in own]
    return [Partition(flat, sizes, data_rank, data_ranks) for data_rank in range(data_ranks)]


def save_partition(path, groups, kind, data_ranks, progress):
    states, values = {}, []
    for i, group in enumerate(groups):
        states[i] = {"exp_avg": group.flat[1], "exp_avg_sq": group.flat[2]}
        if kind == "torch":
            states[i] = {"step": torch.tensor(float(progress.step))} | states[i]
        keep = len(group.flat[0]) - (group.padding if kind == "zero" else 0)
        values.append(group.flat[0][:keep].clone())
    param_groups = [{"lr": progress.rate, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": decay, "params": [i]}
                    for i, decay in enumerate([0.1, 0.0])]
    if kind != "torch":
        for group in param_groups:
            group["step"] = progress.step
    optimizer = {"clip_grad": 1.0, "base_optimizer_state": {"state": states, "param_groups": param_groups},
                 "single_partition_of_fp32_groups": values, "group_paddings": [g.padding for g in groups],
                 "partition_count": [data_ranks] * len(groups), "ds_version": "0.15.0",
                 "param_slice_mappings": [g.maps for g in groups]}
    if kind == "zero":
        optimizer |= {"zero_stage": ZeroStageEnum.optimizer_states, "loss_scaler": LossScaler(1.0),
                      "dynamic_loss_scale": False, "overflow": False}
    torch.save({"optimizer_state_dict": optimizer, "ds_config": {}, "ds_version": "0.15.0"}, path)


def megatron_args(model, layout, padded, progress):
    return argparse.Namespace(
        num_layers=model.layers, hidden_size=model.hidden, num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads, kv_channels=model.head_dim, ffn_hidden_size=model.ffn,
        layernorm_epsilon=1e-5, normalization="rmsnorm", swiglu=True, add_bias_linear=False,
        untie_embeddings_and_output_weights=True, apply_layernorm_1p=False, use_rotary_position_embeddings=True,
        rotary_percent=1.0, padded_vocab_size=padded, tensor_model_parallel_size=layout[0],
        pipeline_model_parallel_size=layout[1], consumed_train_samples=progress.samples,
        consumed_train_tokens=progress.tokens, num_experts=[1], seed=1234, lr=3e-4, data_path=None,
        params_dtype=torch.bfloat16)


def model_states(model, layout, kind, padded, progress, shapes):
    """What mp_rank_MM_model_states.pt holds; weights stand in the files of layers."""
    content = {"module": None, "args": megatron_args(model, layout, padded, progress), "checkpoint_version": 3.0,
               "iteration": progress.step, "tokens": progress.tokens, "param_shapes": shapes,
               "global_steps": progress.step,
               "universal_checkpoint_info": UNIVERSAL_INFO | {"original_vocab_size": model.vocab,
                                                              "padded_vocab_size": padded},
               "dp_world_size": layout[2], "mp_world_size": layout[0]}
    if kind == "zero":
        content["rng_state"] = [{"np_rng_state": ("MT19937", numpy.arange(8, dtype=numpy.uint32), 3, 0, 0.0),
                                 "torch_rng_state": torch.arange(8, dtype=torch.uint8),
                                 "random_rng_state": (3, (2**31, 2**32 - 1), None)}]
    return content


def save_layers(where, own, rank, layers):
    """The 16-bit weights of the given layers, one file each."""
    for layer in layers:
        begin = f"{layer}."
        torch.save({name.removeprefix(begin): value.bfloat16() for name, value in own[0].items()
                    if name.startswith(begin)}, f"{where}/layer_{layer:02d}-model_{rank:02d}-model_states.pt")


def stage_of(layer, model, stages):
    """Of Megatron's layer: 1 embedding, 2 and on the blocks, then the norm and the head."""
    return min(max(layer - 2, 0), model.layers - 1) * stages // model.layers


def save_megatron(directory, model, state, layout, kind, padded, progress=Progress(), all_layers=False):
    """kind: "torch" (bf16 optimizer over Adam), "fused" (over FusedAdam) or "zero" (ZeRO 1); layout: tensor, stages, data.

    `all_layers`: files of all layers' weights, and ZeRO's name for a model in bf16, as Megatron leaves them.
    """
    tensor, stages, data = layout
    where = os.path.join(directory, f"global_step{progress.step}")
    os.makedirs(where)
    prefix = "zero_pp_rank" if kind == "zero" and not all_layers else "bf16_zero_pp_rank"
    for stage in range(stages):
        layers = [layer for layer in range(1, model.layers + 4) if stage_of(layer, model, stages) == stage]
        slices = [{name: ranks for layer in layers
                   for name, ranks in megatron_layer(model, state, part, tensor, padded, layer).items()}
                  for part in range(len(PARTS))]
        names = list(slices[0])
        for rank in range(tensor):
            mp = stage * tensor + rank
            own = [{name: part[name][rank] for name in names} for part in slices]
            grouped = [[n for n in names if own[0][n].dim() == 2], [n for n in names if own[0][n].dim() == 1]]
            for data_rank, groups in enumerate(zip(*[partitions(own, group, data) for group in grouped])):
                save_partition(f"{where}/{prefix}_{data_rank}_mp_rank_{mp:02d}_optim_states.pt", groups, kind, data,
                               progress)
            shapes = [collections.OrderedDict((name, own[0][name].shape) for name in group) for group in grouped]
            torch.save(model_states(model, layout, kind, padded, progress, shapes),
                       f"{where}/mp_rank_{mp:02d}_model_states.pt")
            if all_layers or (stages > 1 and stage == 0):
                save_layers(where, own, rank, layers if all_layers else [1])
    with open(os.path.join(directory, "latest"), "w") as f:
        f.write(f"global_step{progress.step}")
    return where


def convert(source, output):
    ds_to_universal.main(argparse.Namespace(
        input_folder=source, output_folder=output, num_extract_workers=1, num_merge_workers=1, keep_temp_folder=False,
        strict=True, inject_missing_state=False))


def check_universal(directory, model, state):
    """DeepSpeed's own merge must give what the checkpoint was made from."""
    for part, file in enumerate(["fp32", "exp_avg", "exp_avg_sq"]):
        expected = megatron_slices(model, state, part, 1, model.vocab)
        for name, slices in expected.items():
            got = torch.load(f"{directory}/zero/{name}/{file}.pt", weights_only=False)["param"]
            assert torch.equal(got.reshape(slices[0].shape), slices[0]), (name, file)


class StateOnDemand:
    """As make_state's, but each tensor is made when it is asked for."""

    def __init__(self, model):
        self.shapes = model.tensors()

    def __getitem__(self, name):
        return TensorOnDemand(name, self.shapes[name])


class TensorOnDemand:
    def __init__(self, name, shape):
        self.name, self.shape = name, shape

    def __getitem__(self, part):
        random = numpy.random.default_rng([zlib.crc32(self.name.encode()), part])
        values = random.standard_normal(self.shape, dtype=numpy.float32)
        return torch.from_numpy(values * values if PARTS[part] == "exp_avg_sq" else values)


def main(directory, text):
    """text: {"model": arguments of Model, "layout": [T, P, D], "padded": rows, "progress": arguments of Progress}."""
    wanted = json.loads(text)
    model = Model(**wanted["model"])
    save_megatron(directory, model, StateOnDemand(model), wanted["layout"], "zero", wanted["padded"],
                  Progress(**wanted["progress"]), all_layers=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
