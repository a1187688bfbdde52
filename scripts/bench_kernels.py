# SPDX-License-Identifier: MIT
"""Every kernel of one training step, as NVIDIA's ncu counts it: time, bytes, operations of tensor cores.

`tenon bench` marks the steps whose stages it times, here one. ncu stops before each kernel
and empties no cache; clocks are left alone. Sums are by
kernel, whatever its template arguments. Beside the speed of a copy of gigabytes stands that of
a kernel which copies as many bytes as one launch moves, counted by ncu as well: a launch has a
beginning and an end, in which memory waits.
"""
import csv
import io
import os
import re
import shutil
import statistics
import subprocess

TIME, BYTES = "gpu__time_duration.sum", "dram__bytes.sum"
# operations of tensor cores on bf16, by Hopper's own instructions and by older ones
TENSOR = tuple(f"sm__ops_path_tensor_op_{op}_src_bf16_dst_fp32_sparsity_off.sum"
               for op in ("hgmma", "hmma"))
UNITS = {"ns": 1e-9, "nsecond": 1e-9}      # what --print-units base does not leave at 1
ROOF = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bench_roof.py")
COPIES = [1 << k for k in range(21, 31)]   # bytes read and written
COPY_ROUNDS = 4                            # of each, the median counts
NO_NCU = ("ncu is not in the PATH: no table by kernel; install Nsight Compute of the CUDA "
          "toolkit and add its folder")
NO_RIGHT = ("ncu may not read the GPU's counters: no table by kernel; run as root, or let the "
            "driver allow all users (module option NVreg_RestrictProfilingToAdminUsers=0)")


def base_name(kernel):
    """The name without its return type, arguments and template arguments."""
    name = re.sub(r"^void ", "", kernel.replace("(anonymous namespace)", ""))
    name = re.split(r"[<(]", name)[0].lstrip(":")
    return re.sub(r"_[0-9]+x[0-9]+.*", "", name) or kernel


def launches(text):
    """[{metric: value, "name": ...}] in order, from ncu's CSV."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        if not (row["ID"] or "").isdigit() or not row.get("Metric Value"):
            continue                        # what the program printed
        one = found.setdefault(int(row["ID"]), {"name": base_name(row["Kernel Name"])})
        one[row["Metric Name"]] = float(row["Metric Value"].replace(",", "")) * \
            UNITS.get(row["Metric Unit"], 1)
    return [found[i] for i in sorted(found)]


def ncu(command, metrics):
    command = ["ncu", "--csv", "--print-units", "base", "--clock-control", "none",
               "--cache-control", "none", "--profile-from-start", "off",
               "--metrics", ",".join(metrics), *command]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True).stdout


def copies(python):
    """[(bytes, seconds)] of kernels that copy, from few bytes to many; empty: ncu counts none."""
    if not shutil.which("ncu"):
        return []
    rounds, found = {}, launches(ncu([python, ROOF, "--copies"], (TIME, BYTES)))
    for number, x in enumerate(found):
        rounds.setdefault(number // COPY_ROUNDS, []).append((x[BYTES], x[TIME]))
    return [tuple(statistics.median(column) for column in zip(*r)) for r in rounds.values()]


def copy_seconds(sizes, moved):
    """Of a copy of so many bytes, between the sizes that were measured."""
    (least, shortest), (most, longest) = sizes[0], sizes[-1]
    if moved <= least:
        return shortest
    if moved >= most:
        return longest * moved / most
    after = next(i for i, (size, _) in enumerate(sizes) if size >= moved)
    (b0, t0), (b1, t1) = sizes[after - 1], sizes[after]
    return t0 + (t1 - t0) * (moved - b0) / (b1 - b0)


def profile(tree):
    """(launches of one step, None) or ([], why there are none)."""
    if not shutil.which("ncu"):
        return [], NO_NCU
    step = [f"{tree}/tenon", "bench", "--json", "--steps", "1", "--warmup", "0"]
    said = ncu(step, (TIME, BYTES, *TENSOR))
    if "ERROR" in said and "sm__ops" in said and not launches(said):
        print(f"ncu has no counters {' and '.join(TENSOR)} for this GPU: operations are left out")
        said = ncu(step, (TIME, BYTES))
    if "ERR_NVGPUCTRPERM" in said:
        return [], NO_RIGHT
    found = launches(said)
    if not found:
        errors = [line for line in said.splitlines() if "ERROR" in line] or ["no kernel was seen"]
        return [], f"ncu: {errors[0]}: no table by kernel"
    return found, None


def table(case, tree, roofs, sizes):
    """@sizes: of copies()"""
    step, why = profile(tree)
    if why:
        print(f"{case}: {why}", flush=True)
        return
    rows, whole = {}, sum(x[TIME] for x in step)
    for x in step:
        row = rows.setdefault(x["name"], [0, 0.0, 0.0, 0.0, 0.0])
        row[0] += 1
        row[1] += x[TIME]
        row[2] += x.get(BYTES, 0)
        row[3] += sum(x.get(name, 0) for name in TENSOR)
        row[4] += copy_seconds(sizes, x.get(BYTES, 0)) if sizes else 0
    print(f"{case}: one step, {len(step)} kernels, {whole * 1e3:.2f} ms of them, by ncu")
    print(f"  {'kernel':44} {'times':>5} {'us':>9} {'share':>6} {'GB/s':>6} {'of copy':>7} "
          f"{'as long':>7} {'TFLOP/s':>8} {'of product':>10}")
    rows["together"] = [sum(row[i] for row in rows.values()) for i in range(5)]
    for name, (n, seconds, moved, work, copied) in sorted(rows.items(), key=lambda r: -r[1][1]):
        speed = moved / seconds
        print(f"  {name[:44]:44} {n:5} {seconds * 1e6:9.1f} {100 * seconds / whole:4.0f} % "
              f"{speed / 1e9:6.0f} {100 * speed / roofs['copy']:5.0f} % "
              f"{100 * copied / seconds:5.0f} % {work / seconds / 1e12:8.0f} "
              f"{100 * work / seconds / roofs['matmul']:8.0f} %",
              flush=True)
