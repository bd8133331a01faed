"""Tables in their formats against text by hand, and figures."""

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from camal_rl.results import figures
from camal_rl.results.figures import BOLD, BREAK, NOTHING, UNDERLINED, BarPanel, LinePanel, Table
from camal_rl.stats import Band, Interval

NAN = float("nan")
TABLE = Table("A & B", ["", "x_1", "y"], [["50 % | b", "1", NOTHING], ["[c]", "{2}", "a > b"]], "A note.")
WIDE = Table(
    "Wide",
    ["Model", f"D_1{BREAK}X", f"D_1{BREAK}Y", f"E{BREAK}X"],
    [["m", "1 ± 2".join(BOLD), "3".join(UNDERLINED), NOTHING]],
)
METHODS = {"a": "A", "b": "B"}


def test_a_table_in_markdown() -> None:
    assert figures.markdown(TABLE) == (
        "### A & B\n\n|  | x_1 | y |\n| --- | ---: | ---: |\n"
        f"| 50 % \\| b | 1 | {NOTHING} |\n| [c] | {{2}} | a > b |\n\nA note.\n"
    )
    assert figures.markdown(WIDE).splitlines()[2:] == [
        "| Model | D_1<br>X | D_1<br>Y | E<br>X |",
        "| --- | ---: | ---: | ---: |",
        f"| m | **1 ± 2** | <ins>3</ins> | {NOTHING} |",
    ]


def test_a_table_in_latex() -> None:
    assert figures.latex(TABLE).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{A \& B}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r" & x\_1 & y \\",
        r"\midrule",
        r"50 \% \textbar{} b & 1 & -- \\",
        r"[c] & \{2\} & a \textgreater{} b \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip\footnotesize A note.",
        r"\end{table}",
    ]
    assert figures.latex(WIDE).splitlines()[3:9] == [
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r" & \multicolumn{2}{c}{D\_1} & E \\",
        r"Model & X & Y & X \\",
        r"\midrule",
        r"m & \textbf{1 $\pm$ 2} & \underline{3} & -- \\",
    ]


def test_a_table_in_csv_has_no_emphasis() -> None:
    assert figures.table_csv(WIDE).decode() == f"Model,D_1 X,D_1 Y,E X\nm,1 ± 2,3,{NOTHING}\n"


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.5, 0.25, 0.75), "0.50 [0.25, 0.75]"),
        (Interval(-0.001, -0.004, 0.004), "0.00 [0.00, 0.00]"),
        (Interval(0.5, None, None, "One run."), "0.50 (no interval)"),
        (Interval(NAN, None, None, "No run."), NOTHING),
    ],
)
def test_intervals_are_shown_for_what_they_are(interval: Interval, text: str) -> None:
    assert figures.shown(interval, 2) == text


def curves() -> dict[str, bytes]:
    x, values = np.array([0.0, 50_000, 100_000]), np.full(3, 0.5)
    panel = LinePanel("t", x, {"a": Band(values, values - 0.1, values + 0.1)}, levels={"mask": 0.7})
    return figures.lines_figure("curves", METHODS, [[panel]], "Agent steps")


def bars() -> dict[str, bytes]:
    left = BarPanel(
        "SBCI",
        "IoU",
        [
            ("Mean", {"a": Interval(0.3, 0.2, 0.4), "b": Interval(0.1, None, None, "One run.")}),
            ("Gap", {"a": Interval(0.7, 0.6, 0.8), "b": Interval(NAN, None, None, "No run.")}),
        ],
        levels={"mask": [0.45, NAN]},
    )
    right = BarPanel("POI", "P(X > Y)", [("X", {"b": Interval(1, 1, 1)})], probability=True, right=["Y"])
    return figures.bars_figure("figure4", METHODS, [[left, right], [left]])


@pytest.mark.slow
def test_a_figure_is_the_same_bytes_twice_and_has_text_as_text() -> None:
    files = bars() | curves()
    assert files == bars() | curves()
    assert set(files) == {
        f"{name}.{kind}" for name in ("figure4", "curves") for kind in ("png", "svg", "pdf")
    }
    assert files["figure4.pdf"].startswith(b"%PDF")
    assert b"/FontFile2" in files["figure4.pdf"]  # TrueType
    svg = files["figure4.svg"].decode()
    for text in ("X", "Y", "1.00 [1.00, 1.00]", "Mean", "mask", "P(X &gt; Y)"):
        assert f">{text}</" in svg
    assert not re.search(r"\d\d:\d\d|20\d\d-", svg)  # no date
    with Image.open(io.BytesIO(files["figure4.png"])) as picture:
        assert picture.width == round(220 * figures.WIDTH)


def test_figures_do_not_depend_on_the_settings_of_matplotlib(
    drawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bars()
    monkeypatch.setitem(mpl.rcParams, "font.size", 30)
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "black")
    assert bars() == before
    assert mpl.rcParams["font.size"] == 30


def test_rows_have_their_names_once(drawn: None) -> None:
    rows = [("Basic", {"a": Interval(0.5, 0.4, 0.6), "b": Interval(0.5, 0.4, 0.6)})]
    panels = [BarPanel("Mean", "IoU", rows), BarPanel("POI", "P", rows, probability=True)]
    svg = figures.bars_figure("environments", METHODS, [panels, panels])["environments.svg"]
    assert svg.count(b">Basic<") == 2  # once in each row of panels


@pytest.mark.slow
def test_lines_have_levels_and_a_legend_of_the_methods_or_of_each_panel(drawn: None) -> None:
    x, band = np.array([0.0, 50_000, 100_000]), Band(np.full(3, 0.5), np.full(3, 0.4), np.full(3, 0.6))
    nothing = Band(np.full(3, NAN), None, None)
    panel = LinePanel("t", x, {"a": band, "b": nothing}, levels={"mask": 0.7, "lost": NAN})
    svg = figures.lines_figure("curves", METHODS, [[panel]], "Agent steps")["curves.svg"]
    assert {b">mask<", b">80k<", b">A<", b">B<"} <= set(re.findall(rb">[^<>\n]+<", svg))
    assert b">lost<" not in svg
    panel = LinePanel("t", x / 1000, {"a": band}, share=True, labels=["A, AUC 0.500"])
    svg = figures.lines_figure("shares", METHODS, [[panel]], "x", "y")["shares.svg"]
    assert b">A, AUC 0.500<" in svg
    assert b">B<" not in svg
    assert ElementTree.fromstring(svg).tag.endswith("svg")


def painted(monkeypatch: pytest.MonkeyPatch, make: Callable[[], object]) -> list[Axes]:
    """The panels that a figure would have."""
    figure = Figure()
    monkeypatch.setattr(figures, "draw", lambda name, height, paint: paint(figure))
    with mpl.rc_context(figures._STYLE):
        make()
    return figure.axes


def test_nothing_lies_on_the_line_of_equal_methods_or_hides_an_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bars_axes, poi, _ = painted(monkeypatch, bars)
    estimate, *even = poi.lines
    assert all(set(line.get_xdata()) == {0.5} for line in even)
    ends = sorted(tuple(line.get_ydata()) for line in even)
    (text,) = poi.texts
    assert ends[0][0] == -0.5 < ends[0][1] < text.get_position()[1] < ends[1][0] < ends[1][1] == 0.5
    assert not any(line.get_visible() for line in poi.get_xgridlines())
    assert bars_axes.get_xgridlines()[0].get_visible()
    # An estimate is a line as high as its bar, so that an interval of no width is seen as one.
    (bar,) = poi.patches
    assert bar.get_width() == 0
    assert sorted(estimate.get_ydata()) == pytest.approx([bar.get_y(), bar.get_y() + bar.get_height()])


def test_levels_are_named_beside_the_panel_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    x, band = np.array([1000.0, 2000]), Band(np.array([0.0, 1.0]), None, None)
    panel = LinePanel("t", x, {"a": band}, levels={"random": 0.5, "reference": 0.51})
    (axes,) = painted(monkeypatch, lambda: figures.lines_figure("f", METHODS, [[panel]], "x"))
    (left, low), (right, high) = (text.get_position() for text in axes.texts)
    assert left == right > 1  # beyond the right end of the axes, and the text begins there
    assert all(text.get_horizontalalignment() == "left" for text in axes.texts)
    assert high - low > 0.1


@pytest.mark.parametrize(
    ("end", "labels"),
    [(1020.0, ["0", "400", "800"]), (6000.0, ["0", "2.5k", "5k"]), (2.5e6, ["0", "1M", "2M"])],
)
def test_steps_begin_at_zero_and_have_one_unit(
    end: float, labels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = LinePanel("t", np.array([0.99 * end, end]), {"a": Band(np.ones(2), None, None)})
    (axes,) = painted(monkeypatch, lambda: figures.lines_figure("f", METHODS, [[panel]], "x"))
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert [axes.xaxis.get_major_formatter()(tick) for tick in ticks] == labels


def test_a_single_measurement_is_a_dot_and_several_are_a_line_across_gaps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, three = np.full((2, 5), NAN)
    one[2], three[::2] = 0.5, 0.5
    bands = {"a": Band(one, one, one), "b": Band(three, three, three)}
    panel = LinePanel("t", np.arange(5.0), bands)
    (axes,) = painted(monkeypatch, lambda: figures.lines_figure("f", METHODS, [[panel]], "x"))
    dot, line = axes.lines
    assert (dot.get_marker(), list(dot.get_xdata())) == ("o", [2])
    assert (line.get_marker(), list(line.get_xdata())) == ("", [0, 2, 4])
