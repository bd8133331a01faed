"""The page of a report: whatever it shows is inside it, escaped, small, and in its own colours."""

import base64
import functools
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camal_rl import __version__
from camal_rl.results import figures, media, page
from camal_rl.results.figures import BarPanel, Table
from camal_rl.results.page import Drawing, Listing, Media, Page, Part
from camal_rl.stats import Interval

pytestmark = pytest.mark.usefixtures("drawn")

NAN = float("nan")


class Elements(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attributes}))


def page_of(*parts: Part, findings: tuple[str, ...] = (), warnings: tuple[str, ...] = ()) -> Page:
    return Page("Title", "Subtitle", findings, warnings, {"Section": parts, "Empty": []})


@functools.cache
def drawing(name: str) -> Drawing:
    panel = BarPanel("SBCI", "IoU", [("Mean", {"a": Interval(0.3, 0.2, 0.4)})])
    return Drawing(name, 'A "b" < c', figures.bars_figure(name, {"a": "A"}, [[panel]]))


def test_a_table_scrolls_by_itself_and_marks_names_and_numbers() -> None:
    bold = "3".join(figures.BOLD)
    text = page.html_page(page_of(Table("<t>", ["", "b"], [["1 < 2 %", bold]], "Note."))).decode()
    assert "<h3>&lt;t&gt;</h3>" in text
    assert (
        '<th scope="row">1 &lt; 2\N{NO-BREAK SPACE}%</th><td class="number"><strong>3</strong></td>' in text
    )
    assert '<div class="scroll" tabindex="0" role="region" aria-label="&lt;t&gt;">' in text
    assert '<p class="note">Note.</p>' in text
    assert "<summary>" not in text
    assert "<summary>31 rows</summary>" in page.html_page(page_of(Table("t", ["a"], [["1"]] * 31))).decode()


def test_a_figure_has_the_page_s_colours_and_ids_of_its_own() -> None:
    drawings = [drawing(name).svg for name in ("f1", "f2")]
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in drawings]
    assert not ids[0] & ids[1]
    for svg, own in zip(drawings, ids, strict=True):
        assert set(re.findall(r"(?:href=\"|url\()#([^\")]+)", svg)) <= own
        assert "var(--c0)" in svg
        assert "var(--ink)" in svg
        assert not re.search("|".join((*figures.COLOURS, figures.INK, figures.PAPER)), svg)
        assert 'aria-label="A &#34;b&#34; &lt; c"' in svg
        ElementTree.fromstring(svg)


def test_whatever_is_written_is_escaped_and_nothing_is_asked_for() -> None:
    text = "<b>&"
    parts: list[Part] = [text, [text], {text: text}, Table(text, [text], [[text]], text)]
    parts += [Listing([text]), Listing([text], text), Media("image/webp", b"123", text)]
    parts += [Media("video/mp4", b"123", text), drawing("f")]
    content = page.html_page(page_of(*parts, findings=(text,), warnings=(text,)))
    assert content.count(b"&lt;b&gt;&amp;") == 19
    assert b"<b>" not in content
    assert b"Empty" not in content
    elements = Elements(content).found
    assert not {"script", "iframe", "object", "embed", "base"} & {tag for tag, _ in elements}
    for _, attributes in elements:
        for key in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            assert attributes.get(key, "data:").startswith(("data:", "#"))
    assert not re.search(rb"url\((?!#)|@import", content)


def test_the_page_in_markdown_has_all_but_media_and_listings() -> None:
    parts: list[Part] = ["Text.", ["one", "two"], {"Runs": "3"}, Table("T", ["a"], [["1"]])]
    parts += [Listing(["command"]), Media("video/mp4", b"", "film"), drawing("f")]
    blocks = [
        *(
            "# Title",
            "Subtitle",
            "## Warnings",
            "- Beware.",
            "## Section",
            "Text.",
            "- one\n- two",
        ),
        *("- Runs: 3", "### T", "| a |\n| --- |\n| 1 |", "![f](f.png)", '*A "b" < c*'),
    ]
    content = page.markdown_page(page_of(*parts, warnings=("Beware.",)))
    assert content.decode() == "\n\n".join(blocks) + "\n"


def frames(count: int) -> np.ndarray:
    """A noisy gradient that moves, uint8 (count, 64, 96, 3)."""
    ramp = np.arange(96, dtype=np.uint8)[:, None] + np.zeros((64, 96, 3), np.uint8)
    moved = np.stack([np.roll(ramp, 3 * index, axis=1) for index in range(count)])
    noise: np.ndarray = np.random.default_rng(0).integers(0, 20, moved.shape, np.uint8)
    return moved + noise


def test_a_picture_becomes_much_smaller_and_stays_legible(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.png"
    image = np.tile(frames(1)[0], (5, 20, 1))
    file.write_bytes(media.encode_png(image))
    shrunk = Media.of(file, "caption")
    assert shrunk.kind == "image/webp"
    assert len(shrunk.content) < file.stat().st_size / 3
    with Image.open(io.BytesIO(shrunk.content)) as picture:
        assert picture.size == (1600, 267)
        small = np.asarray(picture.resize(image.shape[1::-1]), np.float64)
    assert abs(small - image).mean() < 10
    assert Media.of(file, "caption") == shrunk
    assert shrunk.source == f"data:image/webp;base64,{base64.b64encode(shrunk.content).decode()}"


def test_a_video_is_embedded_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.mp4"
    file.write_bytes(media.encode_video(iter(frames(30)), 35))
    assert Media.of(file, "caption") == Media("video/mp4", file.read_bytes(), "caption")


def test_a_damaged_picture_is_an_error_that_reports_expect(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.png"
    file.write_bytes(b"damaged")
    with pytest.raises((OSError, ValueError)):
        Media.of(file, "")


def test_a_report_is_its_page_its_tables_its_figures_and_its_numbers(tmp_path: Path) -> None:
    table = Table("T", ["a"], [["1"]])
    said = page_of(table, drawing("f"), findings=("Found.",), warnings=("Beware.",))
    numbers = {"poi": {("camal", "vanilla"): Interval(NAN, None, None, "why")}, "x": np.array([[1.0, NAN]])}
    printed = page.publish(tmp_path, said, numbers, {"scores.csv": b"1"})
    names = ["f.png", "f.svg", "f.pdf", "scores.csv", "statistics.json", "tables.md", "tables.tex"]
    names += ["report.md", "report.html"]
    assert printed == ["Found.", "Warning: Beware.", *(f"  {tmp_path / name}" for name in names)]
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert json.loads((tmp_path / "statistics.json").read_bytes()) == {
        "format": 2,
        "version": __version__,
        "findings": ["Found."],
        "warnings": ["Beware."],
        "poi": {"camal > vanilla": {"estimate": None, "low": None, "high": None, "reason": "why"}},
        "x": [[1.0, None]],
    }
