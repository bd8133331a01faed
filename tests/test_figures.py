"""Tables in their formats against text by hand, and figures."""

import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
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


def bars() -> dict[str, bytes]:
    left = BarPanel(
        "SBCI",
        "IoU",
        {
            "Mean": {"a": Interval(0.3, 0.2, 0.4), "b": Interval(0.1, None, None, "One run.")},
            "Gap": {"a": Interval(0.7, 0.6, 0.8), "b": Interval(NAN, None, None, "No run.")},
        },
        ceilings={"Mean": 0.45},
    )
    right = BarPanel("POI", "P(X > Y)", {"A > B\n1.00": {"b": Interval(1, 1, 1)}}, probability=True)
    return figures.bars_figure("figure4", METHODS, [[left, right], [left]])


def test_a_figure_is_the_same_bytes_twice_and_has_text_as_text() -> None:
    files = bars()
    assert files == bars()
    assert set(files) == {"figure4.png", "figure4.svg"}
    svg = files["figure4.svg"].decode()
    for text in ("A &gt; B", "1.00", "Mean", "P(X &gt; Y)"):
        assert f">{text}</" in svg
    assert not re.search(r"\d\d:\d\d|20\d\d-", svg)  # no date
    with Image.open(io.BytesIO(files["figure4.png"])) as picture:
        assert picture.width == round(220 * figures.WIDTH)


def test_figures_do_not_depend_on_the_settings_of_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    before = bars()
    monkeypatch.setitem(mpl.rcParams, "font.size", 30)
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "black")
    assert bars() == before
    assert mpl.rcParams["font.size"] == 30


def test_rows_have_their_names_once() -> None:
    rows = {"Basic": {"a": Interval(0.5, 0.4, 0.6), "b": Interval(0.5, 0.4, 0.6)}}
    panels = [BarPanel("Mean", "IoU", rows), BarPanel("POI", "P", rows, probability=True)]
    svg = figures.bars_figure("environments", METHODS, [panels, panels])["environments.svg"]
    assert svg.count(b">Basic<") == 2  # once in each row of panels


def test_lines_have_levels_and_a_legend_of_the_methods_or_of_each_panel() -> None:
    x, band = np.array([0.0, 50_000, 100_000]), Band(np.full(3, 0.5), np.full(3, 0.4), np.full(3, 0.6))
    nothing = Band(np.full(3, NAN), None, None)
    panel = LinePanel("t", x, {"a": band, "b": nothing}, levels={"ceiling": 0.7, "lost": NAN})
    svg = figures.lines_figure("curves", METHODS, [[panel]], "Agent steps")["curves.svg"]
    assert {b">ceiling<", b">80k<", b">A<", b">B<"} <= set(re.findall(rb">[^<>\n]+<", svg))
    assert b">lost<" not in svg
    panel = LinePanel("t", x / 1000, {"a": band}, share=True, labels=["A, AUC 0.500"])
    svg = figures.lines_figure("shares", METHODS, [[panel]], "x", "y")["shares.svg"]
    assert b">A, AUC 0.500<" in svg
    assert b">B<" not in svg
    assert ElementTree.fromstring(svg).tag.endswith("svg")
