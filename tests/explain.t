#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""explain: every symbol has an answer, and it is the right one where that is known."""

import os
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
    print(f"1..{COUNT[0]}")


if __name__ == "__main__":
    main()
