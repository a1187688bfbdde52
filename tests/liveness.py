#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every symbol does something: each that has a prompt is changed alone, and what a short run
leaves behind has to change: its lines, its metrics, its files, the plan, or what it generates.

One object tree, one configuration with every mechanism at the smallest widths; a choice is
turned to each of its members. What cannot show here stands in EXEMPT, with the reason.

    tests/liveness.py [--dir DIR] [SYMBOL...]
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t                # noqa: E402

sys.path.insert(0, os.path.join(t.SRC, "scripts"))
from kconf import rules             # noqa: E402
from kconf.config import Config     # noqa: E402

# Every mixer by its name in BLOCK.
MIXERS = {"mha": "MIXER_MHA", "mlp": "MLP_MLP", "ra_mla": "MIXER_RA_MLA", "recip": "MLP_RECIP",
          "mla": "MIXER_MLA", "moe": "MLP_MOE", "swiglu": "MLP_SWIGLU",
          "mlp_splice": "MLP_SPLICE"}
ON = dict.fromkeys((
    "GPT2_MODEL_CUSTOM", "ARCH_CPU", "REAL_FLOAT", "OPTIM_ADAMWSPAM", *MIXERS.values(),
    "MHA_ROPE", "MLA_QUERY_LATENT", "MLA_KVSPLICE", "MOE_BIAS_BALANCE",
    "RA_MLA_MLP_ATTN_GATE", "RA_MLA_MLP_CROSS_TOKEN", "RA_MLA_MLP_LATENT_RECIP",
    "RA_MLA_LOG_METRICS"), "y")
# Every mechanism acts, every interval comes around, and clipping, resets and the detector of
# spikes have something to do.
BASE = {
    **ON, "BLOCK": " ".join(MIXERS), "N_LAYER": "2", "N_HEAD": "2", "N_EMBD": "16",
    "BLOCK_SIZE": "16", "BATCH_SIZE": "2", "VOCAB_SIZE": "256", "GRADIENT_ACCUMULATION": "2",
    "MAX_ITERS": "24", "LEARNING_RATE": "3e-3", "MIN_LR": "3e-4", "WARMUP_STEPS": "3",
    "EVAL_INTERVAL": "8", "EVAL_SAMPLES": "2", "LOG_INTERVAL": "4", "CHECKPOINT_INTERVAL": "6",
    "CHECKPOINT_KEEP": "2", "GRAD_CLIP": "0.5", "SPAM_THETA": "2.0", "SPAM_CLIP_AFTER": "2",
    "SPAM_SPIKE_THRESHOLD": "1.0", "SPAM_INTERVAL": "7", "SPAM_WARMUP_STEPS": "4",
    "RA_MLA_LATENT_DIM": "8", "RA_MLA_RA_ALPHA": "0.5", "RA_MLA_RA_WINDOW": "4",
    "RA_MLA_MLP_GATE_DIM": "4", "RA_MLA_MLP_SPARSE_K": "3", "GENERATION_TOP_K": "0",
    "GENERATION_MAX_TOKENS": "12", "MLA_LATENT_DIM": "6", "MLA_Q_LATENT_DIM": "4",
    "MLA_ROPE_DIM": "2", "MLA_KVSPLICE_DIM": "4", "MLP_SPLICE_DIM": "3", "MOE_BIAS_RATE": "0.1",
}

# The same mixers in another order.
TURNED = " ".join(["ra_mla", "recip", *(m for m in MIXERS if m not in ("ra_mla", "recip"))])
# Mixers beside those of BASE, by the beginning of what is theirs.
GLA = {"MIXER_GLA": "y", "BLOCK": BASE["BLOCK"] + " gla"}
FAMILIES = {
    "GLA_": GLA,
    "MFA_": {"MIXER_MFA_GLA": "y", "BLOCK": BASE["BLOCK"] + " mfa_gla", "MFA_LATENT_DIM": "6",
             "MFA_VALUE_DIM": "4"},
    "MAMBA2_": {"MIXER_MAMBA2": "y", "BLOCK": BASE["BLOCK"] + " mamba2", "MAMBA2_NUM_HEADS": "4",
                "MAMBA2_HEAD_DIM": "8", "MAMBA2_STATE_SIZE": "5"},
}

# Symbols that are open only with others.
UNDER = {
    "INIT_XAVIER": GLA,
    # Nothing but memory depends on it: most of the scratch, where states are large.
    "LINEAR_CHUNK": {**GLA, "BLOCK_SIZE": "40", "GLA_KEY_DIM": "64", "GLA_VALUE_DIM": "128"},
    "LR_DECAY_STEPS": {"LR_WSD": "y"},
    "RA_MLA_MLP_SPARSE_RMS_THRESHOLD": {"RA_MLA_MLP_SPARSE_MODE_RMS": "y"},
    **dict.fromkeys(("DATA_SEED", "DATA_TRAIN_SEQS", "DATA_VAL_SEQS", "DATA_TEST_SEQS", "DATA_FRESH",
                     "MQAR_FORM_STUDY", "MQAR_FORM_ZOOLOGY", "MQAR_PAIRS"),
                    {"DATA_MQAR": "y", "MQAR_PAIRS": "4"}),
    **dict.fromkeys(("MQAR_POWER_A", "MQAR_NOISE"),
                    {"DATA_MQAR": "y", "MQAR_PAIRS": "4", "MQAR_FORM_ZOOLOGY": "y"}),
    **dict.fromkeys(("MARKOV_ORDER", "MARKOV_SYMBOLS"), {"DATA_MARKOV": "y"}),
    "RA_MLA_MLP_LATENT_DIM": {"RA_MLA_MLP_TYING_MODE_UNTIED": "y"},
    "MLA_ROPE_FULL": {"MLA_ROPE_DIM": "0"},
    "BLOCK_ALT_LAYERS": {"BLOCK_ALT": TURNED, "BLOCK_ALT_LAYERS": "0"},
    "DATA_PATH": {"DATA_TEXT": "y", "DATA_PATH": "README.md"},
}
# Values, where what randconfig draws does not do or does not show; with it, what has to follow.
TO = {
    "SEED": "7", "NORM_EPSILON": "1e-2", "ADAM_EPSILON": "1e-3", "KV_HEADS": "1",
    "SPAM_SPIKE_THRESHOLD": "0", "LR_DECAY_STEPS": "3", "SPAM_THETA": "1.5", "MAX_ITERS": "23",
    "CHECKPOINT_INTERVAL": "5", "GENERATION_TOP_K": "1", "GRADIENT_ACCUMULATION": "3",
    "LINEAR_CHUNK": "16", "MAMBA2_NUM_HEADS": "2", "MAMBA2_HEAD_DIM": "16", "MAMBA2_EXPAND": "1",
    "BLOCK": TURNED, "BLOCK_SIZE": "12", "HEAD_ROWS": "7", "DATA_PATH": "LICENSE",
    # Early rows are nearly even: nothing is below half of their root mean square.
    "RA_MLA_MLP_SPARSE_RMS_THRESHOLD": "1.5",
}
WITH = {
    **{symbol: {"BLOCK": " ".join(m for m in MIXERS if m != name)}
       for name, symbol in MIXERS.items()},
    "MIXER_GLA": {"BLOCK": GLA["BLOCK"]},
    "MIXER_MFA_GLA": {"BLOCK": FAMILIES["MFA_"]["BLOCK"]},
    "MIXER_MAMBA2": FAMILIES["MAMBA2_"],
    "MAMBA2_NUM_HEADS": {"MAMBA2_HEAD_DIM": "16"}, "MAMBA2_HEAD_DIM": {"MAMBA2_NUM_HEADS": "2"},
    "MAMBA2_EXPAND": {"MAMBA2_NUM_HEADS": "2"},
    "BLOCK_ALT": {"BLOCK_ALT": TURNED, "BLOCK_ALT_LAYERS": "1"},
    "BLOCK_ALT_LAYERS": {"BLOCK_ALT_LAYERS": "1"},
    "DATA_TEXT": {"DATA_PATH": "README.md"}, "DATA_MQAR": {"MQAR_PAIRS": "4"},
}
# Without it the mechanisms of recip have no partner.
WITH["MIXER_RA_MLA"].update(RA_MLA_MLP_ATTN_GATE="n", RA_MLA_MLP_CROSS_TOKEN="n",
                            RA_MLA_MLP_LATENT_RECIP="n")

EXEMPT = {
    "RUN_NAME": "names the folder that make writes to; tests/build.t",
    "MODEL_GPT2_RA_MLA": "sets defaults of BLOCK and of the mixers, which are all set here",
    "MODEL_GPT2_MLA": "sets defaults of BLOCK and of the mixers, which are all set here",
    **dict.fromkeys(("MODEL_GLA", "MODEL_MFA_GLA", "MODEL_MAMBA2"),
                    "sets defaults of BLOCK and of the mixers; tests/kconfig_stack.t"),
    "GPT2_MODEL_124M": "widths of minutes; tests/plan.t has their parameters",
    "GPT2_MODEL_350M": "widths of minutes; tests/plan.t has their parameters",
    "GPT2_MODEL_774M": "widths of minutes; tests/plan.t has their parameters",
    "GPT2_MODEL_1558M": "widths of minutes; tests/plan.t has their parameters",
    "ARCH_CUDA": "needs a GPU; tests/cuda.t",
    "CUDA_SM_80": "needs a GPU; tests/cuda.t",
    "CUDA_SM_90A": "needs a GPU; tests/cuda.t",
    "MAX_TIME": "a short run ends before the shortest limit; tests/train.t",
    "SPAM_MAX_SKIPS": "no gradient here is not finite; tests/test_train.c",
    "DATA_SHARDS": "needs files of tokens; tests/train.t",
    "STOP_ACCURACY": "two batches of a short run have no right answer; tests/drawn.t",
    "RA_MLA_ABLATION_MODE": "what make does, not a run; tests/study.t",
    "RA_MLA_ABLATION_STEPS": "what make does, not a run; tests/study.t",
    "ABLATION_ARMS": "what make does, not a run; tests/study.t",
    "ABLATION_SEEDS": "what make does, not a run; tests/study.t",
}

# Lines that name symbols, and what the clock leaves in the others.
NAMES = ("run ", "build ", "time ")
NOISE = re.compile(r"[\d.]+ tok/s( .median.|  eta \S+)?|[\d.]+ MiB at most|[\d.]+ measured")


def put(conf, *layers):
    """Make a configuration that of BASE with more on top; '' or what is wrong with it."""
    conf.unset_values()
    values = {k: v for layer in (BASE, *layers) for k, v in layer.items()}
    for name, value in values.items():
        conf.syms[name].set_value(value)
    # What BASE says may lose its meaning under them; what they say may not.
    lost = [f"{n}={v} is '{conf.value(n)}'" for layer in layers for n, v in layer.items()
            if v == values[n] != conf.value(n)]
    return "\n".join(rules.violations(conf) + lost)


def flips(conf, sym):
    """Values to turn a symbol to, the best first."""
    now = conf.value(sym.name)
    if sym.choice:
        return ["y"] if sym.choice.selection is not sym else []
    if sym.name in WITH and sym.name in WITH[sym.name]:
        return [WITH[sym.name][sym.name]]
    if sym.name in TO:
        return [TO[sym.name]]
    if sym.name in ON or now in ("y", "n"):
        return ["y" if now == "n" else "n"]
    return [v for v in conf.decl.tries.get(sym.name, []) if v != now]


def cases(conf, wanted):
    """(symbol, layers before, layers after) of each change; '' where one should be and is not."""
    names = [s.name for s in conf.unique_defined_syms
             if any(node.prompt for node in s.nodes) and (not wanted or s.name in wanted)]
    for name in names:
        sym = conf.syms[name]
        under = UNDER.get(name) or next((f for prefix, f in FAMILIES.items()
                                         if name.startswith(prefix)), {})
        put(conf, under)
        if name in EXEMPT:
            continue
        if sym.choice and (sym.choice.selection is sym or
                           (sym.choice.visibility and not sym.visibility)):
            continue    # where the choice stands; or what is not installed here
        for value in flips(conf, sym):
            after = {**under, **WITH.get(name, {}), name: value}
            if not put(conf, after):
                yield name, under, after
                break
        else:
            yield name, None, f"no legal other value; {put(conf, under)}"


# What a configuration leaves behind

def make(obj):
    done = subprocess.run(["make", "-s", f"O={obj}", "EXTRA_CFLAGS=-O1 -g0", "build"], cwd=t.SRC,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout)


def plain(text):
    return [NOISE.sub("~", line) for line in text.splitlines() if not line.startswith(NAMES)]


def result(conf, obj):
    """Everything that a short run shows and leaves, without time and places."""
    with open(f"{obj}/.config", "w", encoding="utf-8") as file:
        file.write(conf.text())
    make(obj)
    shutil.rmtree(f"{obj}/run", ignore_errors=True)
    binary, out = f"{obj}/tenon", f"{obj}/run"
    run = t.train(binary, out, cwd=t.SRC)
    if run.returncode:
        raise RuntimeError(t.said(run))
    files = sorted(re.sub(r"tfevents.*", "tfevents", os.path.join(base, name)[len(out):])
                   for base, _, names in os.walk(out) for name in names)
    text = t.tenon(binary, "generate", "--checkpoint", out, "--prompt", "a", cwd=t.SRC,
                   errors="backslashreplace")
    plan = json.loads(t.tenon(binary, "plan", "--json", cwd=t.SRC).stdout)
    for name in ("run", "recompute", "memory_available"):   # symbols by name; the machine
        del plan[name]
    return [plain(run.stdout), t.metrics(out), files, t.steps(out), plain(text.stdout), plan]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--dir", default=os.path.join(os.path.dirname(t.SCRATCH), "liveness"))
    parser.add_argument("symbols", nargs="*")
    args = parser.parse_args()
    os.chdir(t.SRC)
    objects = os.path.abspath(f"{args.dir}/objects")
    os.makedirs(objects, exist_ok=True)
    os.environ["PATH"] = f"{t.SRC}/tests/bin:{os.environ['PATH']}"
    os.environ["TENON_OBJECTS"] = objects
    conf, seen = Config(), {}

    def of(layer):
        key = tuple(sorted(layer.items()))
        if key not in seen:
            problem = put(conf, layer)
            if problem:
                raise RuntimeError(problem)
            seen[key] = result(conf, os.path.abspath(args.dir))
        return seen[key]

    again = of({})
    seen.clear()
    t.ok(of({}) == again, "the same configuration twice: the same result",
         [(a, b) for a, b in zip(again, of({})) if a != b])
    for name, before, after in list(cases(conf, args.symbols)):
        value = after.get(name) if before is not None else "?"
        try:
            passed = before is not None and of(before) != of(after)
            t.ok(passed, f"{name}={value} changes the result", after)
        except RuntimeError as error:
            t.ok(False, f"{name}={value} changes the result", error)
    missing = sorted(name for name in EXEMPT if name not in conf.syms or not conf.syms[name].nodes)
    t.ok(not missing, "what is exempt exists", missing)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
