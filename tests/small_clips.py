"""Small CLIPs of both kinds with random weights: trained ones can't be fetched where the tests run."""

from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor, nn

from camal_rl.vision.clip import Clip, prepare

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


class Dangerous:
    """Runs code where a file with it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code in a file was run",)


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
