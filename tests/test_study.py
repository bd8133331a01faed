"""Reading run folders that tests wrote: what is damaged, what is not comparable, and learning curves."""

import copy
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written_runs import write_curves, write_scores

from camal_rl.errors import UserError
from camal_rl.results import study
from camal_rl.results.study import read_study

NAN = float("nan")


# What runs say


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"settings__episodes": 9}, "evaluated differently. episodes is 2 (7 runs) and 9 (A/camal/seed1)."),
        ({"settings__tau": 0.5}, "evaluated differently. tau is 0.7 (7 runs) and 0.5 (A/camal/seed1)."),
        ({"settings__greedy": True}, "evaluated differently. greedy is false (7 runs) and true"),
        ({"training__args__gamma": 0.9}, "trained differently. gamma is 0.99 (7 runs) and 0.9"),
        ({"steps": 500}, "trained differently. agent steps is 1000 (7 runs) and 500 (A/camal/seed1)."),
        (
            {"training__definition__scenario": "x"},
            'runs of A have different definitions of it. scenario is "a.cfg" (3 runs) and "x"',
        ),
        (
            {"settings__versions": {"torch": "3"}},
            'Versions differ between runs. torch is "2.0" (7 runs) and "3"',
        ),
        (
            {"method": "other", "name": "other"},
            "The folder A/camal/seed1 holds scores of A/other/seed1; the folder's name is used.",
        ),
    ],
)
def test_runs_that_are_not_comparable_are_reported_with_a_warning(
    runs: Path, changes: dict[str, Any], sentence: str
) -> None:
    assert study.comparability(read_study(runs)) == []
    write_scores(runs, "A/camal/seed1", 20, 0.2, **changes)
    assert sentence in "\n".join(study.comparability(read_study(runs)))


def told(found: study.Study) -> list[str]:
    trained = [(run.method, study.training(run)) for run in found.runs]
    return study.variants("They differ in options of training:", trained)


def test_a_variant_may_have_other_options_and_its_runs_the_same(runs: Path) -> None:
    (runs / "experiment.json").write_text('{"methods": ["camal"], "variants": {"weak": []}}')
    weak: dict[str, Any] = {"name": "weak", "method": "camal", "training__args": {"gamma": 0.5}}
    for seed in (1, 2):
        write_scores(runs, f"A/weak/seed{seed}", 20, 0.2, **weak)
    found = read_study(runs)
    assert found.methods == ["camal", "weak", "vanilla"]
    assert study.comparability(found) == []
    (sentence,) = told(found)
    assert sentence == (
        "They differ in options of training: gamma is 0.99 (2 rows) and 0.5 (weak); "
        'method is "camal" (2 rows) and "vanilla" (vanilla).'
    )
    for changes in ({"training__args": {"gamma": 0.7}}, {"method": "suppress"}):
        write_scores(runs, "A/weak/seed2", 20, 0.2, **weak | changes)
        (sentence,) = study.comparability(read_study(runs))
        name, value = ("gamma", 0.7) if "method" not in changes else ("method", '"suppress"')
        assert sentence.startswith("Not comparable: runs were trained differently. ")
        assert f"{name} of weak is " in sentence
        assert f"{value} (A/weak/seed2)" in sentence
    planned = '{"methods": ["camal", "suppress"], "variants": {"weak": []}}'  # none of suppress is there yet
    (runs / "experiment.json").write_text(planned)
    assert told(read_study(runs))


def test_runs_may_be_evaluated_by_the_maps_they_were_trained_with(runs: Path) -> None:
    for seed in (1, 2):
        other = {"name": "other", "method": "camal", "training__args": {"attention": "magnitude"}}
        write_scores(runs, f"A/other/seed{seed}", 20, 0.2, settings__attention="magnitude", **other)
    assert study.comparability(read_study(runs)) == []
    write_scores(runs, "A/other/seed2", 20, 0.2, settings__attention="gradcam", **other)
    (sentence,) = study.comparability(read_study(runs))
    assert sentence.startswith("Not comparable: runs were evaluated differently. attention is")


def test_runs_by_other_code_are_named(runs: Path) -> None:
    write_scores(runs, "A/camal/seed1", 20, 0.2, training__code={"code": ["another"]})
    for seed in (1, 2):
        write_scores(runs, f"A/vanilla/seed{seed}", 20, 0.2, training__code={"code": ["this"]})
    (sentence,) = study.comparability(read_study(runs))
    assert sentence.startswith("Versions differ between runs. code of training is")


def test_a_run_that_went_on_for_longer_than_planned_is_named(runs: Path) -> None:
    write_scores(runs, "A/camal/seed1", 20, 0.2, training__trained_on={"trained_on_from": 500})
    (sentence,) = study.comparability(read_study(runs))
    assert sentence.startswith(
        "A/camal/seed1 went on for longer than planned, with a learning rate that rose"
    )


def test_hidden_folders_and_copies_are_no_runs(runs: Path) -> None:
    before = read_study(runs)
    for source, copy_of in (
        ("A", ".ipynb_checkpoints"),
        ("A/camal", "A/.ipynb_checkpoints"),
        ("A", "A copy"),
        ("A/camal", "A/camal copy"),
        ("A/camal/seed1", "A/camal/seed7"),
    ):
        shutil.copytree(runs / source, runs / copy_of)
    shutil.rmtree(runs / "A copy/camal")
    after = read_study(runs)
    left_out = ["A/camal/seed7", "A/camal copy/seed1", "A/camal copy/seed2", "A copy/vanilla/seed1"]
    assert after.copies == [*left_out, "A copy/vanilla/seed2"]
    assert dataclasses.replace(after, copies=[]) == before
    (sentence,) = study.comparability(after)
    assert sentence.startswith(f"Left out as copies: {', '.join(left_out)} and 1 more")


# What is damaged


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"format": 1', "Invalid JSON"),
        ("[" * 10**5, "Invalid JSON"),
        ("[]", "Input should be an object"),
        ({"steps": 0}, "steps: Input should be greater than 0"),
        ({"return__mean": 10**400}, "return.mean: Input should be a finite number"),
        ({"undefined": 3}, "undefined: Input should be an object"),
        ({"iou": "high"}, "iou: Input should be a valid number"),
        ({"iou": 1.5}, "iou: Input should be less than or equal to 1"),
        ({"return__mean": None}, "return.mean: Input should be a valid number"),
        ({"return": 5}, "return.mean: Field required"),
        ({"format": 2}, "format: Input should be 1"),
        ({"training__definition__reference_return": -1}, "reference return is not above the random one"),
    ],
)
def test_damaged_scores_are_named(runs: Path, content: str | dict[str, Any], problem: str) -> None:
    file = runs / "A/camal/seed2/scores.json"
    if isinstance(content, str):
        file.write_text(content)
    else:
        write_scores(runs, "A/camal/seed2", **content)
    with pytest.raises(UserError) as error:
        read_study(runs)
    assert str(error.value).startswith(f"can't read {file}: ")
    assert problem in str(error.value)
    assert str(error.value).endswith(f"Evaluate again: python -m camal_rl.evaluate {file.parent}")


def test_runs_with_different_scales_of_return_are_refused(runs: Path) -> None:
    write_scores(runs, "B/vanilla/seed1", training__definition__random_return=-5.0)
    with pytest.raises(
        UserError, match=r"B/camal/seed1 and B/vanilla/seed1 measure returns on different scales"
    ):
        read_study(runs)


@pytest.mark.parametrize(
    ("matrix", "problem"),
    [("{", "can't read"), ('{"envs": "A"}', "envs: Input should be a valid array"), ("[]", "an object")],
)
def test_a_damaged_matrix_is_named(runs: Path, matrix: str, problem: str) -> None:
    (runs / "experiment.json").write_text(matrix)
    with pytest.raises(UserError, match=r"experiment\.json") as error:
        read_study(runs)
    assert problem in str(error.value)


def test_a_folder_without_scores_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train and evaluate first, python -m camal_rl\.experiment"):
        read_study(tmp_path)


@pytest.mark.slow
def test_every_wrong_type_anywhere_is_one_clear_error_or_none(runs: Path) -> None:
    """Each value of scores.json, in turn, is one of every JSON type, or missing."""
    file = runs / "A/camal/seed1/scores.json"
    whole = json.loads(file.read_text())

    def places(content: Any, path: tuple[Any, ...] = ()) -> Any:
        yield path
        if isinstance(content, (dict, list)):
            for key, value in content.items() if isinstance(content, dict) else enumerate(content):
                yield from places(value, (*path, key))

    everywhere = list(places(whole))
    assert len(everywhere) > 30
    refused = []
    for path in everywhere[1:]:
        for value in (None, True, -1, 0.5, 10**400, "x", "", [], [1], {}, {"a": [1]}, NAN, "delete"):
            content = copy.deepcopy(whole)
            place = content
            for key in path[:-1]:
                place = place[key]
            if value == "delete":
                del place[path[-1]]
            else:
                place[path[-1]] = value
            file.write_text(json.dumps(content))
            try:
                found = read_study(runs)
                study.comparability(found)
                assert len(found.table) == 8 - len(found.copies)
                json.dumps([study.versions(run) | study.training(run) for run in found.runs])
            except UserError as error:
                refused.append(str(error))
    assert len(refused) > 100
    assert [one for one in refused if "scores.json" not in one and "different scales" not in one] == []


# Learning curves


def test_a_curve_is_the_mean_of_a_window_and_its_neighbours_where_something_was_logged() -> None:
    edges = np.array([0.0, 10, 20, 30, 40, 50, 60])
    points = np.array([[5.0, 1], [10, 2], [11, 6], [12, NAN], [60, 9], [70, 100]])
    found = study.curve(points, edges, end=60)
    np.testing.assert_array_equal(found, [3, 3, NAN, NAN, NAN, 9])
    np.testing.assert_array_equal(study.curve(points, edges, end=50), [3, 3, NAN, NAN, NAN, NAN])
    assert np.isnan(study.curve(np.zeros((0, 2)), edges, end=60)).all()


def test_what_a_training_logged_is_read_by_tag(tmp_path: Path) -> None:
    write_curves(tmp_path, {"camal/iou": [(1, 0.5), (3, NAN)], "camal/iou_other": [(2, 7.0)]})
    np.testing.assert_array_equal(study.read_curve(tmp_path, "camal/iou"), [[1, 0.5], [3, NAN]])
    assert study.read_curve(tmp_path, "charts/episodic_return").shape == (0, 2)
    (tmp_path / "curves.csv").unlink()
    assert study.read_curve(tmp_path, "camal/iou").shape == (0, 2)


@pytest.mark.parametrize(
    "content", ["", "tag,step\n", "tag,step,value\ncamal/iou,1,high\n", "a,b\n1,2,3\n", "\0"]
)
def test_damaged_curves_are_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "curves.csv"
    file.write_text(content)
    with pytest.raises(UserError, match=re.escape(f"{file} is damaged")):
        study.read_curve(tmp_path, "camal/iou")


def test_a_last_line_that_is_cut_off_has_no_value(tmp_path: Path) -> None:
    (tmp_path / "curves.csv").write_text("tag,step,value\ncamal/iou,1,0.5\ncamal/iou,2")
    np.testing.assert_array_equal(study.read_curve(tmp_path, "camal/iou"), [[1, 0.5], [2, NAN]])
