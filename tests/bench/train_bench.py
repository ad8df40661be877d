"""Measures training end to end, as ratios within one run of this script (machines are noisy, ratios less so).

usage: train_bench.py BUILD_DIR [--steps N] [--dtype fp32|bf16] [--shards V] [--skip-torch] [--skip-mesh]
                      [--torch-python PYTHON]… [--eager] [--json FILE]

  sgemm   one rank's matmul work over its time, against oneDNN's own sgemm on the same core      (goal: at least 0.80)
  torch   one rank's tokens/s against the same step in PyTorch, one thread, where it is installed (goal: at least 1.5);
          --torch-python names another interpreter than this one, once for each version to compare with
  mesh    8 ranks (tensor 2, pipeline 2, data 2) on two cores against two single ranks there      (goal: at least 0.80)
  memory  resident memory of a rank against `perdure plan`                                        (goal: within 10 %)
"""

import argparse
import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
MODEL = {"layers": 8, "hidden": 512, "heads": 8, "kv_heads": 4, "ffn": 1536, "vocab": 1024}
CONTEXT, BATCH = 512, 8


def flop_per_token():
    """Matmuls of forward and backward: 6 per weight outside the embedding, and causal attention (half of S x S)."""
    m = MODEL
    head = m["hidden"] // m["heads"]
    block = m["hidden"] * head * (2 * m["heads"] + 2 * m["kv_heads"]) + 3 * m["hidden"] * m["ffn"]
    return 6 * (m["layers"] * block + m["hidden"] * m["vocab"]) + 6 * m["layers"] * m["hidden"] * CONTEXT


def pinned(cores, command, **options):
    return subprocess.Popen(["taskset", "-c", cores] + command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)


def sgemm_rate(build):
    command = ["taskset", "-c", "0", str(build / "bench/sgemm_rate"), "0.3"]
    return float(subprocess.check_output(command, env={**os.environ, "OMP_NUM_THREADS": "1"}))


class Bench:
    def __init__(self, arguments, folder):
        self.a, self.folder = arguments, pathlib.Path(folder)
        self.build = pathlib.Path(arguments.build)
        self.perdure = str(self.build / "perdure")
        text = self.folder / "text"
        text.mkdir()
        for i in range(40):
            words = "".join(f"line {j} of text {i} says {j * j % 97} and {(i * j) % 89}\n" for j in range(2000))
            (text / f"{i}.txt").write_text(words)
        subprocess.run([self.perdure, "data", "build", "--from", str(text), "--tokenizer", "byte", "-o",
                        str(self.folder / "bench")], check=True, capture_output=True)

    def settings(self, layout):
        # Snapshots are snapshot_bench's.
        pairs = {**layout, "snapshot.every": 0, "numerics.dtype": self.a.dtype, "numerics.tensor_shards": self.a.shards}
        return [word for key, value in pairs.items() for word in ("--set", f"{key}={value}")]

    def start(self, name, cores, ranks, layout, steps):
        command = [self.perdure, "run", str(HERE / "bench.toml"), "--run-dir", str(self.folder / name), "--data-dir",
                   str(self.folder), "--nodes", "1", "--ranks-per-node", str(ranks), "--until-step", str(steps),
                   "--quiet"] + self.settings(layout)
        return pinned(cores, command, stderr=subprocess.DEVNULL)

    def steps_of(self, name):
        with open(self.folder / name / "metrics/loss.csv", newline="") as file:
            return [float(row["step_seconds"]) for row in csv.DictReader(file)][1:]  # The first one warms up.

    def resident(self, name, process):
        """Most resident bytes of any rank, looked up until the run ends."""
        most, status = {}, [self.perdure, "status", str(self.folder / name), "--json"]
        while process.poll() is None:
            time.sleep(0.2)
            try:
                members = json.loads(subprocess.check_output(status, stderr=subprocess.DEVNULL))["members"]
            except (subprocess.CalledProcessError, ValueError):
                continue
            for rank in (rank for member in members for rank in member["ranks"]):
                try:
                    lines = pathlib.Path(f"/proc/{rank['pid']}/status").read_text().splitlines()
                except OSError:
                    continue
                for line in lines:
                    if line.startswith("VmHWM:"):
                        most[rank["rank"]] = int(line.split()[1]) * 1024
        return max(most.values())

    def planned(self, ranks, layout):
        command = [self.perdure, "plan", str(HERE / "bench.toml"), "--nodes", "1", "--ranks-per-node", str(ranks),
                   "--json"] + self.settings(layout)
        return json.loads(subprocess.check_output(command))["memory_bytes_per_rank"]["total"]

    def single(self, results):
        before = sgemm_rate(self.build)
        process = self.start("single", "0", 1, {}, self.a.steps)
        resident = self.resident("single", process)
        rate = max(before, sgemm_rate(self.build))
        seconds = statistics.median(self.steps_of("single"))
        tokens = BATCH * CONTEXT / seconds
        results["tokens_per_second_one_rank"] = tokens
        results["sgemm_gflops"] = rate
        results["sgemm_ratio"] = flop_per_token() * tokens / 1e9 / rate
        results["memory_ratio_one_rank"] = resident / self.planned(1, {})

    def mesh(self, results):
        steps = max(3, self.a.steps // 2)
        two = [self.start(f"two{core}", str(core), 1, {}, steps) for core in (0, 1)]
        for process in two:
            process.wait()
        apart = sum(BATCH * CONTEXT / statistics.median(self.steps_of(f"two{core}")) for core in (0, 1))
        layout = {"layout.tensor": 2, "layout.pipeline": 2, "layout.data": 2}
        process = self.start("mesh", "0,1", 8, layout, steps)
        resident = self.resident("mesh", process)
        together = BATCH * CONTEXT / statistics.median(self.steps_of("mesh"))
        results["mesh_ratio"] = together / apart
        results["memory_ratio_mesh"] = resident / self.planned(8, layout)

    def torch(self, python, results):
        script = HERE / "torch_step.py"
        command = [python, str(script), "--steps", str(max(3, self.a.steps // 2)), "--dtype", self.a.dtype]
        command += ["--eager"] if self.a.eager else []
        done = pinned("0", command, stdout=subprocess.PIPE, text=True)
        output = done.communicate()[0]
        if done.returncode != 0:
            results.setdefault("torch", []).append(f"{python}: not installed or failed")
            return
        report = json.loads(output.strip().splitlines()[-1])
        report["ratio"] = results["tokens_per_second_one_rank"] / report["tokens_per_second"]
        results.setdefault("torch", []).append(report)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--skip-torch", action="store_true")
    parser.add_argument("--torch-python", action="append")
    parser.add_argument("--eager", action="store_true", help="PyTorch without torch.compile")
    parser.add_argument("--skip-mesh", action="store_true")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    results = {"dtype": arguments.dtype, "tensor_shards": arguments.shards, "load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, folder)
        bench.single(results)
        for python in [] if arguments.skip_torch else arguments.torch_python or [sys.executable]:
            bench.torch(python, results)
        if not arguments.skip_mesh:
            bench.mesh(results)
    print(json.dumps(results, indent=2))
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
