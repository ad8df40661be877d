#!/usr/bin/env python3
"""Compares params.h5 (and view.h5, where there is one) with the part files, by h5py alone.

tensors_oracle.py CHECKPOINT [PARAMS.h5]
"""

import sys

import h5py
import numpy as np


def slice_begin(row, s):
    extent = row["rows"] if row["axis"].rstrip(b"\0") == b"rows" else row["cols"]
    each = -(-extent // row["slices"])
    return min(s * each, extent), min((s + 1) * each, extent)


def whole_tensors(checkpoint, part_name):
    """Each tensor put together from its atoms, by docs/formats.md."""
    import glob

    tensors = {}
    for path in sorted(glob.glob(f"{checkpoint}/part-*.h5")):
        with h5py.File(path) as f:
            table = f["index/tensors"][:]
            for row in f["index/atoms"][:]:
                spec = table[row["tensor"]]
                name = spec["name"].rstrip(b"\0").decode()
                out = tensors.setdefault(name, np.full((spec["rows"], spec["cols"]), np.nan, np.float32))
                axis = spec["axis"].rstrip(b"\0")
                begin, end = slice_begin(spec, row["slice"]) if axis != b"none" else (0, 0)
                view = {b"none": out, b"rows": out[begin:end], b"cols": out[:, begin:end]}[axis]
                values = f["state"][part_name][row["offset"] : row["offset"] + row["count"]]
                k = np.arange(row["begin"], row["begin"] + row["count"])
                view[k // view.shape[1], k % view.shape[1]] = values
    return tensors


def same(a, b):
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def round_to_bf16(values):
    bits = values.view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


def main():
    checkpoint = sys.argv[1]
    compared = 0
    if len(sys.argv) > 2:
        wanted = whole_tensors(checkpoint, "param")
        with h5py.File(sys.argv[2]) as f:
            assert set(f) == set(wanted), set(f) ^ set(wanted)
            for name, values in wanted.items():
                narrow = f[name].id.get_type().get_size() == 2
                found = np.empty(values.shape, np.float32)
                f[name].read_direct(found)  # HDF5 widens what is narrower.
                assert same(found, round_to_bf16(values) if narrow else values), name
                compared += 1
    else:
        with h5py.File(f"{checkpoint}/view.h5") as f:
            for part in ("param", "exp_avg", "exp_avg_sq"):
                wanted = whole_tensors(checkpoint, part)
                assert set(f[part]) == set(wanted), set(f[part]) ^ set(wanted)
                for name, values in wanted.items():
                    assert f[part][name].is_virtual
                    assert same(f[part][name][:], values), (part, name)
                    compared += 1
    print(f"{compared} tensors are the same")


if __name__ == "__main__":
    main()
