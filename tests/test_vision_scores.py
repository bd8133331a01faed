"""Folds that the tests write, read and paired: a line on what is wrong with them, and numbers by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from written_folds import ACCURACY, SHARES, identity, scores_of, shift, write, write_cell

from camal_rl.errors import UserError
from camal_rl.vision import scores
from camal_rl.vision.scores import Paired, comparability, compare, mean, read_folds


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """ResNet-18 on BUSI with all four methods."""
    for method in ACCURACY:
        write_cell(tmp_path, "busi", "resnet18", method)
    return tmp_path


def pair_of(runs: Path, other: str, measure: str = "accuracy", test_set: str = "unshifted") -> Paired:
    (pair,) = compare(read_folds(runs)).select(other=other, measure=measure, test_set=test_set)
    return pair


# Reading


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no accuracy": (lambda one: one.pop("accuracy"), "accuracy: Field required"),
    "accuracy null": (lambda one: one.update(accuracy=None), "accuracy: Input should be a valid number"),
    "percent": (lambda one: one.update(iou=41.0), "iou: Input should be less than or equal to 1.000001"),
    "text": (
        lambda one: one.update(dead_map_fraction="0"),
        "dead_map_fraction: Input should be a valid number",
    ),
    "nan": (lambda one: one.update(iou=math.nan), "iou: Input should be a finite number"),
    "shift": (lambda one: one.update(shifted={"a": 1}), "shifted.a: Input should be an object"),
    "shift's name": (lambda one: one.update(shifted={"../a": shift(1, 1)}), "String should match pattern"),
    "curves": (
        lambda one: one["faithfulness"].update(removal=[1, 0]),
        "faithfulness.removal.0: Input should be",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line_and_the_rest_goes_on(runs: Path, damage: str) -> None:
    change, reason = DAMAGES[damage]
    one = scores_of("busi", "resnet18", "camal", 3, 0.9, 0.5)
    change(one)
    folder = write(runs, "busi/resnet18/camal/fold3", one)
    folds = read_folds(runs)
    (told,) = folds.problems
    assert told.startswith(f"busi/resnet18/camal/fold3 is left out: can't read {folder}/scores.json: ")
    assert reason in told
    assert told.endswith(f"Make it anew: python -m camal_rl.vision.evaluate {folder}.")
    assert len(folds.folds) == 19


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"accuracy": 1}', b"[" * 10**5])
def test_what_is_no_scores_file_is_one_line_and_the_rest_goes_on(runs: Path, content: bytes) -> None:
    (runs / "busi/resnet18/vanilla/fold2/scores.json").write_bytes(content)
    (told,) = read_folds(runs).problems
    assert told.startswith("busi/resnet18/vanilla/fold2 is left out: can't read ")
    assert pair_of(runs, "vanilla").folds.index.tolist() == [1, 3, 4, 5]


def test_confidence_a_rounding_above_one_is_no_damage(runs: Path) -> None:
    one = {"shares": SHARES, "removal": [[1.0000001, 0.5, 0]], "insertion": [[0, 0.5, 1.0000001]]}
    write_cell(runs, "busi", "resnet18", "camal", [1], faithfulness=one)
    assert read_folds(runs).problems == []


def test_folders_that_are_no_folds_are_passed_by(runs: Path) -> None:
    write(runs, "busi/resnet18/camal/fold01", {})
    (runs / "busi/resnet18/camal/folder").mkdir()
    assert len(read_folds(runs).folds) == 20
    assert read_folds(runs).problems == []


def test_nothing_that_can_be_read_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train and evaluate first"):
        read_folds(tmp_path)
    write(tmp_path, "busi/resnet18/camal/fold1", {})
    with pytest.raises(UserError, match=r"busi/resnet18/camal/fold1 is left out: can't read"):
        read_folds(tmp_path)


def test_data_sets_models_and_methods_have_an_order(runs: Path) -> None:
    write_cell(runs, "shapes", "convnext_t", "vanilla", shifted={"b": shift(0, 0), "a": shift(0, 0)})
    write_cell(runs, "another", "alexnet", "prior")
    folds = read_folds(runs)
    assert folds.names("data") == ["busi", "shapes", "another"]
    assert folds.names("model") == ["resnet18", "convnext_t", "alexnet"]
    assert folds.names("method") == ["camal", "vanilla", "suppress", "prior"]
    assert folds.names("test_set") == ["unshifted", "a", "b"]
    assert folds.others == ["vanilla", "suppress", "prior"]
    assert [(fold.method, fold.number) for fold in folds.folds[4:6]] == [("camal", 5), ("vanilla", 1)]
    assert [fold.title for _, fold in folds.pairs("prior")][:2] == [
        *("busi/resnet18/prior/fold1", "busi/resnet18/prior/fold2")
    ]


# What makes folds hard to compare


def test_folds_of_the_same_kind_are_comparable(runs: Path) -> None:
    assert comparability(read_folds(runs)) == []


CAMAL_2, VANILLA_2, PRIOR_2 = (f"busi/resnet18/{method}/fold2" for method in ("camal", "vanilla", "prior"))


def write_fold(runs: Path, title: str, options: dict[str, Any], **changes: Any) -> None:
    """Fold 2 of a method, trained with other options."""
    data, model, method, _ = title.split("/")
    write(runs, title, scores_of(data, model, method, 2, 0.8, 0.5) | changes, **options)


@pytest.mark.parametrize(
    ("title", "options", "told"),
    [
        (VANILLA_2, {"freeze_batch_norm": True}, "freeze_batch_norm is false (19 folds) and true (van"),
        (VANILLA_2, {"precision": "bf16"}, 'precision is "fp32" (19 folds) and "bf16" (vanilla/fold2)'),
        # Vanilla's attention is measured as the others'.
        (VANILLA_2, {"attention": "layercam"}, 'attention is "gradcam" (19 folds) and "layercam" (vanilla'),
        (VANILLA_2, {"camal_coef": 10.0, "empty_mask": "suppress"}, ""),
        (CAMAL_2, {"camal_coef": 10.0}, "camal_coef is 1.0 (14 folds) and 10.0 (camal/fold2)"),
        (CAMAL_2, {"prior": "maps"}, ""),
        (PRIOR_2, {"prior": "maps"}, 'prior is null (4 folds) and "maps" (prior/fold2)'),
    ],
)
def test_folds_trained_with_other_options_are_told_of_where_these_matter(
    runs: Path, title: str, options: dict[str, Any], told: str
) -> None:
    write_fold(runs, title, options)
    found = comparability(read_folds(runs))
    assert len(found) == bool(told)
    if told:
        assert found[0].startswith(f"Compare with care: folds of busi/resnet18 differ. {told}")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": "9"}, 'version is "0.1.0" (19 folds) and "9" (camal/fold2).'),
        ({"samples": 7}, "test images of fold 2 is 120 (3 folds) and 7 (camal/fold2)."),
        ({"epochs": 9}, "epochs is 500 (19 folds) and 9 (camal/fold2)."),
    ],
)
def test_scores_say_how_a_fold_was_trained_too(runs: Path, changes: dict[str, Any], told: str) -> None:
    write_fold(runs, CAMAL_2, {}, **changes)
    for file in runs.rglob("args.json"):
        file.write_text("{")  # can't be read
    assert comparability(read_folds(runs)) == [f"Compare with care: folds of busi/resnet18 differ. {told}"]


def test_a_variant_may_have_other_options_and_its_folds_the_same(runs: Path) -> None:
    for fold in (1, 2):
        scores = scores_of("busi", "resnet18", "camal", fold, 0.8, 0.5)
        write(runs, f"busi/resnet18/camal-10/fold{fold}", scores, camal_coef=10.0)
    found = comparability(read_folds(runs))
    assert found[0].startswith("Missing: ")
    (told,) = found[1:]
    assert told.startswith("Rows of busi/resnet18 differ in options of training: ")
    assert "camal_coef is 1.0 (" in told
    assert "10.0 (camal-10)" in told
    write(runs, "busi/resnet18/camal-10/fold2", scores, camal_coef=3.0)
    assert any(
        "Compare with care: folds of busi/resnet18 differ. camal_coef of camal-10 is" in sentence
        for sentence in comparability(read_folds(runs))
    )


@pytest.mark.parametrize("changes", [{"seed": 2}, {"folds": 10}])
def test_folds_of_several_partitions_are_no_cross_validation(runs: Path, changes: dict[str, Any]) -> None:
    """Also where the second fold of every method is of the same one."""
    for method in ACCURACY:
        write_fold(runs, f"busi/resnet18/{method}/fold2", changes, **changes)
    *_, compared, partitions = comparability(read_folds(runs))
    (name, value), *_ = changes.items()
    assert f"{name} is {identity('', '', '', 1)[name]} (16 folds) and {value} (cam" in compared
    assert "test sets overlap: together they are no cross-validation." in partitions


def test_missing_folds_are_named_and_unfinished_ones_are_too(runs: Path) -> None:
    (runs / "busi/resnet18/vanilla/fold2/scores.json").unlink()
    for name in ("scores.json", "args.json"):
        (runs / "busi/resnet18/prior/fold5" / name).unlink()
    (runs / "busi/resnet18/prior/fold5").rmdir()
    assert comparability(read_folds(runs)) == [
        "busi/resnet18/vanilla/fold2 has no scores.json and is left out: train it to its end.",
        "Missing: busi/resnet18/prior/fold5. Methods are compared over folds that both have.",
    ]


# Numbers


def test_a_mean_is_of_what_is_there() -> None:
    assert mean(pd.Series([0.5, math.nan, 0.7, 0.9])) == pytest.approx(0.7)
    assert math.isnan(mean(pd.Series([math.nan])))


def test_folds_are_paired_by_number_and_tested_both_ways(runs: Path) -> None:
    (runs / "busi/resnet18/vanilla/fold2/scores.json").unlink()
    pair = pair_of(runs, "vanilla")
    assert pair.folds.index.tolist() == [1, 3, 4, 5]
    assert pair.folds["camal"].tolist() == [0.9, 1.0, 0.9, 0.9]
    assert pair.folds["rival"].tolist() == [0.8, 0.9, 0.85, 0.7]
    assert pair.folds.mean()[["mask", "dead_camal", "dead_rival"]].tolist() == [0.75, 0, 0.125]
    assert pair.means == (pytest.approx(0.925), pytest.approx(0.8125))
    assert (pair.p, pair.p_lower) == (1 / 16, 1)


def test_a_shift_that_one_method_lacks_is_not_compared(runs: Path) -> None:
    write_cell(runs, "busi", "resnet18", "camal", shifted={"reversed": shift(0.5, 0.25)})
    write_cell(runs, "busi", "resnet18", "prior", [1, 2], shifted={"reversed": shift(0.25, 0.25)})
    found = compare(read_folds(runs)).select(measure="accuracy", test_set="reversed")
    assert [(pair.other, pair.folds.index.tolist()) for pair in found] == [("prior", [1, 2])]


@pytest.mark.parametrize(
    ("camal", "rival", "p", "p_lower", "verdict"),
    [
        ((0.5, 0.5), (0.4, 0.4), 0.04, 0.99, "significantly higher"),
        ((0.5, 0.5), (0.4, 0.4), 0.05, 0.99, "higher"),
        ((0.1 + 0.2, 0.0), (0.3, 0.0), 0.01, 0.01, "equal"),
        ((0.4, 0.4), (0.5, 0.5), 0.04, 0.2, "lower"),  # significant ranks do not make a lower mean higher
        ((0.4, 0.4), (0.5, 0.5), 0.99, 0.04, "significantly lower"),
    ],
)
def test_a_verdict_needs_mean_and_p(
    camal: tuple[float, ...], rival: tuple[float, ...], p: float, p_lower: float, verdict: str
) -> None:
    folds = pd.DataFrame({"camal": camal, "rival": rival})
    assert Paired("busi", "resnet18", "prior", "iou", "unshifted", folds, p, p_lower).verdict == verdict


def test_curves_bands_and_areas_by_hand(runs: Path) -> None:
    curves = compare(read_folds(runs)).curves["prior"]
    assert (curves.samples, curves.shares.tolist()) == (10, SHARES)
    # Five curves pass 0.5 and five 0.25: mean 0.375, sample deviation sqrt(10 * 0.125**2 / 9).
    half = 1.96 * math.sqrt(10 * 0.125**2 / 9) / math.sqrt(10)
    band = curves.bands["removal"]["camal"]
    assert band.estimate == pytest.approx([1, 0.375, 0])
    assert band.low == pytest.approx([1, 0.375 - half, 0])
    assert band.high == pytest.approx([1, 0.375 + half, 0])
    # Areas (1 + 2 * 0.375 + 0) / 4 and, of Prior, (1 + 2 * 0.625 + 0) / 4.
    assert curves.areas["removal"] == (pytest.approx(0.4375), pytest.approx(0.5625))
    assert curves.areas["insertion"][0] == pytest.approx((0 + 2 * 0.75 + 1) / 4)
    # On every sample the area under removal is lower by 0.125, and that under insertion is the same.
    apart = curves.differences["removal"]
    assert (apart.estimate, apart.low, apart.high, apart.reason) == (-0.125, -0.125, -0.125, None)
    assert curves.differences["insertion"].high == 0


def test_a_curve_alone_has_no_band(tmp_path: Path) -> None:
    for method in ("camal", "vanilla"):
        one = {"shares": SHARES, "removal": [[1, 0.5, 0]], "insertion": [[0, 0.5, 0.5]]}
        write_cell(tmp_path, "shapes", "resnet18", method, [1], faithfulness=one)
    curves = compare(read_folds(tmp_path)).curves["vanilla"]
    assert curves.bands["removal"]["camal"].estimate.tolist() == [1, 0.5, 0]
    assert curves.bands["removal"]["camal"].low is None
    assert curves.differences["removal"].reason == (
        "There is no band: a single curve does not show how much curves differ."
    )


def test_folds_without_curves_or_with_other_shares_do_not_count_as_curves(runs: Path) -> None:
    write_cell(runs, "busi", "resnet18", "camal", [5], faithfulness=None)
    other = {"shares": [0, 1], "removal": [[1, 0]], "insertion": [[0, 1]]}
    for method in ("camal", "vanilla"):
        write_cell(runs, "busi", "resnet18", method, [4], faithfulness=other)
    one = {"shares": SHARES, "removal": [[1, 0.5, 0]], "insertion": [[0, 0.5, 1]]}
    write_cell(runs, "busi", "resnet18", "vanilla", [3], faithfulness=one)
    folds = read_folds(runs)
    assert compare(folds).curves["vanilla"].samples == 4
    assert (
        "shares of removed pixels is 3 (17 folds) and 2 (camal/fold4, vanilla/fold4)"
        in comparability(folds)[0]
    )


def test_variances_are_means_of_folds_by_size_of_map(runs: Path) -> None:
    larger = {"attention_variance": [[0.2], [0.0]], "mask_variance": [[0.1], [0.1]]}
    for method in ("camal", "vanilla"):
        write_cell(runs, "busi", "vit_b_16", method, [1, 2], **larger)
        write_cell(runs, "busi", "maxvit_t", method, [1])
    write_cell(runs, "busi", "maxvit_t", "camal", [1], attention_variance=None, mask_variance=None)
    row, column = compare(read_folds(runs)).variances["vanilla"]
    assert (row.data, row.folds, column.folds) == ("busi", 5, 2)
    masks, camal, vanilla = row.maps
    assert masks.tolist() == [[0.25, 0.0]]
    assert camal == pytest.approx(np.array([[0.1, 0.6 / 5]]))
    assert np.array_equal(camal, vanilla)
    assert column.maps[1].tolist() == [[0.2], [0.0]]


def test_maps_of_two_sizes_have_no_common_variance(runs: Path) -> None:
    write_cell(runs, "busi", "resnet18", "vanilla", [2], attention_variance=[[0.5]], mask_variance=[[0.5]])
    (one,) = compare(read_folds(runs)).variances["vanilla"]
    assert (one.folds, one.maps[0].shape) == (4, (1, 2))


def test_measures_have_names_for_tables() -> None:
    assert set(scores.MEASURES) < set(scores.NUMBERS)
