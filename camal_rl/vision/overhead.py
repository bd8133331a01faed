"""What attention supervision adds to a training step of each classifier (the paper's Table 6)."""

from __future__ import annotations

import math
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
LEAST_SECONDS = 8.0
"""Of a measurement: a fast model takes more steps in it."""


def measure(
    device: torch.device, precision: str, repetitions: int, iterations: int, done: Callable[[], None]
) -> dict[str, Any]:
    """Seconds a step with each method in turns, on the same random images.

    Args:
        device, precision: as for training.
        repetitions: measurements of each method.
        iterations: steps in each of them at least, and as many as take `LEAST_SECONDS`.
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
        step = {method: partial(_step, model, optimizer, batches[method], precision) for method in METHODS}
        for method in METHODS:
            step[method]()
        steps = max(iterations, math.ceil(LEAST_SECONDS / step["vanilla"]()))
        for _ in range(repetitions):
            spent = dict.fromkeys(METHODS, 0.0)
            # In turns step by step: what else a machine does may take longer than a step, and hits both then.
            for turn in range(steps):
                for method in METHODS if turn % 2 else METHODS[::-1]:
                    spent[method] += step[method]()
            for method in METHODS:
                seconds[name][method].append(spent[method] / steps)
                done()
    return {"batch_size": BATCH_SIZE, "seconds": seconds}


def _step(model: Classifier, optimizer: torch.optim.Optimizer, batch: train.Batch, precision: str) -> float:
    """Seconds that it takes."""
    clock = Clock(batch.labels.device)
    clock.start()
    train.update(model, optimizer, batch, train.Args(), train.Group(), precision)
    return sum(clock.stop().values())
