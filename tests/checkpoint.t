#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checkpoints: what is written and kept, damage, other configurations, a full disk."""
import json
import os
import resource
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t            # noqa: E402
from faults import forge        # noqa: E402

FILES = ("model.safetensors", "optim.safetensors", "state.json", "manifest.json")


def flip(data):
    """One bit in the middle."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1:]


DAMAGE = {
    "cut short": lambda data: data[:-1],
    "emptied": lambda data: b"",
    "altered in one bit": flip,
    "lengthened": lambda data: data + b"\0",
}


def limit_files(size):
    """Writes past a size fail as they do on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def copy(src, dst):
    shutil.rmtree(dst, ignore_errors=True)
    shutil.copytree(src, dst, symlinks=True)
    return dst


def test_contents(whole):
    kept = t.steps(whole)
    best = os.readlink(f"{whole}/best")
    t.ok(kept[-2:] == ["ckpt-000056", "ckpt-000060"] and best in kept and len(kept) <= 3,
         "the newest CHECKPOINT_KEEP and the best are kept", f"{kept} {best}")
    t.ok(sorted(os.listdir(f"{whole}/{best}")) == sorted(FILES), "four files")
    state = json.loads(t.read(whole, "ckpt-000060", "state.json"))
    t.ok(state["step"] == 60 and state["micro"] == 180 and len(state["optim.norms"]) == 100,
         "state.json has step, data position and the window")
    rows = [r for r in t.metrics(whole) if r.get("split") == "val"]
    low = min(rows, key=lambda r: float(r["loss"]))
    t.ok(best == f"ckpt-{low['step']:06}", "best is the lowest validation loss")
    manifest = json.loads(t.read(whole, "ckpt-000060", "manifest.json"))
    t.ok("CONFIG_N_EMBD=16" in manifest["config"] and "gcc" in manifest["build"] and
         manifest["files"]["state.json"]["bytes"] ==
         len(t.read(whole, "ckpt-000060", "state.json")),
         "manifest.json has configuration, build and sizes")


def test_safetensors(whole):
    """By the published format: header, then tensors without holes."""
    data = t.read(whole, "ckpt-000060", "model.safetensors")
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    end = 0
    for _, x in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if x["data_offsets"][0] != end:
            break
        end = x["data_offsets"][1]
    t.ok(end == len(data) - 8 - size, "model.safetensors has no holes and no rest")
    t.ok(header["wte.weight"]["shape"] == [256, 16] and
         header["h.1.mlp.c_fc.weight"]["shape"] == [64, 16] and
         "h.1.mlp.gate_proj.weight" not in header and "h.0.mlp.gate_proj.weight" in header,
         "tensors have the published names and shapes")


def test_damage(binary, whole, tmp):
    """Any damage to the last checkpoint: named, the one before it used, the same end."""
    for name in FILES:
        for what, harm in DAMAGE.items():
            out = copy(whole, f"{tmp}/damaged")
            last = f"{out}/ckpt-000060"
            t.write(harm(t.read(last, name)), last, name)
            run = t.train(binary, out)
            diff = t.same_run(whole, out)
            t.ok(run.returncode == 0 and f"ckpt-000060/{name}" in run.stderr and
                 "resume   from step 56" in run.stdout and not diff,
                 f"{name} {what}: named, the previous one is used", diff + t.said(run))
    out = copy(whole, f"{tmp}/damaged")
    os.remove(f"{out}/ckpt-000060/optim.safetensors")
    run = t.train(binary, out)
    t.ok("ckpt-000060/optim.safetensors: No such file" in run.stderr and
         not t.same_run(whole, out), "a missing file: named, the previous one is used",
         t.said(run))
    for name in t.steps(out):
        os.remove(f"{out}/{name}/manifest.json")
    run = t.train(binary, out)
    t.ok(t.one_line(run, "none of its", "--restart", "manifest.json: No such file"),
         "no whole checkpoint: status 2, nothing is begun anew", t.said(run))


def test_leftovers(binary, whole, tmp):
    out = copy(whole, f"{tmp}/left")
    os.mkdir(f"{out}/.tmp-ckpt-000063")
    t.write(b"half", out, ".tmp-ckpt-000063", "model.safetensors")
    os.rename(f"{out}/ckpt-000060", f"{out}/.old-ckpt-000060")
    copy(f"{out}/ckpt-000056", f"{out}/.old-ckpt-000056")
    run = t.train(binary, out)
    t.ok(run.returncode == 0 and "finished" in run.stdout and
         not [n for n in os.listdir(out) if n.startswith(".")],
         "leftovers of a kill: temporary ones go, a target moved aside comes back",
         f"{t.said(run)}{os.listdir(out)}")


def test_best(binary, whole, tmp):
    """A kill between a checkpoint and its link: the next start links it."""
    out = copy(whole, f"{tmp}/unlinked")
    os.remove(f"{out}/best")
    os.symlink("ckpt-000056", f"{out}/best")
    run = t.train(binary, out)
    t.ok(run.returncode == 0 and os.readlink(f"{out}/best") == os.readlink(f"{whole}/best") !=
         "ckpt-000056", "best is linked again after a kill", t.said(run))


def test_newer(binary, whole, tmp):
    """Damaged checkpoints of later steps neither count as kept nor go."""
    out = copy(whole, f"{tmp}/newer")
    shutil.rmtree(f"{out}/ckpt-000060")
    os.mkdir(f"{out}/ckpt-000090")
    os.mkdir(f"{out}/ckpt-000091")
    run = t.train(binary, out)
    t.ok(run.returncode == 0 and "ckpt-000091/manifest.json: No such file" in run.stderr and
         {"ckpt-000056", "ckpt-000060", "ckpt-000090", "ckpt-000091"} <= set(t.steps(out)),
         "damaged checkpoints of later steps do not push good ones out", t.said(run))


def test_machine(binary, whole, tmp):
    """Other arithmetic: told in one line that names both, and no more than told."""
    out = copy(whole, f"{tmp}/machine")
    shutil.rmtree(f"{out}/ckpt-000060")
    forge(f"{out}/ckpt-000056", machine="OpenBLAS of another processor")
    run = t.train(binary, out)
    said = run.stderr.splitlines()
    device = next(x for x in run.stdout.splitlines() if x.startswith("device "))
    here = device.split(", ", 3)[3]
    t.ok(run.returncode == 0 and len(said) == 1 and f"{out}/ckpt-000056" in said[0] and
         "was OpenBLAS of another processor" in said[0] and f"is {here}" in said[0],
         "a checkpoint of another machine: one line, then it goes on", t.said(run))
    t.ok(json.loads(t.read(out, "ckpt-000060", "manifest.json"))["machine"].startswith(here),
         "the next checkpoint names this one")
    for name in ("machine", "log", "config", "files"):
        shutil.rmtree(out)
        copy(whole, out)
        forge(f"{out}/ckpt-000060", drop=[name])
        run = t.train(binary, out)
        t.ok(run.returncode == 0 and len(run.stderr.splitlines()) == 1 and
             "ckpt-000060/" in run.stderr and not t.same_run(whole, out),
             f"a manifest without {name}: the checkpoint before it is used", t.said(run))


def test_rate(small, rate, whole, tmp):
    """Another learning rate and log interval: only the first is asked about."""
    out = copy(whole, f"{tmp}/rate")
    shutil.rmtree(f"{out}/ckpt-000060")
    before = t.read(out, "metrics.jsonl")
    run = t.train(rate, out)
    t.ok(t.one_line(run, "LEARNING_RATE (was 3e-3, is 1e-3)", "--allow-config-change") and
         "LOG_INTERVAL" not in run.stderr, "a changed training symbol is refused by name",
         t.said(run))
    t.ok(t.read(out, "metrics.jsonl") == before, "a refusal changes nothing")
    run = t.train(rate, out, "--allow-config-change")
    t.ok(run.returncode == 0 and "LEARNING_RATE" in run.stderr and "from step 56" in run.stdout,
         "--allow-config-change goes on", t.said(run))
    run = t.train(small, whole, "--seed", 7)
    t.ok(t.one_line(run, "SEED (was 1337, is 7)"), "another seed is refused", t.said(run))
    run = t.train(small, whole, "--steps", 70)
    t.ok(t.one_line(run, "MAX_ITERS (was 60, is 70)"), "another length is refused", t.said(run))


def test_shape(small, shared, whole):
    """Another parameter table is refused whatever the flags, for weights too."""
    for flags in ((), ("--allow-config-change",)):
        run = t.train(shared, whole, *flags)
        t.ok(t.one_line(run, "h.0.attn.v_up", "RA_MLA_PER_HEAD_V_UP (was y, is n)"),
             f"another parameter table is refused {' '.join(flags)}", t.said(run))
    run = t.tenon(shared, "eval", "--checkpoint", whole)
    t.ok(t.one_line(run, "RA_MLA_PER_HEAD_V_UP (was y, is n)"), "eval refuses it too",
         t.said(run))


def test_eval(small, rate, whole, tmp):
    best = os.readlink(f"{whole}/best")
    row = [r for r in t.metrics(whole) if r.get("split") and r["step"] == int(best[5:])][0]
    run = t.tenon(small, "eval", "--checkpoint", whole)
    t.ok(run.returncode == 0 and
         f"step {int(best[5:])} val loss {float(row['loss']):.6f} " in run.stdout,
         "eval of a run folder gives the best loss of training", t.said(run))
    run = t.tenon(rate, "eval", "--checkpoint", f"{whole}/ckpt-000056", "--split", "train")
    t.ok(run.returncode == 0 and "step 56 train loss" in run.stdout,
         "eval takes weights of another training recipe", t.said(run))
    out = copy(whole, f"{tmp}/eval")
    t.write(flip(t.read(out, best, "model.safetensors")), out, best, "model.safetensors")
    run = t.tenon(small, "eval", "--checkpoint", out)
    t.ok(t.one_line(run, f"{best}/model.safetensors"), "eval refuses altered weights",
         t.said(run))
    run = t.tenon(small, "eval", "--checkpoint", tmp)
    t.ok(t.one_line(run, tmp, "no checkpoint"), "eval of another folder is refused", t.said(run))


def test_full_disk(binary, whole, tmp):
    """Writes fail: in the second file of a checkpoint, or in the log of a new run."""
    checkpoint = copy(whole, f"{tmp}/full-checkpoint")
    shutil.rmtree(f"{checkpoint}/ckpt-000060")
    big = os.path.getsize(f"{checkpoint}/ckpt-000056/optim.safetensors")
    for out, size in ((checkpoint, big - 1), (f"{tmp}/full-log", 3000)):
        what = os.path.basename(out)
        run = t.train(binary, out, preexec_fn=lambda size=size: limit_files(size))
        t.ok(t.one_line(run, out, "File too large"), f"{what}: one line, status 2", t.said(run))
        left = [n for n in os.listdir(out) if n.startswith(".") or n == "ckpt-000060"]
        t.ok(not left, f"{what}: nothing half-written is left", left)
        run = t.train(binary, out)
        diff = t.same_run(whole, out)
        t.ok(run.returncode == 0 and not run.stderr and not diff, f"{what}: then the same end",
             diff + t.said(run))


def main():
    small, rate, shared = (t.build(n) for n in ("small", "rate", "shared"))
    with t.folder() as tmp:
        whole = f"{tmp}/whole"
        t.train(small, whole)
        test_contents(whole)
        test_safetensors(whole)
        test_damage(small, whole, tmp)
        test_leftovers(small, whole, tmp)
        test_best(small, whole, tmp)
        test_newer(small, whole, tmp)
        test_machine(small, whole, tmp)
        test_rate(small, rate, whole, tmp)
        test_shape(small, shared, whole)
        test_eval(small, rate, whole, tmp)
        test_full_disk(small, whole, tmp)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
