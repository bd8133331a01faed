"""The report on folders that tests wrote: numbers by hand, sentences for every outcome, a real browser."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, blank_figure, run
from matplotlib.figure import Figure
from written_reports import statistics_of, warnings_of
from written_runs import write_scores

from camal_rl import report, stats
from camal_rl.errors import UserError
from camal_rl.report import Args
from camal_rl.results import comparison, figures, media
from camal_rl.results.comparison import Comparison, Lines, Results
from camal_rl.results.page import Media
from camal_rl.results.study import read_study
from camal_rl.run.command_line import parse
from camal_rl.stats import Interval

NAN = float("nan")
KINDS = ("png", "svg", "pdf")


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch, quick_figures: None) -> None:
    """For tests in which figures have to be made, but are not looked at."""

    def paint_only(name: str, height: float, paint: Callable[[Figure], None]) -> dict[str, bytes]:
        paint(Figure(layout="constrained"))
        return blank_figure(name)

    monkeypatch.setattr(figures, "draw", paint_only)


pytestmark = pytest.mark.usefixtures("quick_figures")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make(runs: Path, *options: str) -> tuple[list[str], dict[str, bytes]]:
    """What a report prints, and its files."""
    args = parse(report.Args, "report", [str(runs), "--repetitions", "50", *options])
    printed = report.make(args)
    return printed, contents(args.output or runs / "report")


@pytest.fixture(scope="module")
def reported_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study as it is and its report, made once; not to be touched."""
    runs = shutil.copytree(template, tmp_path_factory.mktemp("reported") / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", blank_figure)
        make(runs)
    return runs


@pytest.fixture
def files(reported_template: Path) -> dict[str, bytes]:
    """The report's files."""
    return contents(reported_template / "report")


@pytest.fixture
def reported(reported_template: Path, tmp_path: Path) -> Path:
    """The study with its report, for the test alone."""
    return shutil.copytree(reported_template, tmp_path / "runs")


FILES = {
    *(f"{figure}.{kind}" for kind in KINDS for figure in ("figure4", "figure6", "curves")),
    *(f"{figure}.{kind}" for kind in KINDS for figure in ("profiles", "environments")),
    *(
        *("scores.csv", "iou.csv", "return.csv", "statistics.json"),
        *("tables.md", "tables.tex", "report.md", "report.html"),
    ),
}


# Numbers by hand


def test_statistics_by_hand(files: dict[str, bytes]) -> None:
    assert set(files) == FILES
    found = statistics_of(files)
    assert (found["methods"], found["environments"]) == (["camal", "vanilla"], ["A", "B"])
    iou, returns = found["metrics"]["iou"], found["metrics"]["return"]
    means = {method: iou["joint"]["sbci"][method]["mean"]["estimate"] for method in found["methods"]}
    assert means == pytest.approx({"camal": 0.35, "vanilla": 0.175})
    assert iou["joint"]["sbci"]["camal"]["optimality_gap"]["estimate"] == pytest.approx(0.65)
    # In A camal wins 3 of 4 pairs, in B all of them.
    assert iou["joint"]["poi"]["camal > vanilla"]["estimate"] == pytest.approx((0.75 + 1) / 2)
    in_b = iou["environments"]["B"]
    assert (in_b["poi"]["camal > vanilla"]["low"], in_b["verdicts"]["camal > vanilla"]) == (1, "significant")
    assert returns["joint"]["sbci"]["vanilla"]["mean"]["estimate"] == pytest.approx(1.95 / 4)
    assert returns["environments"]["B"]["poi"]["camal > vanilla"]["estimate"] == 0.25
    profile = iou["profile"]
    above = dict(zip(profile["x"], profile["bands"]["camal"]["estimate"], strict=True))
    assert above[min(above, key=lambda t: abs(t - 0.25))] == 0.75


def test_repetitions_and_seed_are_the_bootstraps(runs: Path, files: dict[str, bytes]) -> None:
    found = statistics_of(make(runs, "--seed", "7")[1])
    assert (found["repetitions"], found["seed"]) == (50, 7)
    assert found["metrics"] != statistics_of(files)["metrics"]


def test_tables_say_the_same_in_markdown_latex_and_html(files: dict[str, bytes]) -> None:
    found = statistics_of(files)["metrics"]["iou"]["joint"]["sbci"]["camal"]["mean"]
    mean = f"{found['estimate']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    markdown, latex, html = (files[name].decode() for name in ("tables.md", "tables.tex", "report.html"))
    assert f"| IoU: Mean | {mean} |" in markdown
    assert f"IoU: Mean & {mean} &" in latex
    assert f'<th scope="row">IoU: Mean</th><td class="number">{mean}</td>' in html
    assert "| A | CAMAL | 2 | 0.300 [" in markdown
    assert "| A | camal | 1 | 20.000 | 0.200 | 0.200 | 0.750 | 0.050 | 0.250 | 1000 | 2 |" in markdown
    assert r"A & camal & 1 & 20.000 & 0.200 & 0.200 & 0.750 & 0.050 & 0.250 & 1000 & 2 \\" in latex
    scaled = statistics_of(files)["metrics"]["return"]["environments"]["A"]["sbci"]["camal"]["mean"]
    low, high = scaled["low"], scaled["high"]
    assert f"| 0.30 [{low:.2f}, {high:.2f}] | 30.0 [{100 * low:.1f}, {100 * high:.1f}] |" in markdown
    further = statistics_of(files)["further"]["steps_to_half"]["poi"]["camal > vanilla"]["estimate"]
    assert re.search(rf"\| Agent steps to half the gain \|.*\| {further:.2f} \[", markdown)
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 5
    for table in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end", latex, re.DOTALL):
        rows = [line for line in table[1].splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") + 1 for line in rows} == {len(table[0])}


# The findings in words


def results_of(interval: Interval) -> Results:
    methods = ("camal", "vanilla")
    verdicts = {methods: stats.verdict(interval)}
    nothing = Lines(np.zeros(1), {})
    joint = Comparison(dict.fromkeys(methods, 2), {}, {methods: interval}, verdicts, {})
    return Results(joint, [], {}, nothing, {}, [])


HIGH, EVEN, LOW = Interval(0.9, 0.75, 1.0), Interval(0.55, 0.25, 0.75), Interval(0.13, 0, 0.25)
EQUAL, UNKNOWN = Interval(0.5, None, None, "Identical."), Interval(NAN, None, None, "No run.")


@pytest.mark.parametrize(
    ("iou", "returns", "sentence"),
    [
        (
            HIGH,
            EVEN,
            "CAMAL's attention is better aligned than Vanilla's (POI 0.90, 95 % interval [0.75, 1.00], "
            "significant); its return is not significantly better than Vanilla's (POI 0.55, 95 % interval "
            "[0.25, 0.75]).",
        ),
        (
            EVEN,
            HIGH,
            "CAMAL's attention is not significantly better aligned than Vanilla's (POI 0.55, 95 % interval "
            "[0.25, 0.75]); its return is better than Vanilla's (POI 0.90, 95 % interval [0.75, 1.00], "
            "significant).",
        ),
        (
            LOW,
            LOW,
            "CAMAL's attention is significantly worse aligned than Vanilla's (POI 0.13, 95 % interval "
            "[0.00, 0.25]); its return is significantly worse than Vanilla's (POI 0.13, 95 % interval "
            "[0.00, 0.25]).",
        ),
        (
            EQUAL,
            UNKNOWN,
            "CAMAL's attention can't be compared with Vanilla's (POI 0.50; identical); its return can't be "
            "compared with Vanilla's (no run).",
        ),
    ],
)
def test_the_verdict_in_one_sentence(template: Path, iou: Interval, returns: Interval, sentence: str) -> None:
    results = {"iou": results_of(iou), "return": results_of(returns)}
    assert report.verdicts(read_study(template), results) == [sentence]


def test_the_headline_gives_no_verdict_that_a_warning_takes_back(runs: Path) -> None:
    for folder in runs.glob("*/*/seed*"):
        seed, camal = int(folder.name[-1]), folder.parent.name == "camal"
        total, iou, dead = (99, 0.9, 0.0) if camal else (seed, 0.01 * seed, 1.0)
        write_scores(runs, "/".join(folder.parts[-3:]), total, iou, dead_map_fraction=dead)
    assert make(runs)[0][0] == (
        "CAMAL's attention has no verdict beside Vanilla's (POI 1.00, 95 % interval [1.00, 1.00], but 100 % "
        "of Vanilla's maps are dead); its return is better than Vanilla's (POI 1.00, 95 % interval "
        "[1.00, 1.00], significant)."
    )
    write_scores(runs, "A/vanilla/seed1", 1, 0.1, settings__tau=0.5)
    headline = make(runs)[0][0]
    assert "its return has no verdict beside Vanilla's (" in headline
    assert "but the runs are not comparable)" in headline
    shutil.rmtree(runs / "A")
    headline = make(runs)[0][0]
    chance = f"but with so few runs chance finds equal methods different in {one_in_two_seeds():.0f} %"
    assert headline.count(chance) == 2
    assert "significant" not in headline


def one_in_two_seeds() -> float:
    """Percentage of verdicts that chance makes in one environment, with two runs of each method."""
    return 200 * stats.false_positive_rate(2, 2, 1)


def test_with_one_environment_nothing_is_said_twice(runs: Path) -> None:
    shutil.rmtree(runs / "A")
    _, files = make(runs)
    assert not [name for name in files if name.startswith("environments.")]
    tables = files["tables.md"].decode()
    assert "### In B" in tables
    assert "All environments" not in tables
    assert "Median" not in tables
    assert "environments' means" not in files["report.md"].decode()


def test_the_verdict_is_the_same_wherever_it_is_said(runs: Path) -> None:
    for folder in runs.glob("*/camal/seed*"):
        write_scores(runs, "/".join(folder.parts[-3:]), 1, 0.9)
    printed, files = make(runs)
    found = statistics_of(files)["metrics"]["return"]["joint"]["verdicts"]
    assert found["camal > vanilla"] == "significantly worse"
    assert "its return is significantly worse than Vanilla's" in printed[0]
    assert "| 0.00 [0.00, 0.00] | significantly worse |" in files["tables.md"].decode()


@pytest.mark.slow
def test_how_often_chance_makes_a_verdict_is_said_beside_it_and_warned_of(runs: Path) -> None:
    sentences = warned(runs)
    one = one_in_two_seeds()
    joint = 200 * stats.false_positive_rate(2, 2, 2)
    assert one > 28
    assert (
        f"Too few runs for a verdict on CAMAL > Vanilla in A or B alone: in {one:.0f} % of experiments "
        "chance finds equal methods different." in sentences
    )
    _, files = make(runs)
    tables = files["tables.md"].decode()
    assert re.search(rf"\| All environments \|.*\| {joint:.1f} % \|\n\| A \|.*\| {one:.1f} % \|", tables)
    assert "Chance: how often equal methods would be found significantly better or worse" in tables
    found = statistics_of(files)["metrics"]["iou"]["environments"]["A"]["false_positive_rate"]
    assert found["camal > vanilla"] == pytest.approx(one / 100)
    for env in "AB":
        for method in ("camal", "vanilla"):
            for seed in range(1, 6):
                write_scores(runs, f"{env}/{method}/seed{seed}", 50 + seed, 0.1 * seed)
    assert "Too few runs" not in warned(runs)


def test_the_first_method_is_compared_with_each_other_one(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids = {}
    monkeypatch.setattr(
        figures, "bars_figure", lambda name, _, grid: grids.update({name: grid}) or blank_figure(name)
    )
    for env in "AB":
        for seed in (1, 2):
            write_scores(runs, f"{env}/suppress/seed{seed}", 50 + seed, 0.9 + 0.01 * seed)
    printed, files = make(runs)
    assert printed[0].startswith("CAMAL's attention is significantly worse aligned than Suppress's (POI 0.00")
    assert "than Vanilla's" in printed[1]
    assert list(statistics_of(files)["metrics"]["iou"]["joint"]["poi"]) == [
        *("camal > suppress", "camal > vanilla", "suppress > vanilla")
    ]
    assert "### Probability of improvement: Suppress > Vanilla" in files["tables.md"].decode()
    poi = grids["figure4"][0][1]
    assert [label for label, _ in poi.rows] == ["CAMAL", "CAMAL", "Suppress"]
    assert poi.right == ("Suppress", "Vanilla", "Vanilla")
    assert grids["environments"][0][1].label == "P(CAMAL > other)"


def test_experiment_json_gives_the_order(runs: Path) -> None:
    matrix = {"envs": ["B", "maps/A.toml"], "methods": ["vanilla", "camal"], "seeds": [1, 2], "train": []}
    (runs / "experiment.json").write_text(json.dumps(matrix))
    printed, files = make(runs)
    found = statistics_of(files)
    assert (found["methods"], found["environments"]) == (["vanilla", "camal"], ["B", "A"])
    assert printed[0].startswith("Vanilla's attention")
    html = files["report.html"].decode()
    assert f"python -m camal_rl.report {runs} --repetitions 50 --seed 0" in html
    assert "gamma = 0.99" in html
    assert [sentence for sentence in found["warnings"] if not sentence.startswith("Too few runs")] == []


# Whatever is missing or odd is said


def warned(runs: Path) -> str:
    return warnings_of(*make(runs))


def test_a_missing_cell_is_named_and_its_seed_left_out_of_what_is_joint(runs: Path) -> None:
    shutil.rmtree(runs / "B/camal/seed2")
    (runs / "B/vanilla/seed2/scores.json").unlink()
    (runs / "B/vanilla/seed2/args.json").write_text("{}")
    sentences = warned(runs)
    assert "Missing: B/camal/seed2." in sentences
    assert "Trained but not evaluated: B/vanilla/seed2." in sentences
    assert "Over all environments: Left out camal seed 2: it has no score in B" in sentences
    found = statistics_of(make(runs)[1])["metrics"]["iou"]
    assert found["joint"]["runs"] == {"camal": 1, "vanilla": 1}
    assert found["joint"]["sbci"]["camal"]["mean"] == {
        "estimate": pytest.approx(0.25),
        "low": None,
        "high": None,
        "reason": "There is no interval: a single run does not show how much runs differ.",
    }
    assert found["joint"]["verdicts"]["camal > vanilla"] == "undefined"
    assert found["environments"]["A"]["runs"] == {"camal": 2, "vanilla": 2}


@pytest.mark.slow
def test_planned_runs_that_are_not_there_are_missing(runs: Path, painted: None) -> None:
    matrix = {"envs": ["A", "B", "C"], "methods": ["camal", "vanilla"], "seeds": [1]}
    (runs / "experiment.json").write_text(json.dumps(matrix))
    printed, files = make(runs)
    assert "Warning: Missing: C/camal/seed1, C/camal/seed2, C/vanilla/seed1, C/vanilla/seed2." in printed
    assert "can't be compared with Vanilla's (no run of CAMAL has a score in every environment)" in printed[0]
    mean = statistics_of(files)["metrics"]["iou"]["joint"]["sbci"]["camal"]["mean"]
    assert (mean["estimate"], mean["reason"]) == (None, "No run of CAMAL has a score in every environment.")


def test_one_seed_has_estimates_and_no_intervals(runs: Path) -> None:
    for folder in runs.glob("*/*/seed2"):
        shutil.rmtree(folder)
    assert "There is one seed" in warned(runs)
    assert "POI 1.00; there is no interval: a single run does not show" in make(runs)[0][0]


def test_identical_scores_have_no_interval(runs: Path) -> None:
    for folder in runs.glob("*/*/seed*"):
        write_scores(runs, "/".join(folder.parts[-3:]), 50, 0.5)
    printed, files = make(runs)
    assert "POI 0.50; there is no interval: the runs have identical scores" in printed[0]
    assert "0.500 (no interval)" in files["tables.md"].decode()


def test_a_method_without_live_maps_has_its_dead_maps_beside_its_iou(runs: Path) -> None:
    for folder in runs.glob("*/vanilla/seed*"):
        write_scores(runs, "/".join(folder.parts[-3:]), 50, 0.0, dead_map_fraction=1.0)
    assert "100 % of the maps of Vanilla in A are dead" in warned(runs)
    table = make(runs)[1]["tables.md"].decode()
    assert "| A | Vanilla | 2 | 0.000 (no interval) | 0.100 | 0.050 | 0.750 | 100.0 % |" in table


def test_an_iou_that_is_null_is_left_out_with_its_reason(runs: Path) -> None:
    write_scores(runs, "A/camal/seed1", 20, None)
    sentences = warned(runs)
    assert "A/camal/seed1 has no IoU: no target was ever in view." in sentences
    assert "Over all environments: Left out camal seed 1" in sentences
    found = statistics_of(make(runs)[1])["metrics"]
    assert found["iou"]["joint"]["runs"] == {"camal": 1, "vanilla": 2}
    assert found["return"]["joint"]["runs"] == {"camal": 2, "vanilla": 2}
    for folder in runs.glob("*/*/seed*"):
        write_scores(runs, "/".join(folder.parts[-3:]), 50, None)
    assert "can't be compared with Vanilla's (no run of CAMAL has a score" in make(runs)[0][0]


@pytest.mark.slow
def test_one_method_is_described_and_not_compared(runs: Path, painted: None) -> None:
    for folder in runs.glob("*/vanilla"):
        shutil.rmtree(folder)
    printed, files = make(runs)
    assert printed[0].startswith(
        "There are only runs of CAMAL, so nothing is compared: its mean IoU is 0.35 ["
    )
    assert statistics_of(files)["metrics"]["iou"]["joint"]["poi"] == {}
    assert "Probability of improvement" not in files["tables.md"].decode()
    assert set(files) == FILES


def test_an_earlier_report_stays_where_runs_are_damaged(reported: Path, files: dict[str, bytes]) -> None:
    (reported / "A/camal/seed2/scores.json").write_text("{")
    with pytest.raises(UserError, match=r"seed2/scores\.json"):
        make(reported)
    assert contents(reported / "report") == files


@pytest.mark.parametrize("options", [("--repetitions", "0"), ("--seed", "-1"), ("--seed", str(2**32))])
def test_numbers_out_of_range_are_refused(
    options: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(report.Args, "report", ["runs", *options])
    assert stop.value.code == 2
    assert f"{' '.join(options)}: should be" in capsys.readouterr().err


def test_an_output_that_is_no_folder_is_refused(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Choose another --output"):
        make(runs, "--output", str(tmp_path / "file"))


# The command line


@pytest.mark.slow
def test_the_command_prints_findings_and_files_and_needs_no_torch(runs: Path) -> None:
    code = (
        "import sys; import camal_rl.report as report; from camal_rl.results import figures; "
        "figures.draw = lambda name, *_: {f'{name}.svg': b'<svg/>'}; "
        f"code = report.main(report.parse(report.Args, 'report', [{str(runs)!r}, '--repetitions', '50'])); "
        "print({'torch', 'vizdoom'} & {*sys.modules}); sys.exit(code)"
    )
    done = run("-c", code, folder=ROOT)
    assert done.returncode == 0, done.stderr
    assert "CAMAL's attention" in done.stdout
    assert str(runs / "report" / "report.html") in done.stdout
    assert done.stdout.endswith("set()\n")
    assert "100%" in done.stderr


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(Args(tmp_path)) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith("camal_rl: ")


def test_ctrl_c_leaves_an_earlier_report(
    reported: Path,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "compute", interrupted)
    assert report.main(Args(reported)) == 130
    assert "Nothing was written" in capsys.readouterr().err
    assert contents(reported / "report") == files


# The page


def write_media(runs: Path, title: str, names: list[str]) -> None:
    folder = runs / title / "media"
    folder.mkdir(exist_ok=True)
    frames = np.random.default_rng(0).integers(0, 256, (8, 64, 96, 3), np.uint8)
    for file in names:
        content = media.encode_png(frames[0]) if file.endswith("png") else media.encode_video(iter(frames), 8)
        (folder / file).write_bytes(content)


def test_the_same_runs_give_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    write_media(runs, "A/camal/seed1", ["evaluation.png", "evaluation.mp4"])
    once, twice = (make(runs, "--output", str(tmp_path / name))[1] for name in ("one", "two"))
    assert once == twice


def test_the_page_shows_the_first_seed_beside_another_run_where_it_can(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_media(runs, "A/camal/seed1", ["evaluation-versus-vanilla-seed-1.png", "evaluation.png"])
    write_media(runs, "A/camal/seed1", ["evaluation-versus-vanilla-seed-1.mp4"])
    write_media(runs, "B/camal/seed1", ["evaluation.png"])
    write_media(runs, "B/camal/seed2", ["evaluation.png"])
    html = make(runs)[1]["report.html"].decode()
    captions = re.findall(r"</?(?:img|video) [^>]*>(?:</video>)?\s*<figcaption>(.*?)</figcaption>", html)
    assert captions == [
        "A: CAMAL seed 1 beside Vanilla seed 1: frames of high, middle and low IoU of CAMAL.",
        "B: CAMAL seed 1: frames of high, middle and low IoU of CAMAL.",
        "A: CAMAL seed 1 beside Vanilla seed 1: episodes with the same starts.",
    ]
    # What is beyond the limit, or damaged, is left out and named.
    file = runs / "A/camal/seed1/media/evaluation-versus-vanilla-seed-1.png"
    monkeypatch.setattr(report, "MEDIA_LIMIT", len(Media.of(file, "").content))
    (runs / "B/camal/seed1/media/evaluation.png").write_bytes(b"damaged")
    html = make(runs)[1]["report.html"].decode()
    assert (html.count("<img"), html.count("<video")) == (1, 0)
    assert "A/camal/seed1/media/evaluation-versus-vanilla-seed-1.mp4 (0." in html
    assert "B/camal/seed1/media/evaluation.png (can&#39;t be read)" in html


def test_a_study_without_curves_has_no_figure_of_them(runs: Path) -> None:
    for file in runs.rglob("curves.csv"):
        file.unlink()
    assert "Learning curves are incomplete, there is no curves.csv with camal/iou and" in warned(runs)
    files = make(runs, "--output", str(runs / "again"))[1]
    assert set(files) == FILES - {f"curves.{kind}" for kind in KINDS}
    assert b"How they were learned" not in files["report.html"]


# In a browser


class Browser:
    """Chromium at its DevTools pipe: it reads descriptor 3 and writes 4, each message ends with a 0."""

    FLAGS = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        "--remote-debugging-pipe",
    )

    def __init__(self, program: str, folder: Path) -> None:
        theirs_in, self.out = os.pipe()
        self.into, theirs_out = os.pipe()
        plumbing = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        command = ["bash", "-c", plumbing, program, *self.FLAGS, f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(
            command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.unread, self.calls, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def read(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            received = os.read(self.into, 1 << 20)
            assert received, "the browser has gone"
            self.unread += received
        message, _, self.unread = self.unread.partition(b"\0")
        content: dict[str, Any] = json.loads(message)
        return content

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.calls:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path, width: int, phone: bool, scheme: str) -> None:
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def value(self, code: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

    def close(self) -> None:
        self.session = ""
        try:
            self.call("Browser.close")
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.out)
            os.close(self.into)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    started = Browser(program, tmp_path / "profile")
    yield started
    started.close()


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_in_a_browser(runs: Path, browser: Browser, drawn: None) -> None:
    write_media(runs, "A/camal/seed1", ["evaluation.png", "evaluation.mp4"])
    make(runs)
    grounds = {}
    for width, phone, scheme in ((1280, False, "light"), (390, True, "light"), (390, True, "dark")):
        browser.open(runs / "report" / "report.html", width, phone, scheme)
        assert browser.value("[...document.images].map(image => image.naturalWidth)") == [96]
        assert browser.value("[...document.querySelectorAll('svg')].every(svg => svg.clientWidth > 250)")
        video = "document.querySelector('video')"
        deadline = time.monotonic() + 10
        while browser.value(f"{video}.readyState") < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert browser.value(f"{video}.error === null && {video}.videoWidth") == 96
        assert browser.value("document.documentElement.scrollWidth <= innerWidth"), "scrolls sideways"
        assert browser.value("[...document.images].every(image => image.clientWidth < innerWidth)")
        texts = "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
        assert min(browser.value(texts)) > 8, "text of figures is too small to read"
        if not phone:
            cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
            assert browser.value(f"{cut}.map(e => e.getAttribute('aria-label'))") == []
        edges = "[...document.querySelectorAll('main > *')].map(e => e.getBoundingClientRect().right)"
        assert max(browser.value(edges)) <= width
        assert browser.value("innerWidth") == width
        grounds[scheme] = browser.value("getComputedStyle(document.body).backgroundColor")
        told = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        assert [event for event in browser.events if event["method"] in told] == []
        asked = [
            e["params"]["request"]["url"]
            for e in browser.events
            if e["method"] == "Network.requestWillBeSent"
        ]
        assert not [url for url in asked if not url.startswith(("file:", "data:"))]
    assert grounds["light"] != grounds["dark"]
