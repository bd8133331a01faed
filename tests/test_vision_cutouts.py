"""Cut-outs in front of backgrounds: exact masks, backgrounds that tell the class or lie, folds by object."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_vision_samples import assert_fits

from camal_rl.errors import UserError
from camal_rl.vision import cutouts, datasets
from camal_rl.vision.samples import Samples

CLASSES = ("apple", "bird", "fish")
GROUNDS = {"day": (0, 0, 200), "night": (0, 0, 60)}
"""Backgrounds' kinds, all of one colour; objects have red in them and no blue."""
SIZE = 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of four objects, ellipses on transparent ground, and two kinds of backgrounds."""
    for label, name in enumerate(CLASSES):
        (tmp_path / name).mkdir()
        for number in range(4):
            picture = Image.new("RGBA", (120, 100))  # transparent
            colour = (250 - 20 * number, 80 * label, 0, 255)
            ImageDraw.Draw(picture).ellipse((30, 20, 89, 59), colour)  # 60 x 40
            picture.save(tmp_path / name / f"object{number}.png")
    for kind, colour in GROUNDS.items():
        (tmp_path / "backgrounds" / kind).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (300, 200), colour).save(tmp_path / "backgrounds" / kind / f"{number}.png")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def kinds_of(images: np.ndarray) -> np.ndarray:
    """The number of the kind of each image's background, by its darkest blue outside of any object."""
    blues = np.array([np.median(image[2][image[0] == 0]) for image in images])
    return (blues < 130).astype(int)


def generated(folder: Path, count: int = 240) -> Samples:
    samples = cutouts.generate(folder, count, SIZE)
    assert_fits(samples)
    return samples


def test_masks_are_exact_and_objects_lie_within_the_picture(folder: Path) -> None:
    samples = generated(folder, 60)
    assert samples.classes == CLASSES
    for image, mask in zip(samples.images, samples.masks, strict=True):
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert cutouts.SIDES[0] * SIZE - 2 <= width <= cutouts.SIDES[1] * SIZE + 2
        assert width / height == pytest.approx(1.5, abs=0.15)
        assert mask.sum() == pytest.approx(np.pi / 4 * width * height, rel=0.05)
        assert (image[2][mask == 1] < 110).all(), "half covered at the edges, at most"
        assert (image[0][mask == 0] < 130).all()
    places = [np.argwhere(mask).mean(axis=0) for mask in samples.masks]
    assert np.std(places, axis=0).min() > 5


def test_backgrounds_go_with_the_class_are_drawn_at_random_or_lie(folder: Path) -> None:
    samples = generated(folder)
    own = samples.labels % len(GROUNDS)  # the third class shares the first one's
    assert np.mean(kinds_of(samples.images) == own) == pytest.approx(0.95, abs=0.04)
    assert np.mean(kinds_of(samples.shifted["decorrelated"]) == own) == pytest.approx(0.5, abs=0.1)
    assert (kinds_of(samples.shifted["reversed"]) != own).all()
    inside = samples.masks[:, None] * (samples.images[:, :1] > 200)  # of the object alone
    for images in samples.shifted.values():
        np.testing.assert_array_equal(images[:, :1] * inside, samples.images[:, :1] * inside)


def test_classes_and_their_objects_take_turns_and_folds_are_by_object(folder: Path) -> None:
    samples = generated(folder)
    assert np.bincount(samples.labels).tolist() == [80, 80, 80]
    assert samples.objects is not None
    assert np.bincount(samples.objects).tolist() == [20] * 12
    names = {
        int(number): name.rsplit("-", 1)[0]
        for number, name in zip(samples.objects, samples.names, strict=True)
    }
    assert names[5] == "bird/object1"
    tested = datasets.folds(samples.labels, 4, 1, samples.objects)
    for number in range(12):
        assert len(set(tested[samples.objects == number])) == 1
    assert [len(set(samples.labels[tested == fold])) for fold in range(4)] == [3] * 4
    with pytest.raises(UserError, match="5 folds need 5 objects or more of each class, and class 0 has 4"):
        datasets.folds(samples.labels, 5, 1, samples.objects)


def test_a_sample_depends_on_its_number_alone(folder: Path) -> None:
    few, many = generated(folder, 9), generated(folder, 30)
    np.testing.assert_array_equal(few.images, many.images[:9])
    np.testing.assert_array_equal(few.masks, many.masks[:9])
    assert few.names == many.names[:9]
    assert (cutouts.generate(folder, 9, SIZE, seed=1).masks != few.masks).any()


def test_an_object_is_mirrored_in_half_of_its_samples(folder: Path) -> None:
    picture = Image.new("RGBA", (60, 40), (250, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 30, 20))  # the left of its top is missing
    for place in CLASSES:
        for number in range(4):
            picture.save(folder / place / f"object{number}.png")
    heavier = []
    for mask in generated(folder).masks:
        columns = np.flatnonzero(mask.any(axis=0))
        left, right = np.array_split(mask[:, columns[0] : columns[-1] + 1], 2, axis=1)
        heavier.append(left.sum() > right.sum())
    assert np.mean(heavier) == pytest.approx(0.5, abs=0.1)


def test_data_sets_of_the_command_include_them(folder: Path) -> None:
    samples = datasets.load("cutouts", folder, SIZE, 12)
    np.testing.assert_array_equal(samples.images, generated(folder, 12).images)


def opaque(folder: Path) -> None:
    Image.new("RGB", (30, 30), "red").save(folder / "bird" / "photograph.png")


def damaged(folder: Path) -> None:
    (folder / "bird" / "text.png").write_text("no picture")


def nothing_in_a_class(folder: Path) -> None:
    (folder / "empty").mkdir()


def one_kind(folder: Path) -> None:
    (folder / "backgrounds" / "night").rename(folder / ".night")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            opaque,
            r"photograph\.png can't be read \(no part of it is transparent, or all, .*\): leave it out\.",
        ),
        (damaged, r"text\.png can't be read \(cannot identify image file .*\): leave it out\."),
        (nothing_in_a_class, r"empty holds no pictures\. Lay it out as FOLDER/<class>/\*\.png, .*"),
        (one_kind, r"3 classes and 1 kinds\. Lay it out as FOLDER/<class>/\*\.png, .* two kinds or more\."),
    ],
)
def test_a_folder_that_is_laid_out_otherwise_is_told_what_is_wrong(folder: Path, spoil, said: str) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=rf"{said}$"):
        generated(folder, 6)
