#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tenon plan: the published parameter counts, and memory measured against planned."""
import json
import os
import re
import subprocess
import sys

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
# A plan of 256 MiB and more, and what the process may take beyond it.
BIG, WITHIN = 256, 0.02    # MiB, share

count = 0
failed = 0


def ok(good, name):
    global count, failed
    count += 1
    failed += not good
    print(f"{'' if good else 'not '}ok {count} - {name}", flush=True)


def run(*cmd, **kw):
    return subprocess.run(cmd, cwd=SRC, check=True, stdout=subprocess.PIPE, text=True, **kw).stdout


def build(name, defconfig, symbols):
    obj = os.path.join(OBJ, name)
    os.makedirs(obj, exist_ok=True)
    fragment = os.path.join(obj, "test.config")
    with open(fragment, "w") as f:
        f.writelines(f"CONFIG_{k}={v}\n" for k, v in symbols.items())
    run(PYTHON, "scripts/kconfig.py", "--config", f"{obj}/.config", "--gen", obj, "defconfig",
        defconfig, fragment, stderr=subprocess.DEVNULL)
    run("make", "-s", f"O={obj}", "build", "EXTRA_CFLAGS=-O1")
    return obj


def published_counts():
    for name, symbols, counted, unread in PUBLISHED:
        obj = build("gpt2", "gpt2-ra-mla-full", dict(symbols, RA_MLA_ABLATION_MODE="n"))
        plan = json.loads(run(f"{obj}/tenon", "plan", "--json"))
        ok(plan["params_published"] == counted, f"{name}: {counted} as published")
        ok(plan["params"] == counted - unread, f"{name}: {counted - unread} exist")


def measured_memory():
    obj = build("memory", "tiny-gpt2", {"BATCH_SIZE": 192, "GRADIENT_ACCUMULATION": 2})
    said = run(f"{obj}/tenon", "train", "--out", f"{obj}/run", "--restart", "--steps", "2")
    planned, measured = map(float, re.search(r"([\d.]+) MiB planned, ([\d.]+) measured",
                                             said).groups())
    ok(planned >= BIG, f"a plan of {planned} MiB")
    ok(abs(measured - planned) <= WITHIN * planned,
       f"measured is within 2 % of planned ({measured / planned:.4f})")


published_counts()
measured_memory()
print(f"1..{count}")
sys.exit(failed > 0)
