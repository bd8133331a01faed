"""Processes of torchrun: they share batches, agree on checkpoints, and tell mistakes once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, assert_same

from camal_rl.errors import UserError
from camal_rl.run import folder as run_folder

pytest.importorskip("torchvision")

import vision_processes
from vision_processes import checkpoint_of, scores_of, small_args

from camal_rl.vision import models, train
from camal_rl.vision.processes import Group

pytestmark = pytest.mark.slow


def torchrun(*command: object, status: int = 0) -> str:
    """Two processes: what they say on stderr."""
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, *start, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == status, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two processes did; starting them takes longer than all of it."""
    folder = tmp_path_factory.mktemp("two")
    torchrun(ROOT / "tests" / "vision_processes.py", folder)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.models, "get_model", vision_processes.small_network)


def said(folder: Path, what: str) -> list[tuple[int, str]]:
    """Exit code and words of each process."""
    return [tuple(json.loads((folder / f"said{rank}.json").read_text())[what]) for rank in (0, 1)]


def test_two_processes_have_the_loss_and_the_gradients_of_one(two: Path) -> None:
    shared = torch.load(two / "gradients.pt", weights_only=True)
    alone = vision_processes.gradients(Group())
    assert alone.keys() == shared.keys()
    assert alone["camal_loss"] != 0
    for name, gradient in alone.items():
        scale = float(gradient.abs().max())
        assert float((gradient - shared[name]).abs().max()) <= 1e-4 * max(scale, 1e-3), name


def test_torchrun_trains_a_fold_as_one_process_does(two: Path, tmp_path: Path) -> None:
    """One step with all images, after which AdamW's first moments are its gradients."""
    options = {"epochs": 1, "batch_size": 24, "freeze_batch_norm": True, "test_every": 10}
    args, other = small_args(tmp_path, **options), small_args(two / "machine0" / "one", **options)
    train.train(args)
    alone, shared = (checkpoint_of(which)["optimizer"]["state"] for which in (args, other))
    assert alone.keys() == shared.keys()
    for number, state in alone.items():
        moments = state["exp_avg"]
        scale = float(moments.abs().max())
        assert float((moments - shared[number]["exp_avg"]).abs().max()) <= 1e-3 * max(scale, 1e-5), number
    assert scores_of(other)["samples"] == 12
    described = run_folder.read_args_file(train.folder_of(other, 1), ("args",))
    assert described["args"]["processes"] == 2
    with pytest.raises(UserError, match="processes was 2, now 1"):
        train.train(other)


def test_processes_go_on_from_what_the_first_one_finds(two: Path) -> None:
    """As on machines that share no disk: the second process has another folder, which stays as it is."""
    assert [code for code, _ in said(two, "stopped")] == [0, 0]
    assert [code for code, _ in said(two, "parts")] == [0, 0]
    stopped = run_folder.load_checkpoint(two / "stopped.pt")
    assert stopped is not None
    assert stopped["epoch"] == 1
    assert not (two / "machine1").exists()
    whole, parts = (checkpoint_of(small_args(two / "machine0" / name)) for name in ("whole", "parts"))
    assert whole["epoch"] == 3
    assert_same(whole, parts)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [("shared", "--batch-size 7 can't be shared by 2 processes"), ("busi", "Dataset_BUSI_with_GT")],
)
def test_mistakes_are_told_once_by_processes(mistake: str, words: str, two: Path) -> None:
    (code, first), (other_code, other) = said(two, mistake)
    assert (code, other_code) == (2, 2)
    assert words in first
    assert "camal_rl: " in first
    assert "camal_rl: " not in other


def test_the_command_of_the_readme_ends_with_torchruns_own_code(tmp_path: Path) -> None:
    words = torchrun("-m", "camal_rl.vision.train", "--runs-dir", tmp_path, "--data", "busi", status=1)
    (line,) = (line for line in words.splitlines() if line.startswith("camal_rl: "))
    assert "Dataset_BUSI_with_GT" in line
