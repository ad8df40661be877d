"""Trains the run of a configuration's first steps in PyTorch from the same weights on the same batches, and compares the
loss of every step with Perdure's loss.csv: in fp32, and in fp64, which shows how far PyTorch's own fp32 is from exact.

usage: compare_curve.py PERDURE DUMP_STEPS RUN.toml DATA_DIR STEPS [TOLERANCE]

Training amplifies rounding: at a rate that overshoots, two fp32 programs part whoever wrote them. tests/golden/curve.toml
is nano at the rate of the run that it is a miniature of.
"""

import csv
import json
import pathlib
import subprocess
import sys
import tempfile
import tomllib

import torch

from torch_llama import Llama, read_checkpoint, read_steps


def main():
    perdure, dump, config_path, data, steps = sys.argv[1:6]
    tolerance = float(sys.argv[6]) if len(sys.argv) > 6 else 1e-5
    config = tomllib.loads(pathlib.Path(config_path).read_text())
    with tempfile.TemporaryDirectory() as folder:
        run = [perdure, "run", config_path, "--run-dir", f"{folder}/run", "--data-dir", data, "--nodes", "1",
               "--ranks-per-node", "1", "--set", "layout.tensor=1", "--set", "layout.pipeline=1", "--quiet"]
        for until in ("0", steps):
            code = subprocess.run(run + ["--until-step", until], check=False).returncode
            assert code in (0, 75), f"perdure run ended with {code}"
        listed = json.loads(subprocess.check_output([perdure, "ckpt", "list", f"{folder}/run", "--json"]))
        initial = next(entry["path"] for entry in listed if entry["step"] == 0)
        subprocess.run([dump, config_path, data, steps, f"{folder}/steps"], check=True)
        with open(f"{folder}/run/metrics/loss.csv", newline="") as file:
            ours = list(csv.DictReader(file))
        weights, batches = read_checkpoint(initial), read_steps(f"{folder}/steps")
        curves = {name: curve(weights, batches, config, dtype)
                  for name, dtype in (("fp32", torch.float32), ("fp64", torch.float64))}
        worst = {"fp32": 0.0, "fp64": 0.0, "torch": 0.0}
        for row, (loss, norm), (exact, _) in zip(ours, curves["fp32"], curves["fp64"], strict=True):
            mine = float(row["loss"])
            apart = {"fp32": abs(mine - loss) / loss, "fp64": abs(mine - exact) / exact, "torch": abs(loss - exact) / exact}
            worst = {name: max(worst[name], apart[name]) for name in worst}
            print(f"step {row['step']:>4}  ours {mine:.7f}  torch {loss:.7f}  relative {apart['fp32']:.1e}  grad norm "
                  f"{float(row['grad_norm']):.6f} {norm:.6f}  from fp64: ours {apart['fp64']:.1e} torch {apart['torch']:.1e}")
    print(f"worst relative difference over {len(ours)} steps: {worst['fp32']:.2e} (tolerance {tolerance:g}), from fp64: ours "
          f"{worst['fp64']:.2e}, torch {worst['torch']:.2e}; torch {torch.__version__}")
    sys.exit(worst["fp32"] > tolerance)


def curve(weights, batches, config, dtype):
    """[(loss, gradient norm before clipping)] of each step."""
    model, result = config["model"], []
    llama = Llama(weights, model["heads"], model["kv_heads"], model["norm_eps"]).to(dtype)
    optimizer = llama.optimizer(config["optimizer"])
    for step, samples in batches:
        for group in optimizer.param_groups:
            group["lr"] = step["rate"]
        optimizer.zero_grad(set_to_none=True)
        loss = llama.loss(samples, step["rope_theta"])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(llama.parameters(), config["optimizer"]["clip"])
        optimizer.step()
        result.append((loss.item(), norm.item()))
    return result


if __name__ == "__main__":
    main()
