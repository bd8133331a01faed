"""Small random CLIPs of both kinds: how they are split, which are refused, and where weights come from."""

import gzip
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from camal_rl.errors import UserError
from camal_rl.vision.clip import (
    Clip,
    Conventions,
    _conventions,
    load_clip,
    prepare,
    prompts,
    split,
    valid_models,
)

pytest.importorskip("open_clip")

import open_clip
from small_clips import CLASSES, CONFIGS, KINDS, TOKENIZER, Dangerous, clip, hooked, network, noise

from camal_rl.vision import priors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_clips_only")]


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


@pytest.mark.parametrize("kind", KINDS)
def test_feature_maps_are_what_attention_takes(kind: str) -> None:
    small = clip(kind)
    pixels = small.pixels(noise(2))
    taken, _ = hooked(small, pixels)
    maps, _ = split(small.model.visual, pixels)
    if "vit" in kind:
        taken = taken[:, 1:].transpose(1, 2).unflatten(2, small.model.visual.grid_size)
    assert torch.equal(maps, taken)


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
    assert prompts(labels, CLASSES, "a photo of a {class}") == [
        "a photo of a american bulldog",
        "a photo of a Abyssinian",
    ]
    assert prompts(labels, CLASSES, "{class}, {class}!")[1] == "Abyssinian, Abyssinian!"


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


@pytest.mark.parametrize("model", ["RN50", "ViT-B-16"])
def test_real_architectures_have_the_maps_that_the_documentation_says(model: str) -> None:
    small = load_clip(model, None)
    maps, _ = split(small.model.visual, small.pixels(noise(1, 224)))
    assert maps.shape[1:] == {"RN50": (2048, 7, 7), "ViT-B-16": (768, 14, 14)}[model]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_come_from_a_file(kind: str, suffix: str, tmp_path: Path) -> None:
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


def test_the_names_of_openai_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-vit-32", CONFIGS["tiny-vit"])
    assert load_clip("tiny-vit/32", None).name == "tiny-vit-32"


@pytest.mark.parametrize(
    "model", ["RN5", "hf-hub:timm/resnet50_clip.openai", "convnext_base", "roberta-ViT-B-32"]
)
def test_unknown_models_are_refused_with_those_that_are_valid(model: str) -> None:
    with pytest.raises(
        UserError, match=r"--clip-model .*: .*has no such model, or .* Valid: RN50,.* ViT-B-16,"
    ):
        load_clip(model, None)


def test_missing_weights_are_refused_with_where_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no CLIP weights in .*: download .*/timm/resnet50_clip\.openai"):
        load_clip("RN50", tmp_path / "none.pt")
    with pytest.raises(UserError, match=r"huggingface\.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K, and"):
        load_clip("ViT-B-32", tmp_path / "none.pt", tag="laion2b_s34b_b79k")


def test_files_that_do_not_fit_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
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


def test_programs_are_refused_with_where_the_same_weights_are(tmp_path: Path) -> None:
    file = tmp_path / "RN50.pt"
    with zipfile.ZipFile(file, "w") as archive:  # what tells a TorchScript archive from one of tensors
        for name in ("constants.pkl", "data.pkl", "version"):
            archive.writestr(f"RN50/{name}", b"3")
    with pytest.raises(UserError, match=r"TorchScript archive.*: take a state dictionary"):
        load_clip("tiny-resnet", file)


def listed(monkeypatch: pytest.MonkeyPatch, **tags: dict[str, Any]) -> None:
    """Let open_clip list weights of the small ViT."""
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    known = {tag: {"mean": mean, "std": std, "url": "https://there"} | one for tag, one in tags.items()}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", known)


def test_activation_and_colours_are_those_of_the_published_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert _conventions("RN50", {"openai": cfg}, None) == (True, cfg["mean"], cfg["std"])


def test_without_open_clip_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install 'camal-rl\[vision\]'"):
        load_clip("RN50", None)
