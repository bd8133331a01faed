"""Scores of folds -> the paper's Tables 1, 2, 3 and 5, Figures 3, 5, 10 and 12, and a page that says it all.

`scores` reads and computes, `camal_rl.results` draws and writes; here is what is said and shown of it.
"""

from __future__ import annotations

import re
import shlex
import statistics
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure
from PIL import Image

from camal_rl import __version__
from camal_rl.report import dead_maps
from camal_rl.results import figures
from camal_rl.results import media as pictures
from camal_rl.results.figures import BOLD, BREAK, NOTHING, UNDERLINED, LinePanel, Table, fixed, percent, shown
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
    mean,
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
    sentences = comparability(folds)
    few = [
        f"{pair.data}/{pair.model} beside {prose(pair.other)} ({MEASURES[pair.measure]}: {pair.differing})"
        for pair in results.select(test_set=UNSHIFTED)
        if pair.differing < FEWEST
    ]
    if few:
        sentences.append(
            "Too few folds for significance: the smallest p of n paired folds that differ is 2^-n, so fewer "
            f"than {FEWEST} can't give p < {SIGNIFICANT}, whatever the scores. That holds for {some(few)}."
        )
    for key, cell in folds.table.groupby(["data", "model", "method", "test_set"], observed=True):
        dead = mean(cell["dead_map_fraction"])
        if dead >= 0.5:
            sentences.append(dead_maps("/".join(key), dead))
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
        sentences = []
        for measure in MEASURES:
            if pairs := results.select(other=other, measure=measure, test_set=UNSHIFTED):
                sentences.append(_judged(pairs))
        if other in results.curves:
            sentences.append(_faithful(other, results.curves[other]))
        for data in folds.names("data"):
            for test_set in folds.names("test_set")[1:]:
                wanted = {"other": other, "measure": "accuracy", "data": data}
                if pairs := results.select(**wanted, test_set=test_set):
                    before, told = _means(results.select(**wanted, test_set=UNSHIFTED)), _told(pairs, "model")
                    drops = [percent(a - b) for a, b in zip(before, _means(pairs), strict=True)]
                    sentences.append(
                        f"On {prose(data)} with {test_set} images accuracy drops by {drops[0]} and {drops[1]} "
                        f"points, to {told}."
                    )
        nothing = f"No fold of {prose(other)} can be compared with one of CAMAL."
        paragraphs.append(" ".join(sentences) or nothing)
    return paragraphs


def _judged(pairs: Sequence[Paired]) -> str:
    """A sentence on the measure of these pairs, which are one in each combination of data set and model."""
    subject, better, worse, same = WORDS[pairs[0].measure]
    found = {pair.verdict for pair in pairs}
    ways = {verdict.split()[-1] for verdict in found}
    phrase = f"not consistently {better}"
    if ways == {"equal"}:
        phrase = same
    elif len(ways) == 1:
        strong = sum(verdict.startswith("significantly") for verdict in found)
        strength = "significantly " if strong == len(found) else "" if strong else "not significantly "
        phrase = strength + (better if ways == {"higher"} else worse)
    beside = ""
    if pairs[0].measure == "iou":
        every = pd.concat([pair.folds for pair in pairs])
        ceiling, camal, rival = (percent(mean(every[c])) for c in ("ceiling", "dead_camal", "dead_rival"))
        beside = f" The mask itself, at that resolution, has {ceiling} %; dead maps {camal} % and {rival} %."
    whose, told = f"{prose(pairs[0].other)}'s", _told(pairs, "combination")
    return f"CAMAL's {subject} is {phrase} {whose}: on average {told} of data set and model.{beside}"


def _told(pairs: Sequence[Paired], unit: str) -> str:
    camal, rival = map(percent, _means(pairs))
    verdicts = [pair.verdict for pair in pairs]
    higher, lower = (sum(verdict.endswith(word) for verdict in verdicts) for word in ("higher", "lower"))
    strong = sum(verdict.startswith("significantly") for verdict in verdicts)
    return (
        f"{camal} % against {rival} %, higher in {higher} and lower in {lower} ({strong} significantly) of "
        f"{_count(len(pairs), unit)}"
    )


def _means(pairs: Sequence[Paired]) -> list[float]:
    """Means of CAMAL and the other over combinations of the means over folds."""
    return [statistics.fmean(side) for side in zip(*(pair.means for pair in pairs), strict=True)]


def _faithful(other: str, curves: Curves) -> str:
    """The interval of the difference says which is more faithful: it has to be on one side of 0."""
    sides = []
    for kind, sign in zip(KINDS, (-1, 1), strict=True):
        low, high = curves.differences[kind].low, curves.differences[kind].high
        side = 0 if low is None or high is None else sign * ((low > 0) - (high < 0))
        sides.append(("not clearly more or less", "more", "less")[side])
    phrase = f"{sides[0]} faithful by removal and {sides[1]} by insertion"
    if sides[0] == sides[1]:
        phrase = f"{sides[0]} faithful"
    removal, insertion = (curves.areas[kind] for kind in KINDS)
    return (
        f"CAMAL's attention is {phrase} than {prose(other)}'s: the area under the curve (AUC) of confidence "
        f"is {removal[0]:.3f} against {removal[1]:.3f} under removal (low is faithful) and {insertion[0]:.3f} "
        f"against {insertion[1]:.3f} under insertion (high is faithful)."
    )


LIMITS = (
    "Standard deviations are those of a sample (n - 1 in the denominator).",
    "The test is one-tailed, as in the paper: is CAMAL higher? The table of p-values has the other direction "
    "too. Nothing is corrected for there being several tests.",
    "Folds of a cross-validation share most of their training images, so their differences are less "
    "independent than the test assumes, and a p may be too small.",
    "The ceiling is the IoU that the mask itself has when it is shown at the resolution of attention: a "
    "yardstick, no bound, for attention can have more. A dead map is all zero and counts as IoU 0.",
    "Not significant does not mean equal.",
)


# ------------------------------------------------------------------------------------------------------------
# Tables

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


def paper_tables(folds: Folds, results: Results, measure: str) -> dict[str, Table]:
    """Return a table of the paper's form for each other method, by the names of their files."""
    others = sorted(folds.others, key=lambda other: (other not in PLACES[measure], place(measure, other)))
    every = {other: results.select(other=other, measure=measure, test_set=UNSHIFTED) for other in others}
    return {place(measure, other)[0]: _paper_table(folds, pairs) for other, pairs in every.items() if pairs}


def _paper_table(folds: Folds, pairs: Sequence[Paired]) -> Table:
    other, measure = pairs[0].other, pairs[0].measure
    found = {(pair.model, pair.data): pair for pair in pairs}
    models, data_sets = (
        [key for key in folds.names(c) if any(key in k for k in found)] for c in ("model", "data")
    )
    rows = []
    for model in models:
        row = [prose(model)]
        for data in data_sets:
            pair = found.get((model, data))
            own, rival = (_shown(pair.folds[side]) if pair else NOTHING for side in ("camal", "rival"))
            if pair and pair.verdict == "significantly higher":
                own = own.join(BOLD)
            elif pair and pair.verdict == "higher" and measure == "accuracy":
                own = own.join(UNDERLINED)
            row += [own, rival]
        rows.append(row)
    note = (
        "In percent, mean ± sample standard deviation over the folds that both have. Bold: CAMAL's mean is "
        f"the higher one, and significantly so (one-tailed Wilcoxon signed-rank test, p < {SIGNIFICANT})."
    )
    note += {
        "accuracy": " Underlined: its mean is higher, but not significantly.",
        "iou": " Ceilings and dead maps are in the table of all methods.",
    }[measure]
    _, number = place(measure, other)
    title = f"Test {MEASURES[measure]} of CAMAL and {prose(other)}"
    title += f" (the paper's {number})" if number else ""
    columns = [f"{prose(data)}{BREAK}{prose(method)}" for data in data_sets for method in ("camal", other)]
    return Table(title, ["Model", *columns], rows, note)


def p_values(results: Results) -> Table:
    """Return a row a pair."""
    columns = ["Data set", "Model", "Beside", "Test set", "Measure"]
    rows = [
        [
            *(prose(pair.data), prose(pair.model), prose(pair.other), pair.test_set),
            *(MEASURES[pair.measure], str(len(pair.folds)), percent(pair.means[0] - pair.means[1])),
            *("< 0.001" if p < 0.0005 else fixed(p, 3) for p in (pair.p, pair.p_lower)),
            pair.verdict,
        ]
        for pair in results.paired
    ]
    return Table(
        "p-values of CAMAL and each other method",
        [*columns, "Folds", "Difference", "p, higher", "p, lower", "CAMAL is"],
        rows,
        "Difference: CAMAL's mean less the other's, in points. One-tailed Wilcoxon signed-rank tests over "
        "paired folds that CAMAL is higher, and that it is lower. The smallest p of n folds that differ is "
        "2^-n.",
        labels=5,
    )


def all_methods(folds: Folds) -> Table:
    """Return a row a method and test set."""
    columns = ["Data set", "Model", "Test set", "Method", "Folds", "Accuracy", "IoU", "Ceiling", "Dead"]
    rows = []
    for key, cell in folds.table.groupby(["data", "model", "test_set", "method"], observed=True):
        row = [*map(prose, key), str(len(cell)), _shown(cell["accuracy"]), _shown(cell["iou"])]
        rows.append([*row, *(percent(mean(cell[name])) for name in NUMBERS[2:])])
    return Table(
        "All methods",
        [*columns, "Pointing", "Mass", "ROC"],
        rows,
        "In percent, mean (± sample standard deviation) over all folds of the method, with a partner or "
        "without. Pointing: share of samples whose most attended pixel lies in the mask. Mass: share of "
        "attention in the mask. ROC: area under the ROC curve of attention against the mask.",
        labels=4,
    )


def _shown(values: pd.Series) -> str:
    return f"{percent(mean(values))} ± {percent(values.std())}" if values.count() else NOTHING


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


# ------------------------------------------------------------------------------------------------------------
# Figures

Strips = Mapping[str, Sequence[np.ndarray]]
"""Data set -> a sample's image, its mask, and over it the attention of CAMAL and of the other method."""


def drawings(folds: Folds, results: Results) -> tuple[list[Drawing], list[Drawing], list[str]]:
    """Return figures of attention, figures of faithfulness, and sentences on pictures that can't be shown."""
    attention, faithfulness, problems = [], [], []
    for other in sorted(folds.others, key=lambda other: other != "prior"):  # as the paper numbers them
        strips, told, unread = overlays(folds, other)
        problems += unread
        maps = results.variances.get(other, [])
        if maps:
            told.append(
                "Spatial variance: how much the masks, and attention in [0, 1], vary over test samples at "
                "each place of the map. Masks are averaged to the map's resolution. Each map is the mean over "
                "the folds that both methods have, of all models with maps of its size."
            )
        if told:
            name, number = place("attention", other)
            told = [f"As in the paper's {number}."] * bool(number) + told
            files = attention_figure(name, other, strips, maps)
            attention.append(Drawing(name, " ".join(told), files))
        if curves := results.curves.get(other):
            name, number = place("faithfulness", other)
            caption = f"As in the paper's {number}. " if number else ""
            caption += _curves_caption(other, curves)
            faithfulness.append(Drawing(name, caption, curves_figure(name, other, curves)))
    return attention, faithfulness, problems


def overlays(folds: Folds, other: str) -> tuple[Strips, list[str], list[str]]:
    """Return a test sample a data set, from the first fold of which both methods have an overlay picture.

    Returns:
        The pictures, their caption if there are any, and a sentence on each that can't be used.
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
        if np.array_equal(image, same_image):
            strips[camal.data] = [image, mask, own, others]
            titles.append(f"{prose(camal.data)}: {prose(camal.model)}, fold {camal.number}")
        else:
            problems.append(f"No picture of {camal.title} and {prose(other)}: they show different samples.")
    samples = f"Attention of CAMAL and of {prose(other)} on one test sample a data set ({'; '.join(titles)})."
    return strips, [samples] * bool(titles), problems


def first_panels(file: Path) -> list[np.ndarray]:
    """Return the panels of the first sample in a picture of `camal_rl.vision.evaluate`, each uint8 (S, S, 3).

    They are those of `media.attention_strip`: image, mask, attention, attention over the image.

    Raises:
        OSError, ValueError: the file can't be read, or is another picture.
    """
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB"))

    def strip(side: int) -> tuple[int, ...]:
        blank = np.zeros((side, side), np.uint8)
        return pictures.attention_strip(blank, blank, {"": np.zeros((1, 1))}, " ", smallest=1).shape

    gap = (strip(16)[1] - 4 * 16) // 5
    side = (pixels.shape[1] - gap) // 4 - gap
    bottom = strip(side)[0] - gap
    lefts = range(gap, pixels.shape[1], side + gap)
    return [pixels[bottom - side : bottom, left : left + side] for left in lefts]


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
            for panels, line in zip(strips.values(), grid, strict=True):
                for panel, axes in zip(panels, line, strict=True):
                    axes.imshow(panel)
            _label(grid, list(strips), ["Image", "Mask", "CAMAL", prose(other)])
        if maps:
            grid = parts[0].subplots(len(data_sets), 3 * len(sizes), squeeze=False)
            highest = max(float(values.max()) for found in maps for values in found.maps) or 1.0
            for found in maps:
                first = 3 * sizes.index(found.maps[0].shape)
                line = grid[data_sets.index(found.data), first : first + 3]
                for values, axes in zip(found.maps, line, strict=True):
                    image = axes.imshow(values, "inferno", vmin=0, vmax=highest, interpolation="nearest")
            over = [" \N{MULTIPLICATION SIGN} ".join(map(str, size)) for size in sizes]
            titles = [title for size in over for title in (f"{size}\nMasks", "\nCAMAL", f"\n{prose(other)}")]
            _label(grid, data_sets, titles)
            bar = {"location": "bottom", "aspect": 40, "pad": 0.02, "label": "Variance over samples"}
            parts[0].colorbar(image, ax=list(grid.flat), **bar)

    return figures.draw(name, sum(heights), paint)


def _label(grid: np.ndarray, data_sets: Sequence[str], titles: Sequence[str]) -> None:
    """Name rows and columns of pictures, which have no axes."""
    for data, line in zip(data_sets, grid, strict=False):
        line[0].set_ylabel(textwrap.fill(prose(data), 10))
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9 if len(titles) < 5 else 7.5)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)


def _curves_caption(other: str, curves: Curves) -> str:
    apart = " and ".join(shown(curves.differences[kind], 3) for kind in KINDS)
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
    panels = []
    for kind in KINDS:
        areas = zip(methods.values(), curves.areas[kind], strict=True)
        labels = [f"{method}, AUC {area:.3f}" for method, area in areas]
        x = 100 * curves.shares
        panels.append(LinePanel(kind.capitalize(), x, curves.bands[kind], share=True, labels=labels))
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
    alignment, accuracy = (paper_tables(folds, results, measure) for measure in MEASURES)
    tests = {"p-values": p_values(results)} if results.paired else {}
    every = {"all-methods": all_methods(folds)}
    attention, faithful, unread = drawings(folds, results)
    sections: dict[str, Sequence[Part]] = {
        "Attention alignment": [*alignment.values(), *attention],
        "Attention faithfulness": faithful,
        "Generalization": list(accuracy.values()),
        "Tests": list(tests.values()),
        "All methods": list(every.values()),
        "How to read it": [LIMITS],
        "How it was made": [
            Listing([shlex.join(["python", "-m", "camal_rl.vision.report", str(args.runs)])]),
            "The same numbers are in statistics.json and scores.csv beside this page, tables in tables.md, "
            "tables.tex and a CSV file each, the figures in PNG and SVG files.",
        ],
    }
    data, models, methods = (list(map(prose, folds.names(column))) for column in ("data", "model", "method"))
    page = Page(
        f"{' and '.join(methods)}: attention and accuracy",
        f"{_count(len(folds.folds), 'fold')} of {', '.join(models)} on {', '.join(data)}, compared by "
        f"camal_rl {__version__}",
        verdicts(folds, results),
        [*warnings(folds, results), *unread],
        sections,
    )
    named = {column: folds.names(column) for column in ("data", "model", "method", "test_set")}
    files = {f"{n}.csv": figures.table_csv(t) for n, t in (alignment | accuracy | tests | every).items()}
    files["scores.csv"] = folds.table.to_csv(index=False).encode()
    return publish(folder, page, {**named, **vars(results)}, files)


def main(args: Args) -> int:
    """Report, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    return run_at_once(lambda: print("\n".join(make(args))))


if __name__ == "__main__":
    sys.exit(main(parse_args()))
