"""Images and class names -> pseudo-discriminative regions as CLIP sees them, for `--method prior`.

Regions are soft maps, Grad-CAM on CLIP's image encoder, where the target is the cosine similarity of an image
with a prompt that names its class (paper, Appendix B, after Petryk et al. 2022).

    python -m camal_rl.vision.priors --data pet --clip-model RN50 --clip-weights FILE --output regions.npz

CLIP's weights are read from a file and never fetched.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from camal_rl.errors import UserError, in_one_line
from camal_rl.run.command_line import Positive, parse, run_at_once
from camal_rl.run.files import make_folder, write_whole
from camal_rl.vision.samples import GENERATED, DataName


@dataclass
class Args:
    """Make regions that tell CLIP a class, as priors in place of masks."""

    clip_weights: str
    """file of CLIP's trained weights, or none for random ones, to try out the command"""
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
    clip_tag: str | None = None
    """open_clip's name of the weights, such as openai; asked for where it matters"""
    prompt: str = "a photo of a {class}"
    """text that CLIP is asked for, with {class} in it"""
    output: Path = Path("regions.npz")
    """file to write, for --prior of camal_rl.vision.train"""
    batch_size: Positive = 32
    """images that CLIP sees at once"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""


if __name__ == "__main__":
    ARGS = parse(Args, "python -m camal_rl.vision.priors")  # before torch is imported: --help answers at once

import io

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from camal_rl.attention import class_activation_map, normalize
from camal_rl.results.study import some
from camal_rl.run.device import choose_device
from camal_rl.vision import datasets
from camal_rl.vision.clip import Clip, load_clip, prompts, split
from camal_rl.vision.pictures import decode, levels


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
        raise UserError(
            f"{path} is damaged, or not a file of regions ({in_one_line(error)[:100]}): make it again with "
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


def make(args: Args) -> list[str]:
    """Make regions, write them, and return what the command line prints."""
    if "{class}" not in args.prompt:
        raise UserError(f"--prompt {args.prompt!r}: write {{class}} where the class's name is to stand.")
    make_folder(args.output.parent)  # before the work, so that it is not in vain
    weights = None if args.clip_weights == "none" else Path(args.clip_weights)
    clip = load_clip(args.clip_model, weights, choose_device(args.device), args.clip_tag)
    trained = f"weights {weights.name}" if weights else "random weights, so the regions mean nothing"
    samples = datasets.load(args.data, args.data_dir, args.image_size, args.samples)
    texts = prompts(samples.labels, samples.classes, args.prompt)
    maps = regions(clip, samples.images, texts, args.batch_size)
    save_regions(args.output, maps, samples.names)
    return [
        f"Regions of {len(maps)} images from CLIP {clip.name}, {trained}.",
        f"{100 * dead(maps).mean():.1f} % of the maps are zero everywhere.",
        f"  {args.output}",
    ]


def main(args: Args) -> int:
    """Make regions, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    return run_at_once(lambda: print("\n".join(make(args))), "No file is half written.")


if __name__ == "__main__":
    sys.exit(main(ARGS))
