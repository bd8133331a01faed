"""What the benchmark's numbers come to, by hand."""

import math
from typing import Any

import pytest
from matplotlib.figure import Figure

from camal_rl import benchmark_tables as tables
from camal_rl.benchmark_tables import Finding, Spread, spread

MACHINE = {
    "cpu": "Abacus",
    "cores": 2,
    "gpu": None,
    "device": "cpu",
    "precision": "fp32",
    "torch_threads": 2,
    "python": "3.11",
    "versions": {"torch": "2.0"},
}


def stamps(*durations: float, cpu: float = 0.5, memory: float = 100) -> list[dict[str, float]]:
    """Of iterations that took so long, with a second between them that is not training's."""
    now, made = 10.0, []
    for place, duration in enumerate((0.0, *durations)):
        now += duration
        size = int(memory * 2**20)
        made.append({"ended": now, "resumed": now + 1, "cpu": cpu * place, "pss": size, "peak": 2 * size})
        now += 1
    return made


def test_a_spread_is_median_lowest_and_highest() -> None:
    assert spread([3, 1, 2]) == (2, 1, 3)
    assert spread([5]) == (5, 5, 5)


def test_a_rate_leaves_out_what_the_stamps_took() -> None:
    assert tables.rate(stamps(2, 3), 100) == pytest.approx(40)
    assert tables.cpu_a_step(stamps(2, 3), 100) == pytest.approx(0.005)


def test_seconds_within_a_phase_are_its_own_and_those_inside() -> None:
    seconds = {"rollout": 1.0, "rollout/forward": 2.0, "rollouts": 4.0, "": 8.0}
    assert tables.within(seconds, "rollout") == 3
    assert tables.within(seconds, "") == 8


@pytest.mark.parametrize(
    ("value", "at_most", "met"), [(3, True, True), (3.1, True, False), (2, False, False)]
)
def test_a_goal_is_met_by_the_median(value: float, at_most: bool, met: bool) -> None:
    assert Finding("n", Spread(value, 0, 100), 3, at_most, "%").met is met


def test_overhead_compares_the_methods_within_each_repetition() -> None:
    def iteration(rollout: float, update: float) -> dict[str, float]:
        return {"rollout": rollout, "update": update, "gae": 0.01, "": 0.01}

    # The machine is three times slower in the second repetition: the ratios are the same.
    result = {
        "batch_size": 1000,
        "seconds": [
            # One iteration that something else held up does not count: of each three the median.
            {"camal": [iteration(1, 1.1)] * 2 + [iteration(9, 9)], "vanilla": [iteration(1, 1)] * 3},
            {
                "camal": [{k: 3 * v for k, v in iteration(1, 1.1).items()}] * 2,
                "vanilla": [{k: 3 * v for k, v in iteration(1, 1).items()}] * 2,
            },
        ],
    }
    whole, update = tables.overhead(result, MACHINE).findings
    assert update.value == pytest.approx((10, 10, 10))
    assert not update.met
    assert whole.value == pytest.approx((100 * (1 - 2.02 / 2.12),) * 3)
    assert not whole.met
    (table,) = tables.overhead(result, MACHINE).tables
    assert [row[0] for row in table.rows] == [*tables.PHASES, "SPS"]
    assert table.rows[3][1:] == ["2200 (1100 to 3300)", "2000 (1000 to 3000)", "10.0 % (10.0 to 10.0)"]


def test_rollouts_are_a_share_of_the_raw_rate() -> None:
    one = {
        "render_resolution": "160x120",
        "num_envs": 8,
        "batch_size": 1024,
        "seconds": [
            {"raw": [0.9, 0.9], "games": [0.9, 1.8], "rollout": [1.0, 1.0]},
            {"raw": [0.8], "games": [0.8], "rollout": [1.0]},
        ],
        "projection_seconds": 0.1,
        "rollout_cpu_seconds": 4.0,
    }
    ratio, games, projection = tables.rollout({"resolutions": [one]}, MACHINE).findings
    assert ratio.value == pytest.approx((85, 80, 90))
    assert ratio.met
    assert games.value == pytest.approx((250 / 3, 200 / 3, 100))
    assert not games.met
    assert projection.value.median == pytest.approx(2.5)
    assert projection.met


def test_several_runs_are_added_up_and_held_against_the_cores() -> None:
    def measured(repetition: int, runs: int, threads: int, seconds: float) -> dict[str, Any]:
        return {
            "repetition": repetition,
            "runs": runs,
            "torch_threads": threads,
            "stamps": [stamps(seconds, seconds)] * runs,
        }

    # One run takes 0.5 CPU seconds for 100 steps, so two cores could do 400 a second.
    result = {"batch_size": 100, "measured": [measured(0, 1, 1, 0.5), measured(0, 2, 1, 0.52)]}
    account = tables.runs(result, MACHINE)
    (finding,) = account.findings
    assert finding.name.startswith("2 runs at once, 1 torch threads")
    assert finding.value.median == pytest.approx(100 * 2 * 100 / 0.52 / 400)
    assert finding.met
    assert [row[:3] for row in account.tables[0].rows] == [
        ["1", "1", "200 (200 to 200)"],
        ["2", "1", "385 (385 to 385)"],
    ]


def test_extraction_is_shown_as_added_time_and_drawn() -> None:
    seconds = {
        "none": {"1": [1.0, 2.0], "8": [2.0, 2.0]},
        "closed form": {"1": [1.1, 2.2], "8": [2.2, 1.9]},
        "batch": {"1": [1.5, 3.0], "8": [3.0, 3.0]},
        "per sample": {"1": [1.5, 3.0], "8": [10.0, 12.0]},
    }
    account = tables.extraction({"batch_sizes": [1, 8], "seconds": seconds}, MACHINE)
    assert account.tables[0].rows[0] == [
        "1",
        "50.0 % (50.0 to 50.0)",
        "50.0 % (50.0 to 50.0)",
        "10.0 % (10.0 to 10.0)",
    ]
    assert account.tables[0].rows[1][1] == "450.0 % (400.0 to 500.0)"
    assert account.drawings["extraction.png"].startswith(b"\x89PNG")
    assert b"<svg" in account.drawings["extraction.svg"]


def scaling_result() -> dict[str, Any]:
    usual = {"repetition": 0, "num_envs": 8, "frame_size": [84, 84], "render_resolution": "320x240"}
    measured = [
        usual | {"varied": "num_envs", "num_envs": 1, "batch_size": 128, "stamps": stamps(1, 1)},
        usual | {"varied": "num_envs", "num_envs": 2, "batch_size": 256, "stamps": stamps(1, 1, memory=150)},
        usual | {"varied": "num_envs", "num_envs": 2, "batch_size": 256, "stamps": stamps(2, 2, memory=150)},
        usual | {"varied": "frame_size", "batch_size": 1024, "stamps": stamps(1)},
        usual | {"varied": "render_resolution", "batch_size": 1024, "stamps": stamps(1)},
    ]
    long_run = stamps(1, 1, 1)
    long_run[3] |= {"pss": 103 * 2**20}
    return {
        "measured": measured,
        "lengths": [2, 5],
        "long_run": long_run,
        "long_run_first": 2,
        "long_run_batch_size": 1024,
        "native_frames": {"batch_size": 1024, "seconds": [{"rollout": 1.0, "update": 3.0}]},
    }


def test_scaling_shows_speed_and_memory_and_whether_memory_grows() -> None:
    account = tables.scaling(scaling_result(), MACHINE)
    sizes, length, native = account.tables
    assert sizes.rows[:2] == [
        ["1", "84x84", "320x240", "128 (128 to 128)", "200 (200 to 200)", "100 (100 to 100)"],
        ["2", "84x84", "320x240", "192 (128 to 256)", "300 (300 to 300)", "150 (150 to 150)"],
    ]
    assert length.rows == [["2", "100", "200"], ["5", "103", "200"]]
    (growth,) = account.findings
    assert growth.value.median == pytest.approx(3)
    assert not growth.met
    assert native.rows[2] == ["rollout: bookkeeping, waiting for other threads", "25.0 %", "1000"]
    assert set(account.drawings) == {"scaling.png", "scaling.svg"}


def test_all_points_of_scaling_are_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = Figure()
    monkeypatch.setattr(tables.page, "draw", lambda name, height, paint: paint(figure) or {})
    result = scaling_result()
    # The panels share an axis, and the last has the largest numbers.
    result["measured"][-1]["stamps"] = stamps(0.1, memory=900)
    tables.scaling(result, MACHINE)
    assert len(figure.axes) == 6
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert low == 0
        values = [value for line in axes.lines for value in line.get_ydata()]
        assert max(values) < high


def test_starting_has_goals() -> None:
    seconds = {"help": 0.5, "inference": 3.0, "gradient_step": 6.0, "one_iteration": 7.0}
    account = tables.startup({"batch_size": 1024, "seconds": [seconds]}, MACHINE)
    assert [finding.met for finding in account.findings] == [True, False, True]


def test_every_second_is_in_one_row_of_where_the_time_goes() -> None:
    seconds = {
        "": 1.0,
        "forward": 2.0,  # value of the last frame
        "rollout": 4.0,
        "rollout/environments": 8.0,
        "rollout/environments/reset": 16.0,
        "update/forward": 32.0,
        "update/attention/forward": 64.0,
        "update/losses/backward": 128.0,
        "measure/forward": 256.0,
    }
    rows = tables.shares(seconds)
    assert sum(rows.values()) == sum(seconds.values())
    assert rows["the rest (value of the last frame, TensorBoard)"] == 3
    assert rows["rollout: games (act, wait for frames and labels, masks)"] == 24
    assert rows["update: attention"] == 64
    assert rows["update: losses and their gradients"] == 128
    assert rows["measurement of attention"] == 256
    (table,) = tables.profile({"batch_size": 8, "seconds": [seconds]}, MACHINE).tables
    assert math.isclose(sum(float(row[1].removesuffix(" %")) for row in table.rows), 100, abs_tol=0.5)


def peer(name: str, threads: int, sps: float, repetition: int) -> dict[str, Any]:
    row = {"repetition": repetition, "render_resolution": "320x240", "name": name, "torch_threads": threads}
    if name == tables.OURS:
        return row | {"batch_size": 100, "stamps": [stamps(100 / sps)]}
    return row | {"sps": sps, "versions": {name: "1.0", "torch": "2.0"}}


def test_other_libraries_are_compared_at_the_best_of_each() -> None:
    measured = [
        *(peer(tables.OURS, threads, sps, 0) for threads, sps in ((1, 800), (2, 700))),
        *(peer("stable-baselines3", threads, sps, 0) for threads, sps in ((1, 300), (2, 400))),
        *(peer("sample-factory", threads, sps, 0) for threads, sps in ((1, 350), (2, 200))),
    ]
    account = tables.peers({"measured": measured}, MACHINE)
    (finding,) = account.findings
    assert finding.name == "CAMAL's SPS over stable-baselines3's, 320x240"
    assert finding.value.median == pytest.approx(2)
    assert finding.met
    assert account.tables[0].rows == [
        ["320x240", "camal_rl", "1", "800 (800 to 800)", "\N{EN DASH}"],
        ["320x240", "stable-baselines3", "2", "400 (400 to 400)", "2.00 (2.00 to 2.00)"],
        ["320x240", "sample-factory", "1", "350 (350 to 350)", "2.29 (2.29 to 2.29)"],
    ]
    assert "sample-factory 1.0 (torch 2.0)" in account.tables[0].note


def test_documents_put_goals_first_and_name_machine_and_command() -> None:
    parts = {
        "scaling": {"machine": MACHINE, "command": "python -m x scaling", "result": scaling_result()},
        "startup": {
            "machine": MACHINE | {"gpu": "Big One"},
            "command": "python -m x startup",
            "result": {
                "batch_size": 8,
                "seconds": [dict.fromkeys(("help", "inference", "gradient_step", "one_iteration"), 0.5)],
            },
        },
    }
    files = tables.documents(parts)
    text = files["benchmark.md"].decode()
    assert text.startswith("### Goals\n")
    assert "| --help | 0.50 s (0.50 to 0.50) | at most 1 s | yes |" in text
    assert "| 3.0 % (3.0 to 3.0) | at most 2 % | no |" in text
    assert "![scaling.png](scaling.png)" in text
    assert "Abacus, 2 cores; fp32 on cpu, 2 torch threads; Python 3.11, torch 2.0." in text
    assert "Abacus, 2 cores, Big One;" in text
    assert text.index("python -m x scaling") < text.index("python -m x startup")
    assert set(files) == {"benchmark.md", "scaling.png", "scaling.svg"}


def test_nothing_measured_makes_an_empty_document() -> None:
    assert tables.documents({}) == {"benchmark.md": b""}
