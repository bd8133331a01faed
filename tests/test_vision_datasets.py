"""Published data sets in their published form -> samples; folds; and what a user is told and shown."""

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from test_vision_samples import assert_fits, some_samples

from camal_rl.errors import UserError
from camal_rl.results import media
from camal_rl.run.command_line import parse
from camal_rl.vision import datasets
from camal_rl.vision.datasets import folds, load

pytestmark = pytest.mark.slow

Colour = tuple[int, int, int]
GREY: Colour = (90, 90, 90)


def save(path: Path, image: Image.Image, kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format=kind)
    return path


def plain(size: tuple[int, int] = (60, 40), colour: Colour = GREY) -> Image.Image:
    return Image.new("RGB", size, colour)


def drawn(mode: str, size: tuple[int, int], box: tuple[int, int, int, int] | None, ink: Any) -> Image.Image:
    """A black image with a rectangle: left, top, right and bottom, the last two not in it."""
    image = Image.new(mode, size)
    if box:
        left, top, right, bottom = box
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=ink)
    return image


def gradient(size: int = 256) -> Image.Image:
    """Red says which column a pixel is in, green which row."""
    rows, columns = np.mgrid[:size, :size]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8))


# ------------------------------------------------------------------------------------------------------------
# The published layouts


@pytest.fixture
def busi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "Dataset_BUSI_with_GT"
    for name, count in {"benign": 10, "malignant": 2, "normal": 2}.items():
        for number in range(1, count + 1):
            image = base / name / f"{name} ({number}).png"
            save(image, plain(colour=(10 * number, 0, 0)))
            lesion = None if name == "normal" else (0, 0, 30, 20)
            save(image.with_name(f"{image.stem}_mask.png"), drawn("L", (60, 40), lesion, 255))
    save(base / "benign" / "benign (3)_mask_1.png", drawn("1", (60, 40), (30, 20, 60, 40), 1))
    save(base / "benign" / "benign (3)_mask_2.png", drawn("RGB", (60, 40), (30, 0, 60, 20), (255, 255, 255)))
    monkeypatch.setitem(datasets.EXPECTED, "busi", {"benign": 10, "malignant": 2, "normal": 2})
    monkeypatch.setattr(datasets, "EXPECTED_BUSI_MASKS", 16)
    return tmp_path


@pytest.fixture
def pet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("torchvision")
    base = tmp_path / "oxford-iiit-pet"
    splits = {
        "trainval": ["Abyssinian_100 1 1 1", "american_bulldog_10 2 2 1", "Abyssinian_101 1 1 1"],
        "test": ["american_bulldog_100 2 2 1", "Abyssinian_1 1 1 1"],
    }
    for split, lines in splits.items():
        (base / "annotations" / "xmls").mkdir(parents=True, exist_ok=True)
        (base / "annotations" / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
        for line in lines:
            name = line.split()[0]
            save(base / "images" / f"{name}.jpg", plain())
            trimap = np.full((40, 60), 2, np.uint8)
            trimap[10:30, 15:45] = 3
            trimap[15:25, 20:40] = 1
            save(base / "annotations" / "trimaps" / f"{name}.png", Image.fromarray(trimap))
    # The archives hold these, too.
    (base / "annotations" / "trimaps" / "._Abyssinian_1.png").write_bytes(b"Mac OS X")
    save(base / "images" / "Abyssinian_999.jpg", plain())
    monkeypatch.setitem(datasets.EXPECTED, "pet", {"trainval": 3, "test": 2})
    return tmp_path


@pytest.fixture
def flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    loaders = pytest.importorskip("torchvision.datasets")
    from scipy.io import savemat

    base = tmp_path / "flowers-102"
    for number in range(1, 8):
        save(base / "jpg" / f"image_{number:05d}.jpg", plain(colour=(0, 30 * number, 0)))
        segmentation = Image.new("RGB", (600, 400), (0, 0, 254))
        ImageDraw.Draw(segmentation).rectangle((150, 100, 449, 299), fill=(230, 200, 40))
        save(base / "segmim" / f"segmim_{number:05d}.jpg", segmentation)
    savemat(base / "imagelabels.mat", {"labels": np.array([[1, 1, 102, 102, 2, 2, 2]], np.uint8)})
    parts = {"trnid": [[6, 3]], "valid": [[1, 7]], "tstid": [[5, 4, 2]]}
    savemat(base / "setid.mat", {name: np.array(ids, np.uint16) for name, ids in parts.items()})
    names = {key: (name, None) for key, (name, _) in loaders.Flowers102._file_dict.items()}
    monkeypatch.setattr(loaders.Flowers102, "_file_dict", names)  # no checksums
    monkeypatch.setitem(datasets.EXPECTED, "flower", {"train": 2, "val": 2, "test": 3})
    return tmp_path


def test_the_published_numbers_are_those_of_the_papers() -> None:
    sums = {data: sum(parts.values()) for data, parts in datasets.EXPECTED.items()}
    assert sums == {"busi": 780, "pet": 7349, "flower": 8189}


def test_busi_is_read_as_published_and_all_masks_of_an_image_are_united(busi: Path) -> None:
    samples = load("busi", busi, 56)
    assert_fits(samples)
    assert samples.classes == ("benign", "malignant", "normal")
    assert samples.labels.tolist() == [0] * 10 + [1] * 2 + [2] * 2
    assert samples.names[:3] == ("benign/benign (1)", "benign/benign (2)", "benign/benign (3)")
    assert samples.names[9:11] == ("benign/benign (10)", "malignant/malignant (1)")
    assert samples.images.shape == (14, 3, 56, 56)
    assert (samples.images[1] == np.array([20, 0, 0])[:, None, None]).all()
    quarter = samples.masks[0]
    assert (quarter[:28, :28] == 1).all()
    assert quarter.sum() == 28 * 28
    assert samples.masks[2].sum() == 3 * 28 * 28  # all but the lower left
    assert samples.masks[2][28:, :28].sum() == 0
    assert samples.masks[12:].sum() == 0
    assert samples.shifted == {}


def test_a_pets_mask_is_the_pet_with_its_border(pet: Path) -> None:
    samples = load("pet", pet, 56)
    assert_fits(samples)
    assert samples.classes == ("Abyssinian", "American Bulldog")
    assert samples.names == (
        *("images/Abyssinian_1", "images/Abyssinian_100", "images/Abyssinian_101"),
        *("images/american_bulldog_10", "images/american_bulldog_100"),
    )
    assert samples.labels.tolist() == [0, 0, 0, 1, 1]
    # 60 x 40 becomes 64 x 64, of which 4 are cut off: columns 16 to 48 are 12 to 44.
    expected = np.zeros((56, 56), np.uint8)
    expected[12:44, 12:44] = 1
    assert (samples.masks == expected).all()


def test_a_picture_of_another_format_than_its_suffix_says_is_read(pet: Path) -> None:
    path = pet / "oxford-iiit-pet" / "images" / "Abyssinian_1.jpg"  # the published archive has such files
    for kind, image in {
        "GIF": plain(colour=(200, 0, 0)).quantize(4),
        "PNG": Image.new("RGBA", (60, 40), (200, 0, 0, 128)),
    }.items():
        save(path, image, kind)
        samples = load("pet", pet, 56)
        assert (samples.images[0] == np.array([200, 0, 0])[:, None, None]).all()


def test_flowers_of_all_splits_are_read_with_their_segmentations(flower: Path) -> None:
    samples = load("flower", flower, 56)
    assert_fits(samples)
    assert samples.names == tuple(f"jpg/image_{number:05d}" for number in range(1, 8))
    assert samples.labels.tolist() == [0, 0, 101, 101, 1, 1, 1]
    assert len(samples.classes) == 102
    assert samples.classes[0] == "pink primrose"
    assert np.abs(samples.images[:, 1].mean(axis=(1, 2)) - 30 * np.arange(1, 8)).max() < 2
    expected = np.zeros((56, 56), np.uint8)
    expected[12:44, 12:44] = 1
    assert (samples.masks != expected).mean() < 0.01  # JPEG blurs edges


PETALS: list[Colour] = [
    *((240, 220, 30), (250, 250, 250), (150, 20, 60), (20, 40, 20)),
    *((90, 80, 190), (60, 70, 160), (80, 90, 220), (100, 60, 230)),
]


@pytest.mark.parametrize("colour", PETALS)
@pytest.mark.parametrize("quality", [60, 90])
def test_a_blossom_of_any_colour_is_told_from_the_blue_around_it(colour: Colour, quality: int) -> None:
    truth = np.zeros((500, 600), np.uint8)
    rng = np.random.default_rng(0)
    for angle in np.arange(5) * 2 * np.pi / 5:
        centre = (round(300 + 90 * np.cos(angle)), round(250 + 90 * np.sin(angle)))
        cv2.ellipse(truth, centre, (90, 45), np.degrees(angle), 0, 360, 1, cv2.FILLED)
    painted = np.where(truth[..., None] == 1, np.array(colour), [0, 0, 254])
    painted = painted + truth[..., None] * rng.normal(0, 12, (500, 600, 1))
    file = io.BytesIO()
    Image.fromarray(np.clip(painted, 0, 255).astype(np.uint8)).save(
        file, "JPEG", quality=quality, subsampling=2
    )
    found = datasets._flower_blossom(Image.open(file))
    assert (found & (truth == 1)).sum() / (found | (truth == 1)).sum() > 0.97
    assert cv2.connectedComponents(found.astype(np.uint8))[0] == 2  # no specks


def test_a_segmentation_without_a_blossom_is_an_empty_mask() -> None:
    file = io.BytesIO()
    Image.new("RGB", (50, 40), (0, 0, 254)).save(file, "JPEG")
    assert not datasets._flower_blossom(Image.open(file)).any()


# ------------------------------------------------------------------------------------------------------------
# Files that another program saved again


def lesion(mode: str) -> Image.Image:
    """The left upper quarter of 60 x 40 pixels, as the fixture draws it, in another mode."""
    quarter = drawn("L", (60, 40), (0, 0, 30, 20), 255)
    if mode == "16 bits":
        return Image.fromarray(np.asarray(quarter).astype(np.uint16) * 257)
    if mode == "0 and 1":
        return quarter.point(lambda level: level // 255)
    if mode == "0 and 1 in 16 bits":
        return Image.fromarray((np.asarray(quarter) // 255).astype(np.uint16))
    if mode == "on transparent white":
        made = Image.new("RGBA", (60, 40), (255, 255, 255, 0))
        made.paste((255, 255, 255, 255), mask=quarter)
        return made
    if mode == "all transparent":
        made = quarter.convert("RGBA")
        made.putalpha(0)
        return made
    return quarter.convert(mode)


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "P",
        "LA",
        "RGBA",
        "16 bits",
        "0 and 1",
        "0 and 1 in 16 bits",
        "on transparent white",
        "all transparent",
    ],
)
def test_a_lesion_is_read_whatever_the_mode_of_its_mask(mode: str, busi: Path) -> None:
    save(busi / "Dataset_BUSI_with_GT" / "malignant" / "malignant (1)_mask.png", lesion(mode))
    samples = load("busi", busi, 56)
    np.testing.assert_array_equal(samples.masks[10], samples.masks[11])


def test_what_jpeg_leaves_around_a_lesion_is_none_of_it(busi: Path) -> None:
    path = busi / "Dataset_BUSI_with_GT" / "malignant" / "malignant (1)_mask.png"
    save(path, lesion("RGB"), "JPEG")
    assert (np.asarray(Image.open(path))[:, 31:] > 0).any()
    samples = load("busi", busi, 56)
    np.testing.assert_array_equal(samples.masks[10], samples.masks[11])


@pytest.mark.parametrize("data", ["busi", "pet"])
def test_an_image_of_16_bits_is_that_of_8(data: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(data)
    name = {
        "busi": "Dataset_BUSI_with_GT/benign/benign (1).png",
        "pet": "oxford-iiit-pet/images/Abyssinian_1.jpg",
    }
    save(folder / name[data], Image.fromarray(np.full((40, 60), 90 * 257, np.uint16)), "PNG")
    assert (load(data, folder, 32).images[0] == 90).all()


def test_a_trimap_without_a_pet_is_an_empty_mask(pet: Path) -> None:
    trimap = pet / "oxford-iiit-pet" / "annotations" / "trimaps" / "Abyssinian_1.png"
    save(trimap, Image.new("L", (60, 40), 2))
    samples = load("pet", pet, 32)
    assert samples.masks.any(axis=(1, 2)).tolist() == [False, True, True, True, True]


TRIMAP = np.repeat(np.array([[2, 3, 1, 3]], np.uint8), 15).reshape(1, 60).repeat(40, axis=0)


@pytest.mark.parametrize(
    "saved",
    [
        Image.fromarray(TRIMAP).convert("RGB"),
        Image.fromarray(TRIMAP).convert("RGBA"),
        Image.fromarray(TRIMAP.astype(np.uint16)),
        Image.fromarray(TRIMAP, "P"),
    ],
    ids=["RGB", "RGBA", "16 bits", "palette"],
)
def test_a_trimap_is_read_in_any_mode_that_keeps_its_numbers(saved: Image.Image, pet: Path) -> None:
    folder = pet / "oxford-iiit-pet" / "annotations" / "trimaps"
    if saved.mode == "P":
        saved.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    for name in ("Abyssinian_1", "Abyssinian_100"):
        save(folder / f"{name}.png", Image.fromarray(TRIMAP) if name == "Abyssinian_100" else saved)
    masks = load("pet", pet, 56).masks
    np.testing.assert_array_equal(masks[0], masks[1])
    assert 0.6 < masks[0].mean() < 0.9


@pytest.mark.parametrize(
    ("saved", "reason"),
    [
        (Image.fromarray((TRIMAP - 1) * 127), "it holds 0, 127, 254"),
        (Image.fromarray(TRIMAP - 1), "it holds 0, 1, 2, not 1, 2 and 3"),
        (Image.fromarray(np.stack([TRIMAP, TRIMAP, 4 - TRIMAP], axis=2)), "its channels differ"),
        (
            Image.fromarray(np.stack([TRIMAP] * 3 + [255 * (TRIMAP != 2)], axis=2).astype(np.uint8)),
            "it holds 0, 1, 3",
        ),
    ],
)
def test_a_trimap_with_other_numbers_is_named(saved: Image.Image, reason: str, pet: Path) -> None:
    path = save(pet / "oxford-iiit-pet" / "annotations" / "trimaps" / "Abyssinian_1.png", saved)
    assert f"{path} can't be read ({reason}" in refusal("pet", pet)


def test_a_segmentation_is_read_on_transparent_ground_and_refused_without_colour(flower: Path) -> None:
    path = flower / "flowers-102" / "segmim" / "segmim_00001.jpg"
    cut_out = Image.new("RGBA", (600, 400), (255, 255, 255, 0))
    cut_out.paste((230, 200, 40, 255), (150, 100, 450, 300))
    save(path, cut_out, "PNG")
    masks = load("flower", flower, 56).masks
    assert (masks[0] != masks[1]).mean() < 0.01
    save(path, drawn("L", (600, 400), (150, 100, 450, 300), 255))
    assert f"{path} can't be read (it has no colour" in refusal("flower", flower)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("busi", "Dataset_BUSI_with_GT/malignant/malignant (1)_mask.png"),
        ("pet", "oxford-iiit-pet/annotations/trimaps/Abyssinian_1.png"),
        ("flower", "flowers-102/segmim/segmim_00001.jpg"),
    ],
)
def test_a_mask_of_other_proportions_than_its_image_is_named(
    data: str, name: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(data) / name
    with Image.open(path) as mask:
        save(path, mask.transpose(Image.Transpose.ROTATE_90))
    message = refusal(data, path.parents[len(Path(name).parts) - 1])
    assert str(path) in message
    assert re.search(r"40.* x .*60.*60.* x .*40", message)


def test_a_mask_may_be_smaller_than_its_image_or_lack_a_row(busi: Path) -> None:
    path = busi / "Dataset_BUSI_with_GT" / "malignant" / "malignant (1)_mask.png"
    for size in ((30, 20), (60, 39)):
        save(path, lesion("L").resize(size, Image.Resampling.NEAREST))
        samples = load("busi", busi, 56)
        assert (samples.masks[10] != samples.masks[11]).mean() < 0.05
    save(path.with_name("malignant (1).png"), plain((41, 40)))
    save(path, lesion("L").resize((40, 41), Image.Resampling.NEAREST))
    assert "40 x 41 pixels" in refusal("busi", busi)


# ------------------------------------------------------------------------------------------------------------
# Size


def test_the_middle_of_a_square_is_kept(busi: Path) -> None:
    image = busi / "Dataset_BUSI_with_GT" / "malignant" / "malignant (2).png"
    save(image, gradient())
    save(image.with_name("malignant (2)_mask.png"), drawn("L", (256, 256), (100, 50, 101, 52), 255))
    samples = load("busi", busi)
    columns, rows, _ = samples.images[11]  # 256 becomes 256, and of that 224 are kept
    assert (columns == np.arange(16, 240)).all()
    assert (rows == np.arange(16, 240)[:, None]).all()
    assert np.argwhere(samples.masks[11]).tolist() == [[50 - 16, 100 - 16], [51 - 16, 100 - 16]]


def test_images_are_interpolated_and_masks_take_the_nearest_pixel(busi: Path) -> None:
    image = busi / "Dataset_BUSI_with_GT" / "malignant" / "malignant (2).png"
    stripes = np.tile(np.array([[0, 0, 255]], np.uint8), (60, 20))
    save(image, Image.fromarray(np.stack([stripes] * 3, axis=2)))
    # All that is not black is the lesion.
    lesion = np.where(stripes > 0, 1, 0).astype(np.uint8)
    save(image.with_name("malignant (2)_mask.png"), Image.fromarray(lesion))
    samples = load("busi", busi, 32)
    wanted = np.asarray(Image.fromarray(lesion).resize((37, 37), Image.Resampling.NEAREST))[2:34, 2:34]
    np.testing.assert_array_equal(samples.masks[11], wanted)
    assert 0 < samples.masks[11].mean() < 1
    assert ((samples.images[11] > 0) & (samples.images[11] < 255)).mean() > 0.9


@pytest.mark.parametrize(("size", "whole"), [(224, 256), (112, 128), (96, 110), (33, 38)])
@pytest.mark.parametrize("shape", [(61, 45), (700, 300), (256, 256)])
def test_sizes_are_torchvisions(size: int, whole: int, shape: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    noise = np.random.default_rng(0).integers(256, size=(*shape, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    for resampling, mode in ((Image.Resampling.BILINEAR, "BILINEAR"), (Image.Resampling.NEAREST, "NEAREST")):
        wanted = transforms.CenterCrop(size)(
            transforms.Resize((whole, whole), transforms.InterpolationMode[mode])(image)
        )
        np.testing.assert_array_equal(datasets._fitted(image, size, resampling), np.asarray(wanted))


# ------------------------------------------------------------------------------------------------------------
# What is missing or damaged

ADVICE = {
    "busi": "Dataset_BUSI.zip from https://scholar.cu.edu.eg",
    "pet": "images.tar.gz and annotations.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/pets/",
    "flower": "102segmentations.tgz, imagelabels.mat and setid.mat from https://www.robots.ox.ac.uk/~vgg/data/flowers",
}


def parsed(*options: str) -> datasets.Args:
    return parse(datasets.Args, "datasets", options)


def refusal(data: str, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(data, folder, 32)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("data", ["busi", "pet", "flower"])
def test_what_is_missing_is_told_with_its_address_and_its_place(data: str, tmp_path: Path) -> None:
    if data != "busi":
        pytest.importorskip("torchvision")
    message = refusal(data, tmp_path)
    assert ADVICE[data] in message
    assert f"into {tmp_path}" in message
    assert "download=True" not in message  # torchvision's, which nobody can give here


@pytest.mark.parametrize(
    ("data", "name", "what"),
    [
        ("busi", "Dataset_BUSI_with_GT/benign/benign (7).png", "9 images in .*benign, but 10 were published"),
        (
            "busi",
            "Dataset_BUSI_with_GT/benign/benign (3)_mask_2.png",
            "15 masks in .*, but 16 were published",
        ),
        ("busi", "Dataset_BUSI_with_GT/benign/benign (2)_mask.png", r"1 of 30 files .*benign \(2\)_mask.png"),
        ("pet", "oxford-iiit-pet/images/Abyssinian_100.jpg", "1 of 10 files are missing.*Abyssinian_100.jpg"),
        ("pet", "oxford-iiit-pet/annotations/trimaps/Abyssinian_1.png", "1 of 10 .*trimaps/Abyssinian_1.png"),
        ("pet", "oxford-iiit-pet/annotations/test.txt", "missing, incomplete or damaged.*test.txt"),
        ("flower", "flowers-102/jpg/image_00003.jpg", "1 of 14 files are missing.*image_00003.jpg"),
        ("flower", "flowers-102/segmim/segmim_00002.jpg", "1 of 14 files are missing.*segmim_00002.jpg"),
        ("flower", "flowers-102/setid.mat", "missing, incomplete or damaged"),
        ("flower", "flowers-102/imagelabels.mat", "missing, incomplete or damaged"),
    ],
)
def test_a_file_that_is_missing_is_noticed(
    data: str, name: str, what: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(data)
    (folder / name).unlink()
    message = refusal(data, folder)
    assert re.search(what, message)
    assert ADVICE[data] in message


@pytest.mark.parametrize("data", ["pet", "flower"])
def test_another_number_of_images_than_published_is_refused(
    data: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(data)
    first, *_ = datasets.EXPECTED[data]
    monkeypatch.setitem(datasets.EXPECTED[data], first, 7)
    message = refusal(data, folder)
    assert f"there are {3 if data == 'pet' else 2} images" in message
    assert "but 7 were published" in message


def test_labels_of_flowers_are_those_of_the_published_checksum(
    flower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import Flowers102

    published = "e0620be6f572b9609742df49c70aed4d"
    monkeypatch.setitem(Flowers102._file_dict, "label", ("imagelabels.mat", published))
    assert "corrupted" in refusal("flower", flower)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("busi", "Dataset_BUSI_with_GT/malignant/malignant (1).png"),
        ("busi", "Dataset_BUSI_with_GT/benign/benign (3)_mask_1.png"),
        ("pet", "oxford-iiit-pet/images/Abyssinian_101.jpg"),
        ("pet", "oxford-iiit-pet/annotations/trimaps/american_bulldog_10.png"),
        ("flower", "flowers-102/segmim/segmim_00005.jpg"),
    ],
)
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"<html>"]
)
def test_a_damaged_file_is_named(
    data: str, name: str, damage: Callable[[bytes], bytes], request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(data) / name
    path.write_bytes(damage(path.read_bytes()))
    message = refusal(data, path.parents[len(Path(name).parts) - 1])
    assert f"{path} can't be read" in message


def test_torchvision_is_asked_for_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for data in ("pet", "flower"):
        assert "pip install 'camal-rl[vision]'" in refusal(data, tmp_path)


def test_an_unknown_data_set_and_a_tiny_image_are_refused(tmp_path: Path) -> None:
    assert "choose one of shapes, cutouts, busi, pet, flower" in refusal("cifar", tmp_path)
    with pytest.raises(UserError, match="images can't have 8 pixels along a side: give 16 to 4096"):
        load("busi", tmp_path, 8)


@pytest.mark.parametrize("data", ["shapes", "busi"])
def test_an_image_that_no_memory_holds_is_refused_in_one_line(
    data: str, busi: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", data, "--data-dir", str(busi), "--image-size", "100000000"]
    assert datasets.main(parsed(*options)) == 2
    assert capsys.readouterr().err == (
        "camal_rl: images can't have 100000000 pixels along a side: give 16 to 4096.\n"
    )


def test_progress_is_shown_unless_it_is_not_wanted(busi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("busi", busi, 32, progress=False)
    assert capsys.readouterr() == ("", "")
    load("busi", busi, 32)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "busi" in shown.err
    assert "14" in shown.err


# ------------------------------------------------------------------------------------------------------------
# Folds

many = settings(max_examples=150, deadline=None, derandomize=True)
SIZES = st.lists(st.integers(2, 40), min_size=1, max_size=6)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Labels in any order, a number of folds that they are enough for, and a seed."""
    sizes, seed = draw(SIZES), draw(st.integers(0, 2**32))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(seed + 1).shuffle(labels)
    return labels, draw(st.integers(2, min(sizes))), seed


@many
@given(labelled())
def test_every_class_and_the_whole_are_spread_evenly_over_the_folds(
    given: tuple[np.ndarray, int, int],
) -> None:
    labels, count, seed = given
    tested = folds(labels, count, seed)
    assert tested.dtype == np.int64
    assert tested.shape == labels.shape
    assert set(tested) == set(range(count))
    for label in set(labels):
        sizes = np.bincount(tested[labels == label], minlength=count)
        assert sizes.min() >= 1
        assert np.ptp(sizes) <= 1
    assert np.ptp(np.bincount(tested)) <= 1


@many
@given(labelled())
def test_folds_depend_on_labels_number_and_seed_alone(given: tuple[np.ndarray, int, int]) -> None:
    labels, count, seed = given
    np.testing.assert_array_equal(folds(labels, count, seed), folds(labels.copy(), count, seed))


def test_known_folds_have_not_changed() -> None:
    # Scores of other folds can't be compared with those that are written down.
    assert folds(np.arange(12) % 3, 4).tolist() == [1, 3, 0, 2, 1, 1, 3, 0, 3, 0, 2, 2]


def test_another_seed_deals_out_otherwise() -> None:
    labels = np.arange(100) % 5
    assert (folds(labels, 10, 0) != folds(labels, 10, 1)).any()


@pytest.mark.parametrize(
    ("labels", "count", "message"),
    [
        ([0, 1, 0, 1], 1, "1 is too few folds.*2 or more"),
        ([0, 1, 0, 1], 0, "too few"),
        ([0, 1, 0, 1, 0], 3, "3 folds need 3 objects or more of each class, and class 1 has 2"),
        ([0, 0, 1], 2, "class 1 has 1"),
    ],
)
def test_a_fold_without_a_sample_to_test_is_refused(labels: list[int], count: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        folds(np.array(labels, np.int64), count)


# ------------------------------------------------------------------------------------------------------------
# The command


def test_the_summary_counts_classes_masks_and_their_area() -> None:
    masks = np.zeros((5, 20, 20), np.uint8)
    masks[0, :10] = 1  # a half
    masks[1, :5] = 1  # a quarter
    images = np.zeros((5, 3, 20, 20), np.uint8)
    images[:, 0, 0, 0] = [1, 2, 3, 4, 4]
    samples = some_samples(5, images=images, masks=masks, classes=("cat", "dog", "cow"))
    lines = [line.split() for line in datasets.summary(samples).splitlines()]
    assert lines[1:5] == [
        ["cat", "3", "33.3", "%", "50.0", "%"],
        ["dog", "2", "50.0", "%", "25.0", "%"],
        ["cow", "0", "-", "-"],
        ["all", "5", "40.0", "%", "37.5", "%"],
    ]
    assert datasets.summary(samples).splitlines()[5].startswith("2 samples look exactly like another one")
    images[4, 0, 0, 0] = 5
    assert "exactly" not in datasets.summary(samples)


def test_the_contact_sheet_shows_sixteen_samples_outlined_and_some_of_them_shifted() -> None:
    masks = np.zeros((40, 160, 160), np.uint8)
    masks[:, 40:120, 40:120] = 1
    images = np.full((40, 3, 160, 160), 100, np.uint8)
    images[:, :, :20, :20] = np.arange(40)[:, None, None, None]  # tells a sample
    usual = datasets.contact_sheet(some_samples(40, 160, images=images, masks=masks))
    shifted = datasets.contact_sheet(
        some_samples(
            40, 160, images=images, masks=masks, shifted={"dark": images // 2, "bright": images + 50}
        )
    )
    outline = (usual == media.OUTLINE).all(axis=2)
    assert cv2.connectedComponents(outline.astype(np.uint8))[0] - 1 == 16
    assert usual.shape[1] == shifted.shape[1]
    assert usual.shape[0] * 6 == shifted.shape[0] * 4  # four rows, and one for each shift
    np.testing.assert_array_equal(shifted[: len(usual)], usual)
    few = datasets.contact_sheet(some_samples(3, 20))
    assert few.shape[0] < usual.shape[0] / 3


def test_the_contact_sheet_shows_as_many_classes_as_it_can() -> None:
    labels = np.repeat(np.arange(20), 3)
    images = np.zeros((60, 3, 160, 160), np.uint8)
    images[:] = 10 * labels[:, None, None, None]
    classes = tuple(map(str, range(20)))
    sheet = datasets.contact_sheet(some_samples(60, 160, images=images, labels=labels, classes=classes))
    grey = sheet[(sheet == sheet[..., :1]).all(axis=2)][:, 0]
    shown = [level for level in range(10, 200, 10) if (grey == level).sum() > 150 * 150]
    assert shown == list(range(10, 160, 10))


def test_the_command_says_and_draws_what_a_data_set_holds(
    busi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = parsed("--data", "busi", "--data-dir", str(busi), "--image-size", "32")
    assert datasets.main(args) == 0
    shown = capsys.readouterr().out
    assert re.search(r"benign +10 +100\.0 % +\d\d\.\d %", shown)
    assert re.search(r"normal +2 +0\.0 % +-", shown)
    picture = tmp_path / "runs" / "vision" / "busi" / "samples.png"
    assert str(picture.relative_to(tmp_path)) in shown
    with Image.open(picture) as image:
        assert image.width > 1000


def test_the_command_shows_shapes_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from camal_rl.vision import shapes

    monkeypatch.setattr(shapes, "generate", lambda count, image_size: some_samples(count, image_size))
    output = tmp_path / "new" / "sheet.png"
    assert datasets.main(parsed("--samples", "3", "--output", str(output))) == 0
    assert re.search("cat +2 .*\ndog +1 ", capsys.readouterr().out)
    assert output.is_file()


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = parsed("--data", "busi", "--data-dir", str(tmp_path))
    assert datasets.main(args) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("camal_rl: there are no images in")
    assert shown.err.count("\n") == 1
    (tmp_path / "file").write_text("")
    args.data, args.output, args.image_size = "shapes", tmp_path / "file" / "sheet.png", 16
    assert datasets.main(args) == 2
    assert "Choose another --output" in capsys.readouterr().err


def test_ctrl_c_stops_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "load", stopped)
    assert datasets.main(datasets.Args()) == 130
    assert "Nothing was written" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--data", "cifar"], 2)])
def test_the_command_line_explains_itself(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_code:
        parsed(*arguments)
    assert exit_code.value.code == code
    assert "shapes" in "".join(capsys.readouterr())
