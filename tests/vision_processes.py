"""What each process that torchrun starts does in test_vision_train.py: one batch's loss and gradients.

torchrun --nproc-per-node 2 vision_processes.py FILE
"""

import sys

import torch
from torch.nn.parallel import DistributedDataParallel

from camal_rl import camal
from camal_rl.vision import train
from camal_rl.vision.models import Classifier, freeze_batch_norm

torch.set_num_threads(1)


def batch() -> train.Batch:
    """Nine samples, so that parts differ in size; two of them have no mask, both in the same part."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(9, 2, 2, 2, generator=generator)
    weights[[2, 4], 0] = 0
    weights = weights / weights.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
    images = torch.randint(256, (9, 3, 64, 64), dtype=torch.uint8, generator=generator)
    return train.Batch(images, torch.arange(9) % 3, *camal.costs(weights))


def model() -> Classifier:
    """Without dropout, and with BatchNorm frozen."""
    torch.manual_seed(0)
    made = Classifier("resnet18", 3, image_size=64).train()
    freeze_batch_norm(made)
    return made


def gradients(group: train.Group) -> dict[str, torch.Tensor]:
    """Of the loss of the whole batch, with its terms."""
    made = model()
    shared = DistributedDataParallel(made) if group.size > 1 else made
    optimizer = torch.optim.SGD(made.parameters(), lr=0.0)
    part = batch().at(group.part(torch.arange(9)))
    terms = train.update(shared, optimizer, part, train.Args(), group, "fp32")
    found = {name: one.grad for name, one in made.named_parameters() if one.grad is not None}
    return {"terms": terms, **found}


if __name__ == "__main__":
    with train.processes(torch.device("cpu")) as processes:
        result = gradients(processes)
        if processes.rank == 0:
            torch.save(result, sys.argv[1])
