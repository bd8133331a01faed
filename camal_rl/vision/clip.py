"""CLIP through open_clip, split where its attention is taken."""

from __future__ import annotations

import textwrap
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from camal_rl.errors import UserError

PROMPT = "a photo of a {class}"


Rest: TypeAlias = Callable[[Tensor], Tensor]


class Conventions(NamedTuple):
    """What trained weights take for granted and don't say: the activation, and how pixels are normalised."""

    quick_gelu: bool = False
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)  # of red, green and blue, as OpenAI's
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP ready for `regions`: in evaluation mode, its weights fixed; `prepare` makes one."""

    name: str
    model: Any  # open_clip.CLIP
    tokenize: Callable[[list[str]], Tensor]  # n texts -> int64 (n, length)
    conventions: Conventions

    @property
    def device(self) -> torch.device:
        """Where it is."""
        device: torch.device = self.model.logit_scale.device
        return device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that it takes."""
        size = self.model.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return height, width

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 RGB (B, 3, H, W) -> what the image encoder takes, float32 (B, 3, *size)."""
        pixels = torch.tensor(images, dtype=torch.float32, device=self.device)
        if pixels.shape[2:] != self.size:
            # As CLIP's own preparation of images does; it clips what bicubic interpolation overshoots, too.
            pixels = F.interpolate(pixels, self.size, mode="bicubic", antialias=True).clamp(0, 255)
        mean, std = (
            torch.tensor(one, device=self.device)[:, None, None] * 255 for one in self.conventions[1:]
        )
        return (pixels - mean) / std

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of texts, of unit length: float32 (n, D)."""
        with torch.no_grad():
            tokens = self.tokenize(list(prompts)).to(self.device)
            embeddings: Tensor = self.model.encode_text(tokens, normalize=True)
        return embeddings


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
        if not (
            config.get("custom_text")
            or "multimodal_cfg" in config
            or image.get("timm_model_name")
            or image.get("attentional_pool")
            or image.get("pool_type", "tok") != "tok"
            or text.get("hf_model_name")
            or text.get("hf_tokenizer_name")
            or text.get("tokenizer_kwargs")
        ):
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
        model: open_clip's name, one of `valid_models`.
        weights: a state dictionary that torch or safetensors can read, with tensors only; None for random
            weights, whose regions mean nothing.
        device: to put it on.
        tag: open_clip's name of the weights, such as "openai". Weights that were trained further have the
            tag of those they started from.

    Raises:
        UserError: open_clip is missing; an unknown model or one that can't be split; no such file, or one
            that doesn't fit the model; an unknown tag, or none although the listed weights differ.
    """
    open_clip = _open_clip()
    model = model.replace("/", "-")  # as OpenAI writes ViT-B/32
    _check_model(open_clip, model)
    conventions = Conventions() if weights is None else _conventions(open_clip, model, tag)
    source = _source(open_clip, model, tag)
    if weights is not None and not weights.is_file():
        raise UserError(f"there are no CLIP weights in {weights}: {source}, and give its path.")
    config = open_clip.get_model_config(model)
    config["quick_gelu"] = conventions.quick_gelu or config.get("quick_gelu", False)
    network = open_clip.CLIP(**config)
    if weights is not None:
        _load_weights(open_clip, network, weights, model, source)
    tokenize = partial(open_clip.tokenize, context_length=network.context_length)
    return prepare(network.to(device), model, tokenize, conventions)


def prepare(
    model: Any, name: str, tokenize: Callable[[list[str]], Tensor], conventions: Conventions | None = None
) -> Clip:
    """Make one of open_clip's CLIPs ready for `regions`, and see whether its image encoder can be split.

    Args:
        model: an `open_clip.CLIP`; it is put into evaluation mode, and its parameters need no gradient then.
        name: to call it in messages.
        tokenize: texts -> int64 (n, length), such as open_clip's `get_tokenizer` makes.
        conventions: how its weights were trained; as OpenAI's, but without QuickGELU, if not given.

    Raises:
        UserError: an image encoder of another kind, or one that this version of open_clip builds otherwise.
    """
    _check_encoder(model.visual, name)
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
        pixels: (B, 3, H, W), normalised.

    Returns:
        maps: A, (B, K, h, w). Of a ResNet the output of the last stage, which the attention pooling takes
            (RN50 at 224 pixels: 2048, 7, 7). Of a ViT the patch tokens that enter the last block's attention,
            as a grid without the class token, as in Sec. 3.3 (ViT-B-16 at 224 pixels: 768, 14, 14).
        rest: A -> image embeddings, (B, D), not normalised.
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
    """Imported when it is needed: it takes seconds, and reading regions does without."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError(f"CLIP needs open_clip ({error}): pip install 'camal-rl[vision]'.") from error
    return open_clip


def _check_model(open_clip: Any, model: str) -> None:
    valid = valid_models()
    if model not in valid:
        why = (
            "its image encoder is none of open_clip's own ResNets and ViTs, or its tokenizer would have to "
            "be fetched"
            if model in open_clip.list_models()
            else f"open_clip {open_clip.__version__} has no such model"
        )
        raise UserError(f"--clip-model {model}: {why}. Valid: {', '.join(valid)}.")


def _check_encoder(encoder: Any, name: str) -> None:
    _open_clip()
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    known = isinstance(encoder, ModifiedResNet) or (
        isinstance(encoder, VisionTransformer)
        and encoder.attn_pool is None
        and encoder.pool_type == "tok"
        and len(encoder.transformer.resblocks) > 1
        and isinstance(encoder.transformer.resblocks[-1], ResidualAttentionBlock)
    )
    if not known:
        raise UserError(
            f"the image encoder of {name}, {type(encoder).__name__}, can't be split: only open_clip's own "
            f"ResNets, and ViTs with a class token, can. Valid models: {', '.join(valid_models())}."
        )


def _conventions(open_clip: Any, model: str, tag: str | None) -> Conventions:
    """How weights of this tag were trained, or all that are listed for the model."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag is not None and tag not in tags:
        valid = f"Valid: {', '.join(tags)}" if tags else "It has none, so leave --clip-tag out"
        raise UserError(f"--clip-tag {tag}: open_clip lists no such weights of {model}. {valid}.")
    found = {}
    for one in tags if tag is None else [tag]:
        listed = open_clip.get_pretrained_cfg(model, one)
        found[one] = Conventions(listed.get("quick_gelu", False), tuple(listed["mean"]), tuple(listed["std"]))
    if len(set(found.values())) > 1:
        raise UserError(
            f"the published weights of {model} differ in their activation or their colours, and a file does "
            f"not say which it holds: give --clip-tag, one of {', '.join(tags)}."
        )
    return next(iter(found.values()), Conventions())


def _load_weights(open_clip: Any, network: Any, weights: Path, model: str, source: str) -> None:
    if _is_program(weights):
        raise UserError(
            f"{weights} is a TorchScript archive, the form of OpenAI's own files, and only tensors are read "
            f"here: {source}."
        )
    try:
        open_clip.load_checkpoint(network, str(weights.absolute()), weights_only=True)
    except Exception as error:  # a damaged file makes torch raise all kinds
        reason = textwrap.shorten(str(error), 160, placeholder=" ...")
        raise UserError(f"{weights} does not hold weights of {model} ({reason}): {source}.") from error


def _source(open_clip: Any, model: str, tag: str | None) -> str:
    """Where weights of a model come from, as advice."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tags:
        return "take a state dictionary of this very model, for open_clip's list has no weights of it"
    chosen = tag or ("openai" if "openai" in tags else tags[0])
    listed = open_clip.get_pretrained_cfg(model, chosen)
    if listed.get("hf_hub"):
        folder = "/".join(listed["hf_hub"].split("/")[:2])
        return (
            "download open_clip_model.safetensors, or else open_clip_pytorch_model.bin, of "
            f"https://huggingface.co/{folder}"
        )
    return f"download {listed['url']}"


def _is_program(path: Path) -> bool:
    """Whether it is a TorchScript archive, which holds code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def prompts(labels: np.ndarray, classes: Sequence[str], template: str = PROMPT) -> list[str]:
    """What CLIP is asked for each sample, from its label: `template` with the class's name for {class}.

    Underscores in names become spaces.
    """
    return [template.replace("{class}", classes[label].replace("_", " ")) for label in labels]
