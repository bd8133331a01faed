"""Images, labels and masks of a data set as arrays, which are generated or read from files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np

DataName: TypeAlias = Literal["shapes", "cutouts", "busi", "pet", "flower"]
DATA: tuple[str, ...] = get_args(DataName)
GENERATED = 1200
"""Samples that are generated where no number is given."""
SMALLEST_IMAGE, LARGEST_IMAGE = 16, 4096
"""Least and greatest side of an image, in pixels."""


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
    """Unique names of samples: the paths of their images, without suffix, as in `jpg/image_00001`."""
    shifted: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name of a shift -> the same samples in front of other backgrounds, an array such as `images`."""
    objects: np.ndarray | None = None
    """int64 (N,), the number of the object that each sample shows; None where each has its own."""

    def __post_init__(self) -> None:
        count, size = len(self.labels), self.images.shape[-1]
        images = {"images": self.images, **self.shifted}
        kinds: list[tuple[str, np.ndarray, str, tuple[int, ...]]] = [
            *((name, array, "uint8", (count, 3, size, size)) for name, array in images.items()),
            ("masks", self.masks, "uint8", (count, size, size)),
            ("labels", self.labels, "int64", (count,)),
        ]
        for name, array, dtype, shape in kinds:
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name} are {array.dtype} {array.shape}, not {dtype} {shape}")
        if self.masks.max(initial=0) > 1:
            raise ValueError(f"masks hold 0 and 1, not {self.masks.max()}")
        if not set(np.unique(self.labels)) <= set(range(len(self.classes))):
            raise ValueError(
                f"labels are indices of {len(self.classes)} classes, not {np.unique(self.labels)}"
            )
        if len(self.names) != count or len(set(self.names)) != count:
            raise ValueError(
                f"{count} samples have {len(set(self.names))} different names of {len(self.names)}"
            )
