"""Scores of folds -> the paper's Tables 1, 2, 3 and 5, Figures 3, 5, 10 and 12, and a page that says it all.

`scores` reads and computes, `camal_rl.results.figures` draws; here is what is said and shown of it.
"""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
import statistics
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure
from PIL import Image

from camal_rl import __version__
from camal_rl.report import to_json
from camal_rl.results import figures as page
from camal_rl.results import media
from camal_rl.results.figures import NOTHING, Table, fixed
from camal_rl.results.study import some
from camal_rl.run.command_line import run_at_once
from camal_rl.run.files import make_folder, write_together
from camal_rl.vision.scores import (
    KINDS,
    MEASURES,
    NUMBERS,
    OPTIONAL,
    SIGNIFICANT,
    STANDARD_ERRORS,
    Curves,
    Folds,
    Paired,
    Results,
    Spread,
    Variance,
    companions,
    comparability,
    compare,
    gaps,
    prose,
    read_folds,
    spread,
)

LONG = 30
"""Tables with more rows are folded up in the page."""
FORMAT = 1
"""Of the report's statistics.json."""
FEWEST = 5
"""Paired folds that differ with which a p below `SIGNIFICANT` is possible: the smallest p of n is 2**-n."""


@dataclass
class Args:
    """Compare CAMAL with other methods over folds: tables, figures, tests and a page to read."""

    runs: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUNS")]]
    """folder that holds <data>/<model>/<method>/fold<k>/scores.json, such as runs/vision"""
    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder to write to, RUNS/report if none is given"""


def parse_args(arguments: list[str] | None = None) -> Args:
    """Read the command line; exits with code 2 and a message where it can't be understood."""
    return tyro.cli(Args, prog="python -m camal_rl.vision.report", args=arguments)


# ------------------------------------------------------------------------------------------------------------
# In words


def warnings(folds: Folds, results: Results) -> list[str]:
    """What has to be known before the tables are believed."""
    return [
        *gaps(folds),
        *results.notes,
        *_too_few(results),
        *comparability(folds),
        *_dead(folds),
    ]


def _too_few(results: Results) -> list[str]:
    few: dict[int, list[str]] = {}
    for one in results.paired.values():
        if one.differing < FEWEST and not one.shift:
            ties = len(one.folds) - one.differing
            tied = f" ({MEASURES[one.measure]}, {ties} of {len(one.folds)} tied)" if ties else ""
            where = f"{one.data}/{one.model} beside {prose(one.other)}{tied}"
            few.setdefault(one.differing, []).append(where)
    told = [
        f"{count} {'fold' if count == 1 else 'folds'}, p at least {2.0**-count:g}, of "
        f"{some(list(dict.fromkeys(few[count])))}"
        for count in sorted(few)
    ]
    if not told:
        return []
    return [
        "Too few folds for significance: the smallest p of n paired folds is 2^-n, without those that are "
        f"tied, so fewer than {FEWEST} can't give p < {SIGNIFICANT}, whatever the scores. That holds for "
        f"{'; '.join(told)}."
    ]


def _dead(folds: Folds) -> list[str]:
    sentences = []
    for data, model in folds.cells():
        for method in folds.methods:
            dead = folds.spread(data, model, method, "dead_map_fraction").mean
            if dead >= 0.5:
                sentences.append(
                    f"{page.percent(dead)} % of the maps of {data}/{model}/{method} are dead: each counts as "
                    "IoU 0, because there is no attention to measure, not because it is in a wrong place."
                )
    return sentences


class Words(NamedTuple):
    """How a verdict speaks of a measure."""

    subject: str
    better: str
    worse: str
    same: str


WORDS = {
    "iou": Words("attention", "better aligned than", "worse aligned than", "as well aligned as"),
    "accuracy": Words("accuracy", "higher than", "lower than", "the same as"),
}


def verdicts(folds: Folds, results: Results) -> list[str]:
    """The findings in plain words, whichever way they point: a paragraph on each other method."""
    if not folds.others:
        have = ", ".join(map(prose, folds.methods))
        return [f"There are only scores of {have}: nothing is compared with CAMAL."]
    paragraphs = []
    for other in folds.others:
        sentences = [
            _judged(folds, other, measure, pairs)
            for measure in MEASURES
            if (pairs := results.all_of(other, measure))
        ]
        if other in results.curves:
            sentences.append(_faithful(other, results.curves[other]))
        sentences += [
            _shifted(folds, results, data, shift, other)
            for data in folds.data
            for shift in folds.shifts(data)
            if results.all_of(other, "accuracy", data, shift)
        ]
        paragraphs.append(
            " ".join(sentences) or f"No fold of {prose(other)} can be compared with one of CAMAL."
        )
    return paragraphs


def _judged(folds: Folds, other: str, measure: str, pairs: Sequence[Paired]) -> str:
    words, found = WORDS[measure], [one.verdict for one in pairs]
    higher = [verdict for verdict in found if verdict.endswith("higher")]
    lower = [verdict for verdict in found if verdict.endswith("lower")]
    if len(higher) == len(found):
        phrase = _strength(higher) + words.better
    elif len(lower) == len(found):
        phrase = _strength(lower) + words.worse
    elif higher and lower:
        phrase = f"not consistently {words.better}"
    elif higher or lower:
        phrase = f"partly {words.better if higher else words.worse}"
    else:
        phrase = words.same
    told = f"a mean of {_against(pairs)}"
    if measure == "iou":
        told = f"a mean IoU of {_against(pairs)} ({_beside(folds, pairs)})"
    return (
        f"CAMAL's {words.subject} is {phrase} {prose(other)}'s: {told}, {_counted(found, 'combination')} of "
        "data set and model."
    )


def _strength(verdicts: Sequence[str]) -> str:
    significant = [verdict.startswith("significantly") for verdict in verdicts]
    return "significantly " if all(significant) else "" if any(significant) else "not significantly "


def _counted(found: Sequence[str], unit: str) -> str:
    """In how many of so many units CAMAL is higher and, if in any, lower."""
    told = []
    for word in ("higher", "lower"):
        every = [verdict for verdict in found if verdict.endswith(word)]
        significant = sum(verdict.startswith("significantly") for verdict in every)
        if every or word == "higher":
            told.append(f"{word} in {len(every)}{f' ({significant} significantly)' if every else ''}")
    return f"{' and '.join(told)} of {_count(len(found), unit)}"


def _against(pairs: Sequence[Paired]) -> str:
    """Means over combinations of the means over folds."""
    camal, rival = (
        statistics.fmean(map(statistics.fmean, sides))
        for sides in ([one.camal for one in pairs], [one.rival for one in pairs])
    )
    return f"{page.percent(camal)} % against {page.percent(rival)} %"


def _beside(folds: Folds, pairs: Sequence[Paired]) -> str:
    """The ceiling, which attention can exceed, and dead maps of the folds that were compared."""
    means = (spread(values).mean for values in zip(*(companions(folds, one) for one in pairs), strict=True))
    ceiling, camal, rival = map(page.percent, means)
    return f"the mask itself, at that resolution, {ceiling} %; dead maps {camal} % and {rival} %"


def _faithful(other: str, curves: Curves) -> str:
    """More or less faithful is what the interval of the difference says: it has to be on one side of 0."""
    sides = []  # 1 if CAMAL is more faithful, -1 if less, 0 if that is open
    for kind, faithful in zip(KINDS, (-1, 1), strict=True):
        low, high = curves.differences[kind].low, curves.differences[kind].high
        sides.append(0 if low is None or high is None else faithful * ((low > 0) - (high < 0)))
    phrase = {
        (1, 1): "more faithful than",
        (-1, -1): "less faithful than",
        (0, 0): "not clearly more or less faithful than",
    }.get((sides[0], sides[1]))
    if phrase is None:
        words = {1: "more", 0: "not clearly more or less", -1: "less"}
        phrase = f"{words[sides[0]]} faithful by removal and {words[sides[1]]} by insertion than"
    removal, insertion = (curves.areas[kind] for kind in KINDS)
    return (
        f"CAMAL's attention is {phrase} {prose(other)}'s: the area under the curve (AUC) of confidence is "
        f"{removal[0]:.3f} against {removal[1]:.3f} under removal (low is faithful) and {insertion[0]:.3f} "
        f"against {insertion[1]:.3f} under insertion (high is faithful)."
    )


def _shifted(folds: Folds, results: Results, data: str, shift: str, other: str) -> str:
    pairs = results.all_of(other, "accuracy", data, shift)
    drops = []
    for method in ("camal", other):
        cells = ((folds.of(data, one.model, method), one.folds) for one in pairs)
        chosen = [cell[number] for cell, numbers in cells for number in numbers]
        drop = spread([fold.value("accuracy") - fold.value("accuracy", shift) for fold in chosen]).mean
        drops.append(page.percent(drop))
    return (
        f"On {prose(data)} {_shift(shift)} accuracy drops by {drops[0]} and {drops[1]} points, to "
        f"{_against(pairs)}, {_counted([one.verdict for one in pairs], 'model')}."
    )


LIMITS = (
    "Standard deviations are those of a sample (n - 1 in the denominator).",
    "The test is one-tailed, as in the paper: is CAMAL higher? The table of p-values has the other direction "
    "too. Nothing is corrected for there being several tests.",
    "Folds of a cross-validation share most of their training images, so their differences are less "
    "independent than the test assumes, and a p may be too small.",
    "Not significant does not mean equal.",
)


# ------------------------------------------------------------------------------------------------------------
# Tables


def table_csv(table: Table) -> bytes:
    """The table's text as it is, without emphasis."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    for row in (table.columns, *table.rows):
        writer.writerow(map(page.plain, row))
    return content.getvalue().encode()


def tables(folds: Folds, results: Results) -> dict[str, Table]:
    """The report's tables by the names of their files."""
    found: dict[str, Table] = {}
    for measure in MEASURES:
        for other in sorted(folds.others, key=lambda one: PLACES[measure].get(one, "unnumbered")):
            if results.all_of(other, measure):
                name = PLACES[measure].get(other, f"{measure}-{other}")
                found[name] = _paper_table(folds, results, other, measure, name)
                if measure == "iou":
                    found[f"{name}-ceilings"] = _ceilings(folds, results, other)
    for data in folds.data:
        for shift in folds.shifts(data):
            found[f"shifted-{data}-{shift}"] = _shift_table(folds, results, data, shift)
    if results.paired:
        found["p-values"] = _p_values(results)
    found["all-methods"] = _all_methods(folds)
    return found


PLACES = {
    "iou": {"prior": "table1", "vanilla": "table5"},
    "accuracy": {"vanilla": "table2", "prior": "table3"},
    "attention": {"prior": "figure3", "vanilla": "figure10"},
    "faithfulness": {"prior": "figure5", "vanilla": "figure12"},
}
"""Names of files after the paper's tables and figures; methods that it has no such table of have none."""
WRITTEN = re.compile(
    rf"({'|'.join(name for by_method in PLACES.values() for name in by_method.values())}|p-values|"
    rf"({'|'.join([*MEASURES, *PLACES])}|shifted)-[\w-]+)(-ceilings)?\.(csv|png|svg)"
)
"""Names of the files that some reports have and others don't."""


def _paper_table(folds: Folds, results: Results, other: str, measure: str, name: str) -> Table:
    pairs = results.all_of(other, measure)
    data_sets = [data for data in folds.data if any(one.data == data for one in pairs)]
    rows = []
    for model in folds.models:
        row = [prose(model)]
        for data in data_sets:
            one = results.paired.get((data, model, other, measure, ""))
            row += _pair_of_cells(one, measure) if one else [NOTHING] * 2
        if any(one.model == model for one in pairs):
            rows.append(row)
    note = (
        "In percent, mean ± sample standard deviation over the folds that both have. Bold: CAMAL's mean is "
        f"the higher one, and significantly so (one-tailed Wilcoxon signed-rank test, p < {SIGNIFICANT})."
        + (" Underlined: its mean is higher, but not significantly." if measure == "accuracy" else "")
    )
    if any(one.differing < FEWEST for one in pairs):
        note += f" With fewer than {FEWEST} folds that differ nothing can be significant."
    return Table(
        f"Test {MEASURES[measure]} of CAMAL and {prose(other)}"
        + (f" (the paper's {_number(name)})" if _number(name) else ""),
        ["Model", *(f"{prose(data)}{page.BREAK}{prose(m)}" for data in data_sets for m in ("camal", other))],
        rows,
        note,
    )


def _number(name: str) -> str:
    """What the paper calls a table or figure, "Table 1"; empty where it has none."""
    found = re.fullmatch(r"(table|figure)(\d+)", name)
    return f"{found[1].capitalize()} {found[2]}" if found else ""


def _pair_of_cells(one: Paired, measure: str) -> list[str]:
    own = _shown(spread(one.camal))
    if one.verdict == "significantly higher":
        own = own.join(page.BOLD)
    elif one.verdict == "higher" and measure == "accuracy":
        own = own.join(page.UNDERLINED)
    return [own, _shown(spread(one.rival))]


def _ceilings(folds: Folds, results: Results, other: str) -> Table:
    pairs = results.all_of(other, "iou")
    data_sets = [data for data in folds.data if any(one.data == data for one in pairs)]
    rows = []
    for model in folds.models:
        row = [prose(model)]
        for data in data_sets:
            one = results.paired.get((data, model, other, "iou", ""))
            ceiling, *dead = map(page.percent, companions(folds, one)) if one else [NOTHING] * 3
            row += [ceiling, " / ".join(dead)]
        if any(one.model == model for one in pairs):
            rows.append(row)
    return Table(
        f"Ceiling of IoU and dead maps of CAMAL and {prose(other)}",
        [
            "Model",
            *(f"{prose(data)}{page.BREAK}{title}" for data in data_sets for title in ("ceiling", "dead")),
        ],
        rows,
        f"In percent, means over the same folds; dead maps are CAMAL's / {prose(other)}'s. {CEILING}",
    )


CEILING = (
    "The ceiling is the IoU that the mask itself has when it is shown at the resolution of attention: a "
    "yardstick, no bound, for attention can have more. A dead map is all zero and counts as IoU 0."
)


def _shift_table(folds: Folds, results: Results, data: str, shift: str) -> Table:
    rows = []
    for model in folds.models:
        for method in folds.methods:
            cell = [
                fold
                for fold in folds.of(data, model, method).values()
                if not math.isnan(fold.value("accuracy", shift))
            ]
            if not cell:
                continue
            row = [prose(model), prose(method), str(len(cell))]
            for measure in ("accuracy", "iou"):
                one = results.paired.get((data, model, method, measure, shift))
                lost = spread([fold.value(measure) - fold.value(measure, shift) for fold in cell])
                row += [
                    _shown(spread([fold.value(measure, shift) for fold in cell])),
                    page.percent(lost.mean),
                    _p(one.p) if one else NOTHING,
                ]
            for measure in ("iou_ceiling", "dead_map_fraction"):
                row.append(page.percent(spread([fold.value(measure, shift) for fold in cell]).mean))
            rows.append(row)
    return Table(
        f"{prose(data)} {_shift(shift)}",
        ["Model", "Method", "Folds", "Accuracy", "Drop", "p", "IoU", "Drop", "p", "Ceiling", "Dead"],
        rows,
        "In percent, mean ± sample standard deviation over all folds of the method. Drop: points lost from "
        "the unshifted test set, negative if gained. p: of the one-tailed Wilcoxon signed-rank test that "
        f"CAMAL is higher than the row's method here, over the folds that both have. {CEILING}",
        labels=2,
    )


def _p_values(results: Results) -> Table:
    return Table(
        "p-values of CAMAL and each other method",
        [
            *("Data set", "Model", "Beside", "Test set", "Measure"),
            *("Folds", "Difference", "p, higher", "p, lower", "CAMAL is"),
        ],
        [
            [
                *(prose(one.data), prose(one.model), prose(one.other)),
                *(one.shift or "unshifted", MEASURES[one.measure], str(len(one.folds))),
                *(page.percent(one.difference), _p(one.p), _p(one.p_lower), one.verdict),
            ]
            for one in results.paired.values()
        ],
        "Difference: CAMAL's mean less the other's, in points. One-tailed Wilcoxon signed-rank tests over "
        "paired folds that CAMAL is higher, and that it is lower. The smallest p of n folds that differ is "
        "2^-n.",
        labels=5,
    )


def _all_methods(folds: Folds) -> Table:
    rows = []
    for data, model in folds.cells():
        for method in folds.methods:
            if cell := folds.of(data, model, method):
                found = {name: folds.spread(data, model, method, name) for name in NUMBERS}
                rows.append(
                    [
                        *(prose(data), prose(model), prose(method), str(len(cell))),
                        *(_shown(found[name]) for name in ("accuracy", "iou")),
                        *(page.percent(found[name].mean) for name in ("iou_ceiling", "dead_map_fraction")),
                        *(page.percent(found[name].mean) for name in OPTIONAL),
                    ]
                )
    return Table(
        "All methods, unshifted test set",
        [
            *("Data set", "Model", "Method", "Folds", "Accuracy", "IoU", "Ceiling", "Dead"),
            *("Pointing", "Mass", "ROC"),
        ],
        rows,
        "In percent, mean (± sample standard deviation) over all folds of the method, with a partner or "
        "without. Pointing: share of samples whose most attended pixel lies in the mask. Mass: share of "
        f"attention in the mask. ROC: area under the ROC curve of attention against the mask. {CEILING}",
        labels=3,
    )


def _shown(one: Spread) -> str:
    return f"{page.percent(one.mean)} ± {page.percent(one.deviation)}" if one.folds else NOTHING


def _p(value: float) -> str:
    return "< 0.001" if value < 0.0005 else fixed(value, 3)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _shift(shift: str) -> str:
    return f"shifted ({shift.replace('_', ' ')})"


def scores_csv(folds: Folds) -> bytes:
    """A row for each fold and test set; an empty field where there is no number."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(["data", "model", "method", "fold", "test_set", *NUMBERS, "seconds_per_step"])
    for fold in folds.folds:
        for shift in ("", *fold.scores["shifted"]):
            found = fold.scores["shifted"][shift] if shift else fold.scores
            values = [found.get(name) for name in (*NUMBERS, "seconds_per_step")]
            writer.writerow([*fold[1:5], shift or "unshifted", *("" if v is None else v for v in values)])
    return content.getvalue().encode()


def statistics_json(folds: Folds, results: Results, found: Sequence[str], warned: Sequence[str]) -> bytes:
    """Everything that was computed."""
    methods = [
        {"data": data, "model": model, "method": method, "test_set": shift or "unshifted"}
        | {name: spread([fold.value(name, shift) for fold in cell.values()])._asdict() for name in NUMBERS}
        for data, model in folds.cells()
        for method in folds.methods
        if (cell := folds.of(data, model, method))
        for shift in ("", *folds.shifts(data))
    ]
    paired = [
        {name: getattr(one, name) for name in ("data", "model", "other", "measure")}
        | {
            "test_set": one.shift or "unshifted",
            "folds": one.folds,
            "camal": spread(one.camal)._asdict(),
            "rival": spread(one.rival)._asdict(),
            **{name: getattr(one, name) for name in ("difference", "p", "p_lower", "verdict")},
        }
        for one in results.paired.values()
    ]
    curves = {
        other: {
            "shares": one.shares,
            "curves_of_each": one.samples,
            "combinations": one.combinations,
            **{
                kind: {
                    "camal": one.bands[kind][0],
                    other: one.bands[kind][1],
                    "auc": {"camal": one.areas[kind][0], other: one.areas[kind][1]},
                    "auc_difference": one.differences[kind],
                    "relative_difference": one.relative(kind),
                }
                for kind in KINDS
            },
        }
        for other, one in results.curves.items()
    }
    variances = {
        other: [
            {"data": one.data, "folds": one.folds}
            | dict(zip(("masks", "camal", other), one.maps, strict=True))
            for one in every
        ]
        for other, every in results.variances.items()
    }
    return to_json(
        {
            "format": FORMAT,
            "version": __version__,
            "data": folds.data,
            "models": folds.models,
            "methods": folds.methods,
            "findings": list(found),
            "warnings": list(warned),
            "scores": methods,
            "paired": paired,
            "faithfulness": curves,
            "variance": variances,
        }
    )


# ------------------------------------------------------------------------------------------------------------
# Figures

Strips = Mapping[str, Sequence[np.ndarray]]
"""Data set -> a sample's image, its mask, and over it the attention of CAMAL and of the other method."""


class Drawing(NamedTuple):
    """A figure of the report."""

    name: str
    caption: str
    files: Mapping[str, bytes]


def figures(folds: Folds, results: Results) -> tuple[list[Drawing], list[Drawing], list[str]]:
    """Figures of attention, figures of faithfulness, and sentences on pictures that could not be shown."""
    attention, faithfulness, problems = [], [], []
    for other in sorted(folds.others, key=lambda other: other != "prior"):  # as the paper numbers them
        strips, shown, unread = overlays(folds, other)
        problems += unread
        maps = results.variances.get(other, [])
        if strips or maps:
            name = PLACES["attention"].get(other, f"attention-{other}")
            files = attention_figure(name, other, strips, maps)
            attention.append(Drawing(name, _caption(name, _attention_caption(other, shown, maps)), files))
        if curves := results.curves.get(other):
            name = PLACES["faithfulness"].get(other, f"faithfulness-{other}")
            files = curves_figure(name, other, curves)
            faithfulness.append(Drawing(name, _caption(name, _curves_caption(other, curves)), files))
    return attention, faithfulness, problems


def _caption(name: str, text: str) -> str:
    return f"As in the paper's {_number(name)}. {text}" if _number(name) else text


def overlays(folds: Folds, other: str) -> tuple[Strips, list[str], list[str]]:
    """One test sample a data set, from the first fold of which both methods have an overlay picture.

    Returns:
        The pictures, the folds that they are of, and a sentence on each that can't be used.
    """
    strips: dict[str, Sequence[np.ndarray]] = {}
    shown, problems = [], []
    order = {model: place for place, model in enumerate(folds.models)}
    for camal, rival in sorted(folds.pairs(other), key=lambda pair: (order[pair[0].model], pair[0].number)):
        files = [fold.folder / "media" / "overlay.png" for fold in (camal, rival)]
        if camal.data in strips or not all(file.is_file() for file in files):
            continue
        try:
            (image, mask, _, own), (same_image, _, _, others) = map(first_panels, files)
        except ValueError as error:
            problems.append(f"No picture of {camal.title} and {prose(other)}: {error}.")
            continue
        if not np.array_equal(image, same_image):
            problems.append(f"No picture of {camal.title} and {prose(other)}: they show different samples.")
            continue
        strips[camal.data] = [image, mask, own, others]
        shown.append(f"{prose(camal.data)}: {prose(camal.model)}, fold {camal.number}")
    return {data: strips[data] for data in folds.data if data in strips}, shown, problems


def first_panels(file: Path) -> list[np.ndarray]:
    """Panels of the first sample in a picture of `camal_rl.vision.evaluate`, each uint8 (S, S, 3).

    They are those of `media.attention_strip`, image, mask, attention, attention over the image, and at least
    as large: earlier versions did not enlarge small ones.

    Raises:
        ValueError: the file can't be read, or is another picture.
    """
    where = "/".join(file.parts[-6:])
    try:
        with Image.open(file) as image:
            picture = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{where} can't be read") from error

    def size(side: int) -> tuple[int, int]:
        blank = np.zeros((side, side), np.uint8)
        height, width, _ = media.attention_strip(blank, blank, {"": np.zeros((1, 1))}, " ", smallest=1).shape
        return height, width

    # Strips know how they are laid out: two of them tell the number of panels and what is between.
    (_, narrow), (_, wider) = size(16), size(17)
    count = wider - narrow
    gap = (narrow - 16 * count) // (count + 1)
    side, rest = divmod(picture.shape[1] - gap, count)
    side -= gap
    height = size(side)[0] if side > 0 and not rest else 0
    if not height or picture.shape[0] % height:
        raise ValueError(f"{where} is not laid out as strips of attention are")
    rows = slice(height - gap - side, height - gap)
    columns = (slice(left, left + side) for left in range(gap, picture.shape[1], side + gap))
    return [media.enlarged(picture[rows, column]) for column in columns]


def _attention_caption(other: str, shown: Sequence[str], maps: Sequence[Variance]) -> str:
    pictures = (
        f"Attention of CAMAL and of {prose(other)} on one test sample a data set ({'; '.join(shown)}). "
        if shown
        else ""
    )
    if not maps:
        return pictures.rstrip()
    return (
        f"{pictures}Spatial variance: how much the masks, and attention in [0, 1], vary over test samples at "
        "each place of the map. Masks are averaged to the map's resolution. Each map is the mean over the "
        "folds that both methods have, of all models with maps of its size; all have the same colour scale."
    )


def _size(shape: Sequence[int]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, shape))


def attention_figure(name: str, other: str, strips: Strips, maps: Sequence[Variance]) -> dict[str, bytes]:
    """The form of the paper's Figures 3 and 10: pictures above, spatial variance below, a row a data set."""
    sizes = sorted({one.maps[0].shape for one in maps})
    data_sets = list(dict.fromkeys(one.data for one in maps))
    width = page.WIDTH - 0.3  # inches, without the labels of rows
    row = min(width / (3 * len(sizes)), 1.1) if sizes else 0
    heights = [0.35 + len(strips) * (width / 4 + 0.05)] if strips else []
    heights += [1 + len(data_sets) * (row + 0.05)] if maps else []

    def paint(figure: Figure) -> None:
        parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
        if strips:
            grid = parts.pop(0).subplots(len(strips), 4, squeeze=False)
            for (data, pictures), line in zip(strips.items(), grid, strict=True):
                for picture, axes in zip(pictures, line, strict=True):
                    axes.imshow(picture)
                line[0].set_ylabel(textwrap.fill(prose(data), 10))
            _titles(grid, ["Image", "Mask", "CAMAL", prose(other)])
        if maps:
            part = parts.pop(0)
            grid = part.subplots(len(data_sets), 3 * len(sizes), squeeze=False)
            highest = max(float(values.max()) for one in maps for values in one.maps) or 1.0
            for one in maps:
                line = grid[data_sets.index(one.data)]
                for values, axes in zip(one.maps, line[3 * sizes.index(one.maps[0].shape) :], strict=False):
                    image = axes.imshow(values, cmap="inferno", vmin=0, vmax=highest, interpolation="nearest")
            for data, line in zip(data_sets, grid, strict=True):
                line[0].set_ylabel(textwrap.fill(prose(data), 10))
            _titles(
                grid,
                [
                    f"{over}\n{title}"
                    for size in sizes
                    for over, title in zip(
                        (_size(size), "", ""), ("Masks", "CAMAL", prose(other)), strict=True
                    )
                ],
            )
            part.colorbar(
                image,
                ax=list(grid.flat),
                location="bottom",
                label="Variance over samples",
                aspect=40,
                pad=0.02,
            )

    return page.draw(name, sum(heights), paint)


def _titles(grid: np.ndarray, titles: Sequence[str]) -> None:
    """Above the columns of pictures, which have no axes."""
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9 if len(titles) < 5 else 7.5)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)


def _curves_caption(other: str, curves: Curves) -> str:
    told = [
        f"{kind} {'undefined' if math.isnan(part) else f'{100 * part:+.1f} %'}"
        for kind in KINDS
        for part in [curves.relative(kind)]
    ]
    differences = [page.shown(curves.differences[kind], 3) for kind in KINDS]
    return (
        "Confidence in the true class when the pixels that attention marks most are removed first, and when "
        f"they are inserted first: mean of {_count(curves.samples, 'curve')} of each method with a 95 % band "
        f"(± {STANDARD_ERRORS} standard errors), one test sample a class of each fold that CAMAL and "
        f"{prose(other)} both have, over {_count(curves.combinations, 'combination')} of data set and model. "
        f"Faithful attention has a small area under removal and a large one under insertion. CAMAL's area "
        f"relative to {prose(other)}'s: {' and '.join(told)}; the difference of areas on the same samples "
        f"with its 95 % interval: {' and '.join(differences)}. Every curve counts alike, so data sets with "
        "many classes weigh more, and the band takes curves as independent though several models see the "
        "same samples. A model that is less sure of everything has smaller areas in both panels."
    )


def curves_figure(name: str, other: str, curves: Curves) -> dict[str, bytes]:
    """The form of the paper's Figures 5 and 12: confidence under removal and insertion of pixels."""

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(KINDS), sharey=True)
        for axes, kind in zip(panels, KINDS, strict=True):
            lines = page.lines(axes, 100 * curves.shares, curves.bands[kind])
            axes.set_title(kind.capitalize())
            axes.set_xlabel(f"Pixels {'removed' if kind == 'removal' else 'inserted'}, %")
            # Curves go up to 1, the legend has what is above.
            axes.set_ylim(-0.03, 1.42)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
            axes.set_xticks([0, 25, 50, 75, 100])
            labels = [
                f"{prose(method)}, AUC {area:.3f}"
                for method, area in zip(("camal", other), curves.areas[kind], strict=True)
            ]
            axes.legend(lines, labels, loc="upper left", borderaxespad=0.2, handlelength=1.8)
        panels[0].set_ylabel("Confidence")

    return page.draw(name, 2.5, paint)


# ------------------------------------------------------------------------------------------------------------
# The page

Part = Table | Drawing | str | Sequence[str]
"""A table, a figure, a paragraph, or a list."""


def sections(
    every_table: Mapping[str, Table], attention: Sequence[Drawing], faithful: Sequence[Drawing]
) -> dict[str, list[Part]]:
    """What the report holds below its verdict, by heading; sections without content are left out."""

    def of(*prefixes: str) -> list[Part]:
        return [table for name, table in every_table.items() if name.startswith(prefixes)]

    found: dict[str, list[Part]] = {
        "Attention alignment": [*of("table1", "table5", "iou"), *attention],
        "Attention faithfulness": list(faithful),
        "Generalisation": of("table2", "table3", "accuracy"),
        "Shifted test sets": of("shifted"),
        "Tests": of("p-values"),
        "All methods": of("all-methods"),
        "How to read it": [LIMITS],
    }
    return {title: parts for title, parts in found.items() if parts}


def _headings(folds: Folds) -> tuple[str, str]:
    methods = [prose(method) for method in folds.methods]
    return (
        f"{', '.join(methods[:-1])}{' and ' if methods[:-1] else ''}{methods[-1]}: attention and accuracy",
        f"{_count(len(folds.folds), 'fold')} of {_listed(map(prose, folds.models))} on "
        f"{_listed(map(prose, folds.data))}, compared by camal_rl {__version__}",
    )


def _listed(names: Iterator[str]) -> str:
    return ", ".join(names)


def markdown_page(
    folds: Folds, found: Sequence[str], warned: Sequence[str], content: Mapping[str, Sequence[Part]]
) -> bytes:
    """The content of report.md."""
    title, subtitle = _headings(folds)
    blocks = [f"# {title}", subtitle, *(f"> {sentence}" for sentence in found)]
    if warned:
        blocks += ["## Warnings", _bullets(warned)]
    for heading, parts in content.items():
        blocks += [f"## {heading}", *map(_in_markdown, parts)]
    return ("\n\n".join(blocks) + "\n").encode()


def _in_markdown(part: Part) -> str:
    if isinstance(part, Table):
        return page.markdown(part).rstrip("\n")
    if isinstance(part, Drawing):
        return f"![{part.name}]({part.name}.png)\n\n*{part.caption}*"
    return part if isinstance(part, str) else _bullets(part)


def _bullets(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def html_page(
    folds: Folds,
    found: Sequence[str],
    warned: Sequence[str],
    content: Mapping[str, Sequence[Part]],
    command: str,
) -> bytes:
    """The content of report.html."""
    return page.whole(
        *_headings(folds),
        *(page.paragraph(sentence, "verdict") for sentence in found),
        *([page.warnings_box(warned)] if warned else []),
        *(page.section(heading, *map(_in_html, parts)) for heading, parts in content.items()),
        page.section(
            "How it was made",
            page.listing([command]),
            page.paragraph(
                "The same numbers are in statistics.json and scores.csv beside this page, tables in "
                "tables.md, tables.tex and a CSV file each, the figures in PNG and SVG files.",
                "note",
            ),
        ),
    )


def _in_html(part: Part) -> str:
    if isinstance(part, Table):
        table = page.table_block(part)
        return table if len(part.rows) <= LONG else page.folded(f"{len(part.rows)} rows", table)
    if isinstance(part, Drawing):
        return page.figure_block(part.name, part.files[f"{part.name}.svg"], part.caption)
    return page.paragraph(part) if isinstance(part, str) else page.bullets(part)


# ------------------------------------------------------------------------------------------------------------
# From the command line to the files


def make(args: Args) -> list[str]:
    """Write the report, and return what the command line prints.

    Raises:
        UserError: there is nothing to report on, or the folder can't be written; nothing was written then.
    """
    folds = read_folds(args.runs)
    folder = args.output or args.runs / "report"
    make_folder(folder)
    results = compare(folds)
    attention, faithful, unread = figures(folds, results)
    found, warned = verdicts(folds, results), [*warnings(folds, results), *unread]
    every_table = tables(folds, results)
    content = sections(every_table, attention, faithful)
    command = shlex.join(["python", "-m", "camal_rl.vision.report", str(args.runs)])
    files = {
        **{name: data for drawing in (*attention, *faithful) for name, data in drawing.files.items()},
        **{f"{name}.csv": table_csv(table) for name, table in every_table.items()},
        "scores.csv": scores_csv(folds),
        "statistics.json": statistics_json(folds, results, found, warned),
        "tables.md": "\n".join(map(page.markdown, every_table.values())).encode(),
        "tables.tex": "\n".join(map(page.latex, every_table.values())).encode(),
        "report.md": markdown_page(folds, found, warned, content),
        "report.html": html_page(folds, found, warned, content, command),
    }
    earlier = [path for path in folder.iterdir() if WRITTEN.fullmatch(path.name) and path.name not in files]
    had_report = (folder / "statistics.json").exists()
    write_together({folder / name: data for name, data in files.items()})
    for path in earlier if had_report else ():  # of other folds: they would be taken for this report's
        path.unlink()
    return [
        *found,
        *(f"Warning: {sentence}" for sentence in warned),
        *(f"  {folder / name}" for name in files),
    ]


def main(args: Args) -> int:
    """Report, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    return run_at_once(lambda: print("\n".join(make(args))))


if __name__ == "__main__":
    sys.exit(main(parse_args()))
