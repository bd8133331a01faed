"""Images, labels and masks of a data set, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SHAPES = 1200
"""Generated samples, if no number is given."""


@dataclass(frozen=True, eq=False)
class Samples:
    """N images of one data set, with masks and classes.

    Raises:
        ValueError: the arrays do not fit together.
    """

    images: np.ndarray
    """uint8 (N, 3, S, S), RGB."""
    masks: np.ndarray
    """uint8 {0, 1} (N, S, S), 1 where the target is; all zeros where there is none."""
    labels: np.ndarray
    """int64 (N,), indices into `classes`."""
    classes: tuple[str, ...]
    names: tuple[str, ...]
    """Of each sample, unique: its image's path in the data set, without the suffix: `jpg/image_00001`."""
    shifted: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By the name of a shift, the same samples in front of other backgrounds: arrays such as `images`."""

    def __post_init__(self) -> None:
        count, size = len(self.labels), self.images.shape[-1]
        for name, array in {"images": self.images, **self.shifted}.items():
            _check(name, array, np.uint8, (count, 3, size, size))
        _check("masks", self.masks, np.uint8, (count, size, size))
        _check("labels", self.labels, np.int64, (count,))
        if count == 0:
            raise ValueError("there is no sample")
        if self.masks.max() > 1:
            raise ValueError(f"masks hold 0 and 1, not {self.masks.max()}")
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise ValueError(
                f"labels from {self.labels.min()} to {self.labels.max()}, {len(self.classes)} classes"
            )
        if len(self.names) != count or len(set(self.names)) != count:
            raise ValueError(
                f"{count} samples have {len(set(self.names))} different names of {len(self.names)}"
            )


def _check(name: str, array: np.ndarray, dtype: Any, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} are {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
