"""The report on folds that the tests write: numbers by hand, emphasis by the paper's rules, gaps named."""

import csv
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, run
from PIL import Image
from written_folds import ACCURACY, SHARES, scores_of, shift, write, write_cell
from written_reports import statistics_of, warnings_of

from camal_rl.errors import UserError
from camal_rl.results import figures, media
from camal_rl.run.command_line import parse
from camal_rl.stats import Interval
from camal_rl.vision import report
from camal_rl.vision.scores import Curves, read_folds

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_figures")]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """ResNet-18 on BUSI with all four methods."""
    for method in ACCURACY:
        write_cell(tmp_path / "runs", "busi", "resnet18", method)
    return tmp_path / "runs"


def make(runs: Path, *options: str) -> tuple[list[str], dict[str, bytes]]:
    """What a report prints, and its files."""
    args = parse(report.Args, "report", [str(runs), *options])
    printed = report.make(args)
    output = args.output or runs / "report"
    return printed, {path.name: path.read_bytes() for path in output.iterdir()}


def paired_with(
    files: dict[str, bytes], other: str, measure: str, test_set: str = "unshifted"
) -> dict[str, Any]:
    (one,) = [
        one
        for one in statistics_of(files)["paired"]
        if (one["other"], one["measure"], one["test_set"]) == (other, measure, test_set)
    ]
    return dict(one)


def warned(runs: Path) -> str:
    return warnings_of(*make(runs))


# Numbers by hand


def test_pairs_and_p_by_hand(runs: Path) -> None:
    _, files = make(runs)
    accuracy = paired_with(files, "vanilla", "accuracy")
    assert accuracy["folds"]["fold"] == [1, 2, 3, 4, 5]
    assert accuracy["folds"]["camal"] == list(ACCURACY["camal"])
    # CAMAL is higher in all of five folds: one of 2**5 signs.
    assert accuracy["p"] == pytest.approx(1 / 32)
    # Beside Prior the ranks of -0.02 and -0.03 are 1 and 2; subsets of 1 to 5 with a sum up to 3 are five.
    assert paired_with(files, "prior", "accuracy")["p"] == pytest.approx(5 / 32)
    # Beside Suppress a tie drops out and four folds are lower.
    suppress = paired_with(files, "suppress", "accuracy")
    assert (suppress["p"], suppress["p_lower"]) == (1, pytest.approx(1 / 16))
    assert paired_with(files, "suppress", "iou")["p_lower"] == pytest.approx(1 / 32)
    assert statistics_of(files)["curves"]["prior"]["samples"] == 10


def test_bold_and_underlined_are_by_the_papers_rules(runs: Path) -> None:
    _, files = make(runs)
    markdown, latex, html = (files[name].decode() for name in ("tables.md", "tables.tex", "report.html"))
    # Significant accuracy is bold, a higher one underlined, a lower one plain (Tables 2 and 3).
    assert "| ResNet-18 | **90.0 ± 7.1** | 79.0 ± 8.9 |" in markdown
    assert "| ResNet-18 | <ins>90.0 ± 7.1</ins> | 84.0 ± 8.0 |" in markdown
    assert "| ResNet-18 | 90.0 ± 7.1 | 93.4 ± 7.3 |" in markdown
    # IoU is bold or plain (Tables 1 and 5): higher beside Prior, but not significantly.
    assert "| ResNet-18 | **55.0 ± 5.0** | 12.0 ± 4.5 |" in markdown
    assert "| ResNet-18 | 55.0 ± 5.0 | 47.0 ± 10.9 |" in markdown
    assert "| ResNet-18 | 55.0 ± 5.0 | 58.0 ± 5.7 |" in markdown
    assert r"ResNet-18 & \textbf{90.0 $\pm$ 7.1} & 79.0 $\pm$ 8.9 \\" in latex
    assert r"ResNet-18 & \underline{90.0 $\pm$ 7.1} & 84.0 $\pm$ 8.0 \\" in latex
    assert '<td class="number"><strong>90.0 ± 7.1</strong></td><td class="number">79.0 ± 8.9</td>' in html
    assert '<td class="number"><u>90.0 ± 7.1</u></td>' in html
    assert not re.search("[\ue000-\uf8ff]", markdown + latex + html + files["report.md"].decode())
    assert files["table2.csv"].decode() == "Model,BUSI CAMAL,BUSI Vanilla\nResNet-18,90.0 ± 7.1,79.0 ± 8.9\n"


def test_tables_have_a_pair_of_columns_a_data_set_under_its_name(runs: Path) -> None:
    write_cell(runs, "pet", "vit_b_16", "camal")
    write_cell(runs, "pet", "vit_b_16", "vanilla")
    _, files = make(runs)
    latex = files["tables.tex"].decode()
    assert (
        "\\begin{tabular}{lrrrr}\n\\toprule\n"
        " & \\multicolumn{2}{c}{BUSI} & \\multicolumn{2}{c}{Oxford-IIIT-Pet} \\\\\n"
        "Model & CAMAL & Vanilla & CAMAL & Vanilla \\\\\n\\midrule\n"
        "ResNet-18 & \\textbf{55.0 $\\pm$ 5.0} & 12.0 $\\pm$ 4.5 & -- & -- \\\\\n"
        "ViT-B/16 & -- & -- & \\textbf{55.0 $\\pm$ 5.0} & 12.0 $\\pm$ 4.5 \\\\\n"
    ) in latex
    for table in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end", latex, re.DOTALL):
        rows = [line for line in table[1].splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert {line.count(" & ") + 1 for line in rows} == {len(table[0])}
    markdown = files["tables.md"].decode()
    assert (
        "### Test IoU of CAMAL and Vanilla (the paper's Table 5)\n\n| Model | BUSI<br>CAMAL | "
        "BUSI<br>Vanilla | Oxford-IIIT-Pet<br>CAMAL | Oxford-IIIT-Pet<br>Vanilla |" in markdown
    )
    # Prior was run on BUSI only.
    assert (
        "### Test IoU of CAMAL and Prior (the paper's Table 1)\n\n| Model | BUSI<br>CAMAL | BUSI<br>Prior |\n"
        in markdown
    )


def test_only_pairs_that_were_run_have_tables(tmp_path: Path) -> None:
    for method in ("camal", "prior"):
        write_cell(tmp_path, "flower", "maxvit_t", method)
    _, files = make(tmp_path)
    assert {name for name in files if name.startswith(("table", "figure"))} == {
        *("table1.csv", "table3.csv", "tables.md", "tables.tex"),
        *(f"{figure}.{kind}" for figure in ("figure3", "figure5") for kind in ("png", "svg", "pdf")),
    }


def test_iou_stands_beside_that_of_the_mask_and_dead_maps(runs: Path) -> None:
    write_cell(runs, "busi", "resnet18", "vanilla", [1], shifted={"reversed": shift(0.5, 0.25)})
    printed, files = make(runs)
    assert "The mask itself, at that resolution: 75.0 %; dead maps: 0.0 % and 12.5 %." in printed[0]
    table, none = files["report.md"].decode(), figures.NOTHING
    assert (
        "| BUSI | ResNet-18 | unshifted | Vanilla | 5 | 79.0 ± 8.9 | 12.0 ± 4.5 | 75.0 | 12.5 | 80.0 |"
        in table
    )
    shifted = f"| reversed | Vanilla | 1 | 50.0 ± {none} | 25.0 ± {none} | 75.0 | 25.0 | {none} |"
    assert shifted in table
    write_cell(runs, "busi", "resnet18", "vanilla", dead_map_fraction=0.5)
    assert "50 % of the maps of busi/resnet18/vanilla/unshifted are dead" in warned(runs)


def test_every_kind_of_attention_has_a_row_of_means(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    own = {"iou": 0.5, "removal": 0.4, "insertion": 0.6, "removal_blurred": 0.3, "insertion_blurred": 0.7}
    for fold, iou in ((1, 0.5), (2, 0.7)):
        maps = {"gradcam": own | {"iou": iou}, "diffgradcam": own | {"iou": None}}
        write_cell(runs, "busi", "resnet18", "camal", [fold], maps=maps)
    _, files = make(runs)
    _, *rows = csv.reader(io.StringIO(files["maps.csv"].decode()))
    assert [row[3:] for row in rows] == [
        ["true logit (Eq. 3)", "2", "60.0", "40.0", "60.0", "30.0", "70.0"],
        ["margin", "2", figures.NOTHING, "40.0", "60.0", "30.0", "70.0"],
    ]


def test_p_values_are_told_both_ways(runs: Path) -> None:
    rows = csv.reader(io.StringIO(make(runs)[1]["p-values.csv"].decode()))
    title, *found = ([*row[2:3], *row[4:]] for row in rows)
    assert title == ["Beside", "Measure", "Folds", "Difference", "p, higher", "p, lower", "CAMAL is"]
    assert found[:4] == [
        ["Vanilla", "IoU", "5", "43.0", "0.031", "1.000", "significantly higher"],
        ["Vanilla", "accuracy", "5", "11.0", "0.031", "1.000", "significantly higher"],
        ["Suppress", "IoU", "5", "-3.0", "1.000", "0.031", "significantly lower"],
        ["Suppress", "accuracy", "5", "-3.4", "1.000", "0.062", "lower"],
    ]


def test_a_p_that_rounds_to_zero_is_told_as_small(tmp_path: Path) -> None:
    for fold in range(1, 12):
        for method, accuracy in (("camal", 0.9), ("vanilla", 0.8 - 0.01 * fold)):
            one = scores_of("busi", "resnet18", method, fold, accuracy, 0.5) | {"folds": 11}
            write(tmp_path, f"busi/resnet18/{method}/fold{fold}", one, folds=11)
    iou, accuracy = csv.reader(io.StringIO(make(tmp_path)[1]["p-values.csv"].decode().split("\n", 1)[1]))
    assert accuracy[7:] == ["< 0.001", "1.000", "significantly higher"]  # 2**-11
    assert iou[7:] == ["1.000", "1.000", "equal"]


def test_every_fold_is_a_row_of_scores_csv(runs: Path) -> None:
    write_cell(runs, "busi", "resnet18", "camal", [1], shifted={"reversed": shift(0.5, 0.25)}, roc_auc=None)
    rows = list(csv.DictReader(io.StringIO(make(runs)[1]["scores.csv"].decode())))
    assert len(rows) == 21
    assert rows[0] == {
        "data": "busi",
        "model": "resnet18",
        "method": "camal",
        "fold": "1",
        "test_set": "unshifted",
        "accuracy": "0.9",
        "iou": "0.5",
        "iou_mask": "0.75",
        "dead_map_fraction": "0.0",
        "pointing_game": "0.8",
        "relevance_mass": "0.5",
        "roc_auc": "",
        "seconds_per_step": "0.1",
    }
    assert (rows[1]["test_set"], rows[1]["accuracy"], rows[1]["pointing_game"]) == ("reversed", "0.5", "")


# Shifted test sets


@pytest.mark.parametrize(
    ("camal", "vanilla", "told", "p"),
    [
        # Vanilla loses 0.79 - 0.3, and CAMAL is higher in all of five folds.
        (0.8, 0.3, "drops by 10.0 and 49.0 points, to 80.0 % against 30.0 % (significantly higher).", 1 / 32),
        (1.0, 1.0, "drops by -10.0 and -21.0 points, to 100.0 % against 100.0 % (equal).", 1),
    ],
)
def test_a_shift_has_drop_and_p_by_hand(
    tmp_path: Path, camal: float, vanilla: float, told: str, p: float
) -> None:
    for method, accuracy in (("camal", camal), ("vanilla", vanilla)):
        write_cell(tmp_path, "shapes", "resnet18", method, shifted={"reversed": shift(accuracy, 0.4)})
    printed, files = make(tmp_path)
    assert f"On Shapes with reversed images accuracy {told}" in printed[0]
    assert paired_with(files, "vanilla", "accuracy", "reversed")["p"] == pytest.approx(p)


# Faithfulness and variance


HIGHER, OPEN, LOWER = Interval(0.1, 0.05, 0.15), Interval(0.1, -0.05, 0.25), Interval(-0.1, -0.15, -0.05)


@pytest.mark.parametrize(
    ("removal", "insertion", "phrase"),
    [
        (LOWER, HIGHER, "more faithful than"),
        (HIGHER, LOWER, "less faithful than"),
        (OPEN, OPEN, "not clearly more or less faithful than"),
        (LOWER, LOWER, "more faithful by removal and less by insertion than"),
        (HIGHER, OPEN, "less faithful by removal and not clearly more or less by insertion than"),
        (Interval(-0.1, None, None), HIGHER, "not clearly more or less faithful by removal and more by"),
    ],
)
def test_the_verdict_on_faithfulness_is_either_way(
    removal: Interval, insertion: Interval, phrase: str
) -> None:
    areas = {"removal": (0.2, 0.3), "insertion": (0.6, 0.5)}
    differences = {"removal": removal, "insertion": insertion}
    told = report._faithful("prior", Curves(np.array(SHARES), {}, areas, differences, 1))
    assert told.startswith(f"CAMAL's attention is {phrase} ")
    assert "0.200 against 0.300 under removal" in told


# Figures


def picture(frame: int, heat: float, samples: int = 1) -> np.ndarray:
    """What `camal_rl.vision.evaluate` draws of so many samples: the first has the mask at the left."""
    strips = []
    for sample in range(samples):
        image, mask = np.full((64, 64, 3), frame + sample, np.uint8), np.zeros((64, 64), np.uint8)
        mask[:, 32 * sample : 32 * sample + 32] = 1
        strips.append(media.attention_strip(image, mask, {"": np.full((2, 2), heat)}, f"class: {sample}"))
    return media.stack_strips(strips)


def write_overlay(runs: Path, title: str, content: np.ndarray) -> None:
    folder = runs / title / "media"
    folder.mkdir(exist_ok=True)
    (folder / "overlay.png").write_bytes(media.encode_png(content))


@pytest.mark.parametrize("side", [16, 128, 224])
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("smallest", [media.SMALLEST_PANEL, 1])
def test_panels_of_the_first_sample_are_found(tmp_path: Path, side: int, samples: int, smallest: int) -> None:
    """Also in pictures that earlier versions drew, which did not enlarge small images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (samples, side, side, 3), np.uint8)
    mask, heat = np.eye(side, dtype=np.uint8), np.eye(2)
    strips = [
        media.attention_strip(image, mask, {"": heat}, "class: name", "image", smallest) for image in images
    ]
    file = tmp_path / "overlay.png"
    file.write_bytes(media.encode_png(media.stack_strips(strips)))
    shown, shown_mask, _, over = report.first_panels(file)
    image, targets = media.enlarged(images[0], smallest), media.enlarged(mask, smallest)
    assert np.array_equal(shown, image)
    assert np.array_equal(shown_mask[..., 0], 255 * targets)
    assert over.shape == image.shape


def test_the_first_fold_that_both_have_a_picture_of_is_shown(runs: Path) -> None:
    for fold in (2, 3):
        for heat, method in ((1.0, "camal"), (0.5, "prior")):
            write_overlay(runs, f"busi/resnet18/{method}/fold{fold}", picture(100 + fold, heat, 3))
    write_overlay(runs, "busi/resnet18/camal/fold1", picture(100, 1.0))
    strips, titles, problems = report.overlays(read_folds(runs), "prior")
    assert (titles, problems) == (["BUSI: ResNet-18, fold 2"], [])
    frame, mask, camal, prior = strips["busi"]
    assert (frame == 102).all()
    assert np.array_equal(mask[0, :, 0] > 0, np.arange(192) < 96)
    assert not np.array_equal(camal, prior)


def test_pictures_that_cannot_be_used_are_named_and_the_next_is_taken(runs: Path) -> None:
    shutil.rmtree(runs / "busi/resnet18/suppress")
    for fold in (1, 2, 3):
        for method in ("camal", "vanilla"):
            write_overlay(runs, f"busi/resnet18/{method}/fold{fold}", picture(100, 1.0))
    (runs / "busi/resnet18/vanilla/fold1/media/overlay.png").write_bytes(b"damaged")
    write_overlay(runs, "busi/resnet18/vanilla/fold2", picture(101, 1.0))
    unread, differing = warned(runs).splitlines()
    assert unread.startswith(
        "No picture of busi/resnet18/camal/fold1 and Vanilla: cannot identify image file"
    )
    assert differing == ("No picture of busi/resnet18/camal/fold2 and Vanilla: they show different samples.")
    assert "(BUSI: ResNet-18, fold 3)" in make(runs)[1]["report.md"].decode()


@pytest.mark.slow
def test_figures_are_pictures_and_the_page_asks_for_nothing(runs: Path, tmp_path: Path, drawn: None) -> None:
    for method in ("camal", "vanilla"):
        write_overlay(runs, f"busi/resnet18/{method}/fold1", picture(100, 1.0))
    _, files = make(runs)
    drawings = {name: content for name, content in files.items() if name.endswith(".png")}
    assert set(drawings) == {
        *("figure3.png", "figure10.png", "attention-suppress.png"),
        *("figure5.png", "figure12.png", "faithfulness-suppress.png"),
    }
    for content in drawings.values():
        with Image.open(io.BytesIO(content)) as drawing:
            drawing.load()
            assert drawing.width == round(220 * figures.WIDTH)
            assert len(np.unique(np.asarray(drawing.convert("L")))) > 10
    html = files["report.html"].decode()
    assert html.count("<svg") == len(drawings)
    assert ">CAMAL, AUC 0.438</text>" in html
    assert "CAMAL&#39;s area less Prior&#39;s on the same samples, with its 95" in html
    assert make(runs, "--output", str(tmp_path / "again"))[1] == files


# Few folds, folds without a partner, damaged and missing files


def test_fewer_than_five_folds_are_never_significant_and_that_is_said(tmp_path: Path) -> None:
    for method in ("camal", "vanilla"):
        write_cell(tmp_path, "shapes", "resnet18", method, [1, 2, 3], folds=3)
    printed, files = make(tmp_path)
    assert paired_with(files, "vanilla", "iou")["p"] == 1 / 8
    assert paired_with(files, "vanilla", "iou")["verdict"] == "higher"
    markdown = files["report.md"].decode()
    assert "**" not in markdown
    assert warned(tmp_path) == (
        "Too few folds for significance: the smallest p of n paired folds that differ is 2^-n, so fewer than "
        "5 can't give p < 0.05. That holds for shapes/resnet18 beside Vanilla (IoU: 3), shapes/resnet18 "
        "beside Vanilla (accuracy: 3)."
    )
    assert printed[0].startswith(
        "CAMAL's attention is not significantly better aligned than Vanilla's: a mean IoU of 55.0 %"
    )
    write_cell(tmp_path, "shapes", "resnet18", "camal", [4, 5])
    write_cell(tmp_path, "shapes", "resnet18", "vanilla", [4, 5])
    assert "Too few" not in warned(tmp_path)


def test_tied_folds_do_not_count_for_significance_and_that_is_said(runs: Path) -> None:
    # Accuracy is the same as Suppress's in one fold of five.
    assert warned(runs).endswith("That holds for busi/resnet18 beside Suppress (accuracy: 4).")


def test_one_fold_has_a_mean_and_no_deviation(tmp_path: Path) -> None:
    write_cell(tmp_path, "shapes", "resnet18", "camal", [1])
    write_cell(tmp_path, "shapes", "resnet18", "vanilla", [1])
    assert (
        "| ResNet-18 | <ins>90.0 ± \N{EN DASH}</ins> | 80.0 ± \N{EN DASH} |"
        in make(tmp_path)[1]["tables.md"].decode()
    )


def test_missing_folds_are_named_and_the_rest_is_compared(runs: Path) -> None:
    (runs / "busi/resnet18/camal/fold1/scores.json").unlink()
    shutil.rmtree(runs / "busi/resnet18/vanilla/fold4")
    sentences = warned(runs)
    assert "busi/resnet18/camal/fold1 has no scores.json and is left out: train it to its end." in sentences
    assert "Missing: busi/resnet18/vanilla/fold4." in sentences
    assert paired_with(make(runs)[1], "vanilla", "accuracy")["folds"]["fold"] == [2, 3, 5]


def test_nothing_at_all_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="train and evaluate first"):
        make(tmp_path)
    (tmp_path / "busi/resnet18/camal/fold1").mkdir(parents=True)
    assert report.main(report.Args(tmp_path)) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "busi/resnet18/camal/fold1 has no scores.json" in told
    assert not (tmp_path / "report").exists()


def test_a_fold_without_iou_counts_for_accuracy_only(runs: Path) -> None:
    write_cell(runs, "busi", "resnet18", "camal", [2], iou=None, iou_mask=None)
    _, files = make(runs)
    assert paired_with(files, "vanilla", "iou")["folds"]["fold"] == [1, 3, 4, 5]
    assert paired_with(files, "vanilla", "accuracy")["folds"]["fold"] == [1, 2, 3, 4, 5]


# In words


def test_findings_are_said_whichever_way_they_point(runs: Path) -> None:
    vanilla, suppress, prior = make(runs)[0][:3]
    assert vanilla == (
        "CAMAL's attention is significantly better aligned than Vanilla's: a mean IoU of 55.0 % against "
        "12.0 % (significantly higher). The mask itself, at that resolution: 75.0 %; dead maps: 0.0 % and "
        "12.5 %. CAMAL's accuracy is significantly higher than Vanilla's: a mean accuracy of 90.0 % against "
        "79.0 % (significantly higher). CAMAL's attention is more faithful by "
        "removal and not clearly more or less by insertion than Vanilla's: the area under the curve (AUC) of "
        "confidence is 0.438 against 0.562 under removal (low is faithful) and 0.625 against 0.625 under "
        "insertion (high is faithful)."
    )
    assert suppress.startswith(
        "CAMAL's attention is significantly worse aligned than Suppress's: a mean IoU of 55.0 % against "
        "58.0 % (significantly lower)."
    )
    assert "CAMAL's accuracy is not significantly lower than Suppress's: " in suppress
    assert prior.startswith("CAMAL's attention is not significantly better aligned than Prior's: ")


def test_a_mixed_result_is_not_called_better(runs: Path) -> None:
    write_cell(runs, "pet", "resnet18", "camal", iou=0.1)
    write_cell(runs, "pet", "resnet18", "vanilla", iou=0.2)
    printed, _ = make(runs)
    assert printed[0].startswith("CAMAL's attention is not consistently better aligned than Vanilla's: ")
    assert "higher in 1 and lower in 1 comparisons, significantly in 2." in printed[0]


@pytest.mark.parametrize(
    ("iou", "phrase"),
    [((0.5, 0.1), "not consistently better aligned than"), ((0.5, 0.5), "as well aligned as")],
)
def test_a_tie_is_called_one(tmp_path: Path, iou: tuple[float, float], phrase: str) -> None:
    for data, vanilla in zip(("busi", "pet"), iou, strict=True):
        write_cell(tmp_path, data, "resnet18", "camal", iou=0.5)
        write_cell(tmp_path, data, "resnet18", "vanilla", iou=vanilla)
    assert make(tmp_path)[0][0].startswith(f"CAMAL's attention is {phrase} Vanilla's: a mean IoU of 50.0 %")


@pytest.mark.parametrize("methods", [("camal",), ("vanilla", "prior")])
def test_without_a_pair_scores_are_shown_and_not_compared(tmp_path: Path, methods: tuple[str, ...]) -> None:
    for method in methods:
        write_cell(tmp_path, "shapes", "resnet18", method)
    printed, files = make(tmp_path)
    assert "nothing is compared with CAMAL" in printed[0]
    assert statistics_of(files)["paired"] == []
    assert "### All methods" in files["report.md"].decode()


def test_a_method_that_shares_no_fold_is_said_to_be_incomparable(tmp_path: Path) -> None:
    write_cell(tmp_path, "shapes", "resnet18", "camal", [1])
    write_cell(tmp_path, "shapes", "resnet18", "vanilla", [2])
    assert make(tmp_path)[0][0] == "No fold of Vanilla can be compared with one of CAMAL."


def test_methods_and_models_of_any_name_are_compared(tmp_path: Path) -> None:
    write_cell(tmp_path, "mine", "resnet50", "camal")
    for fold in range(1, 6):
        one = scores_of("mine", "resnet50", "other_way", fold, 0.5, 0.1)
        write(tmp_path, f"mine/resnet50/other_way/fold{fold}", one)
    _, files = make(tmp_path)
    assert {"iou-other_way.csv", "accuracy-other_way.csv", "attention-other_way.png"} <= set(files)
    assert "| resnet50 | **90.0 ± 7.1** | 50.0 ± 0.0 |" in files["report.md"].decode()


# The command line


@pytest.mark.slow
def test_the_command_needs_no_torch(runs: Path) -> None:
    code = (
        "import sys; import camal_rl.vision.report as report; from camal_rl.results import figures; "
        "figures.draw = lambda name, *_: {f'{name}.svg': b'<svg/>'}; "
        f"code = report.main(report.parse(report.Args, 'report', [{str(runs)!r}])); "
        "print({'torch', 'torchvision', 'vizdoom'} & {*sys.modules}); sys.exit(code)"
    )
    done = run("-c", code, folder=ROOT)
    assert done.returncode == 0, done.stderr
    assert "CAMAL's attention is significantly better aligned than Vanilla's" in done.stdout
    assert str(runs / "report" / "report.html") in done.stdout
    assert done.stdout.endswith("set()\n")
    assert done.stderr == ""


def test_ctrl_c_leaves_an_earlier_report(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, before = make(runs)

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "verdicts", interrupted)
    assert report.main(report.Args(runs)) == 130
    assert "Nothing was written" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (runs / "report").iterdir()} == before
