"""Published data sets with masks, or generated pictures -> samples and folds; and a look at them.

BUSI, Oxford-IIIT-Pet and Oxford-Flower 102 are those of the paper (Sec. 4 and Appendix C). They are read from
a folder in their published form. Nothing is downloaded: where something is missing, an error says what to get
from where, and where to put it.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from camal_rl.errors import UserError, in_one_line
from camal_rl.results import media
from camal_rl.run import machine
from camal_rl.run.command_line import Positive, parse, run_at_once
from camal_rl.run.files import make_folder, write_whole
from camal_rl.vision import check_torchvision, cutouts, shapes
from camal_rl.vision.pictures import colours, decode, levels
from camal_rl.vision.samples import DATA, GENERATED, LARGEST_IMAGE, SMALLEST_IMAGE, DataName, Samples

EXPECTED: dict[str, dict[str, int]] = {
    "busi": {"benign": 437, "malignant": 210, "normal": 133},
    "pet": {"trainval": 3680, "test": 3669},
    "flower": {"train": 1020, "val": 1020, "test": 6149},
}
"""Images in each part of a published data set."""
EXPECTED_BUSI_MASKS = 798
"""16 benign images and a malignant one show several lesions, each with a mask of its own."""

ADVICE = {
    "busi": "Download Dataset_BUSI.zip from https://scholar.cu.edu.eg/?q=afahmy/pages/dataset and unpack it "
    "into {folder}, so that it holds Dataset_BUSI_with_GT/benign/benign (1).png and benign (1)_mask.png.",
    "pet": "Download images.tar.gz and annotations.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/pets/ "
    "and unpack both into {folder}/oxford-iiit-pet, so that it holds images/Abyssinian_1.jpg, "
    "annotations/trainval.txt and annotations/trimaps/Abyssinian_1.png.",
    "flower": "Download 102flowers.tgz, 102segmentations.tgz, imagelabels.mat and setid.mat from "
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ into {folder}/flowers-102 and unpack the archives "
    "there, so that it holds jpg/image_00001.jpg and segmim/segmim_00001.jpg beside the two .mat files.",
}

AGAIN = "unpack it again, or download its archive again"


def load(
    data: str, folder: Path, image_size: int = 224, count: int = GENERATED, progress: bool = True
) -> Samples:
    """Read a data set, or generate `shapes` or `cutouts`.

    As in the paper (Appendix C), an image is made square, whatever its proportions, and its edges are cut
    off: resized to 256 x 256 and cropped to the middle 224 x 224, or the same in proportion for another size.
    Images are interpolated as torchvision's Resize does it, masks by their nearest pixel.

    Args:
        data: a name of DATA.
        folder: parent of Dataset_BUSI_with_GT, oxford-iiit-pet or flowers-102, or that of `cutouts`; not used
            for shapes.
        image_size: side S of the images in pixels.
        count: number of images to generate; published data sets are read as a whole.
        progress: show on stderr how far reading has come.

    Raises:
        UserError: no such data set or size, or it is missing, incomplete or damaged.
    """
    if not SMALLEST_IMAGE <= image_size <= LARGEST_IMAGE:
        raise UserError(
            f"images can't have {image_size} pixels along a side: give {SMALLEST_IMAGE} to {LARGEST_IMAGE}."
        )
    if data == "shapes":
        return shapes.generate(count, image_size)
    if data == "cutouts":
        return cutouts.generate(folder, count, image_size)
    if data not in _LISTINGS:
        raise UserError(f"there is no data set {data}: choose one of {', '.join(DATA)}.")
    advice = ADVICE[data].format(folder=folder)
    return _read(_LISTINGS[data](folder, advice), advice, image_size, data if progress else None)


def folds(
    labels: np.ndarray, count: int = 10, seed: int = 0, objects: np.ndarray | None = None
) -> np.ndarray:
    """The fold in which each sample is tested: int64 (N,), from 0 to count - 1, for labels int (N,).

    All samples of an object, `objects` int (N,), are in one fold; each has its own unless given. Every
    class's objects are spread evenly: their numbers in two folds differ by one at most, and so do the folds'.

    Raises:
        UserError: fewer than 2 folds, or a class with fewer objects than there are folds, for faithfulness
            takes a sample of each class from every fold (Appendix C).
    """
    if count < 2:
        raise UserError(
            f"{count} is too few folds, for one part is tested and others trained on: give 2 or more."
        )
    objects = np.arange(len(labels)) if objects is None else objects
    _, firsts, objects = np.unique(objects, return_index=True, return_inverse=True)
    labels = labels[firsts]
    classes, sizes = np.unique(labels, return_counts=True)
    if sizes.min() < count:
        raise UserError(
            f"{count} folds need {count} objects or more of each class, and class {classes[sizes.argmin()]} "
            f"has {sizes.min()}: choose fewer folds."
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    tested = np.empty(len(labels), np.int64)
    tested[order] = np.arange(len(labels)) % count
    return tested[objects]


# ------------------------------------------------------------------------------------------------------------
# Which files there are


class _Listing(NamedTuple):
    """The files of a data set."""

    folder: Path
    classes: tuple[str, ...]
    entries: list[tuple[Path, list[Path], int]]  # an image, its masks, which are united, and its label
    target: Callable[[Image.Image], np.ndarray]  # mask file -> bool (h, w)


def _list_busi(folder: Path, advice: str) -> _Listing:
    base = folder / "Dataset_BUSI_with_GT"
    entries = []
    for label, (name, expected) in enumerate(EXPECTED["busi"].items()):
        images: dict[int, Path] = {}
        masks: dict[int, list[Path]] = {}
        for path in sorted((base / name).glob("*.png")):
            if match := re.fullmatch(rf"{name} \((\d+)\)(_mask(?:_\d+)?)?\.png", path.name):
                if match[2]:
                    masks.setdefault(int(match[1]), []).append(path)
                else:
                    images[int(match[1])] = path
        _check_count(len(images), expected, f"images in {base / name}", advice)
        for number, path in sorted(images.items()):
            own = path.with_name(f"{path.stem}_mask.png")
            entries.append((path, masks.get(number) or [own], label))
    _check_count(sum(len(files) for _, files, _ in entries), EXPECTED_BUSI_MASKS, f"masks in {base}", advice)
    return _Listing(base, tuple(EXPECTED["busi"]), entries, _busi_lesion)


def _list_pet(folder: Path, advice: str) -> _Listing:
    base = folder / "oxford-iiit-pet"
    parts = _splits("pet", "OxfordIIITPet", folder, base, advice)
    files = (file for part in parts for file in zip(part._images, part._segs, part._labels, strict=True))
    entries = sorted((image, [trimap], label) for image, trimap, label in files)
    return _Listing(base, tuple(parts[0].classes), entries, _pet_body)


def _list_flower(folder: Path, advice: str) -> _Listing:
    base = folder / "flowers-102"
    parts = _splits("flower", "Flowers102", folder, base, advice)
    files = (file for part in parts for file in zip(part._image_files, part._labels, strict=True))
    masks = base / "segmim"
    entries = [(path, [masks / path.name.replace("image_", "segmim_")], label) for path, label in files]
    return _Listing(base, tuple(parts[0].classes), sorted(entries), _flower_blossom)


_LISTINGS = {"busi": _list_busi, "pet": _list_pet, "flower": _list_flower}


def _splits(data: str, loader: str, folder: Path, base: Path, advice: str) -> list[Any]:
    """Return torchvision's reader of each split of a data set, which knows its files and labels."""
    check_torchvision()
    from torchvision import datasets

    parts = []
    for split, expected in EXPECTED[data].items():
        try:
            part = getattr(datasets, loader)(folder, split, download=False)
        except (RuntimeError, OSError, ValueError) as error:
            reason = in_one_line(error).split(" You can use download=True")[0]  # which no option here does
            raise UserError(f"{base} is missing, incomplete or damaged ({reason}). {advice}") from error
        _check_count(len(part), expected, f"images of the {split} split in {base}", advice)
        parts.append(part)
    return parts


def _check_count(found: int, expected: int, what: str, advice: str) -> None:
    if found != expected:
        raise UserError(f"there are {found or 'no'} {what}, but {expected} were published. {advice}")


# ------------------------------------------------------------------------------------------------------------
# From files to samples


def _busi_lesion(mask: Image.Image) -> np.ndarray:
    if "A" in mask.getbands() and len({*mask.getchannel("A").getextrema()}) == 1:
        mask = mask.convert("RGB")  # all of it equally transparent: that says nothing
    # Half of the brightest: there are masks of 0 and 1, and ripples where one was saved as JPEG.
    grey = np.asarray(mask if mask.mode.startswith("I") else colours(mask, "black").convert("L"))
    lesion: np.ndarray = grey > grey.max() / 2
    return lesion


def _pet_body(trimap: Image.Image) -> np.ndarray:
    # 1 is the pet, 2 the background, 3 a border a few pixels wide that was left open. The border counts as
    # the pet: ears, whiskers and tails are thin and often nothing but border, and they tell breeds apart.
    # In 14 of the listed trimaps there is no pet, such as saint_bernard_15's: images without a target.
    numbers = np.asarray(trimap) if trimap.mode == "P" else levels(trimap)
    if not {*np.unique(numbers)} <= {1, 2, 3}:
        found = ", ".join(map(str, np.unique(numbers)[:5]))
        raise ValueError(f"it holds {found}, not 1, 2 and 3 alone: another program has saved it again")
    body: np.ndarray = numbers != 2
    return body


BLUE = (0, 0, 254)
"""The background of the flowers' segmentations, as JPEG leaves it of pure blue."""
BLUE_TOLERANCE = 64
"""Greatest deviation of a channel within the background. In painted petals saved at JPEG qualities 60 to 95,
ripples in the blue beside them reach 59 and the bluest petals deviate by 90; the outlines of all of them are
found within 1.4 pixels, the pictures having 600 x 500."""


def _flower_blossom(segmentation: Image.Image) -> np.ndarray:
    drawn = np.asarray(colours(segmentation, BLUE), np.int16)
    if not np.ptp(drawn, axis=2).any():
        raise ValueError("it has no colour, and a flower's background is blue")
    deviation = np.abs(drawn - np.array(BLUE, np.int16))
    blossom = (deviation.max(axis=2) > BLUE_TOLERANCE).astype(np.uint8)
    # Each pixel goes with most of its neighbours, so no single ripple or blue speck is left.
    voted: np.ndarray = cv2.medianBlur(blossom, 5) > 0
    return voted


def _read(listing: _Listing, advice: str, size: int, title: str | None) -> Samples:
    entries = listing.entries
    files = [path for image, masks, _ in entries for path in (image, *masks)]
    if missing := [path for path in files if not path.is_file()]:
        raise UserError(f"{len(missing)} of {len(files)} files are missing, such as {missing[0]}. {advice}")
    images = np.empty((len(entries), 3, size, size), np.uint8)
    masks = np.zeros((len(entries), size, size), np.uint8)

    def read(index: int) -> None:
        file, own_masks, _ = entries[index]
        image = decode(file, colours, AGAIN)
        images[index] = _fitted(image, size, Image.Resampling.BILINEAR).transpose(2, 0, 1)
        for path in own_masks:
            target = Image.fromarray(decode(path, listing.target, AGAIN).astype(np.uint8))
            skew = target.width * image.height / (target.height * image.width)
            turned = target.size != image.size == target.size[::-1]
            if turned or not 0.9 < skew < 1.1:
                raise UserError(
                    f"{path} has {target.width} x {target.height} pixels, and its image has {image.width} x "
                    f"{image.height}, so it can't be the mask of this image: {AGAIN}."
                )
            masks[index] |= _fitted(target, size, Image.Resampling.NEAREST)

    with ThreadPoolExecutor(machine.cores()) as pool:  # Pillow lets other threads run while it works
        done = pool.map(read, range(len(entries)))
        list(tqdm(done, title, len(entries), unit="image", leave=False, disable=title is None))
    return Samples(
        images=images,
        masks=masks,
        labels=np.array([label for _, _, label in entries], np.int64),
        classes=listing.classes,
        names=tuple(file.relative_to(listing.folder).with_suffix("").as_posix() for file, _, _ in entries),
    )


def _fitted(image: Image.Image, size: int, resampling: Image.Resampling) -> np.ndarray:
    whole = round(size * 256 / 224)
    edge = round((whole - size) / 2)
    square = image.resize((whole, whole), resampling).crop((edge, edge, edge + size, edge + size))
    return np.asarray(square)


# ------------------------------------------------------------------------------------------------------------
# A look at them

SHOWN, COLUMNS = 16, 4
"""Samples on a contact sheet, and in a row of it."""


def summary(samples: Samples) -> str:
    """Table of how many samples each class has, how many with a mask, and the share that masks cover."""
    areas = 100 * samples.masks.mean(axis=(1, 2))
    width = max(len("all"), *map(len, samples.classes))
    lines = [f"{'class':{width}} {'samples':>8} {'with mask':>10} {'mean mask area':>15}"]
    members = {name: samples.labels == label for label, name in enumerate(samples.classes)}
    for name, chosen in (*members.items(), ("all", np.ones(len(areas), bool))):
        filled = areas[chosen & (areas > 0)]
        share = f"{100 * filled.size / chosen.sum():.1f} %" if chosen.any() else "-"
        area = f"{filled.mean():.1f} %" if filled.size else "-"
        lines.append(f"{name:{width}} {chosen.sum():8} {share:>10} {area:>15}")
    looks = Counter(hashlib.sha256(image.tobytes()).digest() for image in samples.images)
    if twins := sum(number for number in looks.values() if number > 1):
        lines.append(
            f"{twins} samples look exactly like another one, so what is tested may have been trained on."
        )
    return "\n".join(lines)


def contact_sheet(samples: Samples) -> np.ndarray:
    """Sixteen samples of as many classes as there are, with their masks, and some of them shifted, as RGB."""
    labels = samples.labels
    ranks = [np.count_nonzero(labels[:index] == label) for index, label in enumerate(labels)]  # in its class
    chosen = np.lexsort((labels, ranks))[:SHOWN]
    rows = [(samples.images, chosen[start : start + COLUMNS], "") for start in range(0, len(chosen), COLUMNS)]
    rows += [(images, chosen[:COLUMNS], f", {shift}") for shift, images in samples.shifted.items()]

    def panel(images: np.ndarray, index: int, remark: str) -> np.ndarray:
        image, mask = media.enlarged(images[index].transpose(1, 2, 0)), media.enlarged(samples.masks[index])
        outlined = media.overlay(image, np.zeros((1, 1)), mask)
        caption = f"{samples.classes[labels[index]]}{remark} ({samples.names[index]})"
        return media.attention_strip(outlined, mask, {}, caption, "image")

    panels = ([panel(images, index, remark) for index in indices] for images, indices, remark in rows)
    return media.stack_strips([np.concatenate(row, axis=1) for row in panels])


@dataclass
class Args:
    """Count the samples of a data set and draw sixteen of them, to be looked at before training."""

    data: DataName = "shapes"
    """data set; shapes and cutouts are generated, the others are read"""
    data_dir: Path = Path("data")
    """folder that holds Dataset_BUSI_with_GT, oxford-iiit-pet or flowers-102; that of cutouts"""
    samples: Positive = GENERATED
    """number of images to generate; the others are read as a whole"""
    image_size: Positive = 224
    """side of the images in pixels"""
    output: Path | None = None
    """picture to write; runs/vision/<data>/samples.png if none is given"""


def make(args: Args) -> None:
    """Say and draw what a data set holds."""
    output = args.output or Path("runs/vision", args.data, "samples.png")
    samples = load(args.data, args.data_dir, args.image_size, args.samples)
    make_folder(output.parent)
    write_whole(output, media.encode_png(contact_sheet(samples)))
    print(f"{summary(samples)}\n{output}")


def main(args: Args) -> int:
    """Return the exit code: 0, 2 after a mistake, 130 or 143 after a signal."""
    return run_at_once(lambda: make(args))


if __name__ == "__main__":
    sys.exit(main(parse(Args, "python -m camal_rl.vision.datasets")))
