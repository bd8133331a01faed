"""The generated shapes: their class is in their corners, and their backgrounds lie as they are told to."""

import cv2
import numpy as np
import pytest

from camal_rl.vision import shapes
from camal_rl.vision.samples import Samples

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def few() -> Samples:
    return shapes.generate(count=60, image_size=224)


@pytest.fixture(scope="module")
def many() -> Samples:
    return shapes.generate(count=480, image_size=128, seed=1)


def pictures(samples: Samples) -> list[np.ndarray]:
    return [samples.images, *samples.shifted.values()]


def named_classes(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The class whose decoy stands in the background, read from its gradients (structure tensor)."""
    named = []
    for image, mask in zip(images, masks, strict=True):
        grey = cv2.GaussianBlur(image.mean(axis=0), (0, 0), 1)
        down, across = np.gradient(grey)
        outside = cv2.dilate(mask, np.ones((7, 7), np.uint8)) == 0
        down, across = down[outside], across[outside]
        angle = np.arctan2(2 * (down * across).sum(), (across**2 - down**2).sum()) / 2 % np.pi
        named.append(round(6 * angle / np.pi) % 6)
    return np.array(named)


def test_the_same_seed_gives_the_same_bytes_and_more_samples_begin_with_the_same_ones() -> None:
    some, again, more = (shapes.generate(count, 48, seed=3) for count in (7, 7, 20))
    for one, other, longer in zip(pictures(some), pictures(again), pictures(more), strict=True):
        assert one.tobytes() == other.tobytes() == longer[:7].tobytes()
    assert some.masks.tobytes() == again.masks.tobytes() == more.masks[:7].tobytes()
    assert more.names[:7] == some.names
    assert (more.labels[:7] == some.labels).all()


def test_another_seed_gives_other_shapes_and_other_backgrounds() -> None:
    one, other = (shapes.generate(6, 48, seed=seed) for seed in (0, 1))
    assert (one.masks != other.masks).any(axis=(1, 2)).all()
    for first, second in zip(pictures(one), pictures(other), strict=True):
        assert ((first != second).mean(axis=(1, 2, 3)) > 0.9).all()


def test_a_sample_is_the_same_scene_at_every_size() -> None:
    small, large = (shapes.generate(12, size) for size in (112, 224))
    halved = np.stack([cv2.resize(mask, (112, 112), interpolation=cv2.INTER_AREA) for mask in large.masks])
    assert (halved != small.masks).mean() < 0.01
    for one, other in zip(pictures(small), pictures(large), strict=True):
        assert (named_classes(one, small.masks) == named_classes(other, large.masks)).all()


@pytest.mark.parametrize("count", [1, 5, 6, 13])
def test_classes_are_as_frequent_as_each_other(count: int) -> None:
    samples = shapes.generate(count, 16)
    assert len(samples.labels) == count
    assert np.ptp(np.bincount(samples.labels, minlength=6)) <= 1


def test_known_samples_have_not_changed() -> None:
    # Results that are written down belong to these very pictures.
    samples = shapes.generate(6, 64)
    assert samples.masks.sum(axis=(1, 2)).tolist() == [414, 471, 270, 474, 474, 351]
    means = samples.images[0].mean(axis=(1, 2)), samples.shifted["reversed"][5].mean(axis=(1, 2))
    np.testing.assert_allclose(means[0], [136.624, 136.043, 143.729], atol=0.01)
    np.testing.assert_allclose(means[1], [137.472, 130.316, 126.608], atol=0.01)


def test_the_corners_of_a_mask_are_those_that_its_class_names(few: Samples) -> None:
    corners = {"triangle": 3, "square": 4, "hexagon": 6}
    corners |= {
        f"{number}-pointed star": 2 * count for number, count in (("three", 3), ("four", 4), ("six", 6))
    }
    assert tuple(corners) == few.classes == shapes.CLASSES
    for mask, label in zip(few.masks, few.labels, strict=True):
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        outline = max(outlines, key=len)  # not a pixel at the tip of a star
        radius = np.sqrt(mask.sum() / np.pi)
        assert len(cv2.approxPolyDP(outline, 0.15 * radius, True)) == corners[few.classes[label]]


def test_the_mask_is_exactly_the_pixels_of_one_colour(few: Samples) -> None:
    for image, mask in zip(few.images, few.masks, strict=True):
        inside = image[:, mask == 1].astype(int)
        assert (np.ptp(inside, axis=1) <= 2 * shapes.SHAPE_NOISE).all()
        # The background is nearly grey and the shape is not, so no pixel is both.
        colour = np.median(inside, axis=1)
        distances = np.abs(image - colour[:, None, None]).max(axis=0)
        np.testing.assert_array_equal(distances <= shapes.SHAPE_NOISE + 1, mask == 1)


def test_shapes_lie_wholly_in_the_picture_and_cover_what_they_should(few: Samples) -> None:
    areas = few.masks.mean(axis=(1, 2))
    assert areas.min() > shapes.AREAS[0]
    assert areas.max() < 1.05 * shapes.AREAS[1]  # whole pixels along the outline
    for mask in few.masks:
        assert (
            max(edge.sum() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])) < 12
        )  # a corner, no cut


def test_area_place_and_colour_do_not_depend_on_the_class() -> None:
    images = np.empty((6, 3, 3, 224, 224), np.uint8)
    masks = [shapes._draw(image, label, np.random.default_rng(5)) for label, image in enumerate(images)]
    centres = np.array([np.argwhere(mask).mean(axis=0) for mask in masks])
    assert np.ptp(centres, axis=0).max() < 0.5
    areas = np.array([mask.sum() for mask in masks])
    assert np.ptp(areas) < 0.03 * areas.mean()
    colours = np.array(
        [np.median(image[0][:, mask == 1], axis=1) for image, mask in zip(images, masks, strict=True)]
    )
    assert np.ptp(colours, axis=0).max() <= 1


def test_the_very_same_shape_stands_before_every_background(many: Samples) -> None:
    assert tuple(many.shifted) == ("decorrelated", "reversed")
    inside = np.broadcast_to(many.masks[:, None] == 1, many.images.shape)
    for images in many.shifted.values():
        np.testing.assert_array_equal(images[inside], many.images[inside])
        assert (images[~inside] != many.images[~inside]).mean() > 0.9


def test_backgrounds_name_the_class_in_training_and_lie_when_shifted(many: Samples) -> None:
    named = {name: named_classes(images, many.masks) for name, images in many.shifted.items()}
    right = (named_classes(many.images, many.masks) == many.labels).mean()
    assert 0.92 < right < 0.98  # of 480, with probability 0.95 each
    assert 0.10 < (named["decorrelated"] == many.labels).mean() < 0.24
    assert np.bincount(named["decorrelated"], minlength=6).min() > 50
    wrong = [shapes.wrong_class(label) for label in many.labels]
    assert (named["reversed"] == wrong).all()
    assert (named["reversed"] != many.labels).all()


def test_every_class_is_the_wrong_one_of_exactly_one_other() -> None:
    assert sorted(map(shapes.wrong_class, range(6))) == list(range(6))
    assert all(shapes.wrong_class(label) != label for label in range(6))
