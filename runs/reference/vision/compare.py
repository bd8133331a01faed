"""compare.py FOLDER NAME: means over folds of all runs below <data>/<model>, tested beside the named one.

    python runs/reference/vision/compare.py runs/vision/shapes/resnet18 vanilla

Prints a table in percent: mean ± sample standard deviation over folds. ▲ or ▼ behind it says that it is
significantly higher or lower than the named run's, in the folds that both have (one-tailed Wilcoxon, p <
0.05).
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
    for kind in KINDS:
        for of, words in MAPS.items():
            found[f"{kind.replace('_', ', ')}, {words}"] = scores["maps"][of][kind]
    return found


folder, beside = Path(sys.argv[1]), sys.argv[2]
runs: dict[str, dict[str, dict[str, float]]] = {}
for file in sorted(folder.glob("*/fold*/scores.json")):
    if '"maps"' in file.read_text():  # not in scores of before there were two
        runs.setdefault(file.parts[-3], {})[file.parts[-2]] = measures(file)
print(f"| | {' | '.join(f'{name} ({len(folds)})' for name, folds in runs.items())} |")
print("|---" * (len(runs) + 1), "|", sep="")
for measure in next(iter(runs[beside].values())):
    cells = [measure]
    for name, folds in runs.items():
        values = 100 * np.array([scores[measure] for scores in folds.values()])
        cell = f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")
        both = [fold for fold in folds if fold in runs[beside]]
        x, y = (np.array([runs[run][fold][measure] for fold in both]) for run in (name, beside))
        cells.append(cell + " ▲" * (stats.wilcoxon(x, y) < 0.05) + " ▼" * (stats.wilcoxon(y, x) < 0.05))
    print(f"| {' | '.join(cells)} |")
