"""Intervals, bands and rows of text -> figures (PNG, SVG, PDF) and tables (Markdown, LaTeX, CSV) of reports.

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
from matplotlib.ticker import MaxNLocator

from camal_rl.stats import Band, Interval

INK, MUTED, GRID, PAPER = "#1b1f24", "#5b6570", "#dde1e6", "#fefefe"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of methods, in their order; they start again after the sixth."""
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
LEVELS: tuple[Any, ...] = (":", (0, (5, 1.5, 1, 1.5)))
"""Lines of levels in their order; a panel has two at most."""
BAR_OPACITY = 0.55
WIDTH = 4.4
"""Inches of every figure."""
BAR, FRAME = 0.12, 0.75
"""Inches of a bar's thickness, and of the title and labels of its panel."""
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
    "pdf.fonttype": 42,  # TrueType, as publishers ask for
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


def draw(name: str, height: float, paint: Callable[[Figure], None]) -> dict[str, bytes]:
    """Return a figure's files, `<name>.png`, `.svg` and `.pdf`; the same figure has the same bytes.

    Args:
        name: of the files, and what their ids are derived from.
        height: inches.
        paint: puts everything onto the empty figure.
    """
    undated = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    files = {}
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever a matplotlibrc says
        mpl.rcParams.update(cast(Any, _STYLE | {"svg.hashsalt": name}))
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        paint(figure)
        for kind, metadata in undated.items():
            content = io.BytesIO()
            figure.savefig(content, format=kind, dpi=220, metadata=metadata)
            files[f"{name}.{kind}"] = content.getvalue()
            figure.set_layout_engine("none")  # the first kind's layout holds for all, and it takes long
    return files


class BarPanel(NamedTuple):
    """Intervals of methods in rows; an estimate of NaN is not drawn."""

    title: str
    label: str  # of the axis
    rows: Sequence[tuple[str, Mapping[str, Interval]]]  # label and, by method, interval
    probability: bool = False  # from 0 to 1, with a dashed line where neither method is better
    right: Sequence[str] = ()  # labels of the rows on the other side; then the intervals are written as well
    levels: Mapping[str, Sequence[float]] = {}  # name -> a line's place in each row


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
    inner = [(0.16 + 0.15 * len(methods)) * len(panels[0].rows) for panels in grid]  # inches
    frames = [FRAME if panels[0].title else FRAME - 0.2 for panels in grid]

    def paint(figure: Figure) -> None:
        size = max(map(len, grid))
        places = figure.add_gridspec(len(grid), size, width_ratios=[1.5, 1][:size], height_ratios=inner)
        for row, panels in enumerate(grid):
            for column, panel in enumerate(panels):
                down = slice(row, None if column and len(grid[-1]) == 1 else row + 1)
                axes = figure.add_subplot(places[down, column])
                _bars(axes, panel, colours, sum(inner[down]) + sum(frames[down][1:]))
                if column and not panel.right:
                    axes.set_yticklabels([])  # those of the first panel
        _legend(figure, methods, levels=list(dict.fromkeys(n for ps in grid for p in ps for n in p.levels)))

    return draw(name, 0.4 + sum(inner) + sum(frames), paint)


class LinePanel(NamedTuple):
    """A band of each method along an axis."""

    title: str
    x: np.ndarray
    bands: Mapping[str, Band]
    share: bool = False  # whether values are shares, from 0 to 1
    levels: Mapping[str, float] = {}  # level lines that have a name
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
        grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for panel, axes in zip((panel for row in rows for panel in row), grid.flat, strict=True):
            _lines(axes, panel, list(methods))
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


def _legend(
    figure: Figure, methods: Mapping[str, str], lines: bool = False, levels: Sequence[str] = ()
) -> None:
    marks = [
        Line2D([], [], color=colour(place), linestyle=DASHES[place % len(DASHES)], linewidth=1.6)
        if lines
        else Line2D([], [], color=colour(place), linewidth=6, alpha=BAR_OPACITY, solid_capstyle="butt")
        for place in range(len(methods))
    ]
    marks += [Line2D([], [], color=MUTED, linestyle=style) for _, style in zip(levels, LEVELS, strict=False)]
    names = [*methods.values(), *levels]
    figure.legend(marks, names, loc="outside upper center", ncols=min(3, len(names)), handlelength=2.2)


def _bars(axes: Axes, panel: BarPanel, colours: Mapping[str, str], inches: float) -> None:
    """Draw bars from low to high with a line at the estimate; a hollow diamond where there is no interval."""
    axes.use_sticky_edges = False
    inch = len(panel.rows) / inches  # in rows
    thick = BAR * inch
    for row, (_, intervals) in enumerate(panel.rows):
        step = min(0.8 / len(intervals), 1.6 * thick)
        for place, (method, found) in enumerate(intervals.items()):
            y = row + (place - (len(intervals) - 1) / 2) * step
            tint = colours[method] if len(intervals) > 1 or not panel.probability else MUTED
            if np.isnan(found.estimate):
                continue
            if found.low is None or found.high is None:
                axes.plot(found.estimate, y, "D", color=tint, fillstyle="none", markersize=4.5)
                continue
            axes.barh(y, found.high - found.low, thick, found.low, color=tint, alpha=BAR_OPACITY, linewidth=0)
            ends = [y - thick / 2, y + thick / 2]
            axes.plot([found.estimate] * 2, ends, color=tint, linewidth=1.5, solid_capstyle="butt")
        if panel.right:
            (found,) = intervals.values()
            axes.text(0.5, row - 0.18 * inch, shown(found, 2), ha="center", va="center", fontsize=7.5)
        for style, values in zip(LEVELS, panel.levels.values(), strict=False):
            axes.plot([values[row]] * 2, [row - 0.4, row + 0.4], color=MUTED, linestyle=style, linewidth=1.3)
    axes.margins(x=0.05)
    axes.set_yticks(range(len(panel.rows)), [label for label, _ in panel.rows])
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if panel.probability:
        axes.grid(visible=False)  # a line there would run into the dashed one
        texts = [(row - 0.27 * inch, row - 0.09 * inch) for row in range(len(panel.right))]
        ends = [-0.5, *(end for text in texts for end in text), len(panel.rows) - 0.5]
        for low, high in zip(ends[::2], ends[1::2], strict=True):
            axes.plot([0.5, 0.5], [low, high], color=MUTED, linestyle="--", linewidth=1.1, zorder=0.5)
        axes.set_xlim(-0.05, 1.05)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    if panel.right:
        other = axes.secondary_yaxis("right")
        other.set_yticks(range(len(panel.rows)), panel.right)
        other.tick_params(length=0)
    axes.tick_params(axis="y", length=0)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.label)


def lines(
    axes: Axes, x: np.ndarray, bands: Mapping[int, Band], tint: Callable[[int], str] = colour
) -> list[Line2D]:
    """Draw a line for each band's estimate and, where there is one, its interval as a shade."""
    drawn = []
    for place, band in bands.items():
        there = np.isfinite(band.estimate)
        if band.low is not None and band.high is not None:
            axes.fill_between(
                x[there], band.low[there], band.high[there], color=tint(place), alpha=0.22, linewidth=0
            )
        dashes = DASHES[place % len(DASHES)]
        drawn += axes.plot(x[there], band.estimate[there], color=tint(place), linestyle=dashes, linewidth=1.5)
        drawn[-1].set(marker="o" if there.sum() == 1 else "", markersize=4)  # a line would have no length
    axes.margins(x=0.02)
    return drawn


def _lines(axes: Axes, panel: LinePanel, methods: Sequence[str]) -> None:
    """Draw a panel's lines, and its levels with their names at the right."""
    drawn = lines(axes, panel.x, {methods.index(method): band for method, band in panel.bands.items()})
    levels = {label: value for label, value in panel.levels.items() if not math.isnan(value)}
    for style, value in zip(LEVELS, levels.values(), strict=False):
        axes.axhline(value, color=MUTED, linestyle=style, linewidth=1, zorder=0.5)
    low, high = axes.get_ylim()
    axes.set_ylim(0 if panel.from_zero else low, high + 0.05 * (high - low))
    end = -math.inf
    for label, value in sorted(levels.items(), key=lambda level: level[1]):
        end = max(value, end + 0.13 * (high - low))  # labels keep apart where levels are close
        across = axes.get_yaxis_transform()  # across in parts of the axes, up in data
        axes.text(1.02, end, label, transform=across, va="center", fontsize=7.5, color=MUTED)
    if panel.share:
        axes.set_ylim(-0.03, 1.42 if panel.labels else 1.03)  # a legend has what is above
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    else:
        axes.set_xlim(0, 1.02 * panel.x[-1])
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        units = ((1e6, "M"), (1e3, "k"))
        unit, sign = next((scale for scale in units if panel.x[-1] >= 2 * scale[0]), (1, ""))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / unit:g}{sign if value else ''}")
    axes.set_title(panel.title)
    if panel.labels:
        axes.legend(drawn, panel.labels, loc="upper left", borderaxespad=0.2, handlelength=1.8)


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
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {NOTHING: "--", "\N{EM DASH}": "---", "\N{PLUS-MINUS SIGN}": r"$\pm$"}
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
