"""compare.py FOLDER NAME...: means over folds of all runs below <data>/<model>, tested beside the named ones.

    python runs/reference/vision/compare.py runs/vision/shapes/resnet18 vanilla camal

Prints a table in percent: mean ± sample standard deviation. Behind it, +vanilla or -vanilla says that it is
significantly higher or lower than that run's in the folds that both have (one-tailed Wilcoxon, p < 0.05).
"""

import json
import sys
from pathlib import Path

import numpy as np

from camal_rl import stats

MAPS = {"gradcam": "logit", "diffgradcam": "margin"}
KINDS = ("iou", "removal", "insertion", "removal_blurred", "insertion_blurred")


def measures(file: Path) -> dict[str, float]:
    """The numbers of a fold by name."""
    scores = json.loads(file.read_text())
    found = {"accuracy": scores["accuracy"]}
    found |= {shift: part["accuracy"] for shift, part in scores["shifted"].items()}
    found |= {f"{kind}, {MAPS[of]}": scores["maps"][of][kind] for kind in KINDS for of in MAPS}
    return found


def main(folder: Path, beside: list[str]) -> None:
    """Print the table."""
    runs: dict[str, dict[str, dict[str, float]]] = {}
    for file in sorted(folder.glob("*/fold*/scores.json")):
        runs.setdefault(file.parts[-3], {})[file.parts[-2]] = measures(file)
    names = list(next(iter(next(iter(runs.values())).values())))
    print("|".join(["| measure", *(f"{name} ({len(folds)})" for name, folds in runs.items())]), "|")
    print("|---" * (len(runs) + 1), "|", sep="")
    for measure in names:
        cells = []
        for name, folds in runs.items():
            values = 100 * np.array([scores[measure] for scores in folds.values()])
            cell = f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")
            for other in beside:
                both = [fold for fold in folds if fold in runs[other]]
                x, y = (np.array([runs[run][fold][measure] for fold in both]) for run in (name, other))
                higher, lower = stats.wilcoxon(x, y) < 0.05, stats.wilcoxon(y, x) < 0.05
                cell += f" {'+' if higher else '-'}{other}" if higher or lower else ""
            cells.append(cell)
        print("|".join([f"| {measure}", *cells]), "|")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
