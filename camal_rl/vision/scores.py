"""The scores.json files of many folds, read and checked -> CAMAL paired with each other method, fold by fold.

Statistics are those of the paper's Appendix A: means over folds and a one-tailed Wilcoxon signed-rank test.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from camal_rl import metrics, stats
from camal_rl.errors import UserError
from camal_rl.results import comparison
from camal_rl.results.study import differences, in_order, some
from camal_rl.stats import Band, Interval

SIGNIFICANT = 0.05
"""A p below this is (paper, Tables 1 to 3 and 5)."""
STANDARD_ERRORS = 1.96
"""Half of a 95 % band (paper, Sec. 4)."""
DATA = {"busi": "BUSI", "pet": "Oxford-IIIT-Pet", "flower": "Oxford-Flower", "shapes": "Shapes"}
"""Names in prose, like those of models and methods in the order of rows and columns."""
MODELS = {
    "resnet18": "ResNet-18",
    "convnext_t": "ConvNeXt-T",
    "efficientnet_b0": "EfficientNet-B0",
    "vit_b_16": "ViT-B/16",
    "swin_v2_t": "SwinV2-T",
    "maxvit_t": "MaxViT-T",
}
METHODS = {**comparison.NAMES, "prior": "Prior"}
MEASURES = {"iou": "IoU", "accuracy": "accuracy"}
"""What methods are compared by, and its name in prose."""
KINDS = ("removal", "insertion")
OPTIONAL = ("pointing_game", "relevance_mass", "roc_auc")
NUMBERS = ("accuracy", "iou", "iou_ceiling", "dead_map_fraction", *OPTIONAL)
"""What scores.json holds of each test set, each in [0, 1]."""
ROUNDING = 1e-6
"""By how much a number may be outside its range: confidence is computed in single precision."""


def prose(key: str) -> str:
    """A data set, model or method as it is written in prose."""
    return {**DATA, **MODELS, **METHODS}.get(key, key)


# ------------------------------------------------------------------------------------------------------------
# The folds below a folder


class Fold(NamedTuple):
    """A fold that was evaluated. Its folder says what it is."""

    folder: Path
    data: str
    model: str
    method: str
    number: int
    scores: dict[str, Any]  # scores.json
    options: dict[str, Any]  # args.json's, by name; empty where it can't be read

    @property
    def title(self) -> str:
        """Data set, model, method and fold."""
        return f"{self.data}/{self.model}/{self.method}/fold{self.number}"

    def value(self, measure: str, shift: str = "") -> float:
        """A measure of the test set, or of the one with this shift; NaN where scores.json has none."""
        found = self.scores["shifted"].get(shift, {}) if shift else self.scores
        number = found.get(measure)
        return math.nan if number is None else float(number)


class Folds(NamedTuple):
    """All folds below a folder, and a sentence on each that is missing or damaged."""

    folds: list[Fold]
    problems: list[str]

    @property
    def data(self) -> list[str]:
        """Data sets in the report's order."""
        return in_order(DATA, (fold.data for fold in self.folds))

    @property
    def models(self) -> list[str]:
        """Models in the report's order."""
        return in_order(MODELS, (fold.model for fold in self.folds))

    @property
    def methods(self) -> list[str]:
        """Methods in the report's order."""
        return in_order(METHODS, (fold.method for fold in self.folds))

    @property
    def others(self) -> list[str]:
        """What CAMAL is compared with."""
        methods = self.methods
        return [method for method in methods if method != "camal"] if "camal" in methods else []

    def of(self, data: str, model: str, method: str) -> dict[int, Fold]:
        """Folds of a cell by number."""
        cell = (data, model, method)
        return {fold.number: fold for fold in self.folds if (fold.data, fold.model, fold.method) == cell}

    def spread(self, data: str, model: str, method: str, measure: str) -> Spread:
        """Of a measure over the folds of a cell."""
        return spread([fold.value(measure) for fold in self.of(data, model, method).values()])

    def cells(self) -> Iterator[tuple[str, str]]:
        """Data sets and models in their order, those that there are folds of."""
        there = {(fold.data, fold.model) for fold in self.folds}
        return ((data, model) for data in self.data for model in self.models if (data, model) in there)

    def pairs(self, other: str) -> Iterator[tuple[Fold, Fold]]:
        """CAMAL's folds and those of the other method with the same data set, model and number."""
        for data, model in self.cells():
            rivals = self.of(data, model, other)
            for number, fold in self.of(data, model, "camal").items():
                if number in rivals:
                    yield fold, rivals[number]

    def shifts(self, data: str) -> list[str]:
        """Names of the shifted test sets of a data set, in the files' order."""
        return list(
            dict.fromkeys(name for fold in self.folds if fold.data == data for name in fold.scores["shifted"])
        )


def read_folds(folder: Path) -> Folds:
    """Find and read the folds below a folder; what is missing or damaged becomes a sentence.

    Raises:
        UserError: no scores.json can be read.
    """
    folds: list[Fold] = []
    problems: list[tuple[Fold, str]] = []
    for place in folder.glob("*/*/*/fold*"):
        if not re.fullmatch(r"fold[1-9]\d*", place.name):
            continue
        data, model, method = place.parts[-4:-1]
        number = int(place.name.removeprefix("fold"))
        fold = Fold(place, data, model, method, number, {}, _read_options(place / "args.json"))
        try:
            fold.scores.update(_read_scores(place / "scores.json"))
        except FileNotFoundError:
            problems.append(
                (fold, f"{fold.title} has no scores.json and is left out: finish it, {_training(fold)}.")
            )
        except (OSError, ValueError, RecursionError) as error:  # the last of brackets nested without end
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            problems.append(
                (
                    fold,
                    f"{fold.title}/scores.json is damaged and left out ({reason}): make it anew, "
                    f"python -m camal_rl.vision.evaluate {place}.",
                )
            )
        else:
            folds.append(fold)
    folds.sort(key=lambda fold: fold[1:5])
    sentences = [sentence for _, sentence in sorted(problems, key=lambda problem: problem[0][1:5])]
    if not folds:
        raise UserError(
            f"{folder} holds no <data>/<model>/<method>/fold<k>/scores.json that can be read: train and "
            f"evaluate first, python -m camal_rl.vision.train. {' '.join(sentences[:1])}".rstrip()
        )
    return Folds(folds, sentences)


def _read_options(file: Path) -> dict[str, Any]:
    """What a fold was trained with, by the names of options; empty where that can't be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {
            name: value
            for group in ("run", "training", "attention", "machine")
            for name, value in content[group].items()
        }
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return {}


def _training(fold: Fold) -> str:
    """The command that trains a fold to its end, with all options that it was begun with.

    Defaults are written out, too: what they are only the trainer knows, which needs torch.
    """
    options = fold.options | {name: getattr(fold, name) for name in IN_FOLDER} | {"fold": fold.number}
    processes = options.pop("processes", 1)
    start = ["python"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes)]
    words = [*start, "-m", "camal_rl.vision.train", "--runs-dir", str(fold.folder.parents[3])]
    for name, value in options.items():
        if value is not None and value is not False:
            words.append(f"--{name.replace('_', '-')}")
            # Of a file there is only a checksum.
            words += [] if value is True else ["FILE" if str(value).startswith("sha256=") else str(value)]
    return shlex.join(words)


def _read_scores(file: Path) -> dict[str, Any]:
    """The content of a scores.json, all that is used of it checked; ValueError says what is wrong."""
    scores = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(scores, dict):
        raise ValueError("it is not an object")
    scores["shifted"] = scores.get("shifted") or {}
    if not isinstance(scores["shifted"], dict):
        raise ValueError("shifted is not an object")
    for shift, found in ((None, scores), *scores["shifted"].items()):
        where = "" if shift is None else f"shifted.{shift}"
        if shift is not None and not (isinstance(found, dict) and re.fullmatch(r"[\w-]+", shift)):
            raise ValueError(f"{where} is not an object with a name of letters, digits, _ and -")
        for name in NUMBERS:
            path = f"{where}.{name}" if where else name
            if name not in found and name not in OPTIONAL:
                raise ValueError(f"it has no {path}")
            value = found.get(name)
            # Without a target in the test set there is nothing that attention could be measured by.
            if not _is_number(value, 0, 1) and (value is not None or name == "accuracy"):
                raise ValueError(f"{path} is {value!r}, not between 0 and 1")
    if not (scores.get("folds") is None or _is_number(scores["folds"], 1, 10**6)):
        raise ValueError(f"folds is {scores['folds']!r}, not a number")
    seconds = scores.get("seconds_per_step")
    if not (seconds is None or _is_number(seconds, 0, 10**9)):
        raise ValueError(f"seconds_per_step is {seconds!r}, not a number")
    faithfulness = scores.get("faithfulness")
    if faithfulness is not None:
        if not isinstance(faithfulness, dict):
            raise ValueError("faithfulness is not an object")
        shares = _array(faithfulness, "faithfulness.shares", 1)
        if len(shares) < 2 or not (np.diff(shares) > 0).all():
            raise ValueError("faithfulness.shares do not ascend")
        for kind in KINDS:
            curves = _array(faithfulness, f"faithfulness.{kind}", 2)
            if curves.shape[1] != len(shares):
                raise ValueError(f"faithfulness.{kind} has not a number for each share")
    variances = ("attention_variance", "mask_variance")
    if any(scores.get(name) is not None for name in variances):
        attention, mask = (_array(scores, name, 2) for name in variances)
        if attention.shape != mask.shape:
            raise ValueError(f"attention_variance is {attention.shape}, but mask_variance {mask.shape}")
    return scores


def _is_number(value: object, low: float, high: float) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and low - ROUNDING <= value <= high + ROUNDING
    )


def _array(content: Mapping[str, Any], path: str, dimensions: int) -> np.ndarray:
    try:
        array = np.array(content.get(path.split(".")[-1]))
    except ValueError:  # rows of several lengths
        raise ValueError(f"{path} is no array of numbers") from None
    if (
        array.dtype.kind not in "iuf"  # given a dtype, NumPy would read strings as well
        or array.ndim != dimensions
        or not array.size
        or not ((array >= -ROUNDING) & (array <= 1 + ROUNDING)).all()
    ):
        raise ValueError(f"{path} is no array of numbers between 0 and 1 with {dimensions} dimensions")
    return array.astype(np.float64)


# ------------------------------------------------------------------------------------------------------------
# Numbers


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1 in the denominator) of n folds."""

    mean: float
    """NaN without folds."""
    deviation: float
    """NaN with fewer than two folds."""
    folds: int


def spread(values: Sequence[float]) -> Spread:
    """Of the values that are there; NaN is none."""
    known = [value for value in values if not math.isnan(value)]
    return Spread(
        statistics.fmean(known) if known else math.nan,
        statistics.stdev(known) if len(known) > 1 else math.nan,
        len(known),
    )


Verdict = Literal["significantly higher", "higher", "equal", "lower", "significantly lower"]


@dataclass(frozen=True)
class Paired:
    """CAMAL and another method by one measure, over the folds in which both have it."""

    data: str
    model: str
    other: str
    measure: str
    shift: str
    """Empty for the unshifted test set."""
    folds: tuple[int, ...]
    camal: tuple[float, ...]
    rival: tuple[float, ...]
    p: float
    """Of the one-tailed Wilcoxon signed-rank test that CAMAL is higher."""
    p_lower: float
    """Of the one that it is lower."""

    @property
    def differing(self) -> int:
        """Folds in which the two differ, up to rounding: others say nothing in the test."""
        return int(stats.paired_differences(np.array(self.camal), np.array(self.rival)).size)

    @property
    def difference(self) -> float:
        """CAMAL's mean less that of the other method."""
        return statistics.fmean(self.camal) - statistics.fmean(self.rival)

    @property
    def verdict(self) -> Verdict:
        """By means and p: bold in the paper's tables is "significantly higher", underlined is "higher"."""
        if abs(self.difference) < 1e-12:  # rounding
            return "equal"
        if self.difference > 0:
            return "significantly higher" if self.p < SIGNIFICANT else "higher"
        return "significantly lower" if self.p_lower < SIGNIFICANT else "lower"


class Curves(NamedTuple):
    """Confidence under removal and insertion, of CAMAL (place 0) and another method (1)."""

    shares: np.ndarray  # (S,)
    bands: Mapping[str, Mapping[int, Band]]  # of removal and insertion: mean and 95 % band by place
    areas: Mapping[str, tuple[float, float]]  # of the mean curves by place
    differences: Mapping[str, Interval]  # CAMAL's area less the other's, of the same samples
    samples: int  # curves of each method
    combinations: int  # of data set and model

    def relative(self, kind: str) -> float:
        """CAMAL's area less the other's, as a fraction of the other's; NaN if that is 0."""
        camal, rival = self.areas[kind]
        return camal / rival - 1 if rival else math.nan


class Variance(NamedTuple):
    """Variance over test samples at each place of a map, mean of the folds that both methods have."""

    data: str
    folds: int
    maps: Sequence[np.ndarray]  # (h, w) of masks, CAMAL's attention and the other's


@dataclass(frozen=True)
class Results:
    """All that is computed of the pairs."""

    paired: Mapping[tuple[str, str, str, str, str], Paired]
    """By data set, model, other method, measure and shift; only those with a fold."""
    curves: Mapping[str, Curves]
    """By other method; only those with curves."""
    variances: Mapping[str, Sequence[Variance]]
    """By other method: data sets in order, for each size of maps."""
    notes: Sequence[str]
    """What was left out, in sentences."""

    def all_of(self, other: str, measure: str, data: str = "", shift: str = "") -> list[Paired]:
        """Of a pair of methods, in every combination of data set and model, or in those of one data set."""
        return [
            one
            for one in self.paired.values()
            if (one.other, one.measure, one.shift) == (other, measure, shift) and data in ("", one.data)
        ]


def compare(folds: Folds) -> Results:
    """CAMAL paired with each other method."""
    paired, curves, variances, notes = {}, {}, {}, []
    for other in folds.others:
        for data, model in folds.cells():
            for shift in ("", *folds.shifts(data)):
                for measure in MEASURES:
                    if found := _pair(folds, data, model, other, measure, shift):
                        paired[data, model, other, measure, shift] = found
        found_curves, left_out = _faithfulness(folds, other)
        notes += left_out
        if found_curves:
            curves[other] = found_curves
        if found_variances := _variances(folds, other):
            variances[other] = found_variances
    return Results(paired, curves, variances, notes)


def _pair(folds: Folds, data: str, model: str, other: str, measure: str, shift: str) -> Paired | None:
    cells = [folds.of(data, model, method) for method in ("camal", other)]
    values = [{k: fold.value(measure, shift) for k, fold in cell.items()} for cell in cells]
    camal, rival = ({k for k, value in by_fold.items() if not math.isnan(value)} for by_fold in values)
    numbers = tuple(sorted(camal & rival))
    if not numbers:
        return None
    x, y = (tuple(by_fold[number] for number in numbers) for by_fold in values)
    p, p_lower = stats.wilcoxon(np.array(x), np.array(y)), stats.wilcoxon(np.array(y), np.array(x))
    return Paired(data, model, other, measure, shift, numbers, x, y, p, p_lower)


def _faithfulness(folds: Folds, other: str) -> tuple[Curves | None, list[str]]:
    """Mean and band over all sample curves of the folds that both methods have."""
    pairs = [pair for pair in folds.pairs(other) if all(fold.scores.get("faithfulness") for fold in pair)]
    if not pairs:
        return None, []
    shares = np.array(pairs[0][0].scores["faithfulness"]["shares"], np.float64)
    same: list[tuple[Fold, Fold]] = []
    left_out = []
    for pair in pairs:
        found = [fold.scores["faithfulness"] for fold in pair]
        alike = all(np.array_equal(one["shares"], shares) for one in found)
        if alike and all(len(found[0][kind]) == len(found[1][kind]) for kind in KINDS):
            same.append(pair)
        else:
            left_out.append(pair[0].title)
    notes = []
    if left_out:
        notes.append(
            f"Removal and insertion, CAMAL beside {prose(other)}: left out, for their curves are of other "
            f"shares of pixels or of other numbers of samples, {some(left_out)}."
        )
    if not same:
        return None, notes
    bands, areas, differences = {}, {}, {}
    for kind in KINDS:
        both = [
            np.concatenate([pair[place].scores["faithfulness"][kind] for pair in same]) for place in (0, 1)
        ]
        bands[kind] = {place: _band(curves) for place, curves in enumerate(both)}
        camal, rival = (metrics.area(curves, shares) for curves in both)
        areas[kind] = (float(camal.mean()), float(rival.mean()))
        band = _band((camal - rival)[:, None])
        low, high = (None if edge is None else float(edge[0]) for edge in (band.low, band.high))
        differences[kind] = Interval(float(band.estimate[0]), low, high, band.reason)
    combinations = len({(camal.data, camal.model) for camal, _ in same})
    return Curves(shares, bands, areas, differences, len(both[0]), combinations), notes


def _band(curves: np.ndarray) -> Band:
    """Of (N, S): mean and 95 % band over the first axis."""
    mean = curves.mean(axis=0)
    if len(curves) < 2:
        return Band(
            mean, None, None, "There is no band: a single curve does not show how much curves differ."
        )
    half = STANDARD_ERRORS * curves.std(axis=0, ddof=1) / math.sqrt(len(curves))
    return Band(mean, mean - half, mean + half)


def _variances(folds: Folds, other: str) -> list[Variance]:
    groups: dict[tuple[str, tuple[int, ...]], list[list[np.ndarray]]] = {}
    for camal, rival in folds.pairs(other):
        names = ((camal, "mask_variance"), (camal, "attention_variance"), (rival, "attention_variance"))
        if any(fold.scores.get(name) is None for fold, name in names):
            continue
        maps = [np.array(fold.scores[name], np.float64) for fold, name in names]
        if maps[1].shape == maps[2].shape:
            groups.setdefault((camal.data, maps[0].shape), []).append(maps)
    order = folds.data
    return [
        Variance(data, len(maps), list(np.mean(maps, axis=0)))
        for (data, _), maps in sorted(
            groups.items(), key=lambda group: (order.index(group[0][0]), group[0][1])
        )
    ]


def companions(folds: Folds, one: Paired) -> tuple[float, float, float]:
    """Ceiling of IoU, and CAMAL's and the other's fraction of dead maps, in the folds of a pair."""
    camal, rival = (folds.of(one.data, one.model, method) for method in ("camal", one.other))
    ceiling, dead_camal, dead_rival = (
        spread([cell[number].value(name, one.shift) for number in one.folds]).mean
        for cell, name in (
            (camal, "iou_ceiling"),
            (camal, "dead_map_fraction"),
            (rival, "dead_map_fraction"),
        )
    )
    return ceiling, dead_camal, dead_rival


# ------------------------------------------------------------------------------------------------------------
# Gaps, and what makes folds hard to compare


def gaps(folds: Folds) -> list[str]:
    """A sentence on each thing that is missing or left out."""
    return [*folds.problems, *_absent(folds), *_unpaired(folds)]


def _absent(folds: Folds) -> list[str]:
    """Cells with fewer folds than cross-validation has, though nothing of the others is there."""
    sentences = []
    for data, model in folds.cells():
        for method in folds.methods:
            cell = folds.of(data, model, method)
            total = max((int(fold.scores.get("folds") or 0) for fold in cell.values()), default=0)
            absent = [str(k) for k in range(1, total + 1) if k not in cell]
            told = [line for line in folds.problems if line.startswith(f"{data}/{model}/{method}/fold")]
            if len(absent) > len(told):
                sentences.append(
                    f"{data}/{model}/{method} has scores of {len(cell)} of {total} folds: "
                    f"{some(absent, 10)} {'is' if len(absent) == 1 else 'are'} not there."
                )
    return sentences


def _unpaired(folds: Folds) -> list[str]:
    sentences = []
    for other in folds.others:
        for data, model in folds.cells():
            camal, rival = (folds.of(data, model, method) for method in ("camal", other))
            alone = {
                prose(method): [str(number) for number in own if number not in partners]
                for method, own, partners in (("camal", camal, rival), (other, rival, camal))
            }
            if rival and any(alone.values()):
                told = "; ".join(
                    f"{', '.join(numbers)} of {method}" for method, numbers in alone.items() if numbers
                )
                sentences.append(
                    f"{data}/{model}, CAMAL beside {prose(other)}: folds without a partner are left out, "
                    f"{told}."
                )
    for fold in folds.folds:
        for shift in ("", *folds.shifts(fold.data)):
            where = f"{fold.title}{f', {shift}' if shift else ''}"
            if math.isnan(fold.value("accuracy", shift)):
                sentences.append(f"{where}: this test set was not evaluated, and is left out.")
            elif math.isnan(fold.value("iou", shift)):
                sentences.append(f"{where}: there is no IoU, and it is left out where IoU is compared.")
    return sentences


def comparability(folds: Folds) -> list[str]:
    """A sentence on each way in which folds differ that should differ by method only."""
    sentences = []
    for fold in folds.folds:
        known = fold.scores.get
        said = f"{known('data')}/{known('model')}/{known('method')}/fold{known('fold')}"
        if said != fold.title:
            sentences.append(f"The folder {fold.title} holds scores of {said}; the folder's name is used.")
    if unknown := [fold.title for fold in folds.folds if not fold.options]:
        sentences.append(
            "How these folds were trained is known as far as scores.json says it, for they have no args.json "
            f"that can be read: {some(unknown)}."
        )
    for data, model in folds.cells():
        cell = [fold for fold in folds.folds if (fold.data, fold.model) == (data, model)]
        if parts := _differences(cell):
            sentences.append(f"Compare with care: folds of {data}/{model} differ. {'; '.join(parts)}.")
        if len({json.dumps([fold.scores.get(name) for name in ("seed", "folds")]) for fold in cell}) > 1:
            sentences.append(
                f"Folds of {data}/{model} with another seed, or of another number of folds, are of another "
                "partition of the images, so test sets overlap: together they are no cross-validation."
            )
    return sentences


IN_FOLDER = ("data", "model", "method")
"""Options that name a fold's folder."""
IN_SCORES = ("epochs", "weights", "folds", "seed", "version")
"""What scores.json has of a training, for folds without args.json."""
SUPERVISION = ("camal_coef", "empty_mask")
"""Options without a meaning for Vanilla. `attention` has one: it is measured that way, too."""


def _differences(cell: Sequence[Fold]) -> list[str]:
    """In what the folds of a data set and model differ, but for their method and number."""
    parts = []
    for name in dict.fromkeys((*IN_SCORES, *(name for fold in cell for name in fold.options))):
        values = {}
        for fold in cell:
            known = fold.scores if name in IN_SCORES else fold.options
            if name in known and _matters(name, fold.method):
                values[f"{fold.method}/fold{fold.number}"] = {name: known[name]}
        parts += differences(values, "folds")
    for number in sorted({fold.number for fold in cell}):
        tested = {
            f"{fold.method}/fold{number}": {f"test images of fold {number}": fold.scores.get("samples")}
            for fold in cell
            if fold.number == number
        }
        parts += differences(tested, "folds")
    return parts


def _matters(option: str, method: str) -> bool:
    if option == "prior":
        return method == "prior"
    if option in SUPERVISION:
        return method != "vanilla"
    return option not in (*IN_FOLDER, "fold")
