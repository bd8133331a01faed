"""Scores of folds -> the paper's Tables 1, 2, 3 and 5, Figures 3, 5, 10 and 12, and a page that says it all.

`scores` reads and computes, `camal_rl.results` draws and writes; here is what is said and shown of it.
"""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure
from PIL import Image

from camal_rl import __version__
from camal_rl.report import dead_maps
from camal_rl.results import figures, media
from camal_rl.results.figures import (
    BOLD,
    BREAK,
    NOTHING,
    UNDERLINED,
    LinePanel,
    Table,
    fixed,
    percent,
    table_csv,
)
from camal_rl.results.page import Drawing, Listing, Page, Part, publish
from camal_rl.results.study import some
from camal_rl.run.command_line import run_at_once
from camal_rl.run.files import make_folder
from camal_rl.vision.scores import (
    KINDS,
    MEASURES,
    NUMBERS,
    SIGNIFICANT,
    STANDARD_ERRORS,
    UNSHIFTED,
    Curves,
    Folds,
    Paired,
    Results,
    Variance,
    comparability,
    compare,
    prose,
    read_folds,
)

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
    """Say what has to be known before the tables are believed."""
    sentences = [*comparability(folds), *results.notes]
    few: dict[int, list[str]] = {}
    for pair in results.paired:
        if pair.differing < FEWEST and pair.test_set == UNSHIFTED:
            ties = len(pair.folds) - pair.differing
            tied = f" ({MEASURES[pair.measure]}, {ties} of {len(pair.folds)} tied)" if ties else ""
            where = f"{pair.data}/{pair.model} beside {prose(pair.other)}{tied}"
            few.setdefault(pair.differing, []).append(where)
    if few:
        told = "; ".join(
            f"{_count(count, 'fold')}, p at least {2.0**-count:g}, of {some(list(dict.fromkeys(few[count])))}"
            for count in sorted(few)
        )
        sentences.append(
            "Too few folds for significance: the smallest p of n paired folds is 2^-n, without those that are "
            f"tied, so fewer than {FEWEST} can't give p < {SIGNIFICANT}, whatever the scores. That holds for "
            f"{told}."
        )
    for row in all_methods(folds)[["dead_map_fraction"]].itertuples():
        if row.dead_map_fraction >= 0.5:
            sentences.append(dead_maps("/".join(row.Index), row.dead_map_fraction))
    return sentences


WORDS = {
    "iou": ("attention", "better aligned than", "worse aligned than", "as well aligned as"),
    "accuracy": ("accuracy", "higher than", "lower than", "the same as"),
}
"""What a verdict speaks of, and how it calls CAMAL's where that has more of it, less or as much."""


def verdicts(folds: Folds, results: Results) -> list[str]:
    """Say what was found, whichever way it points: a paragraph on each other method."""
    if not folds.others:
        have = ", ".join(map(prose, folds.names("method")))
        return [f"There are only scores of {have}: nothing is compared with CAMAL."]
    paragraphs = []
    for other in folds.others:
        sentences = [
            _judged(measure, pairs)
            for measure in MEASURES
            if (pairs := results.select(other=other, measure=measure, test_set=UNSHIFTED))
        ]
        if other in results.curves:
            sentences.append(_faithful(other, results.curves[other]))
        for data, test_set in shifted(folds):
            wanted = {"data": data, "test_set": test_set, "other": other, "measure": "accuracy"}
            if pairs := results.select(**wanted):
                before = results.select(**wanted | {"test_set": UNSHIFTED})
                drops = (a - b for a, b in zip(_means(before), _means(pairs), strict=True))
                sentences.append(
                    f"On {prose(data)} {_shift(test_set)} accuracy drops by {' and '.join(map(percent, drops))} "
                    f"points, to {_against(pairs)}, {_counted(pairs, 'model')}."
                )
        nothing = f"No fold of {prose(other)} can be compared with one of CAMAL."
        paragraphs.append(" ".join(sentences) or nothing)
    return paragraphs


def _judged(measure: str, pairs: Sequence[Paired]) -> str:
    subject, better, worse, same = WORDS[measure]
    ways = {pair.verdict.removeprefix("significantly ") for pair in pairs}
    significant = {pair.verdict.startswith("significantly") for pair in pairs}
    strength = {frozenset({True}): "significantly ", frozenset({False}): "not significantly "}
    phrase = f"not consistently {better}"
    if len(ways) == 1:
        phrase = {"higher": better, "lower": worse, "equal": same}[ways.pop()]
        phrase = strength.get(frozenset(significant), "") * (phrase != same) + phrase
    told = f"a mean of {_against(pairs)}"
    if measure == "iou":
        every = pd.concat([pair.folds for pair in pairs])
        ceiling, camal, rival = map(percent, every[["ceiling", "dead_camal", "dead_rival"]].mean())
        told = (
            f"a mean IoU of {_against(pairs)} (the mask itself, at that resolution, {ceiling} %; dead maps "
            f"{camal} % and {rival} %)"
        )
    counted = _counted(pairs, "combination")
    return (
        f"CAMAL's {subject} is {phrase} {prose(pairs[0].other)}'s: {told}, {counted} of data set and model."
    )


def _counted(pairs: Sequence[Paired], unit: str) -> str:
    """In how many of so many units CAMAL is higher and, if in any, lower."""
    told = []
    for word in ("higher", "lower"):
        every = [pair.verdict for pair in pairs if pair.verdict.endswith(word)]
        significant = sum(verdict.startswith("significantly") for verdict in every)
        if every or word == "higher":
            told.append(f"{word} in {len(every)}{f' ({significant} significantly)' if every else ''}")
    return f"{' and '.join(told)} of {_count(len(pairs), unit)}"


def _means(pairs: Sequence[Paired]) -> list[float]:
    """Means of CAMAL and the other over combinations of the means over folds."""
    return list(pd.concat([pair.folds[["camal", "rival"]].mean() for pair in pairs], axis=1).mean(axis=1))


def _against(pairs: Sequence[Paired]) -> str:
    camal, rival = map(percent, _means(pairs))
    return f"{camal} % against {rival} %"


def _faithful(other: str, curves: Curves) -> str:
    """The interval of the difference says which is more faithful: it has to be on one side of 0."""
    sides = []
    for kind, faithful in zip(KINDS, (-1, 1), strict=True):
        low, high = curves.differences[kind].low, curves.differences[kind].high
        side = 0 if low is None or high is None else faithful * ((low > 0) - (high < 0))
        sides.append({1: "more", 0: "not clearly more or less", -1: "less"}[side])
    removal, insertion = (curves.areas[kind] for kind in KINDS)
    phrase = f"{sides[0]} faithful by removal and {sides[1]} by insertion"
    return (
        f"CAMAL's attention is {f'{sides[0]} faithful' if sides[0] == sides[1] else phrase} than "
        f"{prose(other)}'s: the area under the curve (AUC) of confidence is {removal[0]:.3f} against "
        f"{removal[1]:.3f} under removal (low is faithful) and {insertion[0]:.3f} against {insertion[1]:.3f} "
        "under insertion (high is faithful)."
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

CEILING = (
    "The ceiling is the IoU that the mask itself has when it is shown at the resolution of attention: a "
    "yardstick, no bound, for attention can have more. A dead map is all zero and counts as IoU 0."
)
PLACES = {
    "iou": {"prior": "table1", "vanilla": "table5"},
    "accuracy": {"vanilla": "table2", "prior": "table3"},
    "attention": {"prior": "figure3", "vanilla": "figure10"},
    "faithfulness": {"prior": "figure5", "vanilla": "figure12"},
}
"""Names of files after the paper's tables and figures; methods that it has no such table of have none."""


def place(kind: str, other: str) -> tuple[str, str]:
    """Return the name of a file, and what the paper calls it, "Table 1"; empty where it has none."""
    name = PLACES[kind].get(other, f"{kind}-{other}")
    found = re.fullmatch(r"(table|figure)(\d+)", name)
    return name, f"{found[1].capitalize()} {found[2]}" if found else ""


def tables(folds: Folds, results: Results) -> dict[str, dict[str, Table]]:
    """Return the report's tables by measure or test, and by the names of their files."""
    paper = {
        measure: {
            place(measure, other)[0]: _paper_table(folds, pairs, measure)
            for other in sorted(folds.others, key=lambda other: place(measure, other)[0] + "~")
            if (pairs := results.select(other=other, measure=measure, test_set=UNSHIFTED))
        }
        for measure in MEASURES
    }
    return {
        **paper,
        "shifted": {
            f"shifted-{data}-{test_set}": _shift_table(folds, results, data, test_set)
            for data, test_set in shifted(folds)
        },
        "tests": {"p-values": _p_values(results)} if results.paired else {},
        "methods": {"all-methods": _all_methods(folds)},
    }


def shifted(folds: Folds) -> list[tuple[str, str]]:
    """Return data sets and their shifted test sets."""
    there = folds.table[["data", "test_set"]].drop_duplicates().sort_values(["data", "test_set"])
    return [(data, test_set) for data, test_set in there.itertuples(index=False) if test_set != UNSHIFTED]


def _paper_table(folds: Folds, pairs: Sequence[Paired], measure: str) -> Table:
    other, (_, number) = pairs[0].other, place(measure, pairs[0].other)
    found = {(pair.model, pair.data): pair for pair in pairs}
    data_sets = [data for data in folds.names("data") if any(pair.data == data for pair in pairs)]
    rows = []
    for model in dict.fromkeys(
        model for model in folds.names("model") if any(p.model == model for p in pairs)
    ):
        row = [prose(model)]
        for data in data_sets:
            if pair := found.get((model, data)):
                own, rival = _shown(pair.folds["camal"]), _shown(pair.folds["rival"])
                if pair.verdict == "significantly higher":
                    own = own.join(BOLD)
                elif pair.verdict == "higher" and measure == "accuracy":
                    own = own.join(UNDERLINED)
                row += [own, rival]
            else:
                row += [NOTHING] * 2
        rows.append(row)
    note = (
        "In percent, mean ± sample standard deviation over the folds that both have. Bold: CAMAL's mean is "
        f"the higher one, and significantly so (one-tailed Wilcoxon signed-rank test, p < {SIGNIFICANT})."
    )
    note += {
        "accuracy": " Underlined: its mean is higher, but not significantly.",
        "iou": " Ceilings and dead maps are in the table of all methods.",
    }[measure]
    title = f"Test {MEASURES[measure]} of CAMAL and {prose(other)}"
    title += f" (the paper's {number})" if number else ""
    columns = [f"{prose(data)}{BREAK}{prose(method)}" for data in data_sets for method in ("camal", other)]
    return Table(title, ["Model", *columns], rows, note)


def _shift_table(folds: Folds, results: Results, data: str, test_set: str) -> Table:
    here = folds.table[folds.table["data"] == data].set_index(["model", "method", "fold"])
    before = here[here["test_set"] == UNSHIFTED]
    rows = []
    for (model, method), cell in here[here["test_set"] == test_set].groupby(
        ["model", "method"], observed=True
    ):
        row = [prose(model), prose(method), str(len(cell))]
        for measure in ("accuracy", "iou"):
            wanted = {"data": data, "test_set": test_set, "model": model, "other": method, "measure": measure}
            drop = (before[measure] - cell[measure]).mean()
            row += [_shown(cell[measure]), percent(drop), *(_p(pair.p) for pair in results.select(**wanted))]
            row += [NOTHING] * (len(row) % 3)
        rows.append([*row, percent(cell["iou_ceiling"].mean()), percent(cell["dead_map_fraction"].mean())])
    return Table(
        f"{prose(data)} {_shift(test_set)}",
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
                *(prose(pair.data), prose(pair.model), prose(pair.other), pair.test_set),
                *(MEASURES[pair.measure], str(len(pair.folds)), percent(pair.difference)),
                *(_p(pair.p), _p(pair.p_lower), pair.verdict),
            ]
            for pair in results.paired
        ],
        "Difference: CAMAL's mean less the other's, in points. One-tailed Wilcoxon signed-rank tests over "
        "paired folds that CAMAL is higher, and that it is lower. The smallest p of n folds that differ is "
        "2^-n.",
        labels=5,
    )


def all_methods(folds: Folds) -> pd.DataFrame:
    """Means on the unshifted test set by data set, model and method."""
    here = folds.table[folds.table["test_set"] == UNSHIFTED]
    means: pd.DataFrame = here.groupby(["data", "model", "method"], observed=True)[NUMBERS].mean()
    return means


def _all_methods(folds: Folds) -> Table:
    here = folds.table[folds.table["test_set"] == UNSHIFTED]
    rows = []
    for names, cell in here.groupby(["data", "model", "method"], observed=True):
        row = [*map(prose, names), str(len(cell)), _shown(cell["accuracy"]), _shown(cell["iou"])]
        rows.append([*row, *(percent(cell[name].mean()) for name in ("iou_ceiling", *NUMBERS[3:]))])
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


def _shown(values: pd.Series) -> str:
    return f"{percent(values.mean())} ± {percent(values.std())}" if values.count() else NOTHING


def _p(value: float) -> str:
    return "< 0.001" if value < 0.0005 else fixed(value, 3)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _shift(test_set: str) -> str:
    return f"shifted ({test_set.replace('_', ' ')})"


def statistics(folds: Folds, results: Results) -> dict[str, Any]:
    """Return everything that was computed."""
    by = ["data", "model", "method", "test_set"]
    spreads = folds.table.groupby(by, observed=True)[NUMBERS].agg(["mean", "std", "count"])
    scores = [
        dict(zip(by, names, strict=True)) | {name: row[name].to_dict() for name in NUMBERS}
        for names, row in spreads.iterrows()
    ]
    paired = [
        vars(pair)
        | {"folds": pair.folds.reset_index().to_dict("list")}
        | {"difference": pair.difference, "verdict": pair.verdict}
        for pair in results.paired
    ]
    curves = {other: found._asdict() for other, found in results.curves.items()}
    variances = {other: [found._asdict() for found in every] for other, every in results.variances.items()}
    names = {"data": folds.names("data"), "models": folds.names("model"), "methods": folds.names("method")}
    return {**names, "scores": scores, "paired": paired, "faithfulness": curves, "variance": variances}


# ------------------------------------------------------------------------------------------------------------
# Figures

Strips = Mapping[str, Sequence[np.ndarray]]
"""Data set -> a sample's image, its mask, and over it the attention of CAMAL and of the other method."""


def drawings(folds: Folds, results: Results) -> tuple[list[Drawing], list[Drawing], list[str]]:
    """Return figures of attention, figures of faithfulness, and sentences on pictures that can't be shown."""
    attention, faithfulness, problems = [], [], []
    for other in sorted(folds.others, key=lambda other: other != "prior"):  # as the paper numbers them
        strips, titles, unread = overlays(folds, other)
        problems += unread
        maps = results.variances.get(other, [])
        if strips or maps:
            name, number = place("attention", other)
            files = attention_figure(name, other, strips, maps)
            caption = _as_in(number) + _attention_caption(other, titles, maps)
            attention.append(Drawing(name, caption, files))
        if curves := results.curves.get(other):
            name, number = place("faithfulness", other)
            files = curves_figure(name, other, curves)
            faithfulness.append(Drawing(name, _as_in(number) + _curves_caption(other, curves), files))
    return attention, faithfulness, problems


def _as_in(number: str) -> str:
    return f"As in the paper's {number}. " if number else ""


def overlays(folds: Folds, other: str) -> tuple[Strips, list[str], list[str]]:
    """Return a test sample a data set, from the first fold of which both methods have an overlay picture.

    Returns:
        The pictures, the folds that they are of, and a sentence on each that can't be used.
    """
    strips: dict[str, Sequence[np.ndarray]] = {}
    titles, problems = [], []
    for camal, rival in folds.pairs(other):
        files = [fold.folder / "media" / "overlay.png" for fold in (camal, rival)]
        if camal.data in strips or not all(file.is_file() for file in files):
            continue
        try:
            (image, mask, _, own), (same_image, _, _, others) = map(first_panels, files)
        except (OSError, ValueError):
            problems.append(f"No picture of {camal.title} and {prose(other)}: it can't be read.")
            continue
        if not np.array_equal(image, same_image):
            problems.append(f"No picture of {camal.title} and {prose(other)}: they show different samples.")
            continue
        strips[camal.data] = [image, mask, own, others]
        titles.append(f"{prose(camal.data)}: {prose(camal.model)}, fold {camal.number}")
    return strips, titles, problems


def first_panels(file: Path) -> list[np.ndarray]:
    """Return the panels of the first sample in a picture of `camal_rl.vision.evaluate`, each uint8 (S, S, 3).

    They are those of `media.attention_strip`: image, mask, attention, attention over the image.

    Raises:
        OSError, ValueError: the file can't be read, or is another picture.
    """
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB"))

    def strip(side: int) -> tuple[int, int]:
        blank = np.zeros((side, side), np.uint8)
        height, width, _ = media.attention_strip(blank, blank, {"": np.zeros((1, 1))}, " ", smallest=1).shape
        return height, width

    gap = (strip(16)[1] - 4 * 16) // 5
    side = (pixels.shape[1] - gap) // 4 - gap
    bottom = strip(side)[0] - gap
    return [
        pixels[bottom - side : bottom, left : left + side] for left in range(gap, pixels.shape[1], side + gap)
    ]


def _attention_caption(other: str, titles: Sequence[str], maps: Sequence[Variance]) -> str:
    told = []
    if titles:
        samples = "; ".join(titles)
        told.append(f"Attention of CAMAL and of {prose(other)} on one test sample a data set ({samples}).")
    if maps:
        told.append(
            "Spatial variance: how much the masks, and attention in [0, 1], vary over test samples at each "
            "place of the map. Masks are averaged to the map's resolution. Each map is the mean over the folds "
            "that both methods have, of all models with maps of its size; all have the same colour scale."
        )
    return " ".join(told)


def attention_figure(name: str, other: str, strips: Strips, maps: Sequence[Variance]) -> dict[str, bytes]:
    """Draw the form of the paper's Figures 3 and 10: pictures above, variance below, a row a data set."""
    sizes = sorted({found.maps[0].shape for found in maps})
    data_sets = list(dict.fromkeys(found.data for found in maps))
    width = figures.WIDTH - 0.3  # inches, without the labels of rows
    row = min(width / (3 * len(sizes)), 1.1) if sizes else 0
    heights = [0.35 + len(strips) * (width / 4 + 0.05)] if strips else []
    heights += [1 + len(data_sets) * (row + 0.05)] if maps else []

    def paint(figure: Figure) -> None:
        parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
        if strips:
            grid = parts.pop(0).subplots(len(strips), 4, squeeze=False)
            for pictures, line in zip(strips.values(), grid, strict=True):
                for picture, axes in zip(pictures, line, strict=True):
                    axes.imshow(picture)
            _label(grid, strips, ["Image", "Mask", "CAMAL", prose(other)])
        if maps:
            grid = parts[0].subplots(len(data_sets), 3 * len(sizes), squeeze=False)
            highest = max(float(values.max()) for found in maps for values in found.maps) or 1.0
            for found in maps:
                line = grid[data_sets.index(found.data)]
                for values, axes in zip(
                    found.maps, line[3 * sizes.index(found.maps[0].shape) :], strict=False
                ):
                    image = axes.imshow(values, cmap="inferno", vmin=0, vmax=highest, interpolation="nearest")
            over = [" \N{MULTIPLICATION SIGN} ".join(map(str, size)) for size in sizes]
            _label(
                grid, data_sets, [t for o in over for t in (f"{o}\nMasks", "\nCAMAL", f"\n{prose(other)}")]
            )
            bar = {"location": "bottom", "aspect": 40, "pad": 0.02, "label": "Variance over samples"}
            parts[0].colorbar(image, ax=list(grid.flat), **bar)

    return figures.draw(name, sum(heights), paint)


def _label(grid: np.ndarray, data_sets: Sequence[str] | Strips, titles: Sequence[str]) -> None:
    """Name rows and columns of pictures, which have no axes."""
    for data, line in zip(data_sets, grid, strict=True):
        line[0].set_ylabel(textwrap.fill(prose(data), 10))
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9 if len(titles) < 5 else 7.5)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)


def _curves_caption(other: str, curves: Curves) -> str:
    apart = " and ".join(figures.shown(curves.differences[kind], 3) for kind in KINDS)
    return (
        "Confidence in the true class when the pixels that attention marks most are removed first, and when "
        f"they are inserted first: mean of {_count(curves.samples, 'curve')} of each method with a 95 % band "
        f"(± {STANDARD_ERRORS} standard errors), one test sample a class of each fold that CAMAL and "
        f"{prose(other)} both have. Faithful attention has a small area (AUC) under removal and a large one "
        f"under insertion. CAMAL's area less {prose(other)}'s on the same samples, with its 95 % interval: "
        f"{apart}. Every curve counts alike, so data sets with many classes weigh more, and the band takes "
        "curves as independent though several models see the same samples. A model that is less sure of "
        "everything has smaller areas in both panels."
    )


def curves_figure(name: str, other: str, curves: Curves) -> dict[str, bytes]:
    """Draw the form of the paper's Figures 5 and 12: confidence under removal and insertion of pixels."""
    methods = {method: prose(method) for method in ("camal", other)}
    panels = [
        LinePanel(
            kind.capitalize(),
            100 * curves.shares,
            curves.bands[kind],
            share=True,
            labels=[
                f"{m}, AUC {area:.3f}" for m, area in zip(methods.values(), curves.areas[kind], strict=True)
            ],
        )
        for kind in KINDS
    ]
    return figures.lines_figure(name, methods, [panels], "Pixels removed or inserted, %", "Confidence", 2.0)


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
    table = tables(folds, results)
    attention, faithful, unread = drawings(folds, results)
    data, models, methods = (list(map(prose, folds.names(column))) for column in ("data", "model", "method"))
    beside = (
        "The same numbers are in statistics.json and scores.csv beside this page, tables in tables.md, "
        "tables.tex and a CSV file each, the figures in PNG and SVG files."
    )
    sections: dict[str, Sequence[Part]] = {
        "Attention alignment": [*table["iou"].values(), *attention],
        "Attention faithfulness": faithful,
        "Generalization": list(table["accuracy"].values()),
        "Shifted test sets": list(table["shifted"].values()),
        "Tests": list(table["tests"].values()),
        "All methods": list(table["methods"].values()),
        "How to read it": [LIMITS],
        "How it was made": [
            Listing([shlex.join(["python", "-m", "camal_rl.vision.report", str(args.runs)])]),
            beside,
        ],
    }
    page = Page(
        f"{', '.join(methods[:-1])}{' and ' if methods[:-1] else ''}{methods[-1]}: attention and accuracy",
        f"{_count(len(folds.folds), 'fold')} of {', '.join(models)} on {', '.join(data)}, compared by camal_rl "
        f"{__version__}",
        verdicts(folds, results),
        [*warnings(folds, results), *unread],
        sections,
    )
    files = {f"{name}.csv": table_csv(found) for group in table.values() for name, found in group.items()}
    files["scores.csv"] = folds.table.to_csv(index=False).encode()
    return publish(folder, page, statistics(folds, results), files)


def main(args: Args) -> int:
    """Report, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    return run_at_once(lambda: print("\n".join(make(args))))


if __name__ == "__main__":
    sys.exit(main(parse_args()))
