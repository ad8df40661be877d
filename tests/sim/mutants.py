#!/usr/bin/env python3
"""Runs the simulator against deliberate protocol bugs: tests/sim/mutants.py [--limit N] [--jobs N] [--only NAME]...

Each mutant of mutants.txt replaces one piece of text, is built in a copy of the tree, and runs the tests of tests/control, the
kept schedules, and seeds in growing batches until something is wrong. Prints at once what killed each and after how many seeds.
Exit code 1: fewer than 98 % were killed, or a survivor has no proof in equivalent.txt that no history can tell it from the
original.
"""
import argparse
import collections
import concurrent.futures
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = ["control_test", "failure_detector_test", "layout_planner_test"]
BATCHES = [(1, 500), (501, 4500), (5001, 15000), (20001, 20000), (40001, 60000), (100001, 100000), (200001, 300000)]
TREE = ["CMakeLists.txt", "runtime/base", "runtime/control", "kernels/cuda/find_cuda.cmake", "tests"]


def parse(path):
    """[(name, what, file, old, new)]"""
    mutants = []
    for block in re.split(r"^== ", path.read_text(), flags=re.M)[1:]:
        head, file, *lines = block.rstrip("\n").split("\n")
        name, _, what = head.partition(": ")
        old = "\n".join(line[2:] for line in lines if line.startswith("- "))
        new = "\n".join(line[2:] for line in lines if line.startswith("+ "))
        if not old or any(not line.startswith(("- ", "+ ")) for line in lines):
            sys.exit(f"mutants.txt: {name}: lines begin with '- ' or '+ '")
        if (found := (ROOT / file).read_text().count(old)) != 1:
            sys.exit(f"mutants.txt: {name}: its text is found {found} times in {file}")
        mutants.append((name, what, file, old, new))
    return mutants


def copy_tree(to):
    for item in TREE:
        source, target = ROOT / item, to / item
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
    run(["cmake", "-S", ".", "-B", "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
         "-DPERDURE_PARTS=runtime/base;runtime/control", "-DPERDURE_TESTS=control;sim", "-DPERDURE_CUDA=OFF",
         "-DCMAKE_CXX_FLAGS=-w", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"], to)
    run(["ninja", "-C", "build", "-j1", "perdure_sim", *PROGRAMS], to, timeout=3600)


def run(command, cwd, timeout=600):
    # Copies of the tree compile the same files.
    environment = os.environ | {"CCACHE_BASEDIR": str(cwd), "CCACHE_NOHASHDIR": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=timeout)
    if done.returncode != 0 and command[0] in ("cmake", "ninja"):
        raise RuntimeError(done.stdout[-2000:])
    return done


def one(tree, mutant, limit):
    """(by which kind of test it was killed or "", by what, seeds run)"""
    name, _, file, old, new = mutant
    path = tree / file
    text = path.read_text()
    path.write_text(text.replace(old, new))
    ran = 0
    try:
        for program in PROGRAMS:
            run(["ninja", "-C", "build", "-j1", program], tree)
            tests = run([f"build/tests/{program}", "--gtest_fail_fast"], tree)
            if tests.returncode != 0:
                # Who failed, or where it crashed.
                names = (re.findall(r"\[  FAILED  \] (\S+)", tests.stdout)
                         or re.findall(r"\[ RUN      \] (\S+)", tests.stdout)[-1:])
                return "unit test", names[0] if names else "crashes", ran
        run(["ninja", "-C", "build", "-j1", "perdure_sim"], tree)
        for schedule in sorted((tree / "tests/sim/schedules").iterdir()):
            done = run(["build/tests/perdure_sim", "--schedule", str(schedule)], tree)
            if done.returncode != 0:
                return "schedule", f"{schedule.stem}: {done.stdout.strip().splitlines()[-1][:80]}", ran
        for first, count in BATCHES:
            count = min(count, limit - ran)
            if count <= 0:
                break
            done = run(["build/tests/perdure_sim", str(first), str(count), "--stop"], tree)
            if done.returncode != 0:
                seed = re.search(r"seed (\d+): VIOLATION[^:]*: (.*)", done.stdout)
                what = f"{seed[1]}: {seed[2][:80]}" if seed else f"ends: {done.stdout[-100:].strip()}"
                return "seed", what, ran + (int(seed[1]) - first + 1 if seed else 0)
            ran += count
        return "", "SURVIVED", ran
    except RuntimeError as error:
        return "", f"DOES NOT COMPILE: {str(error)[-400:]}", ran
    except subprocess.TimeoutExpired as error:
        return "time", f"{pathlib.Path(error.cmd[0]).name} does not end", ran
    finally:
        path.write_text(text)


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--limit", type=int, default=40000, help="schedules per mutant")
    options.add_argument("--jobs", type=int, default=2)
    options.add_argument("--only", action="append", default=[])
    args = options.parse_args()
    here = pathlib.Path(__file__).parent
    mutants = [m for m in parse(here / "mutants.txt") if not args.only or m[0] in args.only]
    proven = re.findall(r"^== (\S+)$", (here / "equivalent.txt").read_text(), flags=re.M)
    with tempfile.TemporaryDirectory() as top:
        trees = queue.Queue()
        for job in range(args.jobs):
            tree = pathlib.Path(top) / str(job)
            copy_tree(tree)
            trees.put(tree)

        def work(mutant):
            tree = trees.get()
            try:
                return mutant, one(tree, mutant, args.limit)
            finally:
                trees.put(tree)

        survivors, kinds = [], collections.Counter()
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            for future in concurrent.futures.as_completed([pool.submit(work, m) for m in mutants]):
                (name, *_), (kind, what, ran) = future.result()
                print(f"{name:34} {ran:7} {kind} {what}", flush=True)
                kinds[kind] += 1
                if not kind:
                    survivors.append(name)
        unproven = [name for name in survivors if name not in proven]
        counted = len(mutants) - (len(survivors) - len(unproven))
        share = 100 * (counted - len(unproven)) / max(counted, 1)
        by = ", ".join(f"{count} by {kind}" for kind, count in kinds.items() if kind)
        print(f"{len(mutants)} mutants: {len(mutants) - len(survivors)} killed ({by}), {len(survivors) - len(unproven)} equivalent, "
              f"{len(unproven)} survived: {share:.1f} % of those that can be told")
        return 0 if share >= 98 and not unproven else 1


if __name__ == "__main__":
    sys.exit(main())
