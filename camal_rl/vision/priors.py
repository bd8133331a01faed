"""Images and class names -> pseudo-discriminative regions as CLIP sees them, for `--method prior`.

Regions are soft maps, Grad-CAM on CLIP's image encoder, where the target is the cosine similarity of an image
with a prompt that names its class (paper, Appendix B, after Petryk et al. 2022).

    python -m camal_rl.vision.priors --data pet --clip-model RN50 --clip-weights FILE --output regions.npz
    python -m camal_rl.vision.priors --data pet --regions regions.npz --study pilot

The first makes regions; the second is the pilot study (Figure 8), which compares regions with the masks. It
takes regions of any other method as well, as a folder of grey PNG files.

CLIP is open_clip's; its trained weights are read from a file and never fetched. The tests of this module use
small CLIPs with random weights. The regions of such a CLIP mean nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from camal_rl import __version__
from camal_rl.errors import UserError
from camal_rl.run.files import make_folder, write_together, write_whole
from camal_rl.vision.clip import PROMPT, Clip, load_clip, prompts, split

Count = Annotated[int, tyro.conf.arg(metavar="N")]


@dataclass
class Args:
    """Make regions that tell CLIP a class (--output), or compare regions with masks (--study), or both."""

    data: Annotated[Literal["shapes", "busi", "pet", "flower"], tyro.conf.arg(metavar="NAME")] = "shapes"
    """shapes, busi, pet, flower"""
    data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("data")
    """holds the data sets, as for training"""
    samples: Count = 1200
    """of shapes, as for training"""
    image_size: Count = 224
    """pixels along each side of the images; CLIP sees them at its own size"""
    clip_model: Annotated[str, tyro.conf.arg(metavar="NAME")] = "RN50"
    """open_clip's name of a CLIP with a ResNet or ViT, such as RN50, ViT-B-16"""
    clip_weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE|none", help_behavior_hint="")] = None
    """its trained weights; none: random ones, to try out the command"""
    clip_tag: Annotated[str | None, tyro.conf.arg(metavar="TAG")] = None
    """open_clip's name of these weights, such as openai; asked for where it matters"""
    prompt: Annotated[str, tyro.conf.arg(metavar="TEXT")] = PROMPT
    """what CLIP is asked for, with {class} in it"""
    regions: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """regions to study instead of CLIP's: a file of --output, or a folder of grey PNG files"""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """.npz file to write regions to, for --prior of camal_rl.vision.train"""
    study: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder to write the comparison with masks to (Figure 8)"""
    batch_size: Count = 32
    """images that CLIP sees at once"""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1, mps"""


def parse_args(arguments: list[str] | None = None) -> Args:
    """Read the command line; exits with code 2 and a message where it can't be understood."""
    return tyro.cli(Args, prog="python -m camal_rl.vision.priors", args=arguments)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported, so that --help and a typing mistake are answered at once

import io
import json
import textwrap
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from camal_rl import metrics
from camal_rl.attention import class_activation_map, normalize
from camal_rl.masks import mask_weights
from camal_rl.results import figures as page
from camal_rl.results import media
from camal_rl.results.study import some
from camal_rl.run.command_line import run_at_once
from camal_rl.run.device import choose_device
from camal_rl.vision import datasets
from camal_rl.vision.samples import Samples

Advance: TypeAlias = Callable[[int], object]

PICTURED = 6
"""Samples in the study's picture."""


# ------------------------------------------------------------------------------------------------------------
# CLIP


# ------------------------------------------------------------------------------------------------------------
# Regions


def regions(
    clip: Clip,
    images: np.ndarray,
    prompts: Sequence[str],
    batch_size: int = 32,
    advance: Advance = lambda _: None,
) -> np.ndarray:
    """Where CLIP sees what each prompt says: float32 (N, h, w) in [0, 1], each from 0 to 1 or all zero.

    Grad-CAM (Eq. 3) at the maps of `split`, for the cosine of the angle between the image's embedding and the
    prompt's. A map is all zero where the ReLU leaves nothing.

    Args:
        clip: from `load_clip` or `prepare`.
        images: uint8 RGB (N, 3, S, S), N at least 1; CLIP sees them resized to its own size.
        prompts: a text for each image.
        batch_size: images at once.
        advance: called with the number of images done since the last call.

    Raises:
        ValueError: images of another shape or dtype, or another number of prompts.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(
            f"images must be uint8 of shape (N, 3, S, S), N at least 1, got {images.dtype} of {images.shape}"
        )
    if len(prompts) != len(images):
        raise ValueError(f"each of the {len(images)} images needs a prompt, got {len(prompts)}")
    distinct = list(dict.fromkeys(prompts))
    texts = clip.texts(distinct)  # (n, D)
    place = {prompt: index for index, prompt in enumerate(distinct)}
    rows = torch.tensor([place[prompt] for prompt in prompts], device=clip.device)
    found = []
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        cams = _cams(clip, images[batch], texts[rows[batch]])
        found.append(normalize(cams).cpu().numpy())
        advance(len(cams))
    return np.concatenate(found)


def _cams(clip: Clip, images: np.ndarray, texts: Tensor) -> Tensor:
    """Maps that are not normalised, (B, h, w), for one embedding of a text each, (B, D)."""
    with torch.no_grad():  # gradients are needed of what comes after the feature maps only
        feature_maps, rest = split(clip.model.visual, clip.pixels(images))

    def similarity(maps: Tensor) -> Tensor:
        return F.cosine_similarity(rest(maps), texts)

    return class_activation_map(feature_maps, similarity, create_graph=False)


def dead(maps: np.ndarray) -> np.ndarray:
    """Which regions are zero everywhere: bool (N,)."""
    return np.logical_not(maps.any(axis=(1, 2)))


def save_regions(path: Path, maps: np.ndarray, names: Sequence[str]) -> None:
    """Write regions for `load_regions`: an .npz file of two plain arrays, whole or not at all.

    Args:
        path: of the file; its folder has to be there.
        maps: float32 (N, h, w) in [0, 1].
        names: of the samples, no two the same.

    Raises:
        ValueError: maps or names of another kind.
        UserError: the file can't be written.
    """
    if wrong := _wrong(maps, np.array(names)):
        raise ValueError(wrong)
    content = io.BytesIO()
    np.savez_compressed(content, maps=maps, names=np.array(names))
    write_whole(path, content.getvalue())


def load_regions(path: Path, names: Sequence[str]) -> np.ndarray:
    """Regions of these samples, in this order: float32 (N, h, w) in [0, 1].

    Args:
        path: a file of `save_regions`; or a folder of grey PNG files of 8 or 16 bits, black for 0 and white
            for 1, all of one size, whichever: `<folder>/<name>.png` is the map of a sample. It is of the
            image after `datasets.load` has resized and cropped it, and the name includes the folder in
            the data set: `<folder>/images/Abyssinian_1.png`.
        names: of the samples. There may be regions of others as well.

    Raises:
        UserError: there is no such file or folder, a sample's region is missing, or something else is in it.
    """
    if path.is_dir():
        return _load_folder(path, names)
    if not path.exists():
        raise UserError(
            f"there are no regions in {path}: make the file with python -m camal_rl.vision.priors --output, "
            "or give a folder of grey PNG files."
        )
    try:
        # Of bytes, because NumPy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
            maps, known = content["maps"], content["names"]
        wrong = _wrong(maps, known)
    except Exception as error:  # a damaged file makes NumPy raise all kinds
        wrong = textwrap.shorten(str(error), 100, placeholder=" ...") or type(error).__name__
    if wrong:
        raise UserError(
            f"{path} is damaged, or not a file of regions ({wrong}): make it again with "
            "python -m camal_rl.vision.priors --output."
        )
    place = {str(name): index for index, name in enumerate(known)}
    _check_complete(path, [name for name in names if name not in place], len(names))
    return np.ascontiguousarray(maps[[place[name] for name in names]])


def _wrong(maps: np.ndarray, names: np.ndarray) -> str:
    """What keeps two arrays from being regions and their names; nothing if they are."""
    if maps.dtype != np.float32 or maps.ndim != 3 or not maps.size:
        return f"maps must be float32 of shape (N, h, w), got {maps.dtype} of shape {maps.shape}"
    if names.dtype.kind != "U" or names.shape != maps.shape[:1]:
        return f"each of the {len(maps)} maps needs a name, got {names.dtype} of shape {names.shape}"
    if len(np.unique(names)) < len(names):
        return "several samples have the same name"
    low, high = maps.min(), maps.max()
    if not (low >= 0 and high <= 1):  # nor is NaN
        return f"maps must lie in [0, 1], got values from {low} to {high}"
    return ""


def _load_folder(folder: Path, names: Sequence[str]) -> np.ndarray:
    files = [folder / f"{name}.png" for name in names]
    missing = [name for name, file in zip(names, files, strict=True) if not file.is_file()]
    _check_complete(folder, [f"{name}.png" for name in missing], len(names))
    first = _read_grey(files[0])
    maps = np.empty((len(files), *first.shape), np.float32)
    for file, one in zip(files, maps, strict=True):
        grey = _read_grey(file)
        if grey.shape != first.shape:
            raise UserError(
                f"regions must be of one size: {file} has {grey.shape[1]} x {grey.shape[0]} pixels, and "
                f"{files[0]} has {first.shape[1]} x {first.shape[0]}."
            )
        one[...] = grey
    return maps


def _read_grey(file: Path) -> np.ndarray:
    """A grey PNG file as float32 (H, W) in [0, 1]."""
    try:
        image = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except OSError as error:
        raise UserError(f"can't read {file}: {error.strerror}.") from error
    except cv2.error:  # an empty file
        image = None
    if image is None:
        raise UserError(f"{file} is damaged, or no PNG file.")
    if image.ndim != 2:
        raise UserError(f"{file} has {image.shape[2]} channels: a soft map is grey, with a single one.")
    return np.asarray(image / (65535 if image.dtype == np.uint16 else 255), np.float32)


def _check_complete(path: Path, missing: Sequence[str], count: int) -> None:
    if missing:
        raise UserError(
            f"{path} lacks the regions of {len(missing)} of {count} samples: {some(missing)}. "
            "It may be of another data set."
        )


# ------------------------------------------------------------------------------------------------------------
# The pilot study: regions against masks


MEASURES = {
    "iou": f"IoU of the region, the map above {metrics.TAU:g}",
    "iou_ceiling": "Its ceiling, the mask itself at the map's resolution",
    "covered": "Share of the mask that the region covers",
    "spurious": "Share of the region outside the mask",
    "parts": "Connected parts of the region",
    "pointing_game": "Pointing game: the map's peak is in the mask",
    "relevance_mass": "Relevance mass: share of the map in the mask",
    "mask_share": "The mask's share of the image, a uniform map's relevance mass",
}
"""What `overlap` measures of each sample, as the study's table calls it."""


def overlap(maps: np.ndarray, masks: np.ndarray, advance: Advance = lambda _: None) -> dict[str, np.ndarray]:
    """How well each map agrees with its mask: MEASURES by name, float64 (N,).

    A region is where a map, upsampled to its mask, is above `metrics.TAU`. Parts of it that touch at a corner
    are connected. Where there is no region, as with a map that is zero, there are 0 parts that cover 0, and
    the share outside is NaN.

    Args:
        maps: float32 (N, h, w) in [0, 1].
        masks: uint8 {0, 1} (N, H, W), none of them empty.
        advance: called with the number of samples done since the last call.
    """
    found = {name: np.empty(len(maps)) for name in MEASURES}
    for index in range(len(maps)):
        heat, mask = maps[index : index + 1], masks[index : index + 1]
        measured = metrics.alignment(heat, mask)
        for name in ("iou", "pointing_game", "relevance_mass"):
            found[name][index] = measured[name][0]
        found["iou_ceiling"][index] = metrics.iou_ceiling(mask_weights(mask, maps.shape[1:]), mask)[0]
        region, inside = metrics.upsample(heat, mask.shape[1:])[0] > metrics.TAU, mask[0] > 0
        size, shared = np.count_nonzero(region), np.count_nonzero(region & inside)
        found["covered"][index] = shared / np.count_nonzero(inside)
        found["spurious"][index] = (size - shared) / size if size else np.nan
        found["parts"][index] = cv2.connectedComponents(region.astype(np.uint8), connectivity=8)[0] - 1
        found["mask_share"][index] = inside.mean()
        advance(1)
    return found


def study(samples: Samples, maps: np.ndarray, about: Mapping[str, str], advance: Advance) -> dict[str, bytes]:
    """The pilot study's files by name: study.json, study.md, and regions.png, in which IoU falls downwards.

    Samples without a target, such as normal images of BUSI, are left out.

    Args:
        samples: the data set.
        maps: float32 (N, h, w) in [0, 1], of every sample.
        about: where the maps come from, to be told with the numbers.
        advance: called with the number of samples done since the last call.

    Raises:
        UserError: no sample has a target.
    """
    targets = np.flatnonzero(samples.masks.any(axis=(1, 2)))
    if not len(targets):
        raise UserError("no sample has a mask, so there is nothing to compare regions with.")
    measured = overlap(maps[targets], samples.masks[targets], advance)
    summary = {name: _summary(values) for name, values in measured.items()}
    content = {
        "version": __version__,
        **about,
        "tau": metrics.TAU,
        "map_size": list(maps.shape[1:]),
        "samples": len(targets),
        "samples_without_target": len(maps) - len(targets),
        "dead_map_fraction": float(dead(maps[targets]).mean()),
        "measures": summary,
        "by_sample": {
            "name": [samples.names[index] for index in targets],
            **{name: [_plain(one) for one in values.tolist()] for name, values in measured.items()},
        },
    }
    return {
        "study.json": (json.dumps(content, indent=1, allow_nan=False) + "\n").encode(),
        "study.md": page.markdown(_table(content)).encode(),
        "regions.png": media.encode_png(_picture(samples, maps, targets, measured)),
    }


def _summary(values: np.ndarray) -> dict[str, float | int | None]:
    """Mean and sample standard deviation of what is defined, None where there is none."""
    defined = values[~np.isnan(values)]
    return {
        "mean": float(defined.mean()) if len(defined) else None,
        "standard_deviation": float(defined.std(ddof=1)) if len(defined) > 1 else None,
        "samples": len(defined),
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value


def _table(content: Mapping[str, Any]) -> page.Table:
    rows = []
    for name, label in MEASURES.items():
        one = content["measures"][name]
        numbers = (
            page.NOTHING if one[key] is None else page.fixed(one[key], 3)
            for key in ("mean", "standard_deviation")
        )
        rows.append([label, *numbers, str(one["samples"])])
    notes = [
        f"{content['samples']} samples of {content['data']} with a mask, {content['samples_without_target']} "
        "without one left out",
        f"{100 * content['dead_map_fraction']:.1f} % of the maps are zero everywhere",
        f"maps of {content['map_size'][0]} x {content['map_size'][1]} from {content['source']}",
    ]
    return page.Table("Regions against masks", ["", "Mean", "SD", "Samples"], rows, "; ".join(notes) + ".")


def _picture(
    samples: Samples, maps: np.ndarray, targets: np.ndarray, measured: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Samples at even distances in the order of their IoU, the best and the worst among them."""
    order = np.argsort(-measured["iou"], kind="stable")
    ranks = np.unique(np.linspace(0, len(order) - 1, PICTURED).round().astype(int))
    strips = []
    for place in order[ranks]:
        index, numbers = targets[place], {name: values[place] for name, values in measured.items()}
        spurious = numbers["spurious"]
        outside = "" if np.isnan(spurious) else f", {100 * spurious:.0f} % of the region outside"
        strips.append(
            media.attention_strip(
                np.ascontiguousarray(samples.images[index].transpose(1, 2, 0)),
                samples.masks[index],
                {"": maps[index]},
                f"{samples.names[index]} ({samples.classes[samples.labels[index]]}): "
                f"IoU {numbers['iou']:.2f}, {100 * numbers['covered']:.0f} % of the mask covered{outside}, "
                f"connected parts: {numbers['parts']:.0f}",
                "image",
            )
        )
    return media.stack_strips(strips)


# ------------------------------------------------------------------------------------------------------------
# From the command line to the files


RANDOM = Path("none")
"""What `--clip-weights` takes for random weights."""


def check_args(args: Args) -> None:
    """Refuse options that can't be, or can't be together.

    Raises:
        UserError: the message says what to change.
    """
    if args.output is None and args.study is None:
        raise UserError("nothing to do: give --output FILE to keep regions, --study DIR to compare them.")
    if args.regions is not None and (args.clip_weights is not None or args.output is not None):
        raise UserError("--regions are there already: give them with --study only, without --clip-weights.")
    if args.regions is None and args.clip_weights is None:
        raise UserError(
            "--clip-weights FILE is missing: give the file of the model's trained weights, or none for "
            "random ones, which show that the command works and nothing else."
        )
    if args.output is not None and args.output.suffix != ".npz":
        raise UserError(f"--output {args.output}: give a name that ends in .npz.")
    if "{class}" not in args.prompt:
        raise UserError(f"--prompt {args.prompt!r}: write {{class}} where the class's name is to stand.")
    for option, value in (("batch-size", args.batch_size), ("image-size", args.image_size)):
        if value < 1:
            raise UserError(f"--{option} {value}: give a number of at least 1.")


def make(args: Args) -> list[str]:
    """Make regions, study them, or both, and return what the command line prints.

    Raises:
        UserError: arguments, files or folders with which that can't be done.
    """
    check_args(args)
    # Before the work, so that it is not in vain.
    if args.output:
        make_folder(args.output.parent)
    if args.study:
        make_folder(args.study, "--study")
    clip, about = None, {"data": args.data, "source": str(args.regions)}
    if args.regions is None:
        weights = None if args.clip_weights in (None, RANDOM) else args.clip_weights
        clip = load_clip(args.clip_model, weights, choose_device(args.device), args.clip_tag)
        trained = f"weights {weights.name}" if weights else "random weights, so the regions mean nothing"
        about |= {"source": f"CLIP {clip.name}, {trained}", "prompt": args.prompt}
    samples = datasets.load(args.data, args.data_dir, args.image_size, args.samples)
    said = []
    if clip is None:
        assert args.regions is not None
        maps = load_regions(args.regions, samples.names)
    else:
        texts = prompts(samples.labels, samples.classes, args.prompt)
        with _bar("regions", len(texts)) as bar:
            maps = regions(clip, samples.images, texts, args.batch_size, bar.update)
        said.append(f"Regions of {len(maps)} images from {about['source']}.")
    said.append(f"{100 * dead(maps).mean():.1f} % of the maps are zero everywhere.")
    if args.output:
        save_regions(args.output, maps, samples.names)
        said.append(f"  {args.output}")
    if args.study:
        with _bar("study", int(samples.masks.any(axis=(1, 2)).sum())) as bar:
            files = study(samples, maps, about, bar.update)
        write_together({args.study / name: content for name, content in files.items()})
        said += [files["study.md"].decode(), *(f"  {args.study / name}" for name in files)]
    return said


def _bar(what: str, total: int) -> Any:
    return tqdm(total=total, desc=what, mininterval=0.5 if sys.stderr.isatty() else 30, unit="image")


def main(args: Args) -> int:
    """Make and study, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    return run_at_once(lambda: print("\n".join(make(args))), "No file is half written.")


if __name__ == "__main__":
    sys.exit(main(ARGS))
