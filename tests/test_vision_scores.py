"""Folds that the tests write, read and paired: a line on what is wrong with them, and numbers by hand."""

import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written_folds import ACCURACY, SHARES, scores_of, shift, write, write_cell

from camal_rl.errors import UserError
from camal_rl.vision import scores
from camal_rl.vision.scores import comparability, compare, gaps, read_folds, spread


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """ResNet-18 on BUSI with all four methods."""
    for method in ACCURACY:
        write_cell(tmp_path, "busi", "resnet18", method)
    return tmp_path


# Reading


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no accuracy": (lambda one: one.pop("accuracy"), "it has no accuracy"),
    "accuracy null": (lambda one: one.update(accuracy=None), "accuracy is None, not between 0 and 1"),
    "percent": (lambda one: one.update(iou=41.0), "iou is 41.0, not between 0 and 1"),
    "text": (lambda one: one.update(dead_map_fraction="0"), "dead_map_fraction is '0', not between 0 and 1"),
    "truth": (lambda one: one.update(accuracy=True), "accuracy is True, not between 0 and 1"),
    "nan": (lambda one: one.update(iou=math.nan), "iou is nan, not between 0 and 1"),
    "shifted": (lambda one: one.update(shifted=[1]), "shifted is not an object"),
    "shift": (lambda one: one.update(shifted={"a": 1}), "shifted.a is not an object with a name of"),
    "shift's name": (lambda one: one.update(shifted={"../a": {}}), "shifted.../a is not an object with"),
    "shift without a name": (lambda one: one.update(shifted={"": 5}), "shifted. is not an object with"),
    "shift's iou": (
        lambda one: one.update(shifted={"a": {"accuracy": 0.5}}),
        "it has no shifted.a.iou",
    ),
    "folds": (lambda one: one.update(folds="ten"), "folds is 'ten', not a number"),
    "seconds": (lambda one: one.update(seconds_per_step=[]), "seconds_per_step is [], not a number"),
    "faithfulness": (lambda one: one.update(faithfulness=[1]), "faithfulness is not an object"),
    "shares": (
        lambda one: one["faithfulness"].update(shares=[0, 0.5, 0.5]),
        "faithfulness.shares do not ascend",
    ),
    "curves": (
        lambda one: one["faithfulness"].update(removal=[[1, 0]]),
        "faithfulness.removal has not a number for each share",
    ),
    "strings": (
        lambda one: one["faithfulness"].update(removal=[["1.0", "0.5", "0.0"]]),
        "faithfulness.removal is no array of numbers",
    ),
    "one string": (
        lambda one: one.update(mask_variance=[[0.1, "0.2"]]),
        "mask_variance is no array of numbers",
    ),
    "ragged": (
        lambda one: one["faithfulness"].update(insertion=[[1, 0], [1]]),
        "faithfulness.insertion is no array of numbers",
    ),
    "confidence": (
        lambda one: one["faithfulness"].update(insertion=[[0, 50, 100]]),
        "faithfulness.insertion is no array of numbers between 0 and 1 with 2 dimensions",
    ),
    "variance": (
        lambda one: one.update(mask_variance=[[0.1]]),
        "attention_variance is (1, 2), but mask_variance (1, 1)",
    ),
    "no mask's": (lambda one: one.pop("mask_variance"), "mask_variance is no array of numbers between"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line_and_the_rest_goes_on(runs: Path, damage: str) -> None:
    change, reason = DAMAGES[damage]
    one = scores_of("busi", "resnet18", "camal", 3, 0.9, 0.5)
    change(one)
    folder = write(runs, "busi/resnet18/camal/fold3", one)
    (told,) = read_folds(runs).problems
    assert told.startswith(f"busi/resnet18/camal/fold3/scores.json is damaged and left out ({reason}")
    assert told.endswith(f": make it anew, python -m camal_rl.vision.evaluate {folder}.")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"accuracy": 1}', b"[" * 10**5])
def test_what_is_no_scores_file_is_one_line_and_the_rest_goes_on(runs: Path, content: bytes) -> None:
    (runs / "busi/resnet18/vanilla/fold2/scores.json").write_bytes(content)
    folds = read_folds(runs)
    (told,) = folds.problems
    assert told.startswith("busi/resnet18/vanilla/fold2/scores.json is damaged and left out (")
    assert len(folds.folds) == 19
    assert compare(folds).paired["busi", "resnet18", "vanilla", "iou", ""].folds == (1, 3, 4, 5)


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
    with pytest.raises(UserError, match=r"busi/resnet18/camal/fold1/scores\.json is damaged and left out"):
        read_folds(tmp_path)


def test_data_sets_models_and_methods_have_an_order(runs: Path) -> None:
    write_cell(runs, "shapes", "convnext_t", "vanilla")
    write_cell(runs, "another", "alexnet", "prior")
    folds = read_folds(runs)
    assert folds.data == ["busi", "shapes", "another"]
    assert folds.models == ["resnet18", "convnext_t", "alexnet"]
    assert folds.methods == ["camal", "vanilla", "suppress", "prior"]
    assert folds.others == ["vanilla", "suppress", "prior"]
    assert list(folds.cells()) == [("busi", "resnet18"), ("shapes", "convnext_t"), ("another", "alexnet")]
    assert [fold.number for fold, _ in folds.pairs("prior")] == [1, 2, 3, 4, 5]


def test_folds_of_the_same_kind_are_comparable(runs: Path) -> None:
    assert comparability(read_folds(runs)) == gaps(read_folds(runs)) == []


CAMAL_2, VANILLA_2, PRIOR_2 = (f"busi/resnet18/{method}/fold2" for method in ("camal", "vanilla", "prior"))


def write_fold(runs: Path, title: str, options: dict[str, Any], **changes: Any) -> None:
    """Fold 2 of a method, trained with other options."""
    data, model, method, _ = title.split("/")
    write(runs, title, scores_of(data, model, method, 2, 0.8, 0.5) | changes, **options)


@pytest.mark.parametrize(
    ("title", "options", "told"),
    [
        (VANILLA_2, {"image_size": 64}, "image_size is 224 (19 folds) and 64 (vanilla/fold2)"),
        (VANILLA_2, {"freeze_batch_norm": True}, "freeze_batch_norm is false (19 folds) and true (van"),
        (VANILLA_2, {"precision": "bf16"}, 'precision is "fp32" (19 folds) and "bf16" (vanilla/fold2)'),
        (VANILLA_2, {"samples": 60}, "samples is 1200 (19 folds) and 60 (vanilla/fold2)"),
        # Vanilla's attention is measured as the others'.
        (VANILLA_2, {"attention": "layercam"}, 'attention is "gradcam" (19 folds) and "layercam" (vanilla'),
        (VANILLA_2, {"camal_coef": 10.0, "empty_mask": "suppress"}, ""),
        (CAMAL_2, {"camal_coef": 10.0}, "camal_coef is 1.0 (14 folds) and 10.0 (camal/fold2)"),
        (CAMAL_2, {"empty_mask": "suppress"}, 'empty_mask is "ignore" (14 folds) and "suppress" (camal'),
        (CAMAL_2, {"prior": "maps"}, ""),
        (PRIOR_2, {"prior": "maps"}, 'prior is null (4 folds) and "maps" (prior/fold2)'),
    ],
)
def test_folds_trained_with_other_options_are_told_of_where_these_matter(
    runs: Path, title: str, options: dict[str, Any], told: str
) -> None:
    write_fold(runs, title, options)
    found = comparability(read_folds(runs))
    if told:
        (sentence,) = found
        assert sentence.startswith(f"Compare with care: folds of busi/resnet18 differ. {told}")
    else:
        assert found == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": 9}, "epochs is 500 (19 folds) and 9 (camal/fold2)."),
        ({"weights": "imagenet"}, 'weights is "none" (19 folds) and "imagenet" (camal/fold2).'),
        ({"version": "9"}, 'version is "0.1.0" (19 folds) and "9" (camal/fold2).'),
        ({"samples": 7}, "test images of fold 2 is 120 (3 folds) and 7 (camal/fold2)."),
    ],
)
@pytest.mark.parametrize("with_args", [True, False])
def test_scores_say_how_a_fold_was_trained_too(
    runs: Path, changes: dict[str, Any], told: str, with_args: bool
) -> None:
    write_fold(runs, CAMAL_2, {}, **changes)
    if not with_args:
        for file in runs.rglob("args.json"):
            file.unlink()
    *unknown, sentence = comparability(read_folds(runs))
    assert sentence == f"Compare with care: folds of busi/resnet18 differ. {told}"
    assert len(unknown) == (0 if with_args else 1)


@pytest.mark.parametrize("changes", [{"seed": 2}, {"folds": 10}])
def test_folds_of_several_partitions_are_no_cross_validation(runs: Path, changes: dict[str, Any]) -> None:
    """Also where the second fold of every method is of the same one."""
    for method in ACCURACY:
        write_fold(runs, f"busi/resnet18/{method}/fold2", {}, **changes)
    compared, partitions = comparability(read_folds(runs))
    (name, value), *_ = changes.items()
    assert f"differ. {name} is {scores_of('', '', '', 1, 1, 1)[name]} (16 folds) and {value} (cam" in compared
    assert "test sets overlap: together they are no cross-validation." in partitions


@pytest.mark.parametrize("content", [None, b"{", b"[" * 10**5, b"[]", b"{}", b'{"run": 1}', b"\xff"])
def test_a_fold_whose_arguments_can_not_be_read_is_compared_and_told_of(
    runs: Path, content: bytes | None
) -> None:
    file = runs / CAMAL_2 / "args.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    (told,) = comparability(read_folds(runs))
    assert told.endswith("they have no args.json that can be read: busi/resnet18/camal/fold2.")


def test_an_unfinished_fold_comes_with_the_command_that_finishes_it(tmp_path: Path) -> None:
    train = pytest.importorskip("camal_rl.vision.train")
    folder = tmp_path / "other runs"
    options = {
        "folds": 6,
        "epochs": 3,
        "image_size": 64,
        "freeze_batch_norm": True,
        "weights": "my weights.pt",
        "attention": "layercam",
        "camal_coef": 0.5,
        "empty_mask": "suppress",
        "prior": "sha256=1f",
    }
    place = write(folder, "pet/vit_b_16/prior/fold4", {}, **options)
    (place / "scores.json").unlink()
    write_cell(folder, "pet", "vit_b_16", "camal")
    (told,) = read_folds(folder).problems
    start = "pet/vit_b_16/prior/fold4 has no scores.json and is left out: finish it, "
    words = shlex.split(told.removeprefix(start).removesuffix("."))
    assert words[:3] == ["python", "-m", "camal_rl.vision.train"]
    args = train.parse_args(words[3:])
    found = {name: value for group in vars(args).values() for name, value in vars(group).items()}
    wanted = {**options, "data": "pet", "model": "vit_b_16", "method": "prior", "fold": 4, "seed": 1}
    assert {name: found[name] for name in wanted} == wanted | {"prior": Path("FILE")}
    assert (found["runs_dir"], found["precision"]) == (folder, "fp32")
    write(folder, "pet/vit_b_16/prior/fold4", {}, processes=4)
    (place / "scores.json").unlink()
    (told,) = read_folds(folder).problems
    assert ": finish it, torchrun --nproc-per-node 4 -m camal_rl.vision.train --runs-dir " in told
    (place / "args.json").unlink()
    (told,) = read_folds(folder).problems
    assert told.endswith(" --data pet --model vit_b_16 --method prior --fold 4.")


# Numbers


def test_a_spread_is_of_what_is_there() -> None:
    assert spread([0.5, math.nan, 0.7, 0.9])._asdict() == {
        "mean": pytest.approx(0.7),
        "deviation": pytest.approx(0.2),
        "folds": 3,
    }
    mean, deviation, count = spread([0.5])
    assert (mean, math.isnan(deviation), count) == (0.5, True, 1)
    assert spread([math.nan]).folds == 0


def test_folds_are_paired_by_number_and_tested_both_ways(runs: Path) -> None:
    (runs / "busi/resnet18/vanilla/fold2/scores.json").unlink()
    one = compare(read_folds(runs)).paired["busi", "resnet18", "vanilla", "accuracy", ""]
    assert one.folds == (1, 3, 4, 5)
    assert (one.camal, one.rival) == ((0.9, 1.0, 0.9, 0.9), (0.8, 0.9, 0.85, 0.7))
    assert one.difference == pytest.approx(0.1125)
    assert (one.p, one.p_lower) == (1 / 16, 1)


def test_a_shift_that_one_method_lacks_is_not_compared(runs: Path) -> None:
    write_cell(runs, "busi", "resnet18", "camal", shifted={"reversed": shift(0.5, 0.25)})
    write_cell(runs, "busi", "resnet18", "prior", [1, 2], shifted={"reversed": shift(0.25, 0.25)})
    folds = read_folds(runs)
    found = {key[2]: one for key, one in compare(folds).paired.items() if key[3:] == ("accuracy", "reversed")}
    assert found.keys() == {"prior"}
    assert found["prior"].folds == (1, 2)
    assert "busi/resnet18/prior/fold3, reversed: this test set was not evaluated, and is left out." in gaps(
        folds
    )


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
    one = scores.Paired("busi", "resnet18", "prior", "iou", "", (1, 2), camal, rival, p, p_lower)
    assert one.verdict == verdict


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
