"""The paper's six classifiers and MobileNetV2, from torchvision, split at the layer that is supervised.

The part before the split turns images into feature maps A, (B, K, h, w), and the part after it turns these
into logits, so attention needs neither hooks nor a backward pass through the first part (Sec. 3.3):

=============== ===================================================== ==================
model           feature maps                                          K, h, w at 224
=============== ===================================================== ==================
resnet18        output of the last stage                              512, 7, 7
convnext_t      output of the last stage                              768, 7, 7
efficientnet_b0 output of the last convolution                        1280, 7, 7
vit_b_16        patch tokens that enter the last block's attention    768, 14, 14
swin_v2_t       normalized tokens of the last stage, channels first   768, 7, 7
maxvit_t        output of the last block                              512, 7, 7
mobilenet_v2    output of the last convolution                        1280, 7, 7
=============== ===================================================== ==================
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from camal_rl import attention
from camal_rl.attention import at_least_float32
from camal_rl.errors import UserError, in_one_line

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's red, green and blue, which the paper's images are normalized by."""


class Features(NamedTuple):
    """Output of a classifier's first part."""

    maps: Tensor  # A, (B, K, h, w), float32
    rest: tuple[Tensor, ...] = ()  # further input of the second part, which has no place in the image


class Output(NamedTuple):
    """Output of a classifier."""

    logits: Tensor  # (B, classes)
    feature_maps: Tensor  # A, (B, K, h, w), from which the logits were computed


@dataclass(frozen=True)
class Architecture:
    """A network of torchvision, and where it is split."""

    network: str  # torchvision's name
    last_layer: str  # the Linear that tells the classes apart
    learning_rate: float  # Table 7
    features: Callable[[Any, Tensor], Features]
    head: Callable[[Any, Features], Tensor]
    multiple: int = 32  # sides of the images are multiples of it
    size_options: Callable[[int], dict[str, Any]] = lambda size: {}  # where it is built for a size of images


def _stages(*names: str) -> Callable[[Any, Tensor], Features]:
    """Parts of a network, one after the other: the last one's output are the feature maps."""

    def features(network: Any, images: Tensor) -> Features:
        for name in names:
            images = network.get_submodule(name)(images)
        return Features(images)

    return features


def _head(*names: str, flatten: bool = True) -> Callable[[Any, Features], Tensor]:
    """Parts that feature maps go through to the logits; `flatten` before the last of them."""

    def head(network: Any, features: Features) -> Tensor:
        values = features.maps
        for name in names[:-1]:
            values = network.get_submodule(name)(values)
        logits: Tensor = network.get_submodule(names[-1])(values.flatten(1) if flatten else values)
        return logits

    return head


def _vit_features(network: Any, images: Tensor) -> Features:
    """All that comes before the last block's attention: patch tokens as a grid, no class token (Sec. 3.3).

    Later layers are no use: only the class token is read at the end, so that patch tokens after the last
    attention change nothing.
    """
    patches = network.conv_proj(images).flatten(2).transpose(1, 2)  # (B, h * w, K)
    tokens = torch.cat([network.class_token.expand(len(images), -1, -1), patches], dim=1)
    tokens = network.encoder.dropout(tokens + network.encoder.pos_embedding)
    for block in network.encoder.layers[:-1]:
        tokens = block(tokens)
    entering = network.encoder.layers[-1].ln_1(tokens)
    side = math.isqrt(patches.shape[1])
    maps = entering[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    return Features(maps, (entering[:, :1], tokens))


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
    "resnet18": Architecture("resnet18", "fc", 1e-3, _stages(*_RESNET_STAGES), _head("avgpool", "fc")),
    "convnext_t": Architecture(
        "convnext_tiny",
        "classifier.2",
        1e-3,
        _stages("features"),
        _head("avgpool", "classifier", flatten=False),
    ),
    "efficientnet_b0": Architecture(
        "efficientnet_b0", "classifier.1", 1e-3, _stages("features"), _head("avgpool", "classifier")
    ),
    "vit_b_16": Architecture(
        "vit_b_16", "heads.head", 1e-4, _vit_features, _vit_head, 16, lambda size: {"image_size": size}
    ),
    "swin_v2_t": Architecture(
        "swin_v2_t", "head", 1e-4, _stages("features", "norm", "permute"), _head("avgpool", "head")
    ),
    "maxvit_t": Architecture(
        "maxvit_t",
        "classifier.5",
        1e-4,
        _stages("stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3"),
        _head("classifier", flatten=False),
        multiple=224,
        size_options=lambda size: {"input_size": (size, size)},
    ),
    "mobilenet_v2": Architecture(
        "mobilenet_v2",
        "classifier.1",
        1e-3,
        _stages("features"),
        lambda network, features: network.classifier(features.maps.mean(dim=(2, 3))),
    ),
}
"""Networks by the name that `--model` takes: those of the paper's tables in their order, and another."""


class Classifier(nn.Module):
    """A network of ARCHITECTURES with random weights, for images of this many pixels along each side.

    Raises:
        UserError: a size of images that the architecture can't take.
    """

    def __init__(self, name: str, num_classes: int, image_size: int = 224) -> None:
        super().__init__()
        check_image_size(name, image_size)
        self.name = name
        self.architecture = ARCHITECTURES[name]
        options = {"num_classes": num_classes, **self.architecture.size_options(image_size)}
        self.network: nn.Module = models.get_model(self.architecture.network, **options)
        # Faster on a CPU, and the order that a GPU's tensor cores want.
        nn.utils.convert_conv2d_weight_memory_format(self, torch.channels_last)

    def features(self, images: Tensor) -> Features:
        """Return the feature maps of normalized images, (B, 3, S, S), computed as `torch.autocast` says."""
        found = self.architecture.features(self.network, images)
        return Features(at_least_float32(found.maps), tuple(map(at_least_float32, found.rest)))

    def head(self, features: Features) -> Tensor:
        """Return the logits of feature maps, (B, classes), in float32 at least: attention depends on it."""
        with torch.autocast(features.maps.device.type, enabled=False):
            return self.architecture.head(self.network, features)

    def forward(self, images: Tensor) -> Output:
        """Return logits and feature maps of normalized images, (B, 3, S, S)."""
        features = self.features(images)
        return Output(self.head(features), features.maps)


def check_image_size(name: str, image_size: int) -> None:
    """Refuse a size of images that an architecture can't take, with the sizes that it takes."""
    multiple = ARCHITECTURES[name].multiple
    if image_size < 32 or image_size % multiple:
        raise UserError(
            f"{name} takes images whose sides are a multiple of {multiple} pixels, not {image_size}."
        )


@torch.no_grad()
def map_size(model: Classifier, image_size: int) -> tuple[int, int]:
    """Height and width of a classifier's feature maps; puts it into evaluation mode."""
    device = next(model.parameters()).device
    maps = model.eval().features(torch.zeros(1, 3, image_size, image_size, device=device)).maps
    return maps.shape[2], maps.shape[3]


CAM_METHODS = tuple(name for name in attention.METHODS if name not in attention.RESAMPLING_METHODS)
"""Methods of `class_cam`; the others evaluate the network at other feature maps, sixteen times a step."""


def class_cam(
    output: Output, classes: Tensor, method: str = "gradcam", *, create_graph: bool = True
) -> Tensor:
    """Attention for these classes, int64 (B,), in one pass for the batch (Eq. 4): (B, h, w), not normalized.

    `create_graph` lets gradients flow through the feature maps and their weights (Eq. 2).
    """
    if method == "diffgradcam":
        return attention.class_activation_map(
            output.feature_maps, output.logits, method, classes=classes, create_graph=create_graph
        )
    target = output.logits.gather(1, classes[:, None]).squeeze(1)  # (B,)
    return attention.class_activation_map(output.feature_maps, target, method, create_graph=create_graph)


def normalize(images: Tensor) -> Tensor:
    """uint8 RGB (B, 3, H, W) -> float32, by ImageNet's mean and standard deviation."""
    mean = torch.tensor(MEAN, device=images.device)[:, None, None] * 255
    std = torch.tensor(STD, device=images.device)[:, None, None] * 255
    return (images - mean) / std


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """All BatchNorm layers of a model."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def freeze_batch_norm(model: nn.Module) -> None:
    """Let every BatchNorm use its running statistics, so that no sample's features depend on another's.

    `model.train()` undoes it. Weight and bias are trained as before.
    """
    for norm in batch_norms(model):
        norm.eval()


def load_weights(model: Classifier, weights: str) -> None:
    """Start from trained weights: `imagenet`, `none`, or a file of a state dictionary.

    The last layer stays random where the file's has other classes. Entries that torchvision has renamed since
    the file was written are known to it, and a ViT's positions are interpolated to the size of images. A file
    of other names is read in its order, where that gives every entry of the network its shape.

    Raises:
        UserError: no such file, one that doesn't fit, or ImageNet's can't be fetched.
    """
    if weights == "none":
        return
    state = _imagenet(model) if weights == "imagenet" else _from_file(Path(weights))
    network: Any = model.network
    own, last_layer = network.state_dict(), f"{model.architecture.last_layer}."
    body = [name for name in own if not name.startswith(last_layer)]
    fits: Any = OrderedDict(state)
    fits._metadata = getattr(state, "_metadata", None)  # by which torch knows entries that were renamed since
    in_order = [value.shape for value in state.values()] == [own[name].shape for name in body]
    if in_order and not state.keys() >= {*body}:
        print(f"--weights {weights}: its entries have other names, and are read in their order.")
        fits = OrderedDict(zip(body, state.values(), strict=True))
    for name, value in own.items():
        if name.startswith(last_layer) and (name not in fits or fits[name].shape != value.shape):
            fits[name] = value
    try:
        if model.name == "vit_b_16":
            fits = interpolate_embeddings(network.image_size, network.patch_size, fits)
        network.load_state_dict(fits)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"--weights {weights} don't fit {model.name} ({in_one_line(error)[:200]}): give the state "
            f"dictionary of torchvision's {model.architecture.network}."
        ) from error


def _imagenet(model: Classifier) -> dict[str, Tensor]:
    weights = models.get_model_weights(model.architecture.network).IMAGENET1K_V1
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, or a damaged download
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"can't fetch ImageNet weights of {model.name} ({in_one_line(error)}): put "
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
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"--weights {path}: holds no state dictionary of tensors.")
    return state
