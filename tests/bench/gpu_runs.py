"""What the GPU benchmarks share: Lucie's shape, token datasets, and runs of the built `perdure`.

Nothing here needs more than Python's own library.
"""

import array
import csv
import itertools
import json
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import time

PEAK = 989.4e12  # Dense bf16 of an H100 or H200 (SXM), FLOP/s.
ROOT = pathlib.Path(__file__).resolve().parents[2]
LUCIE = {"hidden": 4096, "heads": 32, "kv_heads": 8, "ffn": 12288, "vocab": 65024}


def flop_per_token(layers, context, causal=True):
    """6 for each weight of a matmul (the head's are, the embedding's are not), and attention: 6 L d T of the unmasked
    half of the square, 12 L d T of all of it."""
    m = LUCIE
    head = m["hidden"] // m["heads"]
    block = 2 * m["hidden"] * head * (m["heads"] + m["kv_heads"]) + 3 * m["hidden"] * m["ffn"]
    attention = (6 if causal else 12) * layers * m["hidden"] * context
    return 6 * (layers * block + m["hidden"] * m["vocab"]) + attention


def mfu(tokens_per_second, layers, context):
    """(causal, non-causal), of the peak."""
    return tuple(tokens_per_second * flop_per_token(layers, context, causal) / PEAK for causal in (True, False))


def write_tokens(prefix, vocab, count, seed, document=4096):
    """PREFIX.bin and .idx (docs/formats.md, section 6) of `count` tokens that follow Zipf's law, as text does."""
    prefix = pathlib.Path(prefix)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    steps = list(itertools.accumulate(1 / (i + 3) for i in range(vocab)))
    tokens = array.array("H", random.Random(seed).choices(range(vocab), cum_weights=steps, k=count))
    documents = -(-count // document)
    lengths = [min(document, count - i * document) for i in range(documents)]
    prefix.with_name(prefix.name + ".bin").write_bytes(tokens.tobytes())
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, documents, documents + 1)
    index += array.array("i", lengths).tobytes()
    index += array.array("q", [2 * i * document for i in range(documents)]).tobytes()
    index += array.array("q", range(documents + 1)).tobytes()
    prefix.with_name(prefix.name + ".idx").write_bytes(index)


def gpu_memory(what="used"):
    """Bytes of the first GPU, or 0 where nvidia-smi cannot say."""
    command = ["nvidia-smi", f"--query-gpu=memory.{what}", "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.check_output(command, text=True, timeout=20).splitlines()[0]) * 2**20
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return 0


class Failure(Exception):
    """A run did not do what it should; the message says what."""


class Perdure:
    """The built program, a folder for its runs, and the backend they use ("" where the build has no choice)."""

    def __init__(self, build, folder, backend):
        self.program = str(pathlib.Path(build).resolve() / "perdure")
        self.folder = pathlib.Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.backend = backend
        self.started = []

    def command(self, config, name, ranks, settings, until=None, backend=None):
        backend = self.backend if backend is None or not self.backend else backend
        settings = {**({"numerics.backend": backend} if backend else {}), **settings}
        words = [self.program, "run", str(config), "--run-dir", str(self.folder / name), "--data-dir", str(self.folder)]
        words += ["--nodes", "1", "--ranks-per-node", str(ranks), "--quiet"]
        words += ["--until-step", str(until)] if until else []
        return words + [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]

    def fresh(self, name):
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def start(self, *arguments, **named):
        self.started.append(
            subprocess.Popen(self.command(*arguments, **named), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        )
        return self.started[-1]

    def run(self, config, name, ranks, settings, until, timeout=120, **named):
        """To step `until`, and a checkpoint there."""
        process = self.start(config, name, ranks, settings, until=until, **named)
        try:
            errors = process.communicate(timeout=timeout)[1]
        except subprocess.TimeoutExpired:
            self.end(process)
            raise Failure(f"{name}: not at step {until} after {timeout} s") from None
        if process.returncode not in (0, 75):
            raise Failure(f"{name}: exit code {process.returncode}: {errors.strip()[-600:]}")

    def end(self, process, first=signal.SIGQUIT):
        """At once, without a checkpoint: its ranks end with it. Returns what it said."""
        if process.poll() is None:
            process.send_signal(first)
        try:
            return process.communicate(timeout=20)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[1]

    def end_all(self):
        for process in self.started:
            if process.poll() is None:
                self.end(process)

    def rows(self, name):
        try:
            with open(self.folder / name / "metrics/loss.csv", newline="") as file:
                return [row for row in csv.DictReader(file) if row["phase"]]  # The last row may be half written.
        except OSError:
            return []

    def bits(self, name):
        return [row["loss_bits"] for row in self.rows(name)]

    def await_rows(self, process, name, count, seconds, interval=0.2, meanwhile=lambda: None):
        """Waits until loss.csv has `count` rows. Failure if the process or the time ends before."""
        until = time.monotonic() + seconds
        while len(self.rows(name)) < count:
            if process.poll() is not None:
                raise Failure(f"{name}: exit code {process.returncode}: {process.communicate()[1].strip()[-600:]}")
            if time.monotonic() > until:
                raise Failure(f"{name}: {len(self.rows(name))} of {count} steps after {seconds:.0f} s")
            meanwhile()
            time.sleep(interval)

    def journal(self, name, event):
        try:
            lines = (self.folder / name / "journal.jsonl").read_text().splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # Half written.
                continue
            if entry.get("event") == event:
                found.append(entry)
        return found

    def certificate(self, name):
        output = subprocess.check_output([self.program, "ckpt", "list", str(self.folder / name), "--json"], text=True)
        listed = json.loads(output)
        return listed[-1]["certificate"] if listed else ""

    def rank_pids(self, name):
        status = json.loads(subprocess.check_output([self.program, "status", str(self.folder / name), "--json"], text=True))
        return [rank["pid"] for member in status["members"] for rank in member["ranks"]]

    def planned(self, config, settings):
        """Device bytes of one rank, by `perdure plan`."""
        settings = {**settings, **({"numerics.backend": self.backend} if self.backend else {})}
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command = [self.program, "plan", str(config), "--nodes", "1", "--ranks-per-node", "1", "--json"] + words
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            return json.loads(done.stdout)["memory_bytes_per_rank"]["total"]
        except (ValueError, KeyError):
            raise Failure(f"perdure plan: {done.stderr.strip()[-400:]}") from None


def result(part, state, text):
    """One line for the table of gpu.sh. state: ok, FAILED or skipped."""
    print("\t".join(["RESULT", part, state, text.replace("\t", " ").replace("\n", " ")]), flush=True)


def end_in_order(part):
    """SIGTERM, which comes when the time is up, ends this program through its `finally`."""

    def told(*_):
        result(part, "FAILED", "the time is up; what is not listed was not measured")
        sys.exit(1)

    signal.signal(signal.SIGTERM, told)
