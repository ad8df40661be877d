#!/usr/bin/env python3
"""Reads one tensor of a checkpoint by docs/formats.md alone, once by the manifest's offsets and once through h5py.

    independent_reader.py CHECKPOINT_DIR TENSOR [param|exp_avg|exp_avg_sq]

Needs numpy and h5py; with the module xxhash it also checks the digests. Shares no code with Perdure. Exits 1 when the two
ways differ or a digest is wrong.
"""
import json
import os
import struct
import sys

import h5py
import numpy

try:
    import xxhash
except ImportError:
    xxhash = None


def digest(data):
    return xxhash.xxh3_128(data).hexdigest()


def slices(tensor):
    """(row, column, rows, columns) of each slice."""
    rows, cols, axis, count = tensor["rows"], tensor["cols"], tensor["axis"], tensor["slices"]
    if axis == "none":
        return [(0, 0, rows, cols)]
    extent = rows if axis == "rows" else cols
    each = -(-extent // count)
    edges = [min(i * each, extent) for i in range(count + 1)]
    if axis == "rows":
        return [(a, 0, b - a, cols) for a, b in zip(edges, edges[1:])]
    return [(0, a, rows, b - a) for a, b in zip(edges, edges[1:])]


def atoms(manifest):
    """(tensor, slice, begin, count) of every atom, in order."""
    most = manifest["atom_elements"]
    for t, tensor in enumerate(manifest["tensors"]):
        for s, (_, _, rows, cols) in enumerate(slices(tensor)):
            for begin in range(0, rows * cols, most):
                yield t, s, begin, min(most, rows * cols - begin)


def read_manifest(directory):
    text = open(os.path.join(directory, "manifest.json"), "rb").read()
    manifest = json.loads(text)
    assert manifest["format"] == "perdure checkpoint" and manifest["version"] == 1
    if xxhash:
        assert digest(text[:text.rindex(b'"digest": "')]) == manifest["digest"], "manifest.json"
    return manifest


def places(part, counts):
    """Where each atom's elements begin in the part's datasets, and how long these are."""
    begins, at, runs = [], 0, iter(part["runs"])
    left = 0
    for count in counts:
        if left == 0:
            left, at = next(runs), -(-at // 262144) * 262144
        begins.append(at)
        at, left = at + count, left - 1
    return begins, at


def read_part(directory, manifest, part, table, which):
    """atom -> its elements of the state part `which`; its digest is checked over all three."""
    path = os.path.join(directory, part["file"])
    assert os.path.getsize(path) == part["bytes"], path
    counts = [table[a][3] for a in part["atoms"]]
    begins, length = places(part, counts)
    found = {}
    with open(path, "rb") as raw, h5py.File(path, "r") as file:
        names = manifest["state_parts"]
        data = []
        for name, offset in zip(names, part["offsets"]):
            raw.seek(offset)
            data.append(numpy.frombuffer(raw.read(4 * length), "<f4"))
            assert data[-1].tobytes() == file["state"][name][...].tobytes(), (path, name)
        index = file["index/atoms"][...]
        assert index["atom"].tolist() == part["atoms"] and index["count"].tolist() == counts, path
        assert index["offset"].tolist() == begins, path
        for row, wanted in zip(index, part["atom_digests"]):
            run = slice(row["offset"], row["offset"] + row["count"])
            assert tuple(row)[1:5] == table[row["atom"]], path
            if xxhash:
                assert digest(b"".join(d[run].tobytes() for d in data)) == wanted, (path, row)
            found[int(row["atom"])] = data[names.index(which)][run]
    return found


def certificate(manifest, table):
    digests = {a: d for p in manifest["parts"] for a, d in zip(p["atoms"], p["atom_digests"])}
    message = struct.pack("<QQQ", manifest["step"], manifest["samples"], len(manifest["tensors"]))
    for t, tensor in enumerate(manifest["tensors"]):
        own = b"".join(bytes.fromhex(digests[a]) for a in range(len(table)) if table[a][0] == t)
        name = tensor["name"].encode()
        message += struct.pack("<Q", len(name)) + name
        message += struct.pack("<QQ", tensor["rows"], tensor["cols"]) + xxhash.xxh3_128(own).digest()
    message += b"".join(struct.pack("<Q", number) for number in manifest.get("gaps", []))
    return digest(message)


def main(directory, name, which="param"):
    manifest = read_manifest(directory)
    table = list(atoms(manifest))
    found = {}
    for part in manifest["parts"]:
        found.update(read_part(directory, manifest, part, table, which))
    index, tensor = next((t, x) for t, x in enumerate(manifest["tensors"]) if x["name"] == name)
    whole = numpy.empty((tensor["rows"], tensor["cols"]), "<f4")
    for s, (row, col, rows, cols) in enumerate(slices(tensor)):
        run = [found[a] for a, atom in enumerate(table) if atom[:2] == (index, s)]
        if rows * cols:
            whole[row:row + rows, col:col + cols] = numpy.concatenate(run).reshape(rows, cols)
    if xxhash:
        assert certificate(manifest, table) == manifest["certificate"], "certificate"
    print(f"{name} {which}: {whole.shape[0]} x {whole.shape[1]}, certificate {manifest['certificate']}"
          f"{'' if xxhash else ' (digests not checked: no module xxhash)'}")
    print(whole)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except AssertionError as error:
        sys.exit(f"wrong: {error}")
