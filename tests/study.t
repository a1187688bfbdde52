#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The study behind `make`: arms, table, repeats, signals, what it leaves, and what the largest arm
refuses before the others are built."""
import contextlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(t.SRC, "scripts"))
import ablate    # noqa: E402
import bundle    # noqa: E402
import curve    # noqa: E402
import study    # noqa: E402
import study_arms    # noqa: E402
import study_build    # noqa: E402
import study_runs    # noqa: E402
import study_stats    # noqa: E402
import study_table    # noqa: E402

SCRATCH = os.path.join(os.path.dirname(t.SCRATCH), "study")
CONFIG, RUNS = os.path.join(SCRATCH, ".config"), os.path.join(SCRATCH, "runs")

# All arms are of a few steps.
os.environ["EXTRA_CFLAGS"] = "-Og -g0"

# Two layers, three builds, four runs; what is not named is the defconfig's.
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
    """{arm: line} of the lines of a table."""
    return {line.split()[0]: line for line in text.splitlines() if re.match(r"(\d|gpt2) +\|", line)}


def test_table():
    shutil.rmtree(RUNS, ignore_errors=True)
    configure()
    done = run("make", f"O={SCRATCH}", f"OUT={RUNS}/a")
    lines = table_lines(done.stdout)
    t.ok(done.returncode == 0 and sorted(lines) == ["0", "2", "gpt2"],
         "make_runs_the_study_and_prints_a_line_for_each_arm_beside_gpt2", t.said(done))
    loses = re.search(r"^bigram baseline, .*: (2\.\d+)(; not reached by arm gpt2, 0, 2:)?", done.stdout,
                      re.M)
    t.ok(loses and loses[2], "losing_to_the_baseline_is_said", done.stdout)
    t.ok("data: embedded corpus: " in done.stdout and not re.search("[0-9a-f]{40}", done.stdout),
         "data_is_named_and_hashes_are_not_printed", done.stdout)
    t.ok(re.search(r"^\d{4}-\d\d-\d\d, Tenon git .*; 768 tokens seen by each arm$", done.stdout,
                   re.M), "date_version_and_tokens_are_said", done.stdout)
    t.ok("estimated total time" in done.stdout, "total_time_is_estimated")
    t.ok("check: arm 4 is identical to arm 2" in done.stdout, "repeat_is_a_check")
    t.ok(lines["0"] in t.read(RUNS, "a/summary.md").decode(), "table_is_written")
    table = json.loads(t.read(RUNS, "a/table.json"))
    rows = {r["arm"]: r for r in table["rows"]}
    paired = rows["2"]["val_loss"] - rows["0"]["val_loss"]
    t.ok(rows["2"]["change"] == paired and f"{paired:+.4f}" in lines["2"],
         "change_is_against_arm_0", lines)
    t.ok(rows["2"]["parameters"] > rows["0"]["parameters"] and rows["0"]["cache_token"] <
         min(rows["2"]["cache_token"], rows["gpt2"]["cache_token"]), "arms_are_different_models", rows)
    result = rows["0"]["seeds"]["1337"]
    t.ok("sha256" in result["data"] and len(result["weights_sha256"]) == 64 and table["checks"] and
         result["label"] == "arm 0: latent attention, no mechanism", "the_json_has_the_hashes",
         result)
    return done.stdout


def test_left():
    """What stays: a checkpoint under the study's folder for the binary of the largest arm."""
    t.ok(os.readlink(f"{RUNS}/a/best") == "arm2/" + os.readlink(f"{RUNS}/a/arm2/best"),
         "the_best_checkpoint_of_the_largest_arm_is_named", os.readlink(f"{RUNS}/a/best"))
    done = run(f"{SCRATCH}/arms/arm2/tenon", "generate", "--checkpoint", f"{RUNS}/a", "--prompt",
               "int", errors="replace")
    t.ok(done.returncode == 0 and done.stdout.startswith("int"), "its_binary_generates", t.said(done))


def test_width():
    """Progress of many runs in a narrow terminal; a line of each stays five times in a run."""
    os.makedirs(f"{SCRATCH}/width", exist_ok=True)
    runs = [study_runs.Run(SimpleNamespace(iters=100, flops=1.0, title=f"arm {n}"),
                           {"seed": 1, "threads": 1}, f"{SCRATCH}/width") for n in range(4)]
    scheduler = study_runs.Scheduler([], [None] * 4)
    scheduler.active, scheduler.live = runs, True
    with mock.patch.object(study_runs, "columns", lambda: 39), \
            contextlib.redirect_stdout(io.StringIO()) as out:
        for step in range(1, 101):
            t.write(b'{"step": %d, "loss": 2.5, "grad_norm": 1}\n' % step, SCRATCH,
                    "width/metrics.jsonl")
            scheduler.show()
    pieces = [p for line in out.getvalue().split("\n") for p in line.split("\r\033[K")]
    stay = [line.rpartition("\r\033[K")[2] for line in out.getvalue().split("\n")[:-1]]
    t.ok(max(map(len, pieces)) == 39, "progress_is_cut_where_the_terminal_ends", pieces[:9])
    t.ok(stay == [f"arm {n}: {step} of 100, loss 2.500" for step in range(20, 101, 20)
                  for n in range(4)], "lines_of_loss_stay", stay)


def test_curve():
    """The picture of losses: from rows by hand, so that gnuplot alone is tried."""
    rows = "".join(json.dumps({"step": i, "loss": 5 - i / 50, "grad_norm": 1}) + "\n"
                   for i in range(1, 101))
    os.makedirs(f"{SCRATCH}/curve", exist_ok=True)
    t.write(rows.encode(), SCRATCH, "curve/metrics.jsonl")
    got = curve.points(f"{SCRATCH}/curve")
    t.ok(len(got) <= 90 and got[0] == (11, 5 - 11 / 50) and got[-1] == (100, 3), "points_are_means",
         got)
    text = curve.draw({"arm 0": f"{SCRATCH}/curve"}, 60)
    if shutil.which("gnuplot"):
        t.ok("arm 0" in text and "training loss" in text and
             max(map(len, text.splitlines())) <= 60, "gnuplot_draws_them", text)
    else:
        t.ok(text == "", "without_gnuplot_there_is_no_picture", text)
    t.ok(curve.draw({"arm 0": f"{SCRATCH}/nowhere"}, 60) == "", "no_rows_no_picture")


def test_again(first):
    at = os.stat(f"{RUNS}/a/arm0/metrics.jsonl").st_mtime_ns
    done = run(*study_command("a"))
    t.ok(done.returncode == 0 and table_lines(done.stdout) == table_lines(first),
         "running_again_prints_the_same_table", t.said(done))
    t.ok(os.stat(f"{RUNS}/a/arm0/metrics.jsonl").st_mtime_ns == at and
         "4 of 4 runs are there" in done.stdout, "running_again_trains_nothing", done.stdout)


def test_state():
    """study.json: what the report and another machine read."""
    state = json.loads(t.read(RUNS, "a/study.json"))
    arms = {arm["name"]: arm for arm in state["arms"]}
    t.ok(state["baseline"] == 0 and state["seeds"] == [1337] and arms[4]["twin"] == 2 and
         arms[2]["symbols"] == arms[4]["symbols"] and
         arms[0]["symbols"]["RA_MLA_MLP_ATTN_GATE"] == "n" and
         arms[0]["plan"]["params"] < arms[2]["plan"]["params"] and
         [r["state"] for r in state["runs"]] == ["done"] * 4, "the_state_is_a_file", state["runs"])
    t.ok(len({r["content"] for r in state["runs"]}) == 4,
         "a_repeat_is_a_run_of_its_own", state["runs"])
    for arm in state["arms"]:
        kept = t.read(RUNS, "a", arm["config"])
        t.ok(kept == t.read(f"{SCRATCH}/arms/{'arm2' if arm['twin'] else arm['folder']}/.config"),
             f"the_configuration_is_kept: {arm['title']}")


def test_shared_bytes():
    """The same seed gives tensors that two arms share the same bytes, whatever else they have."""
    values, shapes = {}, {}
    with t.folder() as d:
        bundle.tokens(f"{d}/tok", 1, 8, 256)
        for arm in ("gpt2", "arm0", "arm2"):
            done = run(f"{SCRATCH}/arms/{arm}/tenon", "dump", "--tokens", f"{d}/tok", "--out",
                       f"{d}/{arm}", "--batch", "1", "--length", "8", "--init", "3")
            if not t.ok(done.returncode == 0, f"{arm}_is_dumped", t.said(done)):
                return
            shapes[arm], values[arm], _ = bundle.bundle(f"{d}/{arm}")
    for one, other, least in (("arm0", "arm2", 20), ("gpt2", "arm2", 10)):
        shared = [n for n in values[one] if n.startswith("param.") and
                  shapes[one][n] == {**shapes[other].get(n, {}),
                                     "data_offsets": shapes[one][n]["data_offsets"]}]
        t.ok(len(shared) >= least and all(values[one][n] == values[other][n] for n in shared),
             f"{one}_and_{other}_begin_with_the_same_bytes", f"{len(shared)} {list(values[one])}")


def test_moved():
    """A built study in another place, without compiler and kconfiglib: one run is missing."""
    shutil.rmtree(f"{RUNS}/moved", ignore_errors=True)
    shutil.copytree(f"{RUNS}/a", f"{RUNS}/moved", symlinks=True)
    shutil.rmtree(f"{RUNS}/moved/arm0")
    done = run("/usr/bin/env", "PATH=/nowhere", sys.executable, "-S", "scripts/ablate.py", "--run",
               f"{RUNS}/moved")
    t.ok(done.returncode == 0 and "3 of 4 runs are there" in done.stdout and
         t.steps(f"{RUNS}/moved/arm0") and not study.first_difference(
             f"{RUNS}/moved/arm0", f"{RUNS}/a/arm0"), "a_moved_study_trains_what_it_lacks",
         t.said(done))
    done = run("make", "ablate-status", f"OUT={RUNS}/moved")
    t.ok(done.returncode == 0 and "4 of 4 runs are done; nothing runs\n" in done.stdout and
         "arm gpt2  #  validation loss" in done.stdout, "the_status_says_so", t.said(done))
    done = run("make", "ablate-status", f"OUT={SCRATCH}")
    t.ok(done.returncode == 2 and "no study.json" in done.stderr, "a_status_needs_a_study",
         t.said(done))


def test_elsewhere():
    """A study for a GPU that is built where none is: --run asks for memory, and only then."""
    state = json.loads(t.read(RUNS, "moved/study.json"))
    for arm in state["arms"]:
        arm["plan"]["memory_available"] = None if arm["name"] == 2 else 1
    t.write(json.dumps(state).encode(), RUNS, "moved/study.json")
    binary = f"{RUNS}/moved/bin/arm2"
    os.rename(binary, f"{binary}.kept")
    t.write(b"#!/bin/sh\necho tenon: no memory for $* >&2\nexit 2\n", binary)
    os.chmod(binary, 0o755)
    done = run(t.PYTHON, "scripts/ablate.py", "--run", f"{RUNS}/moved")
    t.ok(done.returncode == 2 and "arm 2: no memory for plan --check" in done.stderr,
         "memory_that_no_build_asked_for_is_asked_for", t.said(done))
    os.rename(f"{binary}.kept", binary)
    asked = []
    with mock.patch.object(study_build.study_state, "gpus", lambda: []), \
            mock.patch.object(study_build, "output",
                              lambda words, what: asked.append("--elsewhere" in words) or "{}"):
        for arch, elsewhere in itertools.product(("CPU", "CUDA"), (False, True)):
            os.makedirs(f"{SCRATCH}/arms/arch", exist_ok=True)
            t.write(f"CONFIG_ARCH_{arch}=y\n".encode(), SCRATCH, "arms/arch/.config")
            study_build.Build(SimpleNamespace(build="arch", title="arch"), SCRATCH).check(
                [], elsewhere)
    t.ok(asked == [False, False, False, True], "a_build_for_a_gpu_needs_none", asked)


def test_content():
    """Runs of another content are moved aside, one by one; the others stay."""
    shutil.rmtree(f"{RUNS}/b", ignore_errors=True)
    shutil.copytree(f"{RUNS}/a", f"{RUNS}/b", symlinks=True)
    state = json.loads(t.read(RUNS, "b/study.json"))
    for arm in state["arms"]:
        if arm["name"] == 0:
            arm["sources_sha256"] = "0" * 64
    for one in state["runs"]:
        if one["arm"] == 0:
            one["content"] = "0" * 64
    t.write(json.dumps(state).encode(), RUNS, "b/study.json")
    done = run(*study_command("b"))
    t.ok(done.returncode == 0 and re.search(r"b/arm0 is of other content \(sources\); it is now "
                                            r".*b/arm0\.old-1", done.stdout) and
         "3 of 4 runs are there" in done.stdout and os.path.exists(f"{RUNS}/b/arm0.old-1"),
         "a_run_of_other_sources_is_moved_aside", t.said(done))


def test_repro():
    """make repro: the same binary from the kept configuration, and its first steps."""
    done = run("make", f"O={SCRATCH}", "repro", f"RUN={RUNS}/a/arm0", "STEPS=5")
    t.ok(done.returncode == 0 and "first 5 steps are the same, bit for bit" in done.stdout,
         "a_run_is_repeated", t.said(done))
    rows = t.read(RUNS, "b/arm0/metrics.jsonl").decode().splitlines(True)
    row = json.loads(rows[1])
    t.write("".join([rows[0], json.dumps({**row, "loss": row["loss"] + 1}) + "\n", *rows[2:]])
            .encode(), RUNS, "b/arm0/metrics.jsonl")
    done = run("make", f"O={SCRATCH}", "repro", f"RUN={RUNS}/b/arm0", "STEPS=5")
    t.ok(done.returncode == 2 and "step 2: loss" in done.stderr, "a_difference_is_named",
         t.said(done))
    done = run("make", "repro", f"RUN={RUNS}/a/none")
    t.ok(done.returncode == 2 and "no run of a study" in done.stderr, "a_repeat_needs_a_run",
         t.said(done))


def test_words():
    """ARMS: fragments, symbols, products; a bad word is named."""
    def names(text):
        return [(e.folder, e.symbols) for e in study_arms.parse(text)]

    t.ok(names("N_LAYER=1,2+KV_HEADS=1") == [
        ("N_LAYER-1+KV_HEADS-1", {"N_LAYER": "1", "KV_HEADS": "1"}),
        ("N_LAYER-2+KV_HEADS-1", {"N_LAYER": "2", "KV_HEADS": "1"})], "symbols_make_products",
         names("N_LAYER=1,2+KV_HEADS=1"))
    t.ok(names('BLOCK="mha mlp" RA_MLA_MLP_SPARSE_MODE=rms') == [
        ("BLOCK-mha-mlp", {"BLOCK": '"mha mlp"'}),
        ("RA_MLA_MLP_SPARSE_MODE-rms", {"RA_MLA_MLP_SPARSE_MODE": '"rms"'})],
         "quotes_keep_a_value_together")
    t.ok([e.name for e in study_arms.parse("0 ra-mla-arm1+N_LAYER=2")] ==
         [0, "ra-mla-arm1+N_LAYER=2"] and [e.twin for e in study_arms.parse("2 4")] == [None, 2],
         "numbers_and_fragments_are_arms")
    t.ok([(e.name, e.fragments, e.symbols, e.label) for e in study_arms.parse("base")] ==
         [("base", [], {}, "the base as it is")] and
         [study.reference(names) for names in (["a", "b"], ["a", "base"], [1, "base"], ["base", 0], [1])] ==
         ["a", "base", "base", 0, None], "the_base_is_an_arm")
    for text, words in {"none": "none is no fragment", "N_LAYER=": "N_LAYER lacks a value",
                        '"a': "not closed", "N_LAYER=1,1": "two arms", "4": "with the 2", "9": "are 0 to 5",
                        " ": "name the arms", "ra-mla-arm1+": "nothing is no fragment"}.items():
        try:
            study_arms.parse(text)
            said = ""
        except study.StudyError as error:
            said = str(error)
        t.ok(words in said, f"a_bad_word_is_named: {text}", said)


def test_ablate():
    """make ablate: any symbol as an arm, several seeds, a base by its name."""
    done = run("make", f"O={SCRATCH}", "ablate", "BASE=tiny-gpt2", "ARMS=KV_HEADS=9",
               f"OUT={RUNS}/x")
    errors = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    t.ok(done.returncode == 2 and len(errors) == 1 and "KV_HEADS" in errors[0] and
         "arm KV_HEADS=9: " in errors[0], "an_arm_that_is_illegal_is_refused", t.said(done))
    configure(MAX_ITERS=4, EVAL_INTERVAL=4)
    done = run("make", f"O={SCRATCH}", "ablate", "ARMS=0 base RA_MLA_LATENT_DIM=4", "SEEDS=2",
               f"OUT={RUNS}/y")
    lines = {line.split(" |")[0].strip(): line for line in done.stdout.splitlines() if " | " in line}
    state = json.loads(t.read(RUNS, "y/study.json"))
    t.ok(done.returncode == 0 and {"0", "base", "RA_MLA_LATENT_DIM=4"} <= set(lines) and
         [a["symbols"] for a in state["arms"][1:]] == [{}, {"RA_MLA_LATENT_DIM": "4"}] and
         [r["folder"] for r in state["runs"]] == ["arm0", "base", "RA_MLA_LATENT_DIM-4", "arm0-seed1338",
                                                  "base-seed1338", "RA_MLA_LATENT_DIM-4-seed1338"] and
         state["command"] == "make ablate ARMS='0 base RA_MLA_LATENT_DIM=4' SEEDS=2",
         "symbols_are_arms", t.said(done))
    done = run("make", f"O={SCRATCH}", "ablate", "ARMS=base DATA_MARKOV=y", f"OUT={RUNS}/z")
    t.ok(done.returncode == 2 and "arm DATA_MARKOV=y has other data than arm base: " in done.stderr and
         not os.path.exists(f"{RUNS}/z/study.json"), "arms_of_other_data_are_refused", t.said(done))


def test_settled():
    """EARLY_STOP: only when it was asked for, and only what is settled."""
    try:
        import scipy    # noqa: F401
    except ImportError:
        t.ok(True, "a settled comparison ends # SKIP scipy is not installed")
        return
    losses = {0: [2.0, 2.1, 2.2], 1: [2.5, 2.61, 2.7], 2: [2.1, 2.0, 2.25], 3: [2.5, 2.61, 2.7]}
    arms = {n: SimpleNamespace(name=n, twin=None, leaks={"recip": "it looks"} if n == 3 else {})
            for n in losses}
    runs = [SimpleNamespace(arm=arms[n], seed=s, folder=(n, s)) for n in losses for s in range(4)]
    one = SimpleNamespace(record={"baseline": 0, "seeds": list(range(4))}, arms=arms,
                          early=study_stats.Early(0.01, 4))
    results = {(n, s): {"val_loss": x} for n in losses for s, x in enumerate(losses[n])}
    with mock.patch.object(study, "load_result", results.get):
        reason = ablate.settled(one, runs)
        said = [reason(r) for r in runs if r.seed == 3]
        t.ok(not said[0] and "settled, worse than arm 0 after 3 seeds" in said[1] and not said[2] and
             not said[3], "a_settled_comparison_ends", said)
        del results[1, 1]
        results[1, 3] = {"val_loss": 2.6}
        t.ok(not reason(runs[7]), "only_the_first_seeds_in_a_row_are_looked_at", reason(runs[7]))
        one.early = None
        t.ok(not ablate.settled(one, runs)(runs[7]), "nothing_ends_unasked")


def test_difference():
    """A loss that differs in the last bit."""
    shutil.rmtree(f"{RUNS}/b", ignore_errors=True)
    shutil.copytree(f"{RUNS}/a", f"{RUNS}/b", symlinks=True)
    path = f"{RUNS}/b/arm4/metrics.jsonl"
    rows = t.read(path).decode().splitlines(True)
    at = next(i for i, r in enumerate(rows) if json.loads(r)["step"] == 7 and "grad_norm" in r)
    row = json.loads(rows[at])
    bits = struct.pack("<q", struct.unpack("<q", struct.pack("<d", row["loss"]))[0] + 1)
    row["loss"] = struct.unpack("<d", bits)[0]
    rows[at] = json.dumps(row) + "\n"
    t.write("".join(rows).encode(), path)
    done = run(*study_command("b"))
    t.ok(done.returncode == 1 and "arm 4 is not identical to arm 2: training step 7: loss"
         in done.stderr, "difference_fails_and_names_the_first_step", t.said(done))


def test_restart():
    done = run(*study_command("b", "--restart"))
    t.ok(done.returncode == 0 and os.path.exists(f"{RUNS}/b.old-1/summary.md") and
         "arm 4 is identical to arm 2" in done.stdout, "restart_moves_the_old_study_aside",
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
        begun = wait_for_rows(f"{RUNS}/c/arm2")
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
    t.ok(begun and p.returncode == 128 + signal.SIGINT and "resumes" in err,
         "interrupt_ends_with_130", out + err)
    left = processes(f"{RUNS}/c/")
    t.ok(not left, "interrupt_leaves_no_process", left)
    kept = t.steps(f"{RUNS}/c/arm2")
    rows = study.training_rows(f"{RUNS}/c/arm2")
    t.ok(rows and kept[-1] == f"ckpt-{rows[-1][0]:06d}", "interrupt_checkpoints_the_last_step",
         f"{kept} {rows[-1:]}")


def test_killed():
    """SIGKILL of the study, and the same command at once: its runs end by themselves and go on."""
    for end in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(study_command("c"), cwd=t.SRC, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as p:
            while "arm 2 starts" not in (p.stdout.readline() or "arm 2 starts"):
                pass
            until, seen = time.monotonic() + 60, study.last_row(f"{RUNS}/c/arm2")["step"]
            while study.last_row(f"{RUNS}/c/arm2")["step"] == seen and p.poll() is None and \
                    time.monotonic() < until:
                time.sleep(0.02)
            p.send_signal(end)
            out, err = p.communicate(timeout=60)
    t.ok(p.returncode == 128 + signal.SIGINT and "in use" not in err,
         "a_study_that_was_killed_goes_on_at_once", out + err)
    left = processes(f"{RUNS}/c/")
    t.ok(not left, "a_killed_study_leaves_no_process", left)


def refused(name, symbols, *words, out="x"):
    """make ends with status 2 and one line; of the arms the largest alone is built."""
    configure(**symbols)
    shutil.rmtree(f"{SCRATCH}/arms/arm0", ignore_errors=True)
    done = run("make", f"O={SCRATCH}", f"OUT={RUNS}/{out}")
    errors = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    t.ok(done.returncode == 2 and len(errors) == 1 and all(w in errors[0] for w in words) and
         not os.path.exists(f"{SCRATCH}/arms/arm0") and not os.path.exists(f"{RUNS}/x"),
         name, t.said(done))


def test_refusals():
    text = {"DATA_TEXT": "y", "DATA_PATH": f'"{SCRATCH}/text"'}
    shards = {"DATA_SHARDS": "y", "DATA_PATH": f'"{SCRATCH}/shards"'}
    shutil.rmtree(f"{SCRATCH}/shards", ignore_errors=True)
    refused("missing_text_is_refused", text, f"{SCRATCH}/text", "make demo")
    refused("missing_shards_are_refused", shards, f"{SCRATCH}/shards", "20240520", "CONFIG_DATA_TEXT=y",
            "make mine.config all", "make demo")
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
    refused("file_as_output_folder_is_refused", {}, "OUT=DIR", out="../file/x")


def test_too_large():
    """The largest arm alone is built; its plan is refused."""
    configure(BATCH_SIZE=4096, BLOCK_SIZE=65536, RA_MLA_ABLATION_STEPS='"0,2"')
    shutil.rmtree(f"{SCRATCH}/arms/arm0", ignore_errors=True)
    done = run(*study_command("d"))
    t.ok(done.returncode == 2 and "CONFIG_BATCH_SIZE" in done.stderr and
         not os.path.exists(f"{SCRATCH}/arms/arm0/tenon"),
         "plan_of_the_largest_arm_is_checked_first", t.said(done))


def test_leaks():
    """An arm that sees the future says so itself."""
    configure(RA_MLA_MLP_GATE_POOL='"sequence"', MAX_ITERS=2, RA_MLA_ABLATION_STEPS='"0,2"')
    done = run(*study_command("e"))
    lines = table_lines(done.stdout)
    t.ok(done.returncode == 0 and " leaks " in lines["2"] and "leaks" not in lines["0"] and
         "arm 2: recip: " in done.stdout, "leaking_arm_is_marked", t.said(done))
    done = table_of("e/arm0", "e/arm2")
    lines = named_lines(done.stdout)
    t.ok(" leaks " in lines["arm2"] and "leaks" not in lines["arm0"] and
         "arm2: recip: " in done.stdout, "a_table_of_runs_marks_it_too", t.said(done))


def test_cells():
    """The table from results by hand: seeds, pairs, the arm's name."""
    def results(*losses):
        return {s: {"val_loss": x, "params": 9, "peak_bytes": 1, "tok_s": 1.0,
                    "tokens": 1, "cache_token": 1}
                for s, x in enumerate(losses)}
    arm = SimpleNamespace(flops=1.5e6, decode=None)
    label = {n: study.Entry.numbered(n).label for n in (1, 3, 5)}
    t.ok(label[1] == "the gate" and label[5] == label[3] and
         study.Entry("gpt2", [study.fragment.find(study.GPT2)]).label.startswith("plain GPT-2"),
         "arms_are_named_by_their_fragments", label)
    r = study_table.row(1, "the gate leaks", results(2.0, 3.0), results(1.5, 2.0), arm)
    t.ok(study_table.cells(r)[1] == "the gate leaks" and r["text_loss"] == "2.5000 ± 0.7071" and
         r["text_change"] == "+0.7500 ± 0.3536" and "1,500,000" in study_table.cells(r),
         "seeds_give_mean_and_deviation_of_pairs", r)
    said = " ".join(study_table.meaning([r, {**r, "arm": 0}], 2, "byte"))
    t.ok("nats per byte" in said and "against arm 0" in said and
         "± is the standard deviation over 2 seeds" in said, "the_table_says_what_it_is_of", said)
    t.ok(study_table.cells(study_table.row(0, "plain", results(None), None, arm))[3] == "not finite",
         "loss_that_is_not_finite_is_said")


ARMS = {
    "plain": "# latent attention, a plain MLP\nCONFIG_BLOCK=\"ra_mla mlp\"\nCONFIG_MLP_MLP=y\n"
             "CONFIG_MLP_RECIP=n\n",
    "gpt2": "CONFIG_MODEL_GPT2=y\nCONFIG_BLOCK=\"mha mlp\"\nCONFIG_MIXER_MHA=y\n"
            "CONFIG_MIXER_RA_MLA=n\nCONFIG_MLP_MLP=y\nCONFIG_MLP_RECIP=n\n",
}


def arms(*names):
    """ARMS as files; a list of them for ABLATION_ARMS."""
    os.makedirs(SCRATCH, exist_ok=True)
    for name in names:
        t.write(ARMS[name].encode(), SCRATCH, f"{name}.config")
    return '"' + " ".join(f"{SCRATCH}/{name}.config" for name in names) + '"'


def named_lines(text):
    return {line.split(" ")[0]: line for line in text.splitlines() if " | " in line}


def test_fragments():
    """Any fragments as arms, with the published ones and without."""
    configure(MAX_ITERS=4, EVAL_INTERVAL=4, RA_MLA_ABLATION_STEPS='"0"',
              ABLATION_ARMS=arms("gpt2"))
    done = run("make", f"O={SCRATCH}", f"OUT={RUNS}/f")
    lines = named_lines(done.stdout)
    rows = {r["arm"]: r for r in json.loads(t.read(RUNS, "f/table.json"))["rows"]}
    change = rows["gpt2"]["val_loss"] - rows["0"]["val_loss"]
    t.ok(done.returncode == 0 and {"0", "gpt2"} <= set(lines) and
         rows["gpt2"]["parameters"] != rows["0"]["parameters"] and f"{change:+.4f}" in lines["gpt2"],
         "a_fragment_is_an_arm_beside_the_published_ones", t.said(done))
    configure(MAX_ITERS=4, EVAL_INTERVAL=4, RA_MLA_ABLATION_MODE="n",
              ABLATION_ARMS=arms("plain", "gpt2"), ABLATION_SEEDS=2)
    done = run("make", f"O={SCRATCH}", f"OUT={RUNS}/g")
    lines = named_lines(done.stdout)
    t.ok(done.returncode == 0 and "latent attention, a plain MLP" in lines["plain"] and
         "±" in lines["gpt2"] and os.path.exists(f"{RUNS}/g/plain-seed1338/result.json"),
         "fragments_alone_are_a_study_against_the_first", t.said(done))
    for name, words in {"none.config": "is no fragment", "gpt2 gpt2": "two arms",
                        "a  b": "one space"}.items():
        t.write(f'CONFIG_ABLATION_ARMS="{name}"\n'.replace("gpt2", f"{SCRATCH}/gpt2.config")
                .encode(), SCRATCH, "bad.config")
        done = run("make", f"O={SCRATCH}", f"{SCRATCH}/bad.config")
        t.ok(done.returncode == 2 and words in done.stderr and "bad.config:1: " in done.stderr,
             f"arms_are_refused: {words}", t.said(done))


def table_of(*runs, **kw):
    return run("make", "table", f"RUNS={' '.join(f'{RUNS}/{r}' for r in runs)}", **kw)


def test_table_of_runs():
    """make table: run folders of any binaries."""
    done = table_of("f/arm0", "f/gpt2")
    lines = named_lines(done.stdout)
    rows = {r["arm"]: r for r in json.loads(t.read(RUNS, "f/table.json"))["rows"]}
    change = rows["gpt2"]["val_loss"] - rows["0"]["val_loss"]
    t.ok(done.returncode == 0 and f"{change:+.4f}" in lines["gpt2"] and "data: " in done.stdout and
         "arm0" in lines, "finished_runs_make_a_table", t.said(done))
    done = table_of("f/arm0", "g/plain-seed1338")
    t.ok(done.returncode == 0 and "seed" in done.stdout.splitlines()[-1],
         "what_the_runs_differ_in_is_said", t.said(done))
    shutil.rmtree(f"{RUNS}/h", ignore_errors=True)
    os.makedirs(f"{RUNS}/h")
    for name, text in {"result.json": "{", "none": "", "other": ""}.items():
        t.write(text.encode(), RUNS, "h", name)
    for bad, words in {"h": "h/result.json", "i": "i/result.json"}.items():
        done = table_of("f/arm0", bad)
        t.ok(done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr,
             f"a_folder_that_is_no_finished_run_is_refused: {bad}", t.said(done))
    result = json.loads(t.read(RUNS, "f/gpt2/result.json"))
    t.write(json.dumps({**result, "data": "other"}).encode(), RUNS, "h/result.json")
    done = table_of("f/arm0", "h")
    t.ok(done.returncode == 2 and "other data" in done.stderr, "runs_on_other_data_are_refused",
         t.said(done))
    done = run("make", "table")
    t.ok(done.returncode == 2 and 'RUNS="' in done.stderr, "table_needs_runs", t.said(done))


def main():
    os.chdir(t.SRC)
    test_cells()
    first = test_table()
    test_left()
    test_curve()
    test_width()
    test_again(first)
    test_state()
    test_shared_bytes()
    test_moved()
    test_elsewhere()
    test_difference()
    test_restart()
    test_content()
    test_repro()
    test_words()
    test_settled()
    test_interrupt()
    test_killed()
    test_refusals()
    test_too_large()
    test_leaks()
    test_fragments()
    test_table_of_runs()
    test_ablate()
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
