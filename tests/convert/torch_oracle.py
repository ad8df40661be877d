"""Reads Perdure's exports with PyTorch and DeepSpeed: python torch_oracle.py BUILD

BUILD has tests/convert's torch_convert_tool. Needs torch and deepspeed; compares with what make_torch_fixtures.py puts
into the fixture that was exported.
"""
import os
import subprocess
import sys
import tempfile
import types
import zipfile

import torch
import torch.distributed.checkpoint as dcp
from deepspeed.checkpoint.universal_checkpoint import load_hp_checkpoint_state
from deepspeed.utils.tensor_fragment import fragment_address, tensor_fragment

from llama_state import Model, make_state, megatron_slices

MODEL = Model(2)
STATE = make_state(MODEL, 1)


def equal(a, b):
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def check_plain(path):
    assert zipfile.ZipFile(path).testzip() is None
    got = torch.load(path, weights_only=True)
    assert torch.equal(got["matrix"], torch.arange(6.0).reshape(2, 3))
    assert got["scalar"].shape == () and got["scalar"] == 120 and got["none"].shape == (0, 4)
    assert got["ints"] == [0, -1, 300, 2**40] and got["texts"] == ["h\u00e9llo", 2.5, True, None]
    assert got["dict"] == {3: "three"}
    mapped = torch.load(path, weights_only=True, mmap=True)
    assert torch.equal(mapped["matrix"], got["matrix"])


def check_dcp(directory):
    wanted = {"model": {name: torch.zeros_like(parts[0]) for name, parts in STATE.items()},
              "optim": {"state": {name: {"exp_avg": torch.zeros_like(parts[0]), "exp_avg_sq": torch.zeros_like(parts[0]),
                                         "step": torch.tensor(0.0)} for name, parts in STATE.items()}},
              "iteration": 0, "samples": 0, "tokens": 0}
    dcp.load(wanted, checkpoint_id=directory)
    for name, parts in STATE.items():
        assert equal(wanted["model"][name], parts[0]), name
        state = wanted["optim"]["state"][name]
        assert equal(state["exp_avg"], parts[1]) and equal(state["exp_avg_sq"], parts[2]) and state["step"] == 120
    assert (wanted["iteration"], wanted["samples"], wanted["tokens"]) == (120, 960, 61440)
    # Without knowing what is there.
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
    with tempfile.TemporaryDirectory() as scratch:
        dcp_to_torch_save(directory, scratch + "/all.pt")
        everything = torch.load(scratch + "/all.pt", weights_only=False)
    assert equal(everything["model"]["lm_head.weight"], STATE["lm_head.weight"][0])


def check_universal(directory, ranks):
    """DeepSpeed's own loading into parameters that are cut over `ranks` tensor ranks."""
    padded = 24
    slices = [megatron_slices(MODEL, STATE, part, ranks, padded) for part in range(3)]
    for name in slices[0]:
        for rank in range(ranks):
            expected = [slices[part][name][rank] for part in range(3)]
            parameter = torch.nn.Parameter(torch.zeros_like(expected[0]))
            whole = fragment_address(numel=parameter.numel(), start=0)
            flat = torch.zeros(parameter.numel())
            parameter._hp_mapping = tensor_fragment(
                lp_fragment=None, lp_fragment_address=whole, hp_fragment=flat, hp_fragment_address=whole,
                gradient_dict=None, offload_gradient_dict=None, use_offload=False, param_group_index=0)
            load = types.MethodType(load_hp_checkpoint_state, parameter)
            step = load(f"{directory}/global_step120/zero/{name}", rank, ranks)
            assert step == 120
            got = [flat, parameter._hp_mapping.optim_fragment["exp_avg"], parameter._hp_mapping.optim_fragment["exp_avg_sq"]]
            rows = expected[0].shape[0]
            if "word_embeddings" in name or "lm_head" in name:  # Padding is zeros now.
                rows = max(0, min(rows, MODEL.vocab - rank * rows))
            for a, b in zip(got, expected):
                assert equal(a.reshape(b.shape)[:rows], b[:rows]), (name, rank)


def main(build):
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([os.path.join(build, "torch_convert_tool"), "export", directory], check=True)
        check_plain(directory + "/plain.pt")
        check_dcp(directory + "/dcp")
        for ranks in (1, 2, 4):
            check_universal(directory + "/universal", ranks)
        with open(directory + "/universal/latest_universal") as f:
            assert f.read() == "global_step120"
        optimizer = torch.load(directory + "/universal/global_step120/zero/optimizer_state.pt", weights_only=True)
        assert optimizer["ds_version"] == "0.15.0"
        assert [group["weight_decay"] for group in optimizer["param_groups"]] == [0.1, 0.0]
        model = torch.load(directory + "/universal/global_step120/mp_rank_00_model_states.pt", weights_only=True)
        assert model["iteration"] == 120 and model["checkpoint_version"] == 3.0
    print("torch and deepspeed read all exports, bit by bit as they were")


if __name__ == "__main__":
    main(sys.argv[1])
