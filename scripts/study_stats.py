# SPDX-License-Identifier: MIT
"""What paired runs say: differences with intervals, budgets in common, crossings.

A test is the paired t-test of an arm against the baseline, seed by seed (scipy.stats.ttest_rel).
All arms of one comparison are a family: p-values are Holm's (1979), so that the chance of one
false verdict among them is at most ALPHA; intervals are Bonferroni's, so that all of them
together hold with probability 1 - ALPHA. Without scipy there are means and no tests.

A study with early stop looks at an arm after each pair, from PAIRS on. Each look has its share of
ALPHA, all earlier ones together no more than the rule's p, and the last one the rest (Haybittle
1971, Peto et al. 1976). The shares add up, whatever the looks have to do with each other, so that
both guarantees hold over all looks: of p-values, of verdicts, and of intervals, which are the
repeated ones of Jennison and Turnbull (1989).
"""
import bisect
import functools
import math
import statistics
from collections import namedtuple

ALPHA = 0.05                 # chance of one false verdict, or one wrong interval, in a family
POWER = 0.8                  # chance of a verdict that the number of seeds is to give
PAIRS = 3                    # before a comparison can be settled early
MOST_SEEDS = 1000            # more than anybody runs: the difference is called too small
NO_EARLY = "EARLY_STOP: python3 lacks scipy; type: sh scripts/setup.sh report"
MISSING = "no intervals: python3 lacks scipy; type: sh scripts/setup.sh report"


@functools.cache
def scipy_stats():
    """scipy.stats, None without scipy. Read where there is something to test: it takes as long as
    all the rest of a table."""
    try:
        from scipy import stats
    except ImportError:
        return None
    return stats


class Early(namedtuple("Early", "p seeds")):
    """The rule of early stop: chance of a false one in the family; seeds of an arm that has all."""

    def share(self, n):
        """Of ALPHA, what a test of n pairs has."""
        if n < self.seeds:
            return self.p / ALPHA / max(1, self.seeds - PAIRS)
        return 1 - self.p / ALPHA


def rounding(differences):
    """Whether a spread is nothing but rounding, which would be scipy's error, not a result."""
    return statistics.stdev(differences) <= 1e-12 * max(map(abs, differences))


def p_value(differences):
    """Of the paired t-test of two differences or more."""
    if rounding(differences):
        return float(statistics.fmean(differences) == 0)
    return float(scipy_stats().ttest_1samp(differences, 0).pvalue)


class Test:
    """One arm against the baseline. None is a figure that there is not (yet).

    mean, sd: of the paired differences; p: of this test alone, over all its looks; share: of ALPHA,
    what the last look has; holm: corrected for the family; low, high: the interval that holds
    together with the family's; needed: seeds for a verdict where there is none; verdict: better,
    worse, same, open, or "" before two seeds are there.
    """

    def __init__(self, differences, early=None):
        self.n = len(differences)
        self.mean = statistics.fmean(differences) if differences else None
        self.sd = statistics.stdev(differences) if self.n > 1 else None
        self.p = self.holm = self.low = self.high = self.needed = None
        self.verdict = ""
        self.exact = self.n > 1 and rounding(differences)
        self.share = early.share(self.n) if early else 1
        if self.n > 1 and scipy_stats():
            looks = range(PAIRS, self.n + 1) if early else [self.n]
            self.p = min([1.0, *(p_value(differences[:n]) / (early.share(n) if early else 1)
                                 for n in looks)])

    def judge(self, holm, family):
        """Given the corrected p-value and the number of tests in the family."""
        self.holm = holm
        self.low = self.high = self.mean
        if not self.exact:
            self.low, self.high = map(float, scipy_stats().t.interval(
                1 - ALPHA * self.share / family, self.n - 1, self.mean, self.sd / math.sqrt(self.n)))
        if self.exact and self.mean == 0:
            self.verdict = "same"
        elif holm < ALPHA:
            self.verdict = "better" if self.mean < 0 else "worse"
        else:
            self.verdict = "open"
            self.needed = seeds_needed(self.mean, self.sd, ALPHA * self.share / family)

    def figures(self):
        """As JSON takes them; a number of seeds beyond all is None."""
        figures = {name: getattr(self, name) for name in
                   ("n", "mean", "sd", "p", "holm", "low", "high", "verdict")}
        return {**figures, "needed": None if self.needed in (None, math.inf) else self.needed}


def holm_bonferroni(p):
    """Holm's corrected p-values, in the order given."""
    corrected, running = [0.0] * len(p), 0.0
    for i, at in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        running = max(running, min(1.0, (len(p) - i) * p[at]))
        corrected[at] = running
    return corrected


def power(n, effect, alpha):
    """Of a two-sided paired t-test with @n pairs; effect: mean over deviation."""
    import numpy
    stats = scipy_stats()
    limit, shift = stats.t.ppf(1 - alpha / 2, n - 1), abs(effect) * math.sqrt(n)
    with numpy.errstate(all="ignore"):          # of tails that underflow
        return stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift)


def seeds_needed(mean, sd, alpha):
    """Pairs that tell such a difference from 0 with POWER; inf beyond MOST_SEEDS."""
    def enough(n):
        return power(n, mean / sd, alpha) >= POWER
    low, high = 1, 2
    while not enough(high):
        if high > MOST_SEEDS:
            return math.inf
        low, high = high, 2 * high
    return low + 1 + bisect.bisect_left(range(low + 1, high), True, key=enough)


def judge(differences, early=None):
    """{arm: Test} of {arm: [difference of each seed]}: one family."""
    tests = {arm: Test(values, early) for arm, values in differences.items()}
    family = [test for test in tests.values() if test.p is not None]
    for test, holm in zip(family, holm_bonferroni([test.p for test in family])):
        test.judge(holm, len(family))
    return tests


def settled(differences, family, early):
    """Whether a comparison of @family is settled, by its first pairs: better, worse or ""."""
    test = Test(differences, early)
    if test.n < PAIRS or not test.p * family < ALPHA:
        return ""
    return "better" if test.mean < 0 else "worse"


def differences(values, base):
    """[difference of each seed that both have]; None where one of them is not finite."""
    found = [(values[seed], base[seed]) for seed in values if seed in base]
    return None if any(None in pair for pair in found) else [x - y for x, y in found]


# ---- curves: [(x, loss)] of ascending x

def at(curve, x):
    """Loss at x, on straight lines between evaluations; None outside of them."""
    i = bisect.bisect_left(curve, (x,))
    if i < len(curve) and curve[i][0] == x:
        return curve[i][1]
    if i in (0, len(curve)):
        return None
    (x0, y0), (x1, y1) = curve[i - 1:i + 1]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def budget(curves):
    """The largest x that all curves reach; None where there is none."""
    return min((c[-1][0] for c in curves), default=None) if all(curves) else None


def crossings(curves, base):
    """[x] where the mean over seeds of arm minus baseline changes its sign.

    curves, base: {seed: curve}; seeds that only one of them has are left out."""
    pairs = [(curves[seed], base[seed]) for seed in curves
             if curves[seed] and base.get(seed)]
    if not pairs:
        return []
    grid = sorted({x for pair in pairs for curve in pair for x, _ in curve})
    values = [(x, [(at(a, x), at(b, x)) for a, b in pairs]) for x in grid]
    rows = [(x, statistics.fmean(y - z for y, z in v)) for x, v in values
            if not any(None in pair for pair in v)]
    rows = [row for row in rows if row[1]]
    return [x0 + (x1 - x0) * y0 / (y0 - y1) for (x0, y0), (x1, y1) in zip(rows, rows[1:])
            if y0 * y1 < 0]
