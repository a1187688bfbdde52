# SPDX-License-Identifier: MIT
"""What the tests of training share: tiny binaries, runs of them, comparisons, TAP."""
import contextlib
import fcntl
import importlib.machinery
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile

SRC = os.environ.get("TENON_SRC", os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PYTHON = os.environ.get("TENON_PYTHON") or subprocess.run(
    ["sh", "scripts/python.sh"], cwd=SRC, stdout=subprocess.PIPE, text=True).stdout.strip()
SCRATCH = os.path.join(os.environ.get("TENON_TESTDIR", os.path.join(SRC, "build/check")),
                       "training")

# Every mechanism at the smallest widths. Three micro-batches a step need two gradient
# buffers and a fold; resets, warmups and the spike detector all act within 60 steps.
SMALL = """
MODEL_GPT2_RA_MLA=y ARCH_CPU=y GPT2_MODEL_CUSTOM=y N_LAYER=2 N_HEAD=2 N_EMBD=16 BLOCK_SIZE=16
BATCH_SIZE=2 GRADIENT_ACCUMULATION=3 VOCAB_SIZE=256 DATA_TREE=y MAX_ITERS=60 LEARNING_RATE="3e-3"
MIN_LR="3e-4" WARMUP_STEPS=5 EVAL_INTERVAL=10 EVAL_SAMPLES=2 CHECKPOINT_INTERVAL=7 LOG_INTERVAL=5
CHECKPOINT_KEEP=2 OPTIMIZER="adamwspam" SPAM_INTERVAL=20 SPAM_WARMUP_STEPS=5 SPAM_CLIP_AFTER=5
RA_MLA_LATENT_DIM=8 RA_MLA_RA_ALPHA="0.5" RA_MLA_RA_WINDOW=4 RA_MLA_MLP_ATTN_GATE=y
RA_MLA_MLP_GATE_DIM=4 RA_MLA_MLP_CROSS_TOKEN=y RA_MLA_MLP_SPARSE_K=3 RA_MLA_MLP_LATENT_RECIP=y
""".split()

# What differs from SMALL in the other binaries.
VARIANTS = {
    "small": [],
    "rate": ['LEARNING_RATE="1e-3"', "LOG_INTERVAL=3"],
    "shared": ["RA_MLA_PER_HEAD_V_UP=n"],
    "shards": ["DATA_SHARDS=y", "VOCAB_SIZE=300", 'DATA_PATH=""', "MAX_ITERS=6",
               "CHECKPOINT_INTERVAL=2"],
    "text": ["DATA_TEXT=y", 'DATA_PATH=""', "MAX_ITERS=6"],
    "bf16": ["REAL_BF16=y"],
    "double": ["REAL_DOUBLE=y"],
    "activations": ["RECOMPUTE_ACTIVATIONS=y"],
    "block": ["RECOMPUTE_BLOCK=y"],
    "timed": ["MAX_ITERS=1000000", "MAX_TIME=1", "EVAL_INTERVAL=1000000",
              "CHECKPOINT_INTERVAL=1000000"],
}

# Threads that wait give their processor to the tests that run beside them.
os.environ["OMP_WAIT_POLICY"] = "passive"

# Fields of metrics.jsonl that a repeated run may change.
FREE = ("tok_s", "ms", "mfu", "peak_bytes")

counted = failed = 0


def ok(passed, name, detail=""):
    """One TAP line; what went wrong follows as a comment."""
    global counted, failed
    counted += 1
    print(f"{'' if passed else 'not '}ok {counted} - {name}", flush=True)
    if not passed:
        failed += 1
        for line in str(detail).splitlines():
            print("#", line)
    return passed


def load(name):
    """A neighbour, tests/NAME.t, as a module."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".t")
    loader = importlib.machinery.SourceFileLoader(name + "_t", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name + "_t", loader))
    loader.exec_module(module)
    return module


def done():
    """The plan; exit status."""
    print(f"1..{counted}")
    return 1 if failed or not counted else 0


def build(name):
    """Path of one binary of VARIANTS. The tests share object trees, in turn: one for "small",
    which most of them build, and one for all others."""
    obj = os.path.join(SCRATCH, "small" if name == "small" else "tree")
    binary = os.path.join(SCRATCH, "tenon-" + name)
    os.makedirs(obj, exist_ok=True)
    changed = {line.split("=")[0] for line in VARIANTS[name]}
    lines = [s for s in SMALL if s.split("=")[0] not in changed] + VARIANTS[name]
    with open(os.path.join(SCRATCH, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        defconfig = os.path.join(obj, "defconfig")
        with open(defconfig, "w") as f:
            f.writelines(f"CONFIG_{line}\n" for line in lines)
        kconfig = [PYTHON, "scripts/kconfig.py", "--config", f"{obj}/.config", "--gen", obj]
        for cmd in (kconfig + ["defconfig", defconfig],
                    ["make", "-s", f"O={obj}", "EXTRA_CFLAGS=-g0", "build"]):
            result = subprocess.run(cmd, cwd=SRC, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT, text=True)
            if result.returncode:
                print("Bail out!", " ".join(cmd), "failed")
                sys.exit(result.stdout)
        shutil.copy2(f"{obj}/tenon", binary + ".new")
        os.rename(binary + ".new", binary)
    return binary


def configure(obj, *names):
    """A defconfig, fragments on top, and what make would generate from them: '' or what is said
    against it. In this process, which has to run in SRC with the build's Python: starting one for
    each step takes longer than they do."""
    sys.path.append(os.path.join(SRC, "scripts"))
    import kconfig
    import shells    # noqa: F401
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        failed = any(kconfig.main(["--config", f"{obj}/.config", "--gen", obj, *verb])
                     for verb in (["defconfig", *names], ["sync"]))
    os.utime(f"{obj}/include/config/auto.conf")
    return said.getvalue() if failed else ""


def folder():
    """A scratch folder that goes when the test ends."""
    return tempfile.TemporaryDirectory(prefix="tenon-test-")


def tenon(binary, *args, **kw):
    """Run a binary to its end; status, stdout, stderr."""
    kw.setdefault("timeout", 120)
    return subprocess.run([str(binary), *map(str, args)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, **kw)


def train(binary, out, *args, threads=1, **kw):
    return tenon(binary, "train", "--out", out, "--threads", threads, *args, **kw)


def one_line(result, *words):
    """Whether a program ended with status 2 and one line on stderr that has the words."""
    lines = result.stderr.splitlines()
    return (result.returncode == 2 and len(lines) == 1 and lines[0].startswith("tenon: ") and
            all(w in lines[0] for w in words))


def said(result):
    return f"status {result.returncode}\n{result.stdout}{result.stderr}"


def read(*path):
    with open(os.path.join(*path), "rb") as f:
        return f.read()


def write(data, *path):
    with open(os.path.join(*path), "wb") as f:
        f.write(data)


def metrics(out):
    """Rows of metrics.jsonl without what may differ, in the bits that were written."""
    rows = []
    for line in read(out, "metrics.jsonl").decode().splitlines():
        row = json.loads(line, parse_float=str)
        rows.append({k: v for k, v in row.items() if k not in FREE})
    return rows


def steps(out):
    """Checkpoint folders, oldest first."""
    return sorted(n for n in os.listdir(out) if n.startswith("ckpt-"))


def event_steps(out):
    """Steps in the event files, by tag: record lengths and protobuf fields read by hand."""
    found = []
    for name in sorted(os.listdir(out)):
        if "tfevents" not in name:
            continue
        data, at = read(out, name), 0
        while at + 12 <= len(data):
            size = int.from_bytes(data[at:at + 8], "little")
            found.append(event(data[at + 12:at + 12 + size]))
            at += size + 16
    return [e for e in found if e[1]]


def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 128:
            return value, at


def fields(data):
    """(number, value) of a protobuf message; bytes for what is nested or fixed."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value, at = varint(data, at)
        else:
            size, at = (8, at) if key & 7 == 1 else (4, at) if key & 7 == 5 else varint(data, at)
            value, at = data[at:at + size], at + size
        yield key >> 3, value


def event(data):
    """(step, summary bytes) of an Event: wall time left out."""
    got = dict(fields(data))
    return got.get(2, 0), got.get(5, b"")


def same_run(a, b):
    """'' where two finished runs agree bit for bit, else what differs."""
    if metrics(a) != metrics(b):
        pairs = zip(metrics(a), metrics(b))
        return f"metrics: {next((p for p in pairs if p[0] != p[1]), 'number of rows')}"
    drop = b"speed/tok_s"
    if [e for e in event_steps(a) if drop not in e[1]] != \
            [e for e in event_steps(b) if drop not in e[1]]:
        return "event files"
    last = steps(a)[-1]
    if last != steps(b)[-1]:
        return f"last checkpoint {last} against {steps(b)[-1]}"
    for name in ("model.safetensors", "optim.safetensors", "state.json"):
        if read(a, last, name) != read(b, last, name):
            return f"{last}/{name}"
    if os.readlink(f"{a}/best") != os.readlink(f"{b}/best"):
        return "best"
    return ""
