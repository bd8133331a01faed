"""Drawn frames -> what an agent sees: frames shrunk by averaging over areas, and stacked."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

SINGLE_THREAD_PRODUCT = 2**18
"""OpenBLAS runs a product of more multiply-adds than this on several threads, which gains nothing at the
sizes of frames and masks, and takes the cores from the game engines."""


def grey(screen: np.ndarray) -> np.ndarray:
    """Return a frame in colour, uint8 (H, W, 3) RGB, in the engine's own grey, uint8 (H, W)."""
    red, green, blue = np.moveaxis(screen * np.array([0.21, 0.72, 0.07]), -1, 0)
    return np.asarray(red + green + blue).astype(np.uint8)  # in this order, as rounding depends on it


class Stack:
    """The newest frames, the newest last.

    In memory a pixel's frames lie beside each other: a network wants them so, and to reorder them with every
    step takes longer than all else about them.

    Args:
        memory: uint8 (H, W, stack), contiguous, to be written to; others may own it.

    Attributes:
        images: a view of it, uint8 (stack, H, W).
    """

    def __init__(self, memory: np.ndarray) -> None:
        self.images = np.moveaxis(memory, -1, 0)
        length = memory.shape[-1]
        self._shift = 8 * (length - 1)
        self._numbers: np.ndarray | None = None
        if length in (2, 4, 8) and sys.byteorder == "little":  # one number a pixel, moved as a whole
            self._numbers = memory.view(f"u{length}")[..., 0]  # (H, W)
            self._newest = np.empty_like(self._numbers)

    def push(self, frame: np.ndarray) -> None:
        """Put a new frame last and drop the first: whole numbers from 0 to 255 of any dtype, (H, W)."""
        if self._numbers is None:
            self.images[:-1] = self.images[1:]
            self.images[-1] = frame
            return
        np.copyto(self._newest, frame, casting="unsafe")
        np.left_shift(self._newest, self._shift, out=self._newest)
        np.right_shift(self._numbers, 8, out=self._numbers)
        np.bitwise_or(self._numbers, self._newest, out=self._numbers)


def shrinking(source: tuple[int, int], size: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """The fastest way to average a frame over areas: uint8 of the source's size -> whole numbers of `size`.

    Both are height and width, the new ones no greater. The result may be overwritten by the next call. The
    ways differ by one at most, where an average lies in the middle between two numbers.
    """
    if size == source:
        return lambda frame: frame
    periods = [old // math.gcd(old, new) for old, new in zip(source, size, strict=True)]
    work = size[0] * (periods[0] * source[1] + periods[1] * size[1])  # multiply-adds of `AreaProducts`
    whole = all(old % new == 0 for old, new in zip(source, size, strict=True))  # OpenCV has a fast way for it
    if not whole and work < AREA_WORK * source[0] * source[1]:
        return AreaProducts(source, size)
    return partial(cv2.resize, dsize=size[::-1], interpolation=cv2.INTER_AREA)


AREA_WORK = 30
"""Multiply-adds that take less time than OpenCV takes for a pixel of the source (measured: equal at 40)."""


class AreaProducts:
    """Shrinks frames by averaging over areas, as two products with small matrices.

    Along an axis both sizes are multiples of their greatest common divisor, so the pixels overlap in the same
    pattern again and again: a matrix of whole numbers. The products with it are the weighted sums, exact in
    float32 because they stay below 2**24. From 240x320 to 84x84 that takes a third of OpenCV's time.

    Args:
        source: height and width of the frames.
        size: height and width to shrink them to, no greater.
    """

    def __init__(self, source: tuple[int, int], size: tuple[int, int]) -> None:
        rows, columns = (_overlaps(*pair) for pair in zip(source, size, strict=True))
        height, width = source
        blocks = math.gcd(height, size[0])
        self._pixels = np.empty(source, np.float32)
        self._squeezed = np.empty((size[0], width), np.float32)
        self._sums = np.empty(size, np.float32)
        self._total = float(rows[0].sum() * columns[0].sum())
        # Each product is cut into pieces that one thread computes.
        pieces = _pieces(width, rows.size)
        self._rows = rows  # (s, l)
        self._above = _split(self._pixels, blocks, pieces)  # (blocks, pieces, l, ...)
        self._between = _split(self._squeezed, blocks, pieces)  # (blocks, pieces, s, ...)
        lines = size[0] * math.gcd(width, size[1])
        pieces = _pieces(lines, columns.size)
        self._columns = np.ascontiguousarray(columns.T)  # (l, s)
        self._left = self._squeezed.reshape(pieces, lines // pieces, -1)
        self._right = self._sums.reshape(pieces, lines // pieces, -1)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Return the frame, uint8, shrunk: whole numbers, float32, which the next call overwrites."""
        self._pixels[...] = frame
        np.matmul(self._rows, self._above, out=self._between)
        np.matmul(self._left, self._columns, out=self._right)
        np.divide(self._sums, self._total, out=self._sums)
        np.rint(self._sums, out=self._sums)
        return self._sums


def _overlaps(length: int, size: int) -> np.ndarray:
    """The part of each old pixel that each new one covers along an axis, float32 (s, l), in 1 / s old pixels.

    It has as many of both as it takes until they begin at the same place again.
    """
    divisor = math.gcd(length, size)
    old, new = length // divisor, size // divisor
    end = np.minimum((np.arange(new)[:, None] + 1) * old, (np.arange(old) + 1) * new)
    begin = np.maximum(np.arange(new)[:, None] * old, np.arange(old) * new)
    overlaps: np.ndarray = np.maximum(end - begin, 0).astype(np.float32)
    return overlaps


def _pieces(length: int, work: int) -> int:
    """The fewest equal pieces of a length, each times `work` no more than one thread computes, if any are."""
    divisors = [pieces for pieces in range(1, length + 1) if length % pieces == 0]
    return next((pieces for pieces in divisors if length // pieces * work <= SINGLE_THREAD_PRODUCT), length)


def _split(pixels: np.ndarray, blocks: int, pieces: int) -> np.ndarray:
    """A view of (H, W) by blocks of rows and pieces of columns: (blocks, pieces, H / blocks, W / pieces)."""
    height, width = pixels.shape
    view: np.ndarray = pixels.reshape(blocks, height // blocks, pieces, width // pieces).swapaxes(1, 2)
    return view
