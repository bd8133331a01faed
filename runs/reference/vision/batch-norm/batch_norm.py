"""Proposition 1 under BatchNorm: does one pass for the batch give each sample the map it has by itself?

The proposition needs dy_b / dA_b' = 0 for b != b'. BatchNorm with the batch's own statistics, as in training,
breaks that where it lies between the feature maps A and the logits. Measured here for every model, with both
kinds of statistics, at the layer whose attention is supervised and at the stage before it:

- `passes`: one backward pass for the batch (Eq. 4) against one for each sample, on the same forward pass;
- `company`: a sample's map in one batch against its map in another, which differs in all other samples.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from camal_rl import attention
from camal_rl.errors import UserError
from camal_rl.results import figures
from camal_rl.run.command_line import Count, Positive, parse, run_at_once
from camal_rl.run.files import make_folder, write_together
from camal_rl.vision import shapes
from camal_rl.vision.models import ARCHITECTURES, Classifier, Features, batch_norms, load_weights, normalize

IMAGE_SIZE = 224


@dataclass
class Args:
    """Compare maps of one pass for a batch with those of a pass for each sample, under BatchNorm."""

    output: Path = Path("runs/vision/batch-norm")
    """folder for table.md and results.json"""
    models: tuple[str, ...] = ()
    """networks of camal_rl.vision.train; all if none is given"""
    weights: str = "imagenet"
    """imagenet, none (random), or a file, then for one model"""
    batch_size: Positive = 8
    """samples in a batch, at least 4"""
    seed: Count = 0
    """seed of shapes and of random weights"""


class Split(NamedTuple):
    """A classifier in two parts at some layer."""

    features: Callable[[Tensor], Features]  # images -> feature maps
    head: Callable[[Features], Tensor]  # feature maps -> logits


def splits(model: Classifier) -> dict[str, Split]:
    """The classifier split at the supervised layer, and with BatchNorm also at the stage before it."""
    network: Any = model.network
    if model.name == "resnet18":
        stem = (network.conv1, network.bn1, network.relu, network.maxpool)
        before = nn.Sequential(*stem, network.layer1, network.layer2, network.layer3)
        after = nn.Sequential(network.layer4, network.avgpool, nn.Flatten(), network.fc)
    elif model.name == "efficientnet_b0":
        before = network.features[:-1]
        after = nn.Sequential(network.features[-1], network.avgpool, nn.Flatten(), network.classifier)
    elif model.name == "maxvit_t":
        before = nn.Sequential(network.stem, *network.blocks[:-1])
        after = nn.Sequential(network.blocks[-1], network.classifier)
    else:
        return {"supervised": Split(model.features, model.head)}
    earlier = Split(lambda images: Features(before(images)), lambda features: after(features.maps))
    return {"supervised": Split(model.features, model.head), "stage before": earlier}


def gradients(split: Split, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A, and dy/dA from one backward pass and from one for each sample, each (B, K, h, w)."""
    features = split.features(images)
    features = features._replace(maps=features.maps.detach().requires_grad_())
    target = split.head(features).gather(1, classes[:, None]).squeeze(1)
    (once,) = torch.autograd.grad(target.sum(), features.maps, retain_graph=True)
    each = [
        torch.autograd.grad(target[index], features.maps, retain_graph=True)[0][index]
        for index in range(len(target))
    ]
    return features.maps.detach(), once, torch.stack(each)


def difference(x: Tensor, y: Tensor) -> float:
    """The largest difference, over the largest absolute value."""
    return float((x - y).abs().max() / torch.maximum(x.abs().max(), y.abs().max()).clamp(min=1e-30))


def compare(name: str, args: Args) -> list[dict[str, Any]]:
    """The rows of a model, computed in float64, so that what is left is no rounding, and without dropout."""
    torch.manual_seed(args.seed)
    samples = shapes.generate(2 * args.batch_size, IMAGE_SIZE, args.seed)
    model = Classifier(name, len(samples.classes), IMAGE_SIZE)
    load_weights(model, args.weights)
    last = model.network.get_submodule(model.architecture.last_layer)
    # torchvision's ViT begins with zeros there, for which dy/dA would be zero, too.
    nn.init.normal_(last.weight, std=0.02)  # type: ignore[arg-type]
    model.double()
    images = normalize(torch.from_numpy(samples.images)).double()
    classes = torch.from_numpy(samples.labels)
    half = args.batch_size // 2
    batch = torch.arange(args.batch_size)
    company = torch.cat([batch[:half], args.batch_size + batch[half:]])  # the first half in other company
    norms = batch_norms(model)
    rows = []
    for statistics in ("batch", "running") if norms else ("none",):
        model.eval()
        for norm in norms:
            norm.train(statistics == "batch")
        for layer, split in splits(model).items():
            maps, once, each = gradients(split, images[batch], classes[batch])
            here = attention.normalize(attention.gradient_to_map(maps, once, "gradcam"))[:half]
            maps, once_there, _ = gradients(split, images[company], classes[company])
            there = attention.normalize(attention.gradient_to_map(maps, once_there, "gradcam"))[:half]
            rows.append(
                {
                    "model": name,
                    "statistics": statistics,
                    "layer": layer,
                    "shape": list(maps.shape[1:]),
                    "largest": float(each.abs().max()),
                    "passes": difference(once, each),
                    "company": difference(here, there),
                }
            )
    return rows


def table(rows: list[dict[str, Any]], args: Args) -> figures.Table:
    """The rows as a table."""
    statistics = {"batch": "of the batch", "running": "running", "none": "no BatchNorm"}
    return figures.Table(
        "Proposition 1 under BatchNorm",
        ["model", "statistics", "layer", "one pass against B passes", "in another batch"],
        [
            [row["model"], statistics[row["statistics"]], row["layer"]]
            + [f"{row[name]:.1e}" for name in ("passes", "company")]
            for row in rows
        ],
        f"Largest differences over the largest value: of dy/dA from one backward pass for {args.batch_size} "
        "samples and from one for each, and of normalized maps of a sample in two batches. float64, weights "
        f"{args.weights}, a random last layer, without dropout.",
        labels=3,
    )


def make(args: Args) -> str:
    """Compare, write the results, and return them as a table in Markdown."""
    if unknown := [name for name in args.models if name not in ARCHITECTURES]:
        raise UserError(f"--models {' '.join(unknown)}: choose of {', '.join(ARCHITECTURES)}.")
    if args.batch_size < 4:
        raise UserError(f"--batch-size {args.batch_size}: give a number of at least 4.")
    rows = []
    for name in args.models or ARCHITECTURES:
        rows += compare(name, args)
        print(f"{name} done", file=sys.stderr)
    text = figures.markdown(table(rows, args))
    results = {"weights": args.weights, "batch_size": args.batch_size, "seed": args.seed, "rows": rows}
    make_folder(args.output)
    write_together(
        {
            args.output / "table.md": text.encode(),
            args.output / "results.json": (json.dumps(results, indent=1) + "\n").encode(),
        }
    )
    return text


def main(args: Args) -> int:
    """Compare, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    return run_at_once(lambda: print(make(args)))


if __name__ == "__main__":
    sys.exit(main(parse(Args, "batch_norm.py")))
