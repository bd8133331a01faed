"""The six classifiers: what they compute, where they are split, and what attention's gradients reach."""

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from camal_rl.errors import UserError
from camal_rl.masks import mask_weights

pytest.importorskip("torchvision")

from camal_rl.vision import models, train
from camal_rl.vision.models import ARCHITECTURES, Classifier, Output, class_cam
from camal_rl.vision.processes import Group

pytestmark = pytest.mark.slow

MAPS = {
    "resnet18": (512, 7, 7),
    "convnext_t": (768, 7, 7),
    "efficientnet_b0": (1280, 7, 7),
    "vit_b_16": (768, 14, 14),
    "swin_v2_t": (768, 7, 7),
    "maxvit_t": (512, 7, 7),
    "mobilenet_v2": (1280, 7, 7),
}

SLOPELESS = {
    "resnet18": {"fc.bias"},
    "convnext_t": {"classifier.0.bias", "classifier.2.bias"},
    "efficientnet_b0": {"classifier.1.bias"},
    "vit_b_16": {"encoder.ln.bias", "heads.head.bias"},
    "swin_v2_t": {"head.bias"},
    "maxvit_t": set(),
    "mobilenet_v2": {"classifier.1.bias"},
}
"""Biases behind the feature maps that the logits have whatever the maps are, so that dy/dA depends on none of
them. MaxViT's last layer has none."""


def made(name: str, num_classes: int, image_size: int = 224) -> Classifier:
    """In evaluation mode; a ViT with two of its twelve blocks, and a last layer that is not zero."""
    torch.manual_seed(0)
    model = Classifier(name, num_classes, image_size).eval()
    if name == "vit_b_16":
        model.network.encoder.layers = model.network.encoder.layers[:2]  # type: ignore[union-attr, index]
        nn.init.normal_(model.network.heads.head.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    return model


def shortened(name: str, num_classes: int, image_size: int) -> Classifier:
    """With fewer of the blocks that follow one another and are alike."""
    model = made(name, num_classes, image_size)
    network: Any = model.network
    if name == "maxvit_t":
        for stage in network.blocks:
            stage.layers = stage.layers[:1]
    if name in ("convnext_t", "swin_v2_t"):
        network.features[5] = network.features[5][:2]
    return model


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Classifier:
    return made(request.param, 5)


def test_the_two_parts_compute_what_torchvision_computes(model: Classifier, images: torch.Tensor) -> None:
    with torch.no_grad():
        output = model(images)
        torch.testing.assert_close(output.logits, model.network(images), rtol=1e-4, atol=1e-5)
    assert output.feature_maps.shape == (2, *MAPS[model.name])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_training_step_with_camal_and_its_gradient_checked(name: str) -> None:
    """dA of one pass is that of finite differences; CAMAL's gradient reaches what attention is made of."""
    size = 224 if name == "maxvit_t" else 64
    model = shortened(name, 5, size)
    images = torch.randn(2, 3, size, size)
    labels = torch.tensor([1, 3])
    features = model.features(images)
    maps = features.maps.detach().requires_grad_()
    target = model.head(features._replace(maps=maps)).gather(1, labels[:, None]).squeeze(1)
    (gradient,) = torch.autograd.grad(target.sum(), maps, create_graph=True)
    # Along one direction for each sample, in float64 because the differences are small.
    direction = torch.randn(maps.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = copy.deepcopy(model).double()
        rest = tuple(one.double() for one in features.rest)
        ends = [
            exact.head(models.Features(maps.double() + step * direction.double(), rest))
            .gather(1, labels[:, None])
            .squeeze(1)
            for step in (1e-5, -1e-5)
        ]
        expected = (ends[0] - ends[1]) / 2e-5
    torch.testing.assert_close(
        (gradient.detach() * direction).flatten(1).sum(dim=1).double(), expected, rtol=2e-3, atol=1e-4
    )

    # As in training: with dropout, stochastic depth and the batch's statistics.
    targets = np.zeros((4, size, size), np.uint8)
    targets[:, size // 4 : size // 2, size // 3 : size // 2] = 1
    batch = train.Batch(
        torch.randint(256, (4, 3, size, size), dtype=torch.uint8),
        torch.tensor([1, 3, 0, 2]),
        torch.from_numpy(mask_weights(targets, (maps.shape[2], maps.shape[3]))),
        torch.full((4,), 1 / 4),
        torch.tensor(4),
    )
    terms = train.losses(model.train(), batch, train.Args(), "fp32")
    terms["camal_loss"].backward(retain_graph=True)
    reached = {key for key, one in model.named_parameters() if one.grad is not None and bool(one.grad.any())}
    assert {key for key, _ in model.named_parameters()} - reached == {
        f"network.{key}" for key in SLOPELESS[name]
    }
    before = {key: one.detach().clone() for key, one in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
    found = train.update(model, optimizer, batch, train.Args(), Group(), "fp32")
    assert all(value.isfinite() for value in found.values())
    assert all(bool(one.grad.isfinite().all()) for one in model.parameters() if one.grad is not None)
    assert [key for key, one in model.named_parameters() if torch.equal(one, before[key])] == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_camals_gradient_passes_through_maps_and_their_weights(name: str) -> None:
    """The loss on attention alone, by float64 differences along a random direction of all parameters."""
    size, count = (224, 1) if name == "maxvit_t" else (64, 2)
    model = shortened(name, 3, size)
    map_size = models.map_size(model, size)
    model.double()
    # At first some ReLUs see exactly 0, where they have no slope, and EfficientNet's maps are 1e-13.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    for norm in models.batch_norms(model):
        norm.train()
    images = torch.randn(count, 3, size, size, dtype=torch.float64)
    labels = torch.tensor([2, 0])[:count]
    costs = torch.randn(count, *map_size, dtype=torch.float64)

    def loss() -> torch.Tensor:
        return (class_cam(model(images), labels) * costs).sum()

    gradients = torch.autograd.grad(loss(), list(model.parameters()), allow_unused=True)
    directions = [torch.randn_like(one) for one in model.parameters()]
    expected = sum(float((a * b).sum()) for a, b in zip(gradients, directions, strict=True) if a is not None)
    ends = []
    for step in (1e-9, -1e-9):  # so that few of MobileNet's ReLU6 are passed at their kinks
        with torch.no_grad():
            for parameter, direction in zip(model.parameters(), directions, strict=True):
                parameter += step * direction
        ends.append(loss().item())
        with torch.no_grad():
            for parameter, direction in zip(model.parameters(), directions, strict=True):
                parameter -= step * direction
    assert (ends[0] - ends[1]) / 2e-9 == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def vit() -> Classifier:
    """For images of 64 pixels; not to be changed, and made once because that takes long."""
    torch.manual_seed(0)
    return Classifier("vit_b_16", 3, image_size=64).eval()


def test_vits_grid_has_no_class_token_and_patches_where_they_were(vit: Classifier) -> None:
    model = vit
    images = torch.randn(1, 3, 64, 64)
    seen = []
    layer = model.network.encoder.layers[-1].ln_1  # type: ignore[union-attr, index]
    handle = layer.register_forward_hook(lambda module, given, result: seen.append(result))
    with torch.no_grad():
        features = model.features(images)
    handle.remove()
    (tokens,) = seen
    assert tokens.shape == (1, 17, 768)
    assert features.maps.shape == (1, 768, 4, 4)
    for row in range(4):
        for column in range(4):
            assert torch.equal(features.maps[0, :, row, column], tokens[0, 1 + 4 * row + column])


def test_swins_channels_come_first() -> None:
    torch.manual_seed(0)
    model = Classifier("swin_v2_t", 3, image_size=64).eval()
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 64)
        tokens = model.network.norm(model.network.features(images))  # type: ignore[operator]
        assert tokens.shape == (1, 2, 2, 768)
        assert torch.equal(model.features(images).maps, tokens.permute(0, 3, 1, 2))


@pytest.mark.parametrize("method", models.CAM_METHODS)
def test_attention_of_a_linear_head_is_the_weighted_sum_of_its_maps(method: str) -> None:
    """Pooling and one Linear: dy/dA is the class's row over the number of places, so Eq. 3 is known."""
    torch.manual_seed(0)
    model = Classifier("resnet18", 2, image_size=64).eval()
    with torch.no_grad():
        features = model.features(torch.randn(1, 3, 64, 64))
    maps = features.maps.requires_grad_()
    output = Output(model.head(models.Features(maps)), maps)
    row = model.network.fc.weight[1] / 4  # type: ignore[union-attr, index]
    if method == "diffgradcam":  # with two classes the contrast is the difference of the logits
        row = row - model.network.fc.weight[0] / 4  # type: ignore[union-attr, index]
    if method == "layercam":
        row = row.relu()
    signed = (row[None, :, None, None] * maps).mean(dim=1)
    expected = signed.abs() if method == "magnitude" else signed.relu()
    found = class_cam(output, torch.tensor([1]), method, create_graph=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_autocast_leaves_the_head_and_attention_in_float32() -> None:
    model = Classifier("resnet18", 3, image_size=64).eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.randn(2, 3, 64, 64))
        assert class_cam(output, torch.tensor([0, 1])).dtype == torch.float32
    assert output.logits.dtype == output.feature_maps.dtype == torch.float32


@pytest.mark.parametrize(("name", "size"), [("resnet18", 100), ("maxvit_t", 128), ("vit_b_16", 40)])
def test_a_size_of_images_that_does_not_fit_is_refused(name: str, size: int) -> None:
    with pytest.raises(UserError, match="multiple of"):
        Classifier(name, 3, image_size=size)


def test_frozen_batch_norm_keeps_samples_apart() -> None:
    torch.manual_seed(0)
    model = Classifier("resnet18", 3, image_size=64)
    images = torch.randn(3, 3, 64, 64)
    model.train()
    with torch.no_grad():
        assert not torch.allclose(model(images).logits[:2], model(images[:2]).logits, atol=1e-3)
        models.freeze_batch_norm(model)
        torch.testing.assert_close(model(images).logits[:2], model(images[:2]).logits)
    assert model.training


def test_images_are_normalized_by_imagenets_mean() -> None:
    images = torch.tensor([255, 0, 51], dtype=torch.uint8)[None, :, None, None]
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    torch.testing.assert_close(models.normalize(images).flatten(), torch.tensor(expected))


def test_weights_of_a_file_are_loaded_but_for_a_last_layer_of_other_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = Classifier("resnet18", 1000, image_size=64)
    torch.save(source.network.state_dict(), tmp_path / "weights.pth")
    model = Classifier("resnet18", 3, image_size=64)
    last = model.network.fc.weight.detach().clone()  # type: ignore[union-attr, operator]
    models.load_weights(model, str(tmp_path / "weights.pth"))
    assert torch.equal(model.network.conv1.weight, source.network.conv1.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(model.network.fc.weight, last)  # type: ignore[union-attr, arg-type]


def test_weights_may_have_the_names_and_entries_that_torchvision_once_gave_them(
    vit: Classifier, tmp_path: Path
) -> None:
    """torchvision renames ViT's entries by a number that newer files hold and older ones lack."""
    source = vit
    old = OrderedDict(
        (key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."), one)
        for key, one in source.network.state_dict().items()
    )
    assert any("linear_2" in key for key in old)
    torch.save(old, tmp_path / "vit.pth")
    model = Classifier("vit_b_16", 3, image_size=64)
    models.load_weights(model, str(tmp_path / "vit.pth"))
    for key, one in source.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[key], one), key

    source = Classifier("resnet18", 3, image_size=64)
    older = OrderedDict(
        (key, one) for key, one in source.network.state_dict().items() if "num_batches" not in key
    )
    torch.save(older, tmp_path / "resnet.pth")
    model = Classifier("resnet18", 3, image_size=64)
    models.load_weights(model, str(tmp_path / "resnet.pth"))
    assert torch.equal(model.network.conv1.weight, source.network.conv1.weight)  # type: ignore[union-attr, arg-type]


def test_weights_of_other_names_are_read_in_their_order_where_all_shapes_fit(tmp_path: Path) -> None:
    """As of a MobileNetV2 whose layers another program has named, without its last layer."""
    source = Classifier("mobilenet_v2", 3, image_size=64).network
    state = [one for name, one in source.state_dict().items() if not name.startswith("classifier")]
    named = {f"layer{number}": torch.rand(one.shape).to(one.dtype) for number, one in enumerate(state)}
    torch.save(named, tmp_path / "weights.pth")
    model = Classifier("mobilenet_v2", 3, image_size=64)
    last = model.network.classifier[1].weight.detach().clone()  # type: ignore[union-attr, index]
    models.load_weights(model, str(tmp_path / "weights.pth"))
    loaded = list(model.network.state_dict().values())
    assert all(torch.equal(one, theirs) for one, theirs in zip(loaded, named.values(), strict=False))
    assert torch.equal(model.network.classifier[1].weight, last)  # type: ignore[union-attr, index]
    named["layer0"] = torch.rand(1)
    torch.save(named, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"don't fit mobilenet_v2"):
        models.load_weights(model, str(tmp_path / "weights.pth"))


def test_a_vits_positions_are_interpolated_to_the_size_of_images(vit: Classifier, tmp_path: Path) -> None:
    # 4 x 4 positions that rise evenly from left to right, after the class token's.
    rising = torch.tensor([0.0, *[0, 1, 2, 3] * 4])[None, :, None].expand(-1, -1, 768)
    torch.save(vit.network.state_dict() | {"encoder.pos_embedding": rising}, tmp_path / "weights.pth")
    model = Classifier("vit_b_16", 3, image_size=112)
    models.load_weights(model, str(tmp_path / "weights.pth"))
    grid = model.network.encoder.pos_embedding[0, 1:, 0].unflatten(0, (7, 7)).detach()  # type: ignore[union-attr, index]
    torch.testing.assert_close(grid[:, [0, 6]], torch.tensor([[0.0, 3.0]]).expand(7, -1))
    assert bool((grid.diff(dim=1) > 0).all())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = Classifier("resnet18", 3, image_size=64)
    with pytest.raises(UserError, match="no such file"):
        models.load_weights(model, str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(UserError, match="not a state dictionary"):
        models.load_weights(model, str(tmp_path / "text.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="no state dictionary"):
        models.load_weights(model, str(tmp_path / "list.pth"))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"don't fit resnet18 .*: give the state dictionary"):
        models.load_weights(model, str(tmp_path / "other.pth"))


def test_imagenet_weights_that_cannot_be_fetched_are_told_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"resnet18-\w+\.pth .*--weights none"):
        models.load_weights(Classifier("resnet18", 3, image_size=64), "imagenet")
