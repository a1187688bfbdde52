# SPDX-License-Identifier: MIT
"""A study as the report takes it: study.json, and what its runs wrote.

Nothing is read but study.json and, of each run, metrics.jsonl and result.json, so that a
study can be looked at while it runs, and where it did not run.
"""
import os
import statistics

import study
import study_state
import study_stats
from study import StudyError

POINTS = 100                 # of a curve of training losses: each is the mean of steps around it
AXES = ("tokens", "flops", "seconds")
NOT_STATISTICS = {"step", "layer", "mixer"}


class Run:
    """One run: state, result, curves. The names are those that study_table takes."""

    def __init__(self, out, info, arm, first):
        self.arm = self.entry = arm
        self.info, self.seed, self.path, self.state = info, info["seed"], info["folder"], info["state"]
        self.folder = os.path.join(out, self.path)
        self.name = arm.title + ("" if self.seed == first else f" seed {self.seed}")
        self.result = study.load_result(self.folder) if self.state == "done" else None
        if self.state == "done" and not self.result:
            raise StudyError(f"{self.folder}/result.json: missing or damaged, of a run that is done; "
                             "run the study again")
        self.steps = 0
        self.evaluations, self.training, self.statistics = [], [], {}
        self.read(study.metric_rows(self.folder))

    def read(self, rows):
        """Rows of metrics.jsonl; seconds are those of training steps alone."""
        place, seconds = {0: (0, 0.0)}, 0.0
        for row in rows:
            if "grad_norm" in row:
                seconds += row["ms"] / 1000
                place[row["step"]] = (row["tokens"], seconds)
                self.training.append(self.point(row, place))
                self.steps = row["step"]
            elif row.get("split") == "val":
                self.evaluations.append(self.point(row, place))
            elif "mixer" in row:
                for name in row.keys() - NOT_STATISTICS:
                    self.statistics.setdefault((row["mixer"], name, row["layer"]), []).append(
                        (row["step"], row[name]))

    def point(self, row, place):
        """One loss and where on every axis it stands."""
        if row["step"] not in place:
            raise StudyError(f"{self.folder}/metrics.jsonl: step {row['step']} was evaluated, and its "
                             "training is not there; run the study again")
        tokens, seconds = place[row["step"]]
        return {"step": row["step"], "loss": row["loss"], "tokens": tokens, "seconds": seconds,
                "flops": tokens * self.arm.plan["flops_token"]}

    def curve(self, axis):
        """[(x, loss)] of evaluations, up to one that is not finite."""
        return whole([(p[axis], p["loss"]) for p in self.evaluations])


def whole(curve):
    """The part before a loss that is not finite."""
    bad = next((i for i, (_, loss) in enumerate(curve) if loss is None), len(curve))
    return curve[:bad]


class Study(study_state.Study):
    """A study with its runs. Names of arms are words here, those of the published ones too."""

    def __init__(self, out, record):
        super().__init__(out, record)
        self.unit, self.baseline = record["unit"], word(record["baseline"])
        for arm in self.arms.values():
            arm.name, arm.twin, arm.runs = word(arm.name), word(arm.twin), []
        self.arms = {arm.name: arm for arm in self.arms.values()}
        self.runs = []

    def read(self):
        """Take its runs, as they are now."""
        for info in self.record["runs"]:
            arm = self.arms[word(info["arm"])]
            arm.runs.append(Run(self.out, info, arm, self.record["seeds"][0]))
            self.runs.append(arm.runs[-1])
        return self

    def finished(self):
        return [run for run in self.runs if run.result]

    def goes_on(self):
        """Whether there are runs that have not come to an end."""
        return any(run.state in ("waiting", "running") for run in self.runs)

    def compared(self):
        """Arms that are no repeats, in order."""
        return [arm for arm in self.arms.values() if arm.twin is None]

    def ranked(self):
        """Of these, the ones that do not see the future and have a finished run."""
        return [arm for arm in self.compared() if not arm.leaks and any(r.result for r in arm.runs)]

    def repeats(self):
        """(repeat, twin, what differs first or None) of runs that are both finished."""
        by_key = {(run.arm.name, run.seed): run for run in self.finished()}
        for run in self.finished():
            twin = by_key.get((run.arm.twin, run.seed))
            if twin:
                yield run, twin, study.first_difference(run.folder, twin.folder)


def load(out):
    """The study of a folder, with what its runs wrote until now."""
    return Study.there(out).read()


def word(name):
    """An arm's name: the published ones are numbers."""
    return None if name is None else str(name)


# ---- one line of an arm over its seeds

def seeds_shown(arm):
    """Finished runs; before there are any, the one that is furthest."""
    finished = [run for run in arm.runs if run.result]
    return finished or sorted((r for r in arm.runs if r.steps), key=lambda r: -r.steps)[:1]


def band(points):
    """One point of several seeds: means of x, mean, least and most of the loss."""
    losses = [p["loss"] for p in points]
    if None in losses:
        return None
    return {"step": points[0]["step"], "loss": statistics.fmean(losses), "low": min(losses),
            "high": max(losses), **{axis: statistics.fmean(p[axis] for p in points)
                                    for axis in AXES}}


def thinned(points):
    """Means of neighbouring training steps: some POINTS of them."""
    size = max(1, -(-len(points) // POINTS))
    parts = (points[i:i + size] for i in range(0, len(points), size))
    return [{**part[len(part) // 2],
             "loss": None if None in [p["loss"] for p in part]
             else statistics.fmean(p["loss"] for p in part)} for part in parts]


def mean_curve(curves):
    """[band] of steps that every seed has, up to a loss that is not finite."""
    by_step = [{p["step"]: p for p in curve} for curve in curves]
    steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
    bands = [band([points[step] for points in by_step]) for step in steps]
    return bands[:bands.index(None)] if None in bands else bands


def mean_statistics(runs):
    """{(mixer, name): {layer: [(step, mean over seeds)]}}"""
    found = {}
    for key in sorted({key for run in runs for key in run.statistics}):
        rows = [dict(run.statistics.get(key, ())) for run in runs]
        steps = sorted(set.intersection(*map(set, rows)))
        values = [(step, [row[step] for row in rows]) for step in steps]
        found.setdefault(key[:2], {})[key[2]] = [
            (step, None if None in v else statistics.fmean(v)) for step, v in values]
    return found


# ---- three ways

def three_ways(found):
    """{axis: {budget, arms: {name: {test, crossings}}}}: at equal tokens, FLOPs, seconds.

    The budget is the largest x that every finished run of these arms has reached: of ranked
    arms whose losses are finite."""
    base = found.arms.get(found.baseline)
    ranked = [arm for arm in found.ranked()
              if not any(run.result and run.result["val_loss"] is None for run in arm.runs)]
    if base not in ranked:
        return {}
    return {axis: one_way(base, ranked, axis, found.early) for axis in AXES}


def one_way(base, ranked, axis, early):
    curves = {arm.name: {run.seed: run.curve(axis) for run in arm.runs if run.result}
              for arm in ranked}
    limit = study_stats.budget([c for arm in curves.values() for c in arm.values() if c])
    if limit is None:
        return {"budget": None, "arms": {}}
    losses = {name: {seed: study_stats.at(c, limit) for seed, c in arm.items()}
              for name, arm in curves.items()}
    gaps = {name: study_stats.differences(arm, losses[base.name])
            for name, arm in losses.items() if name != base.name}
    tests = study_stats.judge({name: gap for name, gap in gaps.items() if gap}, early)
    return {"budget": limit, "arms": {
        name: {"losses": list(arm.values()), "test": tests[name].figures() if name in tests else None,
               "crossings": study_stats.crossings(curves[name], curves[base.name])
               if name != base.name else []}
        for name, arm in losses.items()}}
