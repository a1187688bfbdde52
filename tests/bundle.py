# SPDX-License-Identifier: MIT
"""Token files for `tenon dump`, and the bundles that it writes."""
import json
import random
import struct


def tokens(path, b, length, vocab, last=None):
    """A file of b * (length + 1) random tokens; the last one may be given."""
    draw = random.Random(1)
    ids = [draw.randrange(vocab) for _ in range(b * (length + 1))]
    if last is not None:
        ids[-1] = last
    with open(path, "wb") as f:
        f.write(struct.pack(f"<{len(ids)}i", *ids))
    return ids


def masked(path, b, length, vocab):
    """A file of b * length random inputs and as many targets, a third of them -1."""
    draw = random.Random(2)
    ids = [draw.randrange(vocab) for _ in range(2 * b * length)]
    ids = [-1 if i >= b * length and i % 3 == 0 else token for i, token in enumerate(ids)]
    with open(path, "wb") as f:
        f.write(struct.pack(f"<{len(ids)}i", *ids))


def bundle(path):
    """({name: header entry}, {name: bytes}, meta) of a safetensors file."""
    with open(path, "rb") as f:
        blob = f.read()
    size = struct.unpack("<Q", blob[:8])[0]
    header = json.loads(blob[8:8 + size])
    meta = header.pop("__metadata__", {})
    data = {n: blob[8 + size + e["data_offsets"][0]:8 + size + e["data_offsets"][1]]
            for n, e in header.items()}
    return header, data, meta


def floats(data):
    return struct.unpack(f"<{len(data) // 4}f", data)
