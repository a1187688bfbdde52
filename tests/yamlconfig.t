#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""make yamlconfig: a guide's keys become the configuration that they mean, what is absent gets
the guide's defaults, everything else is refused with its line; and what comes out trains."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t            # noqa: E402

SCRATCH = os.path.join(os.path.dirname(t.SCRATCH), "yaml")
PYTHON = "/usr/bin/python3"

SMALL = """model:
  hidden_size: 32
  num_layers: 2
  num_heads: 4
  vocab_size: 300
  max_seq_len: 32
"""
LATENT = SMALL + "  kv_latent_dim: 12\n  q_latent_dim: 10\n  d_rope: 4\n"
EXPERTS = "  num_experts: 4\n  shared_expert_enabled: true\n"
TRAINER = "trainer:\n  learning_rate: 1e-3\n  max_steps: 20\n"

# file -> lines of .config, and words of what is noted
MEANT = {
    "nothing": ("", ["N_EMBD=512", "N_LAYER=8", "N_HEAD=8", "VOCAB_SIZE=128354",
                     "BLOCK_SIZE=2048", 'ROPE_THETA="10000"', "INTERMEDIATE_SIZE=2048",
                     'BLOCK="mha swiglu"', "MHA_ROPE=y", "BATCH_SIZE=2", "MAX_ITERS=5000",
                     'LEARNING_RATE="3e-4"', "LR_CONSTANT=y", "WARMUP_STEPS=0",
                     "GRADIENT_ACCUMULATION=1", "DATA_TREE=y"], ""),
    "latent": (LATENT.replace("d_rope", "kv_heads: 2\n  d_rope") + TRAINER,
               ['BLOCK="mla swiglu"', "MLA_LATENT_DIM=12", 'MLA_QUERY="latent"',
                "MLA_Q_LATENT_DIM=10", "MLA_ROPE_DIM=4", 'MLA_ROPE_FROM="x"',
                "INTERMEDIATE_SIZE=128", 'LEARNING_RATE="1e-3"', "MAX_ITERS=20"],
               ":9: kv_heads has no effect beside kv_latent_dim"),
    "direct": (SMALL + "  kv_latent_dim: 12\n  d_rope: 4\n", ['MLA_QUERY="direct"'], ""),
    "grouped": (SMALL + "  kv_heads: 2\n", ["KV_HEADS=2"], ""),
    "experts": (LATENT + EXPERTS + TRAINER,
                ['BLOCK="mla moe"', "NUM_EXPERTS=4", "EXPERTS_PER_TOK=2", "SHARED_EXPERTS=1",
                 'LOAD_BALANCE_ALPHA="0.01"'], ""),
    "hybrid": (LATENT + "  mamba_layers: [0]\n  mamba2_num_heads: 4\n  mamba2_head_dim: 16\n"
                 "  mamba2_state_size: 8\n  mamba2_chunk_size: 32\n" + TRAINER,
                 ['BLOCK="mla swiglu"', 'BLOCK_ALT="mamba2"', 'BLOCK_ALT_LAYERS="0"',
                  "MAMBA2_NUM_HEADS=4", "MAMBA2_STATE_SIZE=8", "LINEAR_CHUNK=32"], ""),
}
# what is wrong -> (file, words of the message)
WRONG = {
    "an unknown key": (SMALL + "  heads: 3\n", ":7: model.heads: 3: no such key"),
    "an unknown section": (SMALL + "data:\n  a: 1\n", ":7: data: no such section"),
    "a value of another kind": (SMALL + "  kv_heads: two\n", ":7: model.kv_heads: two: not a whole"),
    "a latent without rotations": (SMALL + "  kv_latent_dim: 4\n", ":7: kv_latent_dim has no mean"),
    "layers that are no list": (SMALL + "  mamba_layers: some\n",
                                ":7: model.mamba_layers: some: not a list of layers"),
    "Mamba-2 nowhere": (SMALL + "  mamba2_expand: 2\n", ":7: mamba2_expand has no meaning without"),
    "heads of Mamba-2 that do not fit": (
        "model:\n  hidden_size: 512\n  mamba_layers: [1]\n  mamba2_num_heads: 48\n"
        "  mamba2_head_dim: 16\n", ":4: 48 heads of 16 do not fit a width of 512 (they fit 384)"),
    "no YAML": ("model: [\n", "not YAML"),
}


def make(name, text, *goals):
    path = os.path.join(SCRATCH, f"{name}.yaml")
    t.write(text.encode(), path)
    return subprocess.run(
        ["make", "-s", f"O={SCRATCH}/tree", "yamlconfig", f"FILE={path}", *goals], cwd=t.SRC,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def main():
    if subprocess.run([PYTHON, "-c", "import yaml"], stderr=subprocess.DEVNULL).returncode:
        print("1..0 # SKIP PyYAML is not installed (sh scripts/setup.sh yaml)")
        return 0
    os.makedirs(SCRATCH, exist_ok=True)
    for name, (text, lines, note) in MEANT.items():
        done = make(name, text)
        have = "" if done.returncode else t.read(SCRATCH, "tree/.config").decode()
        missing = [line for line in lines if f"\nCONFIG_{line}\n" not in have]
        t.ok(not done.returncode and not missing and note in done.stdout, f"yaml_means: {name}",
             f"{missing}\n{done.stdout}")
    before = t.read(SCRATCH, "tree/.config")
    for name, (text, words) in WRONG.items():
        done = make("wrong", text)
        t.ok(done.returncode == 2 and words in done.stdout and
             t.read(SCRATCH, "tree/.config") == before, f"yaml_is_refused: {name}", done.stdout)
    for name in ("latent", "experts", "hybrid"):
        done = make(name, MEANT[name][0], "build", "EXTRA_CFLAGS=-Og -g0")
        if not done.returncode:
            done = subprocess.run([f"{SCRATCH}/tree/tenon", "train", "--out", f"{SCRATCH}/{name}",
                                   "--restart", "--threads", "1"], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True)
        t.ok(not done.returncode and '"step": 20,' in
             t.read(SCRATCH, f"{name}/metrics.jsonl").decode(), f"it_trains: {name}", done.stdout)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
