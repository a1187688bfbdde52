// SPDX-License-Identifier: MIT
// The figures of a report, from the JSON in the page. A figure is drawn anew when its width,
// its choices or the set of shown arms change; data-points says how many points it shows.
"use strict";

const study = JSON.parse(document.getElementById("study").textContent);
const hidden = new Set();
const figures = [];
const DASHES = ["", "7 4", "2 4"];

// ---- small things

function svg(tag, attributes, ...children) {
	const node = document.createElementNS("http://www.w3.org/2000/svg", tag);

	for (const [name, value] of Object.entries(attributes))
		node.setAttribute(name, value);
	node.append(...children);
	return node;
}

function html(tag, attributes, ...children) {
	const node = Object.assign(document.createElement(tag), attributes);

	node.append(...children);
	return node;
}

function si(x) {
	const units = ["", "k", "M", "G", "T", "P", "E"];
	const at = x ? Math.max(0, Math.min(6, Math.floor(Math.log10(Math.abs(x)) / 3))) : 0;

	return +(x / 1000 ** at).toPrecision(3) + units[at];
}

function time(s) {
	return s < 120 ? +s.toPrecision(3) + " s" : s < 7200 ? +(s / 60).toPrecision(3) + " min" :
		+(s / 3600).toPrecision(3) + " h";
}

const fixed = digits => x => x.toFixed(digits);
const signed = x => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(4);

// ---- scales

function linear(low, high, from, to) {
	const f = x => from + (x - low) / (high - low || 1) * (to - from);

	f.ticks = n => {
		const rough = (high - low || 1) / n, size = 10 ** Math.floor(Math.log10(rough));
		const step = [1, 2, 5, 10].map(k => k * size).find(s => s >= rough);
		const found = [];

		for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++)
			found.push(i * step);
		f.digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
		return found;
	};
	return f;
}

function logarithmic(low, high, from, to) {
	const scale = linear(Math.log10(low), Math.log10(high), from, to);
	const f = x => scale(Math.log10(x));

	f.ticks = n => {
		for (const digits of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1, 3], [1]]) {
			const found = [];

			for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
				found.push(...digits.map(d => d * 10 ** e).filter(x => x >= low && x <= high));
			if (found.length <= n + 2)
				return found.length > 1 ? found : [low, high];
		}
		return [low, high];
	};
	return f;
}

function extent(values, room) {
	const low = Math.min(...values), high = Math.max(...values);
	const more = (high - low || Math.abs(high) || 1) * room;

	return [low - more, high + more];
}

// ---- one plot: axes, series, what the pointer is at

function frame(figure, spec) {
	const width = figure.clientWidth, narrow = width < 520;
	const height = spec.height || (narrow ? 300 : 400);
	const box = { left: spec.left || 58, top: 12, bottom: height - 46,
		      right: width - (spec.names && !narrow ? 134 : 16) };
	const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img",
				  "aria-label": spec.title });
	const x = (spec.logX ? logarithmic : linear)(...spec.x, box.left, box.right);
	const y = linear(...spec.y, box.bottom, box.top);

	for (const t of y.ticks(narrow ? 5 : 7)) {
		root.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(t), y2: y(t) }),
			    svg("text", { x: box.left - 8, y: y(t) + 4, "text-anchor": "end" },
				t.toFixed(y.digits)));
	}
	let last = -Infinity;
	for (const t of x.ticks(Math.max(2, Math.floor((box.right - box.left) / 90)))) {
		if (x(t) - last < 34)
			continue;
		last = x(t);
		root.append(svg("line", { class: "axis", x1: x(t), x2: x(t), y1: box.bottom, y2: box.bottom + 5 }),
			    svg("text", { x: x(t), y: box.bottom + 19, "text-anchor": "middle" },
				spec.formatX(t)));
	}
	root.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
		    svg("text", { x: box.right, y: height - 8, "text-anchor": "end" }, spec.labelX),
		    svg("text", { x: 0, y: 10 }, spec.labelY));
	if (spec.y[0] < 0 && spec.y[1] > 0 && spec.zero)
		root.append(svg("line", { class: "zero", x1: box.left, x2: box.right, y1: y(0), y2: y(0) }));
	return { root, x, y, box, width, height, narrow };
}

function place(figure, f, count) {
	figure.querySelector("svg, .empty")?.remove();
	figure.prepend(f.root);
	figure.dataset.points = count;
}

function nothing(figure, why) {
	figure.querySelector("svg, .empty")?.remove();
	figure.prepend(html("div", { className: "empty" }, why));
	figure.dataset.points = 0;
}

function tip(figure) {
	return figure.querySelector(".tip") || figure.appendChild(html("div", { className: "tip" }));
}

function showTip(figure, f, atX, atY, head, rows) {
	const box = tip(figure);

	box.replaceChildren(html("b", {}, head), ...rows.map(([color, name, value]) =>
		html("div", {}, html("span", {}, Object.assign(html("i", { className: "swatch" }),
			{ style: `--c:${color}` }), name), html("span", {}, value))));
	const left = atX + 14 + box.offsetWidth > f.width ? atX - 14 - box.offsetWidth : atX + 14;
	box.style.left = Math.max(0, Math.min(left, f.width - box.offsetWidth)) + "px";
	box.style.top = Math.max(0, Math.min(atY, f.height - box.offsetHeight)) + "px";
	box.style.visibility = "visible";
}

function onPointer(figure, f, react) {
	f.root.addEventListener("pointermove", e => {
		const at = f.root.getBoundingClientRect();

		react(e.clientX - at.left, e.clientY - at.top);
	});
	f.root.addEventListener("pointerleave", () => {
		tip(figure).style.visibility = "hidden";
		f.root.querySelector(".rule")?.remove();
	});
}

// Lines with bands; series: {name, color, dash, points: [[x, y, low, high]]}.
function lines(figure, spec) {
	const series = spec.series.filter(s => s.points.length);
	const points = series.flatMap(s => s.points);

	if (!points.length)
		return nothing(figure, spec.none || "no data yet");
	const range = extent(points.map(p => p[0]), 0);
	// The first fifth, where a loss only falls, does not decide what is seen of the rest.
	const seen = spec.whole ? points : points.filter(p => p[0] >= range[0] + (range[1] - range[0]) / 5);
	const f = frame(figure, { ...spec, x: range, y: extent((seen.length ? seen : points)
		.flatMap(p => p.slice(1)), .06) });
	const clip = `clip-${figure.dataset.figure}`;

	f.root.append(svg("clipPath", { id: clip }, svg("rect", { x: f.box.left, y: f.box.top,
		width: Math.max(0, f.box.right - f.box.left), height: f.box.bottom - f.box.top })));
	const inside = svg("g", { "clip-path": `url(#${clip})` });
	for (const s of series) {
		const path = s.points.map(p => `${f.x(p[0]).toFixed(1)},${f.y(p[1]).toFixed(1)}`).join(" ");

		if (s.points.every(p => p.length === 4)) {
			const edge = s.points.map(p => `${f.x(p[0]).toFixed(1)},${f.y(p[3]).toFixed(1)}`).concat(
				s.points.map(p => `${f.x(p[0]).toFixed(1)},${f.y(p[2]).toFixed(1)}`).reverse());

			inside.append(svg("polygon", { points: edge.join(" "), fill: s.color,
				opacity: Math.min(.16, .6 / series.length) }));
		}
		inside.append(svg("polyline", { points: path, fill: "none", stroke: s.color, "stroke-width": 2,
			"stroke-dasharray": s.dash || "", "stroke-linejoin": "round" }));
		if (s.points.length < 40)
			inside.append(...s.points.map(p => svg("circle", { cx: f.x(p[0]), cy: f.y(p[1]), r: 2.6,
				fill: s.color })));
	}
	for (const [x, color] of spec.marks || [])
		inside.append(svg("circle", { cx: f.x(x), cy: f.y(0), r: 5, fill: "var(--paper)", stroke: color,
			"stroke-width": 2 }));
	f.root.append(inside);
	if (spec.names && !f.narrow)
		nameEnds(f, series);
	place(figure, f, points.length);
	onPointer(figure, f, (px, py) => nearest(figure, f, series, spec, px, py));
}

// Names at the right ends, moved apart where they would overlap; long ones differ at their ends.
function nameEnds(f, series) {
	const ends = series.map(s => ({ s, y: f.y(s.points.at(-1)[1]) })).sort((a, b) => a.y - b.y);

	ends.forEach((e, i) => { e.y = Math.max(e.y, i ? ends[i - 1].y + 15 : f.box.top + 4); });
	for (let i = ends.length - 1, floor = f.box.bottom; i >= 0; i--, floor -= 15)
		ends[i].y = Math.min(ends[i].y, floor);
	for (const e of ends)
		f.root.append(svg("text", { class: "name", x: f.box.right + 8, y: e.y + 4,
			style: `color:${e.s.color}` }, e.s.name.length > 14 ? "…" + e.s.name.slice(-13) : e.s.name));
}

function nearest(figure, f, series, spec, px, py) {
	const all = series.flatMap(s => s.points.map(p => p[0]));
	const x = all.reduce((best, v) => Math.abs(f.x(v) - px) < Math.abs(f.x(best) - px) ? v : best);
	const rows = series.map(s => [s, interpolate(s.points, x)]).filter(([, y]) => y !== null)
		.sort((a, b) => b[1] - a[1]);

	f.root.querySelector(".rule")?.remove();
	f.root.append(svg("line", { class: "rule", x1: f.x(x), x2: f.x(x), y1: f.box.top, y2: f.box.bottom }));
	showTip(figure, f, f.x(x), py, spec.headX(x), rows.map(([s, y]) => [s.color, s.name, spec.formatY(y)]));
}

// On straight lines between points; null outside.
function interpolate(points, x) {
	const i = points.findIndex(p => p[0] >= x);

	if (i < 0 || (i === 0 && points[0][0] > x))
		return null;
	if (points[i][0] === x)
		return points[i][1];
	const [a, b] = [points[i - 1], points[i]];
	return a[1] + (b[1] - a[1]) * (x - a[0]) / (b[0] - a[0]);
}

// ---- the figures

const AXES = {
	tokens: { at: 1, label: `${study.unit}s seen`, format: si, head: x => `${si(x)} ${study.unit}s` },
	flops: { at: 2, label: "training FLOPs", format: si, head: x => `${si(x)} FLOPs` },
	seconds: { at: 3, label: "training time", format: time, head: time },
};
const shown = () => study.arms.filter(a => !hidden.has(a.name));
const dashed = arm => arm.leaks ? "2 4" : DASHES[arm.dash];

function loss(figure, choice) {
	const axis = AXES[choice.x], minus = choice.y === "difference";
	const curve = arm => (choice.y === "training" ? arm.training : arm.curve)
		.map(p => [p[axis.at], p[4], p[5], p[6]]);
	const base = study.arms.find(a => a.name === study.baseline);
	const from = base ? curve(base) : [];
	const series = shown().map(arm => ({ name: arm.name, color: arm.color, dash: dashed(arm),
		points: !minus ? curve(arm) : arm === base || arm.leaks ? [] : curve(arm)
			.map(p => [p[0], interpolate(from, p[0]), p[1]]).filter(p => p[1] !== null)
			.map(p => [p[0], p[2] - p[1]]) }));
	const ways = study.ways[choice.x]?.arms || {};

	lines(figure, { series, names: true, zero: minus, labelX: axis.label, formatX: axis.format,
		headX: axis.head, formatY: minus ? signed : fixed(4), title: "loss curves of the arms",
		labelY: minus ? `minus ${study.baseline}, nats per ${study.unit}` : `${choice.y} loss, nats per ${study.unit}`,
		marks: minus ? shown().flatMap(a => (ways[a.name]?.crossings || []).map(x => [x, a.color])) : [],
		none: minus && !base ? "no baseline to subtract" : "no evaluation yet" });
}

function pareto(figure, choice) {
	const key = choice.x, arms = shown().filter(a => a.loss !== null && a[key]);

	if (!arms.length)
		return nothing(figure, key === "decode" ? "no decode speed was measured" : "no finished run yet");
	const xs = arms.map(a => a[key]), wide = Math.max(...xs) > 3 * Math.min(...xs);
	const room = wide ? [Math.min(...xs) / 1.3, Math.max(...xs) * 1.3] : extent(xs, .12);
	const f = frame(figure, { x: room, logX: wide, height: 340, zero: false, title: figure.dataset.title,
		y: extent(arms.flatMap(a => [a.low, a.high]), .12), formatX: si, labelX: figure.dataset.label,
		labelY: `validation loss, nats per ${study.unit}` });
	const less = key === "cache" ? 1 : -1;
	const ranked = arms.filter(a => !a.leaks).sort((a, b) => less * (a[key] - b[key]) || a.loss - b.loss);
	const front = ranked.filter((a, i) => ranked.slice(0, i).every(b => b.loss > a.loss));

	f.root.append(svg("polyline", { fill: "none", class: "rule", points: front.map((a, i) =>
		(i ? `${f.x(a[key])},${f.y(front[i - 1].loss)} ` : "") + `${f.x(a[key])},${f.y(a.loss)}`).join(" ") }));
	const taken = [];
	for (const a of arms) {
		const x = f.x(a[key]), y = f.y(a.loss), end = x > f.box.right - 90;
		let at = y - 7;

		while (taken.some(t => Math.abs(t[0] - x) < 60 && Math.abs(t[1] - at) < 14))
			at -= 14;
		taken.push([x, at]);
		f.root.append(svg("line", { x1: x, x2: x, y1: f.y(a.low), y2: f.y(a.high), stroke: a.color, "stroke-width": 1.5 }),
			      svg("circle", { cx: x, cy: y, r: 5.5, fill: a.leaks ? "var(--paper)" : a.color, stroke: a.color,
				"stroke-width": 2 }),
			      svg("text", { class: "name", x: x + (end ? -10 : 10), y: at, style: `color:${a.color}`,
				"text-anchor": end ? "end" : "start" }, a.name + (a.leaks ? " (leaks)" : "")));
	}
	place(figure, f, arms.length);
	onPointer(figure, f, (px, py) => {
		const far = a => Math.hypot(f.x(a[key]) - px, f.y(a.loss) - py);
		const a = arms.reduce((best, b) => far(b) < far(best) ? b : best);

		showTip(figure, f, f.x(a[key]), f.y(a.loss), `${a.name}: ${a.what}`,
			[[a.color, "loss", a.loss.toFixed(4)], [a.color, figure.dataset.label, si(a[key])]]);
	});
}

// One statistic of one arm, a line for each layer, from faint to strong with depth.
function layers(figure, choice) {
	const arm = study.arms.find(a => a.name === choice.arm);
	const strength = layer => Math.round(40 + 60 * layer / (study.depth || 1));
	const series = Object.entries(arm?.statistics[figure.dataset.statistic] || {}).map(([layer, points]) =>
		({ name: `layer ${layer}`, points,
		   color: `color-mix(in oklab, var(--c1) ${strength(layer)}%, var(--paper))` }));

	lines(figure, { series, whole: true, height: 220, left: 52, labelX: "step", labelY: "", formatX: si,
		headX: x => `step ${x}`, formatY: y => +y.toPrecision(4) + "", none: "this arm has none",
		title: figure.dataset.statistic });
}

// ---- choices and redrawing

const KINDS = { loss, pareto, layers };

function redraw() {
	for (const f of figures)
		KINDS[f.element.dataset.kind](f.element, f.choice);
}

// Buttons of a .choice set one key of the choices of the figures that data-for names.
function choices() {
	for (const group of document.querySelectorAll(".choice")) {
		for (const button of group.querySelectorAll("button")) {
			button.addEventListener("click", () => {
				for (const b of group.querySelectorAll("button"))
					b.setAttribute("aria-pressed", b === button);
				for (const f of figures)
					if (f.element.dataset.kind === group.dataset.for && !f.element.dataset.x)
						f.choice[group.dataset.key] = button.value;
				redraw();
			});
		}
	}
}

function legend() {
	for (const button of document.querySelectorAll(".arms button")) {
		button.addEventListener("click", () => {
			const off = !hidden.delete(button.value);

			if (off)
				hidden.add(button.value);
			button.setAttribute("aria-pressed", !off);
			redraw();
		});
	}
}

function pressed(kind) {
	const found = {};

	for (const group of document.querySelectorAll(`.choice[data-for=${kind}]`))
		found[group.dataset.key] = group.querySelector("[aria-pressed=true]").value;
	return found;
}

for (const element of document.querySelectorAll("figure[data-kind]"))
	figures.push({ element, choice: { ...pressed(element.dataset.kind), ...(element.dataset.x && { x: element.dataset.x }) } });
choices();
legend();
redraw();
let width = innerWidth;
addEventListener("resize", () => {
	if (innerWidth !== width)
		redraw();
	width = innerWidth;
});
