#!/usr/bin/env python3
"""What a slow rank costs, and what is got back when the job has found it.

usage: slow_bench.py BUILD_DIR [--data DIR] [--share PERCENT] [--nodes N] [-o FILE]

N replicas of one rank, each on a node of its own and held to PERCENT of a core by a control group (needs root; version 1 or 2
of cgroups with the cpu controller). When the job has run for a while one rank, which is not the coordinator's, gets a third of
that. Reads from the journal after how many seconds it was named and the next generation had stepped, and the steps a second
before, while it was slow, and after. Possible is what N - 1 whole ranks and a third would do, (N - 2/3) / N of before; the goal
is 85 % of that. DIR has nano's data (perdure data build); the model is small, so that a step takes some tens of milliseconds.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from job_watch import events, wait_for

NANO = pathlib.Path(__file__).resolve().parents[2] / "launch" / "recipes" / "nano.toml"
SETTINGS = ["model.layers=2", "model.hidden=64", "model.heads=4", "model.kv_heads=4", "model.ffn=192", "layout.tensor=1",
            "layout.pipeline=1", "phase.pretrain.batch=192", "phase.pretrain.context=32", "phase.pretrain.samples=19200000"]
PERIOD, WARM, PACE = 100_000, 20, 15  # Microseconds; seconds until, and for which the pace is taken.


class Quota:
    """So much of a core for a process."""

    def __init__(self, name, pid, percent):
        self.second = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
        self.folder = f"/sys/fs/cgroup/{'' if self.second else 'cpu/'}{name}"
        os.makedirs(self.folder, exist_ok=True)
        self.set(percent)
        self.write("cgroup.procs", pid)

    def write(self, name, text):
        pathlib.Path(self.folder, name).write_text(str(text))

    def set(self, percent):
        quota = PERIOD * percent // 100
        self.write("cpu.max" if self.second else "cpu.cfs_quota_us", f"{quota} {PERIOD}" if self.second else quota)

    def close(self):
        for pid in pathlib.Path(self.folder, "cgroup.procs").read_text().split():
            try:
                pathlib.Path(self.folder).parent.joinpath("cgroup.procs").write_text(pid)
            except OSError:
                pass  # It has ended.
        os.rmdir(self.folder)


def pace(run, seconds):
    """Steps a second that the journal tells from now on."""
    first, begin = len(events(run, "step")), time.monotonic()
    time.sleep(seconds)
    return (len(events(run, "step")) - first) / (time.monotonic() - begin)


def measure(arguments, run):
    perdure = str(pathlib.Path(arguments.build, "perdure"))
    command = [perdure, "run", str(NANO), "--run-dir", str(run), "--data-dir", arguments.data, "--quiet", "--nodes",
               str(arguments.nodes), "--ranks-per-node", "1"]
    for setting in SETTINGS:
        command += ["--set", setting]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    quotas = []
    try:
        wait_for("a first step", 60, lambda: events(run, "step"), job)
        status = json.loads(subprocess.check_output([perdure, "status", str(run), "--json"]))
        slow = (status["coordinator"] + arguments.nodes // 2) % arguments.nodes
        for member in status["members"]:
            quotas.append(Quota(f"slow_bench_{os.getpid()}_{member['node']}", member["ranks"][0]["pid"], arguments.share))
        time.sleep(WARM)
        result = {"nodes": arguments.nodes, "share": arguments.share, "before": pace(run, PACE)}
        index = [member["node"] for member in status["members"]].index(slow)
        quotas[index].set(arguments.share // 3)
        clock, begin = time.monotonic(), len(events(run, "step"))
        named = wait_for("a name", 120, lambda: [e for e in events(run, "evidence") if e["kind"] == "slow"])[0]
        # The clock of the journal is this machine's.
        result |= {"named": named["clock"] - clock, "right": named["node"] == slow, "percent": named["number"]}
        result["during"] = (len(events(run, "step")) - begin) / (time.monotonic() - clock)
        stepped = wait_for("the next generation", 60, lambda: events(run, "first_step")[1:])[0]
        result["stepped"] = stepped["clock"] - clock
        result["after"] = pace(run, PACE)
        result["redone"] = events(run, "generation_starting")[1]["redone"]
        result["of_possible"] = result["after"] / (result["before"] * (arguments.nodes - 2 / 3) / arguments.nodes)
        return result
    finally:
        job.send_signal(signal.SIGTERM)
        job.wait()
        for quota in quotas:
            quota.close()


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("build")
    options.add_argument("--data", required=True, help="has data/en and the others of nano.toml")
    options.add_argument("--share", type=int, default=40)
    options.add_argument("--nodes", type=int, default=4)
    options.add_argument("-o", dest="output")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, pathlib.Path(folder, "run"))
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        pathlib.Path(arguments.output).write_text(text + "\n")
    return 0 if result["right"] and result["named"] <= 60 and result["of_possible"] >= 0.85 else 1


if __name__ == "__main__":
    sys.exit(main())
