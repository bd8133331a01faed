"""A study and its statistics -> the tables of a report, and its numbers as CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import pandas as pd

from camal_rl.results.comparison import FURTHER, METRICS, Comparison, Pair, Results, name
from camal_rl.results.figures import Table, fixed, percent, shown
from camal_rl.results.study import Study, pivot
from camal_rl.stats import Interval

STATISTIC_NAMES = {"mean": "Mean", "median": "Median", "iqm": "IQM", "optimality_gap": "Gap"}
LABELS = {"iou": "IoU", "return": "Normalized return"}


def pair(methods: Pair) -> str:
    """Return what a probability of improvement is of, such as "CAMAL > Vanilla"."""
    return " > ".join(map(name, methods))


def statistics_shown(study: Study, metric: str) -> dict[str, str]:
    """Return names of the statistics that add something: no gap that is 1 - mean, no median of one mean."""
    vain = {"optimality_gap"} if metric == "iou" else set()
    vain |= {"median"} if len(study.envs) == 1 else set()
    return {key: label for key, label in STATISTIC_NAMES.items() if key not in vain}


def overall(study: Study, results: Mapping[str, Results]) -> list[Table]:
    """Return tables of all environments: statistics of each method, then improvement of each pair."""
    rows, used = [], []
    for metric, found in results.items():
        for statistic, label in statistics_shown(study, metric).items():
            intervals = [found.joint.sbci[method][statistic] for method in study.methods]
            used += intervals
            rows.append([f"{LABELS[metric]}: {label}", *(shown(interval, 3) for interval in intervals)])
    note = (
        "Point estimate and 95 % stratified bootstrap interval. IQM is the mean of the middle half, the gap "
        "(optimality gap, low is good) how far scores stay below 1 on average."
    )
    columns = ["", *map(name, study.methods)]
    title = "Over all environments" if len(study.envs) > 1 else f"In {study.envs[0]}"
    statistics = Table(title, columns, rows, " ".join([note, *_reasons(used)]))
    return [
        statistics,
        *(_improvement(study, results, methods) for methods in combinations(study.methods, 2)),
    ]


def _improvement(study: Study, results: Mapping[str, Results], methods: Pair) -> Table:
    rows, used = [], []
    for where in ("", *study.envs) if len(study.envs) > 1 else study.envs:
        row = [where or "All environments"]
        for found in results.values():
            compared = found.environments.get(where, found.joint)
            used.append(compared.poi[methods])
            row += [shown(compared.poi[methods], 2), compared.verdicts[methods]]
        rows.append([*row, percent(chance(results, methods, where) or math.nan, " %")])
    note = (
        "Point estimate, 95 % interval and verdict. Chance: how often equal methods would be found "
        "significantly better or worse, with so many runs. Rows are not corrected for there "
        "being several."
    )
    columns = ["", "IoU", "Verdict", "Return", "Verdict", "Chance"]
    title = f"Probability of improvement: {pair(methods)}"
    return Table(title, columns, rows, " ".join([note, *_reasons(used)]))


def further(study: Study, found: Mapping[str, Comparison]) -> Table:
    """Return means of the measures beside IoU and return, and how the first method compares by them."""
    first, *others = study.methods
    rows, used = [], []
    for measure, compared in found.items():
        intervals = [compared.sbci[method]["mean"] for method in study.methods]
        improvements = [compared.poi[first, other] for other in others]
        used += [*intervals, *improvements]
        digits = 0 if measure == "steps_to_half" else 3
        row = [FURTHER[measure][0], *(shown(interval, digits) for interval in intervals)]
        for other, improvement in zip(others, improvements, strict=True):
            row += [shown(improvement, 2), compared.verdicts[first, other]]
        rows.append(row)
    note = (
        "Means over runs and environments, and the first method's probability of improvement. Areas lie "
        "under the change of the value while the pixels that attention finds most important are removed "
        "(faithful if great) or put back (faithful if small). Half the gain is half of what the best method "
        "gained over random play; a run that never gets there counts with all steps. Rows are not "
        "corrected for there being several."
    )
    columns = ["", *map(name, study.methods)]
    for other in others:
        columns += [f"POI over {name(other)}", "Verdict"]
    return Table(
        "Faithfulness, other looks, speed of learning", columns, rows, " ".join([note, *_reasons(used)])
    )


def chance(results: Mapping[str, Results], methods: Pair, env: str) -> float:
    """Rate at which chance makes a verdict in an environment, or over all (""); 0 where none can be."""
    every = [found.environments.get(env, found.joint) for found in results.values()]
    return max(compared.false_positive_rate.get(methods, 0) for compared in every)


def _reasons(intervals: Sequence[Interval]) -> list[str]:
    return list(dict.fromkeys(interval.reason for interval in intervals if interval.reason))


def by_environment(study: Study, results: Mapping[str, Results]) -> Table:
    """Return means over runs by environment and method."""
    rows, used = [], []
    for env in study.envs:
        low, high = study.scales.get(env, (0, 1))
        for method in study.methods:
            iou, scaled = (results[metric].environments[env].sbci[method]["mean"] for metric in METRICS)
            used += [iou, scaled]
            measures = ("iou_mask", "iou_constant", "iou_gradcam", "dead_map_fraction")
            mask, constant, plain, dead = (study.mean(m, environment=env, method=method) for m in measures)
            ends = (scaled.estimate, scaled.low, scaled.high)  # the scale is linear
            middle, bottom, top = (None if end is None else low + end * (high - low) for end in ends)
            raw = Interval(middle or 0, bottom, top)
            levels = [fixed(value, 3) for value in (plain, constant, mask)]
            row = [env, name(method), str(len(study.of(env, method))), shown(iou, 3), *levels]
            rows.append([*row, percent(dead, " %"), shown(scaled, 2), shown(raw, 1)])
    note = (
        "Means over runs. A normalized return is 0 for a random policy and 1 for the reference. Eq. 3 is "
        "the IoU of Grad-CAM's map, whichever map a run is trained by. Constant is "
        "the IoU of each run's mean map, which never moves: what IoU is above it has followed the targets. "
        "Mask is that of the mask itself when it is shown at the resolution of attention; attention can have "
        "more. A dead map is all zero and counts as IoU 0."
    )
    titles = ["Environment", "Method", "Runs", "IoU", "Eq. 3", "Constant", "Mask"]
    columns = [*titles, "Dead maps", "Normalized", "Return"]
    return Table("By environment", columns, rows, " ".join([note, *_reasons(used)]), labels=2)


RUN_COLUMNS = {
    "environment": "Environment",
    "method": "Method",
    "seed": "Seed",
    "return": "Return",
    "normalized_return": "Normalized",
    "iou": "IoU",
    "iou_mask": "Mask",
    "iou_constant": "Constant",
    "dead_map_fraction": "Dead maps",
    "steps": "Steps",
    "episodes": "Episodes",
}
"""Columns of `Study.table` that the page shows, and their titles."""


def every_run(study: Study) -> Table:
    """Return a row a run."""
    table = study.table[list(RUN_COLUMNS)]
    rows = [[fixed(v, 3) if isinstance(v, float) else str(v) for v in row] for row in table.itertuples(False)]
    return Table("Every run", list(RUN_COLUMNS.values()), rows, labels=2)


def data_files(study: Study) -> dict[str, bytes]:
    """Return numbers of every run, and matrices of runs x environments; a field without a number is empty."""
    files = {"scores.csv": study.table.to_csv(index=False).encode()}
    for metric, column in METRICS.items():
        matrices = {method: pivot(study.table, method, column, study.envs) for method in study.methods}
        files[f"{metric}.csv"] = pd.concat(matrices, names=["method"]).to_csv().encode()
    return files
