"""The methods of a study, compared: statistics over all environments and in each, profiles, learning curves.

Suffixes name axes as in `stats`: R runs, E environments, S positions.
"""
# ruff: noqa: N803, N806 - axis suffixes are capitals

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from camal_rl import stats
from camal_rl.results.study import Run, Study, curve, read_events
from camal_rl.stats import Band, Interval

METRICS = ("iou", "return")
WINDOWS = 50
"""Positions of a learning curve."""
NAMES = {"camal": "CAMAL", "vanilla": "Vanilla", "suppress": "Suppress"}


def name(method: str) -> str:
    """A method as it is written in prose."""
    return NAMES.get(method, method)


@dataclass(frozen=True)
class Comparison:
    """The methods by one metric, over all environments or in one."""

    runs: Mapping[str, int]
    """How many of each method count."""
    sbci: Mapping[str, Mapping[str, Interval]]
    """Method -> statistic -> interval; its estimate is NaN where there is no run that counts."""
    poi: Mapping[tuple[str, str], Interval]
    """Pair of methods, X and a later Y -> probability of improvement of X over Y."""
    chance: Mapping[tuple[str, str], float]
    """How often two equal methods would be found different by so many runs, either way, where it can be."""
    left_out: Sequence[str] = ()
    """Sentences of `stats.complete`."""


@dataclass(frozen=True)
class Lines:
    """A band of each method along the same axis."""

    x: np.ndarray  # (S,)
    bands: Mapping[str, Band]


@dataclass(frozen=True)
class Results:
    """All that is computed; the outer keys are metrics."""

    joint: Mapping[str, Comparison]
    single: Mapping[str, Mapping[str, Comparison]]
    """By environment."""
    profiles: Mapping[str, Lines]
    curves: Mapping[str, Mapping[str, Lines]]
    """By environment, against agent steps; the return is the raw one."""
    without_curve: Sequence[str]
    """Titles of runs without usable events."""


def matrix(study: Study, method: str, value: Callable[[Run], float]) -> tuple[list[int], np.ndarray]:
    """Seeds of a method, and (R, E) of a value of each run; NaN where a run is missing."""
    seeds = sorted({run.seed for run in study.runs if run.method == method})
    values_RE = np.full((len(seeds), len(study.envs)), np.nan)
    for run in study.runs:
        if run.method == method:
            values_RE[seeds.index(run.seed), study.envs.index(run.env)] = value(run)
    return seeds, values_RE


def compare(
    scores: Mapping[str, np.ndarray], where: str, repetitions: int, seed: int, done: Callable[[], object]
) -> Comparison:
    """SBCI of every method, and POI of every method over each later one.

    Args:
        scores: complete scores_RE of each method, in order; R may be 0.
        where: ends the reason why a method without runs has no statistics.
    """
    nothing = {
        method: Interval(math.nan, None, None, f"No run of {name(method)} has a score {where}.")
        for method, scores_RE in scores.items()
        if not len(scores_RE)
    }
    sbci: dict[str, Mapping[str, Interval]] = {}
    poi, chance = {}, {}
    for method, scores_RE in scores.items():
        if method in nothing:
            sbci[method] = dict.fromkeys(stats.STATISTICS, nothing[method])
        else:
            sbci[method] = stats.sbci({method: scores_RE}, repetitions, seed)[method]
        done()
    for pair in combinations(scores, 2):
        x_RE, y_RE = (scores[method] for method in pair)
        lacking = nothing.get(pair[0]) or nothing.get(pair[1])
        poi[pair] = lacking or stats.poi(x_RE, y_RE, repetitions, seed)
        if poi[pair].low is not None:
            chance[pair] = 2 * stats.false_positive_rate(len(x_RE), len(y_RE), x_RE.shape[1])
        done()
    return Comparison({method: len(one) for method, one in scores.items()}, sbci, poi, chance)


def jobs(study: Study) -> int:
    """How often `compute` says that something is done."""
    methods, envs = len(study.methods), len(study.envs)
    comparisons = methods + math.comb(methods, 2)
    profiles_or_curves = methods
    return len(METRICS) * (comparisons + profiles_or_curves) * (envs + 1) + len(study.runs)


def compute(study: Study, repetitions: int, seed: int, done: Callable[[], object] = lambda: None) -> Results:
    """All statistics of a study."""
    joint, single, profiles = {}, {}, {}
    for metric in METRICS:
        whole, left_out, by_env = {}, [], {}
        for method in study.methods:
            seeds, scores_RE = matrix(study, method, lambda run: run.score(metric))  # noqa: B023
            titles = [f"{method} seed {one}" for one in seeds]
            whole[method], sentences = stats.complete(scores_RE, titles, study.envs)
            left_out += sentences
            by_env[method] = scores_RE
        one = compare(whole, "in every environment", repetitions, seed, done)
        joint[metric] = dataclasses.replace(one, left_out=left_out)
        single[metric] = {
            env: compare(
                {m: scores_RE[~np.isnan(scores_RE[:, e])][:, [e]] for m, scores_RE in by_env.items()},
                f"in {env}",
                repetitions,
                seed,
                done,
            )
            for e, env in enumerate(study.envs)
        }
        profiles[metric] = _profiles(whole, repetitions, seed, done)
    curves, without = _curves(study, repetitions, seed, done)
    return Results(joint, single, profiles, curves, without)


def _profiles(
    scores: Mapping[str, np.ndarray], repetitions: int, seed: int, done: Callable[[], object]
) -> Lines:
    every = np.concatenate([scores_RE.ravel() for scores_RE in scores.values()])
    low, high = (every.min(), every.max()) if every.size else (0, 1)
    # From zero, or below the lowest score, to a round number above the highest.
    x = np.linspace(min(0, math.floor(low * 10) / 10), max(math.ceil(high * 10) / 10, 0.1), 101)
    bands = {}
    for method, scores_RE in scores.items():
        if len(scores_RE):
            bands[method] = stats.performance_profile(scores_RE, x, repetitions, seed)
        done()
    return Lines(x, bands)


TAGS = {"iou": "camal/iou", "return": "charts/episodic_return"}


def _curves(
    study: Study, repetitions: int, seed: int, done: Callable[[], object]
) -> tuple[dict[str, dict[str, Lines]], list[str]]:
    curves: dict[str, dict[str, Lines]] = {metric: {} for metric in METRICS}
    without = []
    for env in study.envs:
        runs = [run for run in study.runs if run.env == env]
        edges = np.linspace(0, max((run.number("steps") for run in runs), default=1), WINDOWS + 1)
        logged = []
        for run in runs:
            logged.append((run, read_events(run.folder, list(TAGS.values()))))
            done()
        without += [run.title for run, one in logged if not all(map(len, one.values()))]
        for metric, tag in TAGS.items():
            bands = {}
            for method in study.methods:
                lines = [
                    curve(one[tag], edges, run.number("steps"))
                    for run, one in logged
                    if run.method == method and len(one[tag])
                ]
                if lines:
                    bands[method] = _band(np.stack(lines), repetitions, seed)
                done()
            curves[metric][env] = Lines((edges[1:] + edges[:-1]) / 2, bands)
    return curves, without


def _band(curves_RS: np.ndarray, repetitions: int, seed: int) -> Band:
    """`stats.mean_band` where every run has a value; NaN elsewhere."""
    known_S = ~np.isnan(curves_RS).any(axis=0)
    if not known_S.any():
        nothing = np.full(curves_RS.shape[1], np.nan)
        return Band(nothing, None, None, "There is no position at which every run has a value.")
    band = stats.mean_band(curves_RS[:, known_S], repetitions, seed)

    def spread(values: np.ndarray) -> np.ndarray:
        spread_S = np.full(len(known_S), np.nan)
        spread_S[known_S] = values
        return spread_S

    if band.low is None or band.high is None:
        return Band(spread(band.estimate), None, None, band.reason)
    return Band(spread(band.estimate), spread(band.low), spread(band.high))
