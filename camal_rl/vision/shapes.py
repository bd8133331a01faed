"""A generated fine-grained task with exact masks, whose backgrounds give the classes away, or lie about them.

A picture shows a regular polygon or star and, at some distance all around it, stripes. Its class is how many
corners or points it has, nothing else: area, place, rotation and colour have the same distribution in every
class. The stripes are a decoy: their orientation names the class of most samples, so a classifier can be
right nearly always without having seen the shape, and learns that first. The same shapes in front of other
stripes then tell whether it was right for the right reasons.
"""

from __future__ import annotations

import colorsys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np

from camal_rl.run import machine
from camal_rl.vision.samples import GENERATED, Samples

CORNERS = (3, 4, 6)
CLASSES = (
    *("triangle", "square", "hexagon"),
    *("three-pointed star", "four-pointed star", "six-pointed star"),
)
"""First the polygons, then the stars, in the order of `CORNERS`."""
SHIFTS = ("decorrelated", "reversed")
"""Other backgrounds of the same samples: their decoy is of a class drawn at random, or always a wrong one."""
DECOY_SHARE = 0.95
"""Probability that the decoy of a sample names its class; else it names another one."""

STAR_WAIST = 0.4
"""Distance of a star's notches from its centre, where that of its points is 1."""
AREAS = (0.06, 0.12)
"""Least and greatest area of a shape, as a share of the picture."""
INNERMOST = 0.42
"""A shape's centre is closer than this to two sides of the picture, as a share of its side: that leaves room
for stripes at the others."""
GAP = (0.10, 0.25)
"""Distances from the shape where stripes begin and have their full contrast, as shares of the side. Without a
gap a network that attends to the shape's outline would see the decoy just as well."""
WAVELENGTHS = (0.035, 0.07)
"""Least and greatest distance between two stripes, as a share of the side."""
FINEST_WAVELENGTH = 4.0
"""Least distance between two stripes in pixels: finer ones have no orientation that can be seen."""
CONTRASTS = (20.0, 40.0)
"""Least and greatest deviation of stripes from their mean, in grey levels of 255."""
TILT = 8.0
"""Degrees by which stripes lean to either side at most; decoys of two classes are 180 / 6 degrees apart."""
NOISE, SHAPE_NOISE = 24.0, 10.0
"""Greatest deviation of a pixel from the stripes and from the shape's colour, in grey levels of 255."""


def wrong_class(label: int) -> int:
    """Class whose decoy stands behind this class in `reversed`: its stripes are at right angles."""
    return (label + len(CLASSES) // 2) % len(CLASSES)


def generate(count: int = GENERATED, image_size: int = 224, seed: int = 0) -> Samples:
    """Draw samples with S pixels a side, as many of each class as of every other, give or take one.

    Sample i depends on the seed, i and S alone, so more samples begin with the same ones. `shifted` holds
    them in front of the backgrounds of SHIFTS.
    """
    images = np.empty((1 + len(SHIFTS), count, 3, image_size, image_size), np.uint8)
    masks = np.empty((count, image_size, image_size), np.uint8)

    def draw(index: int) -> None:
        masks[index] = _draw(images[:, index], index % len(CLASSES), np.random.default_rng((seed, index)))

    with ThreadPoolExecutor(machine.cores()) as pool:
        list(pool.map(draw, range(count)))
    return Samples(
        images=images[0],
        masks=masks,
        labels=np.arange(count) % len(CLASSES),
        classes=CLASSES,
        names=tuple(f"{index:06d}" for index in range(count)),
        shifted=dict(zip(SHIFTS, images[1:], strict=True)),
    )


def _draw(images: np.ndarray, label: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a sample in front of each background, (1 + shifts, 3, S, S); return its mask, uint8 (S, S)."""
    size = images.shape[-1]
    # Whatever the size, the same numbers are drawn up to the noise, which comes last.
    area = rng.uniform(*AREAS)
    # The same for every class, or the place would tell the class: the one that reaches farthest decides.
    reach = np.sqrt(area / min(_UNIT_AREAS))
    centre = rng.uniform(reach, INNERMOST, 2)
    centre = np.where(rng.random(2) < 0.5, centre, 1 - centre)
    turn = rng.uniform(0, 2 * np.pi)
    colour = 255 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.75, 1), rng.uniform(0.75, 1)))
    others = [other for other in range(len(CLASSES)) if other != label]
    true, wrong = rng.random() < DECOY_SHARE, others[rng.integers(len(others))]
    decoys = (label if true else wrong, int(rng.integers(len(CLASSES))), wrong_class(label))
    grounds = [_choose_ground(decoy, rng) for decoy in decoys]

    mask = _mask(label, area, centre, turn, size)
    fading = _fading(centre, reach, size)
    drawn = _bytes(size, rng)
    shape = [cv2.LUT(drawn, _levels(channel + SHAPE_NOISE * _SPREAD)) for channel in colour]
    for image, ground in zip(images, grounds, strict=True):
        grey = _ground_levels(ground, fading, _bytes(size, rng))
        for channel, factor, pixels in zip(image, ground.tint, shape, strict=True):
            channel[:] = cv2.LUT(grey, _levels(factor * np.arange(256)))
            np.copyto(channel, pixels, where=mask.astype(bool))
    return mask


# ------------------------------------------------------------------------------------------------------------
# The shape

_FINENESS = 5
"""Shapes are drawn at 5 times their size, and of 5 x 5 pixels the middle one counts: OpenCV draws all that an
outline touches, which would make shapes greater, the more so the smaller the picture."""
_FRACTION = 8
"""Bits for fractions of a pixel in OpenCV's coordinates."""


def _unit_outline(label: int) -> np.ndarray:
    """Corners of a class around (0, 0), float64 (corners, 2), the farthest at distance 1."""
    corners = CORNERS[label % len(CORNERS)]
    star = label >= len(CORNERS)
    angles = np.arange(2 * corners if star else corners) * (np.pi / corners if star else 2 * np.pi / corners)
    distances = np.where(np.arange(angles.size) % 2, STAR_WAIST, 1) if star else np.ones(corners)
    outline: np.ndarray = distances[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return outline


def _area(outline: np.ndarray) -> float:
    """Return the area of a polygon by the shoelace formula."""
    x, y = outline.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


_OUTLINES = [_unit_outline(label) for label in range(len(CLASSES))]
_UNIT_AREAS = [_area(outline) for outline in _OUTLINES]


def _mask(label: int, area: float, centre: np.ndarray, turn: float, size: int) -> np.ndarray:
    """Return the pixels of a shape, uint8 {0, 1} (S, S)."""
    cosine, sine = np.cos(turn), np.sin(turn)
    turned = _OUTLINES[label] @ np.array([[cosine, sine], [-sine, cosine]])
    corners = centre + np.sqrt(area / _UNIT_AREAS[label]) * turned
    fine = np.zeros((_FINENESS * size, _FINENESS * size), np.uint8)
    # To OpenCV pixel 0 has its centre, not its edge, at 0.
    coordinates = np.rint((len(fine) * corners - 0.5) * 2**_FRACTION).astype(np.int32)
    cv2.fillPoly(fine, [coordinates], 1, lineType=cv2.LINE_8, shift=_FRACTION)
    return fine[_FINENESS // 2 :: _FINENESS, _FINENESS // 2 :: _FINENESS]


# ------------------------------------------------------------------------------------------------------------
# The background


class _Ground(NamedTuple):
    """A background without its noise."""

    angle: float  # between the stripes' normal and the picture's rows
    wavelength: float  # as a share of the picture's side
    phase: float
    level: float  # mean grey
    contrast: float  # greatest deviation from it
    tint: np.ndarray  # factor of each channel, (3,)


def _choose_ground(decoy: int, rng: np.random.Generator) -> _Ground:
    """Draw a background whose stripes name the class `decoy`."""
    angle = np.pi * (decoy / len(CLASSES) + rng.uniform(-TILT, TILT) / 180)
    wavelength, phase, level = rng.uniform(*WAVELENGTHS), rng.uniform(0, 2 * np.pi), rng.uniform(100, 155)
    return _Ground(angle, wavelength, phase, level, rng.uniform(*CONTRASTS), rng.uniform(0.9, 1.1, 3))


def _fading(centre: np.ndarray, reach: float, size: int) -> np.ndarray:
    """Share of their contrast that stripes have at each place, float32 (S, S): none close to the shape."""
    places = (np.arange(size) + 0.5) / size
    across, down = ((places - middle).astype(np.float32) for middle in centre)
    distances = np.sqrt(across**2 + (down**2)[:, None]) - np.float32(reach)
    risen = np.clip((distances - np.float32(GAP[0])) * np.float32(1 / (GAP[1] - GAP[0])), 0, 1)
    smooth: np.ndarray = risen * risen * (3 - 2 * risen)
    return smooth


def _ground_levels(ground: _Ground, fading: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return stripes and noise, grey: uint8 (S, S)."""
    steps = np.arange(len(drawn)) * (2 * np.pi / max(ground.wavelength * len(drawn), FINEST_WAVELENGTH))
    down, across = np.sin(ground.angle) * steps, np.cos(ground.angle) * steps + ground.phase
    # contrast * sin(down + across) takes the sines of a column and a row, not of a picture.
    columns = (ground.contrast * np.stack([np.sin(across), np.cos(across)])).astype(np.float32)
    rows = np.stack([np.cos(down), np.sin(down)]).astype(np.float32)
    grey = rows[0, :, None] * columns[0]
    grey += rows[1, :, None] * columns[1]
    grey *= fading
    grey += (ground.level + NOISE * _SPREAD).astype(np.float32)[drawn]
    levels: np.ndarray = np.rint(grey).astype(np.uint8)  # level, contrast and noise stay in 0 to 255
    return levels


_SPREAD = np.linspace(-1, 1, 256)
"""Noise that a random byte stands for, as a share of its greatest deviation."""


def _bytes(size: int, rng: np.random.Generator) -> np.ndarray:
    return np.frombuffer(rng.bytes(size * size), np.uint8).reshape(size, size)


def _levels(values: np.ndarray) -> np.ndarray:
    """Return a table for `cv2.LUT`: the level that each byte becomes, uint8 (256,)."""
    levels: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return levels
