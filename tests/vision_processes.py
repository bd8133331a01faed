"""Small networks and small trainings for the tests of classifiers, and what two processes of torchrun do.

torchrun --nproc-per-node 2 vision_processes.py FOLDER
"""

import contextlib
import io
import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision import models as torchvision_models

from camal_rl.run import folder as run_folder
from camal_rl.run.command_line import parse
from camal_rl.vision import train
from camal_rl.vision.models import Classifier, freeze_batch_norm
from camal_rl.vision.processes import Group, processes


def small_network(name: str, num_classes: int) -> nn.Module:
    """A ResNet, or an EfficientNet with its dropout, of torchvision's parts and a thousandth of the work."""

    def block(channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )

    blocks = [block(8) for _ in range(4)]
    if name == "efficientnet_b0":
        classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, num_classes))
        features = nn.Sequential(block(3), *blocks)
        parts = {"features": features, "avgpool": nn.AdaptiveAvgPool2d(1), "classifier": classifier}
    else:
        conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        blocks[0] = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True))
        parts = {"conv1": conv1, "bn1": nn.BatchNorm2d(8), "relu": nn.ReLU(), "maxpool": nn.MaxPool2d(2)}
        parts |= {f"layer{number}": blocks[number - 1] for number in (1, 2, 3, 4)}
        parts |= {"avgpool": nn.AdaptiveAvgPool2d(1), "fc": nn.Linear(8, num_classes)}
    return nn.Sequential(OrderedDict(parts))


def small_args(folder: Path, **options: object) -> train.Args:
    """Two passes over a few small images, in a moment with `small_network`."""
    small: dict[str, Any] = {
        "runs_dir": folder, "folds": 3, "fold": 1, "samples": 36, "epochs": 2, "batch_size": 8,
        "image_size": 64, "weights": "none", "precision": "fp32", "torch_threads": 1,
        "checkpoint_every": 1, "test_every": 1,
    }  # fmt: skip
    return train.Args(**small | options)


def scores_of(args: train.Args, fold: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((train.folder_of(args, fold) / "scores.json").read_text())
    return found


def checkpoint_of(args: train.Args, fold: int = 1) -> dict[str, Any]:
    found = run_folder.load_checkpoint(train.folder_of(args, fold) / "checkpoint.pt")
    assert found is not None
    del found["seconds_per_step"]
    return found


def batch(group: Group) -> train.Batch:
    """A part of nine samples, so that parts differ in size; two have no mask, both in the same part."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(9, 2, 2, 2, generator=generator)
    weights[[2, 4], 0] = 0
    weights = weights / weights.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
    images = torch.randint(256, (9, 3, 64, 64), dtype=torch.uint8, generator=generator)
    part = group.part(torch.arange(9))
    supervised = weights[part, 0].flatten(1).any(dim=1) / 7
    return train.Batch(images[part], part % 3, weights[part], supervised, torch.tensor(9))


def gradients(group: Group) -> dict[str, torch.Tensor]:
    """Gradients of the loss of the whole batch, and its terms, of a network whose BatchNorm is frozen."""
    torch.manual_seed(5)
    made = Classifier("resnet18", 3, image_size=64).train()
    freeze_batch_norm(made)
    shared = DistributedDataParallel(made) if group.size > 1 else made
    optimizer = torch.optim.SGD(made.parameters(), lr=0.0)
    terms = train.update(shared, optimizer, batch(group), train.Args(), group, "fp32")
    return {**terms, **{name: one.grad for name, one in made.named_parameters() if one.grad is not None}}


def command(*options: object) -> tuple[int, str]:
    """Exit code of the training command in this process, and what it says on stderr."""
    common = (
        *("--folds", 3, "--fold", 1, "--samples", 36, "--image-size", 64, "--weights", "none"),
        *("--precision", "fp32", "--torch-threads", 1, "--freeze-batch-norm"),
    )
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            code = train.main(parse(train.Args, "train", list(map(str, (*common, *options)))))
        except SystemExit as end:
            code = int(end.code or 0)
    return code, said.getvalue()


MISTAKES = {"shared": ("--batch-size", 7), "busi": ("--data", "busi")}


def all_of_it(folder: Path, started: Group) -> None:
    """All that the tests look at, in one start, by two machines that share no disk."""
    own = folder / f"machine{started.rank}"
    result = gradients(started)
    if started.rank == 0:
        torch.save(result, folder / "gradients.pt")
    said = {"one step": command("--runs-dir", own / "one", "--epochs", 1, "--batch-size", 24)}
    longer = ("--epochs", 3, "--batch-size", 24, "--checkpoint-every", 1, "--test-every", 0)
    said["whole"] = command("--runs-dir", own / "whole", *longer)
    answers = iter([False, True])  # before the fold, and after its first epoch
    run, train.train = train.train, lambda args, _: run(args, lambda: next(answers))
    said["stopped"] = command("--runs-dir", own / "parts", *longer)
    train.train = run
    if started.rank == 0:
        place = "parts/shapes/resnet18/camal/fold1/checkpoint.pt"
        (folder / "stopped.pt").write_bytes((own / place).read_bytes())
    said["parts"] = command("--runs-dir", own / "parts", *longer)
    said |= {name: command("--runs-dir", own / "mistakes", *wrong) for name, wrong in MISTAKES.items()}
    (folder / f"said{started.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torchvision_models.get_model = small_network
    with processes(torch.device("cpu")) as group:
        # torchrun's store bears no second group.
        train.processes = lambda _: contextlib.nullcontext(group)
        all_of_it(Path(sys.argv[1]), group)
