"""parts.py DATA_DIR FOLDER...: accuracy of classifiers where a part of each test image is grey.

    python runs/reference/vision/parts.py data runs/vision/shapes/resnet18

Prints for each run below the folders its accuracy, in percent, as the mean over its folds: of whole test
images, where all outside of the mask is grey (target alone), and where all in the mask is (surroundings
alone).
"""

import json
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import torch

from camal_rl.run.folder import load_checkpoint
from camal_rl.vision import datasets
from camal_rl.vision.models import Classifier, normalize

load = cache(datasets.load)
data_dir, *folders = map(Path, sys.argv[1:])
found = defaultdict(list)
for folder in sorted(file.parent for place in folders for file in place.rglob("scores.json")):
    args = json.loads((folder / "args.json").read_text())["args"]
    samples = load(args["data"], data_dir, args["image_size"], args["samples"])
    folds = datasets.folds(samples.labels, args["folds"], args["seed"], samples.objects)
    tested = np.flatnonzero(folds == args["fold"] - 1)
    model = Classifier(args["model"], len(samples.classes), args["image_size"])
    model.load_state_dict(load_checkpoint(folder / "checkpoint.pt")["model"])
    model.eval()
    images = normalize(torch.from_numpy(samples.images[tested]))
    masks = torch.from_numpy(samples.masks[tested])[:, None].float()
    labels = torch.from_numpy(samples.labels[tested])
    right = []
    for shown in (images, images * masks, images * (1 - masks)):  # 0 is ImageNet's mean colour
        with torch.no_grad():
            guesses = torch.cat([model(part).logits.argmax(dim=1) for part in shown.split(64)])
        right.append((guesses == labels).float().mean().item())
    found["/".join(folder.parts[-4:-1])].append(right)
print("| run | folds | whole | target alone | surroundings alone |\n|---|---|---|---|---|")
for name, numbers in found.items():
    means = " | ".join(f"{100 * share:.1f}" for share in np.mean(numbers, axis=0))
    print(f"| {name} | {len(numbers)} | {means} |")
