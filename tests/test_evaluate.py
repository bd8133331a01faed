"""From a run's folder to scores.json, pictures, video and TensorBoard, and what happens if that can't be."""

import dataclasses
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import get_args

import av
import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, FakeGame, run, small_args
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from camal_rl import attention, doom, evaluate, metrics, ppo
from camal_rl.errors import UserError
from camal_rl.game.definition import load_definition
from camal_rl.game.shift import SHIFTS
from camal_rl.results import faithfulness, media, play
from camal_rl.results.play import Episode, Undefined
from camal_rl.run import command_line


@pytest.fixture
def fake_engine(fake_engine, monkeypatch) -> None:
    """With few draws of the sanity check, which take most of an evaluation; test_faithfulness.py has all."""
    monkeypatch.setattr(faithfulness, "SANITY_DRAWS", 2)


@pytest.fixture
def folder(fake_engine, trained_folder: Path) -> Path:
    """The folder of a run of 256 steps on the fake engine."""
    return trained_folder


def trained(folder: Path, **options: object) -> Path:
    return ppo.train(small_args(folder, **{"total_timesteps": 64, **options}))


def args(folder: Path, **options: object) -> evaluate.Args:
    usual = {"episodes": 6, "faithfulness_frames": 8, "video_episodes": 1, "torch_threads": 1}
    return evaluate.Args(folder, **{**usual, **options})  # type: ignore[arg-type]


def few(folder: Path, **options: object) -> evaluate.Args:
    """For what needs scores and pictures alone."""
    return args(folder, **{"episodes": 3, "faithfulness_frames": 0, "video_episodes": 0, **options})


@pytest.fixture(scope="module")
def evaluated_template(trained_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(trained_template, tmp_path_factory.mktemp("evaluated") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doom, "start_engine", lambda config, *options: FakeGame(*options))
        patch.setattr(faithfulness, "SANITY_DRAWS", 2)
        evaluate.evaluate(few(folder, video_episodes=1))
    return folder


@pytest.fixture
def evaluated(fake_engine, evaluated_template: Path, tmp_path: Path) -> Path:
    """The folder of a run that has been evaluated."""
    return shutil.copytree(evaluated_template, tmp_path / "Basic" / "camal" / "seed1")


def no_number_is_missing_without_a_reason(content: dict) -> None:
    nulls = []

    def visit(value: object, path: str) -> None:
        if value is None:
            nulls.append(path)
        for name, inner in value.items() if isinstance(value, dict) else ():
            visit(inner, f"{path}.{name}" if path else name)
        for index, inner in enumerate(value) if isinstance(value, list) else ():
            visit(inner, f"{path}.{index}")

    visit({name: content[name] for name in content if name not in ("training", "undefined")}, "")
    assert sorted(nulls) == sorted(content["undefined"])
    assert all(content["undefined"].values())


@pytest.mark.slow
def test_an_evaluation_writes_scores_pictures_video_and_events(folder) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    scores, _ = evaluate.evaluate(args(folder))
    assert scores == json.loads((folder / "scores.json").read_text())
    no_number_is_missing_without_a_reason(scores)

    seeds = play.episode_seeds(0, 6)
    assert [episode["seed"] for episode in scores["episodes"]] == seeds
    lengths = [int(np.random.default_rng(seed).integers(5, 13)) for seed in seeds]
    assert [episode["length"] for episode in scores["episodes"]] == lengths
    assert scores["length"]["mean"] == np.mean(lengths)
    assert scores["return"]["mean"] == np.mean([episode["return"] for episode in scores["episodes"]])
    assert scores["frames"] == sum(lengths)
    assert scores["frames_with_target"] == sum(
        episode["frames_with_target"] for episode in scores["episodes"]
    )
    assert scores["endings"]["truncated"] == sum(length % 2 == 0 for length in lengths)
    by_frames = sum(episode["iou"] * episode["frames_with_target"] for episode in scores["episodes"])
    assert scores["iou"] == pytest.approx(by_frames / scores["frames_with_target"])
    assert scores["iou_sweep"]["iou"][6] == pytest.approx(scores["iou"])
    means = [episode["iou"] for episode in scores["episodes"]]
    assert scores["iou_by_episode"]["mean"] == pytest.approx(np.mean(means))
    assert scores["iou_by_episode"]["standard_error"] == pytest.approx(np.std(means, ddof=1) / np.sqrt(6))
    digest = hashlib.sha256((folder / "checkpoint.pt").read_bytes()).hexdigest()
    assert scores["settings"]["checkpoint_sha256"] == digest
    for name in (*evaluate.AGREEMENT, "target_visible_fraction"):
        assert 0 <= scores[name] <= 1
    assert scores["settings"]["episodes"] == 6
    assert scores["training"]["args"]["method"] == "camal"
    assert scores["training"]["definition"]["path"] == "Basic.toml"
    assert scores["steps"] == 256
    assert scores["sanity"]["rank_correlation"][0] == pytest.approx(1)

    png = cv2.imread(str(folder / "media/evaluation.png"))
    assert png.shape[1] > 4 * 320  # four panels
    assert png.shape[0] > 3 * 240  # highest, median, lowest
    with av.open(str(folder / "media/evaluation.mp4")) as film:
        stream = film.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 35
        assert len(list(film.decode(stream))) == sum(4 * length for length in lengths[:1])
    events = EventAccumulator(str(folder / "evaluation"), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"evaluation/attention", "evaluation/episode"}
    (picture,) = events.Images("evaluation/attention")
    assert (picture.step, picture.width, picture.height) == (256, png.shape[1], png.shape[0])
    (point,) = events.Scalars("evaluation/return")
    assert (point.step, point.value) == (256, pytest.approx(scores["return"]["mean"]))
    assert events.Scalars("evaluation/iou")[0].value == pytest.approx(scores["iou"])
    assert events.Images("evaluation/episode")[0].encoded_image_string[:6] == b"GIF89a"
    output = evaluate.summary(scores, [folder / "media/evaluation.mp4"])
    assert f"return {scores['return']['mean']:.2f}" in output
    assert str(folder / "media/evaluation.mp4") in output
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before} == before


@pytest.mark.slow
def test_the_same_command_gives_the_same_files_byte_for_byte(folder) -> None:
    contents = []
    for _ in range(2):
        evaluate.evaluate(args(folder, shift=("noise",)))
        files = [path for path in folder.rglob("*") if path.is_file()]
        contents.append({path: path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert {path.name for path in contents[0]} >= {"scores.json", "evaluation.png", "evaluation.mp4"}
    scores, _ = evaluate.evaluate(few(folder, seed=1, episodes=6))
    assert scores["return"] != json.loads(contents[0][folder / "scores.json"])["return"]


@pytest.mark.slow
def test_shifts_are_evaluated_on_the_same_episodes_and_go_into_the_same_file(folder) -> None:
    plain, _ = evaluate.evaluate(few(folder))
    assert plain["shift"] == {}
    assert plain["faithfulness"] is None
    assert plain["undefined"]["faithfulness"] == "not asked for"
    scores, _ = evaluate.evaluate(few(folder, shift=("gamma", "distractor")))
    assert list(scores["shift"]) == ["gamma", "distractor"]
    assert {name: scores[name] for name in ("return", "iou", "alpha")} == {
        name: plain[name] for name in ("return", "iou", "alpha")
    }
    gamma = scores["shift"]["gamma"]
    assert gamma["frames"] == plain["frames"]  # the fake game's episodes are as long, whatever one does
    assert gamma["alpha"] != plain["alpha"]
    assert gamma["description"].startswith("frames brightened")
    no_number_is_missing_without_a_reason(scores)


@pytest.mark.slow
def test_two_runs_are_shown_side_by_side_on_the_same_episodes(evaluated, tmp_path) -> None:
    camal, vanilla = evaluated, trained(tmp_path, method="vanilla")
    alone = json.loads((camal / "scores.json").read_text())
    both, _ = evaluate.evaluate(few(camal, compare=vanilla, video_episodes=1))
    assert both == alone
    name = "evaluation-versus-vanilla-seed-1"
    narrow, wide = (cv2.imread(str(camal / f"media/{stem}.png")) for stem in ("evaluation", name))
    assert wide.shape[0] >= narrow.shape[0]
    assert wide.shape[1] > narrow.shape[1] * 1.4  # two panels more
    with av.open(str(camal / f"media/{name}.mp4")) as film:
        assert film.streams.video[0].width > 640
    assert not (vanilla / "scores.json").exists()


@pytest.mark.slow
def test_runs_of_the_same_method_and_seed_are_told_apart(fake_engine, tmp_path, monkeypatch) -> None:
    strong = trained(tmp_path / "strong")
    weak = trained(tmp_path / "weak", camal_coef=0.1, learning_rate=1e-3)
    strips = []
    real = media.attention_strip
    monkeypatch.setattr(media, "attention_strip", lambda *given: strips.append(given) or real(*given))
    evaluate.evaluate(few(strong, compare=weak, video_episodes=1))
    names = ["camal seed 1 of strong", "camal seed 1 of weak"]
    runs = [play.load_run(folder, None, torch.device("cpu")) for folder in (strong, weak)]
    assert evaluate.names(runs) == names
    for _, _, heats, _ in strips:
        assert list(heats) == names
        assert not np.array_equal(*heats.values())
    assert (strong / "media/evaluation-versus-camal-seed-1-of-weak.mp4").exists()
    with pytest.raises(UserError, match="that is the run itself"):
        evaluate.evaluate(args(strong, compare=strong))


@pytest.mark.slow
def test_maps_of_two_kinds_are_pointed_out_and_one_can_be_chosen(fake_engine, tmp_path, capsys) -> None:
    camal, vanilla = trained(tmp_path), trained(tmp_path, method="vanilla", attention="layercam")
    scores, _ = evaluate.evaluate(few(camal, compare=vanilla))
    assert scores["settings"]["attention"] == "gradcam"
    assert "this run's map is gradcam, the other's layercam; --attention" in capsys.readouterr().err
    scores, _ = evaluate.evaluate(few(camal, compare=vanilla, attention="hirescam"))
    assert scores["settings"]["attention"] == "hirescam"
    assert "--attention" not in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_target_in_view_scores_are_null_with_the_reason(folder, monkeypatch) -> None:
    real = FakeGame.get_state

    def get_state(self: FakeGame) -> object:
        state = real(self)
        state.labels_buffer[:] = 0  # type: ignore[attr-defined]
        return state

    monkeypatch.setattr(FakeGame, "get_state", get_state)
    scores, _ = evaluate.evaluate(args(folder))
    no_number_is_missing_without_a_reason(scores)
    assert scores["frames_with_target"] == 0
    for name in (*evaluate.AGREEMENT, "faithfulness", "sanity"):
        assert scores[name] is None
        assert scores["undefined"][name] == "no frame had a target in view"
    assert scores["undefined"]["episodes.0.iou"] == "no frame had a target in view"
    assert scores["return"]["mean"] is not None
    assert not (folder / "media/evaluation.png").exists()
    assert (folder / "media/evaluation.mp4").exists()


@pytest.mark.parametrize(
    ("ious", "shown"),
    [
        # The first episode has the highest, the median and the lowest.
        (([0.9, 0.5, 0.4, 0.0], [0.6], [0.1]), [(0.9, 0, 0, 1), (0.6, 1, 0, 2), (0.1, 2, 0, 5)]),
        (([0.1, 0.9, 0.4], []), [(0.9, 0, 1, 1), (0.4, 0, 2, 2), (0.1, 0, 0, 3)]),
    ],
)
def test_pictures_show_high_middle_and_low_iou_of_as_many_episodes(ious, shown, monkeypatch) -> None:
    episodes = [
        Episode(seed, actions=[0] * 4, agreement=[{"step": step, "iou": iou} for step, iou in enumerate(of)])
        for seed, of in enumerate(ious)
    ]
    captions: list[str] = []
    monkeypatch.setattr(evaluate, "replay", lambda *_: ((step, None, None) for step in range(4)))
    monkeypatch.setattr(evaluate, "heat", lambda *_: None)
    monkeypatch.setattr(media, "attention_strip", lambda *given: captions.append(given[3]))
    monkeypatch.setattr(media, "stack_strips", len)
    run = types.SimpleNamespace(title="Basic, camal seed 1", label="camal seed 1", definition=None)
    assert evaluate.pictures([run], episodes, args(Path())) == 3
    frames = sum(map(len, ious))
    assert captions == [
        f"Basic, camal seed 1: IoU {iou:.2f} (rank {rank} of {frames}, episode {index}, step {step})"
        for iou, index, step, rank in shown
    ]


def test_the_iou_of_a_frame_without_a_target_is_not_a_number() -> None:
    episode = Episode(1, actions=[0] * 3, agreement=[{"step": 1, "iou": 0.5}])
    np.testing.assert_array_equal(episode.ious, [np.nan, 0.5, np.nan])


def test_a_single_episode_has_no_standard_error() -> None:
    episode = Episode(1, "terminated", [0], [5.0], [0.0])
    summary = evaluate.summarise([episode], load_definition("Basic"))
    assert summary["return"]["standard_error"] == Undefined("one episode has no spread")
    assert summary["return"]["normalized_mean"] == pytest.approx((5 + 166.5) / (81.5 + 166.5))
    assert summary["iou_sweep"]["iou"] == [Undefined("no frame had a target in view")] * len(metrics.TAUS)


def test_a_number_that_is_none_never_reaches_the_file() -> None:
    for value in (float("nan"), float("inf"), np.float64("nan")):
        with pytest.raises(ValueError, match="JSON"):
            evaluate.to_json({"iou": value})
    content = json.loads(evaluate.to_json({"a": {"b": [np.float32(1.5), Undefined("why")]}}))
    assert content == {"a": {"b": [1.5, None]}, "undefined": {"a.b.1": "why"}}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--episodes", "0"], "camal_rl: --episodes 0: should be greater than or equal to 1."),
        (["--seed", "-1"], "--seed -1"),
        (["--num-envs", "0"], "--num-envs 0"),
        (["--num-envs", "1000000000"], "--num-envs 1000000000: should be less than or equal to 256."),
        (["--max-steps", "0"], "--max-steps 0"),
        (["--video-episodes", "-1"], "--video-episodes -1"),
        (["--faithfulness-frames", "-1"], "--faithfulness-frames -1"),
        (["--torch-threads", "-1"], "--torch-threads -1"),
        (["--shift", "fog"], "invalid choice 'fog' for argument '--shift'"),
    ],
)
def test_a_bad_option_is_refused_with_code_2(capsys, options, words) -> None:
    with pytest.raises(SystemExit) as refusal:
        evaluate.parse_args(["runs/Basic/camal/seed1", *options])
    assert refusal.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"compare": Path("nowhere")}, "nowhere holds no run"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_played(folder, options, words) -> None:
    with pytest.raises(UserError, match=words):
        evaluate.evaluate(args(folder, **options))
    assert not (folder / "scores.json").exists()


@pytest.mark.slow
def test_runs_of_two_environments_cannot_be_compared(fake_engine, tmp_path) -> None:
    basic, line = (trained(tmp_path, env=env) for env in ("Basic", "DefendLine"))
    with pytest.raises(UserError, match=r"another environment: scenario was basic\.cfg, now defend_the_line"):
        evaluate.evaluate(args(basic, compare=line))


def test_a_run_keeps_the_name_of_its_environment_wherever_that_lies_now(fake_engine, tmp_path) -> None:
    toml = tmp_path / "Mine.toml"
    toml.write_bytes(load_definition("Basic").path.read_bytes())
    folder = trained(tmp_path / "runs", env=str(toml))
    scores, _ = evaluate.evaluate(few(folder, env=str(toml.rename(tmp_path / "Other.toml"))))
    assert scores["env"] == "Mine"


def test_an_evaluation_computes_on_no_more_threads_than_a_container_has_cores(folder, monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "cores", lambda: 1)
    scores, _ = evaluate.evaluate(few(folder, torch_threads=0))
    assert scores["settings"]["cpu_threads"] == 1


def test_a_run_of_ones_own_environment_is_played_without_its_file(fake_engine, tmp_path) -> None:
    toml = tmp_path / "Mine.toml"
    toml.write_bytes(load_definition("Basic").path.read_bytes())
    folder = trained(tmp_path / "runs", env=str(toml))
    toml.unlink()
    run = play.load_run(folder, None, torch.device("cpu"))
    assert run.definition.described() == run.trained["definition"]
    shutil.rmtree(folder / "environment")  # as earlier versions left it
    with pytest.raises(UserError, match=r"no environment named 'Mine'.*Give its TOML file with --env\."):
        play.load_run(folder, None, torch.device("cpu"))


@pytest.mark.slow
def test_results_go_to_another_folder_if_asked(folder, tmp_path) -> None:
    evaluate.evaluate(few(folder, output=tmp_path / "a" / "b"))
    assert (tmp_path / "a/b/scores.json").exists()
    assert not (folder / "scores.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't make .*file: .*Choose another folder"):
        evaluate.evaluate(args(folder, output=tmp_path / "file"))


@pytest.mark.slow
def test_a_full_disk_leaves_earlier_results_as_they_were(evaluated, monkeypatch) -> None:
    before = {path: path.read_bytes() for path in evaluated.rglob("*") if path.is_file()}
    written = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device\. Free some space"):
        evaluate.evaluate(few(evaluated, seed=1, video_episodes=1))
    assert {path: path.read_bytes() for path in evaluated.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_file_that_cannot_be_replaced_leaves_all_as_they_were(evaluated) -> None:
    (evaluated / "scores.json").unlink()
    (evaluated / "scores.json").mkdir()
    before = {path: path.read_bytes() for path in evaluated.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"can't write .*scores\.json: Is a directory\. Mend that"):
        evaluate.evaluate(few(evaluated, seed=1))
    assert {path: path.read_bytes() for path in evaluated.rglob("*") if path.is_file()} == before


def test_help_is_quick_and_names_every_option() -> None:
    start = time.perf_counter()
    done = run("-m", "camal_rl.evaluate", "--help", folder=ROOT)
    assert time.perf_counter() - start < 10  # torch alone takes longer on a busy machine; it is not imported
    assert done.returncode == 0
    for option in dataclasses.fields(evaluate.Args):
        assert option.name.upper() in done.stdout or f"--{option.name.replace('_', '-')}" in done.stdout


def test_options_name_every_map_and_every_visual_change() -> None:
    assert get_args(command_line.Map) == attention.METHODS
    assert get_args(evaluate.Look) == tuple(SHIFTS)


def test_a_mistake_is_one_line_and_code_2(capsys) -> None:
    assert evaluate.main(evaluate.parse_args(["nowhere"])) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("camal_rl: nowhere holds no run (there is no args.json): give a folder such as")


@pytest.mark.engine
def test_a_trained_run_is_evaluated_on_the_engine_twice_the_same(tmp_path) -> None:
    folder = trained(tmp_path, num_envs=2, total_timesteps=32)
    command = [str(folder), "--episodes", "2", "--max-steps", "12", "--torch-threads", "1", "--shift", "hud"]
    command += ["--faithfulness-frames", "4", "--video-episodes", "1"]
    done = run("-m", "camal_rl.evaluate", *command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    contents = [(folder / "scores.json").read_bytes()]
    evaluate.evaluate(evaluate.parse_args(command))
    contents.append((folder / "scores.json").read_bytes())
    assert contents[0] == contents[1]
    scores = json.loads(contents[0])
    no_number_is_missing_without_a_reason(scores)
    assert scores["frames_with_target"] > 0
    with av.open(str(folder / "media/evaluation.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) >= 4 * (scores["episodes"][0]["length"] - 1)
    assert (np.ptp(frames[0].astype(int), axis=2) > 40).any()  # in colour


@pytest.mark.engine
def test_ctrl_c_ends_it_and_writes_nothing(tmp_path) -> None:
    folder = trained(tmp_path, num_envs=2, total_timesteps=32)
    before = sorted(folder.rglob("*"))
    process = subprocess.Popen(
        [sys.executable, "-m", "camal_rl.evaluate", str(folder), "--episodes", "5000"],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stderr is not None
    said = io.BytesIO()
    while b"episodes" not in said.getvalue():
        said.write(process.stderr.read1())  # type: ignore[attr-defined]
    process.send_signal(2)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Stopped. Nothing was written." in rest
    assert b"Traceback" not in rest
    assert set(folder.rglob("*")) - {folder / ".evaluate.lock"} == set(before)


@pytest.mark.engine
def test_metrics_cost_less_than_playing_the_frames(start) -> None:
    env = start("DefendCenter", (84, 84), render_resolution="320x240")
    rng = np.random.default_rng(0)
    env.begin_episode(1)
    playing, measuring = [], []
    for _ in range(100):  # interleaved and the median of many, because other processes come and go
        masks = []
        began = time.perf_counter()
        for _ in range(10):
            masks.append(env.mask.copy())
            if any(env.advance(int(rng.integers(len(env.actions))))[1:]):
                env.begin_episode()
        playing.append(time.perf_counter() - began)
        heats = rng.random((len(masks), 7, 7), np.float32)
        began = time.perf_counter()
        metrics.alignment(heats, np.stack(masks))
        measuring.append(time.perf_counter() - began)
    played, measured = np.median(playing) * 100, np.median(measuring) * 100
    print(f"a frame at 240x320: played in {played:.2f} ms, measured in {measured:.2f} ms")
    assert measured < played
