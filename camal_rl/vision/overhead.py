"""What attention supervision adds to a training step of each classifier (the paper's Table 6)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from camal_rl import camal
from camal_rl.benchmark_training import Clock
from camal_rl.vision import train
from camal_rl.vision.models import ARCHITECTURES, Classifier

BATCH_SIZE = 32
"""Images a step (Table 7)."""
CLASSES = 37
"""As many as Oxford-IIIT-Pet has."""
METHODS = ("vanilla", "camal")


def measure(
    device: torch.device, precision: str, repetitions: int, iterations: int, done: Callable[[], None]
) -> dict[str, Any]:
    """Seconds a step with each method in turns, on the same random images.

    Args:
        device, precision: as for training.
        repetitions, iterations: measurements of each method, and steps in each of them.
        done: called after each measurement.
    """
    seconds: dict[str, dict[str, list[float]]] = {}
    for name, architecture in ARCHITECTURES.items():
        torch.manual_seed(0)
        model = Classifier(name, CLASSES).to(device)
        size = train.map_size(model, 224)
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=architecture.learning_rate)
        weights = torch.rand(BATCH_SIZE, 2, *size)
        batch = train.Batch(
            torch.randint(256, (BATCH_SIZE, 3, 224, 224), dtype=torch.uint8),
            torch.randint(CLASSES, (BATCH_SIZE,)),
            *camal.costs(weights / weights.sum(dim=(2, 3), keepdim=True)),
        ).to(device)
        batches = {"vanilla": batch._replace(costs=None, counted=None), "camal": batch}
        seconds[name] = {method: [] for method in METHODS}
        for repetition in range(repetitions):
            for method in METHODS if repetition % 2 else METHODS[::-1]:
                steps = partial(_steps, model, optimizer, batches[method], precision)
                if repetition == 0:
                    steps(1)
                seconds[name][method].append(steps(iterations) / iterations)
                done()
    return {"batch_size": BATCH_SIZE, "seconds": seconds}


def _steps(
    model: Classifier, optimizer: torch.optim.Optimizer, batch: train.Batch, precision: str, count: int
) -> float:
    """Seconds that so many steps take."""
    clock = Clock(batch.labels.device)
    clock.start()
    for _ in range(count):
        train.update(model, optimizer, batch, train.Args(), train.Group(), precision)
    return sum(clock.stop().values())
