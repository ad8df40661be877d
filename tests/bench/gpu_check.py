"""Whether a GPU trains what it should: one check a subcommand, RESULT lines for gpu.sh.

usage: gpu_check.py PART BUILD_DIR WORK_DIR [--backend NAME] [--bench-json FILE]

  tests    the unit and contract tests that name the GPU
  layouts  the same losses and certificate, bit by bit, at every layout; all ranks share one GPU
  resume   stopped twice and resumed at other layouts: the bits of a run that was never stopped
  kill     a rank killed with signal 9: the job goes on from memory, and in another layout: the same bits
  nccl     layouts and kill once more, messages over NCCL instead of through the host: all ranks share one GPU, each
           claims a host of its own (runtime/comm/make_collectives.cc), so this is slow and short
  sanitizer  compute-sanitizer, where it is installed, over short kernel tests
  cpu      losses within rounding of those of the CPU
  save     what a checkpoint costs training: the time it stands still, beside the speed of a copy to pinned memory
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
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


NCCL = {"layout.device_transport": "nccl"}
NCCL_STEPS = 3
NCCL_LAYOUTS = [
    layout(data=2),
    layout(tensor=2),
    layout(pipeline=2),
    layout(tensor=2, pipeline=2),
    layout(data=2, zero=3),
]

# What compute-sanitizer runs: kernels of our own, small shapes. memcheck has to end, the others as far as time goes.
SANITIZED = {
    "kernels_activations_test": "*cuda*:-*Death*",
    "kernels_sums_test": "*cuda*:-*Death*",
    "kernels_attention_test": "*Groups*cuda*:*StridedRows*cuda*:*SumInBF16*cuda*:-*Death*",
}
SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
SANITIZER_SECONDS = 80


def find_sanitizer():
    toolkits = sorted(pathlib.Path("/usr/local").glob("cuda*"), reverse=True)
    places = [folder / name for folder in toolkits for name in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, places)]))


class Checks:
    def __init__(self, arguments):
        self.a = arguments
        self.perdure = Perdure(arguments.build, pathlib.Path(arguments.work) / "runs", arguments.backend)
        for seed, language in enumerate(("en", "fr", "de", "es", "it")):
            if not (self.perdure.folder / f"data/{language}.idx").exists():
                write_tokens(self.perdure.folder / "data" / language, 1024, 42000, seed, document=700)

    def train(self, name, places, settings, until, **named):
        # Ranks that share the GPU go over the host unless told otherwise: said, they need not load for NCCL.
        settings = {"layout.device_transport": "staged", **settings, **places}
        self.perdure.run(NANO, name, ranks_of(places), settings, until, **named)

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
        settings = {**BF16, "checkpoint.every_steps": 4}
        return self.kill_and_resume("kill", settings, LAYOUTS[4], LAYOUTS[1], rows=10)

    def kill_and_resume(self, part, settings, places, again, rows, seconds=90):
        """A rank is killed when loss.csv has so many rows and a checkpoint is there; the job goes on from memory, is
        stopped, and goes some steps more in another layout."""
        name = f"{part}-killed"
        self.perdure.fresh(name)
        process = self.perdure.start(NANO, name, ranks_of(places), {**settings, **places}, until=100)
        self.perdure.await_rows(process, name, rows, seconds, interval=0.02)
        until = time.monotonic() + 20
        while not self.perdure.journal(name, "checkpoint") and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(self.perdure.rank_pids(name)[1], signal.SIGKILL)
        killed, before = time.monotonic(), len(self.perdure.bits(name))
        while len(self.perdure.journal(name, "loaded")) < 2 and process.poll() is None and time.monotonic() < killed + 30:
            time.sleep(0.02)
        back = time.monotonic() - killed
        self.perdure.await_rows(process, name, before + 2, seconds, interval=0.02)
        errors = self.perdure.end(process, signal.SIGTERM)
        if process.returncode != 75 or "signal 9" not in errors:
            raise Failure(f"{name}: exit code {process.returncode} after signal 9 to a rank: {errors.strip()[-300:]}")
        at = len(self.perdure.bits(name))
        self.train(name, again, settings, at + 3)
        resumed = [entry["resumes"] for entry in self.perdure.journal(name, "generation")]
        what = f"rank 1 of {name_of(places)} killed at step {before}, its job goes on at {resumed[1]} {back:.1f} s later, "
        what += f"resumed at {resumed[-1]} as {name_of(again)}"
        if 0 in resumed[1:]:
            raise Failure(what + ": begun anew")
        return self.same(part, what, self.outcome(name, at + 3), self.reference(BF16, at + 3))

    def over_nccl(self, name):
        remarks = [entry["line"] for entry in self.perdure.journal(name, "remark")]
        remarks = [line for line in remarks if line.startswith("device transport")]
        if not remarks or any(line != "device transport: nccl" for line in remarks):
            raise Failure(f"{name}: not over NCCL: {remarks}")

    def nccl(self):
        os.environ.setdefault("NCCL_DEBUG", "WARN")  # Into the ranks' logs.
        expected = self.reference(BF16, NCCL_STEPS)
        good = True
        # One after the other: kernels that wait for a message take the GPU's time from those that would send it.
        for places in NCCL_LAYOUTS:
            name = f"nccl-{name_of(places).replace(' ', '-')}"
            self.perdure.fresh(name)
            began = time.monotonic()
            try:
                self.train(name, places, {**BF16, **NCCL}, NCCL_STEPS, timeout=60)
                self.over_nccl(name)
                what = f"nano {name_of(places)} over NCCL against T1P1D1, {time.monotonic() - began:.1f} s"
                good = self.same("nccl", what, self.outcome(name, NCCL_STEPS), expected) and good
            except Failure as failure:
                self.show_logs(name)
                result("nccl", "FAILED", f"{name_of(places)}: {failure}")
                good = False
        settings = {**BF16, **NCCL, "checkpoint.every_steps": 2}
        try:
            good = self.kill_and_resume("nccl", settings, LAYOUTS[2], LAYOUTS[1], rows=3, seconds=60) and good
            self.over_nccl("nccl-killed")
        except Failure:
            self.show_logs("nccl-killed")
            raise
        return good

    def show_logs(self, name):
        for log in sorted((self.perdure.folder / name).glob("jobs/*/node-*.log")):
            print(f"---- {log.parent.name}/{log.name}\n{log.read_text(errors='replace')[-1500:]}")

    def sanitizer(self):
        sanitizer = find_sanitizer()
        if sanitizer is None:
            result("sanitizer", "skipped", "compute-sanitizer is not installed")
            return True
        until = time.monotonic() + SANITIZER_SECONDS
        tests = pathlib.Path(self.a.build).resolve() / "tests"

        def run(tool, program, chosen, seconds):
            # Errors of API calls are the tests' own matter: some are provoked.
            began = time.monotonic()
            command = ["timeout", "-k", "3", str(seconds)]  # With all that it has started.
            command += [sanitizer, "--tool", tool, "--error-exitcode", "99"]
            if tool != "memcheck":  # cuDNN's kernels synchronise in ways of their own, and read what they do not use.
                command += ["--kernel-name-exclude", "kernel_substring=cudnn"]
            command += ["--report-api-errors", "no"] if tool == "memcheck" else []
            command += [tests / program, "--gtest_filter=" + chosen, "--gtest_brief=1"]
            options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
            done = subprocess.run(command, **options)
            late = done.returncode in (124, 137)
            return None if late else done.returncode, done.stdout, time.monotonic() - began

        all_good = True
        for i, tool in enumerate(SANITIZER_TOOLS):
            left = until - time.monotonic()
            seconds = int(left if i == 0 else left / (len(SANITIZER_TOOLS) - i))
            if seconds < 5:
                result("sanitizer", "skipped", f"{tool}: no time left of {SANITIZER_SECONDS} s")
                continue
            good = True
            with concurrent.futures.ThreadPoolExecutor(len(SANITIZED)) as pool:
                jobs = {name: pool.submit(run, tool, name, chosen, seconds) for name, chosen in SANITIZED.items()}
            said = []
            for program, job in jobs.items():
                code, output, took = job.result()
                passed = sum(map(int, re.findall(r"^\[  PASSED  \] (\d+) test", output, re.MULTILINE)))
                said.append(f"{program} {passed} tests in {took:.0f} s")
                if code == 0 and passed > 0:
                    continue
                if code is None and i > 0:
                    said[-1] = f"{program} not finished after {took:.0f} s"
                    continue
                good = False
                print(f"---- {tool} of {program}\n{output[:3000]}\n...\n{output[-1000:]}")
                summary = re.findall(r"SUMMARY: .*", output)
                why = summary[-1] if summary else f"exit code {code}, {passed} passed"
                why = "not finished" if code is None else why
                result("sanitizer", "FAILED", f"{tool} of {program}: {why}")
            result("sanitizer", "ok" if good else "FAILED", f"{tool}: " + ", ".join(said))
            all_good = all_good and good
        return all_good

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
        every, batch = (8, 8) if self.a.tiny else (30, 48)
        shape = {"hidden": 4096, "heads": 32, "kv_heads": 8, "ffn": 12288, "vocab": 8192, "layers": 2}
        if self.a.tiny:
            shape = {"hidden": 256, "heads": 8, "kv_heads": 4, "ffn": 768, "vocab": 8192, "layers": 2}
        write_tokens(self.perdure.folder / "data/save", 8192, 300000, 9)
        config = self.perdure.folder / "save.toml"
        text = (ROOT / "tests/bench/bench.toml").read_text().replace('path = "bench"', 'path = "data/save"')
        context = 128 if self.a.tiny else 2048
        settings = {**BF16, **layout(), **{f"model.{key}": value for key, value in shape.items()}}
        settings |= {"checkpoint.every_steps": every, "checkpoint.keep_last": 2, "numerics.micro_batch": 2}
        config.write_text(text.replace("context = 512", f"context = {context}").replace("batch = 8", f"batch = {batch}"))
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
    parser.add_argument("part", choices=["tests", "layouts", "resume", "kill", "nccl", "sanitizer", "cpu", "save"])
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
