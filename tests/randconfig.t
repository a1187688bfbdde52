#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The search of tests/randconfig.py for the symbols that matter, on planted defects."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import randconfig as r          # noqa: E402
import training as t            # noqa: E402

SEEDS = range(1, 401)

# What a defect needs, in items of randconfig.py.
DEFECTS = {
    "one value": {("LR_CONSTANT", "y")},
    "two symbols": {("LR_WSD", "y"), ("N_LAYER", "2")},
    "a mixer and a symbol": {("BLOCK", "ra_mla"), ("HEAD_TIED", "n")},
    "a mode and what it depends on": {("BLOCK", "ra_mla"), ("BLOCK", "recip"),
                                      ("RA_MLA_MLP_CROSS_TOKEN", "y"),
                                      ("RA_MLA_MLP_SPARSE_MODE_RMS", "y")},
}


def drawn(conf, seed):
    """The items of a random configuration."""
    r.random_config.randomise(conf, seed)
    return r.items_of(conf)


def shows(conf, wanted):
    """Whether a configuration has what a defect needs, as its files would say it."""
    return all(value in conf.value(name).split() if name == "BLOCK" else conf.value(name) == value
               for name, value in wanted)


def test_minimal():
    """On plain lists: exactly the needed parts, with few questions."""
    for need in ({3}, {0, 19}, {4, 5, 6}, set()):
        asked = []
        least = r.minimal(list(range(20)), lambda some: asked.append(some) or need <= set(some))
        t.ok(set(least) == need and len(asked) < 100, f"minimal: {sorted(need) or 'nothing'}",
             f"{least} after {len(asked)}")


def test_round_trip(conf):
    """Items give the configuration that they were taken from."""
    for seed in SEEDS[:5]:
        r.random_config.randomise(conf, seed)
        for name, value in {**r.RUN, "RUN_NAME": "tenon"}.items():
            conf.syms[name].set_value(value)
        before = conf.text().splitlines()
        objection = r.put(conf, r.items_of(conf))
        changed = set(before) ^ set(conf.text().splitlines())
        t.ok(not changed and not objection, f"seed {seed}: items and back",
             "\n".join([objection, *changed]))


def test_planted(conf):
    """A defect of some symbols: found in a random configuration that has them, alone."""
    for name, wanted in DEFECTS.items():
        items = next((i for i in (drawn(conf, seed) for seed in SEEDS) if wanted <= set(i)), None)
        lines = items and r.explain(conf, items, lambda wanted=wanted: shows(conf, wanted))
        found = {tuple(x.strip().removeprefix("CONFIG_").split("=")) for x in (lines or [])[1:]}
        # Mixers alone may break a rule: what makes them legal then belongs to the answer.
        t.ok(items and wanted <= found and len(found) <= len(wanted) + 2 and shows(conf, wanted),
             f"planted: {name}", "\n".join(lines or ["no seed draws it"]))


def main():
    os.chdir(t.SRC)
    conf = r.Config()
    test_minimal()
    test_round_trip(conf)
    test_planted(conf)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
