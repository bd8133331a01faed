"""Samples: arrays that fit together, and those that do not."""

from typing import Any

import numpy as np
import pytest

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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((4, 20, 20, 3), np.uint8)}, "images are uint8"),
        ({"images": np.zeros((4, 3, 20, 20), np.float32)}, "images are float32"),
        ({"images": np.zeros((3, 3, 20, 20), np.uint8)}, r"not uint8 \(4, 3, 20, 20\)"),
        ({"masks": np.zeros((4, 20, 10), np.uint8)}, "masks are"),
        ({"masks": np.zeros((4, 20, 20), bool)}, "masks are bool"),
        ({"masks": np.full((4, 20, 20), 255, np.uint8)}, "masks hold 0 and 1, not 255"),
        ({"labels": np.zeros(4, np.int32)}, "labels are int32"),
        ({"labels": np.array([0, 1, 2, 0])}, "labels are indices of 2 classes"),
        ({"labels": np.array([0, 1, -1, 0])}, "labels are indices of 2 classes"),
        ({"names": ("a", "b", "c")}, "3 different names of 3"),
        ({"names": ("a", "b", "c", "a")}, "3 different names of 4"),
        ({"shifted": {"reversed": np.zeros((4, 3, 10, 20), np.uint8)}}, "reversed are"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str) -> None:
    some_samples()
    with pytest.raises(ValueError, match=message):
        some_samples(**changes)
