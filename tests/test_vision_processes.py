"""Processes of torchrun: they share batches, agree on checkpoints, and tell mistakes once."""

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

from camal_rl.vision import train
from camal_rl.vision.processes import Group

pytestmark = pytest.mark.slow


def torchrun(*command: object, status: int = 0, folder: Path = ROOT) -> str:
    """Two processes, started in this folder: what they say on stderr."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            *map(str, command),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == status, done.stderr
    return done.stderr


def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path: Path) -> None:
    torchrun(ROOT / "tests" / "vision_processes.py", tmp_path / "two.pt")
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one = vision_processes.gradients(Group())
    assert one.keys() == two.keys()
    assert one["camal_loss"] != 0
    for name, gradient in one.items():
        scale = float(gradient.abs().max())
        assert float((gradient - two[name]).abs().max()) <= 1e-4 * max(scale, 1e-3), name


SHARED = (
    *("-m", "camal_rl.vision.train", "--folds", 3, "--fold", 1, "--samples", 36, "--image-size", 64),
    *("--weights", "none", "--precision", "fp32", "--torch-threads", 1, "--freeze-batch-norm"),
)


def test_torchrun_trains_a_fold_as_one_process_does(tmp_path: Path) -> None:
    """One step with all images, after which AdamW's first moments are its gradients."""
    args = small_args(tmp_path / "one", epochs=1, batch_size=24, freeze_batch_norm=True)
    train.train(args)
    torchrun(*SHARED, "--runs-dir", tmp_path / "two", "--epochs", 1, "--batch-size", 24)
    other = small_args(tmp_path / "two")
    one, two = (checkpoint_of(which)["optimizer"]["state"] for which in (args, other))
    assert one.keys() == two.keys()
    for number, state in one.items():
        moments = state["exp_avg"]
        scale = float(moments.abs().max())
        assert float((moments - two[number]["exp_avg"]).abs().max()) <= 1e-3 * max(scale, 1e-5), number
    assert scores_of(other)["samples"] == 12
    described = run_folder.read_args_file(train.folder_of(other, 1), ("args",))
    assert described["args"]["processes"] == 2
    with pytest.raises(UserError, match="processes was 2, now 1"):
        train.train(small_args(tmp_path / "two", epochs=1, batch_size=24, freeze_batch_norm=True))


def test_processes_go_on_from_what_the_first_one_finds(tmp_path: Path) -> None:
    """As on machines that share no disk: the second process has another folder, which stays as it is."""
    (tmp_path / "start.py").write_text(
        "import os, sys\n"
        "from camal_rl.run.command_line import parse\n"
        "from camal_rl.vision import train\n"
        "options = [*sys.argv[1:], '--runs-dir', 'machine' + os.environ['RANK']]\n"
        "args = parse(train.Args, 'train', options)\n"
        "sys.exit(train.main(args))\n"
    )
    options = (*SHARED[2:], "--batch-size", 24, "--checkpoint-every", 1)
    whole = (tmp_path / "start.py", *options, "--epochs", 3)
    torchrun(*whole, folder=tmp_path / "whole")
    asks = "train.train = (lambda run: lambda args, ask: run(args, lambda: next(answers)))(train.train)\n"
    (tmp_path / "stop.py").write_text(
        (tmp_path / "start.py")
        .read_text()
        .replace("args =", f"answers = iter([False, True])\n{asks}args =", 1)
    )
    torchrun(tmp_path / "stop.py", *options, "--epochs", 3, folder=tmp_path / "parts")
    place = Path("machine0", "shapes", "resnet18", "camal", "fold1")
    stopped = run_folder.load_checkpoint(tmp_path / "parts" / place / "checkpoint.pt")
    assert stopped is not None
    assert stopped["epoch"] == 1
    torchrun(*whole, folder=tmp_path / "parts")
    assert not (tmp_path / "parts" / "machine1").exists()
    ends = [
        run_folder.load_checkpoint(tmp_path / name / place / "checkpoint.pt") for name in ("whole", "parts")
    ]
    assert_same(*({"model": one["model"], "epoch": one["epoch"]} for one in ends if one is not None))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch-size", 7), "--batch-size 7 can't be shared by 2 processes"),
        (("--data", "busi"), "Dataset_BUSI_with_GT"),
    ],
)
def test_mistakes_are_told_once_by_processes(options: tuple[object, ...], words: str, tmp_path: Path) -> None:
    said = torchrun(*SHARED, "--runs-dir", tmp_path, *options, status=1)
    lines = [line for line in said.splitlines() if line.startswith("camal_rl: ")]
    assert len(lines) == 1
    assert words in lines[0]
