"""Cells on a Ray cluster: several nodes on this machine, one of them killed in the middle of its work."""

import json
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from camal_rl import experiment, ppo
from camal_rl.errors import UserError
from camal_rl.experiment import Matrix
from camal_rl.game.definition import load_definition
from camal_rl.run import cluster
from camal_rl.run.runner import Runner

TRAIN = (
    *("--total-timesteps", "1024", "--num-envs", "2", "--num-steps", "32", "--checkpoint-every", "128"),
    *("--render-resolution", "160x120", "--precision", "fp32", "--device", "cpu", "--update-epochs", "1"),
)


def matrix_of(folder: Path) -> Matrix:
    evaluation = (
        "--episodes",
        "1",
        "--faithfulness-frames",
        "0",
        "--max-steps",
        "20",
        "--video-episodes",
        "0",
    )
    return Matrix(
        envs=("Mine.toml",),
        methods=("camal",),
        seeds=(1, 2),
        runs_dir=folder / "runs",
        train=TRAIN,
        evaluate=evaluation,
    )


@pytest.fixture(autouse=True)
def file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment's file in the folder of this test, where no other process looks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return shutil.copy(load_definition("Basic").path, tmp_path / "Mine.toml")


def test_a_keeper_gives_the_files_to_the_next_attempt_and_hears_no_earlier_one(tmp_path: Path) -> None:
    keeper = cluster.Keeper({"a": tmp_path / "a", "b": tmp_path / "b"})
    first, files = keeper.begin("a")
    assert files == {}
    assert keeper.progress(stopping=False) == {"a": None}
    assert keeper.report("a", first, 0.1, {"checkpoint.pt": b"1", "media/attention.png": b"2"}) is False
    (tmp_path / "a" / ".half-written").write_bytes(b"?")
    second, files = keeper.begin("a")
    assert files == {"checkpoint.pt": b"1", "media/attention.png": b"2"}
    assert keeper.report("a", first, 0.9, {"checkpoint.pt": b"late"}) is True  # another has taken over: stop
    assert (tmp_path / "a/checkpoint.pt").read_bytes() == b"1"
    assert keeper.report("a", second, 0.5, {}) is False
    assert keeper.progress(stopping=True) == {"a": 0.5}
    assert keeper.report("a", second, 0.6, {}) is True


@pytest.fixture
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test beside this one has a cluster: `auto` finds any on this machine."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock"):  # one for all workers of pytest
        yield


@pytest.fixture
def nodes(alone: None) -> Iterator[Any]:
    """A cluster of a head, which is the experiment's machine and runs no cells, and two nodes of one CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own making
        from ray.cluster_utils import Cluster

        # A node that does not answer is looked at more often than by default, so that it is known to be dead.
        looks = {"health_check_period_ms": 300, "health_check_failure_threshold": 3}
        head = {"num_cpus": 0, "_system_config": looks, **SMALL_STORE}
        started = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            started.add_node(num_cpus=1, **SMALL_STORE)
        yield started
        started.shutdown()


SMALL_STORE = {"object_store_memory": 100 * 2**20, "include_dashboard": False}


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")  # Ray's processes leave sockets and files to the garbage collector
def test_a_node_killed_in_the_middle_loses_nothing_and_nothing_is_done_twice(
    nodes: Any, tmp_path: Path, file_of_ones_own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = matrix_of(tmp_path)
    codes: list[int] = []
    running = threading.Thread(target=lambda: codes.append(experiment.run(matrix, ray=nodes.address)))
    running.start()
    folders = [tmp_path / f"runs/Mine/camal/seed{seed}" for seed in matrix.seeds]

    deadline = time.monotonic() + 120
    while not all((folder / "checkpoint.pt").exists() for folder in folders) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any((folder / "scores.json").exists() for folder in folders)
    file_of_ones_own.unlink()
    nodes.remove_node(nodes.worker_nodes.copy().pop(), allow_graceful=False)
    nodes.add_node(num_cpus=1, **SMALL_STORE)  # one that comes instead
    running.join(400)
    assert codes == [0]

    logs = [(folder / "experiment.log").read_text() for folder in folders]
    taken_up = ["Going on from step" in log for log in logs]
    assert sorted(taken_up) == [False, True]  # the one whose node was killed, and it alone
    for folder in folders:
        assert json.loads((folder / "scores.json").read_text())["steps"] == 1024
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        steps = [event.step for event in events.Scalars("losses/value_loss")]
        assert steps == list(range(64, 1025, 64))
    # What was taken up elsewhere is bit for bit what a run without interruption gives.
    own = ("--method", "camal", "--seed", str(matrix.seeds[taken_up.index(True)]), "--torch-threads", "1")
    alone = ppo.train(ppo.parse_args([*TRAIN, *own, "--runs-dir", str(tmp_path / "alone")]))
    expected, found = (
        torch.load(folder / "checkpoint.pt", weights_only=True)["agent"]
        for folder in (alone, folders[taken_up.index(True)])
    )
    for name in expected:
        assert torch.equal(expected[name], found[name])
    assert "2 of 2 runs are done" in capsys.readouterr().out


@pytest.mark.usefixtures("alone")
def test_no_cluster_is_one_clear_line(tmp_path: Path) -> None:
    cells = experiment.cells(matrix_of(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=r"no Ray cluster at auto: .*Start one with `ray start --head`"):
            cluster.run_on_ray(cells, 2, Runner(0), "auto")


def test_without_ray_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'camal-rl\[ray\]'"):
        cluster.run_on_ray([], 0, Runner(0), "auto")
