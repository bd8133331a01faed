"""Samples: arrays that fit together."""

from typing import Any

import numpy as np

from camal_rl.vision import shapes
from camal_rl.vision.samples import Samples


def some_samples(count: int = 4, size: int = 20, **changes: Any) -> Samples:
    arrays: dict[str, Any] = {
        "images": np.zeros((count, 3, size, size), np.uint8),
        "masks": np.zeros((count, size, size), np.uint8),
        "labels": np.arange(count) % 2,
        "classes": ("cat", "dog"),
        "names": tuple(map(str, range(count))),
    }
    return Samples(**arrays | changes)


def assert_fits(samples: Samples) -> None:
    """See that all is of the types, shapes and ranges that the fields of Samples say."""
    count, size = len(samples.labels), samples.images.shape[-1]
    for images in (samples.images, *samples.shifted.values()):
        assert (images.dtype, images.shape) == (np.uint8, (count, 3, size, size))
    assert (samples.masks.dtype, samples.masks.shape) == (np.uint8, (count, size, size))
    assert samples.masks.max() <= 1
    assert samples.labels.dtype == np.int64
    assert {*samples.labels} <= {*range(len(samples.classes))}
    assert len({*samples.names}) == len(samples.names) == count


def test_shapes_fit_together() -> None:
    assert_fits(shapes.generate(7, 32))
    assert_fits(some_samples())
