#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What tenon compress found as one page of HTML that needs nothing else.

    report_compress.py F.json OUT.html

Figures: energies of the means by rank; error, perplexity and accuracy by width; error along
the sequence at the largest width that is not full.
"""
import html
import json
import math
import os
import sys
from string import Template

from plain import plain

PARTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 300, 58, 36, 10
COLORS = 6                      # of report/style.css; further lines repeat them with dashes
DASHES = ("", "7 4", "2 4")
WIDE = 10                       # of a range: from there on its axis is logarithmic
LEAST = 1e-12                   # of an error on a logarithmic axis: less is rounding


def text(x):
    return html.escape(str(x))


# ---- figures

def linear(low, high):
    step = 10 ** math.floor(math.log10((high - low) or 1))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if (high - low) / s <= 6)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    return lambda x: (x - low) / ((high - low) or 1), [(x, f"{x:.6g}") for x in ticks]


def logarithmic(low, high):
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, math.ceil((last - first) / 6))
    return (lambda x: (math.log10(x) - first) / ((last - first) or 1),
            [(10.0 ** e, f"1e{e}") for e in range(first, last + 1, step)])


def style(i):
    dash = DASHES[i // COLORS % len(DASHES)]
    return f'stroke="var(--c{i % COLORS + 1})" stroke-dasharray="{dash}"'


def figure(title, across, up, lines, log=False):
    """lines: {name: [(x, y)]}"""
    if log:
        lines = {name: [(x, max(y, LEAST)) for x, y in line] for name, line in lines.items()}
    every = [p for line in lines.values() for p in line]
    if not every:
        return ""
    xs, ys = zip(*every)
    log = log and max(ys) >= WIDE * min(ys)
    fx, tx = linear(min(xs), max(xs))
    fy, ty = (logarithmic if log else linear)(min(ys), max(ys))

    def at(x, y):
        return (round(LEFT + fx(x) * (WIDTH - LEFT - 10), 1),
                round(HEIGHT - BOTTOM - fy(y) * (HEIGHT - BOTTOM - TOP), 1))
    parts = []
    for value, label in tx:
        x, y = at(value, min(ys))[0], HEIGHT - BOTTOM
        parts.append(f'<text class="tick" x="{x}" y="{y + 16}" text-anchor="middle">{label}</text>')
    for value, label in ty:
        y = at(min(xs), value)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 10}" y1="{y}" y2="{y}"/>'
                     f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{label}'
                     "</text>")
    for i, line in enumerate(lines.values()):
        points = " ".join(f"{x},{y}" for x, y in (at(*p) for p in line))
        parts.append(f'<polyline points="{points}" fill="none" stroke-width="2" {style(i)}/>')
    parts.append(f'<text class="tick" x="{WIDTH - 10}" y="{HEIGHT - 4}" text-anchor="end">'
                 f"{text(across)}</text>")
    legend = " ".join(
        f'<span><svg width="26" height="10" style="display:inline;width:26px"><line x1="0" x2="26" '
        f'y1="5" y2="5" stroke-width="2" {style(i)}/></svg> {text(name)}</span>' for i, name in enumerate(lines))
    return f'<figure><figcaption><b>{text(title)}</b> {text(up)}</figcaption>' \
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}" ' \
        f'style="max-width:{WIDTH}px;width:100%">{"".join(parts)}</svg>' \
        f'<p class="soft">{legend}</p></figure>'


def way(row):
    own = row["row"] in ("select", "vectorised")
    return row["row"] if own else f"{row['row']}, {row['basis']}"


def by_way(found, value):
    """{way: [(d, value(row))]}"""
    lines = {}
    for row in found["rows"]:
        lines.setdefault(way(row), []).append((row["d"], value(row)))
    return {name: sorted(line) for name, line in lines.items()}


def energies(found, what):
    return {f"layer {site['layer']}, head {h}":
            [(r + 1, e) for r, e in enumerate(head[what]["energy"])]
            for site in found["layers"] for h, head in enumerate(site["heads"])}


def spans(found):
    """(d, {way: [(span, mean over heads)]}) at the largest width below the narrowest key."""
    full = min(site["K"] for site in found["layers"])
    d = max((r["d"] for r in found["rows"] if r["d"] < full), default=full)
    lines = {}
    for row in found["rows"]:
        heads = [h["spans"] for site in row["heads"] for h in site]
        if row["d"] == d:
            lines[way(row)] = [(i + 1, sum(part) / len(part)) for i, part in enumerate(zip(*heads))
                               if None not in part]
    return d, lines


# ---- tables

def table(heads, lines):
    head = "".join(f'<th class="num">{text(h)}</th>' for h in heads)
    body = "\n".join("<tr>" + "".join(f'<td class="num">{text(c)}</td>' for c in line) + "</tr>"
                     for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n' \
        "</tbody></table></div>"


def ranks(found):
    lines = [[site["layer"], h, what, *(head[what][f"r{r}"] for r in (90, 95, 99)),
              f"{head[what]['entropy_rank']:.2f}", f"{head[what]['participation']:.2f}"]
             for site in found["layers"] for h, head in enumerate(site["heads"])
             for what in ("M_K", "M_V", "C_q")]
    return table(["layer", "head", "mean", "r90", "r95", "r99", "entropy rank", "participation"],
                 lines)


def costs(found):
    acc = "acc" in found["test"]
    lines = [[way(r), r["d"], f"{r['error']:.3g}", f"{r['loss']:.4f}", f"{r['ppl']:.4f}"] +
             ([f"{r['acc']:.4f}"] if acc else []) for r in found["rows"]]
    return table(["way", "d", "error", "loss", "perplexity"] + ["accuracy"] * acc, lines)


# ---- the page

def page(found):
    test, d_lines = found["test"], spans(found)
    figures = [figure(f"Energy of {what}", "rank", "share of the first eigenvalues",
                      energies(found, what)) for what in ("M_K", "M_V", "C_q")]
    figures += [
        figure("Error of outputs", "d", "share of the squares",
               by_way(found, lambda r: r["error"]), True),
        figure("Perplexity", "d", f"{test['ppl']:.4f} with whole states",
               by_way(found, lambda r: r["ppl"]), True)]
    if "acc" in test:
        figures.append(figure("Accuracy", "d", f"{test['acc']:.4f} with whole states",
                              by_way(found, lambda r: r["acc"])))
    figures.append(figure(f"Error along the sequence, d = {d_lines[0]}", "span",
                          "mean over heads", d_lines[1], True))
    said = f"{found['checkpoint']}, step {found['step']}: learned on {found['fit']['sequences']} " \
        f"sequences of {found['fit']['split']}, measured on {test['sequences']} of " \
        f"{test['split']}, where whole states have loss {test['loss']:.4f}."
    reads = sorted({(r["d"], int(r["weights_read_a_step"])) for r in found["rows"]
                    if r["row"] == "vectorised"})
    note = "Vectorised reads weights at every step, for a head of the first layer " + \
        ", ".join(f"{n:,} at d = {d}" for d, n in reads) + "." if reads else ""
    return f"<h1>Compressed states</h1><p>{text(said)} {text(note)}</p>" \
        f'<div class="pair">{"".join(figures)}</div><h2>Ranks</h2>{ranks(found)}' \
        f"<h2>Costs</h2>{costs(found)}"


def part(name):
    with open(os.path.join(PARTS, name), encoding="utf-8") as f:
        return f.read()


def main():
    if len(sys.argv) != 3:
        sys.exit("report_compress.py: which file, and which page: report_compress.py F.json OUT.html")
    try:
        with open(sys.argv[1], encoding="utf-8") as f:
            found = json.load(f)
        body = page(found)
        out = Template(part("page.html")).substitute(
            title="Compressed states", style=part("style.css"), body=body, data="{}", script="")
        with open(sys.argv[2], "w", encoding="utf-8") as f:
            f.write(out)
    except OSError as error:
        sys.exit(f"report_compress.py: {plain(error.filename)}: {error.strerror}")
    except (ValueError, KeyError, TypeError, AttributeError):
        sys.exit(f"report_compress.py: {plain(sys.argv[1])} is no file that tenon compress wrote")


if __name__ == "__main__":
    main()
