#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The bench on a GPU, as far as it goes without one: what it reads of ncu."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402

sys.path.insert(0, os.path.join(t.SRC, "scripts"))
import bench_kernels as k    # noqa: E402

COLUMNS = ("ID", "Process ID", "Kernel Name", "Metric Name", "Metric Unit", "Metric Value")
NAMES = {"void add_norm_fwd_kernel<8, 0>(norm)": "add_norm_fwd_kernel",
         "nvjet_tst_128x256_64x4_2x1_v_bz_NNT": "nvjet_tst",
         "void (anonymous namespace)::adamw_kernel(adam_buffers, optim_span)": "adamw_kernel",
         "xent_kernel": "xent_kernel"}


def csv_line(*cells):
    return ",".join(f'"{cell}"' for cell in cells) + "\n"


def said():
    """What ncu and the program under it print: three launches between other lines."""
    text = '==PROF== Connected to process 7\n{\n "step": 1\n}\n' + csv_line(*COLUMNS)
    for number, name in enumerate(list(NAMES)[:3]):
        text += csv_line(number, 7, name, k.TIME, "ns", "1,500") + \
            csv_line(number, 7, name, k.BYTES, "byte", "4,000,000") + \
            csv_line(number, 7, name, k.TENSOR[0], "", "0.5")
    return text + "==PROF== Disconnected from process 7\n"


def main():
    for kernel, name in NAMES.items():
        t.ok(k.base_name(kernel) == name, f"{kernel} is {name}", k.base_name(kernel))
    found = k.launches(said())
    t.ok([x["name"] for x in found] == list(NAMES.values())[:3], "launches in order", found)
    t.ok(all(abs(x[k.TIME] - 1.5e-6) < 1e-12 and x[k.BYTES] == 4e6 and x[k.TENSOR[0]] == 0.5
             for x in found), "their numbers, in seconds and bytes", found)
    t.ok(k.launches("==ERROR== no\n") == [], "no launch in an error")
    sizes = [(100, 2.0), (200, 3.0), (400, 5.0)]
    for moved, seconds in ((10, 2.0), (100, 2.0), (150, 2.5), (300, 4.0), (800, 10.0)):
        t.ok(k.copy_seconds(sizes, moved) == seconds, f"a copy of {moved} bytes between measured ones",
             k.copy_seconds(sizes, moved))
    os.environ["PATH"] = t.SRC
    t.ok(not k.copies("python3"), "without ncu no copies")
    step, why = k.profile(t.SRC)
    t.ok(not step and "install" in why, "without ncu a line says what to install", why)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
