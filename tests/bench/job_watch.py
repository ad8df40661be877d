"""A running job as benchmarks see it."""
import json
import sys
import time


def events(run, name):
    """The events NAME of RUN/journal.jsonl (a path); none as long as it is not there."""
    path = run / "journal.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


def wait_for(what, seconds, found, job=None):
    """What found() gives as soon as it is something; ends this program when that takes longer, or the job has ended."""
    until = time.monotonic() + seconds
    while not (got := found()):
        if job is not None and job.poll() is not None:
            sys.exit(f"{what}: the job ended with {job.returncode}")
        if time.monotonic() > until:
            sys.exit(f"{what}: not in {seconds} s")
        time.sleep(0.01)
    return got
