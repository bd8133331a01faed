"""The script that measures other libraries: its environment on the engine, its arithmetic on stand-ins."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import vizdoom
from conftest import SMALL

from camal_rl import benchmark_peers, doom

SCENARIO = str(Path(vizdoom.scenarios_path) / "basic.cfg")


def args_of(**changes: object) -> argparse.Namespace:
    usual: dict[str, Any] = {
        "scenario": SCENARIO,
        "render_resolution": SMALL,
        "device": "cpu",
        "frame_skip": 4,
    }
    usual |= {"num_envs": 2, "num_steps": 8, "update_epochs": 1, "num_minibatches": 2}
    return argparse.Namespace(**(usual | {"warmup": 1, "iterations": 2, "torch_threads": 1} | changes))


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts modules of these names and contents where imports find them."""

    def put(name: str, **contents: object) -> None:
        module = ModuleType(name)
        vars(module).update(contents)
        parts = name.split(".")
        for length in range(1, len(parts)):
            parent = ".".join(parts[:length])
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        monkeypatch.setitem(sys.modules, name, module)

    return put


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))


@pytest.mark.engine
def test_the_environment_shows_what_ours_shows(start: Callable[..., doom.DoomEnv]) -> None:
    ours = start("Basic")
    ours.begin_episode(7)
    theirs = benchmark_peers.Doom(SCENARIO, SMALL, 4)
    try:
        frames, _ = theirs.reset(seed=7)
        # OpenCV shrinks theirs. Ours is the exact average, rounded: they differ where that lies between two.
        assert np.abs(frames.astype(int) - ours.image).max() <= 1
        assert theirs.action_space.n == len(ours.actions)
        ended = False
        for _ in range(400):
            frames, _, ended, _, _ = theirs.step(np.int64(0))
            assert theirs.observation_space.contains(frames)
            if ended:
                break
        assert ended
        assert theirs.reset()[0].any()
    finally:
        theirs.close()


def test_stable_baselines3_is_timed_without_its_warm_up(
    modules: Callable[..., None], ticking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    class PPO:
        def __init__(self, policy: str, envs: object, **settings: object) -> None:
            seen.update(settings, policy=policy)

        def learn(self, steps: int, callback: Any) -> None:
            seen["steps"] = steps
            for _ in range(steps // 16):
                callback._on_rollout_start()
                assert callback._on_step()

    envs = SimpleNamespace(close=lambda: seen.update(closed=True))
    modules("stable_baselines3", PPO=PPO)
    modules("stable_baselines3.common.callbacks", BaseCallback=object)
    modules(
        "stable_baselines3.common.vec_env", SubprocVecEnv=lambda makers: seen.update(n=len(makers)) or envs
    )
    monkeypatch.setattr(benchmark_peers.torch, "set_num_threads", lambda number: None)
    result = benchmark_peers.stable_baselines3(args_of())
    # Three iterations begin at 0, 1 and 2, and the last ends at 3: two of 16 steps in 2 seconds.
    assert result["sps"] == 16
    assert seen["steps"] == 48
    assert (seen["n"], seen["n_steps"], seen["batch_size"], seen["closed"]) == (2, 8, 8, True)


def sample_factory_modules(modules: Callable[..., None], status: str, iterations: int) -> list[str]:
    given: list[str] = []

    class Runner:
        def register_observer(self, observer: Any) -> None:
            self.observer = observer

        def init(self) -> str:
            return "success"

        def run(self) -> str:
            for iteration in range(iterations):
                self.observer.on_training_step(self, iteration)
            return status

    def parse(options: list[str]) -> tuple[object, object]:
        given.extend(options)
        return None, None

    modules("sample_factory.algo.runners.runner", AlgoObserver=object, Runner=Runner)
    modules("sample_factory.algo.utils.misc", ExperimentStatus=SimpleNamespace(SUCCESS="success"))
    modules("sample_factory.cfg.arguments", parse_full_cfg=lambda *_: None, parse_sf_args=parse)
    modules("sample_factory.envs.env_utils", register_env=lambda *_: None)
    modules("sample_factory.train", make_runner=lambda cfg: (cfg, Runner()))
    return given


def test_sample_factory_is_timed_without_its_warm_up(modules: Callable[..., None], ticking: None) -> None:
    given = sample_factory_modules(modules, "success", 4)  # it goes on for one more than was asked for
    result = benchmark_peers.sample_factory(args_of())
    assert result["sps"] == 16
    assert {"--batch_size=8", "--rollout=8", "--num_epochs=1", "--summaries_use_frameskip=False"} <= set(
        given
    )
    settings = result["settings"]
    assert settings["num_workers"] * settings["num_envs_per_worker"] == 2


def test_a_failure_of_sample_factory_is_not_a_measurement(modules: Callable[..., None]) -> None:
    sample_factory_modules(modules, "failure", 4)
    with pytest.raises(SystemExit, match="ended with status failure"):
        benchmark_peers.sample_factory(args_of())


def test_the_learner_of_sample_factory_gets_the_threads_asked_for(
    modules: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    runtime = SimpleNamespace(init_torch_runtime=lambda cfg, max_num_threads=1: given.append(max_num_threads))
    modules("sample_factory.algo.learning", learner_worker=runtime)
    monkeypatch.setattr(sys, "argv", ["x", "sample-factory", "--scenario", SCENARIO, "--torch-threads", "2"])
    benchmark_peers.more_threads_for_the_learner()
    runtime.init_torch_runtime(None)
    assert given == [2]


def test_the_result_is_one_line_of_json_with_versions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "stable-baselines3", "--scenario", SCENARIO])
    monkeypatch.setitem(benchmark_peers.MEASURE, "stable-baselines3", lambda args: {"sps": args.num_envs})
    monkeypatch.setattr(benchmark_peers.metadata, "version", lambda name: f"{name} 1")
    benchmark_peers.main()
    result = json.loads(capsys.readouterr().out)
    assert result["sps"] == 8
    assert result["versions"]["stable-baselines3"] == "stable-baselines3 1"


@pytest.mark.slow
def test_the_script_runs_by_its_path_without_this_package(tmp_path: Path) -> None:
    script = benchmark_peers.__file__
    assert script is not None
    told = subprocess.run(
        [sys.executable, "-I", script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "sample-factory" in told.stdout
    assert "camal_rl" not in {name.split(".")[0] for name in _imported(Path(script))}


def _imported(path: Path) -> list[str]:
    return [
        line.split()[1] for line in path.read_text().splitlines() if line.startswith(("import ", "from "))
    ]
