"""Regions of small random CLIPs of both kinds, against Grad-CAM by hooks; files; the study, by hand.

What these CLIPs see means nothing. Trained ones can't be fetched where the tests run.
"""

import gzip
import json
import math
import socket
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, run
from PIL import Image
from torch import Tensor, nn

from camal_rl import metrics
from camal_rl.errors import UserError
from camal_rl.vision.clip import Conventions, _conventions, load_clip, prepare, prompts, split, valid_models
from camal_rl.vision.samples import SHAPES

pytest.importorskip("open_clip")

import open_clip

from camal_rl.vision import datasets, priors, shapes
from camal_rl.vision.clip import Clip
from camal_rl.vision.priors import Args
from camal_rl.vision.samples import Samples

pytestmark = pytest.mark.slow

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-resnet": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
    "tiny-vit": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": TEXT,
    },
    "tiny-vit-scaled": {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": [24, 40],
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
            "ls_init_value": 0.3,
            "patch_dropout": 0.5,
            "no_ln_pre": True,
        },
        "text_cfg": TEXT,
    },
}
KINDS = list(CONFIGS)
CLASSES = ("Abyssinian", "american_bulldog")


def network(kind: str, seed: int = 0) -> Any:
    """A CLIP with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**CONFIGS[kind])
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after some training, so that its mode matters
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


TOKENIZER = open_clip.SimpleTokenizer(context_length=16)


def clip(kind: str, seed: int = 0) -> Clip:
    return prepare(network(kind, seed), kind, TOKENIZER)


def noise(count: int, size: int | tuple[int, int] = 64, seed: int = 0) -> np.ndarray:
    height, width = (size, size) if isinstance(size, int) else size
    return np.random.default_rng(seed).integers(256, size=(count, 3, height, width), dtype=np.uint8)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small models have names, as open_clip's own have."""
    for name, config in CONFIGS.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More of them only get into each other's way, in networks so small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


# The image encoder in two parts


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_parts_make_the_embedding_of_the_whole_encoder(kind: str) -> None:
    small = clip(kind)
    pixels = small.pixels(noise(3))
    with torch.no_grad():
        whole = small.model.encode_image(pixels)
        maps, rest = split(small.model.visual, pixels)
        assert torch.equal(rest(maps), whole)
    assert whole.std() > 0.01  # embeddings are not all the same


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_parts_are_equal_to_the_whole_encoder_with_gradients_too(kind: str) -> None:
    small = clip(kind)
    one, other = (small.pixels(noise(2)).requires_grad_() for _ in range(2))
    maps, rest = split(small.model.visual, other)
    for pixels, embedding in ((one, small.model.encode_image(one)), (other, rest(maps))):
        (embedding * torch.arange(16)).sum().backward()
        assert pixels.grad is not None
    torch.testing.assert_close(one.grad, other.grad)


def test_feature_maps_have_the_grid_of_the_encoder() -> None:
    for kind, shape in (
        ("tiny-resnet", (2, 256, 2, 2)),
        ("tiny-vit", (2, 32, 4, 4)),
        ("tiny-vit-scaled", (2, 32, 3, 5)),  # rows first
    ):
        small = clip(kind)
        maps, _ = split(small.model.visual, small.pixels(noise(2)))
        assert maps.shape == shape


def hooked(small: Clip, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """By hooks: what the pooling takes, or tokens that the last attention takes; and the embedding."""
    visual = small.model.visual
    seen: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(inputs[0].clone().requires_grad_())
        return (seen[0],) * len(inputs)

    module = visual.attnpool if "resnet" in small.name else visual.transformer.resblocks[-1].attn
    handle = module.register_forward_pre_hook(note)
    embedding = small.model.encode_image(pixels)
    handle.remove()
    return seen[0], embedding


@pytest.mark.parametrize("kind", KINDS)
def test_feature_maps_are_what_attention_takes(kind: str) -> None:
    small = clip(kind)
    pixels = small.pixels(noise(2))
    taken, _ = hooked(small, pixels)
    maps, _ = split(small.model.visual, pixels)
    if "vit" in kind:
        taken = taken[:, 1:].transpose(1, 2).unflatten(2, small.model.visual.grid_size)
    assert torch.equal(maps, taken)


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


def test_progress_counts_images() -> None:
    done: list[int] = []
    priors.regions(clip("tiny-vit"), noise(5, 32), ["a cat"] * 5, 2, done.append)
    assert done == [2, 2, 1]


def test_images_are_prepared_as_clip_prepares_its_own() -> None:
    small = clip("tiny-vit")
    images = 100 + noise(2, 48) // 5  # no grey level is clipped
    transform = open_clip.image_transform(32, is_train=False)
    for one, image in zip(small.pixels(images), images, strict=True):
        expected = transform(Image.fromarray(image.transpose(1, 2, 0)))
        # PIL rounds to whole grey levels twice, once for rows and once for columns.
        np.testing.assert_allclose(one, expected, atol=1.25 / 255 / min(small.conventions.std))
    black_and_white = 255 * (noise(1, 48) // 128)
    assert small.pixels(black_and_white).amax() == small.pixels(np.full_like(black_and_white, 255)).amax()
    same = noise(1, 32)
    mean, std = (np.array(one)[:, None, None] for one in small.conventions[1:])
    np.testing.assert_allclose(small.pixels(same)[0], (same[0] / 255 - mean) / std, atol=1e-5)


def test_the_prompt_names_the_class_of_each_sample() -> None:
    labels = np.array([1, 0])
    assert prompts(labels, CLASSES) == ["a photo of a american bulldog", "a photo of a Abyssinian"]
    assert prompts(labels, CLASSES, "{class}, {class}!")[1] == "Abyssinian, Abyssinian!"


def test_regions_refuse_what_are_no_images_with_prompts() -> None:
    small = clip("tiny-vit")
    for images in (noise(1)[0], noise(1).astype(np.float32), noise(1).transpose(0, 2, 3, 1), noise(0)):
        with pytest.raises(ValueError, match=r"images must be uint8 of shape \(N, 3, S, S\)"):
            priors.regions(small, images, ["a cat"] * len(images))
    with pytest.raises(ValueError, match="each of the 2 images needs a prompt, got 1"):
        priors.regions(small, noise(2), ["a cat"])


# Which CLIPs


def test_other_image_encoders_are_refused() -> None:
    model = network("tiny-vit")
    model.visual = nn.Sequential(model.visual)
    with pytest.raises(UserError, match=r"encoder of mine, Sequential, can't be split.*: RN50,.* ViT-B-16,"):
        prepare(model, "mine", TOKENIZER)
    pooled = CONFIGS["tiny-vit"]["vision_cfg"] | {"pool_type": "avg"}
    with pytest.raises(UserError, match="can't be split"):
        prepare(open_clip.CLIP(16, pooled, TEXT), "pooled", TOKENIZER)
    shallow = CONFIGS["tiny-vit"]["vision_cfg"] | {"layers": 1}
    with pytest.raises(UserError, match="can't be split"):
        prepare(open_clip.CLIP(16, shallow, TEXT), "shallow", TOKENIZER)
    custom = CONFIGS["tiny-vit"]["vision_cfg"] | {"block_type": "custom"}
    with pytest.raises(UserError, match="can't be split"):
        prepare(open_clip.CLIP(16, custom, TEXT), "custom", TOKENIZER)


def test_an_encoder_that_open_clip_builds_otherwise_is_noticed() -> None:
    """Such as one whose tokens come first and its samples second."""
    model = network("tiny-vit")
    transformer = model.visual.transformer
    transformer.batch_first = False
    for block in transformer.resblocks:
        block.attn.batch_first = False
    with pytest.raises(UserError, match=r"in open_clip 3.* is not the one that is known here"):
        prepare(model, "tiny-vit", TOKENIZER)


def test_the_vocabulary_comes_with_open_clip() -> None:
    file = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(file) as content:
        assert content.readline()
    tokens = open_clip.get_tokenizer("RN50")("a photo of a cat")
    assert tokens.shape == (1, 77)
    assert tokens[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]


def test_valid_models_are_the_plain_resnets_and_vits() -> None:
    valid = valid_models()
    assert {"RN50", "RN101", "RN50x4", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-B-32-quickgelu"} <= set(valid)
    assert not {"convnext_base", "coca_ViT-B-32", "ViT-B-16-SigLIP", "roberta-ViT-B-32"} & set(valid)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["RN50", "ViT-B-16"])
def test_real_architectures_have_the_maps_that_the_documentation_says(model: str) -> None:
    small = load_clip(model, None)
    maps, _ = split(small.model.visual, small.pixels(noise(1, 224)))
    assert maps.shape[1:] == {"RN50": (2048, 7, 7), "ViT-B-16": (768, 14, 14)}[model]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_come_from_a_file(kind: str, suffix: str, tmp_path: Path, registered: None) -> None:
    model = network(kind, seed=5)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(model.state_dict(), file)
    else:
        from safetensors.torch import save_file

        save_file(model.state_dict(), file)
    loaded = load_clip(kind, file)
    for name, one in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], one), name
    assert loaded.name == kind
    assert loaded.tokenize(["a cat"]).shape == (1, 16)
    images = noise(2, loaded.size)
    np.testing.assert_array_equal(
        priors.regions(loaded, images, ["a cat"] * 2), priors.regions(clip(kind, 5), images, ["a cat"] * 2)
    )


def test_the_names_of_openai_are_understood(registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-vit-32", CONFIGS["tiny-vit"])
    assert load_clip("tiny-vit/32", None).name == "tiny-vit-32"


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("RN5", "has no such model"),
        ("hf-hub:timm/resnet50_clip.openai", "has no such model"),
        ("convnext_base", "none of open_clip's own ResNets and ViTs"),
        ("roberta-ViT-B-32", "its tokenizer would have to be fetched"),
    ],
)
def test_unknown_models_are_refused_with_those_that_are_valid(model: str, why: str) -> None:
    with pytest.raises(UserError, match=f"--clip-model .*: .*{why}.* Valid: RN50,.* ViT-B-16,"):
        load_clip(model, None)


def test_missing_weights_are_refused_with_where_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no CLIP weights in .*: download .*/timm/resnet50_clip\.openai"):
        load_clip("RN50", tmp_path / "none.pt")
    with pytest.raises(UserError, match=r"huggingface\.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K, and"):
        load_clip("ViT-B-32", tmp_path / "none.pt", tag="laion2b_s34b_b79k")


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code in a file was run",)


def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, registered: None, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.pt"
    for content in (network("tiny-vit").state_dict(), {}, [1, 2], Dangerous()):
        torch.save(content, file)
        with pytest.raises(
            UserError, match=r"does not hold weights of tiny-resnet .*take a state dictionary"
        ):
            load_clip("tiny-resnet", file)
    file.write_bytes(b"no weights")
    with pytest.raises(UserError, match="does not hold weights of tiny-resnet"):
        load_clip("tiny-resnet", file)
    assert "code in a file" not in "".join(capfd.readouterr())


def test_programs_are_refused_with_where_the_same_weights_are(tmp_path: Path, registered: None) -> None:
    file = tmp_path / "RN50.pt"
    with zipfile.ZipFile(file, "w") as archive:  # what tells a TorchScript archive from one of tensors
        archive.writestr("RN50/constants.pkl", b"")
    with pytest.raises(UserError, match=r"is a TorchScript archive.*: take a state dictionary"):
        load_clip("tiny-resnet", file)


def listed(monkeypatch: pytest.MonkeyPatch, **tags: dict[str, Any]) -> None:
    """Let open_clip list weights of the small ViT."""
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    known = {tag: {"mean": mean, "std": std, "url": "https://there"} | one for tag, one in tags.items()}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", known)


def test_activation_and_colours_are_those_of_the_published_weights(
    tmp_path: Path, registered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.pt"
    torch.save(network("tiny-vit").state_dict(), file)

    def activation(loaded: Clip) -> str:
        return type(loaded.model.visual.transformer.resblocks[0].mlp.gelu).__name__

    assert activation(load_clip("tiny-vit", file)) == "GELU"  # nothing is known of such weights
    listed(monkeypatch, openai={"quick_gelu": True}, other={"quick_gelu": True})
    assert activation(load_clip("tiny-vit", file)) == "QuickGELU"
    listed(monkeypatch, openai={"quick_gelu": True}, other={"mean": (0.5, 0.5, 0.5)})
    with pytest.raises(UserError, match=r"weights of tiny-vit differ.* --clip-tag, one of openai, other"):
        load_clip("tiny-vit", file)
    assert activation(load_clip("tiny-vit", None)) == "GELU"
    quick = load_clip("tiny-vit", file, tag="openai")
    assert activation(quick) == "QuickGELU"
    assert quick.conventions.mean == open_clip.OPENAI_DATASET_MEAN
    other = load_clip("tiny-vit", file, tag="other")
    assert (activation(other), other.conventions.mean) == ("GELU", (0.5, 0.5, 0.5))
    with pytest.raises(UserError, match=r"--clip-tag mine: .* no such weights.* Valid: openai, other"):
        load_clip("tiny-vit", file, tag="mine")
    with pytest.raises(UserError, match="It has none, so leave --clip-tag out"):
        load_clip("tiny-resnet", file, tag="openai")
    with pytest.raises(UserError, match="download https://there, and"):
        load_clip("tiny-vit", tmp_path / "none.pt", tag="openai")


def test_what_is_taken_for_granted_is_what_openai_did() -> None:
    assert Conventions() == (False, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    cfg = open_clip.get_pretrained_cfg("RN50", "openai")
    assert _conventions(open_clip, "RN50", None) == (True, cfg["mean"], cfg["std"])


def test_without_open_clip_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install 'camal-rl\[vision\]'"):
        load_clip("RN50", None)


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
        (maps(), ("a", "b", "a"), "the same name"),
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
    with pytest.raises(UserError, match=r"of 2 of 3 samples: images/cat 1\.png, images/dog\.2\.png"):
        priors.load_regions(tmp_path, NAMES)


def test_pictures_of_another_kind_are_refused(tmp_path: Path) -> None:
    names = ["a", "b"]
    write_png(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    write_png(tmp_path / "b.png", np.zeros((2, 3), np.uint8))
    with pytest.raises(UserError, match=r"of one size: .*b\.png has 3 x 2 pixels, and .*a\.png has 2 x 2"):
        priors.load_regions(tmp_path, names)
    write_png(tmp_path / "b.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(UserError, match=r"b\.png has 3 channels"):
        priors.load_regions(tmp_path, names)
    for content in (b"", b"no picture"):
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(UserError, match=r"b\.png is damaged, or no PNG file"):
            priors.load_regions(tmp_path, names)


# The study


def test_overlap_by_hand() -> None:
    """Maps at the masks' own size, so that nothing is interpolated."""
    mask = np.zeros((6, 6), np.uint8)
    mask[1:5, 1:5] = 1  # 16 pixels of 36
    two_parts = np.zeros((6, 6), np.float32)
    two_parts[1, 1:5] = 0.8  # 4 pixels of the mask
    two_parts[2, 1] = 0.7  # at the threshold, not above it
    two_parts[5, 0], two_parts[5, 1] = 1.0, 0.9  # 2 outside
    corners = np.zeros((6, 6), np.float32)
    corners[3, 3], corners[4, 4], corners[5, 5] = 1.0, 1.0, 1.0
    nothing = np.zeros((6, 6), np.float32)
    found = priors.overlap(np.stack([two_parts, corners, nothing]), np.stack([mask] * 3))
    assert list(found) == list(priors.MEASURES)
    expected = {
        "iou": [4 / 18, 2 / 17, 0],
        "iou_ceiling": [1, 1, 1],
        "covered": [4 / 16, 2 / 16, 0],
        "spurious": [2 / 6, 1 / 3, math.nan],
        "parts": [2, 1, 0],
        "pointing_game": [0, 2 / 3, 0],
        "relevance_mass": [3.9 / 5.8, 2 / 3, 0],
        "mask_share": [16 / 36] * 3,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


def test_overlap_takes_maps_of_a_lower_resolution() -> None:
    heat = np.random.default_rng(0).random((3, 4, 4), np.float32)
    masks = np.zeros((3, 32, 32), np.uint8)
    masks[:, 8:20, 4:30] = 1
    done: list[int] = []
    found = priors.overlap(heat, masks, done.append)
    assert done == [1, 1, 1]
    np.testing.assert_array_equal(found["iou"], metrics.iou(heat, masks))
    region = metrics.upsample(heat, (32, 32)) > 0.7
    np.testing.assert_allclose(found["covered"], (region & (masks > 0)).sum((1, 2)) / masks.sum((1, 2)))
    assert (found["iou_ceiling"] < 1).all()


def samples(count: int = 8, size: int = 32) -> Samples:
    """Squares on noise; the last sample has no target."""
    masks = np.zeros((count, size, size), np.uint8)
    for index, mask in enumerate(masks[:-1]):
        mask[4 + index : 20, 4:20] = 1
    labels = np.arange(count) % 2
    names = tuple(f"images/{index}" for index in range(count))
    return Samples(noise(count, size), masks, labels.astype(np.int64), CLASSES, names, {})


def test_the_study_counts_what_can_be_compared() -> None:
    data = samples(4, 4 * 4)
    heat = np.zeros((4, 4, 4), np.float32)
    heat[0, 1, 1] = heat[1, 0, 0] = heat[3, 0, 0] = 1  # inside, outside, without a target
    done: list[int] = []
    files = priors.study(data, heat, {"data": "pet", "source": "a test"}, done.append)
    assert set(files) == {"study.json", "study.md", "regions.png"}
    content = json.loads(files["study.json"])
    assert (content["samples"], content["samples_without_target"], sum(done)) == (3, 1, 3)
    assert content["dead_map_fraction"] == pytest.approx(1 / 3)
    assert content["tau"] == 0.7
    assert content["map_size"] == [4, 4]
    by_sample = content["by_sample"]
    assert by_sample["name"] == ["images/0", "images/1", "images/2"]
    assert by_sample["pointing_game"] == [1, 0, 0]
    assert by_sample["spurious"] == [0, 1, None]
    assert content["measures"]["pointing_game"] == {
        "mean": pytest.approx(1 / 3),
        "standard_deviation": pytest.approx(math.sqrt(1 / 3)),
        "samples": 3,
    }
    assert content["measures"]["spurious"]["samples"] == 2
    table = files["study.md"].decode()
    assert "| Pointing game: the map's peak is in the mask | 0.333 | 0.577 | 3 |" in table
    assert "3 samples of pet with a mask, 1 without one left out" in table
    assert "33.3 % of the maps are zero everywhere" in table
    assert "maps of 4 x 4 from a test" in table


def test_the_study_s_picture_goes_from_the_best_to_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    captions: list[str] = []
    draw = priors.media.attention_strip

    def noted(frame: np.ndarray, mask: np.ndarray, heats: Any, caption: str, *more: Any) -> np.ndarray:
        captions.append(caption)
        return draw(frame, mask, heats, caption, *more)

    monkeypatch.setattr(priors.media, "attention_strip", noted)
    data = samples(9)
    heat = np.zeros((9, 32, 32), np.float32)
    for index, one in enumerate(heat):
        one[4:20, 4 : 6 + index] = 1
    files = priors.study(data, heat, {"data": "pet", "source": "a test"}, lambda _: None)
    content = json.loads(files["study.json"])
    order = sorted(range(8), key=lambda index: -content["by_sample"]["iou"][index])
    assert len(captions) == priors.PICTURED
    assert captions[0].startswith(f"images/{order[0]} (")
    assert captions[-1].startswith(f"images/{order[-1]} (")
    shown = [float(caption.split("IoU ")[1].split(",")[0]) for caption in captions]
    assert shown == sorted(shown, reverse=True)
    picture = cv2.imdecode(np.frombuffer(files["regions.png"], np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[0] > 6 * 160  # enlarged: at 32 pixels no caption could be read


def test_one_sample_has_no_spread_and_none_can_not_be_compared() -> None:
    data = samples(2)
    heat = np.zeros((2, 2, 2), np.float32)
    files = priors.study(data, heat, {"data": "pet", "source": "a test"}, lambda _: None)
    measures = json.loads(files["study.json"])["measures"]
    assert measures["iou"] == {"mean": 0, "standard_deviation": None, "samples": 1}
    assert measures["spurious"] == {"mean": None, "standard_deviation": None, "samples": 0}
    row = "| Share of the region outside the mask | \N{EN DASH} | \N{EN DASH} | 0 |"
    assert row in files["study.md"].decode()
    with pytest.raises(UserError, match="no sample has a mask"):
        priors.study(samples(1), heat[:1], {"data": "pet", "source": "a test"}, lambda _: None)


# The command


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch, registered: None) -> Samples:
    data = shapes.generate(count=12, image_size=32)
    monkeypatch.setattr(datasets, "load", lambda *_: data)
    return data


def command(*options: str) -> int:
    return priors.main(priors.parse_args(["--device", "cpu", "--image-size", "32", *options]))


@pytest.mark.parametrize("kind", ["tiny-resnet", "tiny-vit"])
def test_the_command_makes_regions_and_the_study(
    kind: str, small_data: Samples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, output, folder = tmp_path / "weights.pt", tmp_path / "made" / "regions.npz", tmp_path / "study"
    torch.save(network(kind).state_dict(), weights)
    options = ["--clip-model", kind, "--clip-weights", str(weights), "--prompt", "a {class}"]
    assert command(*options, "--output", str(output), "--study", str(folder), "--batch-size", "5") == 0
    printed = capsys.readouterr()
    assert f"Regions of 12 images from CLIP {kind}, weights weights.pt." in printed.out
    assert str(output) in printed.out
    assert "12/12" in printed.err
    loaded = priors.load_regions(output, small_data.names)
    texts = prompts(small_data.labels, small_data.classes, "a {class}")
    expected = priors.regions(clip(kind), small_data.images, texts)
    np.testing.assert_allclose(loaded, expected, atol=1e-4)
    content = json.loads((folder / "study.json").read_text())
    assert (content["data"], content["prompt"], content["samples"]) == ("shapes", "a {class}", 12)

    again = tmp_path / "again"
    assert command("--regions", str(output), "--study", str(again)) == 0
    same = json.loads((again / "study.json").read_text())
    assert same["by_sample"] == content["by_sample"]
    assert same["source"] == str(output)
    assert (again / "regions.png").read_bytes() == (folder / "regions.png").read_bytes()


def test_regions_are_of_as_many_shapes_as_asked_for(tmp_path: Path, registered: None) -> None:
    options = ["--clip-model", "tiny-vit", "--clip-weights", "none", "--output", str(tmp_path / "a.npz")]
    assert command(*options, "--samples", "7") == 0
    names = shapes.generate(count=8, image_size=32).names
    assert len(priors.load_regions(tmp_path / "a.npz", names[:7])) == 7
    with pytest.raises(UserError, match="lacks the regions of 1 of 8"):
        priors.load_regions(tmp_path / "a.npz", names)
    assert Args().samples == SHAPES


def test_random_weights_are_called_what_they_are(
    small_data: Samples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--clip-model", "tiny-vit", "--clip-weights", "none", "--study", str(tmp_path)]
    assert command(*options) == 0
    assert "random weights, so the regions mean nothing" in capsys.readouterr().out
    assert "random weights, so the regions mean nothing" in (tmp_path / "study.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to do: give --output FILE"),
        (["--output", "a.npz"], "--clip-weights FILE is missing"),
        (["--output", "a.npz", "--regions", "b.npz"], "give them with --study only"),
        (["--study", "a", "--regions", "b", "--clip-weights", "c"], "give them with --study only"),
        (["--output", "a.png", "--clip-weights", "none"], "a name that ends in .npz"),
        (["--output", "a.npz", "--clip-weights", "none", "--prompt", "a cat"], "write {class} where"),
        (["--output", "a.npz", "--clip-weights", "none", "--batch-size", "0"], "--batch-size 0: give"),
        (["--output", "a.npz", "--clip-weights", "b.pt"], "no CLIP weights in b.pt"),
        (["--study", "a", "--regions", "b.npz"], "there are no regions in b.npz"),
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
    assert command("--clip-weights", "none", "--study", str(tmp_path / "file" / "study")) == 2
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


def test_the_command_knows_every_data_set() -> None:
    data = get_type_hints(Args)["data"]
    assert get_args(data) == datasets.DATA


def test_help_needs_no_torch(tmp_path: Path) -> None:
    for name in ("torch", "open_clip", "cv2"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    done = run("-m", "camal_rl.vision.priors", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for option in ("--data", "--clip-model", "--clip-weights", "--regions", "--output", "--study"):
        assert option in done.stdout
    told = " ".join(done.stdout.replace("│", " ").split())
    assert (
        "--clip-weights FILE|none its trained weights; none: random ones, to try out the command --" in told
    )
    assert str(ROOT) not in done.stdout
