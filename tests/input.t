#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Bad data, checkpoints, folders and flags as a user meets them: one line that says what and
where, status 2, no file changed. Two binaries: "shards" is a small GPT-2 on token shards;
"text" reads text, its gate leaks, and its batches fit no machine."""
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t                                            # noqa: E402
from faults import (ENV, MAKE, damage, flip, forge, place, refused, run,   # noqa: E402
                    snapshot)

TREES = os.path.join(os.environ.get("TENON_TESTDIR", os.path.join(t.SRC, "build/check")), "input")
DATA = f"{TREES}/data"
VOCAB, B, T = 300, 2, 16
SMALL = f"""N_LAYER=2 N_HEAD=2 N_EMBD=16 BLOCK_SIZE={T} BATCH_SIZE={B} MAX_ITERS=6
CHECKPOINT_INTERVAL=2 EVAL_SAMPLES=2 LEARNING_RATE="3e-3" DATA_PATH="{DATA}" """
BUILDS = {
    "shards": ("tiny-gpt2", SMALL + f'DATA_SHARDS=y VOCAB_SIZE={VOCAB} RUN_NAME="shards"'),
    "text": ("tiny-ra-mla-full", SMALL + """BATCH_SIZE=4096 BLOCK_SIZE=131072 DATA_TEXT=y
             RA_MLA_LATENT_DIM=8 RA_MLA_RA_WINDOW=4 RA_MLA_MLP_GATE_DIM=4 RA_MLA_MLP_SPARSE_K=2
             RA_MLA_MLP_GATE_POOL="sequence" RA_MLA_ABLATION_MODE=n RUN_NAME="text" """),
}
TOO_MUCH = ("CONFIG_BATCH_SIZE", "CONFIG_BLOCK_SIZE")


def build(top):
    """Both at a time; their paths."""
    jobs = []
    for name, (base, lines) in BUILDS.items():
        fragment = f"{top}/{name}.config"
        t.write("".join(f"CONFIG_{x}\n" for x in lines.split()).encode(), fragment)
        jobs.append(subprocess.Popen(
            MAKE + ["-j1", f"O={TREES}/{name}", f"defconfig-{base}", fragment, "build"],
            cwd=t.SRC, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for job in jobs:
        out = job.communicate()[0]
        if job.returncode:
            print("Bail out!", " ".join(job.args), "failed")
            sys.exit(out)
    return [f"{TREES}/{name}/tenon" for name in BUILDS]


# ---- data -------------------------------------------------------------------

def little(size, numbers):
    return b"".join(x.to_bytes(size, "little") for x in numbers)


def shard(tokens, magic=20240520, version=1):
    return little(4, (magic, version, len(tokens))).ljust(1024, b"\0") + little(2, tokens)


RAMP = [i % VOCAB for i in range(700)]
GOOD = {"train_0.bin": shard(RAMP), "val_0.bin": shard(RAMP[:100])}
PLAIN = {"train.bin": little(2, RAMP), "val.bin": little(2, RAMP[:100])}
WHOLE = len(shard(RAMP))
# every window of 40 tokens holds the middle one
LATE = [1] * T + [VOCAB] + [1] * 23

# (kind, what is wrong, data, words); found by the check before a run, unless memory is
# refused first, as for "text"
EARLY = (
    ("shards", "a missing folder", None, "data"),
    ("shards", "an empty folder", {}, "data", ".bin"),
    ("shards", "no validation shard", {"train_0.bin": shard(RAMP)}, "val"),
    ("shards", "a name of no split", {**GOOD, "other.bin": shard(RAMP)}, "other.bin", "train"),
    ("shards", "an empty shard", {**GOOD, "val_0.bin": b""}, "val_0.bin"),
    ("shards", "half a header", {**GOOD, "val_0.bin": bytes(500)}, "val_0.bin"),
    ("shards", "a wrong magic", {**GOOD, "val_0.bin": shard(RAMP, 7)}, "val_0.bin", "magic 7"),
    ("shards", "a wrong version", {**GOOD, "val_0.bin": shard(RAMP, version=2)}, "val_0.bin",
     "version 2"),
    ("shards", "a shard cut short", {**GOOD, "val_0.bin": shard(RAMP)[:-1]}, "val_0.bin",
     f"{WHOLE - 1} bytes"),
    ("shards", "a lengthened shard", {**GOOD, "val_0.bin": shard(RAMP) + b"\0\0"}, "val_0.bin",
     f"{WHOLE + 2} bytes"),
    ("shards", "a shard without tokens", {**GOOD, "val_0.bin": shard([])}, "val_0.bin"),
    ("shards", "fewer tokens than a batch", {**GOOD, "val_0.bin": shard(RAMP[:B * T])},
     "val", f"{B * T} tokens", "BATCH_SIZE"),
    ("nanogpt", "a missing folder", None, "data/train.bin"),
    ("nanogpt", "a missing file", {"train.bin": PLAIN["train.bin"]}, "data/val.bin"),
    ("nanogpt", "fewer tokens than a batch", {**PLAIN, "val.bin": bytes(2 * B * T)}, "val",
     f"{B * T} tokens", "BATCH_SIZE"),
    ("nanogpt", "an empty file", {**PLAIN, "val.bin": b""}, "data/val.bin", "empty"),
    ("nanogpt", "half a token", {**PLAIN, "val.bin": b"123"}, "data/val.bin", "3 bytes"),
    ("text", "a missing file", None, "data", "DATA_PATH"),
    ("text", "an empty file", b"", "data", "empty"),
    ("text", "an empty folder", {}, "data", "folder"),
    ("text", "a folder of empty files", {"a.txt": b""}, "data"),
)
# only training looks so far
LATER = (
    ("nanogpt", "a token beyond the vocabulary", {**PLAIN, "train.bin": little(2, LATE)},
     "data/train.bin", f"token {VOCAB} at position {T}", "VOCAB_SIZE"),
    ("text", "a damaged .gz", b"\x1f\x8b\x08\0\0\0\0\0\0\3\x4b\x4c", "data", "gzip"),
    ("text", "too little text", b"a few words", "data", "BATCH_SIZE"),
)


def test_data(top):
    for kind, what, data, *words in EARLY + LATER:
        tree = f"{TREES}/{'text' if kind == 'text' else 'shards'}"
        path = ("nanogpt:" if kind == "nanogpt" else "") + place(f"{top}/data", data)
        flags = ["--data", path, "--out", f"{top}/new"]
        if kind != "text" and (kind, what, data, *words) in EARLY:
            refused(f"{kind}, before a run: {what}", top,
                    [f"{tree}/tenon", "plan", "--check", *flags], *words)
        refused(f"{kind}: {what}", top, [f"{tree}/tenon", "train", *flags], *words)
    place(DATA, None)
    refused("make, shards: no data", top, MAKE + [f"O={TREES}/shards", f"OUT={top}/new"],
            f"tenon: {DATA}: ", "make demo")


# ---- checkpoints ------------------------------------------------------------

# what is wrong -> (what is done to a checkpoint folder, words)
CHECKPOINTS = {
    "no folder": (shutil.rmtree, "no checkpoint"),
    "no manifest": (lambda f: os.remove(f"{f}/manifest.json"), "no checkpoint"),
    "a missing file": (lambda f: os.remove(f"{f}/state.json"), "state.json", "No such file"),
    "weights cut short": (lambda f: damage(f, "model.safetensors", lambda d: d[:-9]),
                          "model.safetensors", "bytes"),
    "weights altered": (lambda f: damage(f, "model.safetensors", flip), "model.safetensors",
                        "altered"),
    "moments altered": (lambda f: damage(f, "optim.safetensors", flip), "optim.safetensors"),
    "manifest altered": (lambda f: damage(f, "manifest.json", flip), "manifest.json"),
    "another configuration": (lambda f: forge(f, N_HEAD=4, BLOCK_SIZE=32), "N_HEAD (was 4, is 2)",
                              "BLOCK_SIZE (was 32, is 16)"),
}


def test_checkpoints(top, shards, whole, tokens):
    step = f"{top}/ckpt-000006"
    verbs = {
        "eval": ["--checkpoint", step],
        "generate": ["--checkpoint", step, "--prompt-ids", "1 2"],
        "dump": ["--checkpoint", step, "--tokens", tokens, "--out", f"{top}/new"],
    }
    for what, (harm, *words) in CHECKPOINTS.items():
        shutil.copytree(f"{whole}/ckpt-000006", step)
        harm(step)
        for verb, flags in verbs.items():
            refused(f"{verb}: {what}", top, [shards, verb, *flags], step, *words)
        shutil.rmtree(step, ignore_errors=True)
    for verb, flags in verbs.items():
        flags = [top if x == step else x for x in flags]
        refused(f"{verb}: a folder without checkpoints", top, [shards, verb, *flags], top)


def test_resume(top, shards, whole):
    """What is refused when a run goes on leaves its checkpoints alone."""
    out = shutil.copytree(whole, f"{top}/again", symlinks=True)
    for name in t.steps(out):
        forge(f"{out}/{name}", N_HEAD=4, LEARNING_RATE='"1e-2"')
    refused("train: a run of another configuration", top, [shards, "train", "--out", out], out,
            "N_HEAD (was 4, is 2)", "LEARNING_RATE (was 1e-2, is 3e-3)", "--out")
    make = MAKE + [f"O={TREES}/shards", f"OUT={out}"]
    refused("make: a run of another configuration", top, make, out, "N_HEAD (was 4, is 2)",
            "ALLOW_CONFIG_CHANGE=1", "RESTART=1")
    shutil.rmtree(out)
    shutil.copytree(whole, out, symlinks=True)
    for name in t.steps(out):
        forge(f"{out}/{name}", LEARNING_RATE='"1e-2"')
    result = run(*make, "ALLOW_CONFIG_CHANGE=1")
    t.ok(result.returncode == 0 and "going on with a changed configuration" in result.stderr,
         "make ALLOW_CONFIG_CHANGE=1 goes on", t.said(result))
    shutil.rmtree(out)
    shutil.copytree(whole, out, symlinks=True)
    shutil.rmtree(f"{out}/ckpt-000006")
    place(DATA, {**GOOD, "train_0.bin": shard([VOCAB] * len(RAMP))})
    kept = {n: snapshot(f"{out}/{n}") for n in t.steps(out)}
    result = run(shards, "train", "--out", out)
    t.ok(t.one_line(result, f"{DATA}/train_0.bin", f"token {VOCAB}") and
         kept == {n: snapshot(f"{out}/{n}") for n in t.steps(out)},
         "train: shards that changed under a run", t.said(result))
    place(DATA, GOOD)


# ---- output -----------------------------------------------------------------

def limit_files(size):
    """Writes past a size fail as they do on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_output(top, shards, whole, tokens):
    file = place(f"{top}/file", b"x")
    for where in (f"{file}/run", file, "/proc/run"):
        for name, command, word in (
                ("make", MAKE + [f"O={TREES}/shards", f"OUT={where}"], "OUT=DIR"),
                ("train", [shards, "train", "--out", where], "--out")):
            refused(f"{name}: an output folder at {where}", top, command, where, word)
    bundle = ["dump", "--init", 1, "--tokens", tokens, "--out"]
    for where in (f"{file}/b", "/proc/b", f"{top}/none/b"):
        refused(f"dump: a bundle at {where}", top, [shards, *bundle, where], where)
    refused("dump: no room", top, [shards, *bundle, file], file, "File too large",
            preexec_fn=lambda: limit_files(5000))
    refused("train: an output folder without a name", top, [shards, "train", "--out="], "--out")
    lock = os.open(whole, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    refused("train: a folder that another run uses", top, [shards, "train", "--out", whole], whole,
            "another run")
    os.close(lock)
    for verb, *flags in (["plan"], ["config"], ["eval", "--checkpoint", whole],
                         ["generate", "--checkpoint", whole, "--prompt-ids", "1"]):
        with open("/dev/full", "w") as full:
            refused(f"{verb}: no room behind stdout", top, [shards, verb, *flags], "stdout",
                    "No space left", stdout=full)


# A run that is to go on in a file system of its own: $1 folder, $2 what is done to it,
# $3 finished run, $4 binary. Prints both listings of the checkpoints, and what is new.
MOUNTED = """
mount -t tmpfs -o size=2m tmpfs "$1" && cp -a "$3" "$1/run" && rm -r "$1/run/ckpt-000006" || exit 99
list() { (cd "$1/run" && find . -path './ckpt-*' -type f -exec sha256sum {} + | sort); }
list "$1"; echo =
case $2 in
full)	dd if=/dev/zero of="$1/fill" bs=1k status=none 2>/dev/null; truncate -s -32K "$1/fill" ;;
*)	mount -o remount,bind,ro "$1" ;;
esac
"$4" train --out "$1/run"; status=$?
list "$1"; echo =
find "$1/run" -name '.*'
exit $status
"""


def test_mounted(top, shards, whole):
    folder = place(f"{top}/mount", {})
    may = shutil.which("unshare") and not run(
        "unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", folder).returncode
    for how, word in (("full", "No space left"), ("readonly", "Read-only file system")):
        name = f"train: a {how} file system: one line, checkpoints intact"
        if not may:
            t.ok(True, f"{name} # SKIP no file system can be mounted here")
            continue
        result = run("unshare", "-rm", "sh", "-c", MOUNTED, "sh", folder, how, whole, shards)
        before, after, new = result.stdout.split("=\n")
        after = "".join(x for x in after.splitlines(True) if "  ./ckpt-" in x)
        t.ok(t.one_line(result, f"{folder}/run", word) and before and before == after and not new,
             name, t.said(result))


# ---- flags ------------------------------------------------------------------

def test_flags(top, shards, whole, tokens):
    needs = {"train": ["--out", f"{top}/new"], "eval": ["--checkpoint", whole], "plan": [],
             "generate": ["--checkpoint", whole, "--prompt-ids", "1"], "bench": ["--steps", 1],
             "dump": ["--init", 1, "--tokens", tokens, "--out", f"{top}/new"], "config": []}
    for verb, flags in needs.items():
        command = [shards, verb, *flags]
        refused(f"{verb}: an unknown flag", top, command + ["--hlep"],
                f"{verb}: unknown flag --hlep", "--help")
        refused(f"{verb}: a stray word", top, command + ["now"], verb, "'now'")
        if verb != "config":
            refused(f"{verb}: a device that is not there", top, command + ["--device", 1],
                    "device 1")
            refused(f"{verb}: a flag without its value", top, command + ["--device"], "--device")
    refused("an unknown verb", top, [shards, "trian"], "trian", "--help")
    refused("make: THREADS that are no number", top,
            MAKE + [f"O={TREES}/shards", f"OUT={top}/new", "THREADS=two"], "THREADS=N", "'two'")


def test_dump(top, shards, tokens):
    out = place(f"{top}/bundle", b"the bundle of yesterday")
    short, wild = place(f"{top}/short", bytes(8)), place(f"{top}/wild", little(4, [VOCAB] * 34))
    cases = {
        "more sequences than it can hold": ([tokens, "--batch", B + 1], "CONFIG_BATCH_SIZE=2"),
        "more positions than it can hold": ([tokens, "--length", T + 1], "CONFIG_BLOCK_SIZE=16"),
        "no sequence": ([tokens, "--batch", 0], "--batch"),
        "a token file of another size": ([short], f"{short} has 8 bytes"),
        "a token beyond the vocabulary": ([wild], wild, "token 0 is 300"),
        "no token file": ([f"{top}/none"], f"{top}/none", "No such file"),
        "weights of two origins": ([tokens, "--checkpoint", top], "either"),
    }
    for what, (flags, *words) in cases.items():
        refused(f"dump: {what}", top,
                [shards, "dump", "--init", 1, "--out", out, "--tokens", *flags], *words)
    refused("dump: no --out", top, [shards, "dump", "--init", 1, "--tokens", tokens], "--out")


def test_generate(top, shards, whole):
    cases = {
        "a prompt longer than the model": (["--prompt-ids", "1 " * (T + 1)], "17 tokens",
                                           "CONFIG_BLOCK_SIZE=16"),
        "an empty prompt": (["--prompt-ids", ""], "empty"),
        "a prompt that is no number": (["--prompt-ids", "1 x"], "x"),
        "a prompt beyond the vocabulary": (["--prompt-ids", f"{VOCAB}"], "CONFIG_VOCAB_SIZE=300"),
        "text without a tokenizer": (["--prompt", "Once"], "--prompt-ids"),
        "no prompt": ([], "--prompt-ids"),
        "a temperature below 0": (["--prompt-ids", "1", "--temperature", -1], "--temperature"),
    }
    for what, (flags, *words) in cases.items():
        refused(f"generate: {what}", top, [shards, "generate", "--checkpoint", whole, *flags],
                *words)


def test_bench(top, shards):
    """Decode steps: at the limits, in JSON, and what is refused."""
    flags = ["bench", "--decode", "--steps", 2, "--warmup", 0]
    for batch, length in ((1, 1), (B, T - 1)):
        result = run(shards, *flags, "--json", "--batch", batch, "--length", length)
        said = json.loads(result.stdout or "{}")
        t.ok(said.get("step", 0) > 0 and said["weight_bytes"] > 0 and
             (said["sequences"], said["length"]) == (batch, length),
             f"bench: {batch} x {length} decode steps", t.said(result))
    result = run(shards, *flags)
    t.ok(result.returncode == 0 and f"behind {T - 1} tokens" in result.stdout,
         "bench: decode fills the caches as far as they go", t.said(result))
    refused("bench: more sequences than it can hold", top, [shards, *flags, "--batch", B + 1],
            "--batch")
    refused("bench: no room for the step's token", top, [shards, *flags, "--length", T],
            "--length")
    refused("bench: sequences of no decode", top, [shards, "bench", "--batch", 1], "--decode")


def test_leak_and_size(top, text, whole):
    refused("generate: a gate that sees the future", top, [text, "generate", "--checkpoint", whole],
            'GATE_POOL="sequence"', "causal")
    tokens = place(f"{top}/two", bytes(8))
    for command in (["plan", "--check"], ["bench"],
                    ["dump", "--init", 1, "--tokens", tokens, "--out", f"{top}/new", "--batch", 1,
                     "--length", 1]):
        refused(f"{' '.join(command[:1])}: a plan that does not fit", top, [text, *command],
                *TOO_MUCH)
    place(DATA, b"some text")
    refused("make: a plan that does not fit", top, MAKE + [f"O={TREES}/text", f"OUT={top}/new"],
            *TOO_MUCH)


def main():
    with t.folder() as top:
        shards, text = build(top)
        place(DATA, GOOD)
        whole, tokens = f"{top}/whole", place(f"{top}/tokens", little(4, RAMP[:B * (T + 1)]))
        result = run(shards, "train", "--out", whole)
        t.ok(result.returncode == 0 and len(t.steps(whole)) == 3, "good data trains",
             t.said(result))
        test_checkpoints(top, shards, whole, tokens)
        test_resume(top, shards, whole)
        test_output(top, shards, whole, tokens)
        test_mounted(top, shards, whole)
        test_flags(top, shards, whole, tokens)
        test_dump(top, shards, tokens)
        test_generate(top, shards, whole)
        test_bench(top, shards)
        test_leak_and_size(top, text, whole)
        test_data(top)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
