#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What tenon compress found as one page of HTML that needs nothing else, or as a picture.

    report_compress.py F.json OUT.html
    report_compress.py F.json... OUT.svg

Figures: energies of the means by rank; error, perplexity and accuracy by width; error along
the sequence at the largest width that is not full. The picture has of each file energies of keys
and the error.
"""
import html
import json
import math
import os
import re
import sys
from string import Template

from plain import plain

PARTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 300, 58, 36, 10
COLORS = 6                      # of report/style.css; further lines repeat them with dashes
DASHES = ("", "7 4", "2 4")
WIDE = 10                       # of a range: from there on its axis is logarithmic
LEGEND = 140                    # of a figure of the picture, beside it
LEAST = 1e-12                   # of an error on a logarithmic axis: less is rounding
EXACT = 1e-9                    # of an error that is


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


def plot(across, lines, log):
    """Elements of a figure of lines, {name: [(x, y)]}; none where there is no point."""
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
    return "".join(parts)


def figure(title, across, up, lines, log=False):
    parts = plot(across, lines, log)
    if not parts:
        return ""
    legend = " ".join(
        f'<span><svg width="26" height="10" style="display:inline;width:26px"><line x1="0" x2="26" '
        f'y1="5" y2="5" stroke-width="2" {style(i)}/></svg> {text(name)}</span>' for i, name in enumerate(lines))
    return f'<figure><figcaption><b>{text(title)}</b> {text(up)}</figcaption>' \
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}" ' \
        f'style="max-width:{WIDTH}px;width:100%">{parts}</svg>' \
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


# ---- the picture

def panel(title, x, y, across, lines, log):
    """One figure of it, its legend on the right."""
    legend = "".join(
        f'<line x1="{WIDTH}" x2="{WIDTH + 22}" y1="{TOP + 16 * i}" y2="{TOP + 16 * i}" stroke-width="2" '
        f'{style(i)}/><text x="{WIDTH + 28}" y="{TOP + 16 * i + 4}">{text(name)}</text>'
        for i, name in enumerate(lines))
    return f'<g transform="translate({x} {y})"><text x="{LEFT}" y="-6" font-weight="bold">' \
        f"{text(title)}</text>{plot(across, lines, log)}{legend}</g>"


def errors(found):
    """Without full widths, whose error is rounding and would take most of the axis."""
    lines = by_way(found, lambda r: r["error"])
    return {name: [(d, e) for d, e in line if e > EXACT] for name, line in lines.items()}


def row(name, y, found):
    return panel(f"{name}: energy of keys", 0, y, "rank", energies(found, "M_K"), False) + \
        panel(f"{name}: error of outputs", WIDTH + LEGEND, y, "d", errors(found), True)


def picture(files):
    """On white paper, whatever the reader's colours: the page's for that."""
    high = HEIGHT + 24
    rows = [of_file(path, lambda found, i=i, path=path: row(
        os.path.splitext(os.path.basename(path))[0], high * i + 24, found)) for i, path in enumerate(files)]
    colours = " ".join(re.findall(r"--(?:c\d|line): #\w+;", part("style.css").split("@media")[0]))
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (WIDTH + LEGEND)} {high * len(files)}" ' \
        f'font-family="sans-serif" font-size="11"><style>:root {{ {colours} }} ' \
        '.grid { stroke: var(--line); }</style>' \
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(rows)}</svg>\n'


def part(name):
    with open(os.path.join(PARTS, name), encoding="utf-8") as f:
        return f.read()


def of_file(path, draw):
    """What draw() makes of a file; ends where compress did not write it."""
    try:
        with open(path, encoding="utf-8") as f:
            return draw(json.load(f))
    except (ValueError, KeyError, TypeError, AttributeError):
        return sys.exit(f"report_compress.py: {plain(path)} is no file that tenon compress wrote")


def main():
    *files, out = sys.argv[1:] or [""]
    if not files or (len(files) > 1 and not out.endswith(".svg")):
        sys.exit("report_compress.py: which file, and which page: report_compress.py F.json OUT.html, "
                 "or a picture: report_compress.py F.json... OUT.svg")
    try:
        made = picture(files) if out.endswith(".svg") else Template(part("page.html")).substitute(
            title="Compressed states", style=part("style.css"), body=of_file(files[0], page), data="{}",
            script="")
        with open(out, "w", encoding="utf-8") as f:
            f.write(made)
    except OSError as error:
        sys.exit(f"report_compress.py: {plain(error.filename)}: {error.strerror}")


if __name__ == "__main__":
    main()
