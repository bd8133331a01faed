"""Files of pictures -> Pillow's pictures and numbers, or one line on what is wrong with a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from camal_rl.errors import UserError, in_one_line

T = TypeVar("T")


def colours(picture: Image.Image, behind: str | tuple[int, ...] = "") -> Image.Image:
    """A picture as RGB of 8 bits, on this colour, if one is given, where it is transparent."""
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    if behind:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, behind), picture.convert("RGBA"))
    return picture.convert("RGB")


def levels(picture: Image.Image) -> np.ndarray:
    """The numbers of a grey picture as they are stored, (h, w): uint8, or wider; 0 where it is transparent.

    Raises:
        ValueError: it has colours.
    """
    if picture.mode.startswith("I"):
        return np.asarray(picture)
    channels = np.asarray(colours(picture, "black"))
    if (channels != channels[..., :1]).any():
        raise ValueError("its channels differ")
    return channels[..., 0]


def decode(path: Path, content: Callable[[Image.Image], T], advice: str) -> T:
    """Return the content of a picture, or say which file can't be read, why, and what to do."""
    try:
        with Image.open(path) as image:
            return content(image)
    except Exception as error:  # a damaged file makes Pillow raise all kinds
        raise UserError(f"{path} can't be read ({in_one_line(error)}): {advice}.") from error
