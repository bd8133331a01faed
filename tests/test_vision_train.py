"""Training of classifiers: what is learned, resumed, refused, and shared between processes."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_same
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from camal_rl import UserError, run_folder

pytest.importorskip("torchvision")

import vision_processes

from camal_rl.vision import datasets, evaluate, priors, train

pytestmark = pytest.mark.slow


def small_args(folder: Path, **options: object) -> train.Args:
    """Two passes over a few small images, a second or two."""
    args = train.Args()
    args.run.runs_dir = folder
    args.run.folds, args.run.fold, args.run.samples = 3, 1, 36
    args.training.epochs, args.training.batch_size = 2, 8
    args.training.image_size, args.training.weights = 64, "none"
    args.machine.precision, args.machine.torch_threads = "fp32", 1
    args.machine.checkpoint_every = args.machine.test_every = 1
    for name, value in options.items():
        group = next(group for group in vars(args).values() if hasattr(group, name))
        setattr(group, name, value)
    return args


def scores_of(args: train.Args, fold: int = 1) -> dict[str, object]:
    found: dict[str, object] = json.loads((train.folder_of(args, fold) / "scores.json").read_text())
    return found


def checkpoint_of(args: train.Args, fold: int = 1) -> dict[str, object]:
    found = run_folder.load_checkpoint(train.folder_of(args, fold) / "checkpoint.pt")
    assert found is not None
    del found["seconds_per_step"]
    return found


@pytest.mark.parametrize("method", ["camal", "vanilla", "suppress"])
def test_a_fold_is_trained_logged_and_scored(method: str, tmp_path: Path) -> None:
    args = small_args(tmp_path, method=method)
    assert train.train(args)
    folder = tmp_path / "shapes" / "resnet18" / method / "fold1"
    assert {path.name for path in folder.iterdir() if not path.name.startswith("events")} == {
        "args.json",
        "checkpoint.pt",
        "scores.json",
        "media",
    }
    scores = scores_of(args)
    assert scores["fold"] == 1
    assert scores["samples"] == 12
    assert 0 <= scores["iou"] <= 1  # type: ignore[operator]
    assert scores["shifted"].keys() == {"decorrelated", "reversed"}  # type: ignore[attr-defined]
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/cross_entropy", "train/accuracy", "test/iou", "test/reversed/accuracy"} <= tags
    assert ("train/camal_loss" in tags) == (method != "vanilla")
    assert [one.step for one in events.Scalars("train/accuracy")] == [1, 2]


def test_camal_pulls_attention_into_the_mask(tmp_path: Path) -> None:
    """Of the training images: to others so few of them don't carry over."""
    args = small_args(tmp_path, epochs=8, test_every=0)
    train.train(args)
    events = EventAccumulator(str(train.folder_of(args, 1)))
    events.Reload()
    losses = [one.value for one in events.Scalars("train/camal_loss")]
    assert losses[-1] < losses[0] - 0.1


def test_the_same_command_twice_gives_the_same_weights(tmp_path: Path) -> None:
    one, other = small_args(tmp_path / "one"), small_args(tmp_path / "other")
    train.train(one)
    train.train(other)
    assert_same(checkpoint_of(one), checkpoint_of(other))


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, parts = small_args(tmp_path / "whole", epochs=3), small_args(tmp_path / "parts", epochs=3)
    train.train(whole)
    asked = iter([False, True])  # before the fold, and after its first epoch
    assert not train.train(parts, lambda: next(asked))
    assert checkpoint_of(parts)["epoch"] == 1
    assert not (train.folder_of(parts, 1) / "scores.json").exists()
    assert train.train(parts)
    assert_same(checkpoint_of(whole), checkpoint_of(parts))
    before, after = scores_of(whole), scores_of(parts)
    assert {**before, "seconds_per_step": 0} == {**after, "seconds_per_step": 0}


def test_a_finished_fold_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = small_args(tmp_path, epochs=1)
    train.train(args)
    file = train.folder_of(args, 1) / "checkpoint.pt"
    before = file.stat().st_mtime_ns
    assert train.train(args)
    assert "already done" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == before


def test_other_arguments_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    train.train(small_args(tmp_path, epochs=1))
    with pytest.raises(UserError, match=r"weight_decay was 0\.01, now 0\.1"):
        train.train(small_args(tmp_path, epochs=1, weight_decay=0.1))


def test_scores_can_be_made_again_from_the_checkpoint(tmp_path: Path) -> None:
    args = small_args(tmp_path, epochs=1)
    train.train(args)
    file = train.folder_of(args, 1) / "scores.json"
    before = file.read_bytes()
    file.unlink()
    assert evaluate.main(evaluate.Args((tmp_path,), device="cpu")) == 0
    assert file.read_bytes() == before


def test_a_priors_soft_maps_take_the_place_of_masks(tmp_path: Path) -> None:
    """Regions that are the masks give the very loss of the masks."""
    samples = datasets.load("shapes", tmp_path, 64, 36)
    args = small_args(tmp_path, epochs=1)
    masks = samples.masks.astype(np.float32)
    priors.save_regions(tmp_path / "regions.npz", masks, samples.names)
    train.train(args)
    prior = small_args(tmp_path, epochs=1, method="prior", prior=tmp_path / "regions.npz")
    train.train(prior)
    assert_same(checkpoint_of(args)["model"], checkpoint_of(prior)["model"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fold": 4}, "there are 3 folds"),
        ({"epochs": 0}, "--epochs 0"),
        ({"method": "prior"}, "go together"),
        ({"prior": Path("regions.npz")}, "go together"),
        ({"image_size": 100}, "multiple of 32"),
        ({"data": "busi"}, "Dataset_BUSI_with_GT"),
        ({"device": "tpu"}, "--device tpu"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    options: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        train.train(small_args(tmp_path / "runs", data_dir=tmp_path, **options))
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = small_args(tmp_path, epochs=1)
    train.train(args)
    before = checkpoint_of(args)
    update = train.update
    monkeypatch.setattr(train, "update", lambda *given: update(*given) * float("nan"))
    longer = small_args(tmp_path, epochs=1)
    (train.folder_of(args, 1) / "scores.json").unlink()
    checkpoint = run_folder.load_checkpoint(train.folder_of(args, 1) / "checkpoint.pt")
    assert checkpoint is not None
    checkpoint["epoch"] = 0
    del checkpoint["version"]
    run_folder.save_checkpoint(train.folder_of(args, 1) / "checkpoint.pt", checkpoint)
    with pytest.raises(UserError, match="epoch 1: cross_entropy of step 1 is NaN or infinite"):
        train.train(longer)
    assert_same(checkpoint_of(args)["model"], before["model"])


def test_table_7_is_the_default() -> None:
    args = train.parse_args([])
    assert (args.training.epochs, args.training.batch_size, args.training.weight_decay) == (500, 32, 0.01)
    assert args.attention.camal_coef == 1
    assert args.run.folds == 10
    rates = {
        model: train.learning_rate(dataclasses.replace(args, run=dataclasses.replace(args.run, model=model)))  # type: ignore[arg-type]
        for model in train.ARCHITECTURES
    }
    assert rates == dict.fromkeys(("resnet18", "convnext_t", "efficientnet_b0"), 1e-3) | dict.fromkeys(
        ("vit_b_16", "swin_v2_t", "maxvit_t"), 1e-4
    )


def torchrun(*command: object) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            *map(str, command),
        ],
        check=True,
        capture_output=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path: Path) -> None:
    torchrun(ROOT / "tests" / "vision_processes.py", tmp_path / "two.pt")
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one = vision_processes.gradients(train.Group())
    assert one.keys() == two.keys()
    assert one["terms"][1] != 0
    for name, gradient in one.items():
        scale = float(gradient.abs().max())
        assert float((gradient - two[name]).abs().max()) <= 1e-4 * max(scale, 1e-3), name


def test_torchrun_trains_a_fold_to_nearly_the_same_weights(tmp_path: Path) -> None:
    args = small_args(tmp_path / "one", epochs=1, freeze_batch_norm=True)
    train.train(args)
    torchrun(
        *("-m", "camal_rl.vision.train", "--runs-dir", tmp_path / "two", "--folds", 3, "--fold", 1),
        *("--samples", 36, "--epochs", 1, "--batch-size", 8, "--image-size", 64, "--weights", "none"),
        *("--precision", "fp32", "--torch-threads", 1, "--freeze-batch-norm"),
    )
    other = small_args(tmp_path / "two")
    one, two = checkpoint_of(args)["model"], checkpoint_of(other)["model"]
    assert isinstance(one, dict)
    assert isinstance(two, dict)
    moved = 1e-3 * 3  # AdamW's three steps, each of the learning rate at most
    for name, weight in one.items():
        assert float((weight - two[name]).abs().max()) <= 2 * moved, name
    assert scores_of(other)["samples"] == 12
