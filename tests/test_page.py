"""Tables in three formats against text by hand, and figures and elements of the page."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from camal_rl.results import figures as page
from camal_rl.results.figures import NOTHING, Table
from camal_rl.stats import Band, Interval

NAN = float("nan")
TABLE = Table("A & B", ["", "x_1", "y"], [["50 % | b", "1", NOTHING], ["[c]", "{2}", "a > b"]], "A note.")


def overview(name: str = "figure4", poi: dict[str, Interval] | None = None) -> dict[str, bytes]:
    rows = {"Mean": {0: Interval(0.3, 0.2, 0.4), 1: Interval(0.1, None, None, "One run.")}}
    gap = {"Gap": {0: Interval(0.7, 0.6, 0.8), 1: Interval(NAN, None, None, "No run.")}}
    poi = {"A > B": Interval(1, 1, 1)} if poi is None else poi
    return page.overview_figure(name, "IoU", ["A", "B"], rows, gap, poi)


def test_a_table_in_markdown() -> None:
    assert page.markdown(TABLE) == (
        "### A & B\n\n|  | x_1 | y |\n| --- | ---: | ---: |\n"
        f"| 50 % \\| b | 1 | {NOTHING} |\n| [c] | {{2}} | a > b |\n\nA note.\n"
    )


def test_a_table_in_latex() -> None:
    assert page.latex(TABLE).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{A \& B}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r" & x\_1 & y \\",
        r"\midrule",
        r"50 \% \textbar{} b & 1 & -- \\",
        r"{}[c] & \{2\} & a \textgreater{} b \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip\footnotesize A note.",
        r"\end{table}",
    ]


def test_a_table_in_html_escapes_and_scrolls() -> None:
    block = page.table_block(Table("<t>", ["a", "b"], [["1 < 2 %", "3"]]))
    assert "<h3>&lt;t&gt;</h3>" in block
    assert '<th scope="row">1 &lt; 2&#160;%</th><td class="number">3</td>' in block
    assert 'class="scroll"' in block


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
    assert page.shown(interval, 2) == text


def test_a_figure_is_the_same_bytes_twice_and_has_text_as_text() -> None:
    files = overview()
    assert files == overview()
    assert set(files) == {"figure4.png", "figure4.svg"}
    svg = files["figure4.svg"].decode()
    assert ">A &gt; B</text>" in svg
    assert ">1.00 [1.00, 1.00]</text>" in svg
    assert not re.search(r"\d\d:\d\d|20\d\d-", svg)  # no date
    with Image.open(io.BytesIO(files["figure4.png"])) as picture:
        assert picture.width == round(220 * page.WIDTH)


def test_figures_do_not_depend_on_the_settings_of_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    before = overview()
    monkeypatch.setitem(mpl.rcParams, "font.size", 30)
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "black")
    assert overview() == before
    assert mpl.rcParams["font.size"] == 30


def test_what_can_not_be_drawn_is_left_out_of_a_figure() -> None:
    assert b"P(X" not in overview(poi={})["figure4.svg"]
    nothing = np.full(3, NAN)
    files = page.curves_figure(
        "curves", ["A"], [[page.CurvePanel("t", np.arange(3.0), {0: Band(nothing, None, None)}, {}, True)]]
    )
    assert ElementTree.fromstring(files["curves.svg"]).tag.endswith("svg")
    files = page.environments_figure(
        "e", ["A"], [page.EnvironmentPanels("t", "x", {"E": {0: Interval(0.5, 0.4, 0.6)}}, {}, {"E": {}})]
    )
    assert b"POI" not in files["e.svg"]


def test_a_figure_in_the_page_has_the_page_s_colours_and_ids_of_its_own() -> None:
    blocks = [page.figure_block(name, overview(name)[f"{name}.svg"], 'A "b" < c') for name in ("f1", "f2")]
    ids = [set(re.findall(r'\bid="([^"]+)"', block)) for block in blocks]
    assert not ids[0] & ids[1]
    for block, own in zip(blocks, ids, strict=True):
        assert set(re.findall(r"(?:href=\"|url\()#([^\")]+)", block)) <= own
        assert "var(--c0)" in block
        assert "var(--ink)" in block
        assert not re.search("|".join((*page.COLOURS, page.INK, page.PAPER)), block)
        assert 'aria-label="A &quot;b&quot; &lt; c"' in block
        ElementTree.fromstring(block)


def test_pictures_and_videos_lie_in_the_page() -> None:
    assert f"data:image/png;base64,{base64.b64encode(b'123').decode()}" in page.picture_block(
        b"123", "png", ""
    )
    assert "data:video/mp4;base64,MTIz" in page.video_block(b"123", "")


def test_whatever_is_written_is_escaped() -> None:
    text = "<b>&"
    blocks = [
        *(page.paragraph(text), page.bullets([text]), page.facts({text: text}), page.listing([text])),
        *(
            page.folded(text),
            page.warnings_box([text]),
            page.section(text),
            page.picture_block(b"", "png", text),
        ),
        *(page.video_block(b"", text), page.whole(text, text).decode()),
    ]
    for block in blocks:
        assert "<b>" not in block
        assert "&lt;b&gt;&amp;" in block
