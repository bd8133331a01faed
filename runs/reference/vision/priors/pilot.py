"""The pilot study (paper, Figure 8): how well do regions, such as CLIP's, agree with masks?

Regions are a file of camal_rl.vision.priors, or those of another method in a folder of grey PNG files.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from camal_rl import __version__, metrics
from camal_rl.errors import UserError
from camal_rl.masks import mask_weights
from camal_rl.results import figures, media
from camal_rl.run.command_line import Positive, parse, run_at_once
from camal_rl.run.files import make_folder, write_together
from camal_rl.vision import datasets, priors
from camal_rl.vision.samples import GENERATED, DataName, Samples


@dataclass
class Args:
    """Compare regions with masks (paper, Figure 8)."""

    regions: Path
    """file of camal_rl.vision.priors, or a folder of grey PNG files"""
    data: DataName = "shapes"
    """data set"""
    data_dir: Path = Path("data")
    """folder that holds the data sets, as for training"""
    samples: Positive = GENERATED
    """number of images to generate, as for training"""
    image_size: Positive = 224
    """side of the images in pixels"""
    output: Path = Path("runs/vision/pilot")
    """folder for study.json, study.md and regions.png"""


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
    BUSI, are left out. `about` says what the maps are of, and where they come from.
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
        "dead_map_fraction": float(priors.dead(maps[targets]).mean()),
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


def make(args: Args) -> list[str]:
    """Compare, write the files, and return what the command line prints."""
    make_folder(args.output)
    samples = datasets.load(args.data, args.data_dir, args.image_size, args.samples)
    maps = priors.load_regions(args.regions, samples.names)
    files = study(samples, maps, {"data": args.data, "source": str(args.regions)})
    write_together({args.output / name: content for name, content in files.items()})
    return [files["study.md"].decode(), *(f"  {args.output / name}" for name in files)]


def main(args: Args) -> int:
    """Compare, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    return run_at_once(lambda: print("\n".join(make(args))))


if __name__ == "__main__":
    sys.exit(main(parse(Args, "pilot.py")))
