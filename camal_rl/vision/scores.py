"""The scores.json files of many folds -> CAMAL paired with each other method, fold by fold.

Statistics are those of the paper's Appendix A: means over folds and a one-tailed Wilcoxon signed-rank test.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field, StringConstraints

from camal_rl import metrics, stats
from camal_rl.errors import UserError
from camal_rl.results import comparison
from camal_rl.results.study import (
    Content,
    Fraction,
    by_row,
    differences,
    in_order,
    options,
    read_content,
    some,
    variants,
)
from camal_rl.stats import Band, Interval

SIGNIFICANT = 0.05
"""A p below this is (paper, Tables 1 to 3 and 5)."""
STANDARD_ERRORS = 1.96
"""Half of a 95 % band (paper, Sec. 4)."""
DATA = {
    "busi": "BUSI",
    "pet": "Oxford-IIIT-Pet",
    "flower": "Oxford-Flower",
    "shapes": "Shapes",
    "cutouts": "Cut-outs",
}
"""Names in prose, like those of models and methods in the order of rows and columns."""
MODELS = {
    "resnet18": "ResNet-18",
    "convnext_t": "ConvNeXt-T",
    "efficientnet_b0": "EfficientNet-B0",
    "vit_b_16": "ViT-B/16",
    "swin_v2_t": "SwinV2-T",
    "maxvit_t": "MaxViT-T",
    "mobilenet_v2": "MobileNetV2",
}
METHODS = {**comparison.NAMES, "prior": "Prior"}
MEASURES = {"iou": "IoU", "accuracy": "accuracy"}
"""Measures that methods are compared by, and their names in prose."""
UNSHIFTED = "unshifted"
"""The test set that is like the training set."""


def prose(key: str) -> str:
    """A data set, model or method as it is written in prose."""
    return {**DATA, **MODELS, **METHODS}.get(key, key)


# ------------------------------------------------------------------------------------------------------------
# The folds below a folder


class Faithfulness(Content):
    """Confidence in the true class at shares of pixels removed and inserted, a curve a sample."""

    shares: list[float]
    removal: list[list[float]]
    insertion: list[list[float]]


class Measures(Content):
    """Measures of a test set; those of attention are None where no sample has a mask."""

    accuracy: Fraction
    iou: Fraction | None
    iou_mask: Fraction | None
    dead_map_fraction: Fraction | None
    pointing_game: Fraction | None = None
    relevance_mass: Fraction | None = None
    roc_auc: Fraction | None = None


NUMBERS = list(Measures.model_fields)


class OfMap(Content):
    """IoU by one kind of attention, and areas of its faithfulness: pixels removed are grey, or blurred."""

    iou: Fraction | None
    removal: Fraction
    insertion: Fraction
    removal_blurred: Fraction
    insertion_blurred: Fraction


class Scores(Measures):
    """The fields of a fold's scores.json: how the fold was trained, and how it does."""

    method: str
    folds: int
    seed: int
    epochs: int
    weights: str
    version: str
    samples: int
    shifted: dict[Annotated[str, StringConstraints(pattern=r"^[\w-]+$")], Measures] = Field({})
    faithfulness: Faithfulness | None = None
    maps: dict[str, OfMap] = Field({})
    attention_variance: list[list[float]] | None = None
    mask_variance: list[list[float]] | None = None
    seconds_per_step: float | None = None


class Fold(NamedTuple):
    """A fold that was evaluated. Its folder says what it is."""

    folder: Path
    data: str
    model: str
    method: str
    number: int
    scores: Scores
    options: dict[str, Any]  # args.json's, by name; empty where it can't be read

    @property
    def title(self) -> str:
        """Data set, model, method and fold."""
        return f"{self.data}/{self.model}/{self.method}/fold{self.number}"


class Folds(NamedTuple):
    """All folds below a folder in the report's order, and a sentence on each that is missing or damaged."""

    folds: list[Fold]
    problems: list[str]
    table: pd.DataFrame  # a row a fold and test set: what it is, and `NUMBERS`, NaN where there is none

    def names(self, column: str) -> list[str]:
        """Return what there is of "data", "model", "method" or "test_set", in the report's order."""
        return list(self.table[column].cat.categories)

    @property
    def others(self) -> list[str]:
        """Methods that CAMAL is compared with."""
        methods = self.names("method")
        return [method for method in methods if method != "camal"] if "camal" in methods else []

    def pairs(self, other: str) -> list[tuple[Fold, Fold]]:
        """Return CAMAL's folds with those of the other method of the same data set, model and number."""
        rivals = {(*fold[1:3], fold.number): fold for fold in self.folds if fold.method == other}
        own = {(*fold[1:3], fold.number): fold for fold in self.folds if fold.method == "camal"}
        return [(fold, rivals[key]) for key, fold in own.items() if key in rivals]


def read_folds(folder: Path) -> Folds:
    """Find and read the folds below a folder; what is missing or damaged becomes a sentence.

    Raises:
        UserError: no scores.json can be read.
    """
    folds: list[Fold] = []
    problems: list[str] = []
    for place in sorted(folder.glob("*/*/*/fold*")):
        if not re.fullmatch(r"fold[1-9]\d*", place.name):
            continue
        data, model, method = place.parts[-4:-1]
        title = "/".join(place.parts[-4:])
        if not (place / "scores.json").is_file():
            problems.append(f"{title} has no scores.json and is left out: train it to its end.")
            continue
        try:
            again = f"Make it anew: python -m camal_rl.vision.evaluate {place}"
            scores = read_content(place / "scores.json", Scores, again)
        except UserError as mistake:
            problems.append(f"{title} is left out: {mistake}.")
            continue
        given: dict[str, Any] = {}
        with suppress(OSError, ValueError, AttributeError):
            given = options(json.loads((place / "args.json").read_bytes()))
        number = int(place.name.removeprefix("fold"))
        folds.append(Fold(place, data, model, method, number, scores, given))
    if not folds:
        raise UserError(
            f"{folder} holds no <data>/<model>/<method>/fold<k>/scores.json that can be read: train and "
            f"evaluate first, python -m camal_rl.vision.train. {' '.join(problems[:1])}".rstrip()
        )
    rows = [
        dict(zip(("data", "model", "method", "fold"), fold[1:5], strict=True))
        | {"test_set": test_set, **measures.model_dump(include={*NUMBERS, "seconds_per_step"})}
        for fold in folds
        for test_set, measures in {UNSHIFTED: fold.scores, **fold.scores.shifted}.items()
    ]
    table = pd.DataFrame(rows).astype(dict.fromkeys([*NUMBERS, "seconds_per_step"], float))
    orders = {"data": DATA, "model": MODELS, "method": METHODS, "test_set": [UNSHIFTED]}
    for column, known in orders.items():
        table[column] = pd.Categorical(table[column], in_order(known, table[column]), ordered=True)
    table = table.sort_values(["data", "model", "method", "fold", "test_set"], ignore_index=True)
    order = list(dict.fromkeys(table[["data", "model", "method", "fold"]].itertuples(index=False, name=None)))
    return Folds(sorted(folds, key=lambda fold: order.index(fold[1:5])), problems, table)


# ------------------------------------------------------------------------------------------------------------
# Numbers


def mean(values: pd.Series) -> float:
    """Mean of the values that are there, correctly rounded; NaN of none."""
    known = values.dropna()
    return statistics.fmean(known) if len(known) else math.nan


Verdict = Literal["significantly higher", "higher", "equal", "lower", "significantly lower"]


@dataclass(frozen=True)
class Paired:
    """CAMAL and another method by one measure, over the folds in which both have it."""

    data: str
    model: str
    other: str
    measure: str
    test_set: str
    folds: pd.DataFrame
    """A row a fold: the measure as "camal" and "rival", IoU of the "mask", "dead_camal" and "dead_rival"."""
    p: float
    """p-value of the one-tailed Wilcoxon signed-rank test that CAMAL is higher."""
    p_lower: float
    """p-value of the test that it is lower."""

    @property
    def means(self) -> tuple[float, float]:
        """CAMAL's mean and that of the other method."""
        return mean(self.folds["camal"]), mean(self.folds["rival"])

    @property
    def differing(self) -> int:
        """Folds in which the two differ, up to rounding: others say nothing in the test."""
        return int(stats.paired_differences(*self.folds[["camal", "rival"]].to_numpy().T).size)

    @property
    def verdict(self) -> Verdict:
        """By means and p: bold in the paper's tables is "significantly higher", underlined is "higher"."""
        camal, rival = self.means
        if abs(camal - rival) < 1e-12:  # rounding
            return "equal"
        if camal > rival:
            return "significantly higher" if self.p < SIGNIFICANT else "higher"
        return "significantly lower" if self.p_lower < SIGNIFICANT else "lower"


@dataclass(frozen=True, eq=False)
class Curves:
    """Confidence under removal and insertion, of CAMAL and another method."""

    shares: np.ndarray  # (S,)
    bands: Mapping[str, Mapping[str, Band]]  # of removal and insertion: mean and 95 % band by method
    areas: Mapping[str, tuple[float, float]]  # of the mean curves, CAMAL's and the other's
    differences: Mapping[str, Interval]  # CAMAL's area less the other's, of the same samples
    samples: int  # curves of each method


@dataclass(frozen=True, eq=False)
class Variance:
    """Variance over test samples at each place of a map, mean of the folds that both methods have."""

    data: str
    folds: int
    maps: Sequence[np.ndarray]  # (h, w) of masks, CAMAL's attention and the other's


class Results(NamedTuple):
    """All that is computed of the pairs."""

    paired: Sequence[Paired]  # those that have a fold, in the report's order
    curves: Mapping[str, Curves]  # by other method; only those with curves
    variances: Mapping[str, Sequence[Variance]]  # by other method: data sets in order, for each size of maps

    def select(self, **wanted: str) -> list[Paired]:
        """Return the pairs that have these values in these fields."""
        return [pair for pair in self.paired if wanted.items() <= vars(pair).items()]


def compare(folds: Folds) -> Results:
    """Pair CAMAL with each other method."""
    paired: list[Paired] = []
    key = ["data", "model", "test_set", "fold"]
    wide = folds.table.pivot(index=key, columns="method", values=NUMBERS)
    for other in folds.others:
        for measure in MEASURES:
            columns = {
                "camal": wide[measure, "camal"],
                "rival": wide[measure, other],
                "mask": wide["iou_mask", "camal"],
                "dead_camal": wide["dead_map_fraction", "camal"],
                "dead_rival": wide["dead_map_fraction", other],
            }
            both = pd.DataFrame(columns).dropna(subset=["camal", "rival"])
            for (data, model, test_set), rows in both.groupby(level=key[:3], observed=True):
                x, y = rows["camal"].to_numpy(), rows["rival"].to_numpy()
                p, p_lower = stats.wilcoxon(x, y), stats.wilcoxon(y, x)
                by_fold = rows.droplevel(key[:3])
                paired.append(Paired(data, model, other, measure, test_set, by_fold, p, p_lower))
    curves = {other: found for other in folds.others if (found := _faithfulness(folds, other))}
    variances = {other: maps for other in folds.others if (maps := _variances(folds, other))}
    return Results(paired, curves, variances)


def _faithfulness(folds: Folds, other: str) -> Curves | None:
    """Mean and band over all sample curves of the folds that both methods have, of the same shares."""
    every = [tuple(fold.scores.faithfulness for fold in pair) for pair in folds.pairs(other)]
    alike = [(x, y) for x, y in every if x and y and len(x.removal) == len(y.removal)]
    there = [(x, y) for x, y in alike if x.shares == y.shares == alike[0][0].shares]
    if not there:
        return None
    shares = there[0][0].shares
    bands, areas, apart = {}, {}, {}
    for kind in ("removal", "insertion"):
        curves = [np.concatenate([getattr(both[place], kind) for both in there]) for place in (0, 1)]
        bands[kind] = {method: _band(part) for method, part in zip(("camal", other), curves, strict=True)}
        camal_area, rival_area = (metrics.area(part, np.array(shares)) for part in curves)  # of each sample
        areas[kind] = (float(camal_area.mean()), float(rival_area.mean()))
        apart[kind] = stats.interval_at(_band((camal_area - rival_area)[:, None]), 0)
    return Curves(np.array(shares), bands, areas, apart, len(curves[0]))


def _band(curves: np.ndarray) -> Band:
    """Mean and 95 % band over the first axis of (N, S)."""
    mean = curves.mean(axis=0)
    if len(curves) < 2:
        why = "There is no band: a single curve does not show how much curves differ."
        return Band(mean, None, None, why)
    half = STANDARD_ERRORS * curves.std(axis=0, ddof=1) / math.sqrt(len(curves))
    return Band(mean, mean - half, mean + half)


def _variances(folds: Folds, other: str) -> list[Variance]:
    groups: dict[tuple[str, Any], list[Any]] = {}
    for camal, rival in folds.pairs(other):
        every = (camal.scores.mask_variance, camal.scores.attention_variance, rival.scores.attention_variance)
        maps = [np.array(variance) for variance in every if variance is not None]
        if len(maps) == 3 and len({variance.shape for variance in maps}) == 1:
            groups.setdefault((camal.data, maps[0].shape), []).append(maps)
    return [Variance(data, len(maps), list(np.mean(maps, axis=0))) for (data, _), maps in groups.items()]


# ------------------------------------------------------------------------------------------------------------
# What makes folds hard to compare


def comparability(folds: Folds) -> list[str]:
    """Return a sentence on each way in which folds are missing, or differ though only the method should."""
    cells = {key: list(cell) for key, cell in groupby(folds.folds, lambda fold: fold[1:3])}
    sentences, missing = list(folds.problems), []
    for (data, model), cell in cells.items():
        for method in dict.fromkeys(fold.method for fold in cell):
            have = {fold.number for fold in cell if fold.method == method}
            total = max(fold.scores.folds for fold in cell)
            titles = [f"{data}/{model}/{method}/fold{k}" for k in range(1, total + 1) if k not in have]
            missing += [title for title in titles if f"{title} " not in " ".join(folds.problems)]
    if missing:
        sentences.append(f"Missing: {some(missing)}. Methods are compared over folds that both have.")
    for (data, model), cell in cells.items():
        told = {f"{fold.method}/fold{fold.number}": _described(fold) for fold in cell}
        sentences += differences(f"Compare with care: folds of {data}/{model} differ.", told, "folds")
        trained = [(fold.method, _training(fold)) for fold in cell]
        sentences += variants(f"Rows of {data}/{model} differ in options of training:", trained)
        if len({(fold.scores.seed, fold.scores.folds) for fold in cell}) > 1:
            sentences.append(
                f"Folds of {data}/{model} with another seed, or of another number of folds, are of another "
                "partition of the images, so test sets overlap: together they are no cross-validation."
            )
    return sentences


def _described(fold: Fold) -> dict[str, Any]:
    """Return how a fold was trained and tested, by the names to compare it by."""
    known = by_row(fold.method, _training(fold))
    known |= fold.scores.model_dump(include={"folds", "seed", "version"})
    known |= {name: value for name, value in fold.options.items() if name == "code"}
    known[f"test images of fold {fold.number}"] = fold.scores.samples
    if curves := fold.scores.faithfulness:
        known["shares of removed pixels"] = len(curves.shares)
    return known


def _training(fold: Fold) -> dict[str, Any]:
    """Return how a fold was trained, but for what names it and what its method has no use for."""
    method = fold.scores.method
    useless = {"data", "model", "name", "fold", "folds", "seed", "code"}
    useless |= {"camal_coef", "empty_mask"} if method == "vanilla" else set()
    useless |= set() if method == "prior" else {"prior"}
    known = fold.options | fold.scores.model_dump(include={"method", "epochs", "weights"})
    return {name: value for name, value in known.items() if name not in useless}
