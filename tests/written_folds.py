"""What folds of a vision experiment leave behind, written by hand, for the tests of what reads it."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHARES = [0.0, 0.5, 1.0]
ACCURACY = {
    "camal": (0.9, 0.8, 1.0, 0.9, 0.9),
    "vanilla": (0.8, 0.7, 0.9, 0.85, 0.7),  # lower in each fold
    "prior": (0.8, 0.75, 0.8, 0.92, 0.93),  # lower in three folds, and on average
    "suppress": (0.91, 0.82, 1.0, 0.95, 0.99),  # higher but for a tie
}
IOU = {
    "camal": (0.5, 0.6, 0.55, 0.5, 0.6),
    "vanilla": (0.1, 0.1, 0.2, 0.1, 0.1),
    "prior": (0.4, 0.45, 0.35, 0.52, 0.63),
    "suppress": (0.51, 0.62, 0.58, 0.54, 0.65),
}


def identity(data: str, model: str, method: str, fold: int) -> dict[str, Any]:
    """Which fold it is, as both of its files say."""
    return {"data": data, "model": model, "method": method, "fold": fold, "folds": 5, "seed": 1}


def scores_of(
    data: str, model: str, method: str, fold: int, accuracy: float, iou: float | None
) -> dict[str, Any]:
    """What a fold's scores.json holds."""
    alignment = {
        "iou_mask": None if iou is None else 0.75,
        "pointing_game": 0.8,
        "relevance_mass": 0.5,
        "roc_auc": 0.9,
        "dead_map_fraction": 0.125 if method == "vanilla" else 0.0,
    }
    high = 0.5 if method == "camal" else 0.75
    return {
        "version": "0.1.0",
        **identity(data, model, method, fold),
        "epochs": 500,
        "weights": "none",
        "samples": 120,
        "accuracy": accuracy,
        "iou": iou,
        **alignment,
        "shifted": {},
        "faithfulness": {
            "shares": SHARES,
            "removal": [[1.0, high, 0.0], [1.0, high - 0.25, 0.0]],
            "insertion": [[0.0, 0.5, 1.0], [0.0, 1.0, 1.0]],
            "removal_auc": 0.5,
            "insertion_auc": 0.6,
        },
        "attention_mean": [[0.5, 0.5]],
        "attention_variance": [[0.1, 0.2 if fold % 2 else 0.0]],
        "mask_variance": [[0.25, 0.0]],
        "seconds_per_step": 0.1,
    }


def args_of(data: str, model: str, method: str, fold: int, **changes: Any) -> dict[str, Any]:
    """What a fold's args.json holds."""
    options = identity(data, model, method, fold) | {
        "samples": 1200,
        "epochs": 500,
        "weights": "none",
        "image_size": 224,
        "freeze_batch_norm": False,
        "camal_coef": 1.0,
        "attention": "gradcam",
        "empty_mask": "ignore",
        "prior": None,
        "precision": "fp32",
    }
    assert changes.keys() <= options.keys()
    return {"version": "0.1.0", "args": options | changes}


def write(runs: Path, title: str, scores: dict[str, Any], **options: Any) -> Path:
    """A fold's folder with scores.json and, of these options, args.json."""
    folder = runs / title
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(json.dumps(scores))
    data, model, method, fold = title.split("/")
    described = args_of(data, model, method, int(fold.removeprefix("fold") or 0), **options)
    (folder / "args.json").write_text(json.dumps(described))
    return folder


def write_cell(
    runs: Path, data: str, model: str, method: str, numbers: Sequence[int] = range(1, 6), **changes: Any
) -> None:
    for fold in numbers:
        one = scores_of(data, model, method, fold, ACCURACY[method][fold - 1], IOU[method][fold - 1])
        write(runs, f"{data}/{model}/{method}/fold{fold}", one | copy.deepcopy(changes))


def shift(accuracy: float, iou: float) -> dict[str, float]:
    return {"accuracy": accuracy, "iou": iou, "iou_mask": 0.75, "dead_map_fraction": 0.25}
