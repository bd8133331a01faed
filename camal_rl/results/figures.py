"""What a report looks like: figures, tables in Markdown, LaTeX and HTML, and an HTML page in a single file.

Figures are narrow, so that a phone shows their text at about 9 pixels. Their colours are Okabe and Ito's,
which the colour-blind can tell apart; in the page they follow its light and dark scheme.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from camal_rl.stats import Band, Interval

INK, MUTED, GRID, PAPER = "#1b1f24", "#5b6570", "#dde1e6", "#fefefe"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of methods, in their order; they start again after the sixth."""
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
    "axes.labelsize": 8.5,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": PAPER,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
}


# ------------------------------------------------------------------------------------------------------------
# Figures


Bars = Mapping[str, Mapping[int, Interval]]
"""Label of a row -> place of the method in the order -> interval; an estimate of NaN is not drawn."""


def draw(name: str, height: float, paint: Callable[[Figure], None]) -> dict[str, bytes]:
    """A figure's files, `<name>.png` and `<name>.svg`; the same figure has the same bytes.

    Args:
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


def overview_figure(
    name: str, label: str, methods: Sequence[str], statistics: Bars, gap: Bars, poi: Mapping[str, Interval]
) -> dict[str, bytes]:
    """The form of the paper's Figures 4 and 6: SBCI at the left, POI at the right.

    Args:
        label: of the scores' axis.
        statistics: rows that share this axis.
        gap: the row that has an axis of its own.
        poi: pair of methods -> probability of improvement; empty where there is nothing to compare.
    """

    def paint(figure: Figure) -> None:
        rows = [len(statistics), len(gap)]
        columns = [1.35, 1] if poi else [1]
        grid = figure.add_gridspec(2, len(columns), width_ratios=columns, height_ratios=rows)
        axes = figure.add_subplot(grid[0, 0])
        _bars(axes, statistics, len(methods))
        axes.set_title("SBCI, 95 %")
        axes.set_xlabel(label)
        axes = figure.add_subplot(grid[1, 0])
        _bars(axes, gap, len(methods))
        axes.set_xlabel("Optimality gap (low is good)")
        if poi:
            axes = figure.add_subplot(grid[:, 1])
            _bars(axes, {pair: {0: one} for pair, one in poi.items()}, 1, lambda _: MUTED, thickness=0.3)
            for row, (pair, one) in enumerate(poi.items()):
                # On a ground of its own, for the dashed line runs behind it.
                ground = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}
                axes.annotate(pair, (0, row - 0.2), va="bottom", fontsize=8, bbox=ground)
                axes.annotate(shown(one, 2), (0, row + 0.2), va="top", color=MUTED, fontsize=8, bbox=ground)
            axes.set_yticks([])
            axes.set_ylim(len(poi) - 0.5 + 0.3, -0.8)
            axes.set_title("POI, 95 %")
            _probability_axis(axes, "P(X > Y)")
        _legend(figure, methods)

    return draw(name, 1.6 + 4 * _row(methods), paint)


class EnvironmentPanels(NamedTuple):
    """One metric in every environment."""

    title: str
    label: str  # of the scores' axis
    means: Bars
    ceilings: Mapping[str, float]  # by row; NaN or no entry for none
    poi: Bars  # places count the other methods from 0


def environments_figure(
    name: str, methods: Sequence[str], panels: Sequence[EnvironmentPanels]
) -> dict[str, bytes]:
    """SBCI of the mean and POI by environment, a row of panels for each metric."""
    others = len(methods) - 1

    def paint(figure: Figure) -> None:
        columns = 2 if others else 1
        grid = figure.add_gridspec(len(panels), columns, width_ratios=[1.5, 1][:columns])
        for row, panel in enumerate(panels):
            axes = figure.add_subplot(grid[row, 0])
            _bars(axes, panel.means, len(methods))
            for place, env in enumerate(panel.means):
                ceiling = panel.ceilings.get(env, np.nan)
                axes.plot(
                    [ceiling] * 2, [place - 0.4, place + 0.4], color=MUTED, linestyle=":", linewidth=1.3
                )
            axes.set_title(panel.title)
            axes.set_xlabel(panel.label)
            if others:
                axes = figure.add_subplot(grid[row, 1])
                _bars(axes, panel.poi, others, lambda place: MUTED if others == 1 else colour(place + 1))
                axes.set_yticklabels([])
                axes.set_title("POI")
                over = methods[1] if others == 1 else "method of the colour"
                _probability_axis(axes, f"P({methods[0]} > {over})")
        _legend(figure, methods)

    rows = sum(len(panel.means) for panel in panels)
    return draw(name, 0.4 + 0.75 * len(panels) + _row(methods) * rows, paint)


def profiles_figure(
    name: str, methods: Sequence[str], panels: Mapping[str, tuple[np.ndarray, Mapping[int, Band]]]
) -> dict[str, bytes]:
    """Performance profiles side by side: label of the threshold -> thresholds and bands by method."""

    def paint(figure: Figure) -> None:
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (label, (x, bands)) in zip(every, panels.items(), strict=True):
            lines(axes, x, bands)
            axes.set_title(label)
            axes.set_xlabel("Threshold")
            axes.set_ylim(-0.03, 1.03)
        every[0].set_ylabel("Share of runs above it")
        _legend(figure, methods, lines=True)

    return draw(name, 2.4, paint)


class CurvePanel(NamedTuple):
    """Learning curves of every method, with dotted lines at levels that have a name."""

    title: str
    steps: np.ndarray
    bands: Mapping[int, Band]
    levels: Mapping[str, float]
    from_zero: bool


def curves_figure(
    name: str, methods: Sequence[str], rows: Sequence[Sequence[CurvePanel]]
) -> dict[str, bytes]:
    """Learning curves, a row of panels for each environment."""

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for panels, line in zip(rows, grid, strict=True):
            for panel, axes in zip(panels, line, strict=True):
                lines(axes, panel.steps, panel.bands)
                for label, value in panel.levels.items():
                    axes.axhline(value, color=MUTED, linestyle=":", linewidth=1, zorder=0.5)
                    axes.annotate(
                        label,
                        (1, value),
                        xycoords=("axes fraction", "data"),
                        xytext=(0, 1.5),
                        textcoords="offset points",
                        ha="right",
                        va="bottom",
                        fontsize=7.5,
                        color=MUTED,
                    )
                low, high = axes.get_ylim()
                axes.set_ylim(0 if panel.from_zero else low, high + 0.13 * (high - low))
                axes.set_title(panel.title)
                axes.xaxis.set_major_locator(MaxNLocator(3))
                axes.yaxis.set_major_locator(MaxNLocator(4))
                axes.xaxis.set_major_formatter(FuncFormatter(_short))
        for axes in grid[-1]:
            axes.set_xlabel("Agent steps")
        _legend(figure, methods, lines=True)

    return draw(name, 0.5 + 1.4 * len(rows), paint)


def colour(index: int) -> str:
    """Of the method at this place in the order."""
    return COLOURS[index % len(COLOURS)]


def _row(methods: Sequence[str]) -> float:
    """Inches for one bar of every method."""
    return 0.16 + 0.15 * len(methods)


def _legend(figure: Figure, methods: Sequence[str], lines: bool = False) -> None:
    marks = [
        Line2D([], [], color=colour(place), linestyle=DASHES[place % len(DASHES)], linewidth=1.6)
        if lines
        else Line2D([], [], color=colour(place), linewidth=6, alpha=BAR_OPACITY, solid_capstyle="butt")
        for place in range(len(methods))
    ]
    figure.legend(marks, methods, loc="outside upper center", ncols=min(3, len(methods)), handlelength=2.2)


def _bars(
    axes: Axes, rows: Bars, places: int, tint: Callable[[int], str] = colour, thickness: float = 0.62
) -> None:
    """Bars from low to high with a dot at the estimate; a hollow diamond where there is no interval."""
    height = 0.8 / places
    axes.use_sticky_edges = False
    for row, intervals in enumerate(rows.values()):
        for place, one in intervals.items():
            y = row + (place - (places - 1) / 2) * height
            if np.isnan(one.estimate):
                continue
            if one.low is None or one.high is None:
                axes.plot(one.estimate, y, "D", color=tint(place), fillstyle="none", markersize=4.5)
                continue
            width = one.high - one.low
            axes.barh(
                y, width, height * thickness, one.low, color=tint(place), alpha=BAR_OPACITY, linewidth=0
            )
            axes.plot(one.estimate, y, "o", color=tint(place), markersize=5.5, markeredgecolor=PAPER)
    axes.margins(x=0.05)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _probability_axis(axes: Axes, label: str) -> None:
    """From 0 to 1, with a dashed line where neither method is better."""
    axes.axvline(0.5, color=MUTED, linestyle="--", linewidth=1.2, zorder=0.5)
    axes.set_xlim(-0.05, 1.05)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.set_xlabel(label)


def lines(
    axes: Axes, x: np.ndarray, bands: Mapping[int, Band], tint: Callable[[int], str] = colour
) -> list[Line2D]:
    """A line for each band's estimate and, where there is one, its interval as a shade."""
    drawn = []
    for place, band in bands.items():
        if band.low is not None and band.high is not None:
            axes.fill_between(x, band.low, band.high, color=tint(place), alpha=0.22, linewidth=0)
        dashes = DASHES[place % len(DASHES)]
        drawn += axes.plot(x, band.estimate, color=tint(place), linestyle=dashes, linewidth=1.5)
    axes.margins(x=0.02)
    return drawn


def _short(steps: float, _: int) -> str:
    """Agent steps as 50k and 2M."""
    if abs(steps) >= 1e6:
        return f"{steps / 1e6:g}M"
    return f"{steps / 1e3:g}k" if abs(steps) >= 1e3 else f"{steps:g}"


# ------------------------------------------------------------------------------------------------------------
# Tables


def shown(interval: Interval, digits: int) -> str:
    """An interval as text."""
    if np.isnan(interval.estimate):
        return NOTHING
    if interval.low is None or interval.high is None:
        return f"{fixed(interval.estimate, digits)} (no interval)"
    return (
        f"{fixed(interval.estimate, digits)} [{fixed(interval.low, digits)}, {fixed(interval.high, digits)}]"
    )


def fixed(value: float, digits: int) -> str:
    """A number with so many decimals; zero has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def percent(fraction: float, unit: str = "") -> str:
    """A fraction in percent; the unit stands behind a number only."""
    return NOTHING if np.isnan(fraction) else fixed(100 * fraction, 1) + unit


# Private-use characters, which pass through the escapes of all formats and then become each one's own.
BOLD, UNDERLINED = ("\ue000", "\ue001"), ("\ue002", "\ue003")
"""What is put before and behind a cell's text."""
BREAK = "\ue004"
"""In a column's title: what stands before it is shared with its neighbours."""


def plain(text: str) -> str:
    """A cell's text without emphasis."""
    return _marked(text, ("", ""), ("", ""), " ")


def _marked(text: str, bold: tuple[str, str], underlined: tuple[str, str], line: str) -> str:
    for sign, shown in zip((*BOLD, *UNDERLINED, BREAK), (*bold, *underlined, line), strict=True):
        text = text.replace(sign, shown)
    return text


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading; the first `labels` columns are names, the others are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    labels: int = 1


def markdown(table: Table) -> str:
    """As GitHub reads it; it shows `ins` underlined."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    places = ["---" if i < table.labels else "---:" for i in range(len(table.columns))]
    lines = [f"### {table.title}", "", row(table.columns), row(places), *map(row, table.rows)]
    text = "\n".join([*lines, *(["", table.note] if table.note else [])]) + "\n"
    return _marked(text, ("**", "**"), ("<ins>", "</ins>"), "<br>")


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
    """A floating table with booktabs' rules; shared titles of columns are a row of their own."""

    def row(cells: Sequence[str]) -> str:
        # A row that opens with a bracket would be taken for an argument of the \\ before it.
        texts = [cell.translate(_LATEX) for cell in cells]
        return " & ".join([f"{{}}{texts[0]}" if texts[0].startswith("[") else texts[0], *texts[1:]]) + r" \\"

    note = [r"\par\smallskip\footnotesize " + table.note.translate(_LATEX)] if table.note else []
    numbers = len(table.columns) - table.labels
    head = [row(table.columns)]
    if any(BREAK in cell for cell in table.columns):
        split = [cell.translate(_LATEX).rpartition(BREAK) for cell in table.columns]
        over, rules, column = [], "", 1
        for title, group in groupby(above for above, _, _ in split):
            width = len(list(group))
            over += [rf"\multicolumn{{{width}}}{{c}}{{{title}}}"] if title else [""] * width
            rules += rf"\cmidrule(lr){{{column}-{column + width - 1}}}" if title else ""
            column += width
        head = [" & ".join(over) + r" \\", rules, " & ".join(below for _, _, below in split) + r" \\"]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{table.title.translate(_LATEX)}}}",
        rf"\begin{{tabular}}{{{'l' * table.labels}{'r' * numbers}}}",
        *(r"\toprule", *head, r"\midrule", *map(row, table.rows), r"\bottomrule"),
        *(r"\end{tabular}", *note, r"\end{table}"),
    ]
    return _marked("\n".join(lines) + "\n", (r"\textbf{", "}"), (r"\underline{", "}"), " ")


# ------------------------------------------------------------------------------------------------------------
# The page


def paragraph(text: str, kind: str = "") -> str:
    """Text, escaped like that of all functions here; `kind` is a class of the style sheet."""
    return f"<p{_class(kind)}>{_text(text)}</p>"


def bullets(texts: Sequence[str]) -> str:
    """A list."""
    return "<ul>" + "".join(f"<li>{_text(text)}</li>" for text in texts) + "</ul>"


def facts(values: Mapping[str, str]) -> str:
    """Short values under their names, side by side as far as there is room."""
    pairs = (f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in values.items())
    return f'<dl class="facts">{"".join(pairs)}</dl>'


def listing(lines: Sequence[str]) -> str:
    """Commands, to be copied."""
    return f'<pre tabindex="0"><code>{html.escape(chr(10).join(lines))}</code></pre>'


def folded(title: str, *parts: str) -> str:
    """Parts that are shown when their title is clicked."""
    return f"<details><summary>{html.escape(title)}</summary>{''.join(parts)}</details>"


def warnings_box(texts: Sequence[str]) -> str:
    """What a reader has to know before believing anything else."""
    return f'<aside class="warnings"><h2>Warnings</h2>{bullets(texts)}</aside>'


def table_block(table: Table) -> str:
    """A table that scrolls by itself where the screen is narrow."""
    head = "".join(
        f'<th scope="col"{_number_class(table, i)}>{_text(cell)}</th>' if cell else "<td></td>"
        for i, cell in enumerate(table.columns)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{_text(cell)}</th>'
            if i < table.labels
            else f"<td{_number_class(table, i)}>{_text(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in table.rows
    )
    label = html.escape(table.title, quote=True)
    text = (
        f'<div class="table"><h3>{html.escape(table.title)}</h3>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table aria-label="{label}">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        f"{paragraph(table.note, 'note') if table.note else ''}</div>"
    )
    return _marked(text, ("<strong>", "</strong>"), ("<u>", "</u>"), "<br>")


def _number_class(table: Table, column: int) -> str:
    return _class("" if column < table.labels else "number")


def figure_block(name: str, svg: bytes, caption: str) -> str:
    """A drawn figure inside the page, in the page's colours."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    # Several drawings in one page would share their ids.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    for place, value in enumerate(COLOURS):
        text = text.replace(value, f"var(--c{place})")
    for variable, value in (("ink", INK), ("muted", MUTED), ("grid", GRID), ("card", PAPER)):
        text = text.replace(value, f"var(--{variable})")
    label = html.escape(caption, quote=True)
    text = text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return f'<figure id="{name}">{text}<figcaption>{_text(caption)}</figcaption></figure>'


def picture_block(picture: bytes, kind: Literal["png", "jpeg"], caption: str) -> str:
    """A picture inside the page."""
    data = base64.b64encode(picture).decode()
    text = html.escape(caption, quote=True)
    return (
        f'<figure><img alt="{text}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def video_block(mp4: bytes, caption: str) -> str:
    """A video inside the page."""
    data = base64.b64encode(mp4).decode()
    return (
        f'<figure><video aria-label="{html.escape(caption, quote=True)}" '
        'controls muted loop playsinline preload="auto" '
        f'src="data:video/mp4;base64,{data}"></video>'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what belongs to it."""
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def whole(title: str, subtitle: str, *parts: str) -> bytes:
    """The content of the HTML file."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        # Without an icon of its own a page makes the browser ask for one.
        '<link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style></head>\n"
        f"<body><main><header><h1>{html.escape(title)}</h1>{paragraph(subtitle, 'subtitle')}</header>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    ).encode()


def _text(text: str) -> str:
    """Escaped, with numbers kept beside their percent signs."""
    return html.escape(text).replace(" %", "&#160;%")


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


_CSS = """
:root { --back: #f5f6f8; --card: #fefefe; --ink: #1b1f24; --muted: #5b6570; --grid: #dde1e6;
  --accent: #0072b2; --warn: #fff6e3; --warn-edge: #e69f00; --shade: #1b1f2433;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00; --c5: #56b4e9; }
@media (prefers-color-scheme: dark) { :root { --back: #13161a; --card: #1b1f25; --ink: #e6e9ed;
  --muted: #a0a9b4; --grid: #343b45; --accent: #56b4e9; --warn: #2c2516; --warn-edge: #b98a25;
  --shade: #00000099;
  --c0: #4aa3df; --c1: #f0803c; --c2: #2fbf95; --c3: #d98fb8; --c4: #e69f00; --c5: #8fd0f5; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 940px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: clamp(1.5rem, 5vw, 2.1rem); line-height: 1.2; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 12px; }
h3 { font-size: 0.95rem; margin: 20px 0 8px; }
p { margin: 0 0 10px; max-width: 70ch; overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 1.2em; } li { margin: 4px 0; max-width: 70ch; overflow-wrap: anywhere; }
.subtitle { color: var(--muted); margin: 6px 0 20px; }
.verdict { font-size: clamp(1.05rem, 2.6vw, 1.2rem); line-height: 1.5; border-left: 4px solid var(--accent);
  padding: 2px 0 2px 16px; margin: 0 0 14px; }
section, .warnings { background: var(--card); border: 1px solid var(--grid); border-radius: 10px;
  padding: 20px 22px; margin: 18px 0; }
.warnings { background: var(--warn); border-color: var(--warn-edge); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px 20px;
  margin: 0 0 16px; }
.facts div:first-child { grid-column: span 2; }
.facts dt { color: var(--muted); font-size: 0.8rem; } .facts dd { margin: 0; font-weight: 600; }
figure { margin: 12px 0 20px; }
figure svg { display: block; width: 100%; max-width: 640px; height: auto; margin: 0 auto; }
figure img, figure video { display: block; max-width: 100%; height: auto; margin: 0 auto; }
section > :last-child, .table:last-child, details > :last-child { margin-bottom: 0; }
figcaption, .note { color: var(--muted); font-size: 0.86rem; line-height: 1.5; }
figcaption { margin-top: 8px; max-width: 80ch; } .note { margin: 8px 0 0; }
/* A shade at the edge beyond which there is more. */
.scroll { overflow-x: auto; background: linear-gradient(to right, var(--card) 30%, transparent) 0 0,
  linear-gradient(to left, var(--card) 30%, transparent) 100% 0,
  linear-gradient(to right, var(--shade), transparent) 0 0,
  linear-gradient(to left, var(--shade), transparent) 100% 0;
  background-repeat: no-repeat; background-size: 40px 100%, 40px 100%, 14px 100%, 14px 100%;
  background-attachment: local, local, scroll, scroll; }
table { border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 6px 10px 6px 0; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--grid); }
thead th { color: var(--muted); font-weight: 600; } tbody th { font-weight: 400; }
.number { text-align: right; padding: 6px 0 6px 10px; } tbody tr:last-child > * { border-bottom: 0; }
pre { overflow-x: auto; background: var(--back); border-radius: 6px; padding: 12px; font-size: 0.8rem;
  margin: 0 0 12px; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--muted); }
@media (max-width: 560px) { main { padding: 20px 12px 40px; } section, .warnings { padding: 16px 14px; }
  figure svg { width: calc(100% + 12px); margin: 0 -6px; }
  table { font-size: 0.8rem; } }
@media print { body { background: none; } section { break-inside: avoid; } }
"""
