#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The verbs of the configuration, menuconfig in a terminal among them."""

import io
import os
import pty
import select
import sys
import time

from kconfig_tap import (CONFIG, DIR, FRAGMENT, TINY, defines, edit, main, ok,
                         run, shows, slurp, with_lines, write)


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
    ok(run("diff", old, CONFIG)[1] == "CONFIG_REAL_DOUBLE: n -> y\n",
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
    ok(run("listnewconfig")[1] == 'CONFIG_SEED=1337\n'
       'CONFIG_RA_MLA_MLP_SPARSE_MODE="topk"\nCONFIG_LR_COSINE=y\n',
       "listnewconfig_names_what_is_open", run("listnewconfig")[1])
    sys.stdin, keep = io.StringIO("11\n3\n\n\n"), sys.stdin
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

def drive(keys, seconds=60.0):
    """Exit status of menuconfig after typing keys, one per idle moment."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", LINES="40", COLUMNS="100")
        os.execv(sys.executable, [sys.executable, "scripts/kconfig.py",
                                  "--config", CONFIG, "--gen", DIR.name,
                                  "menuconfig"])
    keys, started, end = list(keys), False, time.monotonic() + seconds
    while time.monotonic() < end:
        ready = select.select([terminal], [], [], 0.2 if started else 5)[0]
        if ready:
            try:
                started = bool(os.read(terminal, 65536))
            except OSError:
                break
        elif keys:
            os.write(terminal, keys.pop(0).encode())
    else:
        os.kill(child, 9)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def has_terminal():
    try:
        for end in os.openpty():
            os.close(end)
    except OSError:
        return False
    return True


def test_menuconfig():
    if not has_terminal():
        ok(True, "menuconfig # SKIP this machine has no pseudo-terminals")
        return
    run("defconfig", TINY)
    ok(drive(["q"]) == 0, "menuconfig_has_nothing_to_save_after_defconfig")
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
    edit("CONFIG_SEED=", "CONFIG_SEDE=")
    ok(drive([]) == 2, "menuconfig_refuses_a_bad_file")

main(globals())
