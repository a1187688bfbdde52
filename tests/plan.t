#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tenon plan: the published parameter counts, what each sub-layer is and executes, whether a
run could begin, and memory measured against planned."""
import json
import math
import os
import re
import subprocess
import sys
import tempfile

SRC = os.environ.get("TENON_SRC", os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PYTHON = os.environ.get("TENON_PYTHON", "/usr/bin/python3")
OBJ = os.path.join(os.environ.get("TENON_TESTDIR", os.path.join(SRC, "build/check")), "plan")

# Parameters of the published study (V=50304, C=768, H=12, 12 layers, L=N=128, G=64),
# which counts the last layer's unread tensors; what exists is fewer.
GATE, CROSS, LATENT = "RA_MLA_MLP_ATTN_GATE", "RA_MLA_MLP_CROSS_TOKEN", "RA_MLA_MLP_LATENT_RECIP"
TYING = "RA_MLA_MLP_TYING_MODE"
PUBLISHED = [
    ("latent attention only", {GATE: "n", CROSS: "n", LATENT: "n"}, 115001856, 0),
    ("and gate", {CROSS: "n", LATENT: "n"}, 117370368, 64 * 3072 + 12 * 64),
    ("and cross-token", {LATENT: "n"}, 230616576, 64 * 3072 + 12 * 64),
    ("all, untied", {TYING: '"untied"'}, 240250368, 64 * 3072 + 12 * 64 + 128 * 3072 + 128 * 128),
    ("all, tied", {TYING: '"tied_transpose"'}, 235335168, 64 * 3072 + 12 * 64),
]
# Parameters and cached values a token and layer of published models, padded vocabulary.
LATENT_MODELS = [
    ("gpt2-mla0", 117401088, 256), ("gpt2-mlakv0", 118193664, 128),
    ("gpt2-mlakv0-shared", 113475072, 128), ("gpt2-mlakv2", 121348608, 256),
    ("gpt2-mlakv2m", 73345536, 256), ("mla-guide", 163258880, 208), ("mla-moe", 263938560, 208),
    ("deepseek-v2-lite", 15706484224, 576),
]
# DeepSeek-V2-Lite on top of mla-moe: arXiv 2405.04434, its config.json.
V2_LITE = {
    "N_LAYER": 27, "N_HEAD": 16, "N_EMBD": 2048, "VOCAB_SIZE": 102400, "BLOCK_SIZE": 16,
    "BATCH_SIZE": 1, "BLOCK_ALT": '"mla swiglu"', "BLOCK_ALT_LAYERS": '"0"', "MLP_SWIGLU": "y",
    "INTERMEDIATE_SIZE": 10944, "EXPERT_SIZE": 1408, "NUM_EXPERTS": 64, "EXPERTS_PER_TOK": 6,
    "SHARED_EXPERTS": 2, "MLA_QUERY": '"direct"', "MLA_LATENT_DIM": 512, "MLA_LATENT_NORM": "y",
    "MLA_NOPE_DIM": 128, "MLA_V_DIM": 128, "MLA_ROPE_DIM": 64,
}
# Routed experts that a token does not use, of 26 layers.
V2_LITE_IDLE = 26 * (64 - 6) * 3 * 1408 * 2048
PLANS = ("check-programs", "PROGRAMS=dumps")
LINE = 0.02    # members start on 256 bytes, and rows of logits come in chunks
# A plan of 128 MiB and more, and what the process may take beyond it.
BIG, WITHIN = 128, 0.02    # MiB, share

count = 0
failed = 0


def ok(good, name):
    global count, failed
    count += 1
    failed += not good
    print(f"{'' if good else 'not '}ok {count} - {name}", flush=True)


def run(*cmd, **kw):
    return subprocess.run(cmd, cwd=SRC, check=True, stdout=subprocess.PIPE, text=True, **kw).stdout


def build(name, defconfig, symbols, goals=PLANS):
    """The object tree of a configuration; its tests/dumps has the verb plan."""
    obj = os.path.join(OBJ, name)
    os.makedirs(obj, exist_ok=True)
    fragment = os.path.join(obj, "test.config")
    with open(fragment, "w") as f:
        f.writelines(f"CONFIG_{k}={v}\n" for k, v in symbols.items())
    run(PYTHON, "scripts/kconfig.py", "--config", f"{obj}/.config", "--gen", obj, "defconfig",
        defconfig, fragment, stderr=subprocess.DEVNULL)
    run("make", "-s", f"O={obj}", "EXTRA_CFLAGS=-Og -g0", *goals)
    return obj


def plan(obj, *flags):
    """What it says of a run anywhere: to open a machine, as checks() does, takes BLAS a while."""
    return run(f"{obj}/tests/dumps", "plan", "--elsewhere", *flags)


def published_counts():
    for name, symbols, counted, unread in PUBLISHED:
        obj = build("gpt2", "gpt2-ra-mla-full", dict(symbols, RA_MLA_ABLATION_MODE="n"))
        said = json.loads(plan(obj, "--json"))
        ok(said["params_published"] == counted, f"{name}: {counted} as the published table counts")
        ok(said["params"] == counted - unread, f"{name}: {counted - unread} exist")


def latent_models():
    for name, params, cached in LATENT_MODELS:
        lite = name == "deepseek-v2-lite"
        obj = build("latent", "mla-moe" if lite else name,
                    {"ARCH_CPU": "y", **(V2_LITE if lite else {})})
        said = json.loads(plan(obj, "--json"))
        ok(said["params"] == params, f"{name}: {params} parameters ({said['params']})")
        if lite:
            active = said["params_active"]
            ok(active == params - V2_LITE_IDLE, f"{name}: {active} of them active")
        size = {"F32": 4, "BF16": 2}[re.search(r"positions, (\w+)", plan(obj))[1]]
        want = cached * size * config(obj, "N_LAYER")
        ok(said["cache_token"] == want, f"{name}: {cached} values cached a token and layer")


def pairs(plan_part, way):
    """Operations beyond the matrix products of one part of the stack."""
    part = plan_part[way]
    return part["flops"] - sum(2 * m * n * k * count for m, n, k, count in part["products"])


def what_is_executed():
    """Products, tensors, taps and forms of every sub-layer add up to the plan's own numbers."""
    obj = build("tiny", "tiny-ra-mla-full", {"RA_MLA_ABLATION_MODE": "n", GATE: "y", CROSS: "y",
                                             LATENT: "y", TYING: '"tied_transpose"'})
    told = json.loads(plan(obj, "--json"))
    subs, parts = told["sublayers"], [told["stack"], *told["sublayers"]]
    shapes = [x["shape"] for part in parts for x in part["tensors"]]
    ok(sum(math.prod(s) for s in shapes) == told["params"], "the tensors are the parameters")
    tokens = config(obj, "BATCH_SIZE") * config(obj, "BLOCK_SIZE")
    flops = [sum(p[way]["flops"] for p in parts) / tokens for way in ("forward", "backward")]
    ok(math.isclose(flops[0], told["flops_token_fwd"]) and
       math.isclose(sum(flops), told["flops_token"]), "the parts' operations are the step's")
    head = told["stack"]
    ok(pairs(head, "forward") == pairs(head, "backward") == 0, "the head is matrix products alone")
    ok(all(pairs(s, way) > 0 for s in subs for way in ("forward", "backward")
           if s["mixer"] == "ra_mla"), "attention is more than products")
    links = {(tap, subs[w]["mixer"], s["mixer"]) for s in subs
             for tap, w in s["reads"].items() if w is not None}
    ok(links == {("HEAD_GATE", "recip", "ra_mla"), ("LATENT_MIX", "recip", "ra_mla"),
                 ("ROUTE", "ra_mla", "recip"), ("LATENT", "ra_mla", "recip")},
       f"taps connect the mixers: {links}")
    ok(all((tap in subs[w]["writes"]) for s in subs for tap, w in s["reads"].items()
           if w is not None) and not set(subs[-1]["writes"]), "what is read is written")
    detached = {tap["name"]: tap["detached"] for tap in told["taps"]}
    ok(detached == {"HEAD_GATE": False, "LATENT": True, "LATENT_MIX": False, "ROUTE": True},
       "the plan says which taps are detached")
    said = plan(obj)
    ok(all(re.search(rf"^tap +{tap}\b.*: {a} to {b}", said, re.M) for tap, a, b in links),
       "taps are printed")
    ok(all(told["forms"][x] in said for x in ("ra_mla", "recip")), "executed forms are named")


def decode_as_executed():
    """The last step: absorbed attention, the MLP's equations as they stand."""
    obj = build("tiny", "tiny-ra-mla-full", {"RA_MLA_ABLATION_MODE": "n", GATE: "y", CROSS: "y",
                                             LATENT: "y", TYING: '"tied_transpose"'})
    c, t, h, n, v, latent, gate, k = (config(obj, s) for s in (
        "N_EMBD", "BLOCK_SIZE", "N_HEAD", "N_LAYER", "VOCAB_SIZE", "RA_MLA_LATENT_DIM",
        "RA_MLA_MLP_GATE_DIM", "RA_MLA_MLP_SPARSE_K"))
    d, f = c // h, 4 * c
    attn = c * (c + 2 * latent) + 2 * h * d * latent + c * c + t * 2 * h * latent
    mlp = 2 * c * f + 2 * f * latent + f * f + (c + gate) * f + gate * f + h * gate
    mlp += k * (c + gate)
    unread = f * latent + 2 * gate * f + h * gate + k * gate    # of the last layer
    want = 2 * (n * (attn + mlp) - unread + -(-v // 64) * 64 * c)
    said = json.loads(plan(obj, "--json"))["flops_token_decode"]
    ok(said == want, f"a decode step is counted as it is executed ({said:g}, {want:g})")


def rotated_decode_as_executed():
    """With whole keys rotated a step makes all keys and values once more from their latents."""
    obj = build("tiny", "tiny-mla0", {"MLA_ROPE_FULL": "y"})
    c, t, h, n, v, latent = (config(obj, s) for s in (
        "N_EMBD", "BLOCK_SIZE", "N_HEAD", "N_LAYER", "VOCAB_SIZE", "MLA_LATENT_DIM"))
    d = c // h
    attn = c * latent + c * c + t * 2 * c * latent + t * h * 2 * d + c * c
    want = 2 * (n * (attn + 2 * c * 4 * c) + -(-v // 64) * 64 * c)
    said = json.loads(plan(obj, "--json"))["flops_token_decode"]
    ok(said == want, f"a step that rotates whole keys is counted ({said:g}, {want:g})")


def config(obj, symbol):
    with open(f"{obj}/.config") as f:
        return int(re.search(rf"^CONFIG_{symbol}=(\d+)$", f.read(), re.M).group(1))


def hybrid_stack():
    """Runs of equal layers are printed once."""
    obj = build("tiny", "tiny-gpt2", {
        "N_LAYER": 5, "BLOCK_ALT": '"ra_mla mlp"', "BLOCK_ALT_LAYERS": '"0,1,3"',
        "MIXER_RA_MLA": "y", "RA_MLA_LATENT_DIM": 8})
    said = plan(obj)
    ok("\n  layers 0-1, 3: ra_mla mlp\n  layers 2, 4: mha mlp\n" in said, "the stack by layer")


def linear_states():
    """Linear RNNs: activations grow with the positions as a line does, the decode state not at all."""
    for name in ("tiny-gla", "tiny-mfa-gla", "tiny-mamba2"):
        found = [json.loads(plan(build("linear", name, {"BLOCK_SIZE": t}), "--json"))
                 for t in (128, 256, 512)]
        acts = [said["train"]["act"] + said["train"]["tmp"] for said in found]
        grown = (acts[2] - acts[1]) / (acts[1] - acts[0])
        ok(abs(grown - 2) < LINE, f"{name}: twice the positions more take twice the bytes more ({grown:.4f})")
        ok(len({said["cache_const"] for said in found}) == 1 and found[0]["cache_const"] > 0 and
           not any(said["cache_token"] for said in found),
           f"{name}: a decode keeps {found[0]['cache_const']} bytes, behind any number of tokens")


def checks():
    """plan --check: one line and status 2 where a run could not begin; nothing is made."""
    obj = build("tiny", "tiny-gpt2", {"DATA_TREE": "n", "DATA_TEXT": "y", "DATA_PATH": '"none"'})
    with tempfile.TemporaryDirectory(prefix="tenon-test-") as d:
        for name, size in (("short", 100), ("enough", 1 << 20)):
            with open(f"{d}/{name}", "wb") as f:
                f.write(b"text" * (size // 4))

        def check(*flags):
            done = subprocess.run([f"{obj}/tests/dumps", "plan", "--check", *flags], text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            return done.returncode, done.stdout + done.stderr

        status, said = check("--data", f"{d}/enough", "--out", f"{d}/new/run")
        ok(status == 0 and "fits" in said and not os.path.exists(f"{d}/new"), f"a run that can begin: {said.strip()}")
        for what, flags in (("short", ["--data", f"{d}/short"]), ("none", ["--data", f"{d}/none"]),
                            ("a file", ["--out", f"{d}/short/run"]), ("data", ["--data", d, "--out",
                                                                              "/proc/run"])):
            status, said = check(*flags)
            ok(status == 2 and said.startswith("tenon: ") and said.count("\n") == 1,
               f"{what} is refused: {said.strip()}")
        status, said = check("--elsewhere", "--json", "--data", f"{d}/enough")
        ok(status == 0 and json.loads(said)["memory_available"] is None,
           "a run elsewhere is held against no memory")
        ok(sorted(os.listdir(d)) == ["enough", "short"], "nothing is left behind")


def measured_memory(name, symbols, bytes_each, *flags):
    """@bytes_each: of a parameter with its gradients, moments and, in bf16, its master"""
    obj = build("tiny", "tiny-gpt2", {"GRADIENT_ACCUMULATION": 2, "EVAL_SAMPLES": 1, **symbols}, PLANS + ("build",))
    said = run(f"{obj}/tenon", "train", "--out", f"{obj}/run", "--restart", "--steps", "1",
               *flags)
    planned, measured = map(float, re.search(r"([\d.]+) MiB planned, ([\d.]+) measured",
                                             said).groups())
    params = json.loads(plan(obj, "--json"))["params"]
    ok(planned >= max(BIG, params * bytes_each / 2 ** 20), f"{name}: a plan of {planned} MiB")
    ok(abs(measured - planned) <= WITHIN * planned,
       f"{name}: measured is within 2 % of planned ({measured / planned:.4f})")


published_counts()
latent_models()
what_is_executed()
decode_as_executed()
rotated_decode_as_executed()
hybrid_stack()
linear_states()
checks()
measured_memory("float", {"BATCH_SIZE": 96}, 4 + 2 * 4 + 8)
measured_memory("activations again", {"BATCH_SIZE": 96, "RECOMPUTE_ACTIVATIONS": "y"}, 4 + 2 * 4 + 8)
measured_memory("block again", {"BATCH_SIZE": 192, "RECOMPUTE_BLOCK": "y"}, 4 + 2 * 4 + 8)
# oneDNN packs bf16 into memory that no plan counts, a few MiB for each thread
measured_memory("bf16", {"BATCH_SIZE": 384, "REAL_BF16": "y"}, 2 + 2 * 4 + 8 + 4, "--threads", "1")
measured_memory("bf16, masters", {"N_EMBD": 768, "N_HEAD": 12, "BATCH_SIZE": 2, "REAL_BF16": "y",
                                  "GRADIENT_ACCUMULATION": 1}, 2 + 4 + 8 + 4, "--threads", "1")
print(f"1..{count}")
sys.exit(failed > 0)
