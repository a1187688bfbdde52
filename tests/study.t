#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The study behind `make`: arms, table, repetition, signals, and what the largest arm refuses
before the others are built."""
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(t.SRC, "scripts"))
import study    # noqa: E402

SCRATCH = os.path.join(os.path.dirname(t.SCRATCH), "study")
CONFIG, RUNS = os.path.join(SCRATCH, ".config"), os.path.join(SCRATCH, "runs")

# For binaries that only refuse.
QUICK = dict(os.environ, EXTRA_CFLAGS="-O1")

# Two layers, two builds, three arms; what is not named is the defconfig's.
SYMBOLS = {
    "N_LAYER": 2, "N_HEAD": 2, "N_EMBD": 16, "BLOCK_SIZE": 32, "BATCH_SIZE": 2,
    "RA_MLA_LATENT_DIM": 8, "RA_MLA_RA_WINDOW": 8, "RA_MLA_MLP_SPARSE_K": 4, "MAX_ITERS": 12,
    "EVAL_INTERVAL": 6, "EVAL_SAMPLES": 2, "CHECKPOINT_INTERVAL": 5, "WARMUP_STEPS": 2,
    "RA_MLA_ABLATION_STEPS": '"0,2,4"',
}


def run(*cmd, **kw):
    return subprocess.run(cmd, cwd=t.SRC, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, **kw)


def configure(**symbols):
    """SYMBOLS with changes, on top of the tiny study."""
    os.makedirs(SCRATCH, exist_ok=True)
    fragment = os.path.join(SCRATCH, "study.config")
    with open(fragment, "w") as f:
        f.writelines(f"CONFIG_{k}={v}\n" for k, v in {**SYMBOLS, **symbols}.items())
    done = run(t.PYTHON, "scripts/kconfig.py", "--config", CONFIG, "--gen", SCRATCH, "defconfig",
               "tiny-ra-mla-full", fragment)
    if done.returncode:
        print("Bail out! the study's configuration is refused")
        sys.exit(done.stderr)


def study_command(out, *flags):
    return [t.PYTHON, "scripts/ablate.py", "--config", CONFIG, "--objtree", SCRATCH, "--out",
            os.path.join(RUNS, out), *flags]


def table_lines(text):
    """{step: line} of the lines that begin with a step's number."""
    return {line.split()[0]: line for line in text.splitlines() if line[:2].strip().isdigit()}


def test_table():
    shutil.rmtree(RUNS, ignore_errors=True)
    configure()
    done = run("make", f"O={SCRATCH}", f"OUT={RUNS}/a")
    lines = table_lines(done.stdout)
    t.ok(done.returncode == 0 and sorted(lines) == ["0", "2", "4"],
         "make_runs_the_study_and_prints_a_line_for_each_step", t.said(done))
    t.ok("bigram" in done.stdout and "sha256" in done.stdout, "baseline_and_corpus_are_named")
    t.ok("estimated total time" in done.stdout, "total_time_is_estimated")
    t.ok("step 4 is identical to step 2" in done.stdout, "repeated_step_is_identical")
    t.ok(lines["0"] in t.read(RUNS, "a/table.txt").decode(), "table_is_written")
    rows = {r["step"]: r for r in json.loads(t.read(RUNS, "a/table.json"))["rows"]}
    paired = rows[2]["val_loss"] - rows[0]["val_loss"]
    t.ok(rows[2]["change"] == paired and f"{paired:+.4f}" in lines["2"],
         "change_is_against_step_0", lines)
    t.ok(rows[2]["parameters"] > rows[0]["parameters"], "arms_are_different_models")
    return done.stdout


def test_again(first):
    at = os.stat(f"{RUNS}/a/step0/metrics.jsonl").st_mtime_ns
    done = run(*study_command("a"))
    t.ok(done.returncode == 0 and table_lines(done.stdout) == table_lines(first),
         "running_again_prints_the_same_table", t.said(done))
    t.ok(os.stat(f"{RUNS}/a/step0/metrics.jsonl").st_mtime_ns == at, "running_again_trains_nothing")


def test_difference():
    """A loss that differs in the last bit."""
    shutil.rmtree(f"{RUNS}/b", ignore_errors=True)
    shutil.copytree(f"{RUNS}/a", f"{RUNS}/b", symlinks=True)
    path = f"{RUNS}/b/step4/metrics.jsonl"
    rows = t.read(path).decode().splitlines(True)
    at = next(i for i, r in enumerate(rows) if json.loads(r)["step"] == 7 and "grad_norm" in r)
    row = json.loads(rows[at])
    bits = struct.pack("<q", struct.unpack("<q", struct.pack("<d", row["loss"]))[0] + 1)
    row["loss"] = struct.unpack("<d", bits)[0]
    rows[at] = json.dumps(row) + "\n"
    t.write("".join(rows).encode(), path)
    done = run(*study_command("b"))
    t.ok(done.returncode == 1 and "step 4 is not identical to step 2: training step 7: loss"
         in done.stderr, "difference_fails_and_names_the_first_step", t.said(done))


def test_restart():
    done = run(*study_command("b", "--restart"))
    t.ok(done.returncode == 0 and os.path.exists(f"{RUNS}/b.old-1/table.txt") and
         "step 4 is identical to step 2" in done.stdout, "restart_moves_the_old_study_aside",
         t.said(done))


def wait_for_rows(folder, seconds=60):
    """Whether a run came to train."""
    end = time.monotonic() + seconds
    while not study.last_row(folder) and time.monotonic() < end:
        time.sleep(0.02)
    return study.last_row(folder)


def processes(word):
    """Command lines that have a word."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = t.read("/proc", pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found += [line] if word in line else []
    return found


def test_interrupt():
    """Ctrl-C while the arms train; then the end of the study with the same command."""
    configure(MAX_ITERS=3000, RA_MLA_ABLATION_STEPS='"0,2"', EVAL_INTERVAL=3000)
    shutil.rmtree(f"{RUNS}/c", ignore_errors=True)
    with subprocess.Popen(study_command("c"), cwd=t.SRC, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as p:
        begun = wait_for_rows(f"{RUNS}/c/step2")
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
    t.ok(begun and p.returncode == 128 + signal.SIGINT and "resumes" in err,
         "interrupt_ends_with_130", out + err)
    left = processes(f"{RUNS}/c/")
    t.ok(not left, "interrupt_leaves_no_process", left)
    kept = t.steps(f"{RUNS}/c/step2")
    rows = study.training_rows(f"{RUNS}/c/step2")
    t.ok(rows and kept[-1] == f"step-{rows[-1][0]:06d}", "interrupt_checkpoints_the_last_step",
         f"{kept} {rows[-1:]}")


def refused(name, symbols, *words, out="x"):
    """make ends with status 2 and one line; of the arms the largest alone is built."""
    configure(**symbols)
    shutil.rmtree(f"{SCRATCH}/arms/step0", ignore_errors=True)
    done = run("make", f"O={SCRATCH}", f"OUT={RUNS}/{out}", env=QUICK)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    t.ok(done.returncode == 2 and len(errors) == 1 and all(w in errors[0] for w in words) and
         not os.path.exists(f"{SCRATCH}/arms/step0") and not os.path.exists(f"{RUNS}/x"),
         name, t.said(done))


def test_refusals():
    text = {"DATA_TEXT": "y", "DATA_PATH": f'"{SCRATCH}/text"'}
    shards = {"DATA_SHARDS": "y", "DATA_PATH": f'"{SCRATCH}/shards"'}
    shutil.rmtree(f"{SCRATCH}/shards", ignore_errors=True)
    refused("missing_text_is_refused", text, f"{SCRATCH}/text", "make demo")
    refused("missing_shards_are_refused", shards, f"{SCRATCH}/shards", "20240520", "make demo")
    os.makedirs(f"{SCRATCH}/shards")
    for split in ("train", "val"):
        t.write(struct.pack("<iii", 20240521, 1, 0) + bytes(1012), SCRATCH,
                f"shards/{split}_0.bin")
    refused("wrong_magic_is_refused", shards, "train_0.bin", "20240521")
    for split in ("train", "val"):
        t.write(struct.pack("<iii", 20240520, 1, 9) + bytes(1012), SCRATCH,
                f"shards/{split}_0.bin")
    refused("wrong_length_is_refused", shards, "train_0.bin", "1042")
    refused("missing_nanogpt_file_is_refused",
            {"DATA_SHARDS": "y", "DATA_PATH": f'"nanogpt:{SCRATCH}/shards"'},
            "train.bin", "No such file")
    t.write(b"", SCRATCH, "file")
    refused("file_as_output_folder_is_refused", {}, "--out", out="../file/x")


def test_too_large():
    """The largest arm alone is built; its plan is refused."""
    configure(BATCH_SIZE=4096, BLOCK_SIZE=65536, RA_MLA_ABLATION_STEPS='"0,2"')
    shutil.rmtree(f"{SCRATCH}/arms/step0", ignore_errors=True)
    done = run(*study_command("d"), env=QUICK)
    t.ok(done.returncode == 2 and "CONFIG_BATCH_SIZE" in done.stderr and
         not os.path.exists(f"{SCRATCH}/arms/step0/tenon"),
         "plan_of_the_largest_arm_is_checked_first", t.said(done))


def test_leaks():
    """An arm that sees the future says so itself."""
    configure(RA_MLA_MLP_GATE_POOL='"sequence"', MAX_ITERS=2, RA_MLA_ABLATION_STEPS='"0,2"')
    done = run(*study_command("e"), env=QUICK)
    lines = table_lines(done.stdout)
    t.ok(done.returncode == 0 and " leaks " in lines["2"] and "leaks" not in lines["0"] and
         "step 2: recip: " in done.stdout, "leaking_arm_is_marked", t.said(done))


def test_cells():
    """The table from results by hand: seeds, pairs, the arm's name."""
    def results(*losses):
        return {s: {"val_loss": x, "params": 9, "peak_bytes": 1, "tok_s": 1.0}
                for s, x in enumerate(losses)}
    t.ok(study.label(1) == "the gate" and study.label(5) == study.label(3) + " (= 3)",
         "arms_are_named_by_their_fragments")
    r = study.row(1, "the gate leaks", results(2.0, 3.0), results(1.5, 2.0))
    t.ok(study.cells(r)[1] == "the gate leaks" and r["text_loss"] == "2.5000 ± 0.7071" and
         r["text_change"] == "+0.7500 ± 0.3536", "seeds_give_mean_and_deviation_of_pairs", r)
    t.ok(study.cells(study.row(0, "plain", results(None), None))[3] == "not finite",
         "loss_that_is_not_finite_is_said")


def main():
    os.chdir(t.SRC)
    test_cells()
    first = test_table()
    test_again(first)
    test_difference()
    test_restart()
    test_interrupt()
    test_refusals()
    test_too_large()
    test_leaks()
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
