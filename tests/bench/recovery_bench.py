"""Measures what a killed process costs: from kill -9 to the next finished step, beyond one step's own time.

usage: recovery_bench.py BUILD_DIR [--count N] [--kinds rank,node,coordinator] [--skip-perdure]
                         [--torch-python PYTHON] [--torch-count N] [--json FILE]

The nano model on 4 ranks (4 nodes of one, and a spare node), a snapshot after every step; `perdure drill` kills, medians of N
(20). Beside it, on the same machine: PyTorch's `torchrun --max-restarts` with the same model and 4 ranks, a checkpoint after
every step in memory (/dev/shm), one rank killed --torch-count times (5).
Goals: a rank 1 s, a node 3 s, a coordinator on a node without ranks no step lost; ten times as fast as torchrun.
"""
import argparse
import datetime
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from job_watch import events, wait_for

HERE = pathlib.Path(__file__).resolve().parent
MODEL = {"layers": 4, "hidden": 128, "heads": 8, "kv_heads": 4, "ffn": 384, "vocab": 1024}
CONTEXT, BATCH, RANKS = 128, 16, 4

CONFIG = """
[run]
name = "recovery"
seed = 1
[model]
kind = "llama"
{model}
[data]
tokenizer = "byte"
[[phase]]
name = "bench"
samples = 10000000
context = {context}
rope_theta = 500000.0
batch = {batch}
rate = 1e-4
mixture = [ {{ path = "bench", weight = 1.0 }} ]
[optimizer]
kind = "adamw"
[numerics]
dtype = "fp32"
tensor_shards = 4
micro_batch = 2
leaf = 1
[layout]
tensor = 1
pipeline = 1
data = {ranks}
[job]
ranks_per_node = 1
spares = 1
[checkpoint]
every = "24h"
[snapshot]
every = 1
"""


class Perdure:
    def __init__(self, build, folder):
        self.program, self.folder = str(pathlib.Path(build) / "perdure"), pathlib.Path(folder)
        text = self.folder / "text"
        text.mkdir()
        (text / "0.txt").write_text("".join(f"line {j} says {j * j % 97}\n" for j in range(200000)))
        self.run(["data", "build", "--from", str(text), "--tokenizer", "byte", "-o", str(self.folder / "bench")])
        model = "\n".join(f"{key} = {value}" for key, value in MODEL.items())
        (self.folder / "run.toml").write_text(CONFIG.format(model=model, context=CONTEXT, batch=BATCH, ranks=RANKS))

    def run(self, words, check=True):
        done = subprocess.run([self.program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if check and done.returncode != 0:
            sys.exit(f"perdure {words[0]}: {done.stderr}")
        return done

    def steps(self, directory):
        """Step seconds of loss.csv, all of them."""
        lines = (directory / "metrics/loss.csv").read_text().splitlines()
        column = lines[0].split(",").index("step_seconds")
        return [float(line.split(",")[column]) for line in lines[1:]]

    def stood(self, directory):
        """The longest time without a step from a second before each injury until half a minute behind it or the next one."""
        clock = lambda event: datetime.datetime.fromisoformat(event["time"].replace("Z", "+00:00")).timestamp()
        steps = [clock(event) for event in events(directory, "step")]
        result = []
        hurts = [clock(event) for event in events(directory, "drill")]
        for hurt, following in zip(hurts, [*hurts[1:], float("inf")]):
            near = [at for at in steps if hurt - 1 < at < min(hurt + 30, following)]
            result.append(max((b - a for a, b in zip(near, near[1:])), default=float("inf")))
        return result

    def measure(self, kind, count):
        """The coordinator sits on the spare node at a job's start only: a job for each."""
        if kind != "coordinator":
            return self.job(kind, count, kind)
        jobs = [self.job(kind, 1, f"{kind}-{i}") for i in range(count)]
        result = {key: sum(job[key] for job in jobs) for key in ("count", "recovered", "tolerated", "disagreements")}
        result["redone_most"] = max(job["redone_most"] for job in jobs)
        result |= {key: statistics.median(job[key] for job in jobs) for key in ("step", "stood", "stood_beyond_a_step")}
        return result

    def job(self, kind, count, name):
        directory = self.folder / name
        with open(self.folder / f"{name}.log", "w") as log:
            job = subprocess.Popen([self.program, "run", str(self.folder / "run.toml"), "--run-dir", str(directory), "--nodes",
                                    str(RANKS + 1), "--ranks-per-node", "1", "--quiet"], stdout=log, stderr=log)
            try:
                wait_for(f"perdure: first steps ({log.name})", 60, lambda: len(events(directory, "step")) > 20, job)
                calm = statistics.median(self.steps(directory)[5:])
                calm_most = max(self.steps(directory)[5:])
                done = self.run(["drill", str(directory), "--kind", kind, "--count", str(count), "--seed", "1", "--json"],
                                check=False)
                time.sleep(5)
            finally:
                job.terminate()
                job.wait()
        report = json.loads(done.stdout)
        injuries = report["injuries"]
        timed = [injury for injury in injuries if "total" in injury]
        result = {"count": len(injuries), "recovered": sum(injury["recovered"] for injury in injuries), "step": calm,
                  "tolerated": sum(injury["tolerated"] for injury in injuries),
                  "redone_most": max((injury.get("redone", 0) for injury in injuries), default=0),
                  "disagreements": sum(len(injury["disagreements"]) for injury in injuries),
                  "step_most": calm_most, "stood": statistics.median(self.stood(directory))}
        result["stood_beyond_a_step"] = result["stood"] - calm
        if timed:
            parts = ("detect", "re_form", "restore", "first_step", "total")
            result |= {part: statistics.median(injury[part] for injury in timed) for part in parts}
            totals = [injury["total"] for injury in timed]
            result |= {"beyond_a_step": result["total"] - calm, "least": min(totals), "most": max(totals)}
        return result


class Torchrun:
    def __init__(self, python, folder):
        self.python, self.folder = python, pathlib.Path(folder)

    def lines(self):
        path = self.folder / "steps"
        rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(int(row[0]), float(row[1])) for row in rows if len(row) == 2]

    def measure(self, count):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [self.python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", "--max-restarts=1000",
                   "--monitor-interval=0.1", str(HERE / "torch_elastic.py"), str(self.folder)]
        with open(self.folder / "log", "w") as log:
            job = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            try:
                wait_for("torchrun: first steps", 300, lambda: len(self.lines()) > 20, job)
                clocks = [clock for _, clock in self.lines()]
                calm = statistics.median(b - a for a, b in zip(clocks[5:], clocks[6:]))
                times, redone = [], []
                for _ in range(count):
                    pid = int((self.folder / "pid.1").read_text())
                    before = len(self.lines())
                    killed = time.monotonic()
                    os.kill(pid, signal.SIGKILL)
                    # Steps that were finished before the others noticed stand behind `before`, too.
                    new = lambda: (self.folder / "pid.1").read_text() not in ("", str(pid))
                    wait_for("torchrun: restart", 300, new, job)
                    known = len(self.lines())
                    wait_for("torchrun: step", 300, lambda: len(self.lines()) > known, job)
                    lines = self.lines()
                    times.append(lines[known][1] - killed)
                    redone.append(max(0, lines[known - 1][0] - lines[known][0] + 1))
                    wait_for("torchrun: calm", 300, lambda: len(self.lines()) > known + 20, job)
                (self.folder / "stop").touch()
                job.wait(60)
            except SystemExit:
                print((self.folder / "log").read_text()[-4000:], file=sys.stderr)
                raise
            finally:
                if job.poll() is None:
                    os.killpg(job.pid, signal.SIGKILL)
                    job.wait()
        version = subprocess.check_output([self.python, "-c", "import torch; print(torch.__version__)"], text=True).strip()
        return {"version": version, "count": count, "step": calm, "total": statistics.median(times), "least": min(times),
                "most": max(times), "beyond_a_step": statistics.median(times) - calm, "redone_most": max(redone)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--kinds", default="rank,node,agent,coordinator")
    parser.add_argument("--skip-perdure", action="store_true")
    parser.add_argument("--torch-python")
    parser.add_argument("--torch-count", type=int, default=5)
    parser.add_argument("--json", help="all numbers as JSON")
    arguments = parser.parse_args()
    results = {"load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.skip_perdure:
            perdure = Perdure(arguments.build, folder)
            for kind in arguments.kinds.split(","):
                results[kind] = perdure.measure(kind, arguments.count)
                print(json.dumps({kind: results[kind]}, indent=2), flush=True)
    if arguments.torch_python:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            results["torchrun"] = Torchrun(arguments.torch_python, folder).measure(arguments.torch_count)
        if "rank" in results:
            results["torchrun"]["ratio"] = results["torchrun"]["beyond_a_step"] / results["rank"]["beyond_a_step"]
        print(json.dumps({"torchrun": results["torchrun"]}, indent=2))
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
