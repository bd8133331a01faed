"""The regulariser study: perturbed masks and responses by hand, the table's rules, where masks come from."""
# ruff: noqa: N806 - axis suffixes are capitals

import json
import math
import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.stats
import torch
from conftest import run, study

from camal_rl import metrics
from camal_rl.errors import UserError
from camal_rl.results import figures
from camal_rl.run.command_line import parse

perturbation = study("vision/perturbation/perturbation.py")
Args, Study = perturbation.Args, perturbation.Study

pytestmark = pytest.mark.slow

NAN = float("nan")
EM_DASH = "\N{EM DASH}"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As on the command line: several threads wait for each other more than they work."""
    torch.set_num_threads(1)


def square(side: int = 5, size: tuple[int, int] = (9, 11), place: tuple[int, int] = (2, 3)) -> np.ndarray:
    """A mask with a square, its top left corner at (row, column)."""
    mask = np.zeros(size, np.uint8)
    mask[place[0] : place[0] + side, place[1] : place[1] + side] = 1
    return mask


def blobs(count: int, seed: int = 0, size: tuple[int, int] = (40, 50)) -> Iterator[np.ndarray]:
    """Masks of an ellipse each, all different."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        mask = np.zeros(size, np.uint8)
        centre, axes = rng.integers((15, 12), (35, 28)), rng.integers(6, 11, size=2)
        cv2.ellipse(
            mask, tuple(centre.tolist()), tuple(axes.tolist()), float(rng.uniform(0, 180)), 0, 360, 1, -1
        )
        yield mask


def disc(radius: float) -> np.ndarray:
    reach = int(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return (np.sqrt(x**2 + y**2) <= radius).astype(np.uint8)


# Perturbed masks


def test_a_shift_ends_beside_the_masks_old_place() -> None:
    mask = square(2, (4, 8), (1, 2))
    right = perturbation.shift(mask, 2, angle=0)
    np.testing.assert_array_equal(right, [square(2, (4, 8), (1, column)) for column in (2, 3, 4)])
    cut = square(2, (4, 8), (0, 2))
    cut[1] = 0  # the other row is out of the image
    upwards = perturbation.shift(mask, 2, angle=-math.pi / 2)
    np.testing.assert_array_equal(upwards, [mask, square(2, (4, 8), (0, 2)), cut])


def test_a_shift_aslant_goes_until_the_box_is_left() -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[20:30, 20:40] = 1  # 10 high, 20 wide: at 45 degrees it is left after 10 rows and columns
    moved = perturbation.shift(mask, 5, angle=math.pi / 4)
    assert [cv2.boundingRect(one)[:2] for one in moved] == [(20 + d, 20 + d) for d in (0, 2, 4, 6, 8, 10)]
    assert (moved.sum(axis=(1, 2)) == mask.sum()).all()


def test_erosion_takes_ring_after_ring() -> None:
    eroded = perturbation.erode(square(5), steps=2)  # radii 0, 1, 2
    np.testing.assert_array_equal(eroded, [square(5), square(3, place=(3, 4)), square(1, place=(4, 5))])


def test_the_images_border_erodes_nothing() -> None:
    mask = np.zeros((4, 12), np.uint8)
    mask[:, :6] = 1
    np.testing.assert_array_equal(perturbation.erode(mask, 5).sum(axis=(1, 2)), [24, 20, 16, 12, 8, 0])


def test_dilation_covers_the_outside_but_for_a_twentieth() -> None:
    mask = np.zeros((1, 41), np.uint8)
    mask[0, 0] = 1  # 40 pixels outside, at distances 1 to 40
    np.testing.assert_array_equal(perturbation.dilate(mask, 2).sum(axis=(1, 2)), [1, 1 + 19, 1 + 39])


def test_perturbation_is_morphology_with_discs() -> None:
    for mask in blobs(5):
        eroded, dilated = perturbation.erode(mask, 4), perturbation.dilate(mask, 4)
        for steps, kind, found in ((4, cv2.MORPH_ERODE, eroded), (4, cv2.MORPH_DILATE, dilated)):
            np.testing.assert_array_equal(found[0], mask)
            pixels = mask if kind == cv2.MORPH_ERODE else 1 - mask
            distance = cv2.distanceTransform(pixels, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            last = math.sqrt(round(np.quantile(distance[distance > 0], 0.95, method="higher") ** 2))
            for step in range(1, steps + 1):
                expected = cv2.morphologyEx(mask, kind, disc(last * step / steps))
                np.testing.assert_array_equal(found[step], expected)
        assert eroded[-1].sum() <= 0.05 * mask.sum()
        assert dilated[-1].sum() >= mask.sum() + 0.95 * (1 - mask).sum()


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (square(0), "empty"),
        (1 - square(0), "full"),
        (square(5), None),
        (square(2), "too small"),  # one ring, two steps
        (1 - square(2), "too large"),
    ],
)
def test_masks_that_steps_can_not_change_are_left_out(mask: np.ndarray, reason: str | None) -> None:
    assert perturbation.why_left_out(mask, steps=2) == reason


# Responses and correlations


def test_responses_by_hand() -> None:
    mask = square(2, (4, 8), (1, 2))  # 4 pixels inside, 28 outside
    camal, suppress = perturbation.responses(mask, perturbation.shift(mask, 2, angle=0))
    np.testing.assert_allclose(camal, [-1, 2 / 28 - 1 / 2, 4 / 28], rtol=1e-15)
    np.testing.assert_array_equal(suppress, [0, 2 / 28, 4 / 28])
    camal, suppress = perturbation.responses(square(5), perturbation.erode(square(5), 2))
    np.testing.assert_array_equal(camal, [-1, -9 / 25, -1 / 25])
    np.testing.assert_array_equal(suppress, [0, 0, 0])


def test_pearson_is_scipys_and_nan_for_a_constant() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 6, 9))
    expected = [scipy.stats.pearsonr(*rows).statistic for rows in zip(one, other, strict=True)]
    np.testing.assert_allclose(metrics.correlation(one, other), expected, rtol=1e-12)
    other[2], one[4] = 0.1, 0.3
    assert np.flatnonzero(np.isnan(metrics.correlation(one, other))).tolist() == [2, 4]


def test_correlations_by_hand() -> None:
    responses_MPRS = np.array([[[[-1, -0.36, -0.04], [0, 0, 0]], [[0, 2, 1], [3, 2, 1]]]])
    scores = perturbation.correlations(responses_MPRS)
    assert scores["spearman"].shape == (1, 2, 2)
    np.testing.assert_allclose(scores["spearman"][0], [[1, NAN], [0.5, -1]])
    # The deviations of -1, -0.36, -0.04 from their mean are -1.6, 0.32, 1.28 thirds.
    expected = (1.6 + 1.28) / math.sqrt(2 * (1.6**2 + 0.32**2 + 1.28**2))
    np.testing.assert_allclose(scores["pearson"][0], [[expected, NAN], [0.5, -1]])


@pytest.fixture(scope="module")
def of_blobs() -> Study:
    return perturbation.study("blobs", blobs(30), 30, steps=4)


def compared(study: Study, perturbed: str) -> dict[str, Any]:
    found = perturbation.numbers(study)["perturbations"][perturbed]
    return {name: found[name] for name in ("spearman", "pearson")}


def test_suppression_is_blind_to_erosion_and_camal_is_not(of_blobs: Study) -> None:
    found = compared(of_blobs, "erode")
    for comparison in found.values():
        assert (comparison["camal"]["responding"], comparison["suppress"]["responding"]) == (30, 0)
        assert comparison["suppress"]["mean"] is None
        assert comparison["better"]
    assert found["spearman"]["camal"]["mean"] == 1  # each step takes something away


def test_under_dilation_both_follow_equally_and_rounding_finds_no_winner(of_blobs: Study) -> None:
    for comparison in compared(of_blobs, "dilate").values():
        assert comparison["camal"]["mean"] == pytest.approx(comparison["suppress"]["mean"], abs=1e-14)
        assert comparison["p"] == 1
        assert not comparison["better"]


def test_camal_follows_a_shift(of_blobs: Study) -> None:
    camal, suppress = perturbation.correlations(of_blobs.responses_MPRS)["spearman"][:, 0].T
    # Only the last of five may be out of order, where pixels leave the image: 1 - 6 * 2 / (5 * 24).
    assert camal.min() == pytest.approx(0.9)
    assert np.median(camal) == 1
    assert suppress.min() < camal.min()


# The rules of Table 4


def test_a_mask_without_response_counts_as_0_in_the_test_and_not_in_the_mean() -> None:
    scores_MR = np.array([[0.9, 0.8]] * 4 + [[0.5, NAN]])
    found = perturbation.compare(scores_MR)
    camal, suppress = found["camal"], found["suppress"]
    assert (camal["mean"], suppress["mean"]) == pytest.approx((0.82, 0.8))
    assert (camal["std"], suppress["std"]) == pytest.approx((0.4 / math.sqrt(5), 0))  # of a sample
    assert (camal["responding"], suppress["responding"]) == (5, 4)
    assert suppress["values"] == [0.8] * 4 + [None]
    assert found["p"] == 1 / 32  # all of five pairs speak for CAMAL


@pytest.mark.parametrize(
    ("scores", "better"),
    [
        ([[0.9, 0.8]] * 5, True),
        ([[0.9, 0.8]] * 4, False),  # p is 1/16
        ([[0.8, 0.9]] * 5, False),
        ([[0.9, NAN]] * 5, True),
        ([[NAN, 0.9]] * 5, False),
        ([[NAN, NAN]] * 5, False),
        ([[0.1, NAN]] * 5 + [[0.1, 0.9]], False),  # significantly greater, but its mean is lower
    ],
)
def test_bold_is_what_is_higher_and_significantly_so(scores: list[list[float]], better: bool) -> None:
    assert perturbation.compare(np.array(scores))["better"] is better


def test_the_test_is_fast_for_thousands_of_masks() -> None:
    scores_MR = np.random.default_rng(0).random((20_000, 2)).round(3)  # with ties
    start = time.perf_counter()
    assert 0 < perturbation.compare(scores_MR)["p"] < 1
    assert time.perf_counter() - start < 2


def by_hand() -> Study:
    """Two masks under three severities; suppress-only answers shifts of the first only, and no erosion."""
    rising, falling, still = [0, 0.5, 1], [1, 0.5, 0], [0, 0, 0]
    responses_MPRS = np.array(
        [
            [[rising, falling], [rising, still], [rising, rising]],
            [[rising, still], [rising, still], [rising, rising]],
        ]
    )
    return Study("A_1", responses_MPRS, {"empty": 3, "too small": 1}, (square(), 0.0))


def test_the_table_in_markdown() -> None:
    text = figures.markdown(perturbation.table([perturbation.numbers(by_hand())], 2))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == (
        "| Data set | Perturbation | Spearman: CAMAL | Spearman: Suppress only "
        "| Pearson: CAMAL | Pearson: Suppress only |"
    )
    assert rows[2:] == [
        "| A_1 | Shift | 1.00 ± 0.00 | -1.00 | 1.00 ± 0.00 | -1.00 |",
        f"|  | Erode | 1.00 ± 0.00 | {EM_DASH} | 1.00 ± 0.00 | {EM_DASH} |",  # two masks prove nothing
        "|  | Dilate | 1.00 ± 0.00 | 1.00 ± 0.00 | 1.00 ± 0.00 | 1.00 ± 0.00 |",
    ]
    assert (
        "Suppress only does not respond to shift in 1 of 2 masks of A_1, which its mean leaves out." in text
    )
    assert "A_1: 2 masks used; left out: 3 empty, 1 too small." in text


def test_a_single_mask_has_no_deviation(tmp_path: Path) -> None:
    studied = perturbation.study("A", [square()], 1, steps=2)
    found = json.loads(json.dumps(perturbation.numbers(studied), allow_nan=False))["perturbations"]["erode"]
    assert (found["spearman"]["camal"]["mean"], found["spearman"]["camal"]["std"]) == (1, None)
    assert found["response"]["camal"]["std"] == [None] * 3
    assert f"| Erode | 1.00 | {EM_DASH} |" in figures.markdown(
        perturbation.table([perturbation.numbers(studied)], 2)
    )
    assert perturbation.figure([studied], 2).keys() == {"figure.png", "figure.svg", "figure.pdf"}


def test_bold_in_markdown_and_latex(of_blobs: Study) -> None:
    table = perturbation.table([perturbation.numbers(of_blobs)], 4)
    assert re.search(rf"\| Erode \| \*\*1.00 ± 0.00\*\* \| {EM_DASH} \|", figures.markdown(table))
    text = figures.latex(table)
    assert r" & Erode & \textbf{1.00 $\pm$ 0.00} & --- & \textbf{" in text
    assert "**" not in text
    assert text.isascii()


# Studies


def test_masks_are_counted_and_the_rest_not_read() -> None:
    masks = iter(
        [square(0), square(5), square(5), square(2), square(5, place=(1, 1)), square(5, place=(3, 3))]
    )
    found = perturbation.study("", masks, 2, steps=2)
    assert found.responses_MPRS.shape == (2, 3, 2, 3)
    assert found.left_out == {"empty": 1, "repeated": 1, "too small": 1}
    assert sum(1 for _ in masks) == 1


def test_masks_without_end_that_can_not_be_used_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturbation, "MOST_TRIED", 3)
    with pytest.raises(UserError, match=r"Basic: none of 6 masks can be used .6 too small.*fewer --steps"):
        perturbation.study("Basic", repeat(square(2)), 2, steps=2)


def test_the_seed_decides_the_directions() -> None:
    one, same, other = (
        perturbation.study("", blobs(5), 5, steps=4, seed=seed).responses_MPRS for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    np.testing.assert_array_equal(one[:, 1:], other[:, 1:])
    assert (one[:, 0] != other[:, 0]).any()


def test_game_masks_are_seeded_and_end_their_games(fake_engine: None) -> None:
    masks = perturbation.game_masks("Basic", 0)
    first = list(islice(masks, 12))
    masks.close()
    again, other = (list(islice(perturbation.game_masks("Basic", seed), 12)) for seed in (0, 1))
    np.testing.assert_array_equal(first, again)
    assert any((one != two).any() for one, two in zip(first, other, strict=True))
    assert first[0].shape == (240, 320)


# The command line


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the data sets."""
    samples = SimpleNamespace(masks=np.array([*blobs(20), square(0, (40, 50))]))
    monkeypatch.setattr(perturbation.datasets, "load", lambda data, folder: {"shapes": samples}[data])


def test_several_data_sets_give_several_blocks(
    shapes: None, fake_engine: None, drawn: None, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "study"
    args = ["--data", "shapes", "shapes", "--env", "Basic", "--masks", "25", "--steps", "4"]
    printed = perturbation.make(parse(Args, "perturbation", [*args, "--output", str(output)]))
    files = {path.name: path.read_bytes() for path in output.iterdir()}
    assert sorted(files) == [
        "figure.pdf",
        "figure.png",
        "figure.svg",
        "results.json",
        "table.md",
        "table.tex",
    ]
    assert printed[0].encode() == files["table.md"]
    assert files["table.md"].count(b"| Shift |") == 2
    content = json.loads(files["results.json"], parse_constant=lambda name: pytest.fail(name))
    assert content["severities"] == [0, 0.25, 0.5, 0.75, 1]
    assert [one["name"] for one in content["data"]] == ["shapes", "Basic"]
    shapes_block, basic = content["data"]
    assert (shapes_block["masks"], basic["masks"]) == (20, 25)
    assert "shapes: 20 masks used" in printed[0]
    assert shapes_block["left_out"] == {"empty": 1}
    assert basic["left_out"]["empty"] > 0  # the fake game hides its target now and then
    erode = basic["perturbations"]["erode"]
    assert erode["spearman"]["camal"]["mean"] == pytest.approx(1)
    assert erode["spearman"]["suppress"]["mean"] is None
    assert erode["spearman"]["suppress"]["values"] == [None] * 25
    assert erode["response"]["suppress"] == {"mean": [0] * 5, "std": [0] * 5}
    assert erode["response"]["camal"]["mean"][0] == -1
    assert erode["spearman"]["p"] < 0.05
    drawn = "".join(ElementTree.fromstring(files["figure.svg"]).itertext())
    for text in (
        "Shift",
        "Erode",
        "Dilate",
        "CAMAL",
        "Suppress only",
        "M only",
        "H only",
        "severity",
        "over 45 masks",
    ):
        assert text in drawn


def test_the_same_command_gives_the_same_bytes(shapes: None, drawn: None, tmp_path: Path) -> None:
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        perturbation.make(Args(data=("shapes",), masks=8, steps=3, output=folder))
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name data sets with --data, such as shapes, or ViZDoom environments with --env"),
        ({"env": ("Basik",)}, "did you mean Basic"),
        ({"data": ("shapes",), "steps": 1}, "--steps 1: give a number of at least 2"),
        ({"data": ("shapes",), "steps": 40}, "shapes: none of 21 masks can be used .1 empty, 20 too small."),
    ],
)
def test_mistakes_are_told(
    options: dict[str, object], message: str, shapes: None, fake_engine: None, tmp_path: Path
) -> None:
    args = Args(output=tmp_path)
    for name, value in options.items():
        setattr(args, name, value)
    with pytest.raises(UserError, match=message):
        perturbation.make(args)
    assert list(tmp_path.iterdir()) == []


def test_an_environment_is_no_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Args, "perturbation", ["--data", "Basic"])
    said = capsys.readouterr().err
    assert "Basic" in said
    assert "shapes" in said


def test_an_output_that_is_a_file_is_told(shapes: None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Choose another --output"):
        perturbation.make(Args(data=("shapes",), output=tmp_path / "file"))


def test_a_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert perturbation.main(Args()) == 2
    said = capsys.readouterr().err
    assert said.startswith("camal_rl: there are no masks to perturb")
    assert said.count("\n") == 1


@pytest.mark.engine
def test_the_command_runs_on_real_games_without_torchvision(tmp_path: Path) -> None:
    folder = Path(perturbation.__file__).parent
    code = (
        f"import sys; sys.modules['torchvision'] = None; sys.path.append({str(folder)!r}); "
        "import perturbation as p; "
        "p.figures.draw = lambda name, *_: {}; "
        "from pathlib import Path; sys.exit(p.main(p.Args(env=('Basic',), masks=5, output=Path('out'))))"
    )
    done = run("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| Basic | Shift |" in done.stdout
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    (basic,) = content["data"]
    assert basic["masks"] == 5
    assert basic["perturbations"]["erode"]["spearman"]["camal"]["mean"] > 0.99
    assert basic["perturbations"]["erode"]["spearman"]["suppress"]["mean"] is None
