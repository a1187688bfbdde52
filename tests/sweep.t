#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every mechanism in every mode: the mixer and model tests, in double, at tiny widths.

54 combinations of gate pool x sparse mode x coupler tying x head average, through
which the other options turn, then the baseline, the choices of the stack, single
mechanisms and random configurations. Two object trees at a time; symbols of headers
(widths, head average, detach) change slowest, so that most combinations compile the
mechanisms' own files only. Compiled with -O1: make check runs the same programs at -O3
under the tiny defconfigs.

    tests/sweep.t [WORD...]     only the combinations whose name holds every WORD
"""
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

SRC = os.environ.get("TENON_SRC", os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PYTHON = os.environ.get("TENON_PYTHON", "/usr/bin/python3")
SCRATCH = os.path.join(os.environ.get("TENON_TESTDIR", os.path.join(SRC, "build/check")), "sweep")
PROGRAMS = ("test_mixer", "test_model")
TREES = 2
RANDOM_SEEDS = range(1, 15)

BASE = {
    "MODEL_GPT2_RA_MLA": "y", "ARCH_CPU": "y", "REAL_DOUBLE": "y", "GPT2_MODEL_CUSTOM": "y",
    "N_LAYER": 2, "N_HEAD": 4, "N_EMBD": 16, "VOCAB_SIZE": 70, "BATCH_SIZE": 2,
    "DATA_SHARDS": "y", "DATA_PATH": '"none"', "RA_MLA_LATENT_DIM": 8,
}
SHORT, LONG = 12, 33    # capacities of 24 and 66 rows: less and more than a tile of 64
# Latents of heads that are 4 wide: keys and values are expanded to heads, or absorbed.
EXPANDED, ABSORBED = 8, 2
ALL = {"RA_MLA_MLP_ATTN_GATE": "y", "RA_MLA_MLP_GATE_DIM": 3, "RA_MLA_MLP_GATE_ALPHA": "0.7",
       "RA_MLA_MLP_CROSS_TOKEN": "y", "RA_MLA_MLP_LATENT_RECIP": "y"}


def no_yes(bit):
    return "ny"[bit & 1]


def combination(i, pool, sparse, tying, average):
    """Name and symbols of one of the 54; i turns the options beside them."""
    cfg = dict(BASE, **ALL)
    cfg["RA_MLA_LATENT_DIM"] = ABSORBED if (average == "n") == (tying == "untied") else EXPANDED
    cfg["BLOCK_SIZE"] = SHORT if average == "n" else LONG
    cfg["RA_MLA_MLP_GATE_POOL"] = f'"{pool}"'
    cfg["RA_MLA_MLP_SPARSE_MODE"] = f'"{sparse}"'
    cfg["RA_MLA_MLP_TYING_MODE"] = f'"{tying}"'
    cfg["RA_MLA_MLP_SPARSE_HEAD_AVERAGE"] = average
    cfg["RA_MLA_MLP_SPARSE_NORMALIZE"] = no_yes(i)
    cfg["RA_MLA_MLP_LATENT_DETACH"] = average
    cfg["RA_MLA_PER_HEAD_Q_LATENT"] = no_yes(i // 2)
    cfg["RA_MLA_PER_HEAD_V_UP"] = no_yes(i // 5)
    cfg["RA_MLA_RA_ALPHA"] = ('"0.0"', '"0.6"')[i // 4 & 1]
    cfg["RA_MLA_RA_WINDOW"] = (0, 1, 5, 40)[i % 4]
    if sparse == "topk":
        cfg["RA_MLA_MLP_SPARSE_K"] = (1, 3)[i & 1]
    if tying == "untied":
        cfg["RA_MLA_MLP_LATENT_DIM"] = 6
    return f"{pool} {sparse} {tying} average={average}", cfg


def combinations():
    order = itertools.product("ny", ("untied", "tied_transpose", "per_head_scalar"),
                              ("none", "topk", "rms"), ("causal", "token", "sequence"))
    return [combination(i, pool, sparse, tying, average)
            for i, (average, tying, sparse, pool) in enumerate(order)]


def extras():
    """The baseline, single mechanisms, odd shapes."""
    plain = dict(BASE, BLOCK_SIZE=SHORT)
    full = combination(4, "causal", "topk", "tied_transpose", "y")[1]
    rms = combination(9, "token", "rms", "untied", "y")[1]
    odd = dict(full, N_LAYER=3, N_HEAD=3, N_EMBD=15, RA_MLA_LATENT_DIM=5, BLOCK_SIZE=SHORT,
               BATCH_SIZE=1, VOCAB_SIZE=64)
    cross = dict(plain, RA_MLA_MLP_CROSS_TOKEN="y")
    return [
        ("ra_mla alone", plain), ("ra_mla alone, absorbed",
                                  dict(plain, RA_MLA_LATENT_DIM=ABSORBED)),
        ("gate alone", dict(plain, RA_MLA_MLP_ATTN_GATE="y")),
        ("cross alone, joined", cross),
        ("cross alone, direct", dict(cross, RA_MLA_MLP_SPARSE_HEAD_AVERAGE="n")),
        ("latent alone", dict(plain, RA_MLA_MLP_LATENT_RECIP="y")),
        ("few rows, topk", dict(full, BLOCK_SIZE=SHORT)),
        ("few rows, rms", dict(rms, BLOCK_SIZE=SHORT)),
        ("odd widths", odd),
    ]


def stacks():
    """The choices of the stack on GPT-2, then all of them on a hybrid."""
    gpt2 = {k: v for k, v in BASE.items() if not k.startswith(("RA_MLA", "MODEL"))}
    gpt2.update(MODEL_GPT2="y", BLOCK_SIZE=SHORT)
    choices = {
        "RMSNorm": {"NORM_RMSNORM": "y", "NORM_EPSILON": '"1e-3"'},
        "untied head": {"HEAD_TIED": "n"},
        "no positions, no biases": {"LEARNED_POSITIONS": "n", "LINEAR_BIAS": "n"},
        "narrow mlp, grouped heads": {"INTERMEDIATE_SIZE": 24, "KV_HEADS": 2},
        "one key head, few rows of logits": {"KV_HEADS": 1, "HEAD_ROWS": 7},
    }
    every = {k: v for c in choices.values() for k, v in c.items()}
    both = {"MIXER_MHA": "y", "MLP_MLP": "y"}
    other = dict(both, BLOCK_ALT='"mha mlp"')
    full = combination(4, "causal", "topk", "tied_transpose", "y")[1]
    direct = combination(9, "token", "rms", "per_head_scalar", "n")[1]
    hybrid = dict(full, **other, N_LAYER=4, BLOCK_ALT_LAYERS='"0,2"')
    return [
        ("gpt2", gpt2), ("gpt2, widths 15", dict(gpt2, N_HEAD=3, N_EMBD=15)),
        *((f"gpt2, {n}", dict(gpt2, **c)) for n, c in choices.items()),
        ("gpt2, every choice", dict(gpt2, **every)),
        ("two mixers of a kind in a block",
         dict(full, **both, BLOCK='"mha mlp ra_mla recip"')),
        ("taps across layers", dict(full, **both, BLOCK='"ra_mla mlp"', BLOCK_ALT='"mha recip"',
                                    N_LAYER=4, BLOCK_ALT_LAYERS='"1,3"', RA_MLA_LOG_METRICS="y")),
        ("hybrid layers", hybrid), ("hybrid layers, every choice", dict(hybrid, **every)),
        ("hybrid layers, direct, every choice",
         dict(direct, **other, **every, N_LAYER=3, BLOCK_ALT_LAYERS='"1"')),
    ]


def random_configs():
    """Legal configurations of any widths and blocks; a seed is its own repeat."""
    return [(f"randconfig SEED={seed}", seed) for seed in RANDOM_SEEDS]


def configure(obj, case):
    """The command that writes the .config of one case: symbols, or a seed."""
    kconfig = [PYTHON, "scripts/kconfig.py", "--config", f"{obj}/.config", "--gen", obj]
    if isinstance(case, int):
        return kconfig + ["randconfig", str(case)]
    with open(f"{obj}/test_defconfig", "w") as f:
        f.writelines(f"CONFIG_{k}={v}\n" for k, v in case.items())
    return kconfig + ["defconfig", f"{obj}/test_defconfig"]


def run(cmd, **kw):
    return subprocess.run(cmd, cwd=SRC, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, **kw)


def test(tree, case):
    """Output of what failed, '' where everything passed."""
    obj = os.path.join(SCRATCH, str(tree))
    os.makedirs(obj, exist_ok=True)
    steps = [configure(obj, case),
             ["make", "-s", f"O={obj}", "check-programs", f"PROGRAMS={' '.join(PROGRAMS)}",
              "EXTRA_CFLAGS=-O1 -g0"]]
    steps += [[f"{obj}/tests/{p}"] for p in PROGRAMS]
    for cmd in steps:
        done = run(cmd)
        if done.returncode:
            return done.stdout + f"exit {done.returncode}: {' '.join(cmd)}\n"
    return ""


def test_list(tree, cases):
    return [(name, test(tree, case)) for name, case in cases]


def main():
    cases = [c for c in combinations() + extras() + stacks() + random_configs()
             if all(w in c[0] for w in sys.argv[1:])]
    half = (len(cases) + 1) // TREES
    lists = [cases[:half], cases[half:]]
    with ThreadPoolExecutor(TREES) as pool:
        results = sum(pool.map(test_list, range(TREES), lists), [])
    for i, (name, output) in enumerate(results, 1):
        print(f"{'not ' if output else ''}ok {i} - {name}")
        for line in output.splitlines():
            if not line.startswith("ok"):
                print("#", line)
    print(f"1..{len(results)}")
    sys.exit(any(output for _, output in results))


if __name__ == "__main__":
    main()
