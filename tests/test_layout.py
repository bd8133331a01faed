"""The shape of the repository: imports run one way, and nothing lies where it does not belong."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "camal_rl"
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__init__"
}
"""Modules by dotted name, without the package's."""
MOST_FLOORS = 9
MOST_LINES = 560

BELOW_TRAINING = ("attention", "camal", "errors", "masks", "metrics", "stats")
TRAINING = {"ppo", "evaluate", "experiment", "benchmark"}
WITHOUT_TORCH = (
    *("doom", "environments", "errors", "masks", "metrics", "report", "stats", "game.definition"),
    *("game.engine", "game.frames", "game.shift", "results.comparison", "results.figures", "results.media"),
    *(
        "results.page",
        "results.study",
        "run.cluster",
        "run.command_line",
        "run.files",
        "run.machine",
        "run.runner",
        "run.toml",
    ),
    *("vision.report", "vision.scores"),
)
TORCHVISION = {"torchvision", "open_clip"}
"""Packages of the extra `vision`, which nothing but the supervised half may need."""


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of all that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@cache
def below(module: str) -> frozenset[str]:
    """Modules of the package that a module imports."""
    names = {f"{name}." for name in imports(FILES[module])}
    return frozenset(other for other in FILES if any(name.startswith(f"camal_rl.{other}.") for name in names))


def all_below(module: str) -> set[str]:
    """Modules that a module imports, and those that these import, and so on."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = below(waiting.pop()) - found
        found |= new
        waiting += new
    return found


def floor(module: str) -> int:
    """1 for a module that imports none of the package, else one more than the highest that it imports."""
    return 1 + max(map(floor, below(module)), default=0)


def tracked_files() -> list[str]:
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_imports_run_one_way_without_circles() -> None:
    assert [module for module in FILES if module in all_below(module)] == []


def test_there_are_few_floors_and_no_file_is_long() -> None:
    assert max(map(floor, FILES)) <= MOST_FLOORS
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in FILES.items()}
    assert {module: count for module, count in lines.items() if count > MOST_LINES} == {}


@pytest.mark.parametrize("module", [name for name in FILES if name in BELOW_TRAINING or name[:5] == "game."])
def test_what_training_stands_on_knows_nothing_of_it(module: str) -> None:
    assert not all_below(module) & TRAINING
    assert not [name for name in all_below(module) if name.startswith(("results.", "vision."))]


@pytest.mark.parametrize("module", [name for name in FILES if not name.startswith("vision.")])
def test_agents_know_nothing_of_classifiers(module: str) -> None:
    if module != "benchmark":  # measures both
        assert not [name for name in below(module) if name.startswith("vision.")]
        assert not {name.split(".")[0] for name in imports(FILES[module])} & TORCHVISION


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_reads_games_and_files_does_without_torch(module: str) -> None:
    used = {name.split(".")[0] for other in {module, *all_below(module)} for name in imports(FILES[other])}
    assert "torch" not in used


def test_the_package_itself_imports_no_more_than_it_registers_environments_with() -> None:
    lines = (PACKAGE / "__init__.py").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(("import", "from"))] == [
        "from __future__ import annotations",
        "import re",
        "from contextlib import suppress",
        "from pathlib import Path",
        "from typing import TYPE_CHECKING",
    ]


def test_top_level_holds_what_the_design_says_and_nothing_else() -> None:
    allowed = {"camal_rl", "envs", "runs", "tests", "pyproject.toml", "README.md", "LICENSE", ".ci"}
    allowed |= {"CITATION.cff", ".github"}
    found = {name.split("/")[0] for name in tracked_files()}
    assert {
        name for name in found - allowed if not (name.startswith(".") and (ROOT / name).is_file())
    } == set()
    assert allowed - {"runs", ".ci"} <= found


def test_every_module_has_a_test_file() -> None:
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    wings = ("game.", "run.", "results.")
    names = {name.split(".")[-1] if name.startswith(wings) else name.replace(".", "_") for name in FILES}
    assert names - tests == set()


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    pattern = re.compile(
        rb"/(?:" + b"|".join([b"work", b"opt/" + b"dev", b"root", b"home/" + rb"\w"]) + rb")\b"
    )
    own = Path(__file__).relative_to(ROOT).as_posix()
    named = {name for name in tracked_files() if pattern.search((ROOT / name).read_bytes())}
    assert named - {own} == set()
