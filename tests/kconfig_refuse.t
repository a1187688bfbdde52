#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the configuration refuses, and what it only notes."""

import os
import re
import shutil

from kconfig_tap import (CONFIG, DIR, FRAGMENT, TINY, main, ok, run, shows,
                         slurp, with_lines, write)


# What is refused

ERRORS = {
    "unknown symbol": ("CONFIG_N_LAYERS=3", "did you mean CONFIG_N_LAYER?"),
    "no assignment": ("N_LAYER=3", "is not an assignment"),
    "space": ("CONFIG_N_LAYER =3", "is not an assignment"),
    "int not a number": ("CONFIG_N_LAYER=three", "whole number"),
    "int quoted": ('CONFIG_N_LAYER="3"', "unquoted"),
    "int too long": ("CONFIG_SEED=" + "9" * 5000, "whole number"),
    "int unset": ("# CONFIG_N_LAYER is not set", "not a switch"),
    "int out of range": ("CONFIG_BATCH_SIZE=4097", "nearest legal 4096"),
    "no accumulation": ("CONFIG_GRADIENT_ACCUMULATION=0", "nearest legal 1"),
    "bool": ("CONFIG_TENSORBOARD=m", "write y or n"),
    "string unquoted": ("CONFIG_BLOCK=mha", "double quotes"),
    "string open": ('CONFIG_BLOCK="mha', "double quotes"),
    "empty": ("CONFIG_LEARNING_RATE=", "not a decimal number"),
    "real word": ("CONFIG_RA_MLA_RA_ALPHA=big", "not a decimal number"),
    "real nan": ('CONFIG_RA_MLA_RA_ALPHA="nan"', "not a decimal number"),
    "real infinite": ("CONFIG_RA_MLA_RA_ALPHA=1e999", "not finite"),
    "alpha": ("CONFIG_RA_MLA_RA_ALPHA=-0.1", "0 or more; nearest legal 0"),
    "gate alpha": ("CONFIG_RA_MLA_MLP_GATE_ALPHA=1.1", "nearest legal 1"),
    "beta": ('CONFIG_ADAM_BETA2="1.0"', "just below 1"),
    "epsilon": ("CONFIG_ADAM_EPSILON=0", "above 0"),
    "temperature": ("CONFIG_GENERATION_TEMPERATURE=0", "above 0"),
    "rate": ("CONFIG_LEARNING_RATE=0.0", "above 0"),
    "mode": ('CONFIG_RA_MLA_MLP_SPARSE_MODE="top"', '"none", "rms", "topk"'),
    "alias word": ('CONFIG_OPTIMIZER="sgd"', '"adamw", "adamwspam"'),
    "dependency": ("CONFIG_LR_DECAY_STEPS=5", "needs CONFIG_LR_WSD=y"),
    "mode dependency": ("CONFIG_RA_MLA_MLP_SPARSE_RMS_THRESHOLD=0.5",
                        'needs CONFIG_RA_MLA_MLP_SPARSE_MODE="rms"'),
    "path": ('CONFIG_DATA_PATH="x"',
             "needs (CONFIG_DATA_TEXT=y or CONFIG_DATA_SHARDS=y)"),
    "cuda": ("CONFIG_REAL_DOUBLE=y\nCONFIG_ARCH_CUDA=y", "has no double")
            if shutil.which("nvcc") else
            ("CONFIG_ARCH_CUDA=y", "nvcc is not in the PATH"),
    "fallback": ("CONFIG_LR_COSINE=n", "CONFIG_LR_WSD=y"),
    "mode without mechanism": (
        'CONFIG_RA_MLA_MLP_GATE_POOL="token"',
        "needs CONFIG_RA_MLA_MLP_ATTN_GATE=y", "gpt2-ra-mla-arm0"),
    "preset": ("CONFIG_N_EMBD=64", "set CONFIG_GPT2_MODEL_CUSTOM=y",
               "gpt2-124m"),
    "other model": ("CONFIG_RA_MLA_LATENT_DIM=64", "CONFIG_MIXER_RA_MLA=y",
                    "tiny-gpt2"),
}


def test_refused_lines():
    run("defconfig", "tiny-gpt2")
    before = slurp(".config")
    for name, (line, reason, *base) in ERRORS.items():
        status, _, err = with_lines(f"# comment\n\n{line}\n", *base)
        ok(status == 2 and err.startswith(f"error: {FRAGMENT}:3: ")
           and reason in err and err.count("\n") == 1,
           f"line_is_refused: {name}", status, err)
    ok(slurp(".config") == before, "refusal_leaves_config_as_it_was")
    _, _, err = with_lines("CONFIG_A=1\nCONFIG_N_HEAD=x\nCONFIG_SEED=5\n")
    ok(re.findall(r"f\.config:(\d)", err) == ["1", "2"],
       "every_bad_line_is_named", err)
    write(CONFIG, "CONFIG_SEDE=1\n")
    for verb in ("sync", "olddefconfig", "oldconfig", "get", "savedefconfig",
                 "listnewconfig", "merge"):
        status, _, err = run(verb, *{"get": ["SEED"], "merge": ["real-double"]}
                             .get(verb, []))
        ok(status == 2 and f"error: {CONFIG}:1: " in err,
           f"verb_checks_config: {verb}", err)


def with_tool(name):
    """A command of this name in the PATH, whatever it does."""
    write(os.path.join(DIR.name, name), "#!/bin/sh\n")
    os.chmod(os.path.join(DIR.name, name), 0o755)
    os.environ["PATH"] = DIR.name + os.pathsep + os.environ["PATH"]


def test_conditional_range():
    path = os.environ["PATH"]
    with_tool("nvcc")
    long = "CONFIG_RA_MLA_MLP_SPARSE_K=257\n"
    cuda = "CONFIG_ARCH_CUDA=y\n"
    why = ("SPARSE_K=257: is outside what is legal with CONFIG_ARCH_CUDA, 1..256; "
           "nearest legal 256")
    for name, text, legal in (("where it holds", cuda + long, False),
                              ("whatever the order", long + cuda, False),
                              ("at its end", cuda + long.replace("257", "256"), True),
                              ("where it does not hold", "CONFIG_ARCH_CPU=y\n" + long, True)):
        status, _, err = with_lines(text)
        ok(status == (0 if legal else 2) and err.count("\n") <= 1 and (legal or why in err),
           f"range_with_a_condition: {name}", status, err)
    earlier, later = (os.path.join(DIR.name, f) for f in ("earlier.config", "later.config"))
    write(earlier, "CONFIG_ARCH_CPU=y\n" + long)
    write(later, cuda)
    status, _, err = run("defconfig", TINY, earlier, later)
    ok(status == 2 and err.startswith(f"error: {earlier}:2: ") and why in err,
       "range_with_a_condition: a later file makes it hold", status, err)
    write(later, cuda + "CONFIG_RA_MLA_MLP_SPARSE_K=3\n")
    status, _, err = run("defconfig", TINY, earlier, later)
    ok(status == 0 and shows("CONFIG_RA_MLA_MLP_SPARSE_K=3"),
       "range_with_a_condition: a later file sets the number anew", status, err)
    status, _, err = with_lines('CONFIG_RA_MLA_MLP_SPARSE_MODE="none"\n' + cuda + long)
    ok(status == 0 and "no effect beside" in err,
       "range_with_a_condition: of a number that is moot", status, err)
    os.environ["PATH"] = path


RULES = {
    "heads": ("CONFIG_N_HEAD=5", ["N_HEAD=5", "N_EMBD=64", "4 and 8"]),
    "rows": ("CONFIG_BATCH_SIZE=4096\nCONFIG_BLOCK_SIZE=131072",
             ["BATCH_SIZE=4096", "below 2^31", "CONFIG_BLOCK_SIZE=131071"]),
    "scalar": ('CONFIG_RA_MLA_MLP_TYING_MODE="per_head_scalar"\n'
               "CONFIG_RA_MLA_LATENT_DIM=48",
               ["RA_MLA_LATENT_DIM=48", "256", "32 and 64"]),
    "a bias of no choice": ('CONFIG_BLOCK="ra_mla moe"\nCONFIG_MLP_MOE=y\nCONFIG_MLP_RECIP=n\n'
                            "CONFIG_MOE_BIAS_BALANCE=y\nCONFIG_EXPERTS_PER_TOK=4",
                            ["EXPERTS_PER_TOK=4", "not below CONFIG_NUM_EXPERTS=4",
                             "MOE_BIAS_BALANCE=y needs", "nearest legal 3"]),
    "unknown mixer": ('CONFIG_BLOCK="ra_mla recipe"', ["did you mean recip?"]),
    "disabled mixer": ('CONFIG_BLOCK="ra_mla recip mha"',
                       ["set CONFIG_MIXER_MHA=y"]),
    "unused mixer": ("CONFIG_MIXER_MHA=y", ["does not name mha"]),
    "no mixer": ('CONFIG_BLOCK=""', ["names no sub-layer"]),
    "spaces": ('CONFIG_BLOCK="ra_mla  recip"', ['"ra_mla recip"']),
    "no writer": ('CONFIG_BLOCK="mha recip"\nCONFIG_MIXER_MHA=y\n'
                  "CONFIG_MIXER_RA_MLA=n\nCONFIG_RA_MLA_MLP_ATTN_GATE=n\n"
                  "CONFIG_RA_MLA_MLP_LATENT_RECIP=n",
                  ["CROSS_TOKEN=y", "ROUTE", "add ra_mla before recip"]),
    "no reader": ('CONFIG_BLOCK="mha recip"\nCONFIG_MIXER_MHA=y\n'
                  "CONFIG_MIXER_RA_MLA=n\nCONFIG_RA_MLA_MLP_CROSS_TOKEN=n\n"
                  "CONFIG_RA_MLA_MLP_LATENT_RECIP=n",
                  ["ATTN_GATE=y", "HEAD_GATE", "add ra_mla after recip"]),
    "no latent": ('CONFIG_BLOCK="mha recip"\nCONFIG_MIXER_MHA=y\n'
                  "CONFIG_MIXER_RA_MLA=n\nCONFIG_RA_MLA_MLP_CROSS_TOKEN=n\n"
                  "CONFIG_RA_MLA_MLP_ATTN_GATE=n",
                  ["LATENT_RECIP=y", "LATENT;", "LATENT_MIX;"]),
    "one layer": ("CONFIG_N_LAYER=1", ["ATTN_GATE=y", "N_LAYER=2 or more"]),
    "two readers": ('CONFIG_BLOCK="ra_mla recip recip"',
                    ["recip and then recip read the ROUTE"]),
    "bytes": ("CONFIG_VOCAB_SIZE=255", ["DATA_TREE=y", "nearest legal 256"]),
    "shards": ("CONFIG_DATA_SHARDS=y\nCONFIG_VOCAB_SIZE=65537",
               ["DATA_SHARDS=y", "nearest legal 65536"]),
    "pairs": ("CONFIG_DATA_MQAR=y\nCONFIG_MQAR_PAIRS=43",
              ["MQAR_PAIRS=43", "BLOCK_SIZE/3=42", 'MQAR_FORM="study"', "legal 42"]),
    "zoology pairs": ('CONFIG_DATA_MQAR=y\nCONFIG_MQAR_FORM="zoology"\nCONFIG_VOCAB_SIZE=512\n'
                      "CONFIG_MQAR_PAIRS=33", ["MQAR_PAIRS=33", "BLOCK_SIZE/4=32", "legal 32"]),
    "few keys": ("CONFIG_DATA_MQAR=y\nCONFIG_VOCAB_SIZE=16",
                 ["MQAR_PAIRS=8", "VOCAB_SIZE/2=8", "legal 7"]),
    "odd vocabulary": ("CONFIG_DATA_MQAR=y\nCONFIG_VOCAB_SIZE=63",
                       ["VOCAB_SIZE=63 is odd", "62 and 64"]),
    "odd positions": ('CONFIG_DATA_MQAR=y\nCONFIG_MQAR_FORM="zoology"\nCONFIG_BLOCK_SIZE=127',
                      ["BLOCK_SIZE=127 is odd", "126 and 128"]),
    "small vocabulary": ('CONFIG_DATA_MQAR=y\nCONFIG_MQAR_FORM="zoology"\nCONFIG_VOCAB_SIZE=128',
                         ["BLOCK_SIZE=128 is not below CONFIG_VOCAB_SIZE=128", "zoology"]),
    "few symbols": ("CONFIG_DATA_MARKOV=y\nCONFIG_MARKOV_SYMBOLS=4",
                    ["MARKOV_SYMBOLS=4", "five", "legal 5"]),
    "many contexts": ("CONFIG_DATA_MARKOV=y\nCONFIG_MARKOV_ORDER=2\nCONFIG_VOCAB_SIZE=1025",
                      ["MARKOV_ORDER=2", "2^20", "MARKOV_SYMBOLS=1024"]),
    "more symbols": ("CONFIG_DATA_MARKOV=y\nCONFIG_MARKOV_SYMBOLS=257",
                     ["MARKOV_SYMBOLS=257", "VOCAB_SIZE=256"]),
    "rates": ("CONFIG_LEARNING_RATE=1e-4\nCONFIG_MIN_LR=3e-4",
              ["MIN_LR=3e-4", "nearest legal 1e-4"]),
    "decay": ("CONFIG_LR_WSD=y\nCONFIG_LR_DECAY_STEPS=201\n"
              "CONFIG_MAX_ITERS=200", ["LR_DECAY_STEPS=201", "legal 200"]),
    "steps": ('CONFIG_RA_MLA_ABLATION_STEPS="0,1,6"', ['nearest legal "0,1"']),
    "a repeat alone": ('CONFIG_RA_MLA_ABLATION_STEPS="0,4"', ['nearest legal "0,2,4"']),
    "steps twice": ('CONFIG_RA_MLA_ABLATION_STEPS="1,1"', ['"1"']),
    "run": ('CONFIG_RUN_NAME="../x"', ["RUN_NAME"]),
}


def test_rules():
    for name, (text, reasons) in RULES.items():
        status, _, err = with_lines(text + "\n")
        ok(status == 2 and err.startswith(f"error: {FRAGMENT}:")
           and all(reason in err for reason in reasons),
           f"rule_is_checked: {name}", err)
    status, _, err = with_lines('CONFIG_BLOCK="ra_mla recip mha mlp"\n'
                                "CONFIG_MIXER_MHA=y\nCONFIG_MLP_MLP=y\n"
                                "CONFIG_N_LAYER=2\n")
    ok(status == 0, "hybrid_block_is_legal", err)


def test_moot_lines():
    cases = {
        "n": "CONFIG_RA_MLA_MLP_ATTN_GATE=n\nCONFIG_RA_MLA_MLP_GATE_DIM=3\n",
        "not set": "CONFIG_RA_MLA_MLP_GATE_DIM=3\n"
                   "# CONFIG_RA_MLA_MLP_ATTN_GATE is not set\n",
        "mode": 'CONFIG_RA_MLA_MLP_SPARSE_MODE="none"\n'
                "CONFIG_RA_MLA_MLP_SPARSE_K=3\n",
        "choice": "CONFIG_LR_DECAY_STEPS=3\nCONFIG_LR_CONSTANT=y\n",
        "member": "CONFIG_LR_WSD=y\nCONFIG_LR_COSINE=y\n",
        "alias": 'CONFIG_OPTIMIZER="adamw"\nCONFIG_SPAM_THETA=3.0\n',
        "word and member": 'CONFIG_RA_MLA_MLP_SPARSE_MODE="rms"\n'
                           "# CONFIG_RA_MLA_MLP_SPARSE_MODE_RMS is not set\n",
    }
    for name, text in cases.items():
        status, _, err = with_lines(text)
        ok(status == 0 and re.search(r"^note: \S+f\.config:[12]: ", err, re.M),
           f"line_is_moot: {name}", status, err)
    _, _, err = with_lines("CONFIG_SEED=1\nCONFIG_SEED=2\n")
    ok(err == "" and shows("CONFIG_SEED=2"), "last_assignment_wins", err)


def test_missing_files():
    os.unlink(CONFIG)
    for verb in ("sync", "olddefconfig"):
        status, _, err = run(verb)
        ok(status == 2 and "make demo" in err and TINY in err,
           f"missing_config_lists_defconfigs: {verb}", err)
    ok("did you mean tiny-gpt2?" in run("defconfig", "tiny-gpt")[2],
       "unknown_defconfig_has_a_suggestion")
    ok(run("merge", "nothing")[0] == 2 and run("get", "SEED")[0] == 2,
       "merge_needs_config_and_fragment")
    status, _, err = run("defconfig", DIR.name)
    ok(status == 2 and "Traceback" not in err, "folder_is_no_defconfig", err)
    write(FRAGMENT, "")
    with open(FRAGMENT, "wb") as file:
        file.write(b"\x7fELF\xff\xfe")
    ok("not a text file" in run("defconfig", FRAGMENT)[2],
       "binary_is_no_defconfig")

main(globals())
