#!/usr/bin/env python3
"""Checks `perdure data build` and `perdure data inspect` against other readers and writers of Megatron's format.

One partner is written here from the format's table alone, with numpy. The other is Megatron itself (PyPI
megatron-core), where it can be imported:

    python3 -m venv --system-site-packages /tmp/v && /tmp/v/bin/pip install --no-deps megatron-core numpy torch
    /tmp/v/bin/python tests/data/megatron_oracle.py --perdure build/perdure --require-megatron

Exit codes: 0 all agree, 1 a difference, 77 numpy is missing (a skip for CTest).
"""
import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import warnings

try:
    import numpy
except ImportError:
    print("skipped: numpy is not installed")
    sys.exit(77)

DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
TEXTS = [
    "The quick brown fox.\n",
    "Où la forêt s’éclaircit : « très cher » 🙂\n",
    "Übermäßig langsam\n",
    "¿Añoraba a su querido cachorro?\n",
    "Perché è così\n",
]


def read_dataset(prefix):
    """(code, documents, documents being lists of sequences, each an array of tokens)."""
    with open(prefix + ".idx", "rb") as file:
        idx = file.read()
    assert idx[:9] == b"MMIDIDX\x00\x00", idx[:9]
    version, code, sequences, entries = struct.unpack_from("<QBQQ", idx, 9)
    assert version == 1, version
    lengths = numpy.frombuffer(idx, "<i4", sequences, 34)
    offsets = numpy.frombuffer(idx, "<i8", sequences, 34 + 4 * sequences)
    bounds = numpy.frombuffer(idx, "<i8", entries, 34 + 12 * sequences)
    assert len(idx) == 34 + 12 * sequences + 8 * entries, len(idx)
    with open(prefix + ".bin", "rb") as file:
        raw = file.read()
    width = numpy.dtype(DTYPES[code]).itemsize
    assert len(raw) == width * int(lengths.sum())
    rows = [numpy.frombuffer(raw, DTYPES[code], length, offset) for length, offset in zip(lengths, offsets)]
    assert bounds[0] == 0 and bounds[-1] == sequences
    return code, [rows[first:last] for first, last in zip(bounds[:-1], bounds[1:])]


def write_dataset(prefix, code, documents):
    width = numpy.dtype(DTYPES[code]).itemsize
    rows = [row for document in documents for row in document]
    lengths = numpy.array([len(row) for row in rows], "<i4")
    offsets = numpy.concatenate([[0], numpy.cumsum(lengths.astype("<i8"))[:-1] * width]).astype("<i8")
    bounds = numpy.cumsum([0] + [len(document) for document in documents]).astype("<i8")
    with open(prefix + ".idx", "wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(rows), len(bounds)))
        file.write(lengths.tobytes() + offsets.tobytes() + bounds.tobytes())
    with open(prefix + ".bin", "wb") as file:
        for row in rows:
            file.write(numpy.asarray(row, DTYPES[code]).tobytes())


def load_megatron():
    """Megatron's module, or None and the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from megatron.core.datasets import indexed_dataset
        return indexed_dataset, ""
    except Exception as error:  # Its imports fail in many ways, all of which mean: not here.
        return None, f"{type(error).__name__}: {error}"


def megatron_write(module, prefix, dtype, documents):
    import torch

    builder = module.IndexedDatasetBuilder(prefix + ".bin", dtype=dtype)
    for document in documents:
        for row in document:
            builder.add_item(torch.from_numpy(numpy.asarray(row, numpy.int64)))
        builder.end_document()
    builder.finalize(prefix + ".idx")


def megatron_read(module, prefix):
    dataset = module.IndexedDataset(prefix)
    bounds = dataset.document_indices
    # Copies: its arrays look into a map that is closed with the dataset.
    return [[numpy.array(dataset[i]) for i in range(first, last)] for first, last in zip(bounds[:-1], bounds[1:])]


class Checker:
    def __init__(self, perdure, folder):
        self.perdure = perdure
        self.folder = folder
        self.failures = 0

    def path(self, name):
        return os.path.join(self.folder, name)

    def check(self, what, good):
        print(("ok: " if good else "FAILED: ") + what)
        self.failures += not good

    def run(self, *arguments):
        done = subprocess.run([self.perdure, "data", *arguments], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stderr}")
        return json.loads(done.stdout)

    def same(self, left, right):
        return len(left) == len(right) and all(
            len(a) == len(b) and all(numpy.array_equal(x, y) for x, y in zip(a, b)) for a, b in zip(left, right))

    def inspect_agrees(self, what, prefix, documents):
        """What perdure reads of a dataset equals `documents`."""
        rows = [row for document in documents for row in document]
        tokens = numpy.concatenate(rows).astype(numpy.int64)
        shown = self.run("inspect", prefix, "--sample", "0", "--context", str(len(tokens) - 1), "--json")
        self.check(what, shown["documents"] == len(documents) and shown["sequences"] == len(rows)
                   and shown["tokens"] == len(tokens) and shown["max_token"] == tokens.max()
                   and shown["excerpts"][0]["ids"] == tokens.tolist())


def made_documents(vocab):
    """Documents of one and of several sequences, of many lengths."""
    random = numpy.random.RandomState(7)
    return [[random.randint(0, vocab, random.randint(1, 60)) for _ in range(1 + i % 3)] for i in range(12)]


def check_own_files(checker, megatron):
    os.mkdir(checker.path("in"))
    for i, text in enumerate(TEXTS):
        with open(checker.path(f"in/{i}.txt"), "w", encoding="utf-8") as file:
            file.write(text)
    expected = [[numpy.array(list(text.encode()) + [256])] for text in TEXTS]
    prefix = checker.path("own")
    checker.run("build", "--from", checker.path("in"), "--tokenizer", "byte", "-o", prefix, "--json")
    code, documents = read_dataset(prefix)
    checker.check("numpy reads what perdure wrote", code == 8 and checker.same(documents, expected))
    again = checker.path("again")
    write_dataset(again, 8, documents)
    for ending in (".idx", ".bin"):
        with open(prefix + ending, "rb") as one, open(again + ending, "rb") as two:
            checker.check(f"numpy writes the same {ending}", one.read() == two.read())
    if megatron is None:
        return
    checker.check("Megatron reads what perdure wrote", checker.same(megatron_read(megatron, prefix), expected))
    theirs = checker.path("theirs")
    megatron_write(megatron, theirs, megatron.DType.optimal_dtype(257), expected)
    for ending in (".idx", ".bin"):
        with open(prefix + ending, "rb") as one, open(theirs + ending, "rb") as two:
            checker.check(f"Megatron writes the same {ending}", one.read() == two.read())


def check_other_files(checker, megatron):
    for code, vocab in ((1, 256), (2, 128), (3, 32768), (8, 65536), (4, 2**31 - 1), (5, 2**31 - 1)):
        documents = made_documents(vocab)
        prefix = checker.path(f"numpy{code}")
        write_dataset(prefix, code, documents)
        checker.inspect_agrees(f"perdure reads {DTYPES[code]} of numpy", prefix, documents)
        if megatron is None:
            continue
        prefix = checker.path(f"megatron{code}")
        megatron_write(megatron, prefix, numpy.dtype(DTYPES[code]).type, documents)
        checker.inspect_agrees(f"perdure reads {DTYPES[code]} of Megatron", prefix, documents)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--perdure", required=True, help="the perdure command")
    parser.add_argument("--require-megatron", action="store_true", help="fail where megatron-core cannot be imported")
    options = parser.parse_args()
    megatron, reason = load_megatron()
    print("megatron-core: " + ("loaded" if megatron else "not used, " + reason))
    with tempfile.TemporaryDirectory() as folder:
        checker = Checker(os.path.abspath(options.perdure), folder)
        if options.require_megatron:
            checker.check("megatron-core can be imported", megatron is not None)
        check_own_files(checker, megatron)
        check_other_files(checker, megatron)
    print(f"{checker.failures} failed")
    return 1 if checker.failures else 0


if __name__ == "__main__":
    sys.exit(main())
