#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every mechanism in every mode: the mixer and model tests, in double, at tiny widths.

27 combinations in which any three of gate pool, sparse mode, coupler tying and head average
meet, and any two of all options; then the baseline, the choices of the stack and single
mechanisms (tests/randconfig.py has random ones). Compiled with -Og: make check runs the same
programs at -O3 under the tiny defconfigs.

    tests/sweep.t [WORD...]     only the combinations whose name holds every WORD
"""
import itertools
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402

SCRATCH = os.path.join(os.path.dirname(t.SCRATCH), "sweep")
PROGRAMS = ("test_mixer", "test_model")
os.environ["TENON_OBJECTS"] = ""        # one object tree; what it can keep, it keeps by itself

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


# Every three of these that are of different options meet in one of 27 combinations.
MAIN = {
    "RA_MLA_MLP_GATE_POOL": ('"causal"', '"token"', '"sequence"'),
    "RA_MLA_MLP_SPARSE_MODE": ('"none"', '"topk"', '"rms"'),
    "RA_MLA_MLP_TYING_MODE": ('"untied"', '"tied_transpose"', '"per_head_scalar"'),
    "RA_MLA_MLP_SPARSE_HEAD_AVERAGE": ("n", "y"),
}
# These turn beside them; every two of all options meet. (In this order 27 are enough but for
# two pairs, which extras() has.)
BESIDE = {
    "RA_MLA_RA_WINDOW": (0, 1, 5, 40), "RA_MLA_MLP_SPARSE_K": (1, 3),
    "BLOCK_SIZE": (SHORT, LONG), "RA_MLA_MLP_LATENT_DETACH": ("n", "y"),
    "RA_MLA_RA_ALPHA": ('"0.0"', '"0.6"'), "RA_MLA_LATENT_DIM": (EXPANDED, ABSORBED),
    "RA_MLA_MLP_SPARSE_NORMALIZE": ("n", "y"), "RA_MLA_PER_HEAD_Q_LATENT": ("n", "y"),
    "RA_MLA_PER_HEAD_V_UP": ("n", "y"),
}


def fits(row):
    """Whether its options have a meaning together."""
    return "RA_MLA_MLP_SPARSE_K" not in row or \
        row.get("RA_MLA_MLP_SPARSE_MODE", '"topk"') == '"topk"'


def tuples(row, n):
    """Every n of a row's options, with their values."""
    return set(itertools.combinations(sorted(row.items()), n))


def rows():
    """The 27: beside the main options what brings most pairs that have not met."""
    met, found = set(), []
    pool, sparse, tying, average = MAIN.values()
    for i, j, k in itertools.product(range(3), repeat=3):
        row = dict(zip(MAIN, (pool[i], sparse[j], tying[k], average[(i + j + k) % 2])))
        for option, values in BESIDE.items():
            ways = [w for w in ({**row, option: v} for v in values) if fits(w)]
            row = max(ways, key=lambda w: len(tuples(w, 2) - met), default=row)
        met |= tuples(row, 2)
        found.append(row)
    return found


def full(row):
    """The configuration of a row."""
    cfg = {**BASE, **ALL, **row}
    if row["RA_MLA_MLP_TYING_MODE"] == '"untied"':
        cfg["RA_MLA_MLP_LATENT_DIM"] = 6
    return cfg


def combinations():
    """Options of headers change slowest, so that most compile the mechanisms' own files only."""
    header = ("RA_MLA_MLP_SPARSE_HEAD_AVERAGE", "BLOCK_SIZE", "RA_MLA_LATENT_DIM",
              "RA_MLA_MLP_LATENT_DETACH")
    return [(" ".join(str(row[o]).strip('"') for o in MAIN), full(row))
            for row in sorted(rows(), key=lambda r: [r[o] for o in header])]


def never_met(configs):
    """Pairs of all options, and threes of the main ones, that no configuration has."""
    every = {**MAIN, **BESIDE}
    met = set()
    for cfg in configs:
        row = {o: cfg[o] for o in every if o in cfg}
        met |= tuples(row, 2) | tuples(row, 3)
    wanted = []
    for options, n in ((every, 2), (MAIN, 3)):
        for chosen in itertools.combinations(sorted(options), n):
            values = itertools.product(*(every[o] for o in chosen))
            wanted += [tuple(zip(chosen, v)) for v in values]
    return [w for w in wanted if fits(dict(w)) and w not in met]


def one(pool, sparse, tying):
    """The combination of these."""
    return next(full(r) for r in rows() if list(r.values())[:3] == [
        f'"{word}"' for word in (pool, sparse, tying)])


def extras():
    """The baseline, single mechanisms, odd shapes."""
    plain = dict(BASE, BLOCK_SIZE=SHORT)
    topk = one("causal", "topk", "tied_transpose")
    odd = dict(topk, N_LAYER=3, N_HEAD=3, N_EMBD=15, RA_MLA_LATENT_DIM=5, BLOCK_SIZE=SHORT,
               BATCH_SIZE=1, VOCAB_SIZE=64)
    cross = dict(plain, RA_MLA_MLP_CROSS_TOKEN="y")
    return [
        ("ra_mla alone", plain), ("ra_mla alone, absorbed",
                                  dict(plain, RA_MLA_LATENT_DIM=ABSORBED)),
        ("gate alone", dict(plain, RA_MLA_MLP_ATTN_GATE="y")),
        ("cross alone, joined", cross),
        ("cross alone, direct", dict(cross, RA_MLA_MLP_SPARSE_HEAD_AVERAGE="n")),
        ("latent alone", dict(plain, RA_MLA_MLP_LATENT_RECIP="y")),
        *((f"topk 1, window {n}", dict(topk, RA_MLA_MLP_SPARSE_K=1, RA_MLA_RA_WINDOW=n))
          for n in (1, 5)),
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
    joined = dict(one("causal", "topk", "tied_transpose"), RA_MLA_MLP_SPARSE_HEAD_AVERAGE="y")
    direct = dict(one("token", "rms", "per_head_scalar"), RA_MLA_MLP_SPARSE_HEAD_AVERAGE="n")
    hybrid = dict(joined, **other, N_LAYER=4, BLOCK_ALT_LAYERS='"0,2"')
    return [
        ("gpt2", gpt2), ("gpt2, widths 15", dict(gpt2, N_HEAD=3, N_EMBD=15)),
        *((f"gpt2, {n}", dict(gpt2, **c)) for n, c in choices.items()),
        ("gpt2, every choice", dict(gpt2, **every)),
        ("two mixers of a kind in a block",
         dict(joined, **both, BLOCK='"mha mlp ra_mla recip"')),
        ("taps across layers", dict(joined, **both, BLOCK='"ra_mla mlp"', BLOCK_ALT='"mha recip"',
                                    N_LAYER=4, BLOCK_ALT_LAYERS='"1,3"', RA_MLA_LOG_METRICS="y")),
        ("hybrid layers", hybrid), ("hybrid layers, every choice", dict(hybrid, **every)),
        ("hybrid layers, direct, every choice",
         dict(direct, **other, **every, N_LAYER=3, BLOCK_ALT_LAYERS='"1"')),
    ]


def latents():
    """mla with each query, rotation and splice; experts; the mixers beside them."""
    base = {k: v for k, v in BASE.items() if not k.startswith(("RA_MLA", "MODEL"))}
    base.update(BLOCK_SIZE=SHORT, MODEL_GPT2_MLA="y", MLA_LATENT_DIM=7)
    other = {k: v for k, v in base.items() if k != "MODEL_GPT2_MLA"}
    other.update(MODEL_MLA="y", MLA_QUERY='"latent"', MLA_Q_LATENT_DIM=5, MLA_ROPE_DIM=4)
    splice = {"MLA_KVSPLICE": "y", "MLA_KVSPLICE_DIM": 3}
    moe = {"BLOCK": '"mla moe"', "MLP_SWIGLU": "n", "MLP_MOE": "y", "INTERMEDIATE_SIZE": 12}
    return [
        ("mla", base),
        ("mla, DeepSeek-V2's", dict(other, MLA_LATENT_NORM="y", MLA_NOPE_DIM=5, MLA_V_DIM=3)),
        ("mla, two latents, splice in the last layer, rotations from x",
         dict(other, **splice, MLA_KVSPLICE_LAYERS=1, MLA_KVSPLICE_RECON='"0.7"', MLA_KV2="y",
              MLA_ROPE_FROM='"x"', MLA_LATENT_NORM="y", BLOCK_SIZE=LONG)),
        ("mla, shared query, tied splice",
         dict(base, **splice, MLA_KVSPLICE_TIED="y", MLA_QUERY='"shared"', MLA_ROPE_DIM=2)),
        ("mla, whole keys rotate, two splices as wide as the latents; mlp_splice",
         dict(base, **dict(splice, MLA_KVSPLICE_DIM=7), MLA_ROPE_FULL="y", MLA_KV2="y",
              MLP_MLP="n", MLP_SPLICE="y",
              BLOCK='"mla mlp_splice"', MLP_SPLICE_DIM=5)),
        ("moe", dict(other, **moe, SHARED_EXPERTS=1)),
        ("moe, one expert of a token, bias, dense first layer",
         dict(other, **dict(moe, MLP_SWIGLU="y"), EXPERTS_PER_TOK=1,
              LOAD_BALANCE_ALPHA='"0.5"', MOE_BIAS_BALANCE="y",
              BLOCK_ALT='"mla swiglu"', BLOCK_ALT_LAYERS='"0"')),
        ("llama", {**{k: v for k, v in base.items() if "MLA" not in k}, "MODEL_LLAMA": "y",
                   "KV_HEADS": 2}),
    ]


def linear_rnns():
    """gla, mfa_gla and mamba2 with each decay and everything that stands around them."""
    base = {k: v for k, v in BASE.items() if not k.startswith(("RA_MLA", "MODEL"))}
    base.update(BLOCK_SIZE=LONG, INIT_XAVIER="y", RESID_DROPOUT='"0.2"', WPE_ROWS=40)
    gla = dict(base, MODEL_GLA="y")
    mfa = dict(base, MODEL_MFA_GLA="y", MFA_LATENT_DIM=7, MFA_VALUE_DIM=3)
    mamba2 = dict(base, MODEL_MAMBA2="y", MAMBA2_NUM_HEADS=4, MAMBA2_HEAD_DIM=8,
                  MAMBA2_STATE_SIZE=5, MAMBA2_N_GROUPS=2)
    del mamba2["WPE_ROWS"]
    return [
        ("gla, convolutions, unit keys", dict(gla, GLA_CONV=3, GLA_K_NORM="y", GLA_GATE_BIAS='"3"')),
        ("gla, scalar, full rank, bare",
         dict(gla, GLA_DECAY='"scalar"', GLA_GATE_RANK=0, GLA_GATE_TAU='"0.5"', GLA_Q_SCALE="n",
              GLA_OUT_NORM="n", GLA_OUT_GATE="n", GLA_KEY_DIM=3, GLA_VALUE_DIM=5)),
        ("gla, fixed, beside mfa_gla, normal starts",
         dict(gla, INIT_XAVIER="n", GLA_DECAY='"fixed"', BLOCK_ALT='"mfa_gla mlp"',
              BLOCK_ALT_LAYERS='"0"', MIXER_MFA_GLA="y", MFA_LATENT_DIM=6, MFA_VALUE_DIM=2)),
        ("mfa_gla, shared decay", dict(mfa, MFA_SHARED_DECAY="y", GLA_GATE_RANK=3)),
        ("mfa_gla, values of the stream, no decay",
         dict(mfa, MFA_VALUE_DIM=0, GLA_DECAY='"none"', GLA_CONV=2)),
        ("mamba2", dict(mamba2, LINEAR_CHUNK=16)),
        ("mamba2 beside mla",
         dict(base, MODEL_GPT2_MLA="y", MLA_LATENT_DIM=7, MAMBA_LAYERS='"1"',
              **{k: v for k, v in mamba2.items() if k.startswith("MAMBA2")},
              BLOCK_SIZE=SHORT, WPE_ROWS=SHORT)),
    ]


def run(cmd):
    return subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test(case):
    """Output of what failed, '' where everything passed."""
    obj = os.path.join(SCRATCH, "tree")
    os.makedirs(obj, exist_ok=True)
    with open(f"{obj}/test_defconfig", "w") as f:
        f.writelines(f"CONFIG_{k}={v}\n" for k, v in case.items())
    refused = t.configure(obj, f"{obj}/test_defconfig")
    if refused:
        return refused
    programs = PROGRAMS
    if "MLA_LATENT_DIM" in case:
        programs += ("test_mla",)
    if "RESID_DROPOUT" in case:
        programs += ("test_linear_rnn",)
    steps = [["make", "-s", f"O={obj}", "check-programs", f"PROGRAMS={' '.join(programs)}",
              "EXTRA_CFLAGS=-Og -g0"]]
    steps += [[f"{obj}/tests/{p}"] for p in programs]
    for cmd in steps:
        done = run(cmd)
        if done.returncode:
            return done.stdout + f"exit {done.returncode}: {' '.join(cmd)}\n"
    return ""


def main():
    os.chdir(t.SRC)
    # what follows is short, too
    long_first = sorted(combinations(), key=lambda c: c[1]["BLOCK_SIZE"], reverse=True)
    cases = [c for c in long_first + extras() + stacks() + latents() + linear_rnns()
             if all(w in c[0] for w in sys.argv[1:])]
    results = [(name, test(case)) for name, case in cases]
    if not sys.argv[1:]:
        left = never_met([c for _, c in cases])
        results.append(("any two options meet, and any three of the main ones",
                        "\n".join(map(str, left))))
    for i, (name, output) in enumerate(results, 1):
        print(f"{'not ' if output else ''}ok {i} - {name}")
        for line in output.splitlines():
            if not line.startswith("ok"):
                print("#", line)
    print(f"1..{len(results)}")
    sys.exit(any(output for _, output in results))


if __name__ == "__main__":
    main()
