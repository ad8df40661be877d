"""One training step of the bench model in PyTorch, at its best on one thread: eager and compiled, whichever is faster.

Prints one JSON line: tokens_per_second, version, mode. usage: torch_step.py [--steps N] [--dtype fp32|bf16] [--eager]
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))
from torch_llama import Llama  # noqa: E402
from train_bench import BATCH, CONTEXT, MODEL  # noqa: E402


def weights(m):
    rng, head = np.random.default_rng(1), m["hidden"] // m["heads"]
    kv = m["kv_heads"] * head

    def normal(rows, cols):
        return (0.02 * rng.standard_normal((rows, cols))).astype(np.float32)

    result = {"model.embed_tokens.weight": normal(m["vocab"], m["hidden"])}
    for i in range(m["layers"]):
        p = f"model.layers.{i}."
        result[p + "input_layernorm.weight"] = np.ones((1, m["hidden"]), np.float32)
        result[p + "self_attn.q_proj.weight"] = normal(m["hidden"], m["hidden"])
        result[p + "self_attn.k_proj.weight"] = normal(kv, m["hidden"])
        result[p + "self_attn.v_proj.weight"] = normal(kv, m["hidden"])
        result[p + "self_attn.o_proj.weight"] = normal(m["hidden"], m["hidden"])
        result[p + "post_attention_layernorm.weight"] = np.ones((1, m["hidden"]), np.float32)
        result[p + "mlp.gate_proj.weight"] = normal(m["ffn"], m["hidden"])
        result[p + "mlp.up_proj.weight"] = normal(m["ffn"], m["hidden"])
        result[p + "mlp.down_proj.weight"] = normal(m["hidden"], m["ffn"])
    result["model.norm.weight"] = np.ones((1, m["hidden"]), np.float32)
    result["lm_head.weight"] = normal(m["vocab"], m["hidden"])
    return result


def measure(steps, bf16, compiled, micro_batch):
    torch.manual_seed(1)
    model = Llama(weights(MODEL), MODEL["heads"], MODEL["kv_heads"])
    decay = [w for w in model.weights if w.shape[0] > 1]
    rest = [w for w in model.weights if w.shape[0] == 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    fused = {"fused": True} if torch.__version__ >= "2.4" else {}
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), **fused)
    samples = torch.randint(0, MODEL["vocab"], (BATCH, CONTEXT + 1))
    torch.set_flush_denormal(True)
    loss_of = torch.compile(model.loss) if compiled else model.loss
    best = float("inf")
    for step in range(steps + 1):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        for part in samples.split(micro_batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = loss_of(part, 5e5) * (micro_batch / BATCH)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step > 0:
            best = min(best, time.perf_counter() - began)
    return best


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--eager", action="store_true", help="do not try torch.compile, which takes minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    modes = {}
    for compiled in (False,) if arguments.eager or not hasattr(torch, "compile") else (False, True):
        for micro_batch in (2, 8):
            name = f"{'compiled' if compiled else 'eager'}, {micro_batch} samples at a time"
            try:
                modes[name] = BATCH * CONTEXT / measure(arguments.steps, arguments.dtype == "bf16", compiled, micro_batch)
            except Exception as error:  # No compiler for torch.compile, for example: said in the report.
                print(f"{name}: {error}", file=sys.stderr)
    mode = max(modes, key=modes.get)
    print(json.dumps({"tokens_per_second": modes[mode], "version": torch.__version__, "mode": mode, "all": modes}))


if __name__ == "__main__":
    main()
