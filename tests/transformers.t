#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Logits of small random weights against the transformers library's own classes.

Grouped heads, rope, SwiGLU; latent attention with its norms, both queries, dense layers and
experts of DeepSeek-V2; experts whose chosen weights add up to one.

    tests/transformers.t    after: sh scripts/setup.sh transformers
"""
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402

torch_t = t.load("torch")
torch_t.SCRATCH = os.path.join(os.path.dirname(t.SCRATCH), "transformers")
PYTHON = os.path.join(t.SRC, "build/torch/bin/python")

WIDE = {**torch_t.ANY, "N_EMBD": 32, "VOCAB_SIZE": 70, "BLOCK_SIZE": 33, "HEAD_TIED": "n"}
LLAMA = {**WIDE, "MODEL_LLAMA": "y", "INTERMEDIATE_SIZE": 44}
DEEPSEEK = {**WIDE, "MODEL_MLA": "y", "MLA_LATENT_DIM": 12, "MLA_LATENT_NORM": "y",
            "MLA_ROPE_DIM": 6, "MLA_NOPE_DIM": 5, "MLA_V_DIM": 7, "INTERMEDIATE_SIZE": 44,
            "NORM_EPSILON": '"1e-6"'}
QUERY = {"MLA_QUERY": '"latent"', "MLA_Q_LATENT_DIM": 10}
EXPERTS = {"MLP_SWIGLU": "n", "MLP_MOE": "y", "NUM_EXPERTS": 3, "EXPERT_SIZE": 20}
CASES = [
    ("llama, grouped heads, another base", LLAMA, {"KV_HEADS": 2, "ROPE_THETA": '"500"'}),
    ("llama, tied head", LLAMA, {"HEAD_TIED": "y", "NORM_EPSILON": '"1e-3"'}),
    ("mixtral, two experts of three", {**LLAMA, **EXPERTS},
     {"BLOCK": '"mha moe"', "KV_HEADS": 1, "EXPERTS_PER_TOK": 2}),
    ("deepseek-v2, direct query", DEEPSEEK, {}),
    ("deepseek-v2, latent query, dense first layer, experts", {**DEEPSEEK, **QUERY, **EXPERTS},
     {"BLOCK": '"mla moe"', "BLOCK_ALT": '"mla swiglu"', "BLOCK_ALT_LAYERS": '"0"',
      "MLP_SWIGLU": "y", "EXPERTS_PER_TOK": 3, "SHARED_EXPERTS": 2}),
]
# Rotated rows in the order of the file would pass unseen if logits hardly knew of them.
UNTURNED = ("import transformers_ref as r; r.interleaved = lambda rows, d: rows; "
            "sys.exit(r.main())")


def compare(bundle, code="import transformers_ref; sys.exit(transformers_ref.main())"):
    return subprocess.run([PYTHON, "-c", f"import sys; sys.path.insert(0, 'scripts'); {code}",
                           bundle], cwd=t.SRC, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True)


def main():
    if not os.path.exists(PYTHON) or subprocess.run(
            [PYTHON, "-c", "import transformers"], stderr=subprocess.DEVNULL).returncode:
        print("1..0 # SKIP transformers is not installed (sh scripts/setup.sh transformers)")
        return 0
    os.chdir(t.SRC)
    for number, (name, base, more) in enumerate(CASES):
        bundle, failed = torch_t.dump(number, {**base, **more})
        done = None if failed else compare(bundle)
        t.ok(done and done.returncode == 0, f"the library's logits: {name}",
             failed or done.stdout)
    done = compare(bundle, UNTURNED)
    t.ok(done.returncode == 1, "rotated rows in another order give other logits", done.stdout)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
