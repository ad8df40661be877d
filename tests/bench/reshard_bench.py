#!/usr/bin/env python3
"""Re-cuts one training state of 512 shards with DeepSpeed's ds_to_universal and with Perdure, in one run.

usage: reshard_bench.py BUILD_DIR [--python PYTHON] [--gib N] [--repeat K] [--warm] [--work DIR] [-o FILE]

Makes a Megatron-DeepSpeed ZeRO 1 checkpoint of Lucie's layout (tensor 4, pipeline 4, data 32) with N GiB of state, then

  universal  python -m deepspeed.checkpoint.ds_to_universal with 1, 2 and 4 workers of each kind; the fastest counts
  import     perdure ckpt import --from megatron-deepspeed of the same directory
  reshard    the same state in 512 part files -> perdure ckpt reshard --files 128     (goal: at least 20 times as fast)
  back       those 128 -> 512 files, which must be byte by byte what they were
  memory     most resident memory of reshard for --memory 64MiB, 256MiB, 1GiB, and of import

The universal checkpoint and the imported one must have the same certificate. Perdure's files are durable and have been read
back when its command ends; DeepSpeed's are neither, so a sync behind it is timed apart. PYTHON has torch and deepspeed. Before
each command the files that it reads are dropped from the page cache, or read into it with --warm.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
MAKER = HERE.parent / "convert" / "megatron_checkpoint.py"
LAYOUT, LAYERS, HEADS, KV_HEADS = [4, 4, 32], 32, 32, 8
PROGRESS = {"step": 120, "samples": 960, "tokens": 61440}
MIB = 2**20
PAUSE = 1.0  # Seconds without a look at the command.
# More threads inside of PyTorch make the converter slower: it works on many small tensors.
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def shape_of(gib):
    """Lucie's proportions; the vocabulary takes what is left of the state."""
    parameters = gib * 2**30 / 12
    hidden = 64
    while 400 * (hidden + 64) ** 2 <= parameters:
        hidden += 64
    head = max(8, (hidden // HEADS + 4) // 8 * 8)  # As Perdure's kernels want it.
    layer = hidden * head * (2 * HEADS + 2 * KV_HEADS) + 9 * hidden * hidden + 2 * hidden
    vocab = max(512, int((parameters - LAYERS * layer - hidden) / (2 * hidden)))
    model = {"layers": LAYERS, "hidden": hidden, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": head, "ffn": 3 * hidden,
             "vocab": vocab}
    return model, LAYERS * layer + hidden + 2 * vocab * hidden


def run_toml(model):
    shape = "\n".join(f"{key} = {value}" for key, value in model.items())
    return f"""[run]
name = "reshard-bench"
[model]
kind = "llama"
{shape}
[data]
tokenizer = "none"
[[phase]]
name = "all"
samples = {10 * PROGRESS["samples"]}
context = {PROGRESS["tokens"] // PROGRESS["samples"]}
rope_theta = 500000.0
batch = {PROGRESS["samples"] // PROGRESS["step"]}
rate = 3e-4
mixture = [ {{ path = "none", weight = 1.0 }} ]
[optimizer]
kind = "adamw"
[numerics]
tensor_shards = 4
atom_elements = 65536
"""


def files_of(folder):
    return sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())


def bytes_of(folder):
    return sum(path.stat().st_size for path in files_of(folder))


def digest_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(MIB):
            digest.update(chunk)
    return digest.hexdigest()


class Bench:
    def __init__(self, arguments, work):
        self.a, self.work = arguments, pathlib.Path(work)
        self.perdure = str(pathlib.Path(arguments.build).resolve() / "perdure")
        self.model, self.parameters = shape_of(arguments.gib)
        self.state_mib = self.parameters * 12 / MIB

    def at(self, name):
        return str(self.work / name)

    def prepare(self, source):
        """The same for every command that is timed."""
        os.sync()
        for path in files_of(source):
            descriptor = os.open(path, os.O_RDONLY)
            if self.a.warm:
                while os.read(descriptor, MIB):
                    pass
            else:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    def timed(self, source, command, target=None):
        """Of a command: seconds alone and with a sync behind it, of processors, most resident MiB of its largest process."""
        if target:
            shutil.rmtree(target, ignore_errors=True)
        self.prepare(source)
        with open(self.at("log"), "w+b") as log:
            start = last = time.monotonic()
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT})
            pid, paused = 0, 0.0
            while pid == 0:
                time.sleep(0.01)
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                now = time.monotonic()
                if now - last > PAUSE:  # We were stopped, and the command with us.
                    paused += now - last
                last = now
            seconds = last - start - paused
            os.sync()
            if status != 0:
                log.seek(0)
                raise SystemExit(f"{' '.join(command)} failed:\n{log.read()[-3000:].decode(errors='replace')}")
        return {"seconds": seconds, "synced": seconds + time.monotonic() - last, "paused": paused, "cpu": usage.ru_utime + usage.ru_stime,
                "resident_mib": usage.ru_maxrss / 1024}

    def best(self, *arguments):
        return min((self.timed(*arguments) for _ in range(self.a.repeat)), key=lambda run: run["seconds"])

    def make(self):
        wanted = {"model": self.model, "layout": LAYOUT, "padded": -(-self.model["vocab"] // 512) * 512,
                  "progress": PROGRESS}
        start = time.monotonic()
        subprocess.run([self.a.python, str(MAKER), self.at("megatron"), json.dumps(wanted)], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        count = len(list((self.work / "megatron").rglob("*optim_states.pt")))
        print(f"{self.parameters / 1e6:.1f} M parameters, {self.state_mib:.0f} MiB of state in {count} optimizer files, made in "
              f"{time.monotonic() - start:.0f} s", flush=True)
        (self.work / "run.toml").write_text(run_toml(self.model))

    def universal(self):
        tries = {}
        source = self.at(f"megatron/global_step{PROGRESS['step']}")
        target = self.at("universal/global_step120_universal")
        for workers in (1, 2, 4):
            command = [self.a.python, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", source,
                       "--output_folder", target, "--num_extract_workers", str(workers), "--num_merge_workers",
                       str(workers)]
            tries[workers] = self.best(source, command, target)
            print(f"ds_to_universal, {workers} workers: {tries[workers]['seconds']:.1f} s, "
                  f"{tries[workers]['cpu']:.1f} s of processors", flush=True)
        (self.work / "universal/latest_universal").write_text("global_step120_universal")
        empty = [self.a.python, "-m", "deepspeed.checkpoint.ds_to_universal", "--help"]
        # What a machine's other work has disturbed least.
        workers = min(tries, key=lambda count: tries[count]["seconds"])
        return tries[workers] | {"workers": workers, "start_seconds": self.best(source, empty)["seconds"]}

    def ckpt(self, *words):
        return [self.perdure, "ckpt", *words]

    def imported(self, form, name):
        source = self.at("universal" if form == "universal" else "megatron")
        command = self.ckpt("import", self.at("run.toml"), source, "--from", form, "--run-dir", self.at(name))
        return self.best(source, command, self.at(name))

    def manifest(self, name):
        path = self.work / name / "manifest.json"
        if not path.exists():
            path, = (self.work / name / "ckpt").glob("*/manifest.json")
        return json.loads(path.read_text())

    def reshard(self, source, target, files, *more):
        command = self.ckpt("reshard", self.at(source), "-o", self.at(target), "--files", str(files), *more)
        return self.best(self.at(source), command, self.at(target))

    def check(self):
        """What every tool made is the same state, and 512 files are again what they were."""
        manifests = {name: self.manifest(name) for name in ("run", "from_universal", "c512", "c128", "again")}
        certificates = {name: manifest["certificate"] for name, manifest in manifests.items()}
        assert len(set(certificates.values())) == 1, certificates
        assert [len(manifests[name]["parts"]) for name in ("c512", "c128", "again")] == [512, 128, 512]
        assert manifests["c512"] == manifests["again"]
        for path in files_of(self.at("c512")):
            assert digest_of(path) == digest_of(self.work / "again" / path.name), path.name
        return certificates["run"]

    def run(self):
        self.make()
        result = {"parameters": self.parameters, "state_mib": self.state_mib, "model": self.model, "layout": LAYOUT,
                  "cache": "warm" if self.a.warm else "dropped", "repeat": self.a.repeat}
        result["universal"] = self.universal()
        result["import"] = self.imported("megatron-deepspeed", "run")
        self.imported("universal", "from_universal")
        self.reshard("run", "c512", 512)
        result["reshard"] = self.reshard("c512", "c128", 128)
        result["back"] = self.reshard("c128", "again", 512)
        result["certificate"] = self.check()
        result["memory"] = {memory: self.reshard("c512", "m", 128, "--memory", memory)
                            for memory in ("64MiB", "256MiB", "1GiB")}
        for path, name in (("universal", "universal"), ("c128", "reshard")):
            result[name]["output_mib"] = bytes_of(self.at(path)) / MIB
        return result


def show(result):
    theirs = result["universal"]
    print(f"\npage cache {result['cache']}, best of {result['repeat']}; state of {result['state_mib']:.0f} MiB, certificate "
          f"{result['certificate']} everywhere")
    print(f"{'':34}{'seconds':>9}{'synced':>9}{'cpu':>8}{'MiB/s':>8}{'resident':>11}{'ratio':>8}{'synced':>8}{'cpu':>8}")
    rows = [(f"ds_to_universal, {theirs['workers']} workers", theirs), ("perdure ckpt import", result["import"]),
            ("perdure ckpt reshard 512 to 128", result["reshard"]), ("perdure ckpt reshard 128 to 512", result["back"])]
    for name, row in rows:
        ratios = "".join(f"{theirs[key] / row[key]:8.1f}" for key in ("seconds", "synced", "cpu"))
        print(f"{name:34}{row['seconds']:9.2f}{row['synced']:9.2f}{row['cpu']:8.2f}"
              f"{result['state_mib'] / row['seconds']:8.0f}{row['resident_mib']:7.0f} MiB{ratios}")
    print(f"without the {theirs['start_seconds']:.1f} s that Python takes to start: "
          f"{(theirs['seconds'] - theirs['start_seconds']) / result['reshard']['seconds']:.1f} times (goal: 20)")
    for memory, row in result["memory"].items():
        print(f"reshard --memory {memory}: {row['resident_mib']:.0f} MiB resident, {row['seconds']:.2f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--work", help="where to make a folder for all files, 9 times the state (default: BUILD_DIR)")
    parser.add_argument("-o", "--output")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reshard_bench.", dir=arguments.work or arguments.build) as work:
        result = Bench(arguments, work).run()
    show(result)
    if arguments.output:
        pathlib.Path(arguments.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
