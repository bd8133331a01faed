"""Reading run folders that tests wrote: what is damaged, what is not comparable, and learning curves."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from written_runs import write_events, write_scores

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
        ({"training__ppo__gamma": 0.9}, "trained differently. ppo.gamma is 0.99 (7 runs) and 0.9"),
        ({"steps": 500}, "different numbers of agent steps. steps is 1000 (7 runs) and 500 (A/camal/seed1)."),
        (
            {"training__definition__scenario": "x"},
            "runs of A have different definitions of it. scenario is null",
        ),
        (
            {"settings__versions": {"torch": "3"}},
            'Versions differ between runs. torch is "2.0" (7 runs) and "3"',
        ),
        (
            {"method": "other"},
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


# What is damaged


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"format": 1', "can't read"),
        ("[" * 10**5, "can't read"),
        ("[]", "not an object"),
        ({"steps": 0}, "steps is 0, so nothing was trained"),
        ({"return__mean": 10**400}, "not a number"),
        ({"settings__versions": ["torch"]}, "settings.versions is ['torch'], not an object"),
        ({"undefined": 3}, "undefined is 3, not an object"),
        ({"iou": "high"}, "iou is 'high', not a number"),
        ({"iou": 1.5}, "iou is 1.5, not between 0 and 1"),
        ({"return__mean": NAN}, "return.mean is nan, not a number"),
        ({"return__mean": None}, "return.mean is None, not a number"),
        ({"return": 5}, "has no return.mean"),
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"episodes": 5}, "has no episodes or settings"),
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
    assert str(file) in str(error.value)
    assert problem in str(error.value)
    assert "python -m camal_rl.evaluate" in str(error.value)


def test_runs_with_different_scales_of_return_are_refused(runs: Path) -> None:
    write_scores(runs, "B/vanilla/seed1", training__definition__random_return=-5.0)
    with pytest.raises(
        UserError, match=r"B/camal/seed1 and B/vanilla/seed1 measure returns on different scales"
    ):
        read_study(runs)


@pytest.mark.parametrize(
    ("matrix", "problem"),
    [("{", "can't read"), ('{"envs": "A"}', "envs is not a list"), ("[]", "not an object")],
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
                for run in found.runs:
                    told = (run.score("iou"), run.score("return"), run.title, run.why_without_iou)
                    assert len(told) == 4
                    json.dumps([study.versions(run), study.training(run.scores)])
            except UserError as error:
                refused.append(str(error))
    assert len(refused) > 100
    assert [one for one in refused if "scores.json" not in one and "different scales" not in one] == []


# Learning curves


def test_a_curve_is_the_mean_of_a_window_and_its_neighbours_by_hand() -> None:
    edges = np.array([0.0, 10, 20, 30, 40, 50, 60])
    points = np.array([[5.0, 1], [10, 2], [11, 6], [12, NAN], [60, 9], [70, 100]])
    found = study.curve(points, edges, end=60)
    np.testing.assert_array_equal(found, [3, 3, 6, NAN, 9, 9])
    np.testing.assert_array_equal(study.curve(points, edges, end=50), [3, 3, 6, NAN, 9, NAN])
    assert np.isnan(study.curve(np.zeros((0, 2)), edges, end=60)).all()


def test_events_are_read_as_tensorboard_reads_them_after_a_training_went_on(tmp_path: Path) -> None:
    tag = "charts/episodic_return"
    write_events(tmp_path, {tag: [(1, 1.0), (5, 5.0), (9, 9.0)], "charts/episodic_return_other": [(1, 3)]})
    write_events(tmp_path, {tag: [(6, 60.0), (9, 90.0)]}, start=4)
    (tmp_path / "evaluation").mkdir()
    write_events(tmp_path / "evaluation", {tag: [(2, 7.0)]})
    found = study.read_events(tmp_path, [tag, "camal/iou"])
    expected = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload().Scalars(tag)
    assert found[tag].tolist() == [[event.step, event.value] for event in expected]
    assert found[tag].tolist() == [[1, 1], [6, 60], [9, 90]]
    assert found["camal/iou"].shape == (0, 2)


def test_events_that_are_still_being_written_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    tag = "camal/iou"
    write_events(tmp_path, {tag: [(1, 0.5), (2, 0.75)]})
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])  # into the last record
    assert study.read_events(tmp_path, [tag])[tag].tolist() == [[1, 0.5]]


def test_damaged_events_are_named(runs: Path) -> None:
    (file,) = (runs / "A/camal/seed1").glob("events*")
    file.write_bytes(file.read_bytes().replace(b"camal/iou", b"\xffamal/iou"))
    with pytest.raises(UserError, match=re.escape(str(file))):
        study.read_events(file.parent, ["camal/iou"])
