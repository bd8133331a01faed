"""What trained and evaluated runs leave behind, written by hand, for the tests of what reads it."""

import json
from pathlib import Path
from typing import Any

STEPS = 1000


def scores_of(env: str, method: str, seed: int, total: float, iou: float | None) -> dict[str, Any]:
    """What scores.json holds, as far as a report reads it; a return of 100 is the reference."""
    return {
        "format": 1,
        "env": env,
        "method": method,
        "name": method,
        "seed": seed,
        "steps": STEPS,
        "return": {"mean": total},
        "iou": iou,
        "iou_mask": None if iou is None else 0.75,
        "iou_constant": None if iou is None else 0.05,
        "iou_gradcam": None if iou is None else 0.1,
        "dead_map_fraction": 0.25,
        "episodes": [{"return": total}, {"return": total}],
        "settings": {
            "episodes": 2,
            "seed": 0,
            "greedy": False,
            "max_steps": 2100,
            "tau": 0.7,
            "versions": {"torch": "2.0"},
        },
        "training": {
            "args": {"env": env, "method": method, "seed": seed, "total_timesteps": STEPS, "gamma": 0.99},
            "definition": {"scenario": "a.cfg", "random_return": 0.0, "reference_return": 100.0},
        },
        "undefined": {"iou": "no target was ever in view"} if iou is None else {},
    }


def write_scores(
    runs: Path, title: str, total: float = 50.0, iou: float | None = 0.5, **changes: Any
) -> Path:
    """A run's folder with scores; changes are given by dotted path, with __ for each dot."""
    env, method, name = title.split("/")
    scores = scores_of(env, method, int(name.removeprefix("seed")), total, iou)
    for path, value in changes.items():
        *groups, last = path.split("__")
        place = scores
        for group in groups:
            place = place[group]
        place[last] = value
    folder = runs / title
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


def write_curves(folder: Path, points: dict[str, list[tuple[int, float]]]) -> None:
    """What a training logged."""
    rows = [f"{tag},{step},{value}" for tag, values in points.items() for step, value in values]
    (folder / "curves.csv").write_text("\n".join(["tag,step,value", *rows]) + "\n")


RETURNS = {"A/camal": (20, 40), "A/vanilla": (10, 30), "B/camal": (90, 50), "B/vanilla": (95, 60)}
IOUS = {"A/camal": (0.2, 0.4), "A/vanilla": (0.1, 0.3), "B/camal": (0.3, 0.5), "B/vanilla": (0.1, 0.2)}


def write_study(folder: Path) -> Path:
    """Two environments, two methods, two seeds."""
    for cell in RETURNS:
        for seed, (total, iou) in enumerate(zip(RETURNS[cell], IOUS[cell], strict=True), 1):
            at = write_scores(folder, f"{cell}/seed{seed}", total, iou)
            steps = range(10, STEPS + 1, 10)
            points = {
                "charts/episodic_return": [(step, total * step / STEPS) for step in steps],
                "camal/iou": [(step, iou * step / STEPS) for step in steps],
                "losses/entropy": [(1, 0.5)],
            }
            write_curves(at, points)
    return folder
