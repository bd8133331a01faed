"""open_clip's CLIP, split where its attention is taken: images and texts -> feature maps and embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from camal_rl.errors import UserError, in_one_line

Rest: TypeAlias = Callable[[Tensor], Tensor]
Published: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Tag of trained weights -> how open_clip says they were trained, and where they are."""


class Conventions(NamedTuple):
    """How weights were trained, which they don't say: their activation, and how pixels are normalized."""

    quick_gelu: bool = False
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)  # red, green and blue, OpenAI's
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP ready for regions, in evaluation mode and with fixed weights; `prepare` makes it."""

    name: str
    model: Any  # open_clip.CLIP
    tokenize: Callable[[list[str]], Tensor]  # n texts -> int64 (n, length)
    conventions: Conventions

    @property
    def device(self) -> torch.device:
        """The device it is on."""
        device: torch.device = self.model.logit_scale.device
        return device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that it takes."""
        size = self.model.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return height, width

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 RGB (B, 3, H, W) -> input of the image encoder, float32 (B, 3, *size)."""
        pixels = torch.tensor(images, dtype=torch.float32, device=self.device)
        if pixels.shape[2:] != self.size:
            # As CLIP's own preparation of images does, which clips what bicubic interpolation overshoots.
            pixels = F.interpolate(pixels, self.size, mode="bicubic", antialias=True).clamp(0, 255)
        _, *colours = self.conventions
        mean, std = (torch.tensor(rgb, device=self.device)[:, None, None] * 255 for rgb in colours)
        return (pixels - mean) / std

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of texts, of unit length: float32 (n, D)."""
        with torch.no_grad():
            tokens = self.tokenize(list(prompts)).to(self.device)
            embeddings: Tensor = self.model.encode_text(tokens, normalize=True)
        return embeddings


def prompts(labels: np.ndarray, classes: Sequence[str], template: str) -> list[str]:
    """Text for each sample: the template with the name of its class for {class}, spaces for underscores."""
    return [template.replace("{class}", classes[label].replace("_", " ")) for label in labels]


def valid_models() -> list[str]:
    """Names of the CLIPs in open_clip that `load_clip` takes.

    Their image encoder is open_clip's own ResNet or ViT with a class token, and their texts need no tokenizer
    that would have to be fetched.
    """
    open_clip = _open_clip()
    found = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        image, text = config["vision_cfg"], config["text_cfg"]
        unknown = (
            *(config.get(key) for key in ("custom_text", "multimodal_cfg")),
            *(image.get(key) for key in ("timm_model_name", "attentional_pool")),
            *(text.get(key) for key in ("hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs")),
        )
        if not any(unknown) and image.get("pool_type", "tok") == "tok":
            found.append(name)
    return found


def load_clip(
    model: str, weights: Path | None, device: torch.device | str = "cpu", tag: str | None = None
) -> Clip:
    """A CLIP with trained weights from a file; nothing is fetched.

    Weights trained with another activation (QuickGELU) or other colours fit as well, only to see something
    else. So the activation and the mean colour are those with which open_clip's list says that the weights
    of this tag were trained; without a tag, those of all weights that are listed for the model.

    Args:
        model: a name of `valid_models`.
        weights: a state dictionary that torch or safetensors can read; None for random weights.
        device: the device to put it on.
        tag: open_clip's name of the weights, or of those they started from, such as "openai".
    """
    open_clip = _open_clip()
    model = model.replace("/", "-")  # as OpenAI writes ViT-B/32
    if model not in (valid := valid_models()):
        raise UserError(
            f"--clip-model {model}: open_clip {open_clip.__version__} has no such model, or it can't be "
            f"split, or its tokenizer would have to be fetched. Valid: {', '.join(valid)}."
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    published = {name: open_clip.get_pretrained_cfg(model, name) for name in tags}
    if tag is not None and tag not in tags:
        valid_tags = f"Valid: {', '.join(tags)}" if tags else "It has none, so leave --clip-tag out"
        raise UserError(f"--clip-tag {tag}: open_clip lists no such weights of {model}. {valid_tags}.")
    conventions = Conventions() if weights is None else _conventions(model, published, tag)
    source = _source(published, tag)
    if weights is not None and not weights.is_file():
        raise UserError(f"there are no CLIP weights in {weights}: {source}, and give its path.")
    config = open_clip.get_model_config(model)
    config["quick_gelu"] = conventions.quick_gelu or config.get("quick_gelu", False)
    network = open_clip.CLIP(**config)
    if weights is not None:
        try:
            open_clip.load_checkpoint(network, str(weights.absolute()), weights_only=True)
        except Exception as error:  # a damaged file makes torch raise all kinds
            reason = in_one_line(error)[:160]
            raise UserError(f"{weights} does not hold weights of {model} ({reason}): {source}.") from error
    tokenize = partial(open_clip.tokenize, context_length=network.context_length)
    return prepare(network.to(device), model, tokenize, conventions)


def prepare(
    model: Any, name: str, tokenize: Callable[[list[str]], Tensor], conventions: Conventions | None = None
) -> Clip:
    """Make an `open_clip.CLIP` ready for regions, and see whether its image encoder is split rightly.

    It is put into evaluation mode, and its parameters need no gradient then.

    Raises:
        UserError: an image encoder that this version of open_clip builds otherwise.
    """
    model.eval().requires_grad_(False)
    clip = Clip(name, model, tokenize, conventions or Conventions())
    # Two different images, so that samples and tokens which change places are noticed.
    noise = np.random.default_rng(0).integers(256, size=(2, 3, *clip.size), dtype=np.uint8)
    with torch.no_grad():
        pixels = clip.pixels(noise)
        maps, rest = split(model.visual, pixels)
        whole, parts = model.encode_image(pixels), rest(maps)
    if whole.shape != parts.shape or (whole - parts).abs().max() > 1e-3 * whole.abs().max():
        raise UserError(
            f"the image encoder of {name} in open_clip {_open_clip().__version__} is not the one that is "
            "known here: install open_clip_torch 3.0, or choose another --clip-model."
        )
    return clip


def split(encoder: Any, pixels: Tensor) -> tuple[Tensor, Rest]:
    """CLIP's image encoder in two parts: `encode_image(pixels)` is rest(maps), for the two that are returned.

    Args:
        encoder: `visual` of an open_clip.CLIP, its ResNet or ViT.
        pixels: (B, 3, H, W), normalized.

    Returns:
        maps: A, (B, K, h, w). Of a ResNet the output of the last stage, which the attention pooling takes
            (RN50 at 224 pixels: 2048, 7, 7). Of a ViT the patch tokens that enter the last block's attention,
            as a grid without the class token, as in Sec. 3.3 (ViT-B-16 at 224 pixels: 768, 14, 14).
        rest: A -> image embeddings, (B, D), not normalized.
    """
    return (_split_resnet if hasattr(encoder, "attnpool") else _split_vit)(encoder, pixels)


def _split_resnet(encoder: Any, pixels: Tensor) -> tuple[Tensor, Rest]:
    maps = encoder.stem(pixels)
    for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        maps = stage(maps)
    return maps, encoder.attnpool


def _split_vit(encoder: Any, pixels: Tensor) -> tuple[Tensor, Rest]:
    blocks = encoder.transformer.resblocks
    found = encoder.forward_intermediates(
        pixels,
        indices=[len(blocks) - 2],
        stop_early=True,
        intermediates_only=True,
        output_fmt="NLC",
        output_extra_tokens=True,
    )
    tokens = torch.cat([found["image_intermediates_prefix"][0], found["image_intermediates"][0]], dim=1)
    last = blocks[-1]
    entering = last.ln_1(tokens)  # (B, 1 + h * w, K)
    maps = entering[:, 1:].transpose(1, 2).unflatten(2, encoder.grid_size)

    def rest(maps: Tensor) -> Tensor:
        patches = maps.flatten(2).transpose(1, 2)
        attended = last.attention(torch.cat([entering[:, :1], patches], dim=1))
        leaving = tokens + last.ls_1(attended)
        leaving = leaving + last.ls_2(last.mlp(last.ln_2(leaving)))
        embeddings: Tensor = encoder.ln_post(leaving)[:, 0] @ encoder.proj
        return embeddings

    return maps, rest


def _open_clip() -> Any:
    """Import open_clip when it is needed: it is optional, and takes seconds."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError(f"CLIP needs open_clip ({error}): pip install 'camal-rl[vision]'.") from error
    return open_clip


def _conventions(model: str, published: Published, tag: str | None) -> Conventions:
    """How weights of this tag were trained, or else all that are published of the model."""
    chosen = published.values() if tag is None else [published[tag]]
    found = {
        Conventions(listed.get("quick_gelu", False), tuple(listed["mean"]), tuple(listed["std"]))
        for listed in chosen
    }
    if len(found) > 1:
        raise UserError(
            f"the published weights of {model} differ in their activation or their colours, and a file does "
            f"not say which it holds: give --clip-tag, one of {', '.join(published)}."
        )
    return found.pop() if found else Conventions()


def _source(published: Published, tag: str | None) -> str:
    """Advice where to get weights of a model."""
    if not published:
        return "take a state dictionary of this very model, for open_clip's list has no weights of it"
    listed = published[tag or ("openai" if "openai" in published else next(iter(published)))]
    if not listed.get("hf_hub"):
        return f"download {listed['url']}"
    return (
        "download open_clip_model.safetensors, or else open_clip_pytorch_model.bin, of "
        f"https://huggingface.co/{'/'.join(listed['hf_hub'].split('/')[:2])}"
    )
