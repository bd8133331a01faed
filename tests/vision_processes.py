"""Small trainings for the tests of classifiers, and one batch's gradients in processes that torchrun starts.

torchrun --nproc-per-node 2 vision_processes.py FILE
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from camal_rl.run import folder as run_folder
from camal_rl.vision import train
from camal_rl.vision.models import Classifier, freeze_batch_norm
from camal_rl.vision.processes import Group, processes


def small_args(folder: Path, **options: object) -> train.Args:
    """Two passes over a few small images, a second or two."""
    small: dict[str, Any] = {
        "runs_dir": folder,
        "folds": 3,
        "fold": 1,
        "samples": 36,
        "epochs": 2,
        "batch_size": 8,
        "image_size": 64,
        "weights": "none",
        "precision": "fp32",
        "torch_threads": 1,
        "checkpoint_every": 1,
        "test_every": 1,
    }
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


def model() -> Classifier:
    """A network without dropout, and with BatchNorm frozen."""
    torch.manual_seed(0)
    made = Classifier("resnet18", 3, image_size=64).train()
    freeze_batch_norm(made)
    return made


def gradients(group: Group) -> dict[str, torch.Tensor]:
    """Gradients of the loss of the whole batch, and its terms."""
    made = model()
    shared = DistributedDataParallel(made) if group.size > 1 else made
    optimizer = torch.optim.SGD(made.parameters(), lr=0.0)
    terms = train.update(shared, optimizer, batch(group), train.Args(), group, "fp32")
    return {**terms, **{name: one.grad for name, one in made.named_parameters() if one.grad is not None}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes(torch.device("cpu")) as started:
        result = gradients(started)
        if started.rank == 0:
            torch.save(result, sys.argv[1])
