"""Training of classifiers: what is learned, resumed and refused."""

import dataclasses
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_same
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from camal_rl.errors import UserError
from camal_rl.run import folder as run_folder

pytest.importorskip("torchvision")

from vision_processes import checkpoint_of, scores_of, small_args, small_network

from camal_rl.vision import datasets, evaluate, models, priors, train
from camal_rl.vision.models import ARCHITECTURES, CAM_METHODS, Classifier

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here doesn't depend on the network; test_vision_models has the real ones."""
    monkeypatch.setattr(models.models, "get_model", small_network)


@pytest.fixture(scope="module")
def plain_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fold of one epoch, trained once for all tests; not to be touched."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.models, "get_model", small_network)
        train.train(small_args(folder, epochs=1))
    return folder


@pytest.fixture
def plain(plain_template: Path, tmp_path: Path) -> train.Args:
    """Its copy in the test's own folder."""
    shutil.copytree(plain_template, tmp_path, dirs_exist_ok=True)
    return small_args(tmp_path, epochs=1)


@pytest.mark.parametrize("method", ["camal", "vanilla", "suppress"])
def test_a_fold_is_trained_logged_and_scored(method: str, tmp_path: Path) -> None:
    args = small_args(tmp_path, method=method)
    assert train.train(args)
    folder = tmp_path / "shapes" / "resnet18" / method / "fold1"
    assert {path.name for path in folder.iterdir() if not path.name.startswith(("events", "."))} == {
        "args.json",
        "checkpoint.pt",
        "scores.json",
        "media",
    }
    scores = scores_of(args)
    assert scores["fold"] == 1
    assert scores["samples"] == 12
    assert 0 <= scores["iou"] <= 1
    assert scores["shifted"].keys() == {"decorrelated", "reversed"}
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/cross_entropy", "train/accuracy", "test/iou", "test/reversed/accuracy"} <= tags
    assert ("train/camal_loss" in tags) == (method != "vanilla")
    assert [one.step for one in events.Scalars("train/accuracy")] == [1, 2]


def test_a_name_is_that_of_the_folder(tmp_path: Path) -> None:
    named = small_args(tmp_path, name="margin", attention="diffgradcam", epochs=1)
    assert train.train(named)
    folder = tmp_path / "shapes" / "resnet18" / "margin" / "fold1"
    assert (folder / "scores.json").is_file()
    options = run_folder.read_args_file(folder, ("args",))["args"]
    assert (options["name"], options["method"]) == ("margin", "camal")


def test_camal_pulls_attention_into_the_mask(tmp_path: Path) -> None:
    """So few training images don't carry over to others, so it is theirs that is looked at."""
    args = small_args(tmp_path, epochs=8, test_every=0, learning_rate=0.01)
    train.train(args)
    events = EventAccumulator(str(train.folder_of(args, 1)))
    events.Reload()
    losses = [one.value for one in events.Scalars("train/camal_loss")]
    assert losses[-1] < losses[0] - 0.1


def test_the_same_command_twice_gives_the_same_weights(tmp_path: Path) -> None:
    one, other = small_args(tmp_path / "one"), small_args(tmp_path / "other")
    train.train(one)
    train.train(other)
    assert_same(checkpoint_of(one), checkpoint_of(other))


@pytest.mark.parametrize("model", ["resnet18", "efficientnet_b0"])  # without and with what is drawn in a pass
def test_an_interrupted_run_goes_on_to_the_same_weights(model: str, tmp_path: Path) -> None:
    whole = small_args(tmp_path / "whole", epochs=3, model=model)
    parts = small_args(tmp_path / "parts", epochs=3, model=model)
    train.train(whole)
    asked = iter([False, True])  # before the fold, and after its first epoch
    assert not train.train(parts, lambda: next(asked))
    assert checkpoint_of(parts)["epoch"] == 1
    assert not (train.folder_of(parts, 1) / "scores.json").exists()
    assert train.train(parts)
    assert_same(checkpoint_of(whole), checkpoint_of(parts))
    before, after = scores_of(whole), scores_of(parts)
    assert {**before, "seconds_per_step": 0} == {**after, "seconds_per_step": 0}


def test_nothing_is_learned_from_the_images_of_the_test_set(
    plain: train.Args, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = small_args(tmp_path / "other", epochs=1)
    samples = datasets.load("shapes", tmp_path, 64, 36)
    tested = datasets.folds(samples.labels, 3, 1) == 0
    assert tested.sum() == 12
    samples.images[tested] = 255 - samples.images[tested]
    monkeypatch.setattr(datasets, "load", lambda *_, **__: samples)
    train.train(other)
    assert_same(checkpoint_of(plain)["model"], checkpoint_of(other)["model"])
    assert scores_of(plain)["attention_mean"] != scores_of(other)["attention_mean"]


def differ(one: train.Args, other: train.Args) -> bool:
    """Return True if they end with other weights."""
    first, second = checkpoint_of(one)["model"], checkpoint_of(other)["model"]
    return any(not torch.equal(weight, second[name]) for name, weight in first.items())


def test_without_lambda_camal_is_vanilla_and_lambda_counts(plain: train.Args, tmp_path: Path) -> None:
    made = {
        name: small_args(tmp_path / name, epochs=1, **options)
        for name, options in {
            "vanilla": {"method": "vanilla"},
            "zero": {"camal_coef": 0.0},
            "two": {"camal_coef": 2.0},
        }.items()
    }
    for args in made.values():
        train.train(args)
    assert not differ(made["vanilla"], made["zero"])
    assert differ(made["zero"], plain)
    assert differ(plain, made["two"])


@pytest.mark.parametrize(
    "options",
    [
        {"method": "suppress"},
        {"attention": "layercam"},
        {"attention": "diffgradcam"},
        {"freeze_batch_norm": True},
        {"precision": "bf16"},
    ],
)
def test_each_option_of_attention_is_heeded(
    options: dict[str, object], plain: train.Args, tmp_path: Path
) -> None:
    args = small_args(tmp_path / "args", epochs=1, **options)
    train.train(args)
    assert differ(plain, args)


def test_images_without_a_target_are_ignored_or_suppressed(tmp_path: Path) -> None:
    masks = np.zeros((3, 64, 64), np.uint8)
    masks[1:, 8:24, 8:24] = 1
    ignored, suppressed = small_args(tmp_path), small_args(tmp_path, empty_mask="suppress")
    _, supervised = train.supervision(ignored, masks, 64, (2, 2))
    weights, all_supervised = train.supervision(suppressed, masks, 64, (2, 2))
    assert supervised.tolist() == [False, True, True]
    assert all_supervised.tolist() == [True, True, True]
    assert not weights[0, 0].any()  # no alpha
    torch.testing.assert_close(weights[0, 1], torch.full((2, 2), 0.25))  # beta: the mean of attention


def test_maps_coarser_than_attention_supervise_all_of_it(tmp_path: Path) -> None:
    maps = np.zeros((1, 2, 2), np.float32)
    maps[0, 0, 0] = 1
    args = small_args(tmp_path, method="prior", prior=tmp_path)
    weights, _ = train.supervision(args, maps, 64, (8, 8))
    costs = weights[:, 1] - weights[:, 0]
    assert bool((costs != 0).all())
    assert float(costs[0, 0, 0]) < 0 < float(costs[0, 7, 7])  # wanted where the map is, and nowhere else


def test_a_prior_that_marks_nothing_is_refused_and_one_that_misses_images_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = datasets.load("shapes", tmp_path, 64, 36)
    maps = np.zeros((36, 2, 2), np.float32)
    priors.save_regions(tmp_path / "none.npz", maps, samples.names)
    with pytest.raises(UserError, match="all maps are zero everywhere"):
        train.train(small_args(tmp_path, method="prior", prior=tmp_path / "none.npz"))
    maps[9:] = 0.5
    priors.save_regions(tmp_path / "some.npz", maps, samples.names)
    train.train(small_args(tmp_path, epochs=1, method="prior", prior=tmp_path / "some.npz"))
    assert "25.0% of the prior's maps are zero everywhere" in capsys.readouterr().out


def test_files_count_by_what_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not by their names: a copy is the same run, and other content under the same name is another."""
    samples = datasets.load("shapes", tmp_path, 64, 36)
    source = Classifier("resnet18", 6, image_size=64).network.state_dict()
    torch.save(source, tmp_path / "weights.pth")
    shutil.copy(tmp_path / "weights.pth", tmp_path / "copy.pth")
    for name in ("regions.npz", "copy.npz"):
        priors.save_regions(tmp_path / name, samples.masks.astype(np.float32), samples.names)

    def again(weights: str, prior: str) -> train.Args:
        return small_args(
            tmp_path, epochs=1, method="prior", weights=str(tmp_path / weights), prior=tmp_path / prior
        )

    train.train(again("weights.pth", "regions.npz"))
    assert "already done" not in capsys.readouterr().out
    train.train(again("copy.pth", "copy.npz"))
    assert "already done" in capsys.readouterr().out
    priors.save_regions(tmp_path / "copy.npz", 1 - samples.masks.astype(np.float32), samples.names)
    with pytest.raises(UserError, match="prior was sha256="):
        train.train(again("weights.pth", "copy.npz"))
    source["fc.bias"] += 1
    torch.save(source, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="weights was sha256="):
        train.train(again("weights.pth", "regions.npz"))


def test_a_damaged_checkpoint_is_one_line(plain: train.Args) -> None:
    file = train.folder_of(plain, 1) / "checkpoint.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        train.train(plain)


def test_a_finished_fold_is_left_as_it_is(plain: train.Args, capsys: pytest.CaptureFixture[str]) -> None:
    file = train.folder_of(plain, 1) / "checkpoint.pt"
    before = file.stat().st_mtime_ns
    assert train.train(plain)
    assert "already done" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == before


@pytest.mark.usefixtures("plain")
def test_other_arguments_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weight_decay was 0\.01, now 0\.1"):
        train.train(small_args(tmp_path, epochs=1, weight_decay=0.1))


def test_scores_can_be_made_again_from_the_checkpoint_with_the_arithmetic_of_training(
    plain: train.Args, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
    file = train.folder_of(plain, 1) / "scores.json"
    before = file.read_bytes()
    file.unlink()
    assert evaluate.main(evaluate.Args((tmp_path,), device="cpu")) == 0
    assert file.read_bytes() == before
    assert not torch.backends.cudnn.allow_tf32


def test_the_largest_seed_is_taken(tmp_path: Path) -> None:
    assert train.train(small_args(tmp_path, epochs=1, seed=2**63 - 1))


def test_processes_of_one_machine_share_its_cores(plain: train.Args, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(train, "cores", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    train.train(dataclasses.replace(plain, torch_threads=0))
    assert asked[0] == 3


def test_cut_outs_count_by_what_they_show(tmp_path: Path) -> None:
    """Another folder of them, or one more picture in it, would deal out other folds."""
    for folder, shade in (("one", 200), ("other", 100)):
        for kind in ("bird", "fish", "backgrounds/day", "backgrounds/night"):
            (tmp_path / folder / kind).mkdir(parents=True)
            for number in range(3):
                picture = Image.new("RGBA", (40, 40), (shade, 40 * number, 0, 255))
                picture.paste((0, 0, 0, 0), (0, 0, 40, 10))
                picture.save(tmp_path / folder / kind / f"{number}.png")
    options = {"data": "cutouts", "epochs": 1, "samples": 12}
    args = small_args(tmp_path / "runs", data_dir=tmp_path / "one", **options)
    assert train.train(args)
    with pytest.raises(UserError, match="pictures was sha256="):
        train.train(small_args(tmp_path / "runs", data_dir=tmp_path / "other", **options))
    folder = str(train.folder_of(args, 1))
    again = evaluate.Args((Path(folder),), data_dir=tmp_path / "one", device="cpu")
    assert evaluate.main(again) == 0
    again.data_dir = tmp_path / "other"
    assert evaluate.main(again) == 2


def test_a_priors_soft_maps_take_the_place_of_masks(plain: train.Args, tmp_path: Path) -> None:
    """Regions that are the masks give the very loss of the masks."""
    samples = datasets.load("shapes", tmp_path, 64, 36)
    masks = samples.masks.astype(np.float32)
    priors.save_regions(tmp_path / "regions.npz", masks, samples.names)
    prior = small_args(tmp_path, epochs=1, method="prior", prior=tmp_path / "regions.npz")
    train.train(prior)
    assert_same(checkpoint_of(plain)["model"], checkpoint_of(prior)["model"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fold": 4}, "there are 3 folds"),
        ({"epochs": 0}, "--epochs 0: should be greater than or equal to 1"),
        ({"method": "prior"}, "go together"),
        ({"prior": Path("regions.npz")}, "go together"),
        ({"image_size": 100}, "multiple of 32"),
        ({"data": "busi"}, "Dataset_BUSI_with_GT"),
        ({"weights": "weights.pth"}, r"--weights weights\.pth: No such file"),
        ({"method": "prior", "prior": Path("regions.npz")}, r"no regions in regions\.npz"),
        ({"samples": 3, "batch_size": 2}, "3 folds"),
        ({"device": "tpu"}, "--device tpu"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    options: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        train.train(small_args(tmp_path / "runs", data_dir=tmp_path, **options))
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_checkpoint(
    plain: train.Args, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = checkpoint_of(plain)
    update = train.update
    broken = {"cross_entropy": torch.tensor(float("nan"))}
    monkeypatch.setattr(train, "update", lambda *given: update(*given) | broken)
    (train.folder_of(plain, 1) / "scores.json").unlink()
    checkpoint = run_folder.load_checkpoint(train.folder_of(plain, 1) / "checkpoint.pt")
    assert checkpoint is not None
    checkpoint["epoch"] = 0
    del checkpoint["version"]
    run_folder.save_checkpoint(train.folder_of(plain, 1) / "checkpoint.pt", checkpoint)
    with pytest.raises(UserError, match="epoch 1: cross_entropy of step 1 is NaN or infinite"):
        train.train(plain)
    assert_same(checkpoint_of(plain)["model"], before["model"])


def test_table_7_is_the_default() -> None:
    args = train.Args()
    assert (args.epochs, args.batch_size, args.weight_decay) == (500, 32, 0.01)
    assert (args.camal_coef, args.folds) == (1, 10)
    rates = {model: train.learning_rate(train.Args(model=model)) for model in ARCHITECTURES}  # type: ignore[arg-type]
    assert rates == dict.fromkeys(
        ("resnet18", "convnext_t", "efficientnet_b0", "mobilenet_v2"), 1e-3
    ) | dict.fromkeys(("vit_b_16", "swin_v2_t", "maxvit_t"), 1e-4)


def test_the_command_names_what_there_is() -> None:
    """It can't ask for it, because --help is to answer before torch is imported."""
    types = get_type_hints(train.Args)
    assert get_args(types["model"]) == tuple(ARCHITECTURES)
    assert get_args(types["attention"]) == CAM_METHODS


def test_a_signal_ends_after_the_epoch_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    args = small_args(tmp_path, epochs=4, checkpoint_every=3)
    update, steps = train.update, iter(range(1000))

    def interrupted(*given: Any) -> dict[str, torch.Tensor]:
        if next(steps) == 4:  # of three steps an epoch
            signal.raise_signal(signal.SIGINT)
        return update(*given)

    monkeypatch.setattr(train, "update", interrupted)
    assert train.main(args) == 130
    said = capfd.readouterr().err
    assert "Stopping after this epoch" in said
    assert "The same command goes on" in said
    assert checkpoint_of(args)["epoch"] == 2
    assert train.main(args) == 0
    assert "Done." in capfd.readouterr().out
    events = EventAccumulator(str(train.folder_of(args, 1)))
    events.Reload()
    assert [event.step for event in events.Scalars("train/accuracy")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (resource.RLIMIT_FSIZE, "File too large"),
        (resource.RLIMIT_AS, "out of memory: choose a smaller --batch-size"),
    ],
)
def test_a_full_disk_and_full_memory_are_one_line(
    limit: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    amount, samples = 2000, 36
    if limit == resource.RLIMIT_AS:  # what is in use, and a gibibyte; a million images need twelve
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        amount, samples = pages * resource.getpagesize() + 2**30, 1_000_000
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (amount, before[1]))
    try:
        code = train.main(small_args(tmp_path, samples=samples))
    finally:
        resource.setrlimit(limit, before)
    assert code == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("camal_rl: ") == 1


@pytest.mark.parametrize("module", ["train", "evaluate"])
def test_a_missing_torchvision_is_one_line(module: str, tmp_path: Path) -> None:
    """As is one that was built for another torch."""
    for found, words in (
        (
            "raise ModuleNotFoundError('No module named torchvision', name='torchvision')",
            "pip install 'camal-rl",
        ),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "built for the torch"),
    ):
        (tmp_path / "torchvision.py").write_text(found)
        done = subprocess.run(
            [sys.executable, "-m", f"camal_rl.vision.{module}", *(["."] if module == "evaluate" else [])],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))},
        )
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
