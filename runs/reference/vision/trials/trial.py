"""trial.py STAGE MAP LOSS LAMBDA: other maps and losses, ResNet-18 on the first of five folds of `shapes`.

    python runs/reference/vision/trials/trial.py layer4 pooled peak 1

STAGE: whose feature maps are supervised, layer1 to layer4. MAP: evidence for the margin, as a magnitude:
`pooled` (weights as in Eq. 3), `place` (gradient times map, summed over channels) or `channel` (the same,
with each channel's magnitude before the sum). LOSS: `peak` (Eq. 1: means of the map scaled from 0 to 1) or
`mass` (its share inside of the mask). Prints a line of JSON: IoU and areas by Eq. 3 at layer4 and by the
trained map, and accuracies, also where all but the target, or the target alone, is grey.
"""

import dataclasses
import json
import sys

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from camal_rl import attention, camal
from camal_rl.vision import evaluate, models, train
from camal_rl.vision.processes import Group

STAGES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
stage, kind, loss, strength, *epochs = sys.argv[1:]
evaluate.SHARES = tuple(np.linspace(0, 1, 11).tolist())


def split_after(last: str) -> None:
    """Split ResNet-18 behind this stage."""
    at = STAGES.index(last) + 1
    parts = {"features": models._stages(*STAGES[:at]), "head": models._head(*STAGES[at:], "avgpool", "fc")}
    models.ARCHITECTURES["resnet18"] = dataclasses.replace(models.ARCHITECTURES["resnet18"], **parts)


def margin_map(output: models.Output, labels: Tensor, _: str, *, create_graph: bool = True) -> Tensor:
    """The trained map, (B, h, w), not normalized; arguments are those of `models.class_cam`."""
    margin = attention.contrast(output.logits, labels)
    (slope,) = torch.autograd.grad(margin.sum(), output.feature_maps, create_graph=create_graph)
    maps = output.feature_maps if create_graph else output.feature_maps.detach()
    if kind == "channel":
        return (slope * maps).abs().mean(dim=1)
    if kind == "place":
        return (slope * maps).mean(dim=1).abs()
    return torch.einsum("bk,bkhw->bhw", slope.mean(dim=(2, 3)) / slope.shape[1], maps).abs()


def share_inside(heat: Tensor, mask_weights: Tensor) -> tuple[Tensor, Tensor]:
    """The shares of a map's mass in the mask and outside, by the arguments of `projected_alpha_beta`."""
    inside, outside = mask_weights.unbind(dim=1)
    cells, apart = heat[0].numel(), inside - outside
    # The weights of both parts sum to 1: the mask's share of the image is what makes all cells count alike.
    share = ((1 / cells - outside) * apart).sum(dim=(1, 2)) / apart.square().sum(dim=(1, 2)).clamp_min(1e-12)
    in_mask = (share[:, None, None] * inside * cells).clamp(0, 1)
    found = (heat * in_mask).sum(dim=(1, 2)) / heat.sum(dim=(1, 2)).clamp_min(1e-8)
    return found, 1 - found


split_after(stage)
train.class_cam = margin_map
if loss == "mass":
    normalize, camal.projected_alpha_beta = attention.normalize, share_inside
    attention.normalize = lambda cam: cam
options = {"epochs": int(*epochs or [16]), "camal_coef": float(strength)}
args = train.Args(weights="none", folds=5, fold=1, image_size=128, **options)
torch.set_num_threads(1)
work = train.prepare(args, torch.device("cpu"), Group())
learner = train.Learner(work, 1, None)
for _ in trange(args.epochs, unit="epoch"):
    learner.learn()
if loss == "mass":
    attention.normalize = normalize

samples, tested = work.samples, learner.tested
labels, masks, images = samples.labels[tested], samples.masks[tested], samples.images[tested]
drawn = np.random.default_rng(0).permutation(len(tested))[:60]
found = {}
for name, at, cam in (("Eq. 3", "layer4", models.class_cam), ("its own", stage, margin_map)):
    split_after(at)
    model = models.Classifier("resnet18", len(samples.classes), 128)
    model.load_state_dict(learner.model.state_dict())
    model.eval()
    evaluate.class_cam = cam
    seen = evaluate.look(model, images, labels)
    areas = evaluate.faithfulness(model, images[drawn], labels[drawn], seen.heat[drawn], 0)
    found[name] = {"iou": evaluate.alignment(seen, masks, labels)["iou"]}
    found[name] |= {area: areas[f"{area}_auc"] for area in ("removal", "insertion")}
inputs, inside = models.normalize(torch.from_numpy(images)), torch.from_numpy(masks)[:, None]
shown = {"accuracy": inputs, "target alone": inputs * inside, "surroundings alone": inputs * (1 - inside)}
for name, shifted in samples.shifted.items():
    shown[name] = models.normalize(torch.from_numpy(shifted[tested]))
for name, pixels in shown.items():
    with torch.no_grad():
        guesses = torch.cat([model(part).logits.argmax(dim=1) for part in pixels.split(64)])
    found[name] = float((guesses.numpy() == labels).mean())
print(json.dumps(found))
