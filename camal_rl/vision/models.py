"""The six classifiers of the paper, from torchvision, each split at the layer whose attention is supervised.

What is before the split turns images into feature maps A, (B, K, h, w), and what is after it turns these into
logits, so attention needs neither hooks nor a backward pass through more than what is after (Sec. 3.3):

=============== ===================================================== ==================
model           feature maps                                          K, h, w at 224
=============== ===================================================== ==================
resnet18        output of the last stage                              512, 7, 7
convnext_t      output of the last stage                              768, 7, 7
efficientnet_b0 output of the last convolution                        1280, 7, 7
vit_b_16        patch tokens that enter the last block's attention    768, 14, 14
swin_v2_t       normalised tokens of the last stage, channels first   768, 7, 7
maxvit_t        output of the last block                              512, 7, 7
=============== ===================================================== ==================
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from camal_rl import attention
from camal_rl.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue, by which the paper's images are normalised."""


class Features(NamedTuple):
    """What the first part of a classifier gives."""

    maps: Tensor  # A, (B, K, h, w), float32
    rest: tuple[Tensor, ...] = ()  # what else the second part needs, which has no place in the image


class Output(NamedTuple):
    """What a classifier gives."""

    logits: Tensor  # (B, classes)
    feature_maps: Tensor  # A, (B, K, h, w), from which the logits were computed


@dataclass(frozen=True)
class Architecture:
    """One of torchvision's networks, and where it is split."""

    build: Callable[..., nn.Module]
    weights: Any  # torchvision's enumeration of trained weights
    last_layer: str  # the Linear that tells the classes apart
    learning_rate: float  # Table 7
    features: Callable[[Any, Tensor], Features]
    head: Callable[[Any, Features], Tensor]
    multiple: int  # sides of the images are multiples of it
    size_option: str | None = None  # how it is told the size of images, where it is built for one


def _stages(*names: str) -> Callable[[Any, Tensor], Features]:
    """Parts of a network one after the other; the last one's output are the feature maps."""

    def features(network: Any, images: Tensor) -> Features:
        for name in names:
            images = network.get_submodule(name)(images)
        return Features(images)

    return features


def _pooled(*names: str) -> Callable[[Any, Features], Tensor]:
    """Parts that feature maps go through to the logits, flattened before the last of them."""

    def head(network: Any, features: Features) -> Tensor:
        values = features.maps
        for name in names[:-1]:
            values = network.get_submodule(name)(values)
        logits: Tensor = network.get_submodule(names[-1])(values.flatten(1))
        return logits

    return head


def _maxvit_features(network: Any, images: Tensor) -> Features:
    maps = network.stem(images)
    for block in network.blocks:
        maps = block(maps)
    return Features(maps)


def _whole_classifier(network: Any, features: Features) -> Tensor:
    logits: Tensor = network.classifier(features.maps)
    return logits


def _convnext_head(network: Any, features: Features) -> Tensor:
    logits: Tensor = network.classifier(network.avgpool(features.maps))
    return logits


def _swin_features(network: Any, images: Tensor) -> Features:
    tokens = network.norm(network.features(images))  # (B, h, w, K)
    return Features(network.permute(tokens))


def _vit_features(network: Any, images: Tensor) -> Features:
    """Up to the last block's attention: patch tokens as a grid, without the class token (Sec. 3.3).

    Later layers are no use: only the class token is read at the end, so that patch tokens after the last
    attention change nothing.
    """
    patches = network.conv_proj(images).flatten(2).transpose(1, 2)  # (B, h * w, K)
    tokens = torch.cat([network.class_token.expand(len(images), -1, -1), patches], dim=1)
    tokens = network.encoder.dropout(tokens + network.encoder.pos_embedding)
    for block in network.encoder.layers[:-1]:
        tokens = block(tokens)
    normalised = network.encoder.layers[-1].ln_1(tokens)
    side = math.isqrt(patches.shape[1])
    maps = normalised[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    return Features(maps, (normalised[:, :1], tokens))


def _vit_head(network: Any, features: Features) -> Tensor:
    class_token, residual = features.rest
    block = network.encoder.layers[-1]
    tokens = torch.cat([class_token, features.maps.flatten(2).transpose(1, 2)], dim=1)
    # The faster kernels of attention have no second derivative, which the loss on attention needs.
    with sdpa_kernel(SDPBackend.MATH):
        attended, _ = block.self_attention(tokens, tokens, tokens, need_weights=False)
    tokens = block.dropout(attended) + residual
    tokens = tokens + block.mlp(block.ln_2(tokens))
    logits: Tensor = network.heads(network.encoder.ln(tokens)[:, 0])
    return logits


_RESNET_STAGES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")

ARCHITECTURES = {
    "resnet18": Architecture(
        models.resnet18,
        models.ResNet18_Weights.IMAGENET1K_V1,
        "fc",
        1e-3,
        _stages(*_RESNET_STAGES),
        _pooled("avgpool", "fc"),
        32,
    ),
    "convnext_t": Architecture(
        models.convnext_tiny,
        models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1,
        "classifier.2",
        1e-3,
        _stages("features"),
        _convnext_head,
        32,
    ),
    "efficientnet_b0": Architecture(
        models.efficientnet_b0,
        models.EfficientNet_B0_Weights.IMAGENET1K_V1,
        "classifier.1",
        1e-3,
        _stages("features"),
        _pooled("avgpool", "classifier"),
        32,
    ),
    "vit_b_16": Architecture(
        models.vit_b_16,
        models.ViT_B_16_Weights.IMAGENET1K_V1,
        "heads.head",
        1e-4,
        _vit_features,
        _vit_head,
        16,
        "image_size",
    ),
    "swin_v2_t": Architecture(
        models.swin_v2_t,
        models.Swin_V2_T_Weights.IMAGENET1K_V1,
        "head",
        1e-4,
        _swin_features,
        _pooled("avgpool", "head"),
        32,
    ),
    "maxvit_t": Architecture(
        models.maxvit_t,
        models.MaxVit_T_Weights.IMAGENET1K_V1,
        "classifier.5",
        1e-4,
        _maxvit_features,
        _whole_classifier,
        224,
        "input_size",
    ),
}
"""By the name that `--model` takes, in the order of the paper's tables."""


class Classifier(nn.Module):
    """One of ARCHITECTURES for images of so many classes, with random weights.

    Args:
        name: of the architecture.
        num_classes: how many.
        image_size: pixels along each side.

    Raises:
        UserError: a size of images that the architecture can't take.
    """

    def __init__(self, name: str, num_classes: int, image_size: int = 224) -> None:
        super().__init__()
        self.check(name, image_size)
        self.name = name
        self.architecture = ARCHITECTURES[name]
        options: dict[str, Any] = {"num_classes": num_classes}
        if self.architecture.size_option == "input_size":
            options["input_size"] = (image_size, image_size)
        elif self.architecture.size_option:
            options[self.architecture.size_option] = image_size
        self.network = self.architecture.build(**options)
        # Faster on a CPU, and what a GPU's tensor cores want.
        nn.utils.convert_conv2d_weight_memory_format(self, torch.channels_last)

    @staticmethod
    def check(name: str, image_size: int) -> None:
        """Refuse a size of images that an architecture can't take.

        Raises:
            UserError: with the sizes that it takes.
        """
        multiple = ARCHITECTURES[name].multiple
        if image_size < 32 or image_size % multiple:
            raise UserError(
                f"{name} takes images whose sides are a multiple of {multiple} pixels, not {image_size}."
            )

    def features(self, images: Tensor) -> Features:
        """Normalised images, (B, 3, S, S) -> feature maps. Runs in the precision of `torch.autocast`."""
        found = self.architecture.features(self.network, images)
        return Features(_widened(found.maps), tuple(map(_widened, found.rest)))

    def head(self, features: Features) -> Tensor:
        """Feature maps -> logits, (B, classes), in float32 at least: attention depends on it."""
        with torch.autocast(features.maps.device.type, enabled=False):
            return self.architecture.head(self.network, features)

    def forward(self, images: Tensor) -> Output:
        """Normalised images, (B, 3, S, S)."""
        features = self.features(images)
        return Output(self.head(features), features.maps)


def _widened(values: Tensor) -> Tensor:
    """At least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def cam(output: Output, classes: Tensor, method: str = "gradcam", *, create_graph: bool = True) -> Tensor:
    """Attention for these classes, int64 (B,), in one pass for the batch (Eq. 4): (B, h, w), not normalised.

    Methods are those of `attention.METHODS` which need the logits at these feature maps only.
    """
    with torch.autocast(output.logits.device.type, enabled=False):
        if method == "diffgradcam":
            return attention.class_activation_map(
                output.feature_maps, output.logits, method, classes=classes, create_graph=create_graph
            )
        target = output.logits.gather(1, classes[:, None]).squeeze(1)
        return attention.class_activation_map(output.feature_maps, target, method, create_graph=create_graph)


CAM_METHODS = tuple(name for name in attention.METHODS if name not in attention.RESAMPLING_METHODS)
"""What `cam` takes: the others evaluate the network at other feature maps, sixteen times a step."""


def normalise(images: Tensor) -> Tensor:
    """uint8 RGB (B, 3, H, W) -> float32, by ImageNet's mean and standard deviation."""
    mean = torch.tensor(MEAN, device=images.device)[:, None, None] * 255
    std = torch.tensor(STD, device=images.device)[:, None, None] * 255
    return (images - mean) / std


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """All its BatchNorms."""
    return [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]


def freeze_batch_norm(model: nn.Module) -> None:
    """Let every BatchNorm use its running statistics, so that no sample's features depend on another's.

    To be called after each `model.train()`, which undoes it. Its weight and bias are trained as before.
    """
    for norm in batch_norms(model):
        norm.eval()


def load_weights(model: Classifier, weights: str) -> None:
    """Start from trained weights: `imagenet`, `none`, or a file of a state dictionary.

    The last layer stays random where the file's has other classes. Entries that torchvision has renamed since
    the file was written are known to it, and a ViT's positions are interpolated to the size of images.

    Raises:
        UserError: no such file, one that doesn't fit, or ImageNet's can't be fetched.
    """
    if weights == "none":
        return
    state = _imagenet(model) if weights == "imagenet" else _from_file(Path(weights))
    network: Any = model.network
    expected = network.state_dict()
    fits: Any = OrderedDict(state)
    fits._metadata = getattr(state, "_metadata", None)  # by which torch knows entries that were renamed since

    def misshapen(name: str) -> bool:
        return name in fits and name in expected and fits[name].shape != expected[name].shape

    last = {f"{model.architecture.last_layer}.{kind}" for kind in ("weight", "bias")}
    for name in filter(misshapen, last):
        del fits[name]
    if model.name == "vit_b_16" and misshapen("encoder.pos_embedding"):
        with suppress(ValueError):  # not positions, which is told below
            fits = interpolate_embeddings(network.image_size, network.patch_size, fits)
    misfits = list(filter(misshapen, state))
    for name in misfits:
        del fits[name]
    absent, unknown = network.load_state_dict(fits, strict=False)
    misfits += sorted({*absent, *unknown} - last - set(misfits))
    if misfits:
        raise UserError(
            f"--weights {weights} don't fit {model.name}: {len(misfits)} entries differ, such as "
            f"{misfits[0]}. Give the state dictionary of torchvision's {model.architecture.build.__name__}."
        )


def _imagenet(model: Classifier) -> dict[str, Tensor]:
    weights = model.architecture.weights
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, or a damaged download
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"can't fetch ImageNet weights of {model.name} ({' '.join(str(error).split())}): put "
            f"{weights.url} into {folder}, give a file with --weights FILE, or --weights none."
        ) from error
    return state


def _from_file(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"--weights {path}: no such file. Or choose imagenet or none.") from error
    except Exception as error:  # a damaged file makes torch raise all kinds
        raise UserError(f"--weights {path}: not a state dictionary that torch can read.") from error
    if not isinstance(state, dict) or not all(isinstance(one, Tensor) for one in state.values()):
        raise UserError(f"--weights {path}: holds no state dictionary of tensors.")
    return state
