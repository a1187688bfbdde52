#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The configuration of the stack: choices, two kinds of layers, taps, defconfigs with a base,
and the headers that C reads of it."""

import os
import re

from kconfig_tap import (DIR, FRAGMENT, TINY, defines, kconfig, main, ok, run,
                         shows, slurp, with_lines, write)

CHOICES = {
    "tiny-gpt2-rmsnorm": "CONFIG_NORM_RMSNORM=y",
    "tiny-gpt2-nopos": "# CONFIG_LEARNED_POSITIONS is not set",
    "tiny-gpt2-untied": "# CONFIG_HEAD_TIED is not set",
    "tiny-gpt2-nobias": "# CONFIG_LINEAR_BIAS is not set",
    "tiny-gpt2-narrow": "CONFIG_INTERMEDIATE_SIZE=96",
    "tiny-gpt2-grouped": "CONFIG_KV_HEADS=2",
}
HYBRID = ('CONFIG_BLOCK_ALT="mha mlp"\nCONFIG_BLOCK_ALT_LAYERS="{}"\n'
          "CONFIG_MIXER_MHA=y\nCONFIG_MLP_MLP=y\n")


def generated(name):
    """A header that sync writes."""
    return slurp(f"include/generated/{name}.h")


# Choices

def test_choices():
    run("defconfig", "tiny-gpt2")
    plain = set(slurp(".config").splitlines())
    for name, line in CHOICES.items():
        run("defconfig", name)
        new = set(slurp(".config").splitlines()) - plain - {f'CONFIG_RUN_NAME="{name}"'}
        ok(line in new and len(new) <= 2, f"one_choice_differs: {name}", new)
    run("defconfig", "tiny-gpt2")
    run("sync")
    ok(defines("NORM_LAYERNORM 1", "NORM_EPSILON 1e-05", "LEARNED_POSITIONS 1", "HEAD_TIED 1",
               "LINEAR_BIAS 1", "INTERMEDIATE_SIZE 0", "KV_HEADS 0", "HEAD_ROWS 512"),
       "gpt2_is_the_default")


def test_derived():
    """Symbols that mixers select: in the header, but never in .config."""
    run("defconfig", "tiny-gpt2")
    run("sync")
    ok(defines("HAVE_ATTN 1", "RA_MLA_ROUTE_ROWS 0")
       and not re.search("HAVE_(ROUTE|GATE|COUPLE|STATS)", generated("autoconf"))
       and "HAVE_" not in slurp(".config"), "gpt2_needs_attention_alone")
    run("defconfig", TINY)
    run("sync")
    ok(defines("HAVE_ATTN 1", "HAVE_ROUTE 1", "HAVE_GATE 1", "HAVE_COUPLE 1",
               "RA_MLA_ROUTE_ROWS 1")
       and "HAVE_STATS" not in generated("autoconf"),
       "mechanisms_select_their_kernels")
    with_lines("CONFIG_RA_MLA_MLP_SPARSE_HEAD_AVERAGE=n\nCONFIG_RA_MLA_LOG_METRICS=y\n"
               'CONFIG_RA_MLA_MLP_TYING_MODE="untied"\n')
    run("sync")
    ok(defines("HAVE_STATS 1", "RA_MLA_ROUTE_ROWS 4")
       and "HAVE_COUPLE" not in generated("autoconf"), "so_do_modes")
    run("defconfig", TINY)
    with_lines("CONFIG_RA_MLA_MLP_CROSS_TOKEN=n\n")
    status, _, err = run("sync")
    ok(status == 0 and err == "" and defines("RA_MLA_ROUTE_ROWS 0"),
       "what_follows_from_a_switch_changes_with_it", err)
    status, _, err = with_lines("CONFIG_HAVE_ROUTE=y\n")
    ok(status == 2 and "follows from other symbols" in err, "no_line_sets_it", err)


# Two kinds of layers

STACKS = {
    "no layers": ('CONFIG_BLOCK_ALT="ra_mla recip"', ["lists no layer"]),
    "no block": ('CONFIG_BLOCK_ALT_LAYERS="1"', ['CONFIG_BLOCK_ALT=""']),
    "order": (HYBRID.format("1,0"), ["ascending", 'nearest legal "0,1"']),
    "twice": (HYBRID.format("1,1"), ['nearest legal "1"']),
    "words": (HYBRID.format("first"), ["layers 0 to 2"]),
    "spaces": (HYBRID.format("0, 1"), ['nearest legal "0,1"']),
    "zeros": (HYBRID.format("00"), ['nearest legal "0"']),
    "too deep": (HYBRID.format("0,3"), ["N_LAYER=3", 'nearest legal "0"']),
    "every layer": (HYBRID.format("0,1,2"), ["every layer"]),
    "not on": ('CONFIG_BLOCK_ALT="mha"\nCONFIG_BLOCK_ALT_LAYERS="0"', ["names mha, which is off"]),
    "no reader left": (HYBRID.format("0,1"), ["nothing after recip reads HEAD_GATE",
                                              "list other layers"]),
    "second reader": ('CONFIG_BLOCK_ALT="mha recip"\nCONFIG_BLOCK_ALT_LAYERS="1"\n'
                      "CONFIG_MIXER_MHA=y", ["recip and then recip read the LATENT"]),
    "groups": ("CONFIG_KV_HEADS=3", ["KV_HEADS=3", "N_HEAD=4", "2 and 4"], "tiny-gpt2"),
    "slices": ("CONFIG_INTERMEDIATE_SIZE=50\nCONFIG_RA_MLA_MLP_SPARSE_HEAD_AVERAGE=n",
               ["N_HEAD=4", "CONFIG_INTERMEDIATE_SIZE=50", "HEAD_AVERAGE=n need", "2 and 5"]),
    "scalar": ('CONFIG_RA_MLA_MLP_TYING_MODE="per_head_scalar"\nCONFIG_INTERMEDIATE_SIZE=100',
               ["RA_MLA_LATENT_DIM=16", "CONFIG_INTERMEDIATE_SIZE=100", "10 and 20"]),
    "entries": ("CONFIG_BLOCK_SIZE=131072\nCONFIG_RA_MLA_MLP_SPARSE_K=131072\n"
                "CONFIG_BATCH_SIZE=1", ["SPARSE_K=131072", "below 2^31"]),
    "epsilon": ("CONFIG_NORM_EPSILON=0", ["above 0"]),
    "no bias": ("CONFIG_LINEAR_BIAS=n", None),
    "bf16": ("CONFIG_REAL_BF16=y", None),
    "oneDNN of double": ("CONFIG_REAL_DOUBLE=y\nCONFIG_BLAS_ONEDNN=y", ["REAL_DOUBLE"]),
    "heads of a state space": ("CONFIG_MAMBA2_HEAD_DIM=15",
                               ["CONFIG_MAMBA2_NUM_HEADS=8, CONFIG_MAMBA2_HEAD_DIM=15: ",
                                "CONFIG_MAMBA2_EXPAND*CONFIG_N_EMBD=128",
                                "nearest legal CONFIG_MAMBA2_HEAD_DIM=16"], "tiny-mamba2"),
    "no heads that fit": ("CONFIG_MAMBA2_NUM_HEADS=7\nCONFIG_MAMBA2_HEAD_DIM=24",
                          ["product 168", "for CONFIG_MAMBA2_HEAD_DIM 16 and 32"], "tiny-mamba2"),
    "groups of a state space": ("CONFIG_MAMBA2_N_GROUPS=3",
                                ["MAMBA2_N_GROUPS=3", "MAMBA2_NUM_HEADS=8", "2 and 4"],
                                "tiny-mamba2"),
    "one tap": ("CONFIG_GLA_CONV=1", ["CONFIG_GLA_CONV=1", "nearest legal 0 and 2"], "tiny-gla"),
    "a chunk": ("CONFIG_LINEAR_CHUNK=40", ["LINEAR_CHUNK=40", "nearest legal 32 and 48"],
                "tiny-mfa-gla"),
    "a chunk, its other name": ("CONFIG_MAMBA2_CHUNK_SIZE=128", None, "tiny-mamba2"),
    "a temperature": ("CONFIG_GLA_GATE_TAU=0", ["above 0"], "tiny-gla"),
    "few rows of positions": ("CONFIG_WPE_ROWS=100", ["WPE_ROWS=100", "CONFIG_BLOCK_SIZE=128"],
                              "tiny-gla"),
    "all rows of positions": ("CONFIG_WPE_ROWS=0\nCONFIG_INIT_XAVIER=y", None, "tiny-gla"),
    "uniform without a matrix": ("CONFIG_INIT_XAVIER=y", ["HEAD_TIED=n"], "tiny-gpt2"),
    "a shared decay that is fixed": ('CONFIG_GLA_DECAY="fixed"\nCONFIG_MFA_SHARED_DECAY=y',
                                     None, "tiny-mfa-gla", "note"),
    "key heads of latent attention": ("CONFIG_KV_HEADS=2", ["needs CONFIG_MIXER_MHA=y"]),
}


def test_stacks():
    for name, (text, reasons, *base) in STACKS.items():
        status, _, err = with_lines(text + "\n", *base[:1])
        if reasons is None:
            ok(status == 0 and err[:4] == "".join(base[1:]), f"stack_is_legal: {name}", err)
        else:
            ok(status == 2 and err.startswith(f"error: {FRAGMENT}:")
               and all(reason in err for reason in reasons), f"stack_is_refused: {name}", err)
    for layers, count in (("0", 1), ("1", 1), ("0,2", 2)):
        lines = HYBRID.format(layers)
        if layers == "0,2":         # one ra_mla alone exchanges nothing
            lines += "".join(f"CONFIG_RA_MLA_MLP_{m}=n\n" for m in ("ATTN_GATE", "LATENT_RECIP"))
        status, _, err = with_lines(lines)
        run("sync")
        ok(status == 0 and defines("BLOCK_ALT_LEN 2", f"BLOCK_ALT_LAYERS_NR {count}",
                                   f'BLOCK_ALT_LAYERS "{layers}"'),
           f"hybrid_is_legal: layers {layers}", err)
    status, _, err = with_lines('CONFIG_BLOCK="recip"\nCONFIG_MIXER_RA_MLA=n\n'
                                + "".join(f"CONFIG_RA_MLA_MLP_{m}=n\n" for m in
                                          ("ATTN_GATE", "CROSS_TOKEN", "LATENT_RECIP"))
                                + "CONFIG_LINEAR_BIAS=n\n")
    ok(status == 0, "bias_of_recip_alone", err)
    status, _, err = with_lines('CONFIG_BLOCK="mha"\nCONFIG_MLP_MLP=n\n'
                                "CONFIG_INTERMEDIATE_SIZE=8\n", "tiny-gpt2")
    ok(status == 0 and f"note: {FRAGMENT}:3: CONFIG_INTERMEDIATE_SIZE=8: no effect beside "
       f"CONFIG_MLP_MLP=n ({FRAGMENT}:2)" in err, "width_without_an_mlp_is_moot", err)
    write(FRAGMENT, 'CONFIG_BLOCK="mha"\nCONFIG_MLP_MLP=n\n')
    run("defconfig", "tiny-gpt2", FRAGMENT)
    write(FRAGMENT, "CONFIG_INTERMEDIATE_SIZE=8\n")
    status, _, err = run("merge", FRAGMENT)
    ok(status == 2 and all(f"CONFIG_MLP_{m}=y" in err.partition("needs (")[2]
                           for m in ("MLP", "RECIP", "SWIGLU", "MOE")),
       "width_without_an_mlp_is_refused", err)


def test_alias_of_layers():
    """MAMBA_LAYERS also says what stands there, unless a line does."""
    lines = ('CONFIG_MAMBA_LAYERS="0,2"\nCONFIG_MAMBA2_NUM_HEADS=8\nCONFIG_MAMBA2_HEAD_DIM=16\n')
    status, _, err = with_lines(lines, "tiny-gpt2")
    ok(status == 0 and shows('CONFIG_BLOCK_ALT="mamba2"', 'CONFIG_BLOCK_ALT_LAYERS="0,2"',
                             "CONFIG_MIXER_MAMBA2=y"), "layers_of_mamba2", err)
    status, _, err = with_lines(lines + 'CONFIG_BLOCK_ALT="mamba2 mlp"\n', "tiny-gpt2")
    ok(status == 0 and shows('CONFIG_BLOCK_ALT="mamba2 mlp"'), "layers_of_mamba2_and_more", err)
    run("defconfig", "tiny-mamba2")
    ok(shows('CONFIG_BLOCK="mamba2"', "CONFIG_NORM_RMSNORM=y",
             "# CONFIG_LEARNED_POSITIONS is not set", "CONFIG_HEAD_TIED=y"), "mamba2_and_its_stack")


# Taps

def test_taps():
    run("defconfig", TINY)
    run("sync")
    text = generated("taps")
    ok(all(line in text for line in (
        "TAP(HEAD_GATE, acc_t, 4, 4, 0)", "TAP(LATENT, act_t, 16, 16, 1)",
        "TAP(LATENT_MIX, act_t, 16, 16, 0)", "TAP(ROUTE, acc_t, 0, 128, 1)",
        "#define ra_mla_TAPS_READ (1u << TAP_HEAD_GATE | 1u << TAP_LATENT_MIX)",
        "#define ra_mla_TAPS_WRITTEN (1u << TAP_LATENT | 1u << TAP_ROUTE)",
        "#define recip_TAPS_READ (1u << TAP_LATENT | 1u << TAP_ROUTE)",
        "#define recip_TAPS_WRITTEN (1u << TAP_HEAD_GATE | 1u << TAP_LATENT_MIX)"))
       and "mha" not in text, "taps_of_every_mechanism", text)
    with_lines("CONFIG_RA_MLA_MLP_LATENT_DETACH=n\nCONFIG_RA_MLA_MLP_ATTN_GATE=n\n"
               "CONFIG_RA_MLA_MLP_SPARSE_HEAD_AVERAGE=n\n")
    run("sync")
    text = generated("taps")
    ok("TAP(LATENT, act_t, 16, 16, 0)" in text and "TAP(ROUTE, acc_t, 0, 512, 1)" in text
       and "ra_mla_TAPS_READ (1u << TAP_LATENT_MIX)" in text
       and "recip_TAPS_WRITTEN (1u << TAP_LATENT_MIX)" in text, "taps_follow_switches", text)
    run("defconfig", "gpt2-ra-mla-arm0")
    run("sync")
    text = generated("taps")
    ok(text.count("TAP(") == 4 and len(re.findall("TAPS_(?:READ|WRITTEN) 0", text)) == 4,
       "taps_without_mechanism_are_known_and_unused", text)
    run("defconfig", "gpt2-124m")
    run("sync")
    text = generated("taps")
    ok(re.findall("#define (.*)", text) == [
        "TAPS(TAP)", "mha_TAPS_READ 0", "mha_TAPS_WRITTEN 0", "mlp_TAPS_READ 0",
        "mlp_TAPS_WRITTEN 0"], "gpt2_has_no_taps", text)


def test_declarations():
    """Whatever a Kconfig file declares speaks of a symbol that exists."""
    conf = kconfig.Config()
    known = {s.name for s in conf.unique_defined_syms}
    decl = conf.decl
    said = {*decl.reals, *decl.tries, *decl.refusals, *decl.free, *decl.divides, *decl.below,
            *(m.symbol for m in decl.mechanisms), *(b.symbol for b in decl.blocks.values())}
    ok(said <= known, "declarations_name_symbols", said - known)
    taps = {t.name for t in decl.taps}
    ends = [*decl.mechanisms, *decl.blocks.values()]
    ok({n for e in ends for v in e.taps.values() for n in v} <= taps
       and {m.mixer for m in decl.mechanisms} <= set(decl.blocks), "declarations_name_taps")


# Checkpoints

def test_free():
    run("defconfig", "tiny-gpt2")
    run("sync")
    lists = {name: re.findall('"(.*?)"', text) for name, text in
             re.findall(r"#define FREE_(\w+) ((?:.*\\\n)*.*)", generated("free"))}
    ok({"RUN_NAME", "SEED", "MAX_ITERS", "DATA_PATH", "CHECKPOINT_KEEP"} <= set(lists["RESUME"])
       and {"LEARNING_RATE", "LR_WSD", "OPTIM_ADAMWSPAM", "HEAD_ROWS", "BLAS_BUILTIN",
            "ARCH_CPU", "DATA_TREE"} <= set(lists["WEIGHTS"]), "free_symbols", lists)
    both = lists["RESUME"] + lists["WEIGHTS"]
    shapes = {"N_LAYER", "BLOCK", "KV_HEADS", "NORM_EPSILON", "RA_MLA_LATENT_DIM", "VOCAB_SIZE"}
    ok(len(set(both)) == len(both) and not shapes & set(both), "the_model_is_not_free", both)


# Defconfigs with a base

def based(name, text):
    """Write a defconfig into the test's folder."""
    path = os.path.join(DIR.name, name)
    write(path, text)
    return path


def test_bases():
    for step in range(4):
        run("defconfig", "gpt2-ra-mla-full", f"ra-mla-arm{step}")
        run("merge", based("off.config", "CONFIG_RA_MLA_ABLATION_MODE=n\n"
                           f'CONFIG_RUN_NAME="gpt2-ra-mla-arm{step}"\n'))
        arm = slurp(".config")
        run("defconfig", f"gpt2-ra-mla-arm{step}")
        ok(slurp(".config") == arm, f"step_is_the_study_with_its_fragment: {step}")
    one = based("one", "# base: tiny-gpt2\n# One\nCONFIG_N_LAYER=2\nCONFIG_MAX_ITERS=5\n")
    two = based("two", f"# base: {one}\n# Two\nCONFIG_MAX_ITERS=6\n")
    status, _, err = run("defconfig", two)
    ok(status == 0 and err == "" and shows("CONFIG_N_LAYER=2", "CONFIG_MAX_ITERS=6",
                                           "CONFIG_N_EMBD=64", 'CONFIG_RUN_NAME="two"'),
       "bases_form_a_chain", err)
    bad = {
        "cycle": (one, f"# base: {two}\n", f"error: {one}:1: base: "),
        "itself": (one, f"# base: {one}\n", f"error: {one}:1: base: "),
        "missing": (one, "# base: tiny-gpt\n", f"error: {one}:1: base: tiny-gpt: no such file"),
        "not first": (one, "# One\n# base: tiny-gpt2\n", f"error: {one}:2: a base must be"),
        "nameless": (one, "# base:\n", f"error: {one}:1: name one"),
        "two names": (one, "# base: tiny-gpt2 tiny-gpt2\n", f"error: {one}:1: name one"),
        "bad line": (one, "# base: tiny-gpt2\nCONFIG_N_LAYERS=2\n", f"error: {one}:2: "),
    }
    for name, (path, text, start) in bad.items():
        write(path, text)
        status, _, err = run("defconfig", two if name == "cycle" else path)
        ok(status == 2 and err.startswith(start) and err.count("\n") == 1,
           f"base_is_refused: {name}", err)
    status, _, err = with_lines("# base: tiny-gpt2\nCONFIG_SEED=1\n")
    ok(status == 2 and err.startswith(f"error: {FRAGMENT}:1: "), "a_fragment_has_no_base", err)


main(globals())
