"""What a report says, by what it printed and the files that it wrote: for the tests of both reports."""

import html
import json
from typing import Any


def statistics_of(files: dict[str, bytes]) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in statistics.json")

    content: dict[str, Any] = json.loads(files["statistics.json"], parse_constant=refuse)
    return content


def warnings_of(printed: list[str], files: dict[str, bytes]) -> str:
    """The warnings, which have to be the same on the command line, in the file and on both pages."""
    sentences = statistics_of(files)["warnings"]
    assert [line.removeprefix("Warning: ") for line in printed if line.startswith("Warning: ")] == sentences
    for sentence in sentences:
        told = html.escape(sentence).replace("&#x27;", "&#39;").replace(" %", "\N{NO-BREAK SPACE}%")
        assert f"<li>{told}</li>" in files["report.html"].decode()
        assert f"- {sentence}\n" in files["report.md"].decode()
    return "\n".join(sentences)
