"""Whether a GPU trains what it should: one check a subcommand, RESULT lines for gpu.sh.

usage: gpu_check.py tests|layouts|resume|kill|cpu|save BUILD_DIR WORK_DIR [--backend NAME] [--bench-json FILE]

  tests    the unit and contract tests that name the GPU
  layouts  the same losses and certificate, bit by bit, at every layout; all ranks share one GPU
  resume   stopped twice and resumed at other layouts: the bits of a run that was never stopped
  kill     a rank killed with signal 9, the run started again: the same bits
  cpu      losses within rounding of those of the CPU
  save     what a checkpoint costs training: the time it stands still, beside the speed of a copy to pinned memory
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time

from gpu_runs import ROOT, Failure, Perdure, end_in_order, result, write_tokens

NANO = ROOT / "launch/recipes/nano.toml"
BF16 = {"numerics.dtype": "bf16"}
# Nano with heads of 128, as large models have them, and wide enough for tensor cores.
WIDE = {**BF16, "model.hidden": 1024, "model.ffn": 3072, "run.name": "wide"}
STEPS = 6
FILTER = "*cuda*:*Cuda*:*CUDA*:*gpu*:*Gpu*:*GPU*:-*Long*"


def layout(tensor=1, pipeline=1, data=1, **more):
    words = {"tensor": tensor, "pipeline": pipeline, "data": data, **more}
    return {f"layout.{key}": value for key, value in words.items()}


def name_of(places):
    letters = {"tensor": "T", "pipeline": "P", "data": "D"}
    short = [letters.get(key.split(".")[1], f" {key.split('.')[1]} ") + str(value) for key, value in places.items()]
    return "".join(short)


def ranks_of(places):
    return places["layout.tensor"] * places["layout.pipeline"] * places["layout.data"]


LAYOUTS = [
    layout(),
    layout(data=2),
    layout(tensor=2),
    layout(pipeline=2),
    layout(tensor=2, data=2),
    layout(tensor=4),
    layout(data=2, zero=3),
    layout(pipeline=2, data=2, virtual_stages=2, recompute="full"),
]


class Checks:
    def __init__(self, arguments):
        self.a = arguments
        self.perdure = Perdure(arguments.build, pathlib.Path(arguments.work) / "runs", arguments.backend)
        for seed, language in enumerate(("en", "fr", "de", "es", "it")):
            if not (self.perdure.folder / f"data/{language}.idx").exists():
                write_tokens(self.perdure.folder / "data" / language, 1024, 42000, seed, document=700)

    def train(self, name, places, settings, until, **named):
        self.perdure.run(NANO, name, ranks_of(places), {**settings, **places}, until, **named)

    def outcome(self, name, steps):
        bits = self.perdure.bits(name)
        if len(bits) != steps:
            raise Failure(f"{name}: {len(bits)} rows in loss.csv, {steps} expected")
        return bits, self.perdure.certificate(name)

    def reference(self, settings, steps):
        """The outcome of one rank that was never stopped; made once in a work folder."""
        name = f"reference-{settings.get('run.name', 'nano')}-{steps}"
        if len(self.perdure.bits(name)) != steps:
            self.perdure.fresh(name)
            self.train(name, LAYOUTS[0], settings, steps)
        return self.outcome(name, steps)

    def same(self, part, what, got, expected):
        bits = sum(a != b for a, b in zip(got[0], expected[0], strict=True))
        if bits == 0 and got[1] == expected[1]:
            result(part, "ok", f"{what}: {len(got[0])} losses and certificate {got[1][:12]}")
            return True
        certificate = "the same" if got[1] == expected[1] else f"{got[1][:12]} and {expected[1][:12]}"
        result(part, "FAILED", f"{what}: {bits} of {len(got[0])} losses differ; certificates {certificate}")
        return False

    def tests(self):
        """Every program of the build that has cases for the GPU."""
        programs = sorted(pathlib.Path(self.a.build).resolve().glob("tests/*_test"))
        ran = dict.fromkeys(("passed", "failed", "skipped"), 0)

        def run(program):
            options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
            listed = subprocess.run([program, "--gtest_list_tests", "--gtest_filter=" + FILTER], timeout=60, **options)
            if not re.search(r"^  \S", listed.stdout, re.MULTILINE):
                return program, None
            try:
                done = subprocess.run([program, "--gtest_filter=" + FILTER, "--gtest_brief=1"], timeout=150, **options)
                return program, (done.returncode, done.stdout)
            except subprocess.TimeoutExpired as late:
                return program, (-1, f"{late.stdout or ''}\n[  FAILED  ] 1 test, not finished after 150 s")

        good = True
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for program, done in pool.map(run, programs):
                if done is None:
                    continue
                code, output = done
                counts = {
                    key: sum(int(n) for n in re.findall(rf"^\[\s+{key.upper()}\s+\] (\d+) test", output, re.MULTILINE))
                    for key in ran
                }
                for key, count in counts.items():
                    ran[key] += count
                if code != 0:
                    good = False
                    ran["failed"] += counts["failed"] == 0
                    print(f"---- {program.name}: exit code {code}\n{output[-3000:]}")
                    failed = sorted(set(re.findall(r"^\[  FAILED  \] (\w\S*)", output, re.MULTILINE)))
                    result("tests", "FAILED", f"{program.name}: {' '.join(failed[:6]) or output.strip()[-200:]}")
        text = f"{ran['passed']} passed, {ran['failed']} failed, {ran['skipped']} skipped"
        state = "ok" if good and ran["passed"] > 0 else "FAILED"
        result("tests", state, text + ("" if ran["passed"] else ": no test of the build names the GPU"))
        return state == "ok"

    def layouts(self):
        cases = [("nano", BF16, places) for places in LAYOUTS[1:]] + [("wide", WIDE, LAYOUTS[i]) for i in (4, 5)]
        expected = {"nano": self.reference(BF16, STEPS), "wide": self.reference(WIDE, STEPS)}

        def run(case):
            model, settings, places = case
            name = f"layouts-{model}-{name_of(places).replace(' ', '-')}"
            self.perdure.fresh(name)
            try:
                self.train(name, places, settings, STEPS)
                return case, self.outcome(name, STEPS)
            except Failure as failure:
                return case, failure

        good = True
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            for (model, _, places), got in pool.map(run, cases):
                what = f"{model} {name_of(places)} against T1P1D1"
                if isinstance(got, Failure):
                    result("layouts", "FAILED", f"{what}: {got}")
                    good = False
                else:
                    good = self.same("layouts", what, got, expected[model]) and good
        return good

    def resume(self):
        expected = self.reference(BF16, STEPS)
        self.perdure.fresh("resume")
        for until, places in ((2, LAYOUTS[0]), (4, LAYOUTS[4]), (STEPS, LAYOUTS[3])):
            self.train("resume", places, BF16, until)
        return self.same("resume", "stopped at 2 and 4, T1 then T2D2 then P2", self.outcome("resume", STEPS), expected)

    def kill(self):
        steps, places = 60, LAYOUTS[4]
        expected = self.reference(BF16, steps)
        self.perdure.fresh("kill")
        settings = {**BF16, **places, "checkpoint.every_steps": 4}
        process = self.perdure.start(NANO, "kill", ranks_of(places), settings, until=steps)
        self.perdure.await_rows(process, "kill", 10, 90, interval=0.02)
        os.kill(self.perdure.rank_pids("kill")[1], signal.SIGKILL)
        killed = time.monotonic()
        try:
            errors = process.communicate(timeout=30)[1]
        except subprocess.TimeoutExpired:
            self.perdure.end(process)
            raise Failure("kill: the job still lives 30 s after one of its ranks was killed") from None
        seconds = time.monotonic() - killed
        if process.returncode != 1 or "signal 9" not in errors:
            raise Failure(f"kill: exit code {process.returncode} after signal 9 to a rank: {errors.strip()[-300:]}")
        at = len(self.perdure.bits("kill"))
        self.train("kill", LAYOUTS[1], {**BF16, "checkpoint.every_steps": 4}, steps)
        resumed = self.perdure.journal("kill", "generation")[-1]["resumes"]
        what = f"rank 1 of T2D2 killed at step {at}, job ended {seconds:.1f} s later, resumed at {resumed} as D2"
        if resumed == 0:
            raise Failure(what + ": no checkpoint was resumed")
        return self.same("kill", what, self.outcome("kill", steps), expected)

    def cpu(self):
        """A first loss differs by the order of sums, later ones by what the optimizer made of that."""
        good = True
        for dtype, first, last in (("fp32", 1e-5, 1e-4), ("bf16", 2e-3, 1e-2)):
            losses = {}
            for backend in ("cpu", "cuda"):
                name = f"cpu-{dtype}-{backend}"
                self.perdure.fresh(name)
                self.train(name, LAYOUTS[0], {"numerics.dtype": dtype}, STEPS, backend=backend)
                losses[backend] = [float(row["loss"]) for row in self.perdure.rows(name)]
            apart = [abs(a - b) / abs(a) for a, b in zip(losses["cpu"], losses["cuda"], strict=True)]
            fine = len(apart) == STEPS and apart[0] <= first and max(apart) <= last
            good = good and fine
            text = f"{dtype}: losses apart by {apart[0]:.1e} at step 1 (at most {first:.0e}), "
            result("cpu", "ok" if fine else "FAILED", text + f"{max(apart):.1e} in {STEPS} steps (at most {last:.0e})")
        return good

    def save(self):
        """A state of some GB: two blocks of Lucie, a small vocabulary (a tiny model with --tiny). Saves are far enough
        apart for the one before to be on disk."""
        every = 8 if self.a.tiny else 80
        shape = {"hidden": 4096, "heads": 32, "kv_heads": 8, "ffn": 12288, "vocab": 8192, "layers": 2}
        if self.a.tiny:
            shape = {"hidden": 256, "heads": 8, "kv_heads": 4, "ffn": 768, "vocab": 8192, "layers": 2}
        write_tokens(self.perdure.folder / "data/save", 8192, 300000, 9)
        config = self.perdure.folder / "save.toml"
        text = (ROOT / "tests/bench/bench.toml").read_text().replace('path = "bench"', 'path = "data/save"')
        config.write_text(text)
        context = 128 if self.a.tiny else 2048
        settings = {**BF16, **layout(), **{f"model.{key}": value for key, value in shape.items()}}
        settings |= {"checkpoint.every_steps": every, "checkpoint.keep_last": 2, "numerics.micro_batch": 2}
        config.write_text(text.replace("context = 512", f"context = {context}"))
        self.perdure.fresh("save")
        process = self.perdure.start(config, "save", 1, settings)
        until = time.monotonic() + 100
        while len(self.perdure.journal("save", "checkpoint")) < 2 or len(self.perdure.rows("save")) <= 2 * every:
            if process.poll() is not None or time.monotonic() > until:
                said = self.perdure.end(process)
                raise Failure(f"save: no two checkpoints (exit code {process.returncode}): {said.strip()[-400:]}")
            time.sleep(0.1)
        self.perdure.end(process)
        # The second one: its buffers have been used before. Its copy lies beneath the step that follows.
        saved = self.perdure.journal("save", "checkpoint")[1]
        rows = self.perdure.rows("save")
        seconds = {int(row["step"]): float(row["step_seconds"]) for row in rows}
        plain = statistics.median(took for step, took in seconds.items() if step > every and step % every > 1)
        beside = seconds.get(2 * every + 1, float("nan"))
        rate = saved["bytes"] / max(saved["copy_seconds"], 1e-9)
        stall = saved["freeze_seconds"] + saved["wait_seconds"]
        text = f"{saved['bytes'] / 1e9:.2f} GB copied in {saved['copy_seconds'] * 1e3:.1f} ms = {rate / 1e9:.1f} GB/s "
        text += f"({self.pinned(rate)}), training waited {stall * 1e3:.2f} ms; the step beside the copy took "
        text += f"{beside * 1e3:.1f} ms, others {plain * 1e3:.1f} ms; written in {saved['write_seconds']:.2f} s behind"
        self.perdure.fresh("save")
        fine = stall <= 1.1 * saved["copy_seconds"]
        result("save", "ok" if fine else "FAILED", text)
        return fine

    def pinned(self, rate):
        try:
            lines = pathlib.Path(self.a.bench_json).read_text().splitlines()
            download = next(e["gbs"] for e in map(json.loads, lines) if e["name"].startswith("download"))
        except (OSError, TypeError, ValueError, KeyError, StopIteration):
            return "no gpu_bench beside it"
        return f"{100 * rate / 1e9 / download:.0f} % of a copy to pinned memory, {download:.1f} GB/s"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["tests", "layouts", "resume", "kill", "cpu", "save"])
    parser.add_argument("build")
    parser.add_argument("work")
    parser.add_argument("--backend", default="cuda", help='numerics.backend; "" for a build without that key')
    parser.add_argument("--bench-json", help="what gpu_bench --json wrote, for the speed of a pinned copy")
    parser.add_argument("--tiny", action="store_true", help="save: a model for a CPU")
    arguments = parser.parse_args()
    end_in_order(arguments.part)
    checks = Checks(arguments)
    try:
        sys.exit(0 if getattr(checks, arguments.part)() else 1)
    except Failure as failure:
        result(arguments.part, "FAILED", str(failure))
        sys.exit(1)
    finally:
        checks.perdure.end_all()


if __name__ == "__main__":
    main()
