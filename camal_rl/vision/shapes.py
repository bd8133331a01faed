"""A generated fine-grained task with exact masks, whose backgrounds give the classes away, or lie about them.

A picture shows one regular polygon or star in front of stripes. Its class is the number of corners or points
and nothing else: area, place, rotation and colour have the same distribution in every class. The stripes are
a decoy: their orientation names the class of most samples, so that a classifier can be nearly always right
without having seen the shape. The same shapes before other stripes then tell whether it was right for the
right reasons.
"""

from __future__ import annotations

import colorsys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np

from camal_rl import UserError, machine
from camal_rl.vision.datasets import SHAPES, SMALLEST_IMAGE, Samples

CORNERS = (5, 6, 7)
CLASSES = (
    *("pentagon", "hexagon", "heptagon"),
    *("five-pointed star", "six-pointed star", "seven-pointed star"),
)
"""First the polygons, then the stars, in the order of `CORNERS`."""
SHIFTS = ("decorrelated", "reversed")
"""Other backgrounds of the same samples, whose decoy is of a class drawn at random, or always a wrong one."""
DECOY_SHARE = 0.95
"""Probability that the decoy of a sample names its class; else it names one of the others."""

STAR_WAIST = 0.5
"""Distance of a star's notches from its centre, where that of its points is 1."""
AREAS = (0.10, 0.22)
"""Least and greatest area of a shape, as a share of the picture."""
WAVELENGTHS = (0.035, 0.07)
"""Least and greatest distance between two stripes, as a share of the picture's side."""
FINEST_WAVELENGTH = 4.0
"""In pixels: finer stripes have no orientation that could be seen."""
TILT = 5.0
"""Degrees by which stripes lean to either side at most; decoys of two classes are 180 / 6 degrees apart."""
NOISE = 24.0
"""Greatest deviation of a background's pixel from the stripes, in grey levels of 255."""
SHAPE_NOISE = 10.0
"""The same for the shape's own pixels."""


def wrong_class(label: int) -> int:
    """The class whose decoy stands behind this class in `reversed`: its stripes are at right angles."""
    return (label + len(CLASSES) // 2) % len(CLASSES)


def generate(count: int = SHAPES, image_size: int = 224, seed: int = 0) -> Samples:
    """Draw samples, as many of each class as of every other, give or take one.

    Sample i depends on the seed, i and the size of the images, so more samples begin with the same ones.

    Args:
        count: how many, at least 1.
        image_size: side S of the images in pixels, at least `SMALLEST_IMAGE`.
        seed: 0 or greater.

    Returns:
        Images uint8 (N, 3, S, S); `shifted` holds them before the backgrounds of `SHIFTS`.

    Raises:
        UserError: a number is too small.
    """
    for name, value, least in (("count", count, 1), ("size", image_size, SMALLEST_IMAGE), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"shapes can't have a {name} of {value}: give {least} or more.")
    images = np.empty((1 + len(SHIFTS), count, 3, image_size, image_size), np.uint8)
    masks = np.empty((count, image_size, image_size), np.uint8)

    def draw(index: int) -> None:
        masks[index] = _draw(images[:, index], index % len(CLASSES), np.random.default_rng((seed, index)))

    with ThreadPoolExecutor(machine.cores()) as pool:
        for _ in pool.map(draw, range(count)):
            pass
    return Samples(
        images=images[0],
        masks=masks,
        labels=np.arange(count) % len(CLASSES),
        classes=CLASSES,
        names=tuple(f"{index:06d}" for index in range(count)),
        shifted=dict(zip(SHIFTS, images[1:], strict=True)),
    )


def _draw(images: np.ndarray, label: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one sample before each background, (1 + shifts, 3, S, S), and return its mask, uint8 (S, S)."""
    size = images.shape[-1]
    # Whatever the size, the same numbers are drawn up to the noise, which comes last.
    area = rng.uniform(*AREAS)
    place = rng.random(2)
    turn = rng.random()
    colour = 255 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.75, 1), rng.uniform(0.75, 1)))
    others = [other for other in range(len(CLASSES)) if other != label]
    true, wrong = rng.random() < DECOY_SHARE, others[rng.integers(len(others))]
    decoys = (label if true else wrong, int(rng.integers(len(CLASSES))), wrong_class(label))
    grounds = [_choose_ground(decoy, rng) for decoy in decoys]

    mask = _mask(label, area, place, turn, size)
    drawn = _bytes(size, rng)
    inside = mask.astype(bool)
    shape = [cv2.LUT(drawn, _levels(channel + SHAPE_NOISE * _SPREAD)) for channel in colour]
    for image, ground in zip(images, grounds, strict=True):
        grey = _ground_levels(ground, _bytes(size, rng))
        for channel, factor, own in zip(image, ground.tint, shape, strict=True):
            channel[:] = cv2.LUT(grey, _levels(factor * np.arange(256)))
            np.copyto(channel, own, where=inside)
    return mask


# ------------------------------------------------------------------------------------------------------------
# The shape

_FINENESS = 5
"""Shapes are drawn at so many times the size, and of 5 x 5 pixels the middle one counts: OpenCV draws all
that an outline touches, which would make shapes greater, the more so the smaller the picture."""
_FRACTION = 8
"""Bits for fractions of a pixel in the coordinates that OpenCV is given."""


def _unit_outline(label: int) -> np.ndarray:
    """Corners of a class around (0, 0), float64 (corners, 2), the farthest at distance 1."""
    corners = CORNERS[label % len(CORNERS)]
    star = label >= len(CORNERS)
    angles = np.arange(2 * corners if star else corners) * (np.pi / corners if star else 2 * np.pi / corners)
    distances = np.where(np.arange(angles.size) % 2, STAR_WAIST, 1) if star else np.ones(corners)
    outline: np.ndarray = distances[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return outline


def _area(outline: np.ndarray) -> float:
    """Of a polygon, by the shoelace formula."""
    x, y = outline.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


_OUTLINES = [_unit_outline(label) for label in range(len(CLASSES))]
_UNIT_AREAS = [_area(outline) for outline in _OUTLINES]


def _mask(label: int, area: float, place: np.ndarray, turn: float, size: int) -> np.ndarray:
    """The pixels of a shape that lies wholly in the picture, uint8 {0, 1} (S, S)."""
    radius = np.sqrt(area / _UNIT_AREAS[label])
    # The same for every class, or the place would tell the class: the one that reaches farthest decides.
    margin = np.sqrt(area / min(_UNIT_AREAS))
    centre = margin + (1 - 2 * margin) * place
    cosine, sine = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
    corners = centre + radius * _OUTLINES[label] @ np.array([[cosine, sine], [-sine, cosine]])
    fine = np.zeros((_FINENESS * size, _FINENESS * size), np.uint8)
    # To OpenCV, pixel 0 has its centre, not its edge, at 0.
    coordinates = np.rint((len(fine) * corners - 0.5) * 2**_FRACTION).astype(np.int32)
    cv2.fillPoly(fine, [coordinates], 1, lineType=cv2.LINE_8, shift=_FRACTION)
    return fine[_FINENESS // 2 :: _FINENESS, _FINENESS // 2 :: _FINENESS]


# ------------------------------------------------------------------------------------------------------------
# The background


class _Ground(NamedTuple):
    """What a background looks like, but for its noise."""

    angle: float  # between the stripes' normal and the picture's rows
    wavelength: float  # as a share of the picture's side
    phase: float
    level: float  # mean grey
    contrast: float  # greatest deviation from it
    tint: np.ndarray  # factor of each channel, (3,)


def _choose_ground(decoy: int, rng: np.random.Generator) -> _Ground:
    """A background whose stripes name the class `decoy`."""
    return _Ground(
        angle=np.pi * (decoy / len(CLASSES) + rng.uniform(-TILT, TILT) / 180),
        wavelength=rng.uniform(*WAVELENGTHS),
        phase=rng.uniform(0, 2 * np.pi),
        level=rng.uniform(100, 155),
        contrast=rng.uniform(35, 60),
        tint=rng.uniform(0.9, 1.1, 3),
    )


def _ground_levels(ground: _Ground, drawn: np.ndarray) -> np.ndarray:
    """Stripes and noise, grey: uint8 (S, S)."""
    steps = np.arange(len(drawn)) * (2 * np.pi / max(ground.wavelength * len(drawn), FINEST_WAVELENGTH))
    down, across = np.sin(ground.angle) * steps, np.cos(ground.angle) * steps + ground.phase
    # contrast * sin(down + across) takes the sines of a column and a row, not of a picture.
    columns = (ground.contrast * np.stack([np.sin(across), np.cos(across)])).astype(np.float32)
    rows = np.stack([np.cos(down), np.sin(down)]).astype(np.float32)
    grey = rows[0, :, None] * columns[0]
    grey += rows[1, :, None] * columns[1]
    grey += (ground.level + NOISE * _SPREAD).astype(np.float32)[drawn]
    # Nothing is to be clipped: level, contrast and noise stay between 0 and 255.
    levels: np.ndarray = np.rint(grey).astype(np.uint8)
    return levels


# ------------------------------------------------------------------------------------------------------------
# Noise

_SPREAD = np.linspace(-1, 1, 256)
"""What a random byte makes of noise, as a share of its greatest deviation."""


def _bytes(size: int, rng: np.random.Generator) -> np.ndarray:
    return np.frombuffer(rng.bytes(size * size), np.uint8).reshape(size, size)


def _levels(values: np.ndarray) -> np.ndarray:
    """A table for `cv2.LUT`: what each byte becomes, uint8 (256,)."""
    levels: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return levels
