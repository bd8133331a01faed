"""Intervals, bands and rows of text -> figures (PNG, SVG) and tables (Markdown, LaTeX, CSV) of all reports.

Figures are narrow, so that a phone shows their text at about 9 pixels. Their colours are Okabe and Ito's,
which the colour-blind can tell apart; in the page they follow its light and dark scheme.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from camal_rl.stats import Band, Interval

INK, MUTED, GRID, PAPER = "#1b1f24", "#5b6570", "#dde1e6", "#fefefe"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of methods, in their order; they start again after the sixth."""
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
BAR_OPACITY = 0.55
WIDTH = 4.4
"""Inches of every figure."""
NOTHING = "\N{EN DASH}"
"""Stands in tables where there is no number."""

_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelcolor": MUTED,
    "grid.linewidth": 0.7,
    "svg.fonttype": "none",
    "axes.labelsize": 8.5,
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 8),
    **dict.fromkeys(("axes.titlecolor", "text.color", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), GRID),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), PAPER),
    **dict.fromkeys(("axes.axisbelow", "axes.grid"), True),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.unicode_minus", "legend.frameon"), False),
}


# ------------------------------------------------------------------------------------------------------------
# Figures


Bars = Mapping[str, Mapping[str, Interval]]
"""Label of a row -> method -> interval; an estimate of NaN is not drawn."""


def draw(name: str, height: float, paint: Callable[[Figure], None]) -> dict[str, bytes]:
    """Return a figure's files, `<name>.png` and `<name>.svg`; the same figure has the same bytes.

    Args:
        name: of the files, and what their ids are derived from.
        height: inches.
        paint: puts everything onto the empty figure.
    """
    files = {}
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever a matplotlibrc says
        mpl.rcParams.update(cast(Any, _STYLE | {"svg.hashsalt": name}))
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        paint(figure)
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            content = io.BytesIO()
            figure.savefig(content, format=kind, dpi=220, metadata=metadata)
            files[f"{name}.{kind}"] = content.getvalue()
    return files


class BarPanel(NamedTuple):
    """Intervals of methods in rows."""

    title: str
    label: str  # of the axis
    rows: Bars
    probability: bool = False  # from 0 to 1, with a dashed line where neither method is better
    ceilings: Mapping[str, float] = {}  # dotted lines by row


def bars_figure(
    name: str, methods: Mapping[str, str], grid: Sequence[Sequence[BarPanel]]
) -> dict[str, bytes]:
    """Draw rows of panels of bars, as in the paper's Figures 4 and 6.

    Args:
        name: of the files.
        methods: key -> name in prose, in order.
        grid: one panel or two in each row; the second panel reaches down over rows that have only one.
    """
    colours = {method: colour(place) for place, method in enumerate(methods)}
    heights = [0.75 + (0.16 + 0.15 * len(methods)) * len(panels[0].rows) for panels in grid]  # inches

    def paint(figure: Figure) -> None:
        size = max(map(len, grid))
        places = figure.add_gridspec(len(grid), size, width_ratios=[1.5, 1][:size], height_ratios=heights)
        for row, panels in enumerate(grid):
            for column, panel in enumerate(panels):
                down = slice(row, None) if column and len(grid[-1]) == 1 else row
                axes = figure.add_subplot(places[down, column])
                _bars(axes, panel, colours)
                if column and panel.rows.keys() == panels[0].rows.keys():
                    axes.set_yticklabels([])
        _legend(figure, methods)

    return draw(name, 0.4 + sum(heights), paint)


class LinePanel(NamedTuple):
    """A band of each method along an axis."""

    title: str
    x: np.ndarray
    bands: Mapping[str, Band]
    share: bool = False  # whether values are shares, from 0 to 1
    levels: Mapping[str, float] = {}  # dotted lines that have a name
    from_zero: bool = False
    labels: Sequence[str] = ()  # of the bands, in a legend of the panel's own


def lines_figure(
    name: str,
    methods: Mapping[str, str],
    rows: Sequence[Sequence[LinePanel]],
    xlabel: str,
    ylabel: str = "",
    height: float = 1.4,
) -> dict[str, bytes]:
    """Draw rows of panels of lines: learning curves, performance profiles, removal and insertion.

    Args:
        name: of the files.
        methods: key -> name in prose, in order.
        rows: panels side by side; either all of them have labels or none.
        xlabel: below the last row.
        ylabel: at the left of every row.
        height: of a row, inches.
    """

    def paint(figure: Figure) -> None:
        place = {method: place for place, method in enumerate(methods)}
        grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for panel, axes in zip((panel for row in rows for panel in row), grid.flat, strict=True):
            drawn = lines(axes, panel.x, {place[method]: band for method, band in panel.bands.items()})
            for label, value in panel.levels.items():
                if math.isnan(value):
                    continue
                axes.axhline(value, color=MUTED, linestyle=":", linewidth=1, zorder=0.5)
                at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
                style = {"ha": "right", "va": "bottom", "fontsize": 7.5, "color": MUTED}
                axes.annotate(label, (1, value), xytext=(0, 1.5), **at, **style)
            low, high = axes.get_ylim()
            axes.set_ylim(0 if panel.from_zero else low, high + 0.13 * (high - low))
            if panel.share:
                axes.set_ylim(-0.03, 1.42 if panel.labels else 1.03)  # a legend has what is above
                axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
            else:
                axes.xaxis.set_major_locator(MaxNLocator(3))
                axes.yaxis.set_major_locator(MaxNLocator(4))
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k and 2M
            axes.set_title(panel.title)
            if panel.labels:
                axes.legend(drawn, panel.labels, loc="upper left", borderaxespad=0.2, handlelength=1.8)
        for axes in grid[-1]:
            axes.set_xlabel(xlabel)
        for axes in grid[:, 0]:
            axes.set_ylabel(ylabel)
        if not rows[0][0].labels:
            _legend(figure, methods, lines=True)

    return draw(name, 0.5 + height * len(rows), paint)


def colour(index: int) -> str:
    """Return the colour of the method at this place in the order."""
    return COLOURS[index % len(COLOURS)]


def _legend(figure: Figure, methods: Mapping[str, str], lines: bool = False) -> None:
    marks = [
        Line2D([], [], color=colour(place), linestyle=DASHES[place % len(DASHES)], linewidth=1.6)
        if lines
        else Line2D([], [], color=colour(place), linewidth=6, alpha=BAR_OPACITY, solid_capstyle="butt")
        for place in range(len(methods))
    ]
    names, columns = list(methods.values()), min(3, len(methods))
    figure.legend(marks, names, loc="outside upper center", ncols=columns, handlelength=2.2)


def _bars(axes: Axes, panel: BarPanel, colours: Mapping[str, str]) -> None:
    """Draw bars from low to high with a dot at the estimate; a hollow diamond where there is no interval."""
    axes.use_sticky_edges = False
    for row, (label, intervals) in enumerate(panel.rows.items()):
        height = 0.8 / len(intervals)
        for place, (method, found) in enumerate(intervals.items()):
            y = row + (place - (len(intervals) - 1) / 2) * height
            tint = colours[method] if len(intervals) > 1 or not panel.probability else MUTED
            if np.isnan(found.estimate):
                continue
            if found.low is None or found.high is None:
                axes.plot(found.estimate, y, "D", color=tint, fillstyle="none", markersize=4.5)
                continue
            span, thick = found.high - found.low, min(0.62 * height, 0.3)
            axes.barh(y, span, thick, found.low, color=tint, alpha=BAR_OPACITY, linewidth=0)
            axes.plot(found.estimate, y, "o", color=tint, markersize=5.5, markeredgecolor=PAPER)
        x, ends = [panel.ceilings.get(label, np.nan)] * 2, [row - 0.4, row + 0.4]
        axes.plot(x, ends, color=MUTED, linestyle=":", linewidth=1.3)
    axes.margins(x=0.05)
    axes.set_yticks(range(len(panel.rows)), list(panel.rows))
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if panel.probability:
        axes.axvline(0.5, color=MUTED, linestyle="--", linewidth=1.2, zorder=0.5)
        axes.set_xlim(-0.05, 1.05)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.set_title(panel.title)
    axes.set_xlabel(panel.label)


def lines(
    axes: Axes, x: np.ndarray, bands: Mapping[int, Band], tint: Callable[[int], str] = colour
) -> list[Line2D]:
    """Draw a line for each band's estimate and, where there is one, its interval as a shade."""
    drawn = []
    for place, band in bands.items():
        if band.low is not None and band.high is not None:
            axes.fill_between(x, band.low, band.high, color=tint(place), alpha=0.22, linewidth=0)
        dashes = DASHES[place % len(DASHES)]
        drawn += axes.plot(x, band.estimate, color=tint(place), linestyle=dashes, linewidth=1.5)
    axes.margins(x=0.02)
    return drawn


# ------------------------------------------------------------------------------------------------------------
# Tables


def shown(interval: Interval, digits: int) -> str:
    """Return an interval as text."""
    if np.isnan(interval.estimate):
        return NOTHING
    estimate = fixed(interval.estimate, digits)
    if interval.low is None or interval.high is None:
        return f"{estimate} (no interval)"
    return f"{estimate} [{fixed(interval.low, digits)}, {fixed(interval.high, digits)}]"


def fixed(value: float, digits: int) -> str:
    """Return a number with so many decimals; zero has no sign, and NaN is `NOTHING`."""
    return NOTHING if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def percent(fraction: float, unit: str = "") -> str:
    """Return a fraction in percent; the unit stands behind a number only."""
    return NOTHING if math.isnan(fraction) else fixed(100 * fraction, 1) + unit


# Private-use characters, which pass through the escapes of all formats and then become each one's own.
BOLD, UNDERLINED = ("\ue000", "\ue001"), ("\ue002", "\ue003")
"""Signs before and behind a cell's text."""
BREAK = "\ue004"
"""In a column's title: what stands before it is shared with its neighbours."""


def marked(text: str, bold: str, underlined: str, line: str) -> str:
    """Replace the private characters: `bold` and `underlined` have a | for the text between."""
    marks = (*bold.split("|"), *underlined.split("|"), line)
    signs = map(ord, (*BOLD, *UNDERLINED, BREAK))
    return text.translate(dict(zip(signs, marks, strict=True)))


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading; the first `labels` columns are names, the others are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    labels: int = 1


def markdown(table: Table) -> str:
    """Return a table as GitHub reads it; it shows `ins` underlined."""
    places = ["---" if i < table.labels else "---:" for i in range(len(table.columns))]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (table.columns, places, *table.rows)]
    lines = [f"### {table.title}", "", *(f"| {' | '.join(row)} |" for row in rows)]
    text = "\n".join([*lines, *(["", table.note] if table.note else [])]) + "\n"
    return marked(text, "**|**", "<ins>|</ins>", "<br>")


_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        NOTHING: "--",
        "\N{EM DASH}": "---",
        "\N{PLUS-MINUS SIGN}": r"$\pm$",
    }
)


def latex(table: Table) -> str:
    """Return a floating table with booktabs' rules; shared titles of columns are a row of their own."""
    titles = [title.translate(_LATEX).rpartition(BREAK)[::2] for title in table.columns]
    split = any(over for over, _ in titles)
    columns = pd.MultiIndex.from_tuples(titles) if split else [below for _, below in titles]
    rows = [[cell.translate(_LATEX) for cell in row] for row in table.rows]
    text: str = (
        pd.DataFrame(rows, columns=columns)
        .style.hide(axis="index")
        .to_latex(
            caption=table.title.translate(_LATEX),
            column_format="l" * table.labels + "r" * (len(columns) - table.labels),
            hrules=True,
            multicol_align="c",
            position_float="centering",
        )
    )
    if table.note:
        note = r"\par\smallskip\footnotesize " + table.note.translate(_LATEX)
        text = text.replace(r"\end{table}", note + "\n\\end{table}")
    return marked(text, r"\textbf{|}", r"\underline{|}", " ")


def table_csv(table: Table) -> bytes:
    """Return the content of a CSV file with the table's text, without emphasis."""
    text: str = pd.DataFrame(table.rows, columns=table.columns).to_csv(index=False)
    return marked(text, "|", "|", " ").encode()
