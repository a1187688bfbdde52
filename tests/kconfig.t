#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The configuration: defconfigs, fragments, hand edits and what the build
reads."""

import os
import re
import sys

from kconfig_tap import (CONFIG, DIR, FRAGMENT, TINY, defines, edit, kconfig,
                         main, ok, run, shows, slurp, with_lines, write)


# Defconfigs, fragments, aliases

def test_defconfigs_are_legal():
    names = kconfig.defconfig_names()
    for name in names:
        status, _, err = run("defconfig", name)
        ok(status == 0 and err == "" and run("sync")[0] == 0
           and shows(f'CONFIG_RUN_NAME="{name}"'),
           f"defconfig_is_legal: {name}", err)
    listed = [line for line in run("list")[1].splitlines() if line.startswith("    make ")]
    named = [line.split()[1].removeprefix("defconfig-") for line in listed]
    ok([n for n in named if not n.endswith(".config")] == names
       and all(len(line.split()) > 4 for line in listed),
       "list_describes_every_defconfig", listed)


def test_study_as_published():
    run("defconfig", "gpt2-ra-mla-full")
    ok(shows("CONFIG_N_LAYER=12", "CONFIG_N_HEAD=12", "CONFIG_N_EMBD=768",
             "CONFIG_RA_MLA_LATENT_DIM=128", "CONFIG_MAX_ITERS=10400",
             'CONFIG_RA_MLA_MLP_TYING_MODE="tied_transpose"',
             'CONFIG_RA_MLA_MLP_SPARSE_MODE="topk"',
             "CONFIG_RA_MLA_MLP_SPARSE_K=8", "CONFIG_OPTIM_ADAMWSPAM=y",
             'CONFIG_RA_MLA_ABLATION_STEPS="0,1,2,3,4,5"',
             "CONFIG_DATA_SHARDS=y", 'CONFIG_BLOCK="ra_mla recip"'),
       "study_is_as_published", slurp(".config"))


def test_published_lines():
    status, _, err = with_lines(
        "CONFIG_MODEL_GPT2_RA_MLA=y\n"
        "CONFIG_RA_MLA_RA_ALPHA=0.0\n"
        "CONFIG_RA_MLA_MLP_CROSS_TOKEN=y\n"
        'CONFIG_RA_MLA_MLP_SPARSE_MODE="topk"\n'
        'CONFIG_RA_MLA_MLP_SPARSE_RMS_THRESHOLD="0.5"\n', "gpt2-124m")
    # The defconfig enables no ra_mla, so only the preset's default does.
    ok(status == 0, "published_lines_load", err)
    ok(shows("CONFIG_RA_MLA_RA_ALPHA=0.0",
             'CONFIG_RA_MLA_MLP_SPARSE_MODE="topk"'),
       "published_lines_are_what_config_shows")
    ok(f"note: {FRAGMENT}:5: " in err and "THRESHOLD" in err
       and err.count("\n") == 1, "moot_threshold_is_a_note", err)
    with_lines('CONFIG_RA_MLA_MLP_SPARSE_MODE="rms"\n'
               "CONFIG_RA_MLA_MLP_SPARSE_RMS_THRESHOLD=.25\n")
    run("sync")
    ok(shows('CONFIG_RA_MLA_MLP_SPARSE_MODE="rms"')
       and "MODE_RMS" not in slurp(".config")
       and defines("RA_MLA_MLP_SPARSE_MODE_RMS 1",
                   'RA_MLA_MLP_SPARSE_MODE "rms"',
                   "RA_MLA_MLP_SPARSE_RMS_THRESHOLD 0.25",
                   "RA_MLA_MLP_SPARSE_RMS_THRESHOLD_NONZERO 1"),
       "mode_word_selects_member", slurp(".config"))


def test_modes_by_member():
    for member, word in (("GATE_POOL_TOKEN", "token"),
                         ("TYING_MODE_UNTIED", "untied")):
        with_lines(f"CONFIG_RA_MLA_MLP_{member}=y\n")
        name = member.rpartition("_")[0]
        ok(shows(f'CONFIG_RA_MLA_MLP_{name}="{word}"'),
           f"mode_member_line_becomes_word: {word}")


ALIASES = {
    "GPT2_MAX_ITERS=77": "MAX_ITERS=77",
    "GPT2_BLOCK_SIZE=64": "BLOCK_SIZE=64",
    "GPT2_GRADIENT_ACCUMULATION=3": "GRADIENT_ACCUMULATION=3",
    "GPT2_MIN_LR=1e-5": "MIN_LR=1e-5",
    "GPT2_WARMUP_STEPS=7": "WARMUP_STEPS=7",
    "GPT2_EVAL_INTERVAL=9": "EVAL_INTERVAL=9",
    "GPT2_EVAL_SAMPLES=9": "EVAL_SAMPLES=9",
    "GPT2_LOG_INTERVAL=9": "LOG_INTERVAL=9",
    "GPT2_MAX_TIME=60": "MAX_TIME=60",
    'GPT2_GENERATION_TEMPERATURE="0.7"': 'GENERATION_TEMPERATURE="0.7"',
    "GPT2_GENERATION_TOP_K=5": "GENERATION_TOP_K=5",
    "GPT2_GENERATION_MAX_TOKENS=5": "GENERATION_MAX_TOKENS=5",
    "GPT2_DECAY_LR=n": "LR_CONSTANT=y",
    "GPT2_DECAY_LR=y": "LR_COSINE=y",
    'OPTIMIZER="adamw"': "OPTIM_ADAMW=y",
    'OPTIMIZER="adamwspam"': "OPTIM_ADAMWSPAM=y",
    "GPT2_DATASET_FINEWEBEDU=y": 'DATA_PATH="data/fineweb-edu"',
    "GPT2_DATASET_SHAKESPEARE=y": "DATA_SHARDS=y",
}


def test_aliases():
    for given, wanted in ALIASES.items():
        status, _, err = with_lines(f"CONFIG_{given}\n")
        ok(status == 0 and shows(f"CONFIG_{wanted}")
           and given.split("=")[0] not in
           re.findall(r"CONFIG_(\w+)", slurp(".config")),
           f"alias_is_written_under_main_name: {given}", err)
    with_lines('CONFIG_DATA_DIR="mine"\nCONFIG_GPT2_DATASET_OPENWEBTEXT=y\n')
    ok(shows('CONFIG_DATA_PATH="mine"'), "dataset_alias_yields_to_a_path")
    with_lines("CONFIG_GPT2_DECAY_LR=n\n# CONFIG_LR_CONSTANT is not set\n"
               "CONFIG_LR_WSD=y\n")
    ok(shows("CONFIG_LR_WSD=y"), "alias_and_main_name_last_one_wins")


def test_fragments():
    for step, lines in enumerate((("n", "n", "n"), ("y", "n", "n"),
                                  ("y", "y", "n"), ("y", "y", "y"))):
        status = run("defconfig", TINY, f"ra-mla-arm{step}")[0]
        names = ("ATTN_GATE", "CROSS_TOKEN", "LATENT_RECIP")
        got = tuple("y" if shows(f"CONFIG_RA_MLA_MLP_{n}=y") else "n"
                    for n in names)
        ok(status == 0 and got == lines, f"arm_has_its_switches: step {step}",
           got)
    ok(shows('CONFIG_RUN_NAME="tiny-ra-mla-full-ra-mla-arm3"'),
       "run_name_joins_defconfig_and_fragments")
    run("defconfig", "tiny-gpt2")
    status, _, err = run("merge", "real-double")
    ok(status == 0 and err == "" and shows("CONFIG_REAL_DOUBLE=y"),
       "merge_puts_a_fragment_on_top", err)
    _, _, err = with_lines("# CONFIG_RA_MLA_MLP_CROSS_TOKEN is not set\n")
    ok("note: defconfigs/tiny-ra-mla-full:" in err and "SPARSE_K=8" in err
       and f"({FRAGMENT}:1)" in err, "later_switch_makes_lines_moot", err)


# Hand edits and what the build reads

def test_hand_edits():
    run("defconfig", TINY)
    edit('SPARSE_MODE="topk"', 'SPARSE_MODE="rms"')
    status, _, err = run("sync")
    ok(status == 0 and defines("RA_MLA_MLP_SPARSE_MODE_RMS 1")
       and "SPARSE_K" in err, "hand_edit_of_a_mode_takes_effect", err)
    ok(shows('CONFIG_RA_MLA_MLP_SPARSE_RMS_THRESHOLD="0.5"')
       and "SPARSE_K" not in slurp(".config") and run("sync")[2] == "",
       "sync_brings_config_to_normal_form")
    edit("CONFIG_RA_MLA_RA_ALPHA=0.0", "CONFIG_RA_MLA_RA_ALPHA=0.5")
    edit('TYING_MODE="tied_transpose"', 'TYING_MODE="untied"')
    ok(run("olddefconfig")[0] == 0
       and shows('CONFIG_RA_MLA_MLP_TYING_MODE="untied"',
                 "CONFIG_RA_MLA_RA_ALPHA=0.5",
                 "CONFIG_RA_MLA_MLP_LATENT_DIM=128"),
       "olddefconfig_keeps_edits_and_adds_defaults")
    write(CONFIG, slurp(".config") + 'CONFIG_OPTIMIZER="adamw"\n')
    status, _, err = run("sync")
    ok(status == 0 and shows("CONFIG_OPTIM_ADAMW=y") and
       "SPAM_THETA" not in slurp(".config"), "appended_alias_wins", err)
    edit("CONFIG_GPT2_MODEL_CUSTOM=y", "CONFIG_GPT2_MODEL_350M=y")
    before = slurp(".config"), slurp("include/generated/autoconf.h")
    status, _, err = run("sync")
    ok(status == 2 and "N_LAYER=3" in err and "makes it 24" in err
       and before == (slurp(".config"),
                      slurp("include/generated/autoconf.h")),
       "preset_beside_other_shape_is_refused", err)


def stamps():
    """name -> time of every stamp and generated file."""
    folder = os.path.join(DIR.name, "include")
    return {name: os.stat(os.path.join(root, name)).st_mtime_ns
            for root, _, names in os.walk(folder) for name in names}


def test_header():
    with_lines("CONFIG_LEARNING_RATE=3e-3", "tiny-gpt2")
    run("sync")
    ok(defines("N_LAYER 3", 'BLOCK "mha mlp"', "BLOCK_LEN 2",
               "RA_MLA_LATENT_DIM 0", 'RA_MLA_MLP_SPARSE_MODE ""',
               "RA_MLA_RA_ALPHA 0.0", "RA_MLA_RA_ALPHA_NONZERO 0",
               "LEARNING_RATE 0.003", "ADAM_EPSILON 1e-08", "MIXER_MHA 1",
               'DATA_PATH ""')
       and "MIXER_RA_MLA" not in slurp("include/generated/autoconf.h"),
       "header_has_every_value", slurp("include/generated/autoconf.h"))
    make = slurp("include/config/auto.conf").splitlines()
    ok({"CONFIG_MIXER_MHA=y", "CONFIG_N_LAYER=3", 'CONFIG_BLOCK="mha mlp"'}
       <= set(make) and not any("RA_MLA" in line for line in make),
       "auto_conf_has_what_is_set", make)
    symbols = {s.name for s in kconfig.Config().unique_defined_syms}
    ok(symbols <= set(os.listdir(os.path.join(DIR.name, "include/config"))),
       "every_symbol_has_a_stamp")


def test_stamps():
    run("defconfig", TINY)
    run("sync")
    before, text = stamps(), slurp(".config")
    run("sync")
    ok(stamps() == before and slurp(".config") == text,
       "sync_again_changes_nothing")
    with_lines("CONFIG_RA_MLA_MLP_GATE_DIM=5\nCONFIG_LEARNING_RATE=1e-3\n"
               "CONFIG_RA_MLA_RA_ALPHA=0\n")
    run("sync")
    after = stamps()
    touched = {n for n in after if after[n] != before[n]} \
        - {"autoconf.h", "auto.conf"}
    ok(touched == {"RUN_NAME", "RA_MLA_MLP_GATE_DIM", "LEARNING_RATE"},
       "only_changed_symbols_are_touched", touched)
    os.unlink(os.path.join(DIR.name, "include/config/SEED"))
    run("sync")
    ok("SEED" in stamps(), "missing_stamp_is_made_again")


def test_strings():
    value = 'a "b" \\ $c #d'
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    with_lines(f'CONFIG_DATA_TEXT=y\nCONFIG_DATA_PATH="{quoted}"\n')
    run("sync")
    ok(run("get", "DATA_PATH")[1] == value + "\n"
       and defines(f'DATA_PATH "{quoted}"'), "string_is_escaped",
       slurp(".config"))


def test_speed():
    """A sync belongs to every make, so it may take 0.4 s of the processor."""
    run("defconfig", TINY)
    times = []
    for _ in range(3):
        child = os.spawnv(os.P_NOWAIT, sys.executable, [
            sys.executable, "scripts/kconfig.py", "--config", CONFIG, "--gen",
            DIR.name, "sync"])
        usage = os.wait4(child, 0)[2]
        times.append(usage.ru_utime + usage.ru_stime)
    ok(min(times) < 0.4, "sync_is_fast", times)


main(globals())
