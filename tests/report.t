#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The report of a study: its numbers against scipy, what it marks and refuses, and the page in a
browser. The studies are written here; nothing is trained."""
import contextlib
import csv
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(t.SRC, "scripts"))
import report    # noqa: E402
import report_data    # noqa: E402
import study_stats    # noqa: E402
import study_table    # noqa: E402

SCRATCH = os.path.join(os.path.dirname(t.SCRATCH), "report")
STEPS, EVERY = 40, 5         # of a run, and between evaluations
SEEDS = (7, 8, 9, 10)
# {arm: (difference to arm 0, spread of it over seeds)}
ARMS = {"0": (0, 0), "1": (-.2, .01), "2": (.01, .05), "3": (-.2, .01), "leaky": (-2, .1)}
EVIL = "</script><b>bold & bright</b>"
PHONE, DESK = 390, 1280      # widths in pixels
# Figures of the study; those inside the layers are of one arm and hide with none.
FIGURES = {"loss", "pareto-cache", "pareto-speed", "pareto-decode", "layers-0", "layers-1"}


# ---- a study by hand

def rows(arm, seed, final, steps):
    """metrics.jsonl: a loss that falls to @final, evaluations, two statistics of two layers."""
    noise = random.Random(f"{arm} {seed}")
    for step in range(1, steps + 1):
        loss = None if final is None and step > STEPS // 2 else \
            (final or 3) + 2 * math.exp(-step / 6) * (1 - .3 * (arm == "2")) - 2 * math.exp(-STEPS / 6)
        yield {"step": step, "tokens": 64 * step, "loss": loss, "lr": .1,
               "grad_norm": noise.random(), "tok_s": 100.0, "ms": 10 + (arm == "1"),
               "mfu": None, "peak_bytes": 2**20, "skipped": 0}
        if step % EVERY == 0:
            yield {"step": step, "split": "val", "loss": loss, "ppl": None}
            for layer in (0, 1):
                yield {"step": step, "layer": layer, "mixer": "recip",
                       "gate_mean": .9 - step / 100 - layer / 10, "cross_ratio": noise.random()}


def write_run(out, folder, arm, seed, final, state):
    os.makedirs(f"{out}/{folder}")
    steps = STEPS if state == "done" else STEPS // 2
    with open(f"{out}/{folder}/metrics.jsonl", "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows(arm, seed, final, steps))
        f.write('{"step": 41, "lo')     # as a run that is writing leaves it
    if state == "done":
        with open(f"{out}/{folder}/result.json", "w") as f:
            json.dump({"val_loss": final, "best_loss": final, "unit": "byte", "params": 1000,
                       "cache_token": 64, "peak_bytes": 2**20, "tok_s": 90.0 + len(arm), "tokens":
                       64 * STEPS, "bigram_loss": 3.5, "data": "words, sha256 " + "0" * 64,
                       "build": "git " + "0" * 40, "weights_sha256": f"{arm}{seed}" * 9}, f)


def final_loss(arm, seed):
    shift, spread = ARMS.get(arm, (0, 0))
    return 3 + random.Random(seed).gauss(0, .1) + shift + random.Random(f"{arm}{seed}").gauss(0, spread)


def number(arm):
    return int(arm) if arm and arm.isdigit() else arm


def write_study(name, arms=tuple(ARMS), seeds=SEEDS, twins=(), states=(), losses=()):
    """OUT of a study: twins {repeat: arm}, states {(arm, seed): state}, losses likewise."""
    out, twins, states, losses = f"{SCRATCH}/{name}", dict(twins), dict(states), dict(losses)
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(out)
    runs = []
    for arm, seed in itertools.product([*arms, *twins], seeds):
        state = states.get((arm, seed), "done")
        runs.append({"arm": number(arm), "seed": seed, "folder": f"{arm}-seed{seed}",
                     "threads": 1 + (arm in twins), "state": state, "steps": STEPS, "started": None, "seconds": 4.5, "note": ""})
        if state != "waiting":
            source = twins.get(arm, arm)
            write_run(out, runs[-1]["folder"], source, seed,
                      losses.get((arm, seed), final_loss(source, seed)), state)
    with open(f"{out}/study.json", "w") as f:
        json.dump({     # names of published arms are numbers; no machine is known before a run
            "format": 1, "name": name, "unit": "byte", "command": "make ablate", "base": "tiny",
            "baseline": 0, "seeds": list(seeds), "created": "2026-01-01",
            "machine": None if set(states.values()) == {"waiting"} else
            {"cpu": "a cpu", "cores": 2, "gpu": None, "os": "Linux", "compiler": "gcc"},
            "git": {"commit": "0" * 40, "dirty": False}, "early_stop": None,
            "arms": [{"name": number(arm), "title": f"arm {arm}",
                      "what": EVIL if arm == "2" else f"what {arm} is",
                      "twin": number(twins.get(arm)),
                      "leaks": {"recip": "it looks"} if arm == "leaky" else {},
                      "config": f"configs/{arm}.config", "symbols": {"CONFIG_X": f"x{arm}"},
                      "plan": {"params": 1000 + i, "flops_token": 1000.0 + 500 * (arm == "1"),
                               "cache_token": 64 + 64 * i},
                      "decode_tok_s": 50.0 + i, "sources_sha256": "", "config_sha256": ""}
                     for i, arm in enumerate([*arms, *twins])],
            "runs": runs}, f)
    return out


def render(out):
    """(status, stdout, stderr) of the command."""
    said, wrong = io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", ["report.py", out]), contextlib.redirect_stdout(said), \
            contextlib.redirect_stderr(wrong):
        status = report.main()
    return status, said.getvalue(), wrong.getvalue()


def line_of(arm, text):
    """Cells of an arm's line in a table."""
    line = next((l for l in text.splitlines() if re.match(rf"{arm} +\|", l)), "")
    return [cell.strip() for cell in line.split("|")]


def close(a, b):
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


# ---- numbers

def independent(values, base):
    """{arm: (p of Holm, low, high)}: scipy's own paired test; Holm as it is defined, by the
    least level at which an arm is rejected, instead of a running maximum."""
    from scipy import stats
    tests = {arm: stats.ttest_rel(values[arm], base) for arm in values}
    p = {arm: test.pvalue for arm, test in tests.items()}

    def rejected(level):
        left = dict(p)
        while left and min(left.values()) * len(left) <= level:
            del left[min(left, key=left.get)]
        return set(p) - set(left)
    levels = sorted({min(1.0, k * x) for x in p.values() for k in range(1, len(p) + 1)})
    holm = {arm: next((l for l in levels if arm in rejected(l * (1 + 1e-12))), 1.0) for arm in p}
    found = {}
    for arm in values:
        gap = [x - y for x, y in zip(values[arm], base)]
        half = stats.t.ppf(1 - .05 / len(p) / 2, len(gap) - 1) * stats.sem(gap)
        found[arm] = (holm[arm], sum(gap) / len(gap) - half, sum(gap) / len(gap) + half)
    return found


def power(n, effect, alpha):
    """Of the paired t-test, by integrating the normal tail over the spread that is seen."""
    from scipy import integrate, stats
    limit, shift = stats.t.isf(alpha / 2, n - 1), abs(effect) * math.sqrt(n)

    def density(s):
        return stats.chi.pdf(s * math.sqrt(n - 1), n - 1) * math.sqrt(n - 1) * \
            (stats.norm.sf(limit * s - shift) + stats.norm.cdf(-limit * s - shift))
    return integrate.quad(density, 0, 1 + 20 / math.sqrt(n), limit=200)[0]


def test_numbers(out):
    arms = ("1", "2", "3")
    found = report_data.load(out)
    made = {r["arm"]: r for r in study_table.table(found.finished(), "0")}
    want = independent({a: [final_loss(a, s) for s in SEEDS] for a in arms},
                       [final_loss("0", s) for s in SEEDS])
    for arm in arms:
        test = made[arm]["test"]
        t.ok(all(close(a, b) for a, b in zip((test["holm"], test["low"], test["high"]), want[arm])),
             f"interval_and_p_are_scipys: arm {arm}", f"{test} {want[arm]}")
    t.ok([made[a]["verdict"].split(":")[0] for a in arms] == ["better", "open", "better"],
         "verdicts_follow", made)
    test = made["2"]["test"]
    effect, needed = test["mean"] / test["sd"], test["needed"]
    chances = [power(n, effect, .05 / 3) for n in (needed - 1, needed)]
    t.ok(chances[0] < .8 <= chances[1] + 1e-6, "that_many_seeds_would_settle_it",
         f"{needed} {chances}")
    t.ok(study_stats.seeds_needed(1e-6, 1, .05) == math.inf, "what_nobody_runs_is_no_number")
    same = study_stats.judge({"a": [0.0, 0.0], "b": [.5, .5], "c": [.5]})
    t.ok([same[a].verdict for a in "abc"] == ["same", "worse", ""],
         "differences_without_spread_are_no_division_by_zero", same)


def test_early():
    """Early stop: false ones are as rare as the rule says, and false verdicts no more frequent."""
    chance, seeds, studies = .04, 6, 1500
    early = study_stats.Early(chance, seeds)
    looks = range(study_stats.PAIRS, seeds)
    shares = [early.share(n) for n in (*looks, seeds)]
    t.ok(close(sum(shares), 1) and close(sum(shares[:-1]), chance / study_stats.ALPHA),
         "the_looks_share_what_one_test_has", shares)
    draw, stops, verdicts, uncorrected = random.Random(1), 0, 0, 0
    for _ in range(studies):
        gaps = [draw.gauss(0, 1) for _ in range(seeds)]
        stopped = next((n for n in looks if study_stats.settled(gaps[:n], 1, early)), seeds)
        stops += stopped < seeds
        verdicts += study_stats.judge({"a": gaps[:stopped]}, early)["a"].verdict != "open"
        uncorrected += any(study_stats.p_value(gaps[:n]) < chance for n in looks)

    def most(rate):
        return studies * rate + 3 * math.sqrt(studies * rate * (1 - rate))
    t.ok(0 < stops <= most(chance), "false_early_stops_are_rare", stops)
    t.ok(stops <= verdicts <= most(study_stats.ALPHA), "false_verdicts_are_no_more_frequent", verdicts)
    t.ok(uncorrected > most(chance), "without_correction_they_are", uncorrected)
    gaps = {"a": [.50, .51, .50, .2], "b": [-.3, .1, .2, .1]}
    tests = study_stats.judge(gaps, early)
    t.ok(study_stats.settled(gaps["a"][:3], 2, early) == "worse" == tests["a"].verdict and
         tests["b"].verdict == "open", "what_was_settled_stays_so", [x.figures() for x in tests.values()])
    half = tests["b"].high - tests["b"].mean
    from scipy import stats
    level = 1 - study_stats.ALPHA * early.share(4) / 2
    t.ok(close(half, stats.t.ppf((1 + level) / 2, 3) * stats.sem(gaps["b"])),
         "the_interval_is_that_of_the_look")


def test_ways(out):
    """Budgets and crossings of straight lines, then of the study."""
    down, flat = [(0, 4.0), (10, 2.0)], [(0, 3.0), (10, 3.0)]
    t.ok(study_stats.crossings({1: down}, {1: flat}) == [5.0] and
         study_stats.crossings({1: flat}, {1: flat}) == [] and
         study_stats.crossings({1: down}, {2: flat}) == [], "crossings_are_where_lines_cross")
    t.ok(study_stats.at(down, 2.5) == 3.5 and study_stats.at(down, 11) is None and
         study_stats.at(down, 10) == 2.0, "losses_between_evaluations_are_on_a_line")
    ways = report_data.three_ways(report_data.load(out))
    t.ok(close(ways["flops"]["budget"], 64 * STEPS * 1000.0) and
         close(ways["seconds"]["budget"], STEPS * .010) and ways["tokens"]["budget"] == 64 * STEPS,
         "the_budget_is_the_most_that_all_have", [w["budget"] for w in ways.values()])
    t.ok(set(ways["flops"]["arms"]) == {"0", "1", "2", "3"}, "an_arm_that_leaks_has_no_place", ways)
    run = next(r for r in report_data.load(out).runs if r.arm.name == "1" and r.seed == 7)
    x, curve = ways["flops"]["budget"], run.curve("flops")
    (x0, y0), (x1, y1) = next(p for p in zip(curve, curve[1:]) if p[0][0] <= x <= p[1][0])
    t.ok(close(ways["flops"]["arms"]["1"]["losses"][0], y0 + (y1 - y0) * (x - x0) / (x1 - x0)) and
         ways["flops"]["arms"]["1"]["test"]["mean"] > ways["tokens"]["arms"]["1"]["test"]["mean"],
         "an_arm_that_costs_more_has_seen_less_at_equal_flops", ways["flops"]["arms"]["1"])


def test_without_scipy(out):
    with mock.patch.object(study_stats, "scipy_stats", lambda: None):
        text = report.render(out).text
    t.ok("setup.sh report" in text and "better" not in text and "-0.19" in text,
         "without_scipy_the_means_stay_and_a_line_says_what_is_missing", text)


# ---- what is marked

def test_summary(out):
    status, text, err = render(out)
    t.ok(status == 0 and line_of("1", text) != [""], "a_study_has_a_report", text + err)
    lines = t.read(out, "summary.md").decode().splitlines()
    head = next(i for i, l in enumerate(lines) if l.startswith("arm "))
    t.ok(all(l.count("|") == lines[head].count("|") for l in lines[head:head + 6]) and
         re.fullmatch(r"[-:|]+", lines[head + 1]) and not lines[head - 1] and lines[head + 2] in text,
         "the_summary_has_the_table_of_the_terminal", lines)
    leaky = line_of("leaky", text)
    t.ok("leaks" in leaky and not any("±" in c or "to" in c for c in leaky[5:]) and
         "lowest loss is that of arm leaky" not in "\n".join(lines) and "not ranked" in lines[2],
         "an_arm_that_leaks_is_marked_and_not_ranked", f"{leaky} {lines[2]}")
    with open(f"{out}/results.csv", newline="") as f:
        made = list(csv.DictReader(f))
    t.ok(len(made) == len(ARMS) * len(SEEDS) and
         float(made[0]["val_loss"]) == final_loss("0", 7) and made[-1]["leaks"] == "1",
         "the_csv_has_a_line_for_each_run", made[:1])
    page = t.read(out, "report.html").decode()
    t.ok("<b>bold" not in page.partition("<script")[0] and page.count("</script>") == 2,
         "text_of_a_fragment_stays_text")
    t.ok(not re.search(r'(src|href)="(?!data:)|url\((?!#)|@import', page), "the_page_needs_no_other_file")


def test_repeats():
    out = write_study("repeats", arms=("0", "1"), seeds=(7, 8), twins={"4": "1"})
    status, text, _ = render(out)
    t.ok(status == 0 and "arm 4 is identical to arm 1 in 2 seeds" in text and
         line_of("4", text) == [""], "a_repeat_is_a_check_and_no_line", text)
    path = f"{out}/4-seed8/metrics.jsonl"
    lines = t.read(path).decode().splitlines(True)
    row = json.loads(lines[2])
    lines[2] = json.dumps({**row, "loss": math.nextafter(row["loss"], 9)}) + "\n"
    t.write("".join(lines).encode(), path)
    status, text, _ = render(out)
    t.ok(status == 1 and f"arm 4 seed 8 is not identical to arm 1 seed 8: training step {row['step']}: "
         "loss" in text and "training step" in t.read(out, "report.html").decode(),
         "a_repeat_that_differs_fails_and_names_the_step", text)


def test_unfinished():
    arms = ("0", "1")
    out = write_study("running", arms, states={("0", 10): "running", ("1", 9): "running",
                                               ("1", 10): "waiting"})
    status, text, err = render(out)
    t.ok(status == 0 and "5 of 8 runs are finished" in text and "worse" not in text and
         "+" not in line_of("0", text)[5], "a_study_that_runs_has_a_report", text + err)
    pair = report_data.load(out)
    test = {r["arm"]: r for r in study_table.table(pair.finished(), "0")}["1"]["test"]
    t.ok(test["n"] == 2, "only_seeds_that_both_have_are_paired", test)
    out = write_study("begun", arms, states={(a, s): "waiting" for a in arms for s in SEEDS})
    status, text, err = render(out)
    t.ok(status == 0 and "0 of 8 runs" in text, "a_study_without_a_run_has_a_report", text + err)
    out = write_study("infinite", arms, losses={("1", 8): None})
    status, text, err = render(out)
    t.ok(status == 0 and "not finite" in line_of("1", text) and "better" not in text,
         "a_loss_that_is_not_finite_gives_no_verdict", text + err)
    out = write_study("single", arms, seeds=(7,))
    status, text, err = render(out)
    t.ok(status == 0 and "one seed" in text and "interval" not in text,
         "one_seed_gives_no_verdict", text + err)
    return out


def test_refusals(out):
    for name, text, words in (("none", None, "no study is there"), ("torn", '{"format": 1', "study.json"),
                              ("later", '{"format": 2}', "format 2"), ("less", '{"format": 1}', "damaged")):
        folder = f"{SCRATCH}/{name}"
        os.makedirs(folder, exist_ok=True)
        if text:
            t.write(text.encode(), folder, "study.json")
        status, _, err = render(folder)
        t.ok(status == 2 and words in err and err.count("\n") == 1, f"refused_in_one_line: {name}", err)
    os.unlink(f"{out}/0-seed7/result.json")
    status, _, err = render(out)
    t.ok(status == 2 and "0-seed7/result.json" in err, "a_finished_run_without_result_is_named", err)


# ---- the page

# Run in the page: choose everything, point at every figure, hide an arm; then tell the frame around.
PROBE = """<script>
const said = {width: innerWidth, wide: document.documentElement.scrollWidth, least: {}, tips: 0};
const points = () => figures.map(f => [f.element.dataset.figure, +f.element.dataset.points]);
function look() {
	for (const [name, n] of points())
		said.least[name] = Math.min(said.least[name] ?? Infinity, n);
	for (const {element} of figures) {
		const drawn = element.querySelector("svg"), at = drawn.getBoundingClientRect();
		drawn.dispatchEvent(new PointerEvent("pointermove", {clientX: at.x + at.width / 2,
			clientY: at.y + at.height / 2}));
		said.tips += element.querySelector(".tip").style.visibility === "visible";
		said.outside = said.outside || at.right > innerWidth + 1;
	}
}
look();
for (const button of document.querySelectorAll(".choice button")) { button.click(); look(); }
const all = points();
document.querySelector(".arms button:nth-child(2)").click();
said.hides = points().every(([name, n], i) => name.startsWith("layers") || n < all[i][1]);
said.scrolls = [...document.querySelectorAll(".cards")].some(e => e.scrollWidth > e.parentNode.clientWidth + 1);
said.text = Math.min(...[...document.querySelectorAll("td, p, dd")].map(e => parseFloat(getComputedStyle(e).fontSize)));
parent.postMessage(said, "*");
</script></html>"""
FRAMES = """<pre id="said"></pre><script>
const said = [];
addEventListener("message", e => { said.push(e.data);
	document.getElementById("said").textContent = JSON.stringify(said); });
</script>""" + "".join(f'<iframe src="probe.html" width="{w}" height="900"></iframe>'
                       for w in (PHONE, DESK))


def test_page(out):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        t.ok(True, "the_page_in_a_browser # skip no chromium; sh scripts/setup.sh browser")
        return
    page = t.read(out, "report.html").decode()
    t.write(page.replace("</html>", PROBE).encode(), out, "probe.html")
    t.write(FRAMES.encode(), out, "frames.html")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={SCRATCH}/browser", "--enable-logging=stderr", "--dump-dom",
         "--virtual-time-budget=10000", f"file://{out}/frames.html"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", timeout=120)
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    t.ok(done.returncode == 0 and not errors, "the_console_says_nothing", "\n".join(errors))
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout)
    frames = {f["width"]: f for f in json.loads(found[1])} if found and found[1] else {}
    t.ok(set(frames) == {PHONE, DESK}, "the_page_runs_at_both_widths", done.stderr[-2000:])
    for width, f in frames.items():
        t.ok(set(f["least"]) == FIGURES and all(f["least"].values()),
             f"every_figure_has_data_in_every_view: {width}", f["least"])
        t.ok(f["wide"] <= width and not f.get("outside") and not f["scrolls"], f"nothing_is_wider_than_the_page: {width}", f)
        t.ok(f["tips"] and f["tips"] % len(FIGURES) == 0, f"every_figure_says_its_values: {width}", f)
        t.ok(f["hides"], f"a_touched_arm_hides: {width}", f)
        t.ok(f["text"] >= 13, f"text_is_legible: {width}", f["text"])


def main():
    os.chdir(t.SRC)
    out = write_study("whole")
    if study_stats.scipy_stats():
        test_numbers(out)
        test_early()
        test_ways(out)
        test_without_scipy(out)
        test_summary(out)
        test_repeats()
        test_refusals(test_unfinished())
        test_page(out)
    else:
        t.ok(True, "the_report # skip no scipy; sh scripts/setup.sh report")
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
