#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
The CUDA backend against the cpu: loss and every gradient of every tiny defconfig and of
combinations of modes, decode, causality, liveness; the same bits run after run and across
kills; checkpoints from one arch to the other.

	tests/cuda.t                where there is no GPU: compiles every kernel as far as PTX
	tests/cuda.t --build DIR [DEFCONFIG...]
	                            the programs alone, for another machine; with a GPU, for its
	                            own kind, else for Hopper; of all configurations or of these
	tests/cuda.t --run DIR      what --build has left there
"""
import itertools
import os
import shutil
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402

SCRATCH = os.path.join(os.path.dirname(t.SCRATCH), "cuda")
PROGRAMS = ("test_mixer", "test_model")
COMBINATIONS = 12       # at least
LENGTH = 65             # of a batch: no multiple of a tile

# Symbols of each build; the reference runs on another machine, too.
CPU = {"ARCH_CPU": "y", "CPU_PORTABLE_BITS": "y"}
KINDS = {"double": {**CPU, "REAL_DOUBLE": "y"}, "bf16": {**CPU, "REAL_BF16": "y"}, "float": CPU,
         "cuda": {"ARCH_CUDA": "y"}, "cuda-float": {"ARCH_CUDA": "y", "REAL_FLOAT": "y"},
         "cuda-tf32": {"ARCH_CUDA": "y", "REAL_TF32": "y"}}
CHECKING = ("cuda-float", "cuda-tf32")      # of these defconfigs
CHECKED = ("tiny-gpt2", "tiny-ra-mla-full", "tiny-deepseek", "tiny-mlakv2m")
# bf16 sends a token to another expert where two are as good but for roundings; so its gradients
# are compared with those of double in NAME-every, where all of so many experts take part.
EXPERTS = {"tiny-deepseek": 8, "tiny-mla-moe": 4}
CHOOSING = ("bf16", "cuda-tf32")        # kinds that would choose otherwise


numbers, sweep = t.load("numbers"), t.load("sweep")


def says(*command):
    """What a command prints, '' where it fails or is not there."""
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def no_gpu():
    return says("sh", os.path.join(t.SRC, "tests/gpu.sh")).strip()


# ---- what is built ------------------------------------------------------------------


def combinations():
    """
    Of the sweep's, until every pair of values of its four axes is there, at widths that the
    units take which multiply matrices.
    """
    axes = ("RA_MLA_MLP_GATE_POOL", "RA_MLA_MLP_SPARSE_MODE", "RA_MLA_MLP_TYING_MODE",
            "RA_MLA_MLP_SPARSE_HEAD_AVERAGE")
    every = sweep.combinations()
    turning = {k for _, c in every for k in c if len({x.get(k) for _, x in every}) > 1}

    def pairs(case, keys):
        return set(itertools.combinations(sorted((k, case[k]) for k in keys if k in case), 2))

    missing = set().union(*(pairs(c, turning) for _, c in every))
    needed = set().union(*(pairs(c, axes) for _, c in every))
    chosen = []
    while needed or len(chosen) < COMBINATIONS:
        name, case = max(every, key=lambda c: (len(pairs(c[1], axes) & needed),
                                               len(pairs(c[1], turning) & missing)))
        needed -= pairs(case, axes)
        missing -= pairs(case, turning)
        latent = 32 if case["RA_MLA_LATENT_DIM"] == sweep.EXPANDED else 8
        chosen.append((name, {**case, "N_EMBD": 64, "BLOCK_SIZE": LENGTH, "VOCAB_SIZE": 256,
                              "BATCH_SIZE": numbers.B, "RA_MLA_LATENT_DIM": latent,
                              **({"RA_MLA_MLP_SPARSE_K": numbers.TOPK}
                                 if "RA_MLA_MLP_SPARSE_K" in case else {})}))
    return chosen


def defconfigs():
    """Those of tiny widths."""
    return sorted(n for n in os.listdir(os.path.join(t.SRC, "defconfigs"))
                  if n.startswith("tiny-") and not n.endswith(".config"))


def make(tree, *goals):
    done = subprocess.run(["make", "-s", f"O={tree}", "EXTRA_CFLAGS=-O1 -g0", *goals], cwd=t.SRC,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print("Bail out!", " ".join(goals), "failed")
        sys.exit(done.stdout)


def fragment(path, symbols):
    with open(path, "w") as f:
        f.writelines(f"CONFIG_{k}={v}\n" for k, v in symbols.items())
    return path


def build(to, base, kind, *goals):
    """One configuration of one kind; its programs go to the folder @to."""
    tree = os.path.join(SCRATCH, kind)
    os.makedirs(tree, exist_ok=True)
    os.makedirs(to, exist_ok=True)
    symbols = dict(KINDS[kind])
    if "ARCH_CUDA" in symbols and no_gpu():
        symbols["CUDA_SM_90A"] = "y"
    if isinstance(base, dict):
        symbols = {**{k: v for k, v in base.items() if not k.startswith(("ARCH_", "REAL_"))},
                   **symbols}
        kconfig = [t.PYTHON, "scripts/kconfig.py", "--config", f"{tree}/.config", "--gen", tree]
        done = subprocess.run([*kconfig, "defconfig", fragment(f"{tree}/defconfig", symbols)],
                              cwd=t.SRC, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True)
        if done.returncode:
            print("Bail out! no configuration:", symbols)
            sys.exit(done.stdout)
        make(tree, *goals)
    else:
        name = base.removesuffix("-every")
        if name != base:
            symbols.update(EXPERTS_PER_TOK=EXPERTS[name], MOE_BIAS_BALANCE="n")
        make(tree, f"defconfig-{name}", fragment(f"{tree}/kind.config", symbols), *goals)
    if "build" in goals:
        shutil.copy2(f"{tree}/tenon", f"{to}/{kind}")
    for program in PROGRAMS if "check-programs" in goals else ():
        shutil.copy2(f"{tree}/tests/{program}", to)
    if "CONFIG_RA_MLA_MLP_CROSS_TOKEN=y\n" in t.read(tree, ".config").decode() and \
            kind != "float" and "build" in goals:
        make(tree, "check-programs", "PROGRAMS=routes")
        shutil.copy2(f"{tree}/tests/routes", f"{to}/routes-{kind}")


def symbols_of(lines):
    return dict(line.split("=", 1) for line in lines)


def takes(kind, name):
    """Is this configuration built in this kind, and compared?"""
    if kind == "float":
        return name == "tiny-gpt2"
    return (kind not in CHECKING or name in CHECKED) and \
        (kind not in CHOOSING or name not in EXPERTS)


def build_kind(folder, kind, names):
    goals = ["build"]
    if kind == "cuda":
        goals += ["check-programs", "PROGRAMS=" + " ".join(PROGRAMS)]
    cases = {name: name for name in names or defconfigs()}
    cases.update({f"{name}-every": f"{name}-every" for name in cases if name in EXPERTS})
    if not names:
        cases.update(combinations())
    for name, base in cases.items():
        if takes(kind, name):
            build(f"{folder}/{name}", base, kind, *goals)
    if kind == "cuda" and not names:
        build(f"{folder}/small", symbols_of(t.SMALL), kind, "build")


def build_all(folder, *names):
    """An object tree for each kind, two of them at a time; @names: some configurations alone"""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda kind: build_kind(folder, kind, names), KINDS))


# ---- what is tested -------------------------------------------------------------------


def test_repeats(name, binary, d):
    """The dump of numbers.test_gradients() once more, in another process."""
    done = t.tenon(binary, "dump", "--tokens", f"{d}/tok", "--out", f"{d}/again", "--batch",
                   numbers.B, "--length", LENGTH, "--init", 3)
    t.ok(done.returncode == 0 and t.read(d, "again") == t.read(d, "cuda"),
         f"{name}: loss and gradients have the same bits in another process", t.said(done))


def test_program(name, path):
    """A C program: its plan and its failures are one line here."""
    done = t.tenon(path, timeout=300)
    lines = done.stdout.splitlines()
    bad = [line for line in lines if line.startswith(("not ok", "#"))]
    t.ok(done.returncode == 0 and lines[-1:] == [f"1..{sum(s.startswith('ok') for s in lines)}"],
         f"{name}: {os.path.basename(path)}", "\n".join(bad) + done.stderr)


def routes(binaries):
    """{kind: tests/routes} beside these binaries."""
    return {kind: f"{os.path.dirname(path)}/routes-{kind}" for kind, path in binaries.items()}


def test_case(folder, name):
    """The reference, then what the model tests assert: decode, causality, liveness."""
    here = f"{folder}/{name}"
    with t.folder() as d:
        binaries = {kind: f"{here}/{kind}" for kind in ("double", "bf16", "cuda")}
        if takes("bf16", name):
            numbers.test_gradients(name, binaries, d, LENGTH, "bf16", routes)
            test_repeats(name, f"{here}/cuda", d)
        for kind in (k for k in CHECKING if takes(k, name)):
            binaries = {k: f"{here}/{k}" for k in ("double", kind)}
            numbers.test_gradients(name, binaries, d, LENGTH, None, routes)
    for program in PROGRAMS:
        test_program(name, f"{here}/{program}")


def test_moves(binaries):
    with t.folder() as d:
        numbers.test_checkpoints("tiny-gpt2", binaries, d, "cuda")
        done = t.train(binaries["float"], f"{d}/float-run", "--steps", 10, "--allow-config-change")
        t.ok(done.returncode == 0 and "bits will not be those of one machine" in done.stderr,
             "who goes on with a run of the other arch is told of the bits", t.said(done))


def test_runs(binary):
    """What a user does: train, once more, and once more in a finished folder."""
    train = t.load("train")
    with t.folder() as d:
        out = f"{d}/run"
        train.test_output(binary, out)
        train.test_metrics(out)
        train.test_result(out)
        train.test_repeat(binary, out, d)
        train.test_finished(binary, out, d)
        train.test_lock(binary, d)


def test_texts(binary):
    generate = t.load("generate")
    # A logit is 8 at most, and off by two roundings to bf16 in the forward and in the caches.
    generate.LOSS_TOL = 2 * 2 ** -8 * 8
    with t.folder() as d:
        t.train(binary, f"{d}/run")
        generate.test_sampling(binary, f"{d}/run")
        generate.test_prompts(binary, f"{d}/run", d)
        generate.test_eval(binary, f"{d}/run")
        generate.test_end(binary, f"{d}/run")


def test_kills(binary):
    resume = t.load("resume")
    with t.folder() as d:
        resume.test_kill(binary, d, resume.SEEDS[:1])
        resume.test_signals(binary, d)


def ends(test, *args):
    """A test that breaks off is one that fails; the next ones run."""
    try:
        test(*args)
    except Exception:    # whatever it is
        t.ok(False, f"{test.__name__} {args[-1]} ends", traceback.format_exc())


def run_all(folder):
    names = sorted(n for n in os.listdir(folder) if os.path.exists(f"{folder}/{n}/double"))
    for name in names:
        ends(test_case, folder, name)
    if "tiny-gpt2" in names:
        ends(test_moves, {kind: f"{folder}/tiny-gpt2/{kind}" for kind in ("float", "cuda")})
    for test in (test_runs, test_texts, test_kills) if os.path.exists(f"{folder}/small") else ():
        ends(test, f"{folder}/small/cuda")


def main():
    if sys.argv[1:2] == ["--build"]:
        build_all(*sys.argv[2:])
        return 0
    if sys.argv[1:2] == ["--run"]:
        run_all(sys.argv[2])
        return t.done()
    if not says("nvcc", "--version"):
        print("1..0 # SKIP the CUDA backend: nvcc is not in the PATH")
        return 0
    if not no_gpu():
        folder = os.path.join(SCRATCH, "programs")
        build_all(folder)
        run_all(folder)
    else:
        build(SCRATCH, "tiny-ra-mla-full", "cuda", "ptx")
        t.ok(True, "every kernel of the CUDA backend compiles")
        t.ok(True, "what they compute # SKIP no GPU: " + no_gpu())
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
