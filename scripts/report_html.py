# SPDX-License-Identifier: MIT
"""The report as one page of HTML that needs nothing else: tables are written here, figures
are drawn by report/report.js from the JSON in the page."""
import html
import json
import math
import os
import time
from string import Template

import report_data
import study_table
from dotconfig import DotConfig

PARTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report")
COLORS = 6                   # of report/style.css; further arms repeat them with dashes
HASH = 12                    # digits of a hash that are shown
WAYS = {"tokens": "equal tokens", "flops": "equal FLOPs", "seconds": "equal time"}


def text(x):
    return html.escape(str(x))


def minus(x):
    return x.replace("-", "−")


def si(x):
    """1234567 as 1.23 M."""
    i = max(0, min(5, int(math.log10(abs(x)) // 3))) if x else 0
    return f"{x / 1000 ** i:.3g} {'kMGTP'[i - 1] if i else ''}".strip()


def duration(seconds):
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s"


AMOUNT = {"tokens": si, "flops": si, "seconds": duration}


def colors(found):
    """{arm: (color, dash)}; the baseline is drawn in ink."""
    others = [arm.name for arm in found.compared() if arm.name != found.baseline]
    named = {name: (f"var(--c{i % COLORS + 1})", i // COLORS % 3) for i, name in enumerate(others)}
    return {**named, found.baseline: ("var(--c0)", 0)}


# ---- what the figures are drawn from

def short(x):
    """Six digits are more than a picture shows."""
    return float(f"{x:.6g}") if isinstance(x, float) else x


def packed(bands):
    return [[short(b[k]) for k in ("step", "tokens", "flops", "seconds", "loss", "low", "high")]
            for b in bands]


def figure_data(found, rows, ways):
    """What report.js reads."""
    by_arm, color = {r["arm"]: r for r in rows}, colors(found)
    return {"unit": found.unit, "baseline": found.baseline, "ways": ways,
            "depth": max((layer for run in found.runs for _, _, layer in run.statistics), default=0),
            "arms": [arm_data(arm, by_arm.get(arm.name), *color[arm.name])
                     for arm in found.compared()]}


def arm_data(arm, row, color, dash):
    runs = report_data.seeds_shown(arm)
    losses = [r["val_loss"] for r in row["seeds"].values()] if row and row["val_loss"] else []
    stats = report_data.mean_statistics(runs)
    return {
        "name": arm.name, "what": arm.label, "leaks": bool(arm.leaks), "color": color, "dash": dash,
        "curve": packed(report_data.mean_curve([r.evaluations for r in runs])),
        "training": packed(report_data.mean_curve([report_data.thinned(r.training) for r in runs])),
        "loss": row["val_loss"] if row else None,
        "low": min(losses, default=None), "high": max(losses, default=None),
        "cache": arm.plan["cache_token"], "tok_s": row and row["tok_s"], "decode": arm.decode,
        "statistics": {" ".join(key): {layer: [[s, short(v)] for s, v in values if v is not None]
                                       for layer, values in layers.items()}
                       for key, layers in stats.items()},
    }


# ---- pieces

def cell(label, content, kind="num"):
    none = "" if content else " none"
    return f'<td class="{kind}{none}" data-label="{text(label)}">{content}</td>'


def table(heads, lines, kind=""):
    """heads: [(text, class)]; lines: [(class of the row, [cells])]."""
    head = "".join(f'<th class="{k}">{text(h)}</th>' for h, k in heads)
    body = "\n".join(f'<tr class="{k}">{"".join(cells)}</tr>' for k, cells in lines)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>\n' \
        f"<tbody>\n{body}\n</tbody></table></div>"


def interval(test, reach, color):
    """The interval around the difference as a small picture; reach: of its scale, each way."""
    def x(value):
        return round(65 + 60 * max(-1, min(1, value / reach)), 1)
    if not test or test["mean"] is None:
        return ""
    line = "" if not test["verdict"] else \
        f'<line x1="{x(test["low"])}" x2="{x(test["high"])}" y1="11" y2="11" stroke="{color}" ' \
        'stroke-width="3" stroke-linecap="round" opacity=".45"/>'
    return '<svg class="interval" viewBox="0 0 130 22" role="img" aria-label="difference and ' \
        f'interval">' \
        f'<line class="grid" x1="0" x2="130" y1="11" y2="11"/><line class="axis" x1="65" x2="65" ' \
        f'y1="2" y2="20"/>{line}<circle cx="{x(test["mean"])}" cy="11" r="4.5" ' \
        f'fill="{color}"/></svg>'


def reach(tests):
    """The farthest from 0 that an interval or a difference comes."""
    return max((abs(t[k]) for t in tests if t and t["mean"] is not None
                for k in ("low", "high", "mean") if t[k] is not None), default=0) or 1


def change(test):
    """The difference, its interval under it."""
    if not test or test["mean"] is None:
        return ""
    between = f'<small>{test["low"]:+.4f} to {test["high"]:+.4f}</small>' if test["verdict"] else ""
    return minus(f'{test["mean"]:+.4f}{between}')


def verdict(word, test):
    """A word in its colour; p, and seeds that would settle it, under it."""
    kind = {"not finite": "worse", "leaks": "worse"}.get(word, word)
    more = [f"p {study_table.p_value(test['holm'])}", study_table.seeds_words(test)] \
        if test and test["verdict"] else []
    return word and f'<span class="pill {kind}">{text(word)}</span>' + \
        "".join(f"<small>{line}</small>" for line in more if line)


def arm_name(arm, color):
    return f'<b><i class="swatch" style="--c:{color}"></i>{text(arm.name)}</b>' \
        f"<small>{text(arm.label)}</small>"


# ---- sections

def main_table(found, rows):
    by_arm, color = {r["arm"]: r for r in rows}, colors(found)
    scale = reach([r["test"] for r in rows])
    heads = [("arm", ""), ("val loss", "num"), ("change", "num"), (f"± {scale:.2g}", "scale"),
             ("verdict", ""), ("parameters", "num"), ("FLOPs/" + found.unit, "num"),
             ("cache B/" + found.unit, "num"), ("peak MiB", "num"), ("tok/s, decode", "num")]
    return table(heads, [main_line(found, arm, by_arm.get(arm.name), color[arm.name][0], scale)
                         for arm in found.compared()], "cards")


def main_line(found, arm, row, color, scale):
    plan, kind = arm.plan, "leaks" if arm.leaks else "baseline" if arm.name == found.baseline else ""
    done = sum(bool(r.result) for r in arm.runs)
    cells = [cell("arm", arm_name(arm, color), "wide")]
    if row:
        test = row["test"]
        loss = text(row["text_loss"].split(" ±")[0])
        under = [f"± {row['text_loss'].split('± ')[1]}"] if "±" in row["text_loss"] else []
        under += [f"accuracy {row['text_acc']}"] if row["text_acc"] else []
        under += [f"{done} of {len(arm.runs)} seeds"] if done < len(arm.runs) else []
        word = "baseline" if arm.name == found.baseline else row["verdict"]
        cells += [cell("val loss", loss + "".join(f"<small>{u}</small>" for u in under)),
                  cell("change", change(test)),
                  cell(f"± {scale:.2g}", interval(test, scale, color), ""),
                  cell("verdict", verdict(word.split(":")[0], test), "verdict")]
    else:
        states = ", ".join(sorted({run.state for run in arm.runs}))
        cells += [cell("val loss", f"<small>{text(states)}</small>")] + [cell("", "")] * 3
    decode = f"<small>{arm.decode:,.0f}</small>" if arm.decode else ""
    cells += [cell("parameters", f"{plan['params']:,}"),
              cell(f"FLOPs/{found.unit}", si(plan["flops_token"])),
              cell(f"cache B/{found.unit}", f"{plan['cache_token']:,}"),
              cell("peak MiB", f"{row['peak_bytes'] / 2**20:.1f}" if row else ""),
              cell("tok/s, decode", (f"{row['tok_s']:,.0f}" if row else "") + decode)]
    return kind, cells


def ways_table(found, ways):
    """Differences at equal tokens, FLOPs and time, with crossings."""
    if not any(way["budget"] for way in ways.values()):
        return '<p class="soft">Nothing to compare yet: it takes finished runs of the baseline and ' \
            "of another arm that sees no future.</p>"
    color = colors(found)
    names = [n for n in next(w["arms"] for w in ways.values() if w["budget"]) if n != found.baseline]
    scale = {axis: reach([e["test"] for e in w["arms"].values()]) for axis, w in ways.items()}
    heads = [("arm", "")] + [
        (f"{words}: {AMOUNT[axis](ways[axis]['budget'])}, ± {scale[axis]:.2g}"
         if ways[axis]["budget"] else words, "") for axis, words in WAYS.items()]
    lines = [("", [cell("arm", arm_name(found.arms[name], color[name][0]), "wide")] +
              [cell(heads[i + 1][0],
                    way_cell(ways[axis]["arms"].get(name), AMOUNT[axis], scale[axis],
                             color[name][0]), "wide")
               for i, axis in enumerate(WAYS)]) for name in names]
    return table(heads, lines, "cards")


def way_cell(entry, amount, scale, color):
    if not entry or not entry["test"]:
        return '<span class="soft">no evaluation within the budget</span>'
    test, at = entry["test"], entry["crossings"]
    word = study_table.test_words(test)
    judged = f'<small>p {study_table.p_value(test["holm"])}, <span class="{test["verdict"]}">' \
        f"{word}</span></small>" if word else ""
    times = f"{len(at)} times, last " if len(at) > 1 else ""
    crossing = f"crosses {times}at {amount(at[-1])}" if at else "does not cross"
    return f"{interval(test, scale, color)}{change(test)}{judged}<small>{crossing}</small>"


def choice(kind, key, options, first):
    buttons = "".join(f'<button value="{text(value)}" aria-pressed="{str(value == first).lower()}">'
                      f"{text(words)}</button>" for value, words in options)
    return f'<span class="choice" data-for="{kind}" data-key="{key}" role="group">{buttons}</span>'


def figure(name, kind, caption, **data):
    more = "".join(f' data-{k}="{text(v)}"' for k, v in data.items())
    return f'<figure data-figure="{text(name)}" data-kind="{kind}"{more}>' \
        f"<figcaption>{caption}</figcaption></figure>"


def curves(found):
    color = colors(found)
    arms = "".join(f'<button value="{text(a.name)}" aria-pressed="true"><i class="swatch" '
                   f'style="--c:{color[a.name][0]}"></i>{text(a.name)}</button>'
                   for a in found.compared())
    views = [("validation", "Validation"), ("training", "Training")]
    views += [("difference", f"Minus {found.baseline}")] if found.baseline else []
    axes = (("tokens", "Tokens"), ("flops", "FLOPs"), ("seconds", "Time"))
    return f'<h2>Curves</h2><div class="arms" role="group" aria-label="arms shown">{arms}</div>' \
        f'<div class="bar">{choice("loss", "y", views, "validation")}' \
        f'{choice("loss", "x", axes, "tokens")}' \
        "</div>" + figure("loss", "loss", "Mean over the finished seeds of an arm, the band from the "
                          "lowest to the highest seed; before a seed is finished, the one that is "
                          "furthest. Time is that of training steps alone. Circles on the line of "
                          "zero are crossings. Touch a name above to hide its arm.")


def pareto(found):
    kinds = [("cache", "cache", f"cache, bytes per {found.unit}", "Loss against cache"),
             ("speed", "tok_s", "training tok/s", "Loss against training speed")]
    if any(arm.decode for arm in found.compared()):
        kinds.append(("decode", "decode", "decode tok/s", "Loss against decode speed"))
    plots = "".join(f"<div><h3>{title}</h3>" +
                    figure(f"pareto-{name}", "pareto", "", x=key, label=label, title=title) + "</div>"
                    for name, key, label, title in kinds)
    return "<h2>What a loss costs</h2><p class=\"soft small\">Dashed: arms that no other one beats " \
        "both ways. A bar reaches from the lowest to the highest seed; an open circle leaks, and is " \
        f'not ranked.</p><div class="pair">{plots}</div>'


def layer_statistics(found, data):
    names = sorted({name for arm in data["arms"] for name in arm["statistics"]})
    if not names:
        return ""
    arms = [a["name"] for a in data["arms"] if a["statistics"]]
    most = max(arms, key=lambda n: len(next(a for a in data["arms"] if a["name"] == n)["statistics"]))
    plots = "".join(f"<div><h3>{text(name)}</h3>" +
                    figure(f"layers-{i}", "layers", "", statistic=name) + "</div>"
                    for i, name in enumerate(names))
    return '<h2>Inside the layers</h2><p class="soft small">Gates and mixing by layer, from the ' \
        "first (faint) to the last (strong): mean over finished seeds at the steps that were logged.</p>" \
        f'<div class="bar">{choice("layers", "arm", [(n, n) for n in arms], most)}</div>' \
        f'<div class="many">{plots}</div>'


def config_values(found, arm):
    """{symbol: value} of an arm's kept configuration; {} where it is not there."""
    try:
        return DotConfig.load(os.path.join(found.out, arm.record["config"])).values
    except OSError:
        return {}


def differences(found):
    """Symbols that some arm changes, a column for each arm."""
    arms = found.compared()
    names = sorted({name for arm in arms for name in arm.record["symbols"]})
    if not names:
        return ""
    kept = {arm.name: config_values(found, arm) for arm in arms}
    heads = [("symbol", "")] + [(arm.name, "") for arm in arms]
    lines = []
    for name in names:
        values = [arm.record["symbols"].get(name, kept[arm.name].get(name, "")) for arm in arms]
        lines.append(("", [cell("", f"<code>{text(name)}</code>", "")] +
                      [cell("", f"<span class=\"mono\">{text(v)}</span>", "") for v in values]))
    return "<h2>What the arms differ in</h2>" + table(heads, lines, "pin")


def runs_table(found):
    heads = [("run", ""), ("seed", "num"), ("state", ""), ("steps", "num"), ("time", "num"),
             ("threads", "num"), ("val loss", "num"), ("weights", ""), ("note", "")]
    lines = []
    for run in found.runs:
        result, seconds = run.result or {}, run.info["seconds"]
        loss = study_table.number(result["val_loss"]) if result else ""
        lines.append(("", [
            cell("run", f"<code>{text(run.path)}</code>", "wide"), cell("seed", run.seed),
            cell("state", run.state, ""), cell("steps", f"{run.steps:,}"),
            cell("time", duration(seconds) if seconds else ""),
            cell("threads", run.info["threads"] or ""), cell("val loss", loss),
            cell("weights", f"<code>{result['weights_sha256'][:HASH]}</code>" if result else "", ""),
            cell("note", text(run.info["note"] or ""), "wide")]))
    return table(heads, lines, "cards")


def facts(found):
    """Where and from what the study was run, as a list of definitions."""
    j = found.record
    machine = j["machine"] or {}
    results = [run.result for run in found.finished()]
    named = [("command", f"<code>{text(j['command'])}</code>"),
             ("base", f"<code>{text(j['base'])}</code>"),
             ("data", text(results[0]["data"]) if results else ""),
             ("machine", machine and text(", ".join(filter(None, (
                 machine["cpu"], f"{machine['cores']} cores", machine["gpu"], machine["os"]))))),
             ("compiler", machine and text(machine["compiler"])),
             ("version", f"<code>{text(j['git']['commit'])}</code>" +
              (" with local changes" if j["git"]["dirty"] else "")),
             ("begun", text(j["created"])),
             ("one run again", f"<code>make repro RUN={text(os.path.join(found.out, found.runs[0].path))}"
              "</code> builds the exact binary and checks the first steps bit for bit"
              if found.runs else "")]
    return "<dl>" + "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in named if v) + "</dl>"


def progress(found):
    done, total = len(found.finished()), len(found.runs)
    bad = [run for run in found.runs if run.state == "failed" or
           run.state == "stopped" and not found.record["early_stop"]]
    lines = "".join(f'<p class="banner">{text(run.name)} {run.state} at step {run.steps:,}'
                    f'{": " + text(run.info["note"]) if run.info["note"] else ""}</p>' for run in bad)
    if not found.goes_on():
        return lines
    return f'{lines}<p class="banner">{done} of {total} runs are finished, and the figures are of ' \
        "those; <code>make report</code> renders again.<br>" \
        f'<progress max="{total}" value="{done}"></progress></p>'


def page(found, rows, ways, lede, notes, checks):
    """The whole page."""
    data = figure_data(found, rows, ways)
    j = found.record
    body = [
        '<p class="over">Tenon study</p>', f"<h1>{text(j['name'])}</h1>",
        f'<p class="soft">{len(found.compared())} arms × {len(j["seeds"])} '
        f'{"seed" if len(j["seeds"]) == 1 else "paired seeds"}, rendered '
        f'{time.strftime("%Y-%m-%d %H:%M")}</p>',
        f'<p class="lede">{text(lede)}</p>', progress(found),
        *(f'<p class="banner">{text(line)}</p>' for line, bad in checks if bad),
        "<h2>Verdict</h2>", main_table(found, rows),
        *(f'<p class="small soft">{text(line)}</p>' for line in notes),
        curves(found),
        "<h2>Three ways to compare</h2>",
        '<p class="soft small">Loss minus that of the baseline where every ranked run still is: an arm '
        "that is stopped early by a budget has not finished its schedule of learning rates, which "
        "counts against it. Times are of runs that share a machine.</p>",
        ways_table(found, ways), pareto(found), layer_statistics(found, data), differences(found),
        "<h2>What was run, and how to run it again</h2>", facts(found),
        *(f'<p class="small soft">{text(line)}</p>' for line, bad in checks if not bad),
        runs_table(found)]
    parts = {}
    for name, file in (("style", "style.css"), ("script", "report.js"), ("page", "page.html")):
        with open(os.path.join(PARTS, file), encoding="utf-8") as f:
            parts[name] = f.read()
    return Template(parts.pop("page")).substitute(
        parts, title=text(f"{j['name']}: study"), body="\n".join(filter(None, body)),
        data=json.dumps(data, allow_nan=False).replace("</", "<\\/"))
