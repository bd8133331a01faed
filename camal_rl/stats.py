"""Scores of several runs -> intervals (SBCI), probability of improvement (POI), p-values (paper, Appendix A).

Suffixes name axes: R runs (one a seed), E environments, S positions along a curve, T statistics. Intervals
are 95 % percentile intervals of rliable's stratified bootstrap. The same scores and the same seed give the
same interval, whatever else is computed; NumPy's global generator, from which rliable draws, is left alone.
"""
# ruff: noqa: N803, N806 - axis suffixes are capitals

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement
from typing import Literal

import numpy as np

REPETITIONS = 50_000
"""Bootstrap repetitions (rliable's default)."""
STATISTICS = ("mean", "median", "iqm", "optimality_gap")
"""The statistics of `sbci`; the paper reports the mean."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; where there can be none, low and high are None."""

    estimate: float
    low: float | None
    high: float | None
    reason: str | None = None
    """A sentence on why there is no interval."""


@dataclass(frozen=True, eq=False)
class Band:
    """An `Interval` at each of S positions, pointwise: each array is float64 (S,)."""

    estimate: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    reason: str | None = None
    """A sentence on why there is no band."""


def normalize(returns: np.ndarray, random: float | np.ndarray, reference: float | np.ndarray) -> np.ndarray:
    """Return raw returns on the scale where the random policy has 0 and the reference has 1, float64.

    Args:
        returns: any shape that broadcasts with the others, so scores_RE goes with one value an environment.
        random: mean raw return of the random policy.
        reference: raw return of the reference policy.

    Raises:
        ValueError: a reference is not above its random return, or one of the two is not finite.
    """
    if not (np.isfinite(random) & np.isfinite(reference) & (np.asarray(reference) > random)).all():
        raise ValueError(
            f"the reference return ({reference}) has to be above the random one ({random}), and both finite"
        )
    return (_floats(returns) - random) / (np.asarray(reference, np.float64) - random)


def sbci(
    scores: Mapping[str, np.ndarray], repetitions: int = REPETITIONS, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """Stratified bootstrap confidence intervals of each method's `STATISTICS` over runs and environments.

    Args:
        scores: scores_RE of each method, which may differ in R. For one environment pass `scores_RE[:, [e]]`.

    Raises:
        ValueError: scores that are no matrix, or not finite.
    """
    intervals = {}
    for method, scores_RE in scores.items():
        band_T = _bootstrap(_aggregate, _checked(scores_RE, method), repetitions=repetitions, seed=seed)
        intervals[method] = {name: interval_at(band_T, index) for index, name in enumerate(STATISTICS)}
    return intervals


def poi(
    scores_x_RE: np.ndarray, scores_y_RE: np.ndarray, repetitions: int = REPETITIONS, seed: int = 0
) -> Interval:
    """Probability of improvement of X over Y, averaged over environments (Eq. 6); a tie counts one half.

    Where every run of X beats every run of Y, resampling changes nothing and the interval is [1, 1]. Its
    width measures no certainty then: with two runs of each, chance alone does this in one environment of six.

    Args:
        scores_x_RE: scores of X.
        scores_y_RE: scores of Y in the same environments, maybe of another number of runs.

    Raises:
        ValueError: scores that are no matrix, or not finite, or of different environments.
    """
    x_RE, y_RE = _checked(scores_x_RE, "X"), _checked(scores_y_RE, "Y")
    if x_RE.shape[1] != y_RE.shape[1]:
        raise ValueError(f"X has scores in {x_RE.shape[1]} environments, Y in {y_RE.shape[1]}")
    return interval_at(_bootstrap(_improvement, x_RE, y_RE, repetitions=repetitions, seed=seed), 0)


Verdict = Literal["significant", "not significant", "significantly worse", "undefined"]


def verdict(improvement: Interval) -> Verdict:
    """Judge by Neyman and Pearson's criterion: X is better than Y if P(X > Y) > 0.5 and 0.5 is not in the CI.

    "significantly worse" is the same criterion for Y over X, as P(Y > X) is 1 - P(X > Y).
    """
    if improvement.low is None or improvement.high is None:
        return "undefined"
    if improvement.low <= 0.5 <= improvement.high or improvement.estimate == 0.5:
        return "not significant"
    return "significant" if improvement.estimate > 0.5 else "significantly worse"


@functools.cache
def false_positive_rate(runs_x: int, runs_y: int, environments: int) -> float:
    """Rate at which X is "significant" over an equal Y; as often it is "significantly worse".

    POI depends on the order of scores only, so the rate is the same for all continuous scores. It is counted
    over all orders and resamples where these are few, else simulated. Exact 95 % intervals would have 0.025.

    Args:
        runs_x: runs of X in each environment, at least 2.
        runs_y: runs of Y.
        environments: at least 1.

    Raises:
        ValueError: fewer than that.
    """
    if min(runs_x, runs_y) < 2 or environments < 1:
        raise ValueError("chance is known for 2 runs of each or more, and an environment or more")
    orders = math.comb(runs_x + runs_y, runs_x) ** environments
    resamples = math.comb(2 * runs_x - 1, runs_x) * math.comb(2 * runs_y - 1, runs_y)
    few = orders <= 200_000 and resamples <= 20_000  # less than a second
    return (_counted if few else _simulated)(runs_x, runs_y, environments)


def _counted(runs_x: int, runs_y: int, environments: int) -> float:
    ranks_OX = np.array(list(combinations(range(runs_x + runs_y), runs_x)))
    wins_OXY = (ranks_OX - np.arange(runs_x))[..., None] > np.arange(runs_y)
    (drawn_x, chance_x), (drawn_y, chance_y) = map(_resamples, (runs_x, runs_y))
    chances = np.outer(chance_x, chance_y).ravel()
    size = runs_x * runs_y * environments + 1
    # By order, the chance of each number of wins in a resample. Environments add up, so these are convolved.
    wins = (np.bincount((drawn_x @ w @ drawn_y.T).ravel(), chances, size) for w in wins_OXY)
    spectra = np.fft.rfft(np.array(list(wins)))
    together = spectra
    for _ in range(environments - 1):
        together = (together[:, None] * spectra).reshape(-1, spectra.shape[1])
    at_most_half = np.fft.irfft(together, size)[:, : (size + 1) // 2].sum(axis=1)
    return float((at_most_half < 0.025).mean())


def _resamples(runs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all ways to draw runs with replacement, how often each run is drawn, and their chances."""
    drawn = combinations_with_replacement(range(runs), runs)
    counts = np.array([np.bincount(runs_drawn, minlength=runs) for runs_drawn in drawn])
    ways = np.array([math.factorial(runs) / math.prod(map(math.factorial, row)) for row in counts.tolist()])
    return counts, ways / runs**runs


def _simulated(runs_x: int, runs_y: int, environments: int) -> float:
    repetitions, blocks, block = 10_000, 20, 500  # so many experiments at a time, for memory's sake
    rng = np.random.default_rng(0)
    drawn_x, drawn_y = (
        rng.multinomial(runs, np.full(runs, 1 / runs), (repetitions, environments))
        for runs in (runs_x, runs_y)
    )  # (repetitions, E, R): how often each run is drawn
    pairs = environments * runs_x * runs_y
    weights = np.einsum("ber,bes->bers", drawn_x, drawn_y).reshape(repetitions, pairs).astype(np.float32)
    found = 0
    for _ in range(blocks):
        x_NER1 = rng.random((block, environments, runs_x, 1))
        wins = (x_NER1 > rng.random((block, environments, 1, runs_y))).reshape(block, pairs)
        poi = weights @ wins.T.astype(np.float32) / pairs
        # The interval is above 0.5 where less than 2.5 % of the resamples are not.
        found += int(np.count_nonzero((poi <= 0.5).mean(axis=0) < 0.025))
    return found / (blocks * block)


def performance_profile(
    scores_RE: np.ndarray, thresholds_S: np.ndarray, repetitions: int = REPETITIONS, seed: int = 0
) -> Band:
    """Share of all runs in all environments that score above each threshold (rliable's score distribution).

    Args:
        scores_RE: scores of one method.
        thresholds_S: in the scores' unit, in any order.

    Raises:
        ValueError: scores that are no matrix, or not finite.
    """
    scores_RE = _checked(scores_RE, "the method")
    thresholds_S = np.asarray(thresholds_S, np.float64)

    def above(scores_RE: np.ndarray) -> np.ndarray:
        at_most_S = np.sort(scores_RE, axis=None).searchsorted(thresholds_S, side="right")
        return (scores_RE.size - at_most_S) / scores_RE.size

    return _bootstrap(above, scores_RE, repetitions=repetitions, seed=seed)


def mean_band(curves_RS: np.ndarray, repetitions: int = REPETITIONS, seed: int = 0) -> Band:
    """Mean of R curves at S positions; whole curves are resampled, so the band is as smooth as they are.

    Where a run has no value but NaN, mean and band are NaN.

    Raises:
        ValueError: curves that are no matrix.
    """
    curves_RS = _as_matrix(curves_RS, "the method")
    if reason := _no_interval(curves_RS):
        return Band(curves_RS.mean(axis=0), None, None, reason)

    def mean(runs_R1: np.ndarray) -> np.ndarray:
        means_S: np.ndarray = curves_RS[runs_R1[:, 0]].mean(axis=0)
        return means_S

    # rliable would resample each position by itself: it is given the curves' numbers instead.
    numbers_R1 = np.arange(len(curves_RS))[:, None]
    return _bootstrap(mean, numbers_R1, repetitions=repetitions, seed=seed)


def wilcoxon(x: np.ndarray, y: np.ndarray) -> float:
    """One-tailed p-value of the Wilcoxon signed-rank test: is x greater than y in k paired trials (Eq. 5)?

    Trials without a difference are dropped (Wilcoxon's own rule, SciPy's `zero_method="wilcox"`); if none is
    left, nothing speaks for x and p is 1. Differences equal up to rounding, such as 0.9 - 0.8 and 0.3 - 0.2,
    are ties and share their mean rank. p is exact for up to 50 trials, or 13 if there are ties; beyond that
    it comes from the normal approximation.

    Args:
        x: (k,), such as the accuracy of one method in each fold.
        y: (k,), that of the other method in the same folds.

    Raises:
        ValueError: x and y are not vectors of one length, are empty, or hold a value that is not finite.
    """
    x, y = _floats(x), _floats(y)
    if x.ndim != 1 or x.shape != y.shape or not x.size:
        raise ValueError(f"paired trials are two vectors of one length, not {x.shape} and {y.shape}")
    if not (np.isfinite(x) & np.isfinite(y)).all():
        raise ValueError("a trial without a finite score has no pair: leave it out of both vectors")
    differences = paired_differences(x, y)
    if not differences.size:
        return 1.0
    from scipy import stats  # slow to import

    return float(stats.wilcoxon(differences, alternative="greater").pvalue)


def paired_differences(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return x - y, both float64 (k,), of the trials that differ, up to a factor: `wilcoxon` ranks these."""
    scale = max(abs(x).max(), abs(y).max()) or 1.0
    differences = np.round(x / scale - y / scale, 12)
    found: np.ndarray = differences[differences != 0]
    return found


def _floats(values: np.ndarray) -> np.ndarray:
    """Return float64, NaN where a masked array hides its value."""
    return np.ma.filled(np.ma.asarray(values, np.float64), np.nan)


def _as_matrix(scores: np.ndarray, name: str) -> np.ndarray:
    scores = _floats(scores)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores of {name} are a matrix with runs as rows, but the shape is {scores.shape}")
    return scores


def _checked(scores: np.ndarray, name: str) -> np.ndarray:
    scores = _as_matrix(scores, name)
    if gaps := np.count_nonzero(~np.isfinite(scores)):
        raise ValueError(f"{gaps} of {scores.size} scores of {name} are not finite: leave such runs out")
    return scores


def _no_interval(*scores_RE: np.ndarray) -> str | None:
    """Return the reason why scores, of one method or of several, can have no interval; None if they can."""
    if min(map(len, scores_RE)) < 2:
        return "There is no interval: a single run does not show how much runs differ."
    if not any(np.nan_to_num(np.ptp(scores, axis=0)).any() for scores in scores_RE):
        return "There is no interval: the runs have identical scores, so resampling them changes nothing."
    return None


def _bootstrap(
    statistics: Callable[..., np.ndarray], *scores_RE: np.ndarray, repetitions: int, seed: int
) -> Band:
    """Band (T,) of `statistics` of one matrix, or of several, each resampled by itself."""
    if repetitions < 1:
        raise ValueError(f"{repetitions} repetitions of the bootstrap: give 1 or more")
    if reason := _no_interval(*scores_RE):
        return Band(statistics(*scores_RE), None, None, reason)
    from rliable.library import get_interval_estimates  # takes seconds to import

    scores = {"": scores_RE[0] if len(scores_RE) == 1 else scores_RE}
    state = np.random.get_state()  # noqa: NPY002 - rliable 1.2 ignores its random_state
    np.random.seed(seed)  # noqa: NPY002
    try:
        estimates, intervals = get_interval_estimates(scores, statistics, reps=repetitions)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return Band(estimates[""], *intervals[""])


def interval_at(band: Band, index: int) -> Interval:
    """Return the interval at one position of a band."""
    if band.low is None or band.high is None:
        return Interval(float(band.estimate[index]), None, None, band.reason)
    return Interval(float(band.estimate[index]), float(band.low[index]), float(band.high[index]))


def _aggregate(scores_RE: np.ndarray) -> np.ndarray:
    """Return rliable's aggregates in the order of `STATISTICS`, (T,), from one sort, for speed."""
    ordered = np.sort(scores_RE, axis=None)
    cut = ordered.size // 4
    means_E = np.sort(scores_RE.sum(axis=0)) / len(scores_RE)
    return np.array(
        [
            ordered.sum() / ordered.size,
            (means_E[(means_E.size - 1) // 2] + means_E[means_E.size // 2]) / 2,
            ordered[cut : ordered.size - cut].sum() / (ordered.size - 2 * cut),
            1 - np.minimum(ordered, 1).sum() / ordered.size,
        ]
    )


def _improvement(x_RE: np.ndarray, y_RE: np.ndarray) -> np.ndarray:
    """Return rliable's probability of improvement, (1,): the share of pairs X wins; a tie is half a win."""
    x_RRE, y_RRE = x_RE[:, None], y_RE[None]
    points = np.count_nonzero(x_RRE > y_RRE) + np.count_nonzero(x_RRE >= y_RRE)
    return np.array([points / (2 * len(x_RE) * y_RE.size)])
