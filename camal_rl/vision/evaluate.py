"""A fold's classifier -> scores.json: accuracy, alignment (Eq. 8), faithfulness (Sec. 4.2) on its test set.

    python -m camal_rl.vision.evaluate runs/vision/shapes/resnet18/camal

does again what training does at the end of a fold, for all folds below a folder.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read by torch's import

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import tyro

from camal_rl import __version__
from camal_rl.errors import UserError
from camal_rl.run.files import write_together
from camal_rl.vision import need_torchvision


@dataclass
class Args:
    """Measure trained classifiers on their test sets again, and write scores.json beside each."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """of folds, or above them"""
    data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("data")
    """holds the data sets, as for training"""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1, mps"""


def parse_args(arguments: list[str] | None = None) -> Args:
    """Read the command line; exits with code 2 and a message where it can't be understood."""
    return tyro.cli(Args, prog="python -m camal_rl.vision.evaluate", args=arguments)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported, so that --help and a typing mistake are answered at once
    need_torchvision()

import cv2
import numpy as np
import torch
from tqdm import tqdm

from camal_rl import attention, metrics
from camal_rl.masks import mask_weights
from camal_rl.results import media
from camal_rl.run import folder as run_folder
from camal_rl.run.command_line import run_at_once
from camal_rl.run.device import choose_device
from camal_rl.vision import datasets
from camal_rl.vision.models import CAM_METHODS, Classifier, Output, cam, normalise
from camal_rl.vision.samples import Samples

BATCH_SIZE = 64
"""Images evaluated at once."""
SHARES = tuple(np.linspace(0, 1, 21).tolist())
"""Of the pixels, that are removed or inserted."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What a classifier makes of N images."""

    probabilities: np.ndarray  # float32 (N, classes)
    heat: np.ndarray  # float32 (N, h, w), attention for the true class, in [0, 1]
    dead: np.ndarray  # bool (N,), whether attention was zero everywhere


def look(model: Classifier, images: np.ndarray, labels: np.ndarray, method: str = "gradcam") -> Seen:
    """Show images to a classifier, which must be in evaluation mode.

    Args:
        model: on whatever device.
        images: uint8 (N, 3, S, S).
        labels: int64 (N,), the true classes, for which attention is taken (Eq. 3).
        method: one of `models.CAM_METHODS`.
    """
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(images), BATCH_SIZE):
        batch = slice(start, start + BATCH_SIZE)
        with torch.no_grad():
            features = model.features(normalise(torch.from_numpy(images[batch]).to(device)))
        # Gradients are needed of what comes after the feature maps only.
        features = features._replace(maps=features.maps.requires_grad_())
        output = Output(model.head(features), features.maps)
        attended = cam(output, torch.from_numpy(labels[batch]).to(device), method, create_graph=False)
        found.append((output.logits.detach().softmax(dim=1), attended))
    probabilities, maps = (torch.cat(one) for one in zip(*found, strict=True))
    return Seen(
        probabilities.cpu().numpy(),
        attention.normalize(maps).cpu().numpy(),
        attention.is_dead(maps).cpu().numpy(),
    )


def alignment(seen: Seen, masks: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Accuracy over all samples, and measures of attention as means over those that have a mask.

    None where no sample has one.
    """
    with_mask = np.flatnonzero(masks.any(axis=(1, 2)))
    scores: dict[str, float | None] = {
        "accuracy": float((seen.probabilities.argmax(axis=1) == labels).mean()),
        "dead_map_fraction": float(seen.dead.mean()),
    }
    heat, targets = seen.heat[with_mask], masks[with_mask]
    measures = metrics.alignment(heat, targets)
    measures["iou_ceiling"] = metrics.iou_ceiling(mask_weights(targets, heat.shape[1:]), targets)
    for name in ("iou", "iou_ceiling", "pointing_game", "relevance_mass", "roc_auc"):
        values = measures[name][~np.isnan(measures[name])]
        scores[name] = float(values.mean()) if len(values) else None
    return scores


def faithfulness(
    model: Classifier, images: np.ndarray, labels: np.ndarray, heat: np.ndarray, seed: int
) -> dict[str, Any]:
    """Confidence in the true class while pixels are removed or inserted, most attended first (Sec. 4.2).

    What is removed becomes zero in the network's input, as in the paper: ImageNet's mean colour.

    Args:
        model: in evaluation mode.
        images: uint8 (N, 3, S, S).
        labels: int64 (N,), the true classes.
        heat: float32 (N, h, w) in [0, 1], attention.
        seed: of the order of pixels attended to alike.
    """
    device = next(model.parameters()).device

    @torch.no_grad()
    def predict(batch: np.ndarray) -> np.ndarray:
        logits = model(torch.from_numpy(batch).to(device)).logits
        predicted: np.ndarray = logits.softmax(dim=1).cpu().numpy()
        return predicted

    inputs = normalise(torch.from_numpy(images)).numpy()
    order = metrics.pixel_order(metrics.upsample(heat, images.shape[2:]), np.random.default_rng(seed))
    curves = metrics.perturbation_curves(
        predict, inputs, np.zeros_like(inputs), order, SHARES, batch_size=BATCH_SIZE
    )
    removal, insertion = (one[:, np.arange(len(labels)), labels].T for one in curves)  # (N, S)
    return {
        "shares": list(SHARES),
        "removal": removal.tolist(),
        "insertion": insertion.tolist(),
        "removal_auc": float(metrics.area(removal, SHARES).mean()),
        "insertion_auc": float(metrics.area(insertion, SHARES).mean()),
    }


def one_of_each_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """A sample of each class that occurs, drawn with this seed: indices, int (C,) (paper, Appendix C)."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(np.flatnonzero(labels == one)) for one in np.unique(labels)])


def evaluate(
    model: Classifier, samples: Samples, tested: np.ndarray, method: str = "gradcam", seed: int = 0
) -> tuple[dict[str, Any], np.ndarray]:
    """Scores of a classifier on its test set, and a picture of its attention, uint8 (H, W, 3).

    Args:
        model: on whatever device; put into evaluation mode here.
        samples: all of the data set.
        tested: int (N,), indices of the test set.
        method: of attention.
        seed: of which samples are drawn, and of the order of pixels attended to alike.
    """
    model.eval()
    images, masks, labels = samples.images[tested], samples.masks[tested], samples.labels[tested]
    seen = look(model, images, labels, method)
    scores: dict[str, Any] = {"samples": len(tested), **alignment(seen, masks, labels)}
    scores["shifted"] = {
        name: alignment(look(model, shifted[tested], labels, method), masks, labels)
        for name, shifted in samples.shifted.items()
    }
    drawn = one_of_each_class(labels, seed)
    scores["faithfulness"] = faithfulness(model, images[drawn], labels[drawn], seen.heat[drawn], seed)
    size = seen.heat.shape[1:]
    small_masks = np.array(
        [cv2.resize(one.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA) for one in masks]
    )
    scores["attention_mean"] = seen.heat.mean(axis=0).tolist()
    scores["attention_variance"] = seen.heat.var(axis=0).tolist()
    scores["mask_variance"] = small_masks.var(axis=0).tolist()
    shown = drawn[np.argsort(~masks[drawn].any(axis=(1, 2)), kind="stable")][:4]  # with a mask first
    strips = [
        media.attention_strip(
            np.ascontiguousarray(images[index].transpose(1, 2, 0)),
            masks[index],
            {"": seen.heat[index]},
            caption=f"{samples.classes[labels[index]]}: {samples.names[tested[index]]}",
            subject="image",
        )
        for index in shown
    ]
    return scores, media.stack_strips(strips)


def write(folder: Path, scores: Mapping[str, Any], picture: np.ndarray) -> None:
    """Write scores.json and media/overlay.png into the folder of a fold."""
    (folder / "media").mkdir(exist_ok=True)
    write_together(
        {
            folder / "scores.json": (json.dumps(scores, indent=1) + "\n").encode(),
            folder / "media" / "overlay.png": media.encode_png(picture),
        }
    )


def about(described: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What scores.json says of the run that it is of, from the run's description."""
    run, training = described["run"], described["training"]
    return {
        "version": __version__,
        **{name: run[name] for name in ("data", "model", "method", "fold", "folds", "seed")},
        **{name: training[name] for name in ("epochs", "weights")},
    }


def below(folders: Sequence[Path]) -> list[Path]:
    """The folders of folds among these and below them, in order.

    Raises:
        UserError: one holds none.
    """
    found: list[Path] = []
    for folder in folders:
        folds = sorted(file.parent for file in folder.rglob("args.json"))
        if not folds:
            raise UserError(
                f"{folder} holds no trained fold (there is no args.json below it): give a folder such as "
                "runs/vision/shapes/resnet18/camal."
            )
        found += folds
    return found


def evaluate_fold(folder: Path, load: Callable[[str, int, int], Samples], device: torch.device) -> None:
    """Measure a trained fold on its test set again.

    Args:
        folder: of the fold.
        load: gives a data set by its name, the side of its images and their number, if it is generated.
        device: to compute on.

    Raises:
        UserError: it is not a fold, or it has not been trained to the end.
    """
    with run_folder.lock(folder, "evaluate"):
        described = run_folder.read_args_file(folder, ("run", "training", "attention", "machine"))
        run, training, attending = (described[name] for name in ("run", "training", "attention"))
        if attending["attention"] not in CAM_METHODS:
            raise UserError(
                f"{folder}/args.json names attention {attending['attention']}, which there is not."
            )
        checkpoint = run_folder.load_checkpoint(folder / "checkpoint.pt")
        if checkpoint is None or checkpoint["epoch"] < training["epochs"]:
            raise UserError(f"{folder} has not been trained to the end: run its training again first.")
        samples = load(run["data"], training["image_size"], run["samples"])
        model = Classifier(run["model"], len(samples.classes), training["image_size"]).to(device)
        model.load_state_dict(checkpoint["model"])
        tested = np.flatnonzero(datasets.folds(samples.labels, run["folds"], run["seed"]) == run["fold"] - 1)
        scores, picture = evaluate(model, samples, tested, attending["attention"], run["seed"])
        timing = {"seconds_per_step": checkpoint["seconds_per_step"]}
        write(folder, about(described) | scores | timing, picture)


def main(args: Args) -> int:
    """Evaluate, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""

    @lru_cache(maxsize=1)  # folds of a data set come after each other
    def load(data: str, image_size: int, samples: int) -> Samples:
        return datasets.load(data, args.data_dir, image_size, samples)

    def run() -> None:
        device = choose_device(args.device)
        left_out = []
        folders = below(args.folders)
        for folder in tqdm(folders, unit="fold", disable=None):
            try:
                evaluate_fold(folder, load, device)
            except UserError as mistake:
                left_out.append(mistake)
                continue
            print(folder / "scores.json")
        if len(left_out) == len(folders):
            raise left_out[0]
        for reason in left_out:
            print(f"camal_rl: left out: {reason}", file=sys.stderr)

    return run_at_once(run, "Folds named above have new scores.")


if __name__ == "__main__":
    sys.exit(main(ARGS))
