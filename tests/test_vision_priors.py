"""Regions of small random CLIPs, against Grad-CAM by hooks; files."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, run

from camal_rl.errors import UserError
from camal_rl.run.command_line import parse
from camal_rl.vision.clip import prompts
from camal_rl.vision.samples import GENERATED, Samples

pytest.importorskip("open_clip")

from small_clips import KINDS, TOKENIZER, Dangerous, clip, hooked, network, noise

from camal_rl.vision import datasets, priors, shapes
from camal_rl.vision.priors import Args

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_clips_only")]


# Regions


@pytest.mark.parametrize("kind", KINDS)
def test_regions_are_grad_cam_of_the_cosine_similarity_with_the_prompt(kind: str) -> None:
    small = clip(kind)
    images, texts = noise(4, small.size), ["a cat", "a dog", "a cat", "two birds"]
    found = priors.regions(small, images, texts, batch_size=3)

    taken, embedding = hooked(small, small.pixels(images))
    wanted = small.model.encode_text(TOKENIZER(texts))
    cosine = (embedding * wanted).sum(dim=1) / (embedding.norm(dim=1) * wanted.norm(dim=1))
    (gradient,) = torch.autograd.grad(cosine.sum(), taken)
    if "vit" in kind:
        taken, gradient = (
            one[:, 1:].transpose(1, 2).unflatten(2, small.model.visual.grid_size) for one in (taken, gradient)
        )
    cams = F.relu((gradient.mean(dim=(2, 3), keepdim=True) * taken).sum(dim=1)).detach().numpy()
    assert found.shape == cams.shape
    assert found.dtype == np.float32
    for one, cam in zip(found, cams, strict=True):
        low, high = cam.min(), cam.max()
        expected = (cam - low) / (high - low) if high > low else np.zeros_like(cam)
        np.testing.assert_allclose(one, expected, atol=1e-4)
    assert not priors.dead(found).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_region_depends_on_its_own_image_and_prompt_only(kind: str) -> None:
    small = clip(kind)
    images, texts = noise(5), ["a cat", "a dog", "a cat", "a bird", "a dog"]
    together = priors.regions(small, images, texts)
    alone = [priors.regions(small, image[None], [text])[0] for image, text in zip(images, texts, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    others = priors.regions(small, images, ["a bird"] * 5)
    assert np.abs(together[3] - others[3]).max() < 1e-4
    assert np.abs(together - others).max() > 0.01


def test_regions_leave_the_model_and_the_images_as_they_were() -> None:
    small = clip("tiny-vit")
    images = noise(2)
    images.flags.writeable = False
    before = {name: one.clone() for name, one in small.model.state_dict().items()}
    with torch.no_grad():
        without = priors.regions(small, images, ["a cat"] * 2)
    np.testing.assert_array_equal(without, priors.regions(small, images, ["a cat"] * 2))
    assert all(torch.equal(one, before[name]) for name, one in small.model.state_dict().items())
    assert all(one.grad is None and not one.requires_grad for one in small.model.parameters())
    assert not any(module.training for module in small.model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.model.modules())


# Files


NAMES = ("images/cat 1", "images/dog.2", "bird")


def maps(count: int = 3, size: tuple[int, int] = (2, 3)) -> np.ndarray:
    return np.random.default_rng(1).random((count, *size), np.float32)


def test_regions_come_back_by_name(tmp_path: Path) -> None:
    file = tmp_path / "regions.npz"
    priors.save_regions(file, maps(), NAMES)
    np.testing.assert_array_equal(priors.load_regions(file, NAMES), maps())
    some = priors.load_regions(file, ["bird", "images/cat 1"])
    np.testing.assert_array_equal(some, maps()[[2, 0]])
    assert some.dtype == np.float32
    content = file.read_bytes()
    priors.save_regions(file, maps(), list(NAMES))
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def test_regions_of_other_samples_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "regions.npz"
    priors.save_regions(file, maps(), NAMES)
    wanted = ["bird", *(f"fish{index}" for index in range(6))]
    with pytest.raises(UserError, match="of 6 of 7 samples: fish0, fish1, fish2, fish3 and 2 more"):
        priors.load_regions(file, wanted)


@pytest.mark.parametrize(
    ("wrong", "names", "message"),
    [
        (maps().astype(np.float64), NAMES, "float32 of shape"),
        (maps()[0], NAMES, "float32 of shape"),
        (maps()[:0], (), "float32 of shape"),
        (maps(2), NAMES, "each of the 2 maps needs a name"),
        (maps(), ("a", "b", "a"), "a name of its own"),
        (maps() + 1, NAMES, r"lie in \[0, 1\]"),
        (maps() - 1, NAMES, r"lie in \[0, 1\]"),
        (np.full_like(maps(), math.nan), NAMES, r"lie in \[0, 1\]"),
    ],
)
def test_only_regions_are_written_and_read(
    wrong: np.ndarray, names: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "regions.npz"
    with pytest.raises(ValueError, match=message):
        priors.save_regions(file, wrong, names)
    assert not file.exists()
    np.savez(file, maps=wrong, names=np.array(names, dtype=str))
    with pytest.raises(UserError, match=f"not a file of regions .*{message}"):
        priors.load_regions(file, ["a"])


def test_other_files_are_refused_and_run_no_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "regions.npz"
    with pytest.raises(UserError, match=r"there are no regions in .*--output, or give a folder"):
        priors.load_regions(file, NAMES)
    priors.save_regions(file, maps(), NAMES)
    whole = file.read_bytes()
    for content in (b"", b"PK", whole[:-40], whole.replace(b"maps.npy", b"pams.npy")):
        file.write_bytes(content)
        with pytest.raises(UserError, match="is damaged, or not a file of regions"):
            priors.load_regions(file, NAMES)
    np.savez(file, maps=maps(), names=np.array([Dangerous()] * 3, dtype=object))
    with pytest.raises(UserError, match="not a file of regions"):
        priors.load_regions(file, NAMES)
    with file.open("wb") as plain:
        np.save(plain, maps())
    with pytest.raises(UserError, match="not a file of regions"):
        priors.load_regions(file, NAMES)
    assert "code in a file" not in "".join(capfd.readouterr())


def write_png(file: Path, image: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), image)


def test_a_folder_of_grey_pictures_is_taken_whatever_their_size(tmp_path: Path) -> None:
    eight, sixteen = np.array([[0, 51], [102, 255]], np.uint8), np.array([[0, 65535], [13107, 0]], np.uint16)
    write_png(tmp_path / "images" / "cat 1.png", eight)
    write_png(tmp_path / "images" / "dog.2.png", sixteen)
    write_png(tmp_path / "fish.png", np.zeros((7, 7), np.uint8))  # of a sample that is not asked for
    found = priors.load_regions(tmp_path, ["images/dog.2", "images/cat 1"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[[0, 1], [0.2, 0]], [[0, 0.2], [0.4, 1]]], atol=1e-7)


def test_a_folder_that_lacks_pictures_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "bird.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(UserError, match=r"of 2 of 3 samples: images/cat 1, images/dog\.2\."):
        priors.load_regions(tmp_path, NAMES)


def test_pictures_of_another_kind_are_refused(tmp_path: Path) -> None:
    names = ["a", "b"]
    write_png(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    write_png(tmp_path / "b.png", np.zeros((2, 3), np.uint8))
    with pytest.raises(UserError, match="of one size: b's is not that of a"):
        priors.load_regions(tmp_path, names)
    write_png(tmp_path / "b.png", np.zeros((2, 2, 3), np.uint8) + np.arange(3, dtype=np.uint8))
    with pytest.raises(UserError, match=r"b\.png can't be read \(its channels differ\): .* grey PNG file"):
        priors.load_regions(tmp_path, names)
    for content in (b"", b"no picture"):
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(UserError, match=r"b\.png can't be read"):
            priors.load_regions(tmp_path, names)


def test_a_grey_picture_may_have_several_channels_that_are_equal(tmp_path: Path) -> None:
    grey = np.array([[0, 51], [102, 255]], np.uint8)
    write_png(tmp_path / "a.png", np.stack([grey] * 3, axis=2))
    write_png(
        tmp_path / "b.png",
        np.stack([grey | 1, grey | 1, grey | 1, 255 * (grey > 51)], axis=2).astype(np.uint8),
    )
    found = priors.load_regions(tmp_path, ["a", "b"])
    np.testing.assert_allclose(found[0], grey / 255, atol=1e-7)
    np.testing.assert_allclose(found[1], [[0, 0], [103 / 255, 1]], atol=1e-7)  # transparent is black


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_pictures_of_0_and_1_in_place_of_black_and_white_are_refused(kind: type, tmp_path: Path) -> None:
    """As maps they would be all but black; 16 bits that hold the levels of 8 are the same mistake."""
    write_png(tmp_path / "a.png", np.zeros((2, 2), kind))
    write_png(tmp_path / "b.png", np.eye(2, dtype=kind) * (1 if kind == np.uint8 else 255))
    with pytest.raises(
        UserError, match=r"the brightest pixel of all maps is 0\.0039: .* white, 255 or 65535"
    ):
        priors.load_regions(tmp_path, ["a", "b"])


# The command


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch) -> Samples:
    data = shapes.generate(count=12, image_size=32)
    monkeypatch.setattr(datasets, "load", lambda *_: data)
    return data


def command(*options: str) -> int:
    return priors.main(parse(Args, "priors", ["--device", "cpu", "--image-size", "32", *options]))


@pytest.mark.parametrize("kind", ["tiny-resnet", "tiny-vit"])
def test_the_command_makes_regions(
    kind: str, small_data: Samples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, output = tmp_path / "weights.pt", tmp_path / "made" / "regions.npz"
    torch.save(network(kind).state_dict(), weights)
    options = ["--clip-model", kind, "--clip-weights", str(weights), "--prompt", "a {class}"]
    assert command(*options, "--output", str(output), "--batch-size", "5") == 0
    printed = capsys.readouterr()
    assert f"Regions of 12 images from CLIP {kind}, weights weights.pt." in printed.out
    assert str(output) in printed.out
    loaded = priors.load_regions(output, small_data.names)
    texts = prompts(small_data.labels, small_data.classes, "a {class}")
    expected = priors.regions(clip(kind), small_data.images, texts)
    np.testing.assert_allclose(loaded, expected, atol=1e-4)


def test_regions_are_of_as_many_shapes_as_asked_for(tmp_path: Path) -> None:
    options = ["--clip-model", "tiny-vit", "--clip-weights", "none", "--output", str(tmp_path / "a.npz")]
    assert command(*options, "--samples", "7") == 0
    names = shapes.generate(count=8, image_size=32).names
    assert len(priors.load_regions(tmp_path / "a.npz", names[:7])) == 7
    with pytest.raises(UserError, match="lacks the regions of 1 of 8"):
        priors.load_regions(tmp_path / "a.npz", names)
    assert Args("none").samples == GENERATED


def test_random_weights_are_called_what_they_are(
    small_data: Samples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--clip-model", "tiny-vit", "--clip-weights", "none", "--output", str(tmp_path / "a.npz")]
    assert command(*options) == 0
    assert "random weights, so the regions mean nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clip-weights", "none", "--prompt", "a cat"], "write {class} where"),
        (["--clip-weights", "b.pt"], "no CLIP weights in b.pt"),
    ],
)
def test_mistakes_are_told_in_one_line(
    options: list[str],
    message: str,
    small_data: Samples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("camal_rl: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert not list(tmp_path.glob("*.*"))


def test_a_folder_that_can_not_be_made_is_told_before_the_work(
    small_data: Samples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert command("--clip-weights", "none", "--output", str(tmp_path / "file" / "a.npz")) == 2
    assert "can't make" in capsys.readouterr().err


def test_ctrl_c_leaves_no_file(
    small_data: Samples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(priors, "_cams", stop)
    options = ["--clip-model", "tiny-vit", "--clip-weights", "none", "--output", str(tmp_path / "a.npz")]
    assert command(*options) == 130
    assert "Stopped" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_torch(tmp_path: Path) -> None:
    for name in ("torch", "open_clip", "cv2"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    done = run("-m", "camal_rl.vision.priors", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for option in ("--data", "--clip-model", "--clip-weights", "--output"):
        assert option in done.stdout
    assert str(ROOT) not in done.stdout
