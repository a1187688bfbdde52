#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Logits, loss and every gradient against an independent PyTorch model, in double.

Every mode of every mechanism at least once, joined and direct form, expanded and
absorbed attention, shared and per-head projections, the rules of the last layer, every
choice of the stack, hybrids, targets that are not scored, batches below capacity.

    tests/torch.t [WORD...]     only the configurations whose name holds every WORD
"""
import json
import math
import os
import struct
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402
from bundle import masked, tokens    # noqa: E402

SCRATCH = os.path.join(os.path.dirname(t.SCRATCH), "torch")
os.environ["TENON_OBJECTS"] = ""        # one object tree; what it can keep, it keeps by itself
VOCAB = 70                   # padded to 128: columns that must not win
SHORT, LONG = 12, 33         # positions: fewer and more than a block of the kernels

GPT2 = {
    "MODEL_GPT2": "y", "ARCH_CPU": "y", "REAL_DOUBLE": "y", "GPT2_MODEL_CUSTOM": "y",
    "N_LAYER": 3, "N_HEAD": 4, "N_EMBD": 16, "VOCAB_SIZE": VOCAB, "BATCH_SIZE": 2,
    "BLOCK_SIZE": SHORT, "DATA_SHARDS": "y", "DATA_PATH": '"none"',
}
ANY = {k: v for k, v in GPT2.items() if k != "MODEL_GPT2"}
PLAIN = {**ANY, "MODEL_GPT2_RA_MLA": "y", "RA_MLA_LATENT_DIM": 8}
LLAMA = {**ANY, "MODEL_LLAMA": "y"}
MLA = {**ANY, "MODEL_GPT2_MLA": "y", "MLA_LATENT_DIM": 8}
EXPERTS = {**ANY, "MODEL_MLA": "y", "BLOCK": '"mla moe"', "MLP_SWIGLU": "n", "MLP_MOE": "y",
           "MLA_LATENT_DIM": 8, "INTERMEDIATE_SIZE": 20}


GLA = {**ANY, "MODEL_GLA": "y"}
MFA_GLA = {**ANY, "MODEL_MFA_GLA": "y", "MFA_LATENT_DIM": 6, "MFA_VALUE_DIM": 5}
MAMBA2 = {**ANY, "MODEL_MAMBA2": "y", "MAMBA2_NUM_HEADS": 4, "MAMBA2_HEAD_DIM": 8,
          "MAMBA2_STATE_SIZE": 5}
# The studies' models, with less to read: their numbers of parameters stand in the last column.
STUDY = {"ARCH_CPU": "y", "REAL_DOUBLE": "y", "BLOCK_SIZE": SHORT, "BATCH_SIZE": 2}


def splice(width, **more):
    return {"MLA_KVSPLICE": "y", "MLA_KVSPLICE_DIM": width,
            **{f"MLA_KVSPLICE_{k}": v for k, v in more.items()}}


def gate(pool):
    return {"RA_MLA_MLP_ATTN_GATE": "y", "RA_MLA_MLP_GATE_DIM": 3, "RA_MLA_MLP_GATE_ALPHA": "0.7",
            "RA_MLA_MLP_GATE_POOL": f'"{pool}"'}


def cross(mode, average, **more):
    out = {"RA_MLA_MLP_CROSS_TOKEN": "y", "RA_MLA_MLP_SPARSE_MODE": f'"{mode}"',
           "RA_MLA_MLP_SPARSE_HEAD_AVERAGE": average}
    if mode == "topk":
        out["RA_MLA_MLP_SPARSE_K"] = 3
    return {**out, **more}


def latent(tying, detach="y"):
    out = {"RA_MLA_MLP_LATENT_RECIP": "y", "RA_MLA_MLP_TYING_MODE": f'"{tying}"',
           "RA_MLA_MLP_LATENT_DETACH": detach}
    if tying == "untied":
        out["RA_MLA_MLP_LATENT_DIM"] = 6
    return out


def reciprocal(window):
    return {"RA_MLA_RA_ALPHA": "0.6", "RA_MLA_RA_WINDOW": window}


RAW = {"RA_MLA_MLP_SPARSE_NORMALIZE": "n"}
SHARED_Q, SHARED_V = {"RA_MLA_PER_HEAD_Q_LATENT": "n"}, {"RA_MLA_PER_HEAD_V_UP": "n"}
MORE = {"BLOCK_SIZE": LONG}
MASKED = "masked targets"    # in a case: not a symbol, but how it is dumped
FROM = "defconfig"           # the defconfig that a case changes
COUNT = "parameters"         # that the plan must say
OF_FIRST = "of the first sub-layer"     # the same without its norm

RECALL = {"MQAR_PAIRS": 4}      # of so short sequences

# Neighbours in a list share what most files read: widths, positions, the gate.
CASES = [
    ("gpt2", GPT2, {}),
    ("gpt2, targets that are not scored", GPT2, {MASKED: True}),
    ("gpt2, RMSNorm, another epsilon", GPT2, {"NORM_RMSNORM": "y", "NORM_EPSILON": '"1e-3"'}),
    ("gpt2, LayerNorm, another epsilon, no biases", GPT2,
     {"NORM_EPSILON": '"1e-2"', "LINEAR_BIAS": "n"}),
    ("gpt2, untied head, no positions", GPT2, {"HEAD_TIED": "n", "LEARNED_POSITIONS": "n"}),
    ("gpt2, two key heads, another width", GPT2, {"KV_HEADS": 2, "INTERMEDIATE_SIZE": 22}),
    ("gpt2, one key head, RMSNorm, no biases, long", GPT2,
     {**MORE, "KV_HEADS": 1, "NORM_RMSNORM": "y", "LINEAR_BIAS": "n"}),
    ("llama, grouped heads", LLAMA, {"KV_HEADS": 2}),
    ("llama, another base, odd width of the mlp, long", LLAMA,
     {**MORE, "ROPE_THETA": '"50"', "INTERMEDIATE_SIZE": 19, "LINEAR_BIAS": "y"}),
    ("rope beside learned positions", GPT2, {"MHA_ROPE": "y"}),
    ("mla", MLA, {}),
    ("mla as DeepSeek-V2, another stack", {**ANY, "MODEL_MLA": "y"},
     {"MLA_LATENT_DIM": 9, "MLA_QUERY": '"latent"', "MLA_Q_LATENT_DIM": 6, "MLA_ROPE_DIM": 4,
      "MLA_NOPE_DIM": 5, "MLA_V_DIM": 3, "MLA_LATENT_NORM": "y"}),
    ("mla, two latents, splice in the last layers", MLA,
     {**splice(4, RECON='"0.3"', LAYERS=2), "MLA_KV2": "y", "MLA_QUERY": '"latent"',
      "MLA_Q_LATENT_DIM": 5, "MLA_ROPE_DIM": 2, "MLA_ROPE_FROM": '"x"', "MLA_LATENT_NORM": "y"}),
    ("mla, shared query, tied splice, long", MLA,
     {**MORE, **splice(3, RECON='"0.5"', TIED="y"), "MLA_QUERY": '"shared"', "MLA_ROPE_DIM": 6,
      "MLA_ROPE_FROM": '"x"'}),
    ("mla, shared query with its rotated part, splice", MLA,
     {**splice(6), "MLA_QUERY": '"shared"', "MLA_ROPE_DIM": 2}),
    ("mla, whole keys rotate, no biases", MLA,
     {"MLA_ROPE_FULL": "y", "MLA_NOPE_DIM": 6, "MLA_KV2": "y", "LINEAR_BIAS": "n"}),
    ("mla, whole keys rotate, splice, beside mha", MLA,
     {**splice(2, TIED="y", LAYERS=1), "MLA_ROPE_FULL": "y", "BLOCK_ALT": '"mha mlp"',
      "BLOCK_ALT_LAYERS": '"1"', "MIXER_MHA": "y", "MHA_ROPE": "y"}),
    ("mlp_splice", MLA, {"BLOCK": '"mla mlp_splice"', "MLP_MLP": "n", "MLP_SPLICE": "y",
                         "MLP_SPLICE_DIM": 5}),
    ("moe, one expert of a token, no shared one", EXPERTS,
     {"NUM_EXPERTS": 3, "EXPERTS_PER_TOK": 1, "LOAD_BALANCE_ALPHA": '"0.5"'}),
    ("moe, shared experts, bias, dense first layer", EXPERTS,
     {"NUM_EXPERTS": 5, "EXPERTS_PER_TOK": 3, "SHARED_EXPERTS": 2, "EXPERT_SIZE": 6,
      "MOE_BIAS_BALANCE": "y", "BLOCK_ALT": '"mla swiglu"', "BLOCK_ALT_LAYERS": '"0"',
      "MLP_SWIGLU": "y"}),
    ("moe, every expert, no balance, long", EXPERTS,
     {**MORE, "NUM_EXPERTS": 2, "LOAD_BALANCE_ALPHA": '"0.0"'}),
    ("gla", GLA, {}),
    ("gla, full rank, convolutions, unit keys, widths, long", GLA,
     {**MORE, "GLA_GATE_RANK": 0, "GLA_GATE_TAU": '"1"', "GLA_CONV": 4, "GLA_K_NORM": "y",
      "GLA_KEY_DIM": 5, "GLA_VALUE_DIM": 3, "GLA_OUT_NORM": "n"}),
    ("gla, scalar decay, no gate, no scale", GLA,
     {"GLA_DECAY": '"scalar"', "GLA_GATE_RANK": 3, "GLA_OUT_GATE": "n", "GLA_Q_SCALE": "n"}),
    ("gla, fixed decay, beside mha, long", GLA,
     {**MORE, "GLA_DECAY": '"fixed"', "BLOCK_ALT": '"mha mlp"', "BLOCK_ALT_LAYERS": '"1"',
      "MIXER_MHA": "y"}),
    ("gla, no decay, nothing behind, positions to spare", GLA,
     {"GLA_DECAY": '"none"', "GLA_OUT_NORM": "n", "GLA_OUT_GATE": "n", "WPE_ROWS": 40}),
    ("mfa_gla, convolutions, long", MFA_GLA, {**MORE, "GLA_CONV": 2}),
    ("mfa_gla, shared scalar decay, values of the stream, unit keys", MFA_GLA,
     {"MFA_SHARED_DECAY": "y", "GLA_DECAY": '"scalar"', "MFA_VALUE_DIM": 0, "GLA_K_NORM": "y"}),
    ("mfa_gla, fixed decay", MFA_GLA, {"GLA_DECAY": '"fixed"', "INIT_XAVIER": "y"}),
    ("mamba2, long", MAMBA2, {**MORE, "INIT_XAVIER": "y"}),
    ("mamba2, groups, narrow, two taps", MAMBA2,
     {"MAMBA2_N_GROUPS": 2, "MAMBA2_CONV_KERNEL": 2, "MAMBA2_EXPAND": 1, "MAMBA2_HEAD_DIM": 4,
      "NORM_EPSILON": '"1e-2"'}),
    ("hybrid of mla and mamba2", {**ANY, "MODEL_MLA": "y", "MLA_LATENT_DIM": 8},
     {**{k: v for k, v in MAMBA2.items() if k.startswith("MAMBA2")}, "MLA_ROPE_DIM": 2,
      "MAMBA_LAYERS": '"0,2"'}),
    ("study 063, gla", STUDY, {FROM: "study-063-gla", **RECALL, COUNT: 131968}),
    ("study 063, mfa_gla", STUDY, {FROM: "study-063-mfa-gla", **RECALL, COUNT: 247040}),
    ("study 063, equal parameters", STUDY,
     {FROM: "study-063-mfa-gla", **RECALL, "N_HEAD": 2, "MFA_LATENT_DIM": 48, "MFA_VALUE_DIM": 16,
      COUNT: 132032}),
    ("study 063, equal state", STUDY,
     {FROM: "study-063-mfa-gla", **RECALL, "N_HEAD": 2, "MFA_LATENT_DIM": 32, COUNT: 115584}),
    ("study 063, shared decay", STUDY,
     {FROM: "study-063-mfa-gla", **RECALL, "MFA_SHARED_DECAY": "y", COUNT: 197504}),
    ("study 063, values of the stream", STUDY,
     {FROM: "study-063-mfa-gla", **RECALL, "MFA_VALUE_DIM": 0, COUNT: 263424}),
    ("study 053", STUDY, {FROM: "study-053-gla", COUNT: 658176}),
    ("the guide's mamba2", STUDY,
     {FROM: "hybrid-mla-mamba2", "N_LAYER": 2, "MAMBA_LAYERS": '"0"', "VOCAB_SIZE": 256,
      "N_HEAD": 6, OF_FIRST: 957712}),
    ("latent attention alone", PLAIN, {}),
    ("reciprocal term, window 0", PLAIN, {**reciprocal(0), **SHARED_V}),
    ("latent alone, untied", PLAIN, latent("untied")),
    ("cross alone, topk", PLAIN, cross("topk", "y")),
    ("gate token, cross topk, tied", PLAIN,
     {**gate("token"), **cross("topk", "y"), **latent("tied_transpose")}),
    ("gate causal, cross topk per head, untied, not detached", PLAIN,
     {**gate("causal"), **cross("topk", "n"), **latent("untied", "n"), **SHARED_Q}),
    ("gate sequence, cross rms per head, scalars, not detached", PLAIN,
     {**gate("sequence"), **cross("rms", "n", **RAW), **latent("per_head_scalar", "n"),
      **reciprocal(5)}),
    ("gate causal, cross none per head, scalars", PLAIN,
     {**gate("causal"), **cross("none", "n"), **latent("per_head_scalar"), **SHARED_V}),
    ("one layer, cross rms", PLAIN, {**cross("rms", "y"), "N_LAYER": 1}),
    ("gate causal, cross topk, tied, not detached, long", PLAIN,
     {**MORE, **gate("causal"), **cross("topk", "y"), **latent("tied_transpose", "n"),
      **reciprocal(40)}),
    ("gate token, cross rms, untied, long", PLAIN,
     {**MORE, **gate("token"), **cross("rms", "y"), **latent("untied"), **SHARED_Q}),
    ("gate sequence, cross none, scalars, long", PLAIN,
     {**MORE, **gate("sequence"), **cross("none", "y", **RAW), **latent("per_head_scalar")}),
    ("cross alone, more kept than visible", PLAIN,
     {**MORE, **cross("topk", "y", RA_MLA_MLP_SPARSE_K=64)}),
    ("hybrid block", PLAIN,
     {**MORE, **gate("causal"), **cross("topk", "y"), **latent("tied_transpose"),
      "BLOCK": '"mha mlp ra_mla recip"', "MIXER_MHA": "y", "MLP_MLP": "y", "N_LAYER": 2}),
    ("layers of another block", PLAIN,
     {**gate("causal"), **cross("topk", "y"), **latent("tied_transpose"), "N_LAYER": 4,
      "BLOCK_ALT": '"mha mlp"', "BLOCK_ALT_LAYERS": '"1,3"', "MIXER_MHA": "y", "MLP_MLP": "y",
      "KV_HEADS": 2}),
    ("latent narrower than a head, every mechanism", PLAIN,
     {**gate("causal"), **cross("topk", "y"), **latent("untied", "n"), **reciprocal(5),
      "RA_MLA_LATENT_DIM": 3}),
    ("every mechanism in another stack", PLAIN,
     {**gate("causal"), **cross("rms", "y"), **latent("per_head_scalar"), "NORM_RMSNORM": "y",
      "HEAD_TIED": "n", "LEARNED_POSITIONS": "n", "LINEAR_BIAS": "n", "INTERMEDIATE_SIZE": 24}),
    ("odd widths", PLAIN,
     {**gate("causal"), **cross("topk", "y"), **latent("tied_transpose"), "N_HEAD": 3,
      "N_EMBD": 15, "RA_MLA_LATENT_DIM": 5, "BATCH_SIZE": 1, "VOCAB_SIZE": 64}),
]


def python_with_torch():
    for python in (t.PYTHON, "/usr/bin/python3"):
        if not subprocess.run([python, "-c", "import torch"], stderr=subprocess.DEVNULL).returncode:
            return python
    return None


def run(*cmd):
    return subprocess.run(cmd, cwd=t.SRC, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True)


def dump(number, cfg):
    """Build, plan and dump one configuration; (bundle, what failed). The plan stands
    beside the bundle."""
    obj, path = os.path.join(SCRATCH, "tree"), os.path.join(SCRATCH, f"{number}.safetensors")
    os.makedirs(obj, exist_ok=True)
    unscored, base = cfg.pop(MASKED, False), cfg.pop(FROM, None)
    counts = [cfg.pop(COUNT, None), cfg.pop(OF_FIRST, None)]
    with open(f"{obj}/test.config", "w") as f:
        f.writelines(f"CONFIG_{k}={v}\n" for k, v in cfg.items())
    b, length = cfg["BATCH_SIZE"], cfg["BLOCK_SIZE"] - number % 2
    (masked if unscored else tokens)(f"{obj}/tokens", b, length, cfg.get("VOCAB_SIZE", 64))
    refused = t.configure(obj, *filter(None, [base]), f"{obj}/test.config")
    if refused:
        return path, refused
    for cmd in (["make", "-s", f"O={obj}", "EXTRA_CFLAGS=-Og -g0", "check-programs",
                 "PROGRAMS=dumps"],
                [f"{obj}/tests/dumps", "dump", "--targets" if unscored else "--tokens",
                 f"{obj}/tokens", "--out", path, "--init", "7", "--batch", str(b), "--length",
                 str(length), "--threads", "1"],
                [f"{obj}/tests/dumps", "plan", "--json", "--elsewhere"]):
        done = run(*cmd)
        if done.returncode:
            return path, f"{' '.join(cmd)}\n{done.stdout}"
    t.write(done.stdout.encode(), path + ".json")
    return path, miscounted(json.loads(done.stdout), *counts)


def miscounted(plan, params, first):
    """What is wrong with the number of parameters, of all or of the first sub-layer's mixer."""
    said = [plan["params"], sum(math.prod(x["shape"]) for x in plan["sublayers"][0]["tensors"]
                                if ".ln_" not in x["name"])]
    return "".join(f"{got} parameters, not {want}\n" for got, want in zip(said, (params, first))
                   if want not in (None, got))


# One process for all bundles: loading PyTorch takes longer than to compare.
TORCH_REF = """
import contextlib, io, json, sys
sys.path.insert(0, "scripts")
import torch_ref
for words in json.load(sys.stdin):
    sys.argv = ["torch_ref.py", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        status = torch_ref.main()
    print(json.dumps([status, out.getvalue()]), flush=True)
"""


def torch_ref(python, pairs):
    """(status, output) for each (bundle that the plan stands beside, bundle to compare)."""
    words = json.dumps([(path + ".json", bundle) for path, bundle in pairs])
    done = subprocess.run([python, "-c", TORCH_REF], cwd=t.SRC, input=words, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    return said + [(done.returncode, done.stderr)] * (len(pairs) - len(said))


def alter(path):
    """A bundle with a relative change of 1e-6 in one number of one gradient."""
    blob = bytearray(t.read(path))
    value = struct.unpack("<d", blob[-8:])[0]
    blob[-8:] = struct.pack("<d", value * (1 + 1e-6))
    t.write(bytes(blob), path + ".altered")
    return path + ".altered"


def main():
    os.chdir(t.SRC)
    python = python_with_torch()
    if not python:
        print("1..0 # SKIP PyTorch is not installed (Debian: python3-torch)")
        return 0
    cases = [(i, c) for i, c in enumerate(CASES) if all(w in c[0] for w in sys.argv[1:])]
    bundles = [dump(number, {**base, **more}) for number, (_, base, more) in cases]
    first = next(path for path, failed in bundles if not failed)
    compared = iter(torch_ref(python, [(path, path) for path, failed in bundles if not failed] +
                              [(first, alter(first))]))
    for (_, (name, _, _)), (_, failed) in zip(cases, bundles):
        status, said = (None, failed) if failed else next(compared)
        t.ok(status == 0, f"torch_agrees: {name}", said)
    status, said = next(compared)
    t.ok(status == 1 and "DIFFERS grad.ln_f.bias" in said, "torch_ref_sees_an_altered_gradient",
         said)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
