"""Trains the run of a configuration's first steps in PyTorch from the same weights on the same batches, and compares the
loss of every step with Perdure's loss.csv.

usage: compare_curve.py PERDURE DUMP_STEPS RUN.toml DATA_DIR STEPS [TOLERANCE]
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
        model = config["model"]
        llama = Llama(read_checkpoint(initial), model["heads"], model["kv_heads"], model["norm_eps"])
        optimizer = llama.optimizer(config["optimizer"])
        worst = 0.0
        for row, (step, samples) in zip(ours, read_steps(f"{folder}/steps"), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = step["rate"]
            optimizer.zero_grad(set_to_none=True)
            loss = llama.loss(samples, step["rope_theta"])
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(llama.parameters(), config["optimizer"]["clip"])
            optimizer.step()
            relative = abs(loss.item() - float(row["loss"])) / loss.item()
            worst = max(worst, relative)
            print(f"step {row['step']:>4}  ours {float(row['loss']):.7f}  torch {loss.item():.7f}  relative {relative:.1e}"
                  f"  grad norm {float(row['grad_norm']):.6f} {norm.item():.6f}", flush=True)
    print(f"worst relative difference over {len(ours)} steps: {worst:.2e} (tolerance {tolerance:g}), torch {torch.__version__}")
    sys.exit(worst > tolerance)


if __name__ == "__main__":
    main()
