"""Scores of folds -> the paper's Tables 1, 2, 3 and 5, Figures 3, 5, 10 and 12, and a page that says it all.

`scores` reads and computes, `camal_rl.results` draws and writes; here is what is said and shown of it.
"""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
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
from camal_rl.results import figures
from camal_rl.results.figures import BOLD, BREAK, NOTHING, UNDERLINED, LinePanel, Table, fixed, percent, shown
from camal_rl.results.media import BAR, PANEL_GAP
from camal_rl.results.page import Drawing, Listing, Page, Part, publish
from camal_rl.results.study import some
from camal_rl.run.command_line import parse, run_at_once
from camal_rl.run.files import make_folder
from camal_rl.vision import scores
from camal_rl.vision.scores import MEASURES, UNSHIFTED, Curves, Folds, Paired, Results, Variance, mean, prose

FEWEST = 5
"""Paired folds that differ with which p can be below 0.05: the smallest p of n is 2**-n."""


@dataclass
class Args:
    """Compare CAMAL with other methods over folds: tables, figures, tests and a page to read."""

    runs: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUNS")]]
    """folder that holds <data>/<model>/<method>/fold<k>/scores.json, such as runs/vision"""
    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder to write to, RUNS/report if none is given"""


# ------------------------------------------------------------------------------------------------------------
# In words


def warnings(folds: Folds, results: Results) -> list[str]:
    """Say what has to be known before the tables are believed."""
    sentences = scores.comparability(folds)
    few = [
        f"{pair.data}/{pair.model} beside {prose(pair.other)} ({MEASURES[pair.measure]}: {pair.differing})"
        for pair in results.select(test_set=UNSHIFTED)
        if pair.differing < FEWEST
    ]
    if few:
        sentences.append(
            "Too few folds for significance: the smallest p of n paired folds that differ is 2^-n, so fewer "
            f"than {FEWEST} can't give p < {scores.SIGNIFICANT}. That holds for {some(few)}."
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
"""Measure -> its name in a verdict, and how CAMAL's is called where it is higher, lower or the same."""


def verdicts(folds: Folds, results: Results) -> list[str]:
    """Say what was found, whichever way it points: a paragraph on each other method."""
    if not folds.others:
        have = ", ".join(map(prose, folds.names("method")))
        return [f"There are only scores of {have}: nothing is compared with CAMAL."]
    paragraphs = []
    for other in folds.others:
        judged = [results.select(other=other, measure=measure, test_set=UNSHIFTED) for measure in MEASURES]
        sentences = [_judged(pairs) for pairs in judged if pairs]
        if other in results.curves:
            sentences.append(_faithful(other, results.curves[other]))
        for data in folds.names("data"):
            before = results.select(other=other, measure="accuracy", data=data, test_set=UNSHIFTED)
            for shift in folds.names("test_set")[1:]:
                if pairs := results.select(other=other, measure="accuracy", data=data, test_set=shift):
                    drops = [percent(a - b) for a, b in zip(_means(before), _means(pairs), strict=True)]
                    sentences.append(
                        f"On {prose(data)} with {shift} images accuracy drops by {drops[0]} and {drops[1]} "
                        f"points, to {_told(pairs)}."
                    )
        nothing = f"No fold of {prose(other)} can be compared with one of CAMAL."
        paragraphs.append(" ".join(sentences) or nothing)
    return paragraphs


def _judged(pairs: Sequence[Paired]) -> str:
    """A sentence on a measure, of pairs in each combination of data set and model."""
    measure, whose = pairs[0].measure, f"{prose(pairs[0].other)}'s"
    subject, better, worse, same = WORDS[measure]
    found = {pair.verdict for pair in pairs}
    ways = {verdict.split()[-1] for verdict in found}
    strong = sum(verdict.startswith("significantly") for verdict in found)
    strength = "significantly " if strong == len(found) else "" if strong else "not significantly "
    phrase = f"not consistently {better}"
    if len(ways) == 1:
        phrase = {"higher": strength + better, "lower": strength + worse, "equal": same}[ways.pop()]
    sentence = f"CAMAL's {subject} is {phrase} {whose}: a mean {MEASURES[measure]} of {_told(pairs)}."
    if measure == "accuracy":
        return sentence
    every = pd.concat([pair.folds for pair in pairs])
    mask, camal, rival = (percent(mean(every[c])) for c in ("mask", "dead_camal", "dead_rival"))
    return f"{sentence} The mask itself, at that resolution: {mask} %; dead maps: {camal} % and {rival} %."


def _told(pairs: Sequence[Paired]) -> str:
    camal, rival = map(percent, _means(pairs))
    found = [pair.verdict for pair in pairs]
    if len(found) == 1:
        return f"{camal} % against {rival} % ({found[0]})"
    higher, lower = (sum(verdict.endswith(word) for verdict in found) for word in ("higher", "lower"))
    strong = sum(verdict.startswith("significantly") for verdict in found)
    return (
        f"{camal} % against {rival} %, higher in {higher} and lower in {lower} comparisons, significantly in "
        f"{strong}"
    )


def _means(pairs: Sequence[Paired]) -> list[float]:
    """Means of CAMAL and the other over combinations of the means over folds."""
    return [statistics.fmean(side) for side in zip(*(pair.means for pair in pairs), strict=True)]


def _faithful(other: str, curves: Curves) -> str:
    """The interval of the difference says which is more faithful: it has to be on one side of 0."""
    sides = []
    for kind, sign in (("removal", -1), ("insertion", 1)):
        low, high = curves.differences[kind].low, curves.differences[kind].high
        side = 0 if low is None or high is None else sign * ((low > 0) - (high < 0))
        sides.append(("not clearly more or less", "more", "less")[side])
    phrase = f"{sides[0]} faithful by removal and {sides[1]} by insertion"
    phrase = f"{sides[0]} faithful" if sides[0] == sides[1] else phrase
    removal, insertion = (f"{own:.3f} against {rival:.3f}" for own, rival in curves.areas.values())
    return (
        f"CAMAL's attention is {phrase} than {prose(other)}'s: the area under the curve (AUC) of confidence "
        f"is {removal} under removal (low is faithful) and {insertion} under insertion (high is faithful)."
    )


LIMITS = (
    "Standard deviations are those of a sample (n - 1 in the denominator).",
    "The test is one-tailed, as in the paper: is CAMAL higher? The table of p-values has the other direction "
    "too. Nothing is corrected for there being several tests.",
    "Folds of a cross-validation share most of their training images, so their differences are less "
    "independent than the test assumes, and a p may be too small.",
    "Mask is the IoU that the mask itself has when it is shown at the resolution of attention: a "
    "yardstick, no bound, for attention can have more. A dead map is all zero and counts as IoU 0.",
    "Not significant does not mean equal.",
)


# ------------------------------------------------------------------------------------------------------------
# Tables

PLACES = {
    "iou": {"prior": "Table 1", "vanilla": "Table 5"},
    "accuracy": {"vanilla": "Table 2", "prior": "Table 3"},
    "attention": {"prior": "Figure 3", "vanilla": "Figure 10"},
    "faithfulness": {"prior": "Figure 5", "vanilla": "Figure 12"},
}
"""The paper's tables and figures, by what they show of CAMAL beside which method."""


def place(kind: str, other: str) -> tuple[str, str]:
    """Return the name of a file, and what the paper calls it, "Table 1"; empty where it has none."""
    number = PLACES[kind].get(other, "")
    return number.lower().replace(" ", "") or f"{kind}-{other}", number


def paper_tables(folds: Folds, results: Results, measure: str) -> dict[str, Table]:
    """Return a table of the paper's form for each other method, by the names of their files."""
    found = {}
    for other in folds.others:
        if pairs := results.select(other=other, measure=measure, test_set=UNSHIFTED):
            found[place(measure, other)[0]] = _paper_table(folds, pairs)
    return found


def _paper_table(folds: Folds, pairs: Sequence[Paired]) -> Table:
    other, measure = pairs[0].other, pairs[0].measure
    found = {(pair.model, pair.data): pair for pair in pairs}
    data_sets = [data for data in folds.names("data") if any(pair.data == data for pair in pairs)]
    rows = []
    for model in folds.names("model"):
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
    more = {
        "accuracy": "Underlined: its mean is higher, but not significantly.",
        "iou": "The mask's own and dead maps are in the table of all methods.",
    }
    note = (
        "In percent, mean ± sample standard deviation over the folds that both have. Bold: CAMAL's mean is "
        "the higher one, and significantly so (one-tailed Wilcoxon signed-rank test, "
        f"p < {scores.SIGNIFICANT}). "
    ) + more[measure]
    number = place(measure, other)[1]
    title = f"Test {MEASURES[measure]} of CAMAL and {prose(other)}"
    title += f" (the paper's {number})" if number else ""
    columns = [f"{prose(data)}{BREAK}{prose(method)}" for data in data_sets for method in ("camal", other)]
    return Table(title, ["Model", *columns], [row for row in rows if {*row[1:]} != {NOTHING}], note)


def p_values(results: Results) -> Table:
    """Return a row a pair."""
    columns = ["Data set", "Model", "Beside", "Test set", "Measure", "Folds", "Difference"]
    rows = []
    for pair in results.paired:
        row = [*map(prose, (pair.data, pair.model, pair.other)), pair.test_set, MEASURES[pair.measure]]
        row += [str(len(pair.folds)), percent(pair.means[0] - pair.means[1])]
        row += ["< 0.001" if p < 0.0005 else fixed(p, 3) for p in (pair.p, pair.p_lower)]
        rows.append([*row, pair.verdict])
    note = (
        "Difference: CAMAL's mean less the other's, in points. One-tailed Wilcoxon signed-rank tests over "
        "paired folds that CAMAL is higher, and that it is lower."
    )
    columns += ["p, higher", "p, lower", "CAMAL is"]
    return Table("p-values of CAMAL and each other method", columns, rows, note, labels=5)


def all_methods(folds: Folds) -> Table:
    """Return a row a method and test set."""
    rows = []
    for key, cell in folds.table.groupby(["data", "model", "test_set", "method"], observed=True):
        row = [*map(prose, key), str(len(cell)), _shown(cell["accuracy"]), _shown(cell["iou"])]
        rows.append([*row, *(percent(mean(cell[name])) for name in scores.NUMBERS[2:])])
    note = (
        "In percent, mean (± sample standard deviation) over all folds of the method, with a partner or "
        "without. Pointing: share of samples whose most attended pixel lies in the mask. Mass: share of "
        "attention in the mask. ROC: area under the ROC curve of attention against the mask."
    )
    columns = ["Data set", "Model", "Test set", "Method", "Folds", "Accuracy", "IoU", "Mask", "Dead"]
    return Table("All methods", [*columns, "Pointing", "Mass", "ROC"], rows, note, labels=4)


MAPS = {"gradcam": "true logit (Eq. 3)", "diffgradcam": "margin"}


def by_map(folds: Folds) -> dict[str, Table]:
    """Return a row a method and kind of attention, where scores hold them."""
    cells: dict[tuple[str, ...], list[list[float]]] = {}
    for fold in folds.folds:
        for name, found in fold.scores.maps.items():
            numbers = [np.nan if number is None else number for number in found.model_dump().values()]
            key = (*map(prose, fold[1:4]), MAPS.get(name, name))
            cells.setdefault(key, []).append(numbers)
    rows = [[*key, str(len(cell)), *map(percent, np.mean(cell, axis=0))] for key, cell in cells.items()]
    note = (
        "In percent, means over folds, of attention to the true class's logit and to its margin over the "
        "other classes, whichever the method was trained with. Areas under removal (low is faithful) and "
        "insertion (high is faithful) of at most 30 samples a fold; pixels become grey, or blurred."
    )
    columns = ["Data set", "Model", "Method", "Attention to", "Folds", "IoU", "Removal", "Insertion"]
    table = Table(
        "By kind of attention", [*columns, "Removal, blurred", "Insertion, blurred"], rows, note, labels=4
    )
    return {"maps": table} if rows else {}


def _shown(values: pd.Series) -> str:
    return f"{percent(mean(values))} ± {percent(values.std())}" if values.count() else NOTHING


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
            whose, samples = f"CAMAL and of {prose(other)}", "; ".join(titles)
            told = [f"Attention of {whose} on one test sample a data set ({samples})."] if strips else []
            told += [VARIANCE] if maps else []
            attention.append(_drawing("attention", other, told, attention_figure, strips, maps))
        if curves := results.curves.get(other):
            told = [_curves_caption(other, curves)]
            faithfulness.append(_drawing("faithfulness", other, told, curves_figure, curves))
    return attention, faithfulness, problems


def _drawing(kind: str, other: str, told: Sequence[str], draw: Callable[..., Any], *shown: object) -> Drawing:
    name, number = place(kind, other)
    caption = [f"As in the paper's {number}.", *told] if number else told
    return Drawing(name, " ".join(caption), draw(name, other, *shown))


VARIANCE = (
    "Spatial variance: how much the masks, and attention in [0, 1], vary over test samples at each place of "
    "the map. Masks are averaged to the map's resolution. Each map is the mean over the folds that both "
    "methods have, of all models with maps of its size."
)


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
            if not np.array_equal(image, same_image):
                raise ValueError("they show different samples")
        except (OSError, ValueError) as error:
            problems.append(f"No picture of {camal.title} and {prose(other)}: {error}.")
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

    side = (pixels.shape[1] - PANEL_GAP) // 4 - PANEL_GAP
    # The mask's panel, which is black and white, begins where the bar with its title ends.
    bar = (pixels[:, 2 * (PANEL_GAP + side) - 1] == BAR).all(axis=1)
    top = bar.argmax() + (~bar[bar.argmax() :]).argmax()
    lefts = range(PANEL_GAP, pixels.shape[1], side + PANEL_GAP)
    return [pixels[top : top + side, left : left + side] for left in lefts]


def attention_figure(name: str, other: str, strips: Strips, maps: Sequence[Variance]) -> dict[str, bytes]:
    """Draw the form of the paper's Figures 3 and 10: pictures above, variance below, a row a data set."""
    heights = [0.35 + 1.07 * len(strips)] if strips else []  # inches
    heights += [1 + 1.15 * len(maps)] if maps else []

    def paint(figure: Figure) -> None:
        parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
        if strips:
            grid = parts.pop(0).subplots(len(strips), 4, squeeze=False)
            panels = [panel for row in strips.values() for panel in row]
            for axes, panel in zip(grid.flat, panels, strict=True):
                axes.imshow(panel)
            _label(grid, [prose(data) for data in strips], ["Image", "Mask", "CAMAL", prose(other)])
        if maps:
            grid = parts[0].subplots(len(maps), 3, squeeze=False)
            every = [values for found in maps for values in found.maps]
            scale = {"vmin": 0, "vmax": max(float(values.max()) for values in every) or 1.0}
            for axes, values in zip(grid.flat, every, strict=True):
                image = axes.imshow(values, "inferno", interpolation="nearest", **scale)
            sizes = [" \N{MULTIPLICATION SIGN} ".join(map(str, found.maps[0].shape)) for found in maps]
            rows = [f"{prose(found.data)}\n{size}" for found, size in zip(maps, sizes, strict=True)]
            _label(grid, rows, ["Masks", "CAMAL", prose(other)])
            bar = {"location": "bottom", "aspect": 40, "pad": 0.02, "label": "Variance over samples"}
            parts[0].colorbar(image, ax=list(grid.flat), **bar)

    return figures.draw(name, sum(heights), paint)


def _label(grid: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Name rows and columns of pictures, which have no axes."""
    for title, axes in zip(rows, grid[:, 0], strict=True):
        axes.set_ylabel(title)
    for title, axes in zip(columns, grid[0], strict=True):
        axes.set_title(title)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)


def _curves_caption(other: str, curves: Curves) -> str:
    apart = " and ".join(shown(difference, 3) for difference in curves.differences.values())
    return (
        "Confidence in the true class when the pixels that attention marks most are removed first, and when "
        f"they are inserted first: mean of curves ({curves.samples} of each method) with a 95 % band "
        f"(± {scores.STANDARD_ERRORS} standard errors), one test sample a class of each fold that CAMAL and "
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
    for kind, areas in curves.areas.items():
        labels = [f"{method}, AUC {area:.3f}" for method, area in zip(methods.values(), areas, strict=True)]
        x = 100 * curves.shares
        panels.append(LinePanel(kind.capitalize(), x, curves.bands[kind], share=True, labels=labels))
    return figures.lines_figure(name, methods, [panels], "Pixels changed, %", "Confidence", 2.0)


# ------------------------------------------------------------------------------------------------------------
# From the command line to the files


def make(args: Args) -> list[str]:
    """Write the report, and return what the command line prints.

    Raises:
        UserError: there is nothing to report on, or the folder can't be written; nothing was written then.
    """
    folds = scores.read_folds(args.runs)
    folder = args.output or args.runs / "report"
    make_folder(folder)
    results = scores.compare(folds)
    alignment, accuracy = (paper_tables(folds, results, measure) for measure in MEASURES)
    tests = {"p-values": p_values(results)} if results.paired else {}
    every, maps = all_methods(folds), by_map(folds)
    attention, faithful, unread = drawings(folds, results)
    sections: dict[str, Sequence[Part]] = {
        "Attention alignment": [*alignment.values(), *attention],
        "Attention faithfulness": [*faithful, *maps.values()],
        "Generalization": list(accuracy.values()),
        "Tests": list(tests.values()),
        "In numbers": [every],
        "How to read it": [LIMITS],
        "How it was made": [
            Listing([shlex.join(["python", "-m", "camal_rl.vision.report", str(args.runs)])]),
            "The same numbers are in statistics.json and scores.csv beside this page, tables in tables.md, "
            "tables.tex and a CSV file each, the figures in PNG, SVG and PDF files.",
        ],
    }
    data, models, methods = (", ".join(map(prose, folds.names(c))) for c in ("data", "model", "method"))
    page = Page(
        f"{methods}: attention and accuracy",
        f"{models} on {data}, {len(folds.folds)} folds in all, compared by camal_rl {__version__}",
        verdicts(folds, results),
        [*warnings(folds, results), *unread],
        sections,
    )
    tables = alignment | accuracy | maps | tests | {"all-methods": every}
    files = {f"{name}.csv": figures.table_csv(table) for name, table in tables.items()}
    files["scores.csv"] = folds.table.to_csv(index=False).encode()
    paired = [vars(pair) | {"verdict": pair.verdict} for pair in results.paired]
    return publish(folder, page, results._asdict() | {"paired": paired}, files)


def main(args: Args) -> int:
    """Report, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    return run_at_once(lambda: print("\n".join(make(args))))


if __name__ == "__main__":
    sys.exit(main(parse(Args, "python -m camal_rl.vision.report")))
