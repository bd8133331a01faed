"""The runs of a study -> statistics of each method and pair, over all environments and in each, and curves.

Suffixes name axes as in `stats`: R runs, E environments, S positions.
"""
# ruff: noqa: N806 - axis suffixes are capitals

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from camal_rl import stats
from camal_rl.results.study import Study, curve, pivot, read_curve
from camal_rl.stats import Band, Interval, Verdict

METRICS = {"iou": "iou", "return": "normalized_return"}
"""Measure that methods are compared by -> the column of a study's table that has it."""
TAGS = {"iou": "camal/iou", "return": "charts/episodic_return"}
FURTHER = {
    "removal_black": ("Removal area, black", 1),
    "insertion_black": ("Insertion area, black", -1),
    "removal_blurred": ("Removal area, blurred", 1),
    "insertion_blurred": ("Insertion area, blurred", -1),
    "shifted_return": ("Normalized return under other looks", 1),
    "lost_return": ("Normalized return lost to other looks", -1),
    "steps_to_half": ("Agent steps to half the gain", -1),
}
"""Measure -> its name, and 1 where more is better, -1 where less is: compared over all environments only."""
WINDOWS = 50
"""Positions of a learning curve."""
NAMES = {"camal": "CAMAL", "balanced": "Balanced", "vanilla": "Vanilla", "suppress": "Suppress"}


def name(method: str) -> str:
    """A method as it is written in prose."""
    return NAMES.get(method, method)


Pair = tuple[str, str]
"""Method X and a later method Y."""


@dataclass(frozen=True)
class Comparison:
    """The methods by one metric, over all environments or in one."""

    runs: Mapping[str, int]
    """Number of runs of each method that count."""
    sbci: Mapping[str, Mapping[str, Interval]]
    """Method -> statistic -> interval; its estimate is NaN where there is no run that counts."""
    poi: Mapping[Pair, Interval]
    """Probability of improvement of X over Y."""
    verdicts: Mapping[Pair, Verdict]
    """`stats.verdict` of it."""
    false_positive_rate: Mapping[Pair, float]
    """Rate at which two equal methods would be found different by so many runs, where a verdict can be."""


@dataclass(frozen=True)
class Lines:
    """A band of each method along the same axis."""

    x: np.ndarray  # (S,)
    bands: Mapping[str, Band]


@dataclass(frozen=True)
class Results:
    """All that is computed by one metric."""

    joint: Comparison
    left_out: Sequence[str]
    """Sentences on runs that don't count in `joint`."""
    environments: Mapping[str, Comparison]
    profile: Lines
    """Over all environments, by threshold."""
    curves: Mapping[str, Lines]
    """By environment, against agent steps; the return is the raw one."""
    without_curve: Sequence[str]
    """Titles of runs that lack a learning curve."""


def compare(
    scores: Mapping[str, np.ndarray], where: str, repetitions: int, seed: int, sign: int = 1
) -> Comparison:
    """SBCI of every method, and POI of every method over each later one.

    Args:
        scores: complete scores_RE of each method, in order; R may be 0.
        sign: -1 where less is an improvement.
        where: ends the reason why a method without runs has no statistics.
        repetitions: of the bootstrap.
        seed: of the bootstrap.
    """
    nothing = {
        method: Interval(math.nan, None, None, f"No run of {name(method)} has a score {where}.")
        for method, scores_RE in scores.items()
        if not len(scores_RE)
    }
    sbci = {
        method: dict.fromkeys(stats.STATISTICS, nothing[method])
        if method in nothing
        else stats.sbci({method: scores_RE}, repetitions, seed)[method]
        for method, scores_RE in scores.items()
    }
    poi, rates = {}, {}
    for pair in combinations(scores, 2):
        x_RE, y_RE = (scores[method] for method in pair)
        lacking = nothing.get(pair[0]) or nothing.get(pair[1])
        poi[pair] = lacking or stats.poi(sign * x_RE, sign * y_RE, repetitions, seed)
        if poi[pair].low is not None:
            rates[pair] = 2 * stats.false_positive_rate(len(x_RE), len(y_RE), x_RE.shape[1])
    verdicts = {pair: stats.verdict(improvement) for pair, improvement in poi.items()}
    return Comparison({method: len(rows) for method, rows in scores.items()}, sbci, poi, verdicts, rates)


def jobs(study: Study) -> int:
    """Number of times that `compute` and `compute_further` say that something is done."""
    return len(METRICS) * (1 + len(study.envs)) + len(FURTHER)


def compute(
    study: Study, repetitions: int, seed: int, done: Callable[[], object] = lambda: None
) -> dict[str, Results]:
    """Compute all statistics of a study, by metric.

    Args:
        study: at least one run.
        repetitions: of the bootstrap.
        seed: of the bootstrap.
        done: is called after each of `jobs`.
    """
    results = {}
    for metric, column in METRICS.items():
        complete, left_out, every = {}, [], {}
        for method in study.methods:
            matrix = pivot(study.table, method, column, study.envs)
            every[method] = matrix.to_numpy(np.float64)
            # The bootstrap needs a full matrix, and no gap can be filled honestly: a run goes as a whole.
            complete[method] = matrix.dropna().to_numpy(np.float64)
            for number, gaps in matrix.isna().iterrows():
                if lacking := ", ".join(matrix.columns[gaps]):
                    left_out.append(
                        f"Left out {method} seed {number}: it has no score in {lacking}, "
                        "and the bootstrap needs every run in every environment."
                    )
        joint = compare(complete, "in every environment", repetitions, seed)
        profile = _profile(complete, repetitions, seed)
        done()
        single, curves = {}, {}
        without: list[str] = []
        for e, env in enumerate(study.envs):
            there = {m: scores_RE[~np.isnan(scores_RE[:, e])][:, [e]] for m, scores_RE in every.items()}
            single[env] = compare(there, f"in {env}", repetitions, seed)
            curves[env], titles = _curves(study, env, TAGS[metric], repetitions, seed)
            without += titles
            done()
        results[metric] = Results(joint, left_out, single, profile, curves, without)
    return results


def compute_further(
    study: Study, repetitions: int, seed: int, done: Callable[[], object] = lambda: None
) -> dict[str, Comparison]:
    """Compare the methods by the measures of `FURTHER` that their runs have; arguments as of `compute`."""
    table = study.table.assign(steps_to_half=_steps_to_half(study))
    found = {}
    for measure, (_, sign) in FURTHER.items():
        every = {method: pivot(table, method, measure, study.envs) for method in study.methods}
        scores = {method: matrix.dropna().to_numpy(np.float64) for method, matrix in every.items()}
        if any(len(scores_RE) for scores_RE in scores.values()):
            found[measure] = compare(scores, "in every environment", repetitions, seed, sign)
        done()
    return found


def _steps_to_half(study: Study) -> list[float]:
    """Agent steps until each run's return has made half the gain over random play that the best row makes.

    That gain is the highest mean over a row's runs at the end of their learning curves. A run that does not
    get there counts with the steps of the longest; NaN where there is no curve.
    """
    found: dict[str, float] = {}
    for env, (random, _) in study.scales.items():
        edges, curves = _curves_of_runs(study, env, TAGS["return"])
        last = {title: c[~np.isnan(c)][-1] for title, c in curves.items() if not np.isnan(c).all()}
        rows = [[last[run.title] for run in study.of(env, m) if run.title in last] for m in study.methods]
        best = max((float(np.mean(row)) for row in rows if row), default=math.nan)
        level = (best + random) / 2 if best > random else math.inf
        for title in last:
            above = np.flatnonzero(curves[title] >= level)
            found[title] = float(edges[1 + above[0] if len(above) else -1])
    return [found.get(run.title, math.nan) for run in study.runs]


def _curves_of_runs(study: Study, env: str, tag: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The windows' edges, (S + 1,), and by title the curve, (S,), of each run that has logged the tag."""
    runs = [run for run in study.runs if run.env == env]
    edges = np.linspace(0, max((run.scores.steps for run in runs), default=1), WINDOWS + 1)
    curves = {}
    for run in runs:
        points_N2 = read_curve(run.folder, tag)
        if len(points_N2):
            curves[run.title] = curve(points_N2, edges, run.scores.steps)
    return edges, curves


def _profile(scores: Mapping[str, np.ndarray], repetitions: int, seed: int) -> Lines:
    every = np.concatenate([scores_RE.ravel() for scores_RE in scores.values()])
    low, high = (every.min(), every.max()) if every.size else (0, 1)
    # From zero, or below the lowest score, to a round number above the highest.
    x = np.linspace(min(0, math.floor(low * 10) / 10), max(math.ceil(high * 10) / 10, 0.1), 101)
    known = {method: scores_RE for method, scores_RE in scores.items() if len(scores_RE)}
    return Lines(x, {m: stats.performance_profile(s, x, repetitions, seed) for m, s in known.items()})


def _curves(study: Study, env: str, tag: str, repetitions: int, seed: int) -> tuple[Lines, list[str]]:
    """Learning curves of what is logged under a tag, and titles of the runs that have none."""
    edges, curves = _curves_of_runs(study, env, tag)
    bands, without = {}, []
    for method in study.methods:
        titles = [run.title for run in study.of(env, method)]
        without += [title for title in titles if title not in curves]
        if found := [curves[title] for title in titles if title in curves]:
            bands[method] = stats.mean_band(np.stack(found), repetitions, seed)
    return Lines((edges[1:] + edges[:-1]) / 2, bands), without
