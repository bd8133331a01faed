"""A fold's classifier -> scores.json: accuracy, alignment (Eq. 8), faithfulness (Sec. 4.2) on its test set.

    python -m camal_rl.vision.evaluate runs/vision/shapes/resnet18/camal

does again what training does at the end of a fold, for all folds below a folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import tyro

from camal_rl import __version__
from camal_rl.errors import UserError
from camal_rl.run.command_line import parse, run_at_once
from camal_rl.run.files import checksum, write_together
from camal_rl.vision import need_torchvision


@dataclass
class Args:
    """Measure trained classifiers on their test sets again, and write scores.json beside each."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """folders of folds, or above them"""
    data_dir: Path = Path("data")
    """folder that holds the data sets, as for training"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""


if __name__ == "__main__":
    ARGS = parse(Args, "python -m camal_rl.vision.evaluate")  # before torch is imported, for --help
    need_torchvision()

import cv2
import numpy as np
import torch
from tqdm import tqdm

from camal_rl import attention, metrics
from camal_rl.masks import mask_weights
from camal_rl.results import media
from camal_rl.run import folder as run_folder
from camal_rl.run.device import allow_tf32, choose_device
from camal_rl.vision import datasets
from camal_rl.vision.models import Classifier, Output, class_cam, normalize
from camal_rl.vision.samples import Samples

BATCH_SIZE = 64
"""Images evaluated at once."""
SHARES = tuple(np.linspace(0, 1, 21).tolist())
"""Shares of the pixels that are removed or inserted."""
MAPS = ("gradcam", "diffgradcam")
"""Kinds of attention that every classifier is measured by, whichever it was trained with: evidence for the
true logit (Eq. 3), and for its margin over the others, which is all that softmax depends on."""
MOST = 30
"""Samples of a test set whose faithfulness is measured by each of MAPS."""


@dataclass(frozen=True, eq=False)
class Seen:
    """Predictions and attention of a classifier on N images."""

    probabilities: np.ndarray  # float32 (N, classes)
    heat: np.ndarray  # float32 (N, h, w), attention for the true class, in [0, 1]
    dead: np.ndarray  # bool (N,), True where attention was zero everywhere


def look(model: Classifier, images: np.ndarray, labels: np.ndarray, method: str = "gradcam") -> Seen:
    """Show images, uint8 (N, 3, S, S), to a classifier in evaluation mode.

    Labels are the true classes, int64 (N,), for which attention is taken (Eq. 3).
    """
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(images), BATCH_SIZE):
        batch = slice(start, start + BATCH_SIZE)
        with torch.no_grad():
            features = model.features(normalize(torch.from_numpy(images[batch]).to(device)))
        # Gradients are needed in the second part only.
        features = features._replace(maps=features.maps.requires_grad_())
        output = Output(model.head(features), features.maps)
        cam = class_cam(output, torch.from_numpy(labels[batch]).to(device), method, create_graph=False)
        found.append((output.logits.detach().softmax(dim=1), cam))
    probabilities, cams = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Seen(
        probabilities.cpu().numpy(),
        attention.normalize(cams).cpu().numpy(),
        attention.is_dead(cams).cpu().numpy(),
    )


def alignment(seen: Seen, masks: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Accuracy over all samples, and measures of attention as means over those that have a mask.

    A mean over no sample is None.
    """
    with_mask = np.flatnonzero(masks.any(axis=(1, 2)))
    scores: dict[str, float | None] = {
        "accuracy": float((seen.probabilities.argmax(axis=1) == labels).mean()),
    }
    heat, targets = seen.heat[with_mask], masks[with_mask]
    measures = metrics.alignment(heat, targets)
    measures["iou_mask"] = metrics.iou_mask(mask_weights(targets, heat.shape[1:]), targets)
    measures["dead_map_fraction"] = seen.dead[with_mask].astype(float)
    for name in ("iou", "iou_mask", "pointing_game", "relevance_mass", "roc_auc", "dead_map_fraction"):
        values = measures[name][~np.isnan(measures[name])]
        scores[name] = float(values.mean()) if len(values) else None
    return scores


def faithfulness(
    model: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    heat: np.ndarray,
    seed: int,
    blurred: bool = False,
) -> dict[str, Any]:
    """Confidence in the true class while pixels are removed or inserted, most attended first (Sec. 4.2).

    A removed pixel becomes zero in the network's input, as in the paper: ImageNet's mean colour. Or it is
    blurred. Arguments are those of `look`, attention, float32 (N, h, w), and a seed for the order of pixels
    attended to alike.
    """
    device = next(model.parameters()).device

    @torch.no_grad()
    def predict(batch: np.ndarray) -> np.ndarray:
        logits = model(torch.from_numpy(batch).to(device)).logits
        predicted: np.ndarray = logits.softmax(dim=1).cpu().numpy()
        return predicted

    inputs = normalize(torch.from_numpy(images)).numpy()
    reference = np.zeros_like(inputs)
    if blurred:
        reference = normalize(torch.from_numpy(metrics.blur(images, images.shape[2] / 12))).numpy()
    order = metrics.pixel_order(metrics.upsample(heat, images.shape[2:]), np.random.default_rng(seed))
    curves = metrics.perturbation_curves(predict, inputs, reference, order, SHARES, batch_size=BATCH_SIZE)
    removal, insertion = (curve[:, np.arange(len(labels)), labels].T for curve in curves)  # (N, S)
    return {
        "shares": list(SHARES),
        "removal": removal.tolist(),
        "insertion": insertion.tolist(),
        "removal_auc": float(metrics.area(removal, SHARES).mean()),
        "insertion_auc": float(metrics.area(insertion, SHARES).mean()),
    }


def by_map(
    model: Classifier,
    images: np.ndarray,
    masks: np.ndarray,
    labels: np.ndarray,
    seed: int,
    known: Mapping[str, Seen],
) -> dict[str, dict[str, float | None]]:
    """IoU over a test set, and faithfulness of up to MOST of its samples, by each of MAPS; some are known."""
    drawn = np.random.default_rng(seed).permutation(len(labels))[:MOST]
    found: dict[str, dict[str, float | None]] = {}
    for name in MAPS:
        seen = known[name] if name in known else look(model, images, labels, name)
        found[name] = {"iou": alignment(seen, masks, labels)["iou"]}
        for ending, blurred in (("", False), ("_blurred", True)):
            of_drawn = (images[drawn], labels[drawn], seen.heat[drawn])
            areas = faithfulness(model, *of_drawn, seed, blurred)
            found[name] |= {f"{kind}{ending}": areas[f"{kind}_auc"] for kind in ("removal", "insertion")}
    return found


def one_of_each_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """Draw a sample of each class that occurs: indices, int (C,) (paper, Appendix C)."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(np.flatnonzero(labels == label)) for label in np.unique(labels)])


def measure(
    model: Classifier, samples: Samples, tested: np.ndarray, method: str
) -> tuple[Seen, dict[str, dict[str, float | None]]]:
    """Predictions on a test set, and `alignment` by shift, "" for none. Sets the model to evaluation mode."""
    model.eval()
    labels, masks = samples.labels[tested], samples.masks[tested]
    seen = {
        shift: look(model, images[tested], labels, method)
        for shift, images in {"": samples.images, **samples.shifted}.items()
    }
    return seen[""], {shift: alignment(found, masks, labels) for shift, found in seen.items()}


def evaluate(
    model: Classifier, samples: Samples, tested: np.ndarray, method: str = "gradcam", seed: int = 0
) -> tuple[dict[str, Any], np.ndarray]:
    """Scores of a classifier on its test set, and a picture of its attention, uint8 (H, W, 3).

    `tested` are the indices of the test set, int (N,). The seed decides which samples are drawn.
    """
    images, masks, labels = samples.images[tested], samples.masks[tested], samples.labels[tested]
    seen, measured = measure(model, samples, tested, method)
    scores: dict[str, Any] = {"samples": len(tested), **measured.pop(""), "shifted": measured}
    drawn = one_of_each_class(labels, seed)
    scores["faithfulness"] = faithfulness(model, images[drawn], labels[drawn], seen.heat[drawn], seed)
    scores["maps"] = by_map(model, images, masks, labels, seed, {method: seen})
    width_height = seen.heat.shape[:0:-1]
    small_masks = np.array(
        [cv2.resize(mask.astype(np.float32), width_height, interpolation=cv2.INTER_AREA) for mask in masks]
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


def write(
    folder: Path,
    options: Mapping[str, Any],
    seconds_per_step: float,
    scores: Mapping[str, Any],
    picture: np.ndarray,
) -> None:
    """Write scores.json and media/overlay.png into the folder of a fold, trained with these options."""
    about = ("data", "model", "method", "fold", "folds", "seed", "epochs", "weights")
    content = {"version": __version__, **{name: options[name] for name in about}, **scores}
    content["seconds_per_step"] = seconds_per_step
    write_together(
        {
            folder / "scores.json": (json.dumps(content, indent=1) + "\n").encode(),
            folder / "media" / "overlay.png": media.encode_png(picture),
        }
    )


def below(folders: Sequence[Path]) -> list[Path]:
    """Return the folders of folds among these and below them, in order."""
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
    """Measure a trained fold on its test set again; `load` takes the data set's name, image size and number.

    Raises:
        UserError: it is no fold of classifiers, or it has not been trained to the end.
    """
    with run_folder.lock(folder, "evaluate"):
        options = run_folder.read_args_file(folder, ("args",))["args"]
        if "fold" not in options:
            raise UserError(
                f"{folder} holds no fold of classifiers: agents have python -m camal_rl.evaluate."
            )
        checkpoint = run_folder.load_checkpoint(folder / "checkpoint.pt")
        if checkpoint is None or checkpoint["epoch"] < options["epochs"]:
            raise UserError(f"{folder} has not been trained to the end: run its training again first.")
        allow_tf32(options["precision"] == "tf32")  # as in training
        samples = load(options["data"], options["image_size"], options["samples"])
        if "pictures" in options and options["pictures"] != checksum(samples.images.data):
            raise UserError(f"{folder} was trained on other cut-outs: give their --data-dir.")
        model = Classifier(options["model"], len(samples.classes), options["image_size"]).to(device)
        model.load_state_dict(checkpoint["model"])
        folds = datasets.folds(samples.labels, options["folds"], options["seed"], samples.objects)
        tested = np.flatnonzero(folds == options["fold"] - 1)
        scored = evaluate(model, samples, tested, options["attention"], options["seed"])
        write(folder, options, checkpoint["seconds_per_step"], *scored)


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
                print(folder / "scores.json")
            except UserError as mistake:
                left_out.append(mistake)
        if len(left_out) == len(folders):
            raise left_out[0]
        for reason in left_out:
            print(f"camal_rl: left out: {reason}", file=sys.stderr)

    return run_at_once(run, "Folds named above have new scores.")


if __name__ == "__main__":
    sys.exit(main(ARGS))
