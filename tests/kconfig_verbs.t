#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The verbs of the configuration, menuconfig in a terminal among them."""

import io
import json
import os
import subprocess
import sys

import terminal
from kconfig_tap import (CONFIG, DIR, FRAGMENT, TINY, block, defines, edit,
                         kconfig, main, ok, run, shows, slurp, with_lines, write)


# Other verbs

def test_round_trips():
    for base in (TINY, "gpt2-124m"):
        run("defconfig", base)
        edit("CONFIG_SEED=1337", "CONFIG_SEED=7")
        run("sync")
        full = slurp(".config")
        run("savedefconfig")
        minimal = slurp("defconfig")
        os.rename(os.path.join(DIR.name, "defconfig"), FRAGMENT)
        status, _, err = run("defconfig", FRAGMENT)
        ok(status == 0 and slurp(".config") == full
           and len(minimal) < len(full) / 2,
           f"savedefconfig_round_trip: {base}", err, minimal)
    with_lines('CONFIG_RA_MLA_MLP_SPARSE_MODE="rms"\n')
    run("savedefconfig")
    ok('CONFIG_RA_MLA_MLP_SPARSE_MODE="rms"\n' in slurp("defconfig"),
       "savedefconfig_writes_words")


def test_get_and_diff():
    run("defconfig", TINY)
    old = os.path.join(DIR.name, "old")
    write(old, slurp(".config"))
    ok(run("get", "GPT2_MAX_ITERS")[1] == run("get", "CONFIG_MAX_ITERS")[1]
       == run("get", "MAX_ITERS")[1] != "", "get_prints_a_value")
    ok(run("get", "MAX_ITER")[0] == 2, "get_refuses_an_unknown_symbol")
    run("merge", "real-double")
    edit("CONFIG_RA_MLA_RA_ALPHA=0.0", 'CONFIG_RA_MLA_RA_ALPHA="0.00"')
    # The library of products follows, where that of float has none for double.
    lines = [x for x in run("diff", old, CONFIG)[1].splitlines() if "CONFIG_BLAS_" not in x]
    ok(lines == ["CONFIG_REAL_DOUBLE: n -> y", "CONFIG_REAL_FLOAT: y -> n"],
       "diff_prints_differing_symbols", run("diff", old, CONFIG)[1])


def test_all_kinds():
    ok(run("alldefconfig")[0] == 0 and run("sync")[0] == 0
       and shows('CONFIG_BLOCK="mha mlp"', "CONFIG_DATA_TREE=y"),
       "alldefconfig_is_legal")
    ok(run("allnoconfig")[0] == 0 and run("sync")[0] == 0
       and shows("# CONFIG_TENSORBOARD is not set", "CONFIG_MIXER_MHA=y"),
       "allnoconfig_is_legal")
    run("defconfig", TINY)
    ok(run("listnewconfig")[1] == "", "listnewconfig_is_empty_when_all_is_set")
    edit("CONFIG_SEED=1337\n", "")
    edit('CONFIG_RA_MLA_MLP_SPARSE_MODE="topk"\n', "")
    edit("CONFIG_LR_COSINE=y\n", "")
    edit("# CONFIG_LR_[A-Z]+ is not set\n# CONFIG_LR_WSD is not set\n", "")
    ok(run("listnewconfig")[1] == 'CONFIG_RA_MLA_MLP_SPARSE_MODE="topk"\n'
       'CONFIG_SEED=1337\nCONFIG_LR_COSINE=y\n',
       "listnewconfig_names_what_is_open", run("listnewconfig")[1])
    sys.stdin, keep = io.StringIO("3\n\n11\n\n"), sys.stdin
    status, out, err = run("oldconfig")
    sys.stdin = keep
    ok(status == 0 and shows("CONFIG_SEED=11", "CONFIG_LR_COSINE=y",
                             'CONFIG_RA_MLA_MLP_SPARSE_MODE="rms"'),
       "oldconfig_asks_for_what_is_open", out, err)
    edit("CONFIG_SEED=11\n", "")
    edit('CONFIG_WEIGHT_DECAY="0.1"\n', "")
    sys.stdin = io.StringIO("-1\n12\nmuch\n-1\n0.2\n")
    status, out, err = run("oldconfig")
    ok(status == 0 and shows("CONFIG_SEED=12", 'CONFIG_WEIGHT_DECAY="0.2"'),
       "oldconfig_asks_again_for_what_is_illegal", out, err)
    edit("CONFIG_SEED=12\n", "")
    sys.stdin = io.StringIO("")
    ok(run("oldconfig")[0] == 2, "oldconfig_needs_answers")
    sys.stdin = keep


def kept():
    """The text of .config.old, which is removed; None without."""
    path = os.path.join(DIR.name, ".config.old")
    if not os.path.exists(path):
        return None
    text = slurp(".config.old")
    os.unlink(path)
    return text


def test_old():
    """A .config that somebody changed is kept when another one takes its place."""
    run("defconfig", TINY)
    kept()
    run("defconfig", "tiny-gpt2")
    ok(kept() is None, "what_a_defconfig_gives_is_not_kept")
    for verb in (["defconfig", TINY], ["defconfig", "tiny-gpt2"], ["alldefconfig"],
                 ["allnoconfig"], ["randconfig", "1"]):
        run("defconfig", "tiny-gpt2")
        kept()
        edit("CONFIG_SEED=1337", "CONFIG_SEED=7")
        mine = slurp(".config")
        status, out, _ = run(*verb)
        ok(status == 0 and ".config.old" in out and kept() == mine,
           f"a_hand_edit_is_kept: {' '.join(verb)}", out)
    run("defconfig", "tiny-gpt2")
    edit("CONFIG_SEED=1337", "CONFIG_SEED=7")
    for name in (TINY, "tiny-gpt2", "gpt2-124m"):
        run("defconfig", name)
    ok("CONFIG_SEED=7" in (kept() or ""), "a_second_defconfig_keeps_it_too")


def test_randconfig():
    blocks, seen = set(), set()
    for seed in range(30):
        status, out, err = run("randconfig", str(seed))
        text = slurp(".config")
        status |= run("sync")[0]
        if status or out.split()[:2] != ["randconfig", str(seed)] or \
           slurp(".config") != text:
            break
        blocks.add(run("get", "BLOCK")[1])
        seen.add(text)
    ok(seed == 29 and status == 0, "randconfig_is_legal: 30 seeds", seed, err)
    ok(len(blocks) > 5 and len(seen) == 30, "randconfig_varies", blocks)
    run("randconfig", "29")
    ok(slurp(".config") == text, "randconfig_is_the_same_for_the_same_seed")
    seed = run("randconfig")[1].split()[1]
    text = slurp(".config")
    run("randconfig", seed)
    ok(slurp(".config") == text, "randconfig_prints_its_seed")
    ok(run("randconfig", "x")[0] == 2, "randconfig_refuses_a_word")


# The terminal interface

SCREEN = []         # what the interface that ran last wrote


MENUCONFIG = [sys.executable, "scripts/kconfig.py", "--config", CONFIG, "--gen", DIR.name,
              "menuconfig"]


def drive(keys, seconds=60.0, command=()):
    """Exit status of menuconfig after typing keys."""
    status, SCREEN[:] = terminal.drive(command or MENUCONFIG, keys, seconds)
    return status


def jump(symbol, *keys):
    """Keys that go to a symbol, press Enter on it, and what follows."""
    return ["/", symbol, "\n", "\n", *keys]


SAVE = ["q", "y"]


def test_menuconfig():
    if not terminal.exists():
        ok(True, "menuconfig # SKIP this machine has no pseudo-terminals")
        return
    for name in ("tiny-gpt2", TINY):
        run("defconfig", name)
        ok(drive(["q"]) == 0, f"menuconfig_has_nothing_to_save_after_defconfig: {name}")
    status = drive(["/", "SPARSE_MODE_RMS", "\n", "\n", "q", "y"])
    ok(status == 0 and shows('CONFIG_RA_MLA_MLP_SPARSE_MODE="rms"')
       and "SPARSE_K" not in slurp(".config"),
       "menuconfig_writes_the_word_of_a_mode", status, slurp(".config"))
    ok(run("sync")[0] == 0 and defines("RA_MLA_MLP_SPARSE_MODE_RMS 1"),
       "menuconfig_result_takes_effect")
    status = drive(["/", "ADAM_BETA1", "\n", "\n", "\x7f" * 8, "2.0", "\n", "\n",
                    "\x7f" * 8, "0.5", "\n", "q", "y"])
    ok(status == 0 and shows('CONFIG_ADAM_BETA1="0.5"'),
       "menuconfig_refuses_a_real_out_of_range", status)
    ok(terminal.leave(MENUCONFIG, 10), "menuconfig_ends_with_its_terminal")
    edit("CONFIG_SEED=", "CONFIG_SEDE=")
    ok(drive([]) == 2, "menuconfig_refuses_a_bad_file")


# name: (defconfig, lines on top, keys, lines that the saved file has)
BLOCKS = {
    "another_model_sets_mixers_and_block": (
        "tiny-gpt2", "", jump("MODEL_GPT2_RA_MLA"),
        ['CONFIG_BLOCK="ra_mla recip"', "CONFIG_MIXER_RA_MLA=y", "CONFIG_MLP_RECIP=y",
         "# CONFIG_MIXER_MHA is not set", "# CONFIG_MLP_MLP is not set"]),
    "and_back": (
        TINY, "", jump("MODEL_GPT2"), ['CONFIG_BLOCK="mha mlp"', "CONFIG_MIXER_MHA=y",
                                       "# CONFIG_MIXER_RA_MLA is not set"]),
    "a_mixer_turned_on_offers_a_block": (
        "tiny-gpt2", "", jump("MIXER_RA_MLA", "1"),
        ['CONFIG_BLOCK="mha mlp ra_mla mlp"', "CONFIG_MIXER_MHA=y", "CONFIG_MIXER_RA_MLA=y"]),
    "another_order_can_be_chosen": (
        "tiny-gpt2", "", jump("MIXER_RA_MLA", "2"), ['CONFIG_BLOCK="ra_mla mlp mha mlp"']),
    "one_turned_on_and_one_off": (
        "tiny-gpt2", "", jump("MIXER_RA_MLA", "1") + jump("MIXER_MHA", "1"),
        ['CONFIG_BLOCK="ra_mla mlp"', "# CONFIG_MIXER_MHA is not set"]),
    "enter_on_block_offers_what_fits": (
        "tiny-gpt2", 'CONFIG_BLOCK="mha mlp mlp"\n', jump("BLOCK", "1"), ['CONFIG_BLOCK="mha mlp"']),
    "or_lets_a_string_be_typed": (
        "tiny-gpt2", "", jump("BLOCK", "c", " mlp", "\n"), ['CONFIG_BLOCK="mha mlp mlp"']),
    "a_block_of_ones_own_is_kept": (
        "tiny-gpt2", 'CONFIG_BLOCK="mha mlp mlp"\n', jump("MODEL_GPT2_RA_MLA", "c"),
        ['CONFIG_BLOCK="mha mlp mlp"', "CONFIG_MIXER_MHA=y"]),
    "or_given_up": (
        "tiny-gpt2", 'CONFIG_BLOCK="mha mlp mlp"\n', jump("MODEL_GPT2_RA_MLA", "1"),
        ['CONFIG_BLOCK="ra_mla recip"', "CONFIG_MIXER_RA_MLA=y"]),
}


def test_block_follows():
    if not terminal.exists():
        ok(True, "menuconfig of BLOCK # SKIP this machine has no pseudo-terminals")
        return
    for name, (base, lines, keys, wanted) in BLOCKS.items():
        with_lines(lines, base)
        status = drive(keys + SAVE)
        ok(status == 0 and shows(*wanted) and run("sync")[0] == 0, name, status,
           "".join(SCREEN)[-300:], slurp(".config"))


def test_block_strings():
    """Help and offers come from the declarations, so that a new mixer needs no line here."""
    with_lines("", "tiny-gpt2")
    conf = kconfig.Config()
    text = conf.syms["BLOCK"].nodes[0].help
    ok(all(f"\n  {name} " in text for name in conf.decl.blocks), "help_of_block_lists_names", text)
    conf.load([CONFIG])
    for name in ("MIXER_RA_MLA", "MLP_RECIP"):
        conf.syms[name].set_value("y")
    ok(block.offers(conf)[0] == "mha mlp ra_mla recip" and not block.fits(conf),
       "offers_name_what_is_on", block.offers(conf))
    conf.syms["BLOCK_ALT"].set_value("ra_mla recip")
    conf.syms["BLOCK_ALT_LAYERS"].set_value("1")
    ok(block.fits(conf) and block.offers(conf) == ["mha mlp"], "but_not_what_the_other_block_names",
       block.offers(conf))


def test_chosen():
    """make menuconfig ends with a line of figures, or with what to type for them."""
    if not terminal.exists():
        ok(True, "figures after menuconfig # SKIP this machine has no pseudo-terminals")
        return
    run("defconfig", "tiny-gpt2")
    make = ["make", f"O={DIR.name}", "EXTRA_CFLAGS=-Og -g0", "menuconfig"]
    status = drive(jump("MODEL_GPT2_RA_MLA") + SAVE, 200, make)
    said = "".join(SCREEN).rpartition("PLAN")[2]
    plan = json.loads(subprocess.run([f"{DIR.name}/tenon", "plan", "--json"], check=True,
                                     stdout=subprocess.PIPE).stdout)
    ok(status == 0 and f"{plan['params']:,} parameters" in said
       and f"{plan['train']['arena'] / 2**20:,.1f} MiB" in said
       and f"{plan['cache_token']:,} bytes" in said, "menuconfig_ends_with_figures", said)
    status = drive(["q"], 60, make + ["CC=nonesuch"])
    said = "".join(SCREEN).rpartition("PLAN")[2]
    ok(status == 0 and f"make O={DIR.name} build && {DIR.name}/tenon plan" in said,
       "or_with_the_command", said)


main(globals())
