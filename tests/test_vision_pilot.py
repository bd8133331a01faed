"""The pilot study, by hand."""

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import study

from camal_rl import metrics
from camal_rl.errors import UserError
from camal_rl.run.command_line import parse
from camal_rl.vision import priors, shapes
from camal_rl.vision.samples import Samples

pytest.importorskip("open_clip")

from small_clips import CLASSES, noise

pilot = study("vision/priors/pilot.py")

pytestmark = pytest.mark.slow


def test_overlap_by_hand() -> None:
    """Maps at the masks' own size, so that nothing is interpolated."""
    mask = np.zeros((6, 6), np.uint8)
    mask[1:5, 1:5] = 1  # 16 pixels of 36
    two_parts = np.zeros((6, 6), np.float32)
    two_parts[1, 1:5] = 0.8  # 4 pixels of the mask
    two_parts[2, 1] = 0.7  # at the threshold, not above it
    two_parts[5, 0], two_parts[5, 1] = 1.0, 0.9  # 2 outside
    corners = np.zeros((6, 6), np.float32)
    corners[3, 3], corners[4, 4], corners[5, 5] = 1.0, 1.0, 1.0
    nothing = np.zeros((6, 6), np.float32)
    found = [pilot.overlap(heat, mask) for heat in (two_parts, corners, nothing)]
    expected = {
        "iou": [4 / 18, 2 / 17, 0],
        "iou_mask": [1, 1, 1],
        "covered": [4 / 16, 2 / 16, 0],
        "spurious": [2 / 6, 1 / 3, math.nan],
        "parts": [2, 1, 0],
    }
    for name in pilot.MEASURES:
        values = [measured[name] for measured in found]
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, err_msg=name)


def test_overlap_takes_maps_of_a_lower_resolution() -> None:
    heat = np.random.default_rng(0).random((4, 4), np.float32)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 4:30] = 1
    found = pilot.overlap(heat, mask)
    assert found["iou"] == metrics.iou(heat[None], mask[None])[0]
    region = metrics.upsample(heat[None], (32, 32))[0] > 0.7
    assert found["covered"] == pytest.approx((region & (mask > 0)).sum() / mask.sum())
    assert found["iou_mask"] < 1


def samples(count: int = 8, size: int = 32) -> Samples:
    """Squares on noise; the last sample has no target."""
    masks = np.zeros((count, size, size), np.uint8)
    for index, mask in enumerate(masks[:-1]):
        mask[4 + index : 20, 4:20] = 1
    labels = np.arange(count) % 2
    names = tuple(f"images/{index}" for index in range(count))
    return Samples(noise(count, size), masks, labels.astype(np.int64), CLASSES, names, {})


def test_the_study_counts_what_can_be_compared() -> None:
    data = samples(4, 4 * 4)
    heat = np.zeros((4, 4, 4), np.float32)
    heat[0, 1, 1] = heat[1, 0, 0] = heat[3, 0, 0] = 1  # inside, outside, without a target
    files = pilot.study(data, heat, {"data": "pet", "source": "a test"})
    assert set(files) == {"study.json", "study.md", "regions.png"}
    content = json.loads(files["study.json"])
    assert (content["samples"], content["samples_without_target"]) == (3, 1)
    assert content["dead_map_fraction"] == pytest.approx(1 / 3)
    assert content["tau"] == 0.7
    assert content["map_size"] == [4, 4]
    by_sample = content["by_sample"]
    assert by_sample["parts"] == {"images/0": 1, "images/1": 1, "images/2": 0}
    assert by_sample["spurious"] == {"images/0": 0, "images/1": 1, "images/2": None}
    assert content["measures"]["parts"] == {
        "mean": pytest.approx(2 / 3),
        "std": pytest.approx(math.sqrt(1 / 3)),
        "count": 3,
    }
    assert content["measures"]["spurious"]["count"] == 2
    table = files["study.md"].decode()
    assert "| Connected parts of the region | 0.667 | 0.577 | 3 |" in table
    assert "3 samples of pet with a mask, 1 without one left out" in table
    assert "33.3 % of the maps are zero everywhere" in table
    assert "maps of 4 x 4 from a test" in table


def test_the_study_s_picture_goes_from_the_best_to_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    captions: list[str] = []
    draw = pilot.media.attention_strip

    def noted(frame: np.ndarray, mask: np.ndarray, heats: Any, caption: str, *more: Any) -> np.ndarray:
        captions.append(caption)
        return draw(frame, mask, heats, caption, *more)

    monkeypatch.setattr(pilot.media, "attention_strip", noted)
    data = samples(9)
    heat = np.zeros((9, 32, 32), np.float32)
    for index, one in enumerate(heat):
        one[4:20, 4 : 6 + index] = 1
    files = pilot.study(data, heat, {"data": "pet", "source": "a test"})
    content = json.loads(files["study.json"])
    iou = content["by_sample"]["iou"]
    order = sorted(iou, key=lambda name: -iou[name])
    assert len(captions) == pilot.PICTURED
    assert captions[0].startswith(f"{order[0]} (")
    assert captions[-1].startswith(f"{order[-1]} (")
    shown = [float(caption.split("IoU ")[1].split(",")[0]) for caption in captions]
    assert shown == sorted(shown, reverse=True)
    picture = cv2.imdecode(np.frombuffer(files["regions.png"], np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[0] > 6 * 160  # enlarged: at 32 pixels no caption could be read


def test_one_sample_has_no_spread_and_none_can_not_be_compared() -> None:
    data = samples(2)
    heat = np.zeros((2, 2, 2), np.float32)
    files = pilot.study(data, heat, {"data": "pet", "source": "a test"})
    measures = json.loads(files["study.json"])["measures"]
    assert measures["iou"] == {"mean": 0, "std": None, "count": 1}
    assert measures["spurious"] == {"mean": None, "std": None, "count": 0}
    row = "| Share of the region outside the mask | \N{EN DASH} | \N{EN DASH} | 0 |"
    assert row in files["study.md"].decode()
    with pytest.raises(UserError, match="no sample has a mask"):
        pilot.study(samples(1), heat[:1], {"data": "pet", "source": "a test"})


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch) -> Samples:
    data = shapes.generate(count=12, image_size=32)
    monkeypatch.setattr(pilot.datasets, "load", lambda *_: data)
    return data


def command(*options: object) -> int:
    code: int = pilot.main(parse(pilot.Args, "pilot", list(map(str, options))))
    return code


def test_the_command_studies_the_regions_of_a_file(
    small_data: Samples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "regions.npz", tmp_path / "new" / "study"
    priors.save_regions(file, small_data.masks.astype(np.float32), small_data.names)
    assert command("--regions", file, "--output", folder) == 0
    printed = capsys.readouterr().out
    assert (folder / "study.md").read_text() in printed
    assert str(folder / "regions.png") in printed
    content = json.loads((folder / "study.json").read_text())
    assert (content["data"], content["source"], content["samples"]) == ("shapes", str(file), 12)
    assert content["measures"]["iou"]["mean"] == 1


def test_a_mistake_is_one_line(
    small_data: Samples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert command("--regions", "b.npz", "--output", tmp_path / "file" / "study") == 2
    assert "can't make" in capsys.readouterr().err
    assert command("--regions", "b.npz", "--output", tmp_path / "study") == 2
    said = capsys.readouterr().err
    assert said.startswith("camal_rl: there are no regions in b.npz")
    assert said.count("\n") == 1
