"""Perdure's training on one GPU, end to end, against the same step in PyTorch.

usage: gpu_train.py BUILD_DIR WORK_DIR [--layers L] [--cases NAME,...] [--steps N] [--skip-ours] [--skip-torch]
                    [--torch-python PYTHON] [--seconds S] [--backend NAME] [--json FILE]

Ours is `perdure run` with Lucie's blocks: one rank, tokens by Zipf's law, tokens/s from loss.csv without the first two
steps. PyTorch's is torch_gpu_step.py beside this file, in both of its configurations, at the same layers, context,
micro-batch and micro-batches a step. FILE keeps what earlier calls measured, so ours and PyTorch's may be measured
apart; the table shows all that is in it.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

from gpu_runs import LUCIE, Failure, Perdure, end_in_order, flop_per_token, gpu_memory, mfu, result, write_tokens

CASES = {  # In the order of what is wanted most: slices as Lucie's run has them, then none.
    "4096-V4": {"context": 4096, "micro_batch": 2, "micro_batches": 8, "shards": 4, "theta": 5e5},
    "4096-V1": {"context": 4096, "micro_batch": 2, "micro_batches": 8, "shards": 1, "theta": 5e5},
    "32000-V4": {"context": 32000, "micro_batch": 1, "micro_batches": 4, "shards": 4, "theta": 2e7},
    "32000-V1": {"context": 32000, "micro_batch": 1, "micro_batches": 4, "shards": 1, "theta": 2e7},
}
CONFIG = """[run]
name = "gpu-train"
seed = 1

[model]
kind = "llama"
layers = {layers}
hidden = {hidden}
heads = {heads}
kv_heads = {kv_heads}
ffn = {ffn}
vocab = {vocab}
init_range = 0.009

[data]
tokenizer = "byte"

[[phase]]
name = "bench"
samples = 100000
context = {context}
rope_theta = {theta}
batch = {batch}
rate = 1e-4
mixture = [ {{ path = "tokens", weight = 1.0 }} ]

[optimizer]
kind = "adamw"
eps = 1e-5

[numerics]
dtype = "bf16"
tensor_shards = {shards}
micro_batch = {micro_batch}
leaf = 4

[layout]
tensor = 1
pipeline = 1
zero = 1

[checkpoint]
every = "24h"
asynchronous = false   # No second copy of the state: nothing is saved here.

[monitoring]
tensorboard = false
"""
SPARE = 0.93  # Of the GPU's memory: contexts, workspaces of libraries.


class Training:
    def __init__(self, arguments):
        self.a = arguments
        self.perdure = Perdure(arguments.build, arguments.work, arguments.backend)
        self.memory = gpu_memory("total")

    def config(self, name, layers):
        case = CASES[name]
        path = self.perdure.folder / f"{name}.toml"
        batch = case["micro_batch"] * case["micro_batches"]
        path.write_text(CONFIG.format(layers=layers, batch=batch, **case, **LUCIE))
        return path

    def layers_that_fit(self, name):
        for layers in range(self.a.layers, 0, -1):
            planned = self.perdure.planned(self.config(name, layers), {})
            if not self.memory or planned <= SPARE * self.memory:
                return layers, planned
        raise Failure(f"{name}: one block plans {planned / 1e9:.1f} GB, the GPU has {self.memory / 1e9:.1f}")

    def ours(self, name):
        case = CASES[name]
        if not (self.perdure.folder / "tokens.idx").exists():
            write_tokens(self.perdure.folder / "tokens", LUCIE["vocab"], 1500000, 3)
        layers, planned = self.layers_that_fit(name)
        self.perdure.fresh(name)
        began = time.monotonic()
        process = self.perdure.start(self.config(name, layers), name, 1, {})
        most = 0
        asked = began

        def look():
            nonlocal most, asked
            if time.monotonic() - asked > 2:
                asked = time.monotonic()
                most = max(most, gpu_memory())

        try:
            self.perdure.await_rows(process, name, 1, 2 * self.a.seconds, meanwhile=look)
            first = time.monotonic() - began
            self.perdure.await_rows(process, name, self.a.steps, self.a.seconds, meanwhile=look)
        finally:
            self.perdure.end(process)
        rows = self.perdure.rows(name)
        rate = statistics.median(float(row["tokens_per_second"]) for row in rows[2:])
        causal, square = mfu(rate, layers, case["context"])
        self.perdure.fresh(name)
        return {
            "layers": layers,
            "tokens_per_second": rate,
            "tflops": rate * flop_per_token(layers, case["context"]) / 1e12,
            "mfu_causal": causal,
            "mfu_non_causal": square,
            "step_seconds": statistics.median(float(row["step_seconds"]) for row in rows[2:]),
            "steps": len(rows),
            "seconds_to_first_step": first,
            "loss": float(rows[-1]["loss"]),
            "peak_bytes": most,
            "planned_bytes": planned,
        }

    def torch(self, name, layers):
        case = CASES[name]
        script = pathlib.Path(__file__).resolve().parent / "torch_gpu_step.py"
        command = [self.a.torch_python, str(script), "--layers", str(layers), "--context", str(case["context"])]
        command += ["--micro-batch", str(case["micro_batch"]), "--accumulate", str(case["micro_batches"])]
        command += ["--seconds", str(self.a.seconds), "--steps", str(max(4, self.a.steps))]
        command += ["--shape", json.dumps(LUCIE)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=5 * self.a.seconds + 60)
        reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if not reports:
            raise Failure(f"{name}: torch_gpu_step.py exit code {done.returncode}, nothing measured")
        return {report["config"]: report for report in reports}


def table(found):
    """Ours beside PyTorch's; ratios are tokens/s over tokens/s."""
    lines = ["| case | blocks | ours: tokens/s | MFU causal (non-causal) | GB, planned | torch bf16 | ratio | torch master | ratio "]
    lines[0] += "| torch deterministic | ratio |"
    lines.append("|---" * 11 + "|")
    for name, entry in found.items():
        ours, torch = entry.get("ours", {}), entry.get("torch", {})
        cells = [name, str(ours.get("layers") or entry.get("layers", "")), "-", "-", "-"]
        if "tokens_per_second" in ours:
            cells[2] = f"{ours['tokens_per_second']:.0f}"
            cells[3] = f"{100 * ours['mfu_causal']:.1f} % ({100 * ours['mfu_non_causal']:.1f} %)"
            cells[4] = f"{ours['peak_bytes'] / 1e9:.1f}, {ours['planned_bytes'] / 1e9:.1f}"
        for config in ("bf16", "master", "deterministic"):
            report = torch.get(config, {})
            rate = report.get("tokens_per_second")
            text = "out of memory" if "OutOfMemory" in report.get("error", "") else report.get("error", "-")[:40]
            cells.append(f"{rate:.0f} ({100 * report['mfu_causal']:.1f} %)" if rate else text)
            both = rate and "tokens_per_second" in ours
            cells.append(f"{ours['tokens_per_second'] / rate:.2f}" if both else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read(path):
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (OSError, TypeError, ValueError):
        return {}


def measured(part, name, run):
    """What `run` returns, or None; says which."""
    try:
        done = run()
    except (Failure, subprocess.TimeoutExpired, statistics.StatisticsError) as failure:
        result(part, "FAILED", f"{name}: {str(failure)[-400:]}")
        return None
    for config, report in done.items() if part == "torch" else [("", done)]:
        what = f"{name} {config}".strip()
        if "error" in report:
            result(part, "FAILED", f"{what}: {report['error']}")
            continue
        text = f"{report['tokens_per_second']:.0f} tokens/s, {report['tflops']:.0f} TFLOP/s, MFU causal "
        text += f"{100 * report['mfu_causal']:.1f} % (non-causal {100 * report['mfu_non_causal']:.1f} %), "
        result(part, "ok", f"{what}: {text}{report['layers']} blocks, {report['peak_bytes'] / 1e9:.1f} GB")
    return done


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("work")
    parser.add_argument("--layers", type=int, default=4, help="blocks, or as many of them as fit the GPU's memory")
    parser.add_argument("--cases", default="4096-V4,4096-V1,32000-V4", help=", ".join(CASES))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--skip-ours", action="store_true")
    parser.add_argument("--skip-torch", action="store_true")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--seconds", type=float, default=100, help="of one run; twice that to its first step")
    parser.add_argument("--backend", default="cuda", help='numerics.backend; "" for a build without that key')
    parser.add_argument("--json", help="results, those of earlier calls kept")
    parser.add_argument("--shape", type=json.loads, default={}, help="JSON over Lucie's shape, for a dry run")
    parser.add_argument("--context", type=int, help="instead of every case's, for a dry run")
    arguments = parser.parse_args()
    LUCIE.update(arguments.shape)
    end_in_order("torch" if arguments.skip_ours else "train")
    for case in CASES.values():
        case["context"] = arguments.context or case["context"]
    training, found, good = Training(arguments), read(arguments.json), True
    torch_of = {}  # PyTorch has no slices: one measurement a context.
    try:
        for name in arguments.cases.split(","):
            entry = found.setdefault(name, {})
            if not arguments.skip_ours:
                entry["ours"] = measured("train", name, lambda name=name: training.ours(name)) or {}
                good = good and bool(entry["ours"])
            if not arguments.skip_torch:
                try:
                    layers = entry.get("ours", {}).get("layers") or training.layers_that_fit(name)[0]
                except Failure:  # `perdure plan` is not there or refuses: PyTorch is measured all the same.
                    layers = arguments.layers
                key = (CASES[name]["context"], layers)
                if key not in torch_of:
                    label = f"{name} as PyTorch"
                    torch_of[key] = measured("torch", label, lambda name=name, n=layers: training.torch(name, n)) or {}
                entry["torch"], entry["layers"] = torch_of[key], layers
                good = good and bool(entry["torch"])
            if arguments.json:
                pathlib.Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")
    finally:  # Also when the time is up.
        training.perdure.end_all()
        print(table(found), flush=True)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
