#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Check a `tenon dump` bundle against an independent PyTorch model in float64.

    tenon plan --json >PLAN.json
    torch_ref.py [--tolerance 1e-9] PLAN.json BUNDLE.safetensors

Reads the configuration from the bundle and the stack from the plan of the same
binary, recomputes logits, loss and every gradient from the bundle's parameters and
tokens, and compares tensor by tensor: the largest absolute difference over the
largest absolute value of the reference. Exit status: 0 all within the tolerance, 1
not, 2 unusable input.
"""
import argparse
import json
import struct
import sys

try:
    import torch
except ImportError:
    sys.exit("torch_ref.py: PyTorch is missing; install the package python3-torch")

import torch_model
from dotconfig import DotConfig

DTYPES = {"F64": (torch.float64, 8), "F32": (torch.float32, 4), "I32": (torch.int32, 4)}

# Round-off of a few thousand chained float64 operations is about 1e-12; a wrong
# term is visible at 1e-6 and above.
TOLERANCE = 1e-9


# Prefixes of what is trained, and of what follows it.
KINDS = ("param.", "state.")


class BundleError(Exception):
    """A bundle that cannot be compared."""


def read_safetensors(path):
    """({name: tensor}, {meta}) of a safetensors file."""
    with open(path, "rb") as f:
        blob = f.read()
    if len(blob) < 8:
        raise BundleError(f"{path}: {len(blob)} bytes, no safetensors header")
    size = struct.unpack("<Q", blob[:8])[0]
    if size > len(blob) - 8:
        raise BundleError(f"{path}: header of {size} bytes in a file of {len(blob)}")
    header = json.loads(blob[8:8 + size])
    meta = header.pop("__metadata__", {})
    data = bytearray(blob[8 + size:])
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype, width = DTYPES[entry["dtype"]]
        flat = torch.frombuffer(data, dtype=dtype, offset=begin, count=(end - begin) // width)
        tensors[name] = flat.reshape(entry["shape"]).clone()
    return tensors, meta


def parameters(want, tensors):
    """The bundle's parameters and state in float64; their names and shapes must be the
    model's."""
    found = {name[6:]: t for name, t in tensors.items() if name.startswith(KINDS)}
    for name in sorted(set(found) ^ set(want)):
        where = "missing from the bundle" if name in want else "not in the model"
        raise BundleError(f"tensor param.{name} is {where}")
    for name, t in found.items():
        if tuple(t.shape) != want[name]:
            raise BundleError(f"param.{name} has shape {list(t.shape)}, "
                              f"the model {list(want[name])}")
    return {name: t.double().requires_grad_("param." + name in tensors)
            for name, t in found.items()}


def tokens(tensors):
    """Inputs and targets [B,T] of a bundle."""
    if "tokens" in tensors:
        return tensors["tokens"][:, :-1].long(), tensors["tokens"][:, 1:].long()
    return tensors["inputs"].long(), tensors["targets"].long()


def recompute(tensors, model):
    """{name: tensor} of logits, loss and gradients in float64."""
    params = parameters(model.shapes, tensors)
    logits, loss, aux = model.forward(params, *tokens(tensors))
    (loss if aux is None else loss + aux).backward()
    out = {"logits": logits.detach(), "loss": loss.detach().reshape(1)}
    if aux is not None:
        out["loss_aux"] = aux.detach().reshape(1)
    for name, p in params.items():
        if not p.requires_grad:
            continue
        out["grad." + name] = torch.zeros_like(p) if p.grad is None else p.grad
    return out


def difference(got, want):
    """max|got - want| / max|want|; where both are minus infinity they agree."""
    got = got.double()
    if got.shape != want.shape:
        return float("inf")
    same = (got == want) & got.isinf()
    gap = (got - want).masked_fill(same, 0.0).abs().max().item()
    scale = want.masked_fill(same, 0.0).abs().max().item()
    if gap != gap:
        return float("inf")
    return gap / scale if scale else (0.0 if gap == 0 else float("inf"))


def compare(plan, path, tolerance, verbose):
    """Number of tensors that differ by more than @tolerance."""
    tensors, meta = read_safetensors(path)
    if "config" not in meta:
        raise BundleError(f"{path}: no config in __metadata__")
    reference = recompute(tensors, torch_model.Model(DotConfig(meta["config"]), plan))
    bad, worst = 0, (0.0, "none")
    for name, want in reference.items():
        if name not in tensors:
            raise BundleError(f"{path}: tensor {name} is missing")
        gap = difference(tensors[name], want)
        worst = max(worst, (gap, name))
        if gap > tolerance:
            bad += 1
        if verbose or gap > tolerance:
            print(f"{'DIFFERS' if gap > tolerance else 'agrees'} {name} {gap:.3g}")
    extra = ({n for n in tensors if not n.startswith(KINDS)} - set(reference) -
             {"tokens", "inputs", "targets"})
    if extra:
        raise BundleError(f"{path}: unknown tensor {min(extra)}")
    print(f"{path}: {len(reference)} tensors, {bad} beyond {tolerance:g}; "
          f"largest relative difference {worst[0]:.3g} in {worst[1]}")
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", help="what `tenon plan --json` of the binary said")
    parser.add_argument("bundle", nargs="+")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--verbose", action="store_true", help="one line for every tensor")
    args = parser.parse_args()
    try:
        with open(args.plan, encoding="utf-8") as f:
            plan = json.load(f)
        bad = sum(compare(plan, path, args.tolerance, args.verbose) for path in args.bundle)
    except (OSError, BundleError, KeyError, ValueError) as error:
        print(f"torch_ref.py: {error}", file=sys.stderr)
        return 2
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
