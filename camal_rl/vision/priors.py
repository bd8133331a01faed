"""Images and class names -> pseudo-discriminative regions as CLIP sees them, for `--method prior`.

Regions are soft maps, Grad-CAM on CLIP's image encoder, where the target is the cosine similarity of an image
with a prompt that names its class (paper, Appendix B, after Petryk et al. 2022).

    python -m camal_rl.vision.priors --data pet --clip-model RN50 --clip-weights FILE --output regions.npz
    python -m camal_rl.vision.priors --data pet --regions regions.npz --study pilot

The first makes regions; the second is the pilot study (Figure 8), which compares regions with the masks, also
those of another method in a folder of grey PNG files. CLIP's weights are read from a file and never fetched.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from camal_rl import __version__
from camal_rl.errors import UserError
from camal_rl.run.command_line import Positive, parse, run_at_once
from camal_rl.run.files import make_folder, write_together, write_whole
from camal_rl.vision.samples import GENERATED, DataName, Samples


@dataclass
class Args:
    """Make regions that tell CLIP a class (--output), or compare regions with masks (--study), or both."""

    data: DataName = "shapes"
    """data set"""
    data_dir: Path = Path("data")
    """folder that holds the data sets, as for training"""
    samples: Positive = GENERATED
    """number of images to generate, as for training"""
    image_size: Positive = 224
    """side of the images in pixels; CLIP sees them at its own size"""
    clip_model: str = "RN50"
    """open_clip's name of a CLIP with a ResNet or ViT, such as RN50, ViT-B-16"""
    clip_weights: str | None = None
    """file of its trained weights, or none for random ones, to try out the command"""
    clip_tag: str | None = None
    """open_clip's name of these weights, such as openai; asked for where it matters"""
    prompt: str = "a photo of a {class}"
    """text that CLIP is asked for, with {class} in it"""
    regions: Path | None = None
    """regions to study instead of CLIP's: a file of --output, or a folder of grey PNG files"""
    output: Path | None = None
    """file to write regions to, for --prior of camal_rl.vision.train"""
    study: Path | None = None
    """folder to write the comparison with masks to (Figure 8)"""
    batch_size: Positive = 32
    """images that CLIP sees at once"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""


if __name__ == "__main__":
    ARGS = parse(Args, "python -m camal_rl.vision.priors")  # before torch is imported: --help answers at once

import io
import json
import math
import textwrap
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from camal_rl import metrics
from camal_rl.attention import class_activation_map, normalize
from camal_rl.masks import mask_weights
from camal_rl.results import figures, media
from camal_rl.results.study import some
from camal_rl.run.device import choose_device
from camal_rl.vision import datasets
from camal_rl.vision.clip import Clip, load_clip, prompts, split
from camal_rl.vision.pictures import decode, levels

# ---------------------------------------------------------------------------------------------------- regions


def regions(clip: Clip, images: np.ndarray, prompts: Sequence[str], batch_size: int = 32) -> np.ndarray:
    """Regions in which CLIP sees what each prompt says: float32 (N, h, w) in [0, 1].

    Grad-CAM (Eq. 3) at the maps of `clip.split`, for the cosine similarity of the embeddings of each image,
    uint8 RGB (N, 3, S, S), and its prompt. A map is all zero where the ReLU leaves nothing.
    """
    distinct = list(dict.fromkeys(prompts))
    texts = clip.texts(distinct)  # (n, D)
    rows = torch.tensor([distinct.index(prompt) for prompt in prompts], device=clip.device)
    found = []
    for start in tqdm(range(0, len(images), batch_size), "regions", unit="batch", disable=None):
        batch = slice(start, start + batch_size)
        found.append(normalize(_cams(clip, images[batch], texts[rows[batch]])).cpu().numpy())
    return np.concatenate(found)


def _cams(clip: Clip, images: np.ndarray, texts: Tensor) -> Tensor:
    """Maps that are not normalized, (B, h, w), for the embedding of a text each, (B, D)."""
    with torch.no_grad():  # gradients are needed in the second part only
        feature_maps, rest = split(clip.model.visual, clip.pixels(images))

    def similarity(maps: Tensor) -> Tensor:
        return F.cosine_similarity(rest(maps), texts)

    return class_activation_map(feature_maps, similarity, create_graph=False)


def dead(maps: np.ndarray) -> np.ndarray:
    """Return True for regions that are zero everywhere: bool (N,)."""
    return np.logical_not(maps.any(axis=(1, 2)))


def save_regions(path: Path, maps: np.ndarray, names: Sequence[str]) -> None:
    """Write regions, float32 (N, h, w) in [0, 1], with the names of their samples, for `load_regions`."""
    _check(maps, np.array(names))
    content = io.BytesIO()
    np.savez_compressed(content, maps=maps, names=np.array(names))
    write_whole(path, content.getvalue())


def load_regions(path: Path, names: Sequence[str]) -> np.ndarray:
    """Regions of these samples, in this order: float32 (N, h, w) in [0, 1].

    Args:
        path: a file of `save_regions`; or a folder of grey PNG files of 8 or 16 bits, black for 0 and white
            for 1, all of one size, whichever. `<folder>/images/Abyssinian_1.png` is the map of the sample
            `images/Abyssinian_1`, after `datasets.load` has resized and cropped the image.
        names: names of the samples. There may be regions of others as well.

    Raises:
        UserError: there is no such file or folder, a sample's region is missing, or it holds something else.
    """
    known = _read_folder(path, names) if path.is_dir() else _read_file(path)
    if missing := [name for name in names if name not in known]:
        raise UserError(
            f"{path} lacks the regions of {len(missing)} of {len(names)} samples: {some(missing)}. "
            "It may be of another data set."
        )
    maps = [known[name] for name in names]
    for name, region in zip(names, maps, strict=True):
        if region.shape != maps[0].shape:
            raise UserError(f"{path}: regions must be of one size: {name}'s is not that of {names[0]}.")
    return np.stack(maps)


def _read_file(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise UserError(
            f"there are no regions in {path}: make the file with python -m camal_rl.vision.priors --output, "
            "or give a folder of grey PNG files."
        )
    try:
        # From bytes, because NumPy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
            maps, names = content["maps"], content["names"]
        _check(maps, names)
    except Exception as error:  # a damaged file makes NumPy raise all kinds
        reason = textwrap.shorten(str(error), 100, placeholder=" ...") or type(error).__name__
        raise UserError(
            f"{path} is damaged, or not a file of regions ({reason}): make it again with "
            "python -m camal_rl.vision.priors --output."
        ) from error
    return dict(zip(names.tolist(), maps, strict=True))


def _check(maps: np.ndarray, names: np.ndarray) -> None:
    if maps.dtype != np.float32 or maps.ndim != 3 or not maps.size:
        raise ValueError(f"maps must be float32 of shape (N, h, w), got {maps.dtype} of shape {maps.shape}")
    if names.dtype.kind != "U" or names.shape != maps.shape[:1] or len(np.unique(names)) < len(names):
        raise ValueError(f"each of the {len(maps)} maps needs a name of its own")
    if not (maps.min() >= 0 and maps.max() <= 1):  # nor is NaN
        raise ValueError(f"maps must lie in [0, 1], got values from {maps.min()} to {maps.max()}")


def _read_folder(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    known = {}
    for name in names:
        if (file := folder / f"{name}.png").is_file():
            grey = decode(file, levels, "a soft map is a grey PNG file")
            known[name] = np.asarray(grey / (255 if grey.dtype == np.uint8 else 65535), np.float32)
    brightest = max((region.max() for region in known.values()), default=0.0)
    if 0 < brightest < 0.004:  # 1 of 255, or 255 of 65535
        raise UserError(
            f"{folder}: the brightest pixel of all maps is {brightest:.2g}: save 1 as white, 255 or 65535."
        )
    return known


# ------------------------------------------------------------------------- the pilot study: regions and masks

MEASURES = {
    "iou": f"IoU of the region, the map above {metrics.TAU:g}",
    "iou_mask": "The same of the mask itself, at the map's resolution",
    "covered": "Share of the mask that the region covers",
    "spurious": "Share of the region outside the mask",
    "parts": "Connected parts of the region",
}
"""Measures of `overlap`, and their names in the study's table."""
PICTURED = 6
"""Samples in the study's picture."""


def overlap(heat: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """MEASURES of how well a map agrees with its mask.

    A region is where a map, upsampled to its mask, is above `metrics.TAU`. Parts of it that touch at a corner
    are connected. Where there is no region, as with a map that is zero, the share outside is NaN.

    Args:
        heat: float32 (h, w) in [0, 1].
        mask: uint8 {0, 1} (H, W), not empty.
    """
    region, inside = metrics.upsample(heat[None], mask.shape)[0] > metrics.TAU, mask > 0
    size, shared = np.count_nonzero(region), np.count_nonzero(region & inside)
    weights = mask_weights(mask[None], (heat.shape[0], heat.shape[1]))
    return {
        "iou": shared / np.count_nonzero(region | inside),
        "iou_mask": float(metrics.iou_mask(weights, mask[None])[0]),
        "covered": shared / np.count_nonzero(inside),
        "spurious": (size - shared) / size if size else math.nan,
        "parts": cv2.connectedComponents(region.astype(np.uint8), connectivity=8)[0] - 1,
    }


def study(samples: Samples, maps: np.ndarray, about: Mapping[str, str]) -> dict[str, bytes]:
    """The pilot study's files by name: study.json, study.md, and regions.png, in which IoU falls downwards.

    Maps are float32 (N, h, w) in [0, 1], of all samples. Those without a target, such as normal images of
    BUSI, are left out. `about` says where the maps come from.
    """
    targets = np.flatnonzero(samples.masks.any(axis=(1, 2)))
    if not len(targets):
        raise UserError("no sample has a mask, so there is nothing to compare regions with.")
    bar = tqdm(targets, "study", unit="image", disable=None)
    measured = pd.DataFrame(
        [overlap(maps[index], samples.masks[index]) for index in bar],
        index=[samples.names[index] for index in targets],
    )
    summary = measured.agg(["mean", "std", "count"])
    content = {
        "version": __version__,
        **about,
        "tau": metrics.TAU,
        "map_size": list(maps.shape[1:]),
        "samples": len(targets),
        "samples_without_target": len(maps) - len(targets),
        "dead_map_fraction": float(dead(maps[targets]).mean()),
        "measures": json.loads(summary.to_json()),  # null for NaN
        "by_sample": json.loads(measured.to_json()),
    }
    order = np.argsort(-measured["iou"].to_numpy(), kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, PICTURED).round().astype(int))]
    strips = [_strip(samples, maps, targets[place], measured.iloc[place]) for place in shown]
    return {
        "study.json": (json.dumps(content, indent=1) + "\n").encode(),
        "study.md": figures.markdown(_table(content, summary)).encode(),
        "regions.png": media.encode_png(media.stack_strips(strips)),
    }


def _table(content: Mapping[str, Any], summary: pd.DataFrame) -> figures.Table:
    rows = [
        [
            label,
            *(figures.fixed(summary[name][of], 3) for of in ("mean", "std")),
            f"{summary[name]['count']:.0f}",
        ]
        for name, label in MEASURES.items()
    ]
    height, width = content["map_size"]
    note = (
        f"{content['samples']} samples of {content['data']} with a mask, {content['samples_without_target']} "
        f"without one left out; {100 * content['dead_map_fraction']:.1f} % of the maps are zero everywhere; "
        f"maps of {height} x {width} from {content['source']}."
    )
    return figures.Table("Regions against masks", ["", "Mean", "SD", "Samples"], rows, note)


def _strip(samples: Samples, maps: np.ndarray, index: int, measured: Mapping[str, float]) -> np.ndarray:
    """A sample, its mask and its region, uint8 (H, W, 3), under what was measured."""
    outside = f", {100 * measured['spurious']:.0f} % of the region outside" if measured["parts"] else ""
    caption = (
        f"{samples.names[index]} ({samples.classes[samples.labels[index]]}): IoU {measured['iou']:.2f}, "
        f"{100 * measured['covered']:.0f} % of the mask covered{outside}, "
        f"connected parts: {measured['parts']:.0f}"
    )
    image = np.ascontiguousarray(samples.images[index].transpose(1, 2, 0))
    return media.attention_strip(image, samples.masks[index], {"": maps[index]}, caption, "image")


# ------------------------------------------------------------------------------ from command line to files


def check_args(args: Args) -> None:
    """Refuse options that can't be together."""
    if args.output is None and args.study is None:
        raise UserError("nothing to do: give --output FILE to keep regions, --study DIR to compare them.")
    if args.regions is not None and (args.clip_weights is not None or args.output is not None):
        raise UserError("--regions are there already: give them with --study only, without --clip-weights.")
    if args.regions is None and args.clip_weights is None:
        raise UserError(
            "--clip-weights FILE is missing: give the file of the model's trained weights, or none for "
            "random ones, which show that the command works and nothing else."
        )
    if "{class}" not in args.prompt:
        raise UserError(f"--prompt {args.prompt!r}: write {{class}} where the class's name is to stand.")


def make(args: Args) -> list[str]:
    """Make regions, study them, or both, and return what the command line prints."""
    check_args(args)
    # Before the work, so that it is not in vain.
    if args.output:
        make_folder(args.output.parent)
    if args.study:
        make_folder(args.study, "--study")
    said = []
    about = {"data": args.data, "source": str(args.regions)}
    if args.regions is None:
        weights = Path(args.clip_weights) if args.clip_weights not in (None, "none") else None
        clip = load_clip(args.clip_model, weights, choose_device(args.device), args.clip_tag)
        trained = f"weights {weights.name}" if weights else "random weights, so the regions mean nothing"
        about |= {"source": f"CLIP {clip.name}, {trained}", "prompt": args.prompt}
        samples = datasets.load(args.data, args.data_dir, args.image_size, args.samples)
        texts = prompts(samples.labels, samples.classes, args.prompt)
        maps = regions(clip, samples.images, texts, args.batch_size)
        said.append(f"Regions of {len(maps)} images from {about['source']}.")
    else:
        samples = datasets.load(args.data, args.data_dir, args.image_size, args.samples)
        maps = load_regions(args.regions, samples.names)
    said.append(f"{100 * dead(maps).mean():.1f} % of the maps are zero everywhere.")
    if args.output:
        save_regions(args.output, maps, samples.names)
        said.append(f"  {args.output}")
    if args.study:
        files = study(samples, maps, about)
        write_together({args.study / name: content for name, content in files.items()})
        said += [files["study.md"].decode(), *(f"  {args.study / name}" for name in files)]
    return said


def main(args: Args) -> int:
    """Make and study, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    return run_at_once(lambda: print("\n".join(make(args))), "No file is half written.")


if __name__ == "__main__":
    sys.exit(main(ARGS))
