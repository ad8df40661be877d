"""Measures saving and loading on the disk of a directory, as ratios within one run of this script.

usage: ckpt_bench.py BUILD_DIR [--directory DIR] [--hidden N] [--rounds N] [--torch-python PYTHON] [--skip-torch] [-o FILE]

  save   one rank's state into a part file, digested and synced, against direct writing      (goal: at least 0.90)
  load   every atom of it, checked, against direct reading of the file                       (goal: at least 0.90)
  stall  what training waits for a save, against one copy of the state                       (goal: at most 1.1)
  torch  both against PyTorch's distributed checkpoint of the same tensors, where it is installed (goal: at least 2)

BUILD_DIR/bench/ckpt_bench does the first three and is built by name; --hidden 768 makes 3.8 GB of state.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent


def run(command):
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    print("\n".join(lines[:-1]), flush=True)
    return json.loads(lines[-1])


def against_torch(arguments, ours, folder):
    tensors = pathlib.Path(folder) / "tensors.json"
    tensors.write_text(json.dumps(ours["tensors"]))
    command = [arguments.torch_python, HERE / "torch_dcp.py", folder, tensors, str(arguments.rounds)]
    theirs = run([str(word) for word in command])
    save = min(statistics.median(times) for times in theirs["save"].values())
    load = statistics.median(theirs["load"])
    for what, seconds in (("save", save), ("load", load)):
        mine = statistics.median(ours[what])
        theirs[what + " ratio"] = seconds / mine
        print(f"PyTorch {theirs['torch']} {what}: {seconds:.3f} s, ours {mine:.3f} s: {seconds / mine:.2f} times as fast")
    return theirs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--directory", default=tempfile.gettempdir())
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--skip-torch", action="store_true")
    parser.add_argument("-o", "--output", help="all numbers as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        bench = pathlib.Path(arguments.build) / "bench/ckpt_bench"
        result = run([str(bench), folder, str(arguments.hidden), str(arguments.rounds)])
        if not arguments.skip_torch:
            result["torch"] = against_torch(arguments, result, folder)
    if arguments.output:
        pathlib.Path(arguments.output).write_text(json.dumps(result))


main()
