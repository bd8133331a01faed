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
    """N images of one data set, with masks and classes."""

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
