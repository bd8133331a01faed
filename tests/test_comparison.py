"""Statistics of a study that tests wrote: numbers by hand, what is left out, and learning curves."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from written_runs import IOUS, write_curves, write_scores

from camal_rl import stats
from camal_rl.results.comparison import Results, compute, compute_further, jobs
from camal_rl.results.study import pivot, read_study

NAN = float("nan")
FEW = 50  # repetitions


def results_of(runs: Path) -> dict[str, Results]:
    return compute(read_study(runs), FEW, seed=7)


def test_scores_of_a_method_are_runs_by_environments(runs: Path) -> None:
    shutil.rmtree(runs / "B/camal/seed1")
    study = read_study(runs)
    matrix = pivot(study.table, "camal", "iou", study.envs)
    assert (list(matrix.index), list(matrix)) == ([1, 2], ["A", "B"])
    np.testing.assert_array_equal(matrix, [[0.2, NAN], [0.4, 0.5]])


def test_statistics_by_hand_with_the_intervals_of_the_statistics_module(runs: Path) -> None:
    results = results_of(runs)
    joint = results["iou"].joint
    scores_RE = np.array([IOUS["A/camal"], IOUS["B/camal"]]).T  # noqa: N806
    assert joint.sbci["camal"] == stats.sbci({"camal": scores_RE}, FEW, 7)["camal"]
    assert joint.sbci["camal"]["mean"].estimate == pytest.approx(0.35)
    # In A camal wins 3 of 4 pairs, in B all of them.
    assert joint.poi["camal", "vanilla"].estimate == pytest.approx((0.75 + 1) / 2)
    assert results["iou"].environments["A"].poi["camal", "vanilla"].estimate == 0.75
    assert results["return"].environments["B"].poi["camal", "vanilla"].estimate == 0.25
    assert joint.runs == {"camal": 2, "vanilla": 2}


def test_every_pair_of_methods_is_compared_in_their_order(runs: Path) -> None:
    for env in "AB":
        for seed in (1, 2):
            write_scores(runs, f"{env}/suppress/seed{seed}", 50 + seed, 0.15 + 0.1 * seed)
    results = results_of(runs)
    pairs = [("camal", "suppress"), ("camal", "vanilla"), ("suppress", "vanilla")]
    for one in (results["iou"].joint, results["return"].environments["B"]):
        assert list(one.poi) == pairs
        assert list(one.false_positive_rate) == pairs
    # suppress has 0.25 and 0.35: over 0.1 and 0.3 it wins 3 of 4, over 0.1 and 0.2 all.
    assert results["iou"].joint.poi["suppress", "vanilla"].estimate == pytest.approx((0.75 + 1) / 2)


def test_chance_is_that_of_a_verdict_either_way_between_so_many_runs(runs: Path) -> None:
    shutil.rmtree(runs / "B/vanilla/seed2")
    write_scores(runs, "A/camal/seed3", 30, 0.3)
    results = results_of(runs)
    found = results["iou"].environments["A"].false_positive_rate["camal", "vanilla"]
    assert found == 2 * stats.false_positive_rate(3, 2, 1)
    assert (
        results["iou"].joint.false_positive_rate == {}
    )  # one run of Vanilla is complete: no interval, no verdict
    assert results["iou"].environments["B"].false_positive_rate == {}


def test_what_is_incomplete_is_left_out_of_what_is_joint_with_a_sentence(runs: Path) -> None:
    write_scores(runs, "A/camal/seed1", 20, None)
    results = results_of(runs)
    assert results["iou"].joint.runs == {"camal": 1, "vanilla": 2}
    assert results["return"].joint.runs == {"camal": 2, "vanilla": 2}
    (sentence,) = results["iou"].left_out
    assert sentence.startswith("Left out camal seed 1: it has no score in A")
    assert results["return"].left_out == []


def test_every_gap_of_a_run_is_named_and_a_method_may_be_left_with_none(runs: Path) -> None:
    for env in ("A", "B"):
        for seed in (1, 2):
            write_scores(runs, f"{env}/camal/seed{seed}", 20, None)
    results = results_of(runs)
    assert results["iou"].joint.runs == {"camal": 0, "vanilla": 2}
    sentences = results["iou"].left_out
    assert [sentence.split(", and")[0] for sentence in sentences] == [
        f"Left out camal seed {seed}: it has no score in A, B" for seed in (1, 2)
    ]


@pytest.mark.parametrize("methods", [1, 2, 3])
def test_jobs_are_as_many_as_are_said_to_be_done(runs: Path, methods: int) -> None:
    if methods == 1:
        shutil.rmtree(runs / "A/vanilla")
        shutil.rmtree(runs / "B/vanilla")
    if methods == 3:
        write_scores(runs, "A/suppress/seed1")
    study = read_study(runs)
    said = []
    compute(study, 2, 0, lambda: said.append(1))
    compute_further(study, 2, 0, lambda: said.append(1))
    assert len(said) == jobs(study)


def faithful(black: tuple[float, float]) -> dict[str, object]:
    """Faithfulness in scores.json: areas of removal and insertion with black pixels."""
    curves = {
        change: {"value_change": {"area": area}}
        for change, area in zip(("removal", "insertion"), black, strict=True)
    }
    return {"black": {"attention": curves}, "blurred": None}


def test_further_measures_are_compared_with_less_as_an_improvement_where_it_is(runs: Path) -> None:
    areas = {"camal": ((0.9, 0.3), (0.7, 0.5)), "vanilla": ((0.8, 0.4), (0.6, 0.2))}
    looks = {"camal": (10, 20), "vanilla": (40, 40)}
    for env in "AB":
        for method in areas:
            for seed, (black, look) in enumerate(zip(areas[method], looks[method], strict=True), 1):
                shift = {name: {"return": {"mean": look}} for name in ("flat", "noise")}
                shift["dim"] = {"return": {"mean": 99.0}}
                if method == "camal":
                    del shift["dim"]  # not every run has it, so it does not count
                title = f"{env}/{method}/seed{seed}"
                write_scores(runs, title, 50, 0.5, faithfulness=faithful(black), shift=shift)
    found = compute_further(read_study(runs), FEW, seed=7)
    pair = ("camal", "vanilla")
    expected = {  # mean of camal, and the pairs of runs that it wins
        "removal_black": (0.8, 3 / 4),
        "insertion_black": (0.4, 1 / 4),  # 0.3 and 0.5 against 0.4 and 0.2
        "shifted_return": (0.15, 0),
        "lost_return": (0.35, 0),
    }
    for measure, (mean, improvement) in expected.items():
        assert found[measure].sbci["camal"]["mean"].estimate == pytest.approx(mean)
        assert found[measure].poi[pair].estimate == improvement
    assert "removal_blurred" not in found


def test_steps_to_half_the_gain_are_where_the_curve_first_comes_there(runs: Path) -> None:
    # In A the best row, camal, ends at a mean of 30 (smoothed: 29.4) over a random return of 0: half is 14.7.
    found = compute_further(read_study(runs), FEW, seed=7)["steps_to_half"]
    camal, vanilla = (found.sbci[method]["mean"].estimate for method in ("camal", "vanilla"))

    # Returns rise linearly to 20 and 40, and 10 and 30; in B to 90 and 50, and 95 and 60, where half is 38.
    def first(total: float, half: float) -> float:
        middles = np.arange(10, 1000, 20) + 5  # of windows of 20 steps, logged every 10
        return min([int(middle) + 5 for middle in middles if total * middle / 1000 >= half], default=1000)

    for method, totals in {"camal": ((20, 40), (90, 50)), "vanilla": ((10, 30), (95, 60))}.items():
        steps = [first(total, half) for env, half in zip(totals, (14.7, 38.0), strict=True) for total in env]
        assert (camal if method == "camal" else vanilla) == pytest.approx(np.mean(steps), abs=10)
    # In A 760 and 380 steps against all and 500, in B 440 and 780 against 420 and 660.
    assert found.poi["camal", "vanilla"].estimate == (3 / 4 + 1 / 4) / 2


def test_where_nobody_gains_nobody_gets_half_of_it(runs: Path) -> None:
    for folder in runs.glob("*/*/seed*"):
        write_curves(folder, {"charts/episodic_return": [(step, -step / 20) for step in range(10, 1001, 10)]})
    found = compute_further(read_study(runs), FEW, seed=7)["steps_to_half"]
    assert [found.sbci[method]["mean"].estimate for method in ("camal", "vanilla")] == [1000, 1000]


def test_curves_are_means_over_seeds_with_bands(runs: Path) -> None:
    lines = results_of(runs)["return"].curves["A"]
    assert lines.x[:2].tolist() == [10, 30]  # the middles of 50 windows of 20 steps
    camal = lines.bands["camal"]
    # Windows 0 to 2 hold steps 10 to 60, so window 1 has 35 of 1000 steps of returns 20 and 40.
    assert camal.estimate[1] == pytest.approx(0.035 * 30)
    assert camal.low is not None
    assert camal.high is not None
    assert camal.low[1] == pytest.approx(0.035 * 20)
    assert camal.high[1] == pytest.approx(0.035 * 40)


def test_runs_without_curves_are_left_out_of_them_and_named(runs: Path) -> None:
    (runs / "A/camal/seed1/curves.csv").unlink()
    results = results_of(runs)
    assert results["iou"].without_curve == results["return"].without_curve == ["A/camal/seed1"]
    band = results["iou"].curves["A"].bands["camal"]
    assert band.low is None
    assert band.reason is not None
    assert "single run" in band.reason
    assert band.estimate[-1] == pytest.approx(0.4 * 0.98, abs=0.01)  # seed 2 alone


def test_a_window_in_which_a_run_logged_nothing_has_no_value(runs: Path) -> None:
    write_curves(runs / "A/camal/seed1", {"camal/iou": [(990, 0.25)]})
    band = results_of(runs)["iou"].curves["A"].bands["camal"]
    assert band.low is not None
    assert np.flatnonzero(~np.isnan(band.estimate)).tolist() == [49]
    assert np.isnan(band.low).sum() == 49
