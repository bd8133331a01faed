"""Are weights trained? Nearest neighbours of objects by MobileNetV2 with these weights and random ones.

python neighbours.py FOLDER WEIGHTS
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from camal_rl.vision.cutouts import cut_out, folders_in, pictures_in
from camal_rl.vision.models import Classifier, load_weights, normalize

folder, weights = sys.argv[1:]
images, labels = [], []
for label, place in enumerate(place for place in folders_in(Path(folder)) if place.name != "backgrounds"):
    for _, cut in pictures_in(place, partial(cut_out, longest=200)):
        canvas = Image.new("RGB", (224, 224), (124, 116, 104))  # ImageNet's mean
        canvas.paste(cut, ((224 - cut.width) // 2, (224 - cut.height) // 2), cut)
        images.append(np.asarray(canvas).transpose(2, 0, 1))
        labels.append(label)
classes = np.array(labels)
for start in (weights, "none"):
    torch.manual_seed(0)
    model = Classifier("mobilenet_v2", len(set(labels)))
    load_weights(model, start)
    model.eval()
    with torch.no_grad():
        parts = torch.from_numpy(np.stack(images)).split(32)
        features = torch.cat([model.features(normalize(part)).maps.mean(dim=(2, 3)) for part in parts])
    features = torch.nn.functional.normalize(features - features.mean(dim=0))
    nearest = (features @ features.T).fill_diagonal_(-2).argmax(dim=1)
    share = (classes[nearest] == classes).mean()
    print(f"{start}: {share:.1%} of {len(classes)} objects are nearest to one of their class")
print(f"the largest class: {np.bincount(classes).max() / len(classes):.1%}")
