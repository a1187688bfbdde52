#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""explain: every symbol has an answer, and it is the right one where that is known. Help texts:
each says what a symbol does, what it costs, where it is from; each symbol can be reached."""

import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from kconfig_tap import COUNT, TINY, kconfig, ok, run, with_lines     # noqa: E402

# symbol -> words of its answer, under tiny-ra-mla-full with HAND on top
HAND = "CONFIG_N_LAYER=3\nCONFIG_RA_MLA_MLP_SPARSE_MODE=\"rms\"\n"
KNOWN = {
    "N_LAYER": ("value        3", "model/Kconfig:", ".config:", "1 to 65536",
                "must agree in it", "include/dims.h"),
    "HAVE_ROUTE": ("select of RA_MLA_MLP_CROSS_TOKEN", "no line: it follows"),
    "RA_MLA_MLP_SPARSE_K": ("none, it is not open", "RA_MLA_MLP_SPARSE_MODE_TOPK (=n)"),
    "RA_MLA_MLP_SPARSE_MODE_RMS": ("value        y", "decides on", "one of"),
    "RA_MLA_MLP_SPARSE_MODE": ('"none" or "topk" or "rms"',),
    "GPT2_MAX_ITERS": ("CONFIG_MAX_ITERS", "may differ in it"),
    "LEARNING_RATE": ("a number in (0, inf)", "where their weights alone are used"),
    "WEIGHT_DECAY": ("which is the default",),
}

# A help text names a cost by one of these words.
COST = re.compile(r"\b(costs?|takes?|time|memory|parameters|bytes|speed|slow(er|s)?|fast(er|est)?|"
                  r"cheap(er|est)?|grows?|half|cache|minutes|keeps lists|no decode state)\b", re.I)


def prompted(conf):
    return [s for s in conf.unique_defined_syms if any(node.prompt for node in s.nodes)]


def test_help(conf):
    helps = {s.name: s.nodes[0].help or "" for s in prompted(conf)}
    ok(not [n for n, h in helps.items() if not COST.search(h)], "every_help_names_the_cost",
       [n for n, h in helps.items() if not COST.search(h)])
    ok(not [n for n, h in helps.items() if "Source:" not in h], "every_help_names_the_source",
       [n for n, h in helps.items() if "Source:" not in h])
    # One sentence at least before cost and source.
    ok(not [n for n, h in helps.items() if len(h.split("Source:")[0].split()) < 4],
       "every_help_says_what_it_does")
    choices = {s.choice for s in prompted(conf) if s.choice}
    ok(all(c.nodes[0].help for c in choices), "every_choice_has_help")


# What a researcher looks for, in this order.
MENUS = ["Architecture of the model", "Mechanisms", "Training", "Ablation study", "Data", "Machine",
         "Text generation"]


def menus(node):
    """Prompts of the menus below a node, outer ones alone."""
    while node:
        if node.item is kconfig.kconfiglib.MENU:
            yield node.prompt[0]
        node = node.next


# What opens a symbol beside bools of its condition.
ROTATED = {"MIXER_MLA": "y", "MLA_QUERY_LATENT": "y", "MLA_ROPE_DIM": "4"}
OPENED_BY = {"ROPE_THETA": {"MIXER_MHA": "y", "MHA_ROPE": "y"}, "MLA_ROPE_FROM_X": ROTATED,
             "MLA_ROPE_FROM_LATENT": ROTATED, "LINEAR_CHUNK": {"MIXER_GLA": "y"},
             "INIT_XAVIER": {"HEAD_TIED": "n"}}


def reach(conf, sym):
    """Whether a symbol opens with the bools that its condition names, as a user would set them."""
    for one in kconfig.kconfiglib.expr_items(sym.direct_dep):
        if getattr(one, "nodes", None) and one.orig_type == kconfig.kconfiglib.BOOL and \
                not one.tri_value and f"!{one.name}" not in kconfig.kconfiglib.expr_str(sym.direct_dep):
            reach(conf, one)
            one.set_value("y")
    return sym.visibility > 0


def test_menu(conf):
    ok(list(menus(conf.top_node.list)) == MENUS, "menus_are_the_known_ones",
       list(menus(conf.top_node.list)))
    shut = []
    for sym in prompted(conf):
        conf.unset_values()
        conf.syms["GPT2_MODEL_CUSTOM"].set_value("y")
        for name, value in OPENED_BY.get(sym.name, {}).items():
            conf.syms[name].set_value(value)
        # A machine without the library or nvcc has no such choice.
        if not reach(conf, sym) and sym.name not in conf.decl.refusals and \
                not sym.name.startswith("CUDA_"):
            shut.append(sym.name)
    ok(not shut, "every_symbol_opens_when_what_it_depends_on_is_set", shut)
    conf.unset_values()
    conf.syms["MODEL_GPT2"].set_value("y")
    stray = [s.name for s in prompted(conf) if s.visibility and s.name.startswith(
        ("RA_MLA_", "SPAM_")) and s.name != "SPAM_MAX_SKIPS"]
    ok(not stray, "gpt2_shows_no_option_of_what_is_off", stray)


def main():
    with_lines(HAND)
    for name, words in KNOWN.items():
        status, out, err = run("explain", name)
        missing = [w for w in words if w not in out]
        ok(not status and not missing, f"explain {name}", missing, out + err)
    run("defconfig", TINY)
    out = run("explain", "RA_MLA_LATENT_DIM")[1]
    ok(f"also defconfigs/{TINY}:" in out, "explain_names_the_line_of_the_defconfig", out)
    for name, words in {"N_LAYERS": "did you mean N_LAYER?", "": "there is no symbol"}.items():
        status, out, err = run("explain", name)
        ok(status == 2 and words in err and not out, f"explain refuses '{name}'", err)
    conf = kconfig.Config()
    conf.load([kconfig.find_file(TINY, "")])
    silent = [s.name for s in conf.unique_defined_syms
              if len(dict(kconfig.explain.explain(conf, s, "/nonexistent", {}))) < 7]
    ok(not silent, "every_symbol_has_an_answer", silent)
    test_help(conf)
    test_menu(conf)
    print(f"1..{COUNT[0]}")


if __name__ == "__main__":
    main()
