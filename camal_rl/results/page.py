"""Sentences, tables and figures of a report -> its page in one HTML file, the same in Markdown, and files."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

from camal_rl import __version__
from camal_rl.results.figures import COLOURS, GRID, INK, MUTED, PAPER, Table, latex, markdown, marked
from camal_rl.run.files import write_together

FORMAT = 2
"""Version of the layout of statistics.json."""
PICTURE_WIDTH = 1600
"""Pixels of pictures in the page, at most."""


@dataclass(frozen=True)
class Drawing:
    """A figure of a report."""

    name: str
    caption: str
    files: Mapping[str, bytes]  # of `draw`

    @property
    def svg(self) -> Markup:
        """The figure for inside a page, in the page's colours and with ids that no other figure has."""
        text = self.files[f"{self.name}.svg"].decode()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'\bid="', f'id="{self.name}-', text)
        text = re.sub(r'(href="|url\()#', rf"\1#{self.name}-", text)
        for place, value in enumerate(COLOURS):
            text = text.replace(value, f"var(--c{place})")
        for variable, value in (("ink", INK), ("muted", MUTED), ("grid", GRID), ("card", PAPER)):
            text = text.replace(value, f"var(--{variable})")
        return Markup(text.replace("<svg", Markup('<svg role="img" aria-label="{}"').format(self.caption), 1))


@dataclass(frozen=True)
class Media:
    """A picture or a video inside the page."""

    kind: Literal["image/webp", "video/mp4"]
    content: bytes
    caption: str

    @classmethod
    def of(cls, file: Path, caption: str) -> Media:
        """Read an MP4 file as it is, or a PNG file several times smaller and as legible as before.

        Raises:
            OSError, ValueError: it can't be read.
        """
        if file.suffix == ".mp4":
            return cls("video/mp4", file.read_bytes(), caption)
        content = io.BytesIO()
        with Image.open(file) as picture:
            small = picture.convert("RGB")
        small.thumbnail((PICTURE_WIDTH, small.height))
        small.save(content, "webp", quality=75, method=6)
        return cls("image/webp", content.getvalue(), caption)

    @property
    def source(self) -> str:
        """The content as a URL."""
        return f"data:{self.kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Listing:
    """Lines to be copied, shown only when their title is clicked if they have one."""

    lines: Sequence[str]
    title: str = ""


Part = str | Sequence[str] | Mapping[str, str] | Table | Drawing | Media | Listing
"""A paragraph, bullets, short facts under their names, or what the class says."""


P = TypeVar("P")


@dataclass(frozen=True)
class Page:
    """All that a report says."""

    title: str
    subtitle: str
    findings: Sequence[str]
    warnings: Sequence[str]
    sections: Mapping[str, Sequence[Part]]
    """Heading -> what belongs to it; those without anything are left out."""

    def parts(self, kind: type[P]) -> list[P]:
        """Return the parts of one kind, in order."""
        return [part for parts in self.sections.values() for part in parts if isinstance(part, kind)]


def html_page(page: Page) -> bytes:
    """Return the content of report.html."""
    text = marked(_rendered(page, "html", autoescape=True), "<strong>|</strong>", "<u>|</u>", "<br>")
    return text.replace(" %", "\N{NO-BREAK SPACE}%").encode()  # numbers stay beside their percent signs


def markdown_page(page: Page) -> bytes:
    """Return the content of report.md, which has all but pictures, videos and listings."""
    return _rendered(page, "md", autoescape=False).encode()


def _rendered(page: Page, ending: str, autoescape: bool) -> str:
    template = (Path(__file__).parent / f"report.{ending}.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=autoescape, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(page=page, markdown=markdown)


def publish(folder: Path, page: Page, statistics: Mapping[str, Any], files: Mapping[str, bytes]) -> list[str]:
    """Write a report's page, tables, figures, statistics.json and its own files.

    Returns:
        What the command line prints: findings, warnings and paths.

    Raises:
        UserError: the folder can't be written; nothing was written then.
    """
    said = {"format": FORMAT, "version": __version__, "findings": page.findings, "warnings": page.warnings}
    tables = page.parts(Table)
    every = {
        **{name: content for drawing in page.parts(Drawing) for name, content in drawing.files.items()},
        **files,
        "statistics.json": to_json({**said, **statistics}),
        "tables.md": "\n".join(map(markdown, tables)).encode(),
        "tables.tex": "\n".join(map(latex, tables)).encode(),
        "report.md": markdown_page(page),
        "report.html": html_page(page),
    }
    write_together({folder / name: content for name, content in every.items()})
    warned = [f"Warning: {sentence}" for sentence in page.warnings]
    return [*page.findings, *warned, *(f"  {folder / name}" for name in every)]


def to_json(content: Mapping[str, Any]) -> bytes:
    """Return the content of a JSON file: NaN becomes null, a tuple of methods as a key "camal > vanilla"."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return plain(vars(value))
        if isinstance(value, Mapping):
            return {" > ".join(k) if isinstance(k, tuple) else k: plain(v) for k, v in value.items()}
        if isinstance(value, pd.DataFrame):
            return plain(value.reset_index().to_dict("list"))
        if isinstance(value, np.ndarray):
            return plain(value.tolist())
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return (json.dumps(plain(content), indent=1, allow_nan=False) + "\n").encode()
