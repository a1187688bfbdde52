#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checkpoints: what is written and kept, damage, other configurations, a full disk."""
import json
import os
import resource
import shutil
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402

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
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def copy(src, dst):
    shutil.rmtree(dst, ignore_errors=True)
    shutil.copytree(src, dst, symlinks=True)
    return dst


def test_contents(whole):
    kept = t.steps(whole)
    best = os.readlink(f"{whole}/best")
    t.ok(kept[-2:] == ["step-000056", "step-000060"] and best in kept and len(kept) <= 3,
         "the newest CHECKPOINT_KEEP and the best are kept", f"{kept} {best}")
    t.ok(sorted(os.listdir(f"{whole}/{best}")) == sorted(FILES), "four files")
    state = json.loads(t.read(whole, "step-000060", "state.json"))
    t.ok(state["step"] == 60 and state["micro"] == 180 and len(state["optim.norms"]) == 100,
         "state.json has step, data position and the window")
    rows = [r for r in t.metrics(whole) if r.get("split") == "val"]
    low = min(rows, key=lambda r: float(r["loss"]))
    t.ok(best == f"step-{low['step']:06}", "best is the lowest validation loss")
    manifest = json.loads(t.read(whole, "step-000060", "manifest.json"))
    t.ok("CONFIG_N_EMBD=16" in manifest["config"] and "gcc" in manifest["build"] and
         manifest["files"]["state.json"]["bytes"] ==
         len(t.read(whole, "step-000060", "state.json")),
         "manifest.json has configuration, build and sizes")


def test_safetensors(whole):
    """By the published format: header, then tensors without holes."""
    data = t.read(whole, "step-000060", "model.safetensors")
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
            last = f"{out}/step-000060"
            t.write(harm(t.read(last, name)), last, name)
            run = t.train(binary, out)
            diff = t.same_run(whole, out)
            t.ok(run.returncode == 0 and f"step-000060/{name}" in run.stderr and
                 "resume   from step 56" in run.stdout and not diff,
                 f"{name} {what}: named, the previous one is used", diff + t.said(run))
    out = copy(whole, f"{tmp}/damaged")
    os.remove(f"{out}/step-000060/optim.safetensors")
    run = t.train(binary, out)
    t.ok("step-000060/optim.safetensors: No such file" in run.stderr and
         not t.same_run(whole, out), "a missing file: named, the previous one is used",
         t.said(run))
    for name in t.steps(out):
        os.remove(f"{out}/{name}/manifest.json")
    run = t.train(binary, out)
    t.ok(run.returncode == 2 and "none of its" in run.stderr and "--restart" in run.stderr,
         "no whole checkpoint: status 2, nothing is begun anew", t.said(run))


def test_leftovers(binary, whole, tmp):
    out = copy(whole, f"{tmp}/left")
    os.mkdir(f"{out}/.tmp-step-000063")
    t.write(b"half", out, ".tmp-step-000063", "model.safetensors")
    os.rename(f"{out}/step-000060", f"{out}/.old-step-000060")
    copy(f"{out}/step-000056", f"{out}/.old-step-000056")
    run = t.train(binary, out)
    t.ok(run.returncode == 0 and "finished" in run.stdout and
         not [n for n in os.listdir(out) if n.startswith(".")],
         "leftovers of a kill: temporary ones go, a target moved aside comes back",
         f"{t.said(run)}{os.listdir(out)}")


def test_best(binary, whole, tmp):
    """A kill between a checkpoint and its link: the next start links it."""
    out = copy(whole, f"{tmp}/unlinked")
    os.remove(f"{out}/best")
    os.symlink("step-000056", f"{out}/best")
    run = t.train(binary, out)
    t.ok(run.returncode == 0 and os.readlink(f"{out}/best") == os.readlink(f"{whole}/best") !=
         "step-000056", "best is linked again after a kill", t.said(run))


def test_newer(binary, whole, tmp):
    """Damaged checkpoints of later steps neither count as kept nor go."""
    out = copy(whole, f"{tmp}/newer")
    shutil.rmtree(f"{out}/step-000060")
    os.mkdir(f"{out}/step-000090")
    os.mkdir(f"{out}/step-000091")
    run = t.train(binary, out)
    t.ok(run.returncode == 0 and "step-000091/manifest.json: No such file" in run.stderr and
         {"step-000056", "step-000060", "step-000090", "step-000091"} <= set(t.steps(out)),
         "damaged checkpoints of later steps do not push good ones out", t.said(run))


def test_rate(small, rate, whole, tmp):
    """Another learning rate and log interval: only the first is asked about."""
    out = copy(whole, f"{tmp}/rate")
    shutil.rmtree(f"{out}/step-000060")
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
    run = t.tenon(rate, "eval", "--checkpoint", f"{whole}/step-000056", "--split", "train")
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
    shutil.rmtree(f"{checkpoint}/step-000060")
    big = os.path.getsize(f"{checkpoint}/step-000056/optim.safetensors")
    for out, size in ((checkpoint, big - 1), (f"{tmp}/full-log", 3000)):
        what = os.path.basename(out)
        run = t.train(binary, out, preexec_fn=lambda size=size: limit_files(size))
        t.ok(t.one_line(run, out, "File too large"), f"{what}: one line, status 2", t.said(run))
        left = [n for n in os.listdir(out) if n.startswith(".") or n == "step-000060"]
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
        test_rate(small, rate, whole, tmp)
        test_shape(small, shared, whole)
        test_eval(small, rate, whole, tmp)
        test_full_disk(small, whole, tmp)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
