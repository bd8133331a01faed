"""Frames: averages over areas against whole-number arithmetic and OpenCV, and stacks against plain moves."""

import itertools
from fractions import Fraction

import cv2
import numpy as np
import pytest

from camal_rl.game import frames
from camal_rl.game.frames import SINGLE_THREAD_PRODUCT

SIZES = [
    ((240, 320), (84, 84)),
    ((120, 160), (84, 84)),
    ((150, 200), (84, 84)),
    ((192, 256), (84, 84)),
    ((240, 320), (36, 50)),
    ((240, 320), (120, 160)),  # whole factors
    ((240, 320), (83, 89)),  # without a common divisor
    ((12, 9), (12, 9)),
    ((7, 5), (1, 1)),
    ((7, 5), (3, 5)),
]


@pytest.mark.parametrize(("source", "size"), SIZES)
def test_shrinking_averages_over_areas_as_opencv_does(source: tuple[int, int], size: tuple[int, int]) -> None:
    shrink = frames.shrinking(source, size)
    rng = np.random.default_rng(0)
    for frame in (rng.integers(0, 256, source, np.uint8), np.full(source, 255, np.uint8)):
        ours = np.array(shrink(frame), np.float64)
        assert ours.shape == size
        assert np.array_equal(ours, np.rint(ours))
        assert (ours.min() >= 0) & (ours.max() <= 255)
        theirs = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(ours - theirs).max() <= 1
        assert (ours != theirs).mean() < 0.01
    assert (ours == 255).all()


def exact_average(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Averages over areas in fractions, rounded half to even."""
    height, width = frame.shape
    result = np.zeros(size)
    for row, column in itertools.product(*map(range, size)):
        total = Fraction(0)
        for y, x in itertools.product(range(height), range(width)):
            sides = [
                max(
                    Fraction(0),
                    min(Fraction((new + 1) * old_size, new_size), Fraction(old + 1))
                    - max(Fraction(new * old_size, new_size), Fraction(old)),
                )
                for new, old, old_size, new_size in (
                    (row, y, height, size[0]),
                    (column, x, width, size[1]),
                )
            ]
            total += sides[0] * sides[1] * int(frame[y, x])
        result[row, column] = round(total * size[0] * size[1] / (height * width))
    return result


@pytest.mark.parametrize(("source", "size"), [((10, 8), (7, 6)), ((9, 12), (6, 8)), ((5, 4), (4, 3))])
def test_products_are_exact(source: tuple[int, int], size: tuple[int, int]) -> None:
    frame = np.random.default_rng(1).integers(0, 256, source, np.uint8)
    np.testing.assert_array_equal(frames.AreaProducts(source, size)(frame), exact_average(frame, size))


def test_a_frame_of_the_right_size_is_left_as_it_is() -> None:
    frame = np.zeros((5, 6), np.uint8)
    assert frames.shrinking((5, 6), (5, 6))(frame) is frame


@pytest.mark.parametrize(
    ("source", "size", "products"),
    [((240, 320), (84, 84), True), ((240, 320), (120, 160), False), ((240, 320), (83, 89), False)],
)
def test_products_are_taken_where_they_are_faster(
    source: tuple[int, int], size: tuple[int, int], products: bool
) -> None:
    assert isinstance(frames.shrinking(source, size), frames.AreaProducts) == products


@pytest.mark.parametrize(("length", "work"), [(320, 140), (336, 1680), (7, 2**19), (97, 2**17)])
def test_products_are_cut_into_the_fewest_pieces_that_one_thread_computes(length: int, work: int) -> None:
    pieces = frames._pieces(length, work)
    assert length % pieces == 0
    assert length // pieces * work <= SINGLE_THREAD_PRODUCT or pieces == length
    fewer = [divisor for divisor in range(1, pieces) if length % divisor == 0]
    assert all(length // divisor * work > SINGLE_THREAD_PRODUCT for divisor in fewer)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_oldest_frame_is_dropped_and_the_others_move_up(length: int, dtype: type) -> None:
    memory = np.random.default_rng(0).integers(0, 256, (5, 6, 7, length), np.uint8)  # of five environments
    before = memory.copy()
    stack = frames.Stack(memory[2])
    assert stack.images.shape == (length, 6, 7)
    frame = np.random.default_rng(1).integers(0, 256, (6, 7)).astype(dtype)
    frame[0, 0], frame[0, 1] = 0, 255
    stack.push(frame)
    np.testing.assert_array_equal(stack.images[-1], frame)
    np.testing.assert_array_equal(stack.images[:-1], np.moveaxis(before[2], -1, 0)[1:])
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(memory[others], before[others])
