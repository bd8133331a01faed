"""Images and class names -> pseudo-discriminative regions as CLIP sees them, for `--method prior`.

Regions are soft maps, Grad-CAM on CLIP's image encoder, where the target is the cosine similarity of an image
with a prompt that names its class (paper, Appendix B, after Petryk et al. 2022).

    python -m camal_rl.vision.priors --data pet --clip-model RN50 --clip-weights FILE --output regions.npz
    python -m camal_rl.vision.priors --data pet --regions regions.npz --study pilot

The first makes regions; the second is the pilot study (Figure 8), which compares regions with the masks. It
takes regions of any other method as well, as a folder of grey PNG files.

CLIP is open_clip's; its trained weights are read from a file and never fetched. The tests of this module use
small CLIPs with random weights. The regions of such a CLIP mean nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from camal_rl import UserError, __version__, make_folder, write_together, write_whole

Count = Annotated[int, tyro.conf.arg(metavar="N")]
PROMPT = "a photo of a {class}"


@dataclass
class Args:
    """Make regions that tell CLIP a class (--output), or compare regions with masks (--study), or both."""

    data: Annotated[Literal["shapes", "busi", "pet", "flower"], tyro.conf.arg(metavar="NAME")] = "shapes"
    """shapes, busi, pet, flower"""
    data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("data")
    """holds the data sets, as for training"""
    samples: Count = 1200
    """of shapes, as for training"""
    image_size: Count = 224
    """pixels along each side of the images; CLIP sees them at its own size"""
    clip_model: Annotated[str, tyro.conf.arg(metavar="NAME")] = "RN50"
    """open_clip's name of a CLIP with a ResNet or ViT, such as RN50, ViT-B-16"""
    clip_weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE|none", help_behavior_hint="")] = None
    """its trained weights; none: random ones, to try out the command"""
    clip_tag: Annotated[str | None, tyro.conf.arg(metavar="TAG")] = None
    """open_clip's name of these weights, such as openai; asked for where it matters"""
    prompt: Annotated[str, tyro.conf.arg(metavar="TEXT")] = PROMPT
    """what CLIP is asked for, with {class} in it"""
    regions: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """regions to study instead of CLIP's: a file of --output, or a folder of grey PNG files"""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """.npz file to write regions to, for --prior of camal_rl.vision.train"""
    study: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder to write the comparison with masks to (Figure 8)"""
    batch_size: Count = 32
    """images that CLIP sees at once"""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1, mps"""


def parse_args(arguments: list[str] | None = None) -> Args:
    """Read the command line; exits with code 2 and a message where it can't be understood."""
    return tyro.cli(Args, prog="python -m camal_rl.vision.priors", args=arguments)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported, so that --help and a typing mistake are answered at once

import io
import json
import textwrap
import zipfile
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from camal_rl import media, metrics, page
from camal_rl.attention import class_activation_map, normalize
from camal_rl.camal import mask_weights
from camal_rl.command_line import run_at_once
from camal_rl.device import choose_device
from camal_rl.study import some
from camal_rl.vision import datasets
from camal_rl.vision.datasets import Samples

Rest: TypeAlias = Callable[[Tensor], Tensor]
Advance: TypeAlias = Callable[[int], object]

PICTURED = 6
"""Samples in the study's picture."""


# ------------------------------------------------------------------------------------------------------------
# CLIP


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


# ------------------------------------------------------------------------------------------------------------
# Regions


def prompts(labels: np.ndarray, classes: Sequence[str], template: str = PROMPT) -> list[str]:
    """What CLIP is asked for each sample, from its label: `template` with the class's name for {class}.

    Underscores in names become spaces.
    """
    return [template.replace("{class}", classes[label].replace("_", " ")) for label in labels]


def regions(
    clip: Clip,
    images: np.ndarray,
    prompts: Sequence[str],
    batch_size: int = 32,
    advance: Advance = lambda _: None,
) -> np.ndarray:
    """Where CLIP sees what each prompt says: float32 (N, h, w) in [0, 1], each from 0 to 1 or all zero.

    Grad-CAM (Eq. 3) at the maps of `split`, for the cosine of the angle between the image's embedding and the
    prompt's. A map is all zero where the ReLU leaves nothing.

    Args:
        clip: from `load_clip` or `prepare`.
        images: uint8 RGB (N, 3, S, S), N at least 1; CLIP sees them resized to its own size.
        prompts: a text for each image.
        batch_size: images at once.
        advance: called with the number of images done since the last call.

    Raises:
        ValueError: images of another shape or dtype, or another number of prompts.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(
            f"images must be uint8 of shape (N, 3, S, S), N at least 1, got {images.dtype} of {images.shape}"
        )
    if len(prompts) != len(images):
        raise ValueError(f"each of the {len(images)} images needs a prompt, got {len(prompts)}")
    distinct = list(dict.fromkeys(prompts))
    texts = clip.texts(distinct)  # (n, D)
    place = {prompt: index for index, prompt in enumerate(distinct)}
    rows = torch.tensor([place[prompt] for prompt in prompts], device=clip.device)
    found = []
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        cams = _cams(clip, images[batch], texts[rows[batch]])
        found.append(normalize(cams).cpu().numpy())
        advance(len(cams))
    return np.concatenate(found)


def _cams(clip: Clip, images: np.ndarray, texts: Tensor) -> Tensor:
    """Maps that are not normalised, (B, h, w), for one embedding of a text each, (B, D)."""
    with torch.no_grad():  # gradients are needed of what comes after the feature maps only
        feature_maps, rest = split(clip.model.visual, clip.pixels(images))

    def similarity(maps: Tensor) -> Tensor:
        return F.cosine_similarity(rest(maps), texts)

    return class_activation_map(feature_maps, similarity, create_graph=False)


def dead(maps: np.ndarray) -> np.ndarray:
    """Which regions are zero everywhere: bool (N,)."""
    return np.logical_not(maps.any(axis=(1, 2)))


def save_regions(path: Path, maps: np.ndarray, names: Sequence[str]) -> None:
    """Write regions for `load_regions`: an .npz file of two plain arrays, whole or not at all.

    Args:
        path: of the file; its folder has to be there.
        maps: float32 (N, h, w) in [0, 1].
        names: of the samples, no two the same.

    Raises:
        ValueError: maps or names of another kind.
        UserError: the file can't be written.
    """
    if wrong := _wrong(maps, np.array(names)):
        raise ValueError(wrong)
    content = io.BytesIO()
    np.savez_compressed(content, maps=maps, names=np.array(names))
    write_whole(path, content.getvalue())


def load_regions(path: Path, names: Sequence[str]) -> np.ndarray:
    """Regions of these samples, in this order: float32 (N, h, w) in [0, 1].

    Args:
        path: a file of `save_regions`; or a folder of grey PNG files of 8 or 16 bits, black for 0 and white
            for 1, all of one size, whichever: `<folder>/<name>.png` is the map of a sample. It is of the
            image after `datasets.load` has resized and cropped it, and the name includes the folder in
            the data set: `<folder>/images/Abyssinian_1.png`.
        names: of the samples. There may be regions of others as well.

    Raises:
        UserError: there is no such file or folder, a sample's region is missing, or something else is in it.
    """
    if path.is_dir():
        return _load_folder(path, names)
    if not path.exists():
        raise UserError(
            f"there are no regions in {path}: make the file with python -m camal_rl.vision.priors --output, "
            "or give a folder of grey PNG files."
        )
    try:
        # Of bytes, because NumPy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
            maps, known = content["maps"], content["names"]
        wrong = _wrong(maps, known)
    except Exception as error:  # a damaged file makes NumPy raise all kinds
        wrong = textwrap.shorten(str(error), 100, placeholder=" ...") or type(error).__name__
    if wrong:
        raise UserError(
            f"{path} is damaged, or not a file of regions ({wrong}): make it again with "
            "python -m camal_rl.vision.priors --output."
        )
    place = {str(name): index for index, name in enumerate(known)}
    _check_complete(path, [name for name in names if name not in place], len(names))
    return np.ascontiguousarray(maps[[place[name] for name in names]])


def _wrong(maps: np.ndarray, names: np.ndarray) -> str:
    """What keeps two arrays from being regions and their names; nothing if they are."""
    if maps.dtype != np.float32 or maps.ndim != 3 or not maps.size:
        return f"maps must be float32 of shape (N, h, w), got {maps.dtype} of shape {maps.shape}"
    if names.dtype.kind != "U" or names.shape != maps.shape[:1]:
        return f"each of the {len(maps)} maps needs a name, got {names.dtype} of shape {names.shape}"
    if len(np.unique(names)) < len(names):
        return "several samples have the same name"
    low, high = maps.min(), maps.max()
    if not (low >= 0 and high <= 1):  # nor is NaN
        return f"maps must lie in [0, 1], got values from {low} to {high}"
    return ""


def _load_folder(folder: Path, names: Sequence[str]) -> np.ndarray:
    files = [folder / f"{name}.png" for name in names]
    missing = [name for name, file in zip(names, files, strict=True) if not file.is_file()]
    _check_complete(folder, [f"{name}.png" for name in missing], len(names))
    first = _read_grey(files[0])
    maps = np.empty((len(files), *first.shape), np.float32)
    for file, one in zip(files, maps, strict=True):
        grey = _read_grey(file)
        if grey.shape != first.shape:
            raise UserError(
                f"regions must be of one size: {file} has {grey.shape[1]} x {grey.shape[0]} pixels, and "
                f"{files[0]} has {first.shape[1]} x {first.shape[0]}."
            )
        one[...] = grey
    return maps


def _read_grey(file: Path) -> np.ndarray:
    """A grey PNG file as float32 (H, W) in [0, 1]."""
    try:
        image = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except OSError as error:
        raise UserError(f"can't read {file}: {error.strerror}.") from error
    except cv2.error:  # an empty file
        image = None
    if image is None:
        raise UserError(f"{file} is damaged, or no PNG file.")
    if image.ndim != 2:
        raise UserError(f"{file} has {image.shape[2]} channels: a soft map is grey, with a single one.")
    return np.asarray(image / (65535 if image.dtype == np.uint16 else 255), np.float32)


def _check_complete(path: Path, missing: Sequence[str], count: int) -> None:
    if missing:
        raise UserError(
            f"{path} lacks the regions of {len(missing)} of {count} samples: {some(missing)}. "
            "It may be of another data set."
        )


# ------------------------------------------------------------------------------------------------------------
# The pilot study: regions against masks


MEASURES = {
    "iou": f"IoU of the region, the map above {metrics.TAU:g}",
    "iou_ceiling": "Its ceiling, the mask itself at the map's resolution",
    "covered": "Share of the mask that the region covers",
    "spurious": "Share of the region outside the mask",
    "parts": "Connected parts of the region",
    "pointing_game": "Pointing game: the map's peak is in the mask",
    "relevance_mass": "Relevance mass: share of the map in the mask",
    "mask_share": "The mask's share of the image, a uniform map's relevance mass",
}
"""What `overlap` measures of each sample, as the study's table calls it."""


def overlap(maps: np.ndarray, masks: np.ndarray, advance: Advance = lambda _: None) -> dict[str, np.ndarray]:
    """How well each map agrees with its mask: MEASURES by name, float64 (N,).

    A region is where a map, upsampled to its mask, is above `metrics.TAU`. Parts of it that touch at a corner
    are connected. Where there is no region, as with a map that is zero, there are 0 parts that cover 0, and
    the share outside is NaN.

    Args:
        maps: float32 (N, h, w) in [0, 1].
        masks: uint8 {0, 1} (N, H, W), none of them empty.
        advance: called with the number of samples done since the last call.
    """
    found = {name: np.empty(len(maps)) for name in MEASURES}
    for index in range(len(maps)):
        heat, mask = maps[index : index + 1], masks[index : index + 1]
        measured = metrics.alignment(heat, mask)
        for name in ("iou", "pointing_game", "relevance_mass"):
            found[name][index] = measured[name][0]
        found["iou_ceiling"][index] = metrics.iou_ceiling(mask_weights(mask, maps.shape[1:]), mask)[0]
        region, inside = metrics.upsample(heat, mask.shape[1:])[0] > metrics.TAU, mask[0] > 0
        size, shared = np.count_nonzero(region), np.count_nonzero(region & inside)
        found["covered"][index] = shared / np.count_nonzero(inside)
        found["spurious"][index] = (size - shared) / size if size else np.nan
        found["parts"][index] = cv2.connectedComponents(region.astype(np.uint8), connectivity=8)[0] - 1
        found["mask_share"][index] = inside.mean()
        advance(1)
    return found


def study(samples: Samples, maps: np.ndarray, about: Mapping[str, str], advance: Advance) -> dict[str, bytes]:
    """The pilot study's files by name: study.json, study.md, and regions.png, in which IoU falls downwards.

    Samples without a target, such as normal images of BUSI, are left out.

    Args:
        samples: the data set.
        maps: float32 (N, h, w) in [0, 1], of every sample.
        about: where the maps come from, to be told with the numbers.
        advance: called with the number of samples done since the last call.

    Raises:
        UserError: no sample has a target.
    """
    targets = np.flatnonzero(samples.masks.any(axis=(1, 2)))
    if not len(targets):
        raise UserError("no sample has a mask, so there is nothing to compare regions with.")
    measured = overlap(maps[targets], samples.masks[targets], advance)
    summary = {name: _summary(values) for name, values in measured.items()}
    content = {
        "version": __version__,
        **about,
        "tau": metrics.TAU,
        "map_size": list(maps.shape[1:]),
        "samples": len(targets),
        "samples_without_target": len(maps) - len(targets),
        "dead_map_fraction": float(dead(maps[targets]).mean()),
        "measures": summary,
        "by_sample": {
            "name": [samples.names[index] for index in targets],
            **{name: [_plain(one) for one in values.tolist()] for name, values in measured.items()},
        },
    }
    return {
        "study.json": (json.dumps(content, indent=1, allow_nan=False) + "\n").encode(),
        "study.md": page.markdown(_table(content)).encode(),
        "regions.png": media.encode_png(_picture(samples, maps, targets, measured)),
    }


def _summary(values: np.ndarray) -> dict[str, float | int | None]:
    """Mean and sample standard deviation of what is defined, None where there is none."""
    defined = values[~np.isnan(values)]
    return {
        "mean": float(defined.mean()) if len(defined) else None,
        "standard_deviation": float(defined.std(ddof=1)) if len(defined) > 1 else None,
        "samples": len(defined),
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value


def _table(content: Mapping[str, Any]) -> page.Table:
    rows = []
    for name, label in MEASURES.items():
        one = content["measures"][name]
        numbers = (
            page.NOTHING if one[key] is None else page.fixed(one[key], 3)
            for key in ("mean", "standard_deviation")
        )
        rows.append([label, *numbers, str(one["samples"])])
    notes = [
        f"{content['samples']} samples of {content['data']} with a mask, {content['samples_without_target']} "
        "without one left out",
        f"{100 * content['dead_map_fraction']:.1f} % of the maps are zero everywhere",
        f"maps of {content['map_size'][0]} x {content['map_size'][1]} from {content['source']}",
    ]
    return page.Table("Regions against masks", ["", "Mean", "SD", "Samples"], rows, "; ".join(notes) + ".")


def _picture(
    samples: Samples, maps: np.ndarray, targets: np.ndarray, measured: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Samples at even distances in the order of their IoU, the best and the worst among them."""
    order = np.argsort(-measured["iou"], kind="stable")
    ranks = np.unique(np.linspace(0, len(order) - 1, PICTURED).round().astype(int))
    strips = []
    for place in order[ranks]:
        index, numbers = targets[place], {name: values[place] for name, values in measured.items()}
        spurious = numbers["spurious"]
        outside = "" if np.isnan(spurious) else f", {100 * spurious:.0f} % of the region outside"
        strips.append(
            media.attention_strip(
                np.ascontiguousarray(samples.images[index].transpose(1, 2, 0)),
                samples.masks[index],
                {"": maps[index]},
                f"{samples.names[index]} ({samples.classes[samples.labels[index]]}): "
                f"IoU {numbers['iou']:.2f}, {100 * numbers['covered']:.0f} % of the mask covered{outside}, "
                f"connected parts: {numbers['parts']:.0f}",
                "image",
            )
        )
    return media.stack_strips(strips)


# ------------------------------------------------------------------------------------------------------------
# From the command line to the files


RANDOM = Path("none")
"""What `--clip-weights` takes for random weights."""


def check_args(args: Args) -> None:
    """Refuse options that can't be, or can't be together.

    Raises:
        UserError: the message says what to change.
    """
    if args.output is None and args.study is None:
        raise UserError("nothing to do: give --output FILE to keep regions, --study DIR to compare them.")
    if args.regions is not None and (args.clip_weights is not None or args.output is not None):
        raise UserError("--regions are there already: give them with --study only, without --clip-weights.")
    if args.regions is None and args.clip_weights is None:
        raise UserError(
            "--clip-weights FILE is missing: give the file of the model's trained weights, or none for "
            "random ones, which show that the command works and nothing else."
        )
    if args.output is not None and args.output.suffix != ".npz":
        raise UserError(f"--output {args.output}: give a name that ends in .npz.")
    if "{class}" not in args.prompt:
        raise UserError(f"--prompt {args.prompt!r}: write {{class}} where the class's name is to stand.")
    for option, value in (("batch-size", args.batch_size), ("image-size", args.image_size)):
        if value < 1:
            raise UserError(f"--{option} {value}: give a number of at least 1.")


def make(args: Args) -> list[str]:
    """Make regions, study them, or both, and return what the command line prints.

    Raises:
        UserError: arguments, files or folders with which that can't be done.
    """
    check_args(args)
    # Before the work, so that it is not in vain.
    if args.output:
        make_folder(args.output.parent)
    if args.study:
        make_folder(args.study, "--study")
    clip, about = None, {"data": args.data, "source": str(args.regions)}
    if args.regions is None:
        weights = None if args.clip_weights in (None, RANDOM) else args.clip_weights
        clip = load_clip(args.clip_model, weights, choose_device(args.device), args.clip_tag)
        trained = f"weights {weights.name}" if weights else "random weights, so the regions mean nothing"
        about |= {"source": f"CLIP {clip.name}, {trained}", "prompt": args.prompt}
    samples = datasets.load(args.data, args.data_dir, args.image_size, args.samples)
    said = []
    if clip is None:
        assert args.regions is not None
        maps = load_regions(args.regions, samples.names)
    else:
        texts = prompts(samples.labels, samples.classes, args.prompt)
        with _bar("regions", len(texts)) as bar:
            maps = regions(clip, samples.images, texts, args.batch_size, bar.update)
        said.append(f"Regions of {len(maps)} images from {about['source']}.")
    said.append(f"{100 * dead(maps).mean():.1f} % of the maps are zero everywhere.")
    if args.output:
        save_regions(args.output, maps, samples.names)
        said.append(f"  {args.output}")
    if args.study:
        with _bar("study", int(samples.masks.any(axis=(1, 2)).sum())) as bar:
            files = study(samples, maps, about, bar.update)
        write_together({args.study / name: content for name, content in files.items()})
        said += [files["study.md"].decode(), *(f"  {args.study / name}" for name in files)]
    return said


def _bar(what: str, total: int) -> Any:
    return tqdm(total=total, desc=what, mininterval=0.5 if sys.stderr.isatty() else 30, unit="image")


def main(args: Args) -> int:
    """Make and study, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    return run_at_once(lambda: print("\n".join(make(args))), "No file is half written.")


if __name__ == "__main__":
    sys.exit(main(ARGS))
