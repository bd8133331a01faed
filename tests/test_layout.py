"""The shape of the repository: imports run one way, and nothing lies where it does not belong."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "camal_rl"

# Each module and the modules of the package that it may import; `camal_rl` itself is open to all.
MAY_IMPORT = {
    "attention": set(),
    "camal": {"attention"},
    "command_line": set(),
    "device": set(),
    "doctor": {"device", "doom", "engine", "experiment", "machine", "media", "ppo"},
    "doom": {"engine", "frames"},
    "engine": set(),
    "machine": set(),
    "frames": set(),
    "media": set(),
    "metrics": set(),
    "run_folder": {"doom"},
    "study": {"stats"},
    "comparison": {"stats", "study"},
    "shift": set(),
    "ppo": {
        *("attention", "camal", "command_line", "device", "doom", "engine", "frames", "machine", "media"),
        "metrics",
        *("run_folder", "workers"),
    },
    "play": {"attention", "camal", "doom", "metrics", "ppo", "run_folder", "shift"},
    "faithfulness": {"metrics", "ppo", "play"},
    "evaluate": {
        *("attention", "command_line", "device", "doom", "engine", "faithfulness", "media", "metrics"),
        *("play", "ppo"),
        *("run_folder", "shift"),
    },
    "experiment": {"cluster", "evaluate", "experiment", "machine", "ppo"},
    "cluster": {"experiment"},
    "stats": set(),
    "page": {"stats"},
    "report": {"command_line", "comparison", "page", "stats", "study"},
    "benchmark": {"benchmark_parts", "benchmark_tables", "device", "doom", "ppo"},
    "benchmark_parts": {
        *("attention", "benchmark_tables", "benchmark_training", "camal", "device", "doom", "machine"),
        *("ppo", "vision.models", "vision.overhead"),
    },
    "benchmark_peers": set(),
    "benchmark_tables": {"page"},
    "benchmark_training": {"camal", "device", "doom", "ppo", "workers"},
    "workers": set(),
    "vision.models": {"attention"},
    "vision.shapes": {"machine", "vision.datasets"},
    "vision.datasets": {"command_line", "machine", "media", "vision.shapes"},
    "vision.priors": {
        *("attention", "camal", "command_line", "device", "media", "metrics", "page", "study"),
        "vision.datasets",
    },
    "vision.evaluate": {
        *("attention", "camal", "command_line", "device", "media", "metrics", "run_folder"),
        *("vision.datasets", "vision.models"),
    },
    "vision.train": {
        *("attention", "camal", "command_line", "device", "machine", "metrics", "run_folder"),
        *("vision.datasets", "vision.evaluate", "vision.models", "vision.priors"),
    },
    "vision.scores": {"comparison", "metrics", "stats", "study"},
    "vision.report": {"command_line", "media", "page", "report", "stats", "study", "vision.scores"},
    "vision.perturbation": {
        *("camal", "command_line", "doom", "engine", "metrics", "page", "stats", "vision.datasets"),
    },
    "vision.batch_norm": {"attention", "command_line", "page", "vision.models", "vision.shapes"},
    "vision.overhead": {"benchmark_training", "camal", "vision.models", "vision.train"},
}
WITHOUT_TORCH = {
    "command_line",
    "comparison",
    "doom",
    "engine",
    "frames",
    "media",
    "metrics",
    "page",
    "report",
    "shift",
    "stats",
    "study",
    "vision.report",
    "vision.scores",
}
TORCHVISION = {"torchvision", "open_clip"}
"""Of the extra `vision`: nothing else may need them."""


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules() -> list[str]:
    """Dotted names without the package's."""
    found = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(".".join(path.parts) for path in found if path.stem != "__init__")


def file_of(module: str) -> Path:
    return (PACKAGE / Path(*module.split("."))).with_suffix(".py")


def tracked_files() -> list[str]:
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("module", modules())
def test_imports_run_one_way(module: str) -> None:
    assert module in MAY_IMPORT, "a module that the layout does not know: say here what it may import"
    used = {
        name.removeprefix("camal_rl.") for name in imports(file_of(module)) if name.startswith("camal_rl.")
    }
    known = {one for one in modules() if any(name == one or name.startswith(f"{one}.") for name in used)}
    assert known <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", [name for name in modules() if not name.startswith("vision.")])
def test_only_the_supervised_half_needs_torchvision(module: str) -> None:
    assert not {name.split(".")[0] for name in imports(file_of(module))} & TORCHVISION


@pytest.mark.parametrize("module", sorted(WITHOUT_TORCH & set(modules())))
def test_what_reads_games_and_files_does_without_torch(module: str) -> None:
    names = {name.split(".")[0] for name in imports(file_of(module))}
    assert "torch" not in names


def test_the_package_itself_imports_none_of_its_modules() -> None:
    assert not [name for name in imports(PACKAGE / "__init__.py") if name.startswith("camal_rl")]


def test_top_level_holds_what_the_design_says_and_nothing_else() -> None:
    allowed = {"camal_rl", "envs", "runs", "tests", "pyproject.toml", "README.md", "LICENSE", ".ci"}
    found = {name.split("/")[0] for name in tracked_files()}
    assert {
        name for name in found - allowed if not (name.startswith(".") and (ROOT / name).is_file())
    } == set()
    assert allowed - {"runs", ".ci"} <= found


def test_every_module_has_a_test_file() -> None:
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert {module.replace(".", "_") for module in modules()} <= tests


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    pattern = re.compile(
        rb"/(?:" + b"|".join([b"work", b"opt/" + b"dev", b"root", b"home/" + rb"\w"]) + rb")\b"
    )
    own = Path(__file__).relative_to(ROOT).as_posix()
    named = {name for name in tracked_files() if pattern.search((ROOT / name).read_bytes())}
    assert named - {own} == set()
