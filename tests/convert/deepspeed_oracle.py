"""DeepSpeed's own engine on the CPU, both ways: python deepspeed_oracle.py BUILD

BUILD has torch_convert_tool. Needs torch and deepspeed. The engine's optimizers (ZeRO 1 and 2, and the bf16 one) cut a few
parameters with Megatron's names over two or three data ranks. Perdure imports what they save, where DeepSpeed's converter
says what is in the checkpoint; and they load the universal checkpoint that Perdure exports, and step on from it.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import zlib

import torch
import torch.distributed as dist

from llama_state import PARTS, Model, make_state, megatron_slices

MODEL = Model(1)
PADDED = 20
FILES = ["fp32", "exp_avg", "exp_avg_sq"]


def make_module(slices):
    root = torch.nn.Module()
    for name, (value,) in slices.items():
        *path, last = name.split(".")
        module = root
        for key in path:
            if not hasattr(module, key):
                module.add_module(key, torch.nn.Module())
            module = getattr(module, key)
        module.register_parameter(last, torch.nn.Parameter(value.clone()))
    root.forward = lambda x: sum((p.float() * (x + i)).pow(2).mean() for i, p in enumerate(root.parameters()))
    return root


def start(rank, ranks, config, port, module):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_SIZE=str(ranks),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu")
    import deepspeed
    deepspeed.init_distributed("gloo")
    groups = [{"params": [p for p in module.parameters() if p.dim() == dim], "weight_decay": decay}
              for dim, decay in [(2, 0.1), (1, 0.0)]]
    engine, *_ = deepspeed.initialize(model=module, optimizer=torch.optim.AdamW(groups, lr=1e-2), config={
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "bf16": {"enabled": True},
        "gradient_clipping": 1.0, "zero_allow_untested_optimizer": True} | config)
    return engine


def train(rank, ranks, directory, config, port):
    engine = start(rank, ranks, config, port, make_module(megatron_slices(MODEL, make_state(MODEL, 21), 0, 1, PADDED)))
    for step in range(3):
        engine.backward(engine(torch.tensor(1.0 + step + rank)))
        engine.step()
    engine.save_checkpoint(directory, tag="global_step3", client_state={
        "iteration": 3, "tokens": 6, "checkpoint_version": 3.0})
    dist.barrier()


def hugging_face(universal):
    """The merged parameters under Perdure's names."""
    zero = f"{universal}/zero/"

    def load(name, part):
        return torch.load(f"{zero}{name}/{FILES[part]}.pt", weights_only=False)["param"].detach().reshape(
            megatron_slices(MODEL, make_state(MODEL, 21), 0, 1, PADDED)[name][0].shape)

    for part in range(3):
        for name in MODEL.tensors():
            layer = "2." if name.startswith("model.layers.") else ""
            last = name.split(".")[-2]
            if last in ("q_proj", "o_proj", "down_proj"):
                key = {"q_proj": "self_attention.query", "o_proj": "self_attention.dense", "down_proj": "mlp.dense_4h_to_h"}
                value = load(f"2.{key[last]}.weight", part)
            elif last in ("k_proj", "v_proj"):
                whole = load("2.self_attention.key_value.weight", part)
                value = whole.view(MODEL.kv_heads, 2, MODEL.head_dim, -1)[:, int(last == "v_proj")]
            elif last in ("gate_proj", "up_proj"):
                value = load("2.mlp.dense_h_to_4h.weight", part).chunk(2)[int(last == "up_proj")]
            elif layer:
                value = load(f"2.{last}.weight", part)
            else:
                key = {"embed_tokens": "1.word_embeddings.weight", "norm": "3.weight", "lm_head": "4.lm_head.weight"}[last]
                value = load(key, part)[:MODEL.vocab]
            yield name, PARTS[part], zlib.crc32(value.contiguous().float().numpy().tobytes())


def load(rank, ranks, universal, config, port):
    """Every rank compares what the engine loaded with the state that was exported, then all take a step."""
    model = Model(2)
    slices = [megatron_slices(model, make_state(model, 1), part, 1, PADDED) for part in range(3)]
    module = make_module({name: [torch.zeros_like(value)] for name, (value,) in slices[0].items()})
    engine = start(rank, ranks, config | {"checkpoint": {"load_universal": True}}, port, module)
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
    engine.optimizer.load_state_dict(None, load_optimizer_states=True, load_from_fp32_weights=False,
                                     checkpoint_folder=universal)
    for name, parameter in module.named_parameters():
        got = [safe_get_full_fp32_param(parameter), safe_get_full_optimizer_state(parameter, "exp_avg"),
               safe_get_full_optimizer_state(parameter, "exp_avg_sq")]
        rows = model.vocab if "word_embeddings" in name or "lm_head" in name else parameter.shape[0]  # Behind: zeros.
        for part, value in enumerate(got):
            # As numbers: the ranks' pieces are added up, which makes 0 of -0. torch_oracle.py compares bits.
            assert torch.equal(value.view(parameter.shape)[:rows], slices[part][name][0][:rows]), (name, part)
    # exp_avg_sq has any sign here, so no more is asked for than that a step runs.
    engine.backward(engine(torch.tensor(1.0 + rank)))
    engine.step()
    steps = {float(state["step"]) for state in engine.optimizer.optimizer.state.values()}
    assert steps == {121.0}, steps
    assert {group["weight_decay"] for group in engine.optimizer.param_groups} == {0.1, 0}
    dist.barrier()


def check_load(build, label, ranks, config, port):
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([os.path.join(build, "torch_convert_tool"), "export", directory], check=True)
        torch.multiprocessing.spawn(load, args=(ranks, f"{directory}/universal/global_step120", config, port), nprocs=ranks)
    print(f"{label}, {ranks} data ranks: the engine has the numbers of the export, and steps on")


def check(build, label, ranks, config, port):
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as universal:
        torch.multiprocessing.spawn(train, args=(ranks, directory, config, port), nprocs=ranks)
        from deepspeed.checkpoint import ds_to_universal
        ds_to_universal.main(argparse.Namespace(
            input_folder=directory + "/global_step3", output_folder=universal, num_extract_workers=1,
            num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=True))
        expected = {(name, part): crc for name, part, crc in hugging_face(universal)}
        printed = subprocess.run([os.path.join(build, "torch_convert_tool"), "megatron", directory, "1"], check=True,
                                 capture_output=True, text=True).stdout.splitlines()
        assert printed[0] == f"tensor 1 x pipeline 1 x data {ranks}, iteration 3, optimizer step 3", printed[0]
        got = {(name, part): int(crc, 16) for name, part, crc in map(str.split, printed[1:])}
        assert got == expected, [key for key in expected if got.get(key) != expected[key]]
        zeros = zlib.crc32(bytes(4 * MODEL.vocab * MODEL.hidden))
        assert got[("lm_head.weight", "exp_avg")] != zeros
    print(f"{label}, {ranks} data ranks: the import has the bits of DeepSpeed's converter")


def main(build):
    zero = {"zero_optimization": {"stage": 1}}
    check(build, "ZeRO 1", 2, zero, 29611)
    check(build, "ZeRO 2", 3, {"zero_optimization": {"stage": 2}}, 29612)
    check(build, "bf16 optimizer", 3, zero | {"data_types": {"grad_accum_dtype": "fp32"}}, 29613)
    check_load(build, "ZeRO 1", 2, zero, 29614)
    check_load(build, "ZeRO 2", 3, {"zero_optimization": {"stage": 2}}, 29615)
    check_load(build, "bf16 optimizer", 2, zero | {"data_types": {"grad_accum_dtype": "fp32"}}, 29616)


if __name__ == "__main__":
    main(sys.argv[1])
