"""Tables of a study that tests wrote, and its numbers as CSV."""

import csv
import io
from pathlib import Path

from written_runs import write_scores

from camal_rl.results import tables
from camal_rl.results.comparison import compute, compute_further
from camal_rl.results.figures import Table, markdown
from camal_rl.results.study import read_study

FEW = 50  # repetitions


def test_scores_in_csv(runs: Path) -> None:
    write_scores(runs, "B/vanilla/seed2", 60, None)
    files = tables.data_files(read_study(runs))
    rows = list(csv.DictReader(io.StringIO(files["scores.csv"].decode())))
    assert len(rows) == 8
    assert rows[1] == {
        "environment": "A",
        "method": "camal",
        "seed": "2",
        "return": "40.0",
        "normalized_return": "0.4",
        "iou": "0.4",
        "iou_mask": "0.75",
        "iou_constant": "0.05",
        "iou_gradcam": "0.1",
        "dead_map_fraction": "0.25",
        **dict.fromkeys(("removal_black", "insertion_black", "removal_blurred", "insertion_blurred"), ""),
        **dict.fromkeys(("shifted_return", "lost_return"), ""),
        "steps": "1000",
        "episodes": "2",
    }
    assert (rows[-1]["iou"], rows[-1]["return"]) == ("", "60.0")
    assert files["iou.csv"].decode().splitlines() == [
        *("method,seed,A,B", "camal,1,0.2,0.3", "camal,2,0.4,0.5", "vanilla,1,0.1,0.1", "vanilla,2,0.3,")
    ]
    assert files["return.csv"].decode().splitlines()[2] == "camal,2,0.4,0.5"


def rows_of(table: Table) -> dict[str, list[str]]:
    """The rows of a table by their first cell."""
    return {row[0]: row[1:] for row in table.rows}


def test_the_gap_of_an_iou_is_left_out_because_it_is_one_less_its_mean(runs: Path) -> None:
    study = read_study(runs)
    first, *_ = tables.overall(study, compute(study, FEW, 0))
    assert {"IoU: Mean", "Normalized return: Gap"} <= set(rows_of(first))
    assert "IoU: Gap" not in rows_of(first)


def test_further_measures_have_a_row_where_runs_have_them(runs: Path) -> None:
    for env in "AB":
        for method in ("camal", "vanilla"):
            for seed in (1, 2):
                shift = {"flat": {"return": {"mean": 20.0 if method == "camal" else 10.0 * seed}}}
                write_scores(runs, f"{env}/{method}/seed{seed}", 50, 0.5, shift=shift)
    study = read_study(runs)
    table = tables.further(study, compute_further(study, FEW, 0))
    assert table.columns == ["", "CAMAL", "Vanilla", "POI over Vanilla", "Verdict"]
    found = rows_of(table)
    assert list(found) == [
        "Normalized return under other looks",
        "Normalized return lost to other looks",
        "Agent steps to half the gain",
    ]
    camal, vanilla, improvement, _ = found["Normalized return lost to other looks"]
    assert camal.startswith("0.300 ")
    assert vanilla.startswith("0.350 [")
    assert improvement.startswith("0.75 [")  # 0.3 against 0.4 and 0.3, a tie
    assert "| Agent steps to half the gain |" in markdown(table)
