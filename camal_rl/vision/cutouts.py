"""Cut-outs of photographs in front of photographs whose kind gives the classes away, or lies about them.

The idea of Waterbirds (Sagawa et al. 2020, arXiv:1911.08731) with exact masks, from any pictures whose
transparency says where the object is. Read from

    FOLDER/<class>/*.png                  an object each
    FOLDER/backgrounds/<kind>/*.jpg       photographs, from which random squares are taken

Classes and kinds go together in the order of their names, and kinds start again where they are fewer.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from camal_rl.errors import UserError
from camal_rl.run import machine
from camal_rl.vision.pictures import colours, decode
from camal_rl.vision.samples import Samples
from camal_rl.vision.shapes import DECOY_SHARE, SHIFTS

SIDES = (0.35, 0.7)
"""Least and greatest length of an object's longer side, as a share of the picture's."""
SQUARES = (0.4, 1.0)
"""Least and greatest side of the piece of a photograph, as a share of its shorter side."""
OPAQUE = 128
"""A pixel belongs to the object from this opacity on, of 255."""
LAYOUT = (
    "Lay it out as FOLDER/<class>/*.png, pictures with transparency around an object, and "
    "FOLDER/backgrounds/<kind>/*.jpg, two classes and two kinds or more"
)


def generate(folder: Path, count: int, image_size: int, seed: int = 0) -> Samples:
    """Put objects in front of backgrounds: S pixels a side, as many samples of each class, give or take one.

    An object has a random size and place and may be mirrored; a class's objects take turns. Its background's
    kind is its class's in `DECOY_SHARE` of the samples; `shifted` holds the same samples in front of kinds
    drawn at random, and always of another class's. Sample i depends on the files, the seed, i and S alone.

    Raises:
        UserError: the folder is not laid out so, or a picture in it can't be read or shows no object.
    """
    kinds = folders_in(folder / "backgrounds")
    places = [place for place in folders_in(folder) if place.name != "backgrounds"]
    if min(len(kinds), len(places)) < 2:
        raise UserError(f"{folder} holds {len(places)} classes and {len(kinds)} kinds. {LAYOUT}.")
    grounds = [pictures_in(kind, partial(_photograph, longest=8 * image_size)) for kind in kinds]
    cutouts = [pictures_in(place, partial(cut_out, longest=image_size)) for place in places]
    firsts = np.cumsum([0, *map(len, cutouts)])
    labels = np.arange(count) % len(cutouts)
    turns = np.arange(count) // len(cutouts)
    shown = [turn % len(cutouts[label]) for label, turn in zip(labels, turns, strict=True)]
    images = np.empty((1 + len(SHIFTS), count, 3, image_size, image_size), np.uint8)
    masks = np.empty((count, image_size, image_size), np.uint8)

    def draw(index: int) -> None:
        label, rng = int(labels[index]), np.random.default_rng((seed, index))
        own = label % len(grounds)
        other = (own + int(rng.integers(1, len(grounds)))) % len(grounds)
        lie = (own + len(grounds) // 2) % len(grounds)
        behind = (own if rng.random() < DECOY_SHARE else other, int(rng.integers(len(grounds))), lie)
        _, picture = cutouts[label][shown[index]]
        cut, corner = _placed(picture, image_size, rng)
        for image, kind in zip(images[:, index], behind, strict=True):
            _, ground = grounds[kind][rng.integers(len(grounds[kind]))]
            canvas = _piece(ground, image_size, rng)
            canvas.paste(cut, corner, cut)
            image[:] = np.asarray(canvas).transpose(2, 0, 1)
        opacity = Image.new("L", (image_size, image_size))
        opacity.paste(cut.getchannel("A"), corner)
        masks[index] = np.asarray(opacity) >= OPAQUE

    with ThreadPoolExecutor(machine.cores()) as pool:  # Pillow lets other threads run while it works
        list(pool.map(draw, range(count)))
    names = [cutouts[label][number][0] for label, number in zip(labels, shown, strict=True)]
    return Samples(
        images=images[0],
        masks=masks,
        labels=labels,
        classes=tuple(place.name for place in places),
        names=tuple(f"{name}-{index:06d}" for index, name in enumerate(names)),
        shifted=dict(zip(SHIFTS, images[1:], strict=True)),
        objects=firsts[labels] + shown,
    )


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder by name, but hidden ones."""
    return sorted(place for place in folder.glob("[!.]*") if place.is_dir())


def pictures_in(folder: Path, content: Callable[[Image.Image], Image.Image]) -> list[tuple[str, Image.Image]]:
    """Read the pictures of a folder by name, as <folder>/<file>."""
    endings = (".png", ".jpg", ".jpeg", ".webp")
    files = sorted(file for file in folder.glob("[!.]*") if file.suffix.lower() in endings)
    if not files:
        raise UserError(f"{folder} holds no pictures. {LAYOUT}.")
    return [(f"{folder.name}/{file.stem}", decode(file, content, "leave it out")) for file in files]


def _photograph(picture: Image.Image, longest: int) -> Image.Image:
    """A picture in colour, no longer than this."""
    picture = colours(picture)
    picture.thumbnail((longest, longest))
    return picture


def cut_out(picture: Image.Image, longest: int) -> Image.Image:
    """A picture cut down to what is not transparent, no longer than this.

    Raises:
        ValueError: nothing or all of it is transparent.
    """
    picture = picture.convert("RGBA")
    opaque = picture.getchannel("A").point(lambda level: 255 * (level >= OPAQUE))
    if opaque.getextrema() != (0, 255):
        raise ValueError("no part of it is transparent, or all, so nothing tells where the object is")
    picture = picture.crop(opaque.getbbox())
    picture.thumbnail((longest, longest))
    return picture


def _placed(picture: Image.Image, size: int, rng: np.random.Generator) -> tuple[Image.Image, tuple[int, int]]:
    """An object in a random size, mirrored or not, and the place of its corner in a picture of this side."""
    scale = rng.uniform(*SIDES) * size / max(picture.size)
    width, height = (max(1, round(scale * side)) for side in picture.size)
    cut = picture.resize((width, height))
    if rng.random() < 0.5:
        cut = ImageOps.mirror(cut)
    return cut, (int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1)))


def _piece(ground: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A random square of a photograph, as a picture of this side."""
    side = rng.uniform(*SQUARES) * min(ground.size)
    left, top = (rng.uniform(0, length - side) for length in ground.size)
    return ground.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
