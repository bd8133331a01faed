"""What the tests on the real engine share: running commands, and finding what engines leave behind."""

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

# The workers of the suite share the cores, and each one's torch would take them all.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
import vizdoom
from matplotlib.figure import Figure
from written_runs import write_study

from camal_rl import doom, ppo
from camal_rl.game import engine
from camal_rl.results import figures

ROOT = Path(__file__).resolve().parent.parent
SMALL = "160x120"  # the render resolution that is drawn fastest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """In the fast suite, leave out files of slow tests alone: what they import takes seconds."""
    if config.option.markexpr != "not engine and not slow" or collection_path.suffix != ".py":
        return None  # as others decide
    return bool(re.search(r"(?m)^pytestmark = \[?pytest\.mark\.slow\b", collection_path.read_text())) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each worker its share of the long tests first, so that none has one left in the end."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    engine = [item for item in items if item.get_closest_marker("engine")]
    others = [item for item in items if not item.get_closest_marker("engine")]
    share = -(-len(others) // workers)
    items[:] = chain.from_iterable(
        engine[worker::workers] + others[worker * share : (worker + 1) * share] for worker in range(workers)
    )


def study(path: str) -> Any:
    """The module of a script beside its results; its tests are skipped where these are not in this copy."""
    file = ROOT / "runs/reference" / path
    if not file.is_file():
        pytest.skip("the reference results are not in this copy", allow_module_level=True)
    found = importlib.util.spec_from_file_location(file.stem, file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[file.stem] = module  # where its dataclasses look for their types
    found.loader.exec_module(module)
    return module


def run(*arguments: str, folder: Path, prefix: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*prefix, sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def processes_of(engine: str) -> list[int]:
    """Ids of the engine processes that use the shared memory of this name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if engine in (process / "cmdline").read_text().split("\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


STARTED: list[str] = []
"""Names of the engines that this process has started in the test at hand; those that are closed as well."""
_init = engine.Engine.init


def _noted_init(game: engine.Engine) -> None:
    try:
        _init(game)
    finally:
        if name := game._read_note()[1]:
            STARTED.append(name)


engine.Engine.init = _noted_init  # type: ignore[method-assign]


def own_engines() -> list[str]:
    return list(STARTED)


def left_of(engines: list[str]) -> list[object]:
    segments = [path for name in engines for path in Path("/dev/shm").glob(f"ViZDoom*{name}")]
    return [*segments, *chain.from_iterable(map(processes_of, engines))]


def orphaned_segments() -> set[str]:
    """ViZDoom's shared memory that no living process has mapped."""
    mapped = ""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            mapped += (process / "maps").read_text()
    return {path.name for path in Path("/dev/shm").glob("ViZDoom*") if path.name not in mapped}


@pytest.fixture(autouse=True)
def same_number_of_threads_afterwards() -> Iterator[None]:
    """torch's threads that a test asks for would stay, and start when a later one counts its own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test on the engine its processes, their shared memory and the notes of them are gone."""
    STARTED.clear()
    yield
    if request.node.get_closest_marker("engine"):
        assert left_of(own_engines()) == []
        assert list((engine.engine_folder(os.getpid()) / "engines").iterdir()) == []


@pytest.fixture
def start(nothing_left: None) -> Iterator[Callable[..., doom.DoomEnv]]:
    """Starts environments, and closes them in the end."""
    started: list[doom.DoomEnv] = []

    def start(
        env: str | Path = "Basic", *args: Any, render_resolution: str = SMALL, **options: Any
    ) -> doom.DoomEnv:
        started.append(doom.DoomEnv(env, *args, render_resolution=render_resolution, **options))
        return started[-1]

    yield start
    for env in started:
        env.close()


@pytest.fixture
def start_vector(nothing_left: None) -> Iterator[Callable[..., doom.DoomVectorEnv]]:
    started: list[doom.DoomVectorEnv] = []

    def start(env: str, num_envs: int, **options: Any) -> doom.DoomVectorEnv:
        started.append(doom.DoomVectorEnv(env, num_envs, render_resolution=SMALL, **options))
        return started[-1]

    yield start
    for envs in started:
        envs.close()


class FakeGame:
    """Stands in for the engine in fast tests: episodes of 5 to 12 actions, a target placed by the seed."""

    colour = False

    def __init__(
        self, height: int, width: int, prepare: Callable[[Any], None] | None = None, time_limit: float = 30
    ) -> None:
        self.size = (height, width)
        if prepare:
            prepare(self)

    def set_screen_format(self, screen_format: vizdoom.ScreenFormat) -> None:
        self.colour = screen_format == vizdoom.ScreenFormat.RGB24

    def get_available_buttons(self) -> list[vizdoom.Button]:
        return [vizdoom.Button.MOVE_LEFT, vizdoom.Button.MOVE_RIGHT, vizdoom.Button.ATTACK]

    def set_seed(self, seed: int) -> None:
        self.seed = seed

    def new_episode(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.length = int(self.rng.integers(5, 13))
        self.place = int(self.rng.integers(0, self.size[1] - 40))
        self.tics = 0

    def set_action(self, action: list[float]) -> None:
        self.action = action

    def advance_action(self, tics: int, update: bool) -> None:
        self.tics += tics
        step = 2 * tics * (self.action[1] - self.action[0])
        self.place = int(np.clip(self.place + step, 0, self.size[1] - 40))

    def make_action(self, action: list[float], tics: int) -> float:
        self.set_action(action)
        self.advance_action(tics, True)
        return self.get_last_reward()

    def get_last_reward(self) -> float:
        return 3.0 if self.action[2] else -1.0

    @property
    def done(self) -> int:
        return self.tics // 4

    def is_episode_finished(self) -> bool:
        return self.done >= self.length

    def is_episode_timeout_reached(self) -> bool:
        return self.is_episode_finished() and self.length % 2 == 0

    def is_player_dead(self) -> bool:
        return False

    def get_state(self) -> object:
        screen = np.full(self.size, 30 + self.done, np.uint8)
        labels = np.zeros(self.size, np.uint8)
        if self.done % 4 != 3:
            labels[60:90, self.place : self.place + 40] = 9
            screen[60:90, self.place : self.place + 40] = 220
        box = {"x": self.place, "y": 60, "width": 40, "height": 30}
        label = type(
            "Label", (), {"value": 9, "object_name": "Cacodemon", "object_category": "Monster", **box}
        )()
        if self.colour:
            screen = np.repeat(screen[..., None], 3, axis=2)
        return type("State", (), {"screen_buffer": screen, "labels_buffer": labels, "labels": [label]})()

    def close(self) -> None:
        pass


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doom, "start_engine", lambda config, *options: FakeGame(*options))


def small_args(folder: Path, **options: object) -> ppo.Args:
    """A run of 4 iterations of 64 steps that takes a second, as the paper has it."""
    small: dict[str, Any] = {
        "method": "camal", "attention": "gradcam", "reward": "clip", "clip_vloss": True,
        "runs_dir": folder, "total_timesteps": 256, "num_envs": 4, "num_steps": 16, "num_minibatches": 2,
        "update_epochs": 2, "frame_size": (52, 60), "render_resolution": SMALL, "precision": "fp32",
        "torch_threads": 1, "play_in": "threads", "measure_every": 1,
    }  # fmt: skip
    return ppo.Args(**(small | options))


def assert_same(one: object, other: object, where: str = "checkpoint") -> None:
    """Equal bit for bit, through all levels."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key}]")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert one == other, where


@pytest.fixture(scope="session")
def trained_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 256 steps on the fake engine, trained once for all tests; not to be touched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doom, "start_engine", lambda config, *options: FakeGame(*options))
        return ppo.train(small_args(tmp_path_factory.mktemp("trained")))


@pytest.fixture
def trained_folder(trained_template: Path, tmp_path: Path) -> Path:
    """Its folder, for the test alone."""
    return shutil.copytree(trained_template, tmp_path / "Basic" / "camal" / "seed1")


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures, but nothing as PDF, which takes longer than the rest; test_figures.py looks at that."""
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda *given, format, **how: format == "pdf" or save(*given, format=format, **how)
    )


def blank_figure(name: str, *_: object) -> dict[str, bytes]:
    """The files of a figure that nothing is drawn in."""
    return {f"{name}.{kind}": b"<svg/>" for kind in ("png", "svg", "pdf")}


@pytest.fixture
def quick_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take a second; tests do without."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(figures, "draw", blank_figure)


@pytest.fixture
def small_clips_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small CLIPs have names, as open_clip's own have; nothing is fetched."""
    import open_clip
    from small_clips import CONFIGS

    def refuse(*_: object) -> None:
        raise AssertionError("a connection to the network")

    for name, config in CONFIGS.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    torch.set_num_threads(1)  # more of them only get into each other's way, in networks so small


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("template"))


@pytest.fixture
def runs(template: Path, tmp_path: Path) -> Path:
    """Two environments, two methods, two seeds, written by hand."""
    return shutil.copytree(template, tmp_path / "runs")
