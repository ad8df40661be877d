"""Trains with DeepSpeed's own engine on the CPU and has Perdure import what it saves: python deepspeed_oracle.py BUILD

BUILD has torch_convert_tool. Needs torch and deepspeed. The engine's optimizers (ZeRO 1 and 2, and the bf16 one) cut a few
parameters with Megatron's names over two or three data ranks; DeepSpeed's converter says what is in the checkpoint.
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


def train(rank, ranks, directory, config, port):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_SIZE=str(ranks),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu")
    import deepspeed
    deepspeed.init_distributed("gloo")
    module = make_module(megatron_slices(MODEL, make_state(MODEL, 21), 0, 1, PADDED))
    groups = [{"params": [p for p in module.parameters() if p.dim() == dim], "weight_decay": decay}
              for dim, decay in [(2, 0.1), (1, 0.0)]]
    engine, *_ = deepspeed.initialize(model=module, optimizer=torch.optim.AdamW(groups, lr=1e-2), config={
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "bf16": {"enabled": True},
        "gradient_clipping": 1.0, "zero_allow_untested_optimizer": True} | config)
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


if __name__ == "__main__":
    main(sys.argv[1])
