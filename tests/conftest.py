"""What the tests on the real engine share: running commands, and finding what engines leave behind."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from camal_rl import doom, engine

ROOT = Path(__file__).resolve().parent.parent
SMALL = "160x120"  # the render resolution that is drawn fastest


def run(*arguments: str, folder: Path, prefix: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*prefix, sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
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


def own_engines() -> list[str]:
    return [path.name for path in (engine.engine_folder(os.getpid()) / "engines").iterdir()]


def left_of(engines: list[str]) -> list[object]:
    segments = [path for name in engines for path in Path("/dev/shm").glob(f"ViZDoom*{name}")]
    return [*segments, *chain.from_iterable(map(processes_of, engines))]


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test on the engine its processes and shared memory are gone."""
    yield
    if request.node.get_closest_marker("engine"):
        assert left_of(own_engines()) == []


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


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 15
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()
