"""Pictures and videos of attention: heat maps over frames, beside the targets' masks and the critic's values.

Every image is uint8 (H, W, 3), RGB.
"""

from __future__ import annotations

import io
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from camal_rl.errors import UserError

Colour = tuple[int, int, int]

BACKGROUND: Colour = (17, 19, 24)
BAR: Colour = (35, 39, 48)
GRID: Colour = (58, 63, 75)
MUTED: Colour = (152, 160, 175)
TEXT: Colour = (236, 239, 244)
OUTLINE: Colour = (0, 255, 255)
NOTHING: Colour = (96, 102, 114)
# Okabe and Ito's colours, which the colour-blind can tell apart, then lighter and darker ones: the greatest
# stock scenario has 20 buttons.
# fmt: off
ACTION_COLOURS: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0),
    (0, 114, 178), (178, 223, 138), (251, 180, 174), (190, 174, 212), (166, 97, 26), (128, 205, 193),
    (118, 42, 131), (90, 120, 40), (255, 255, 255), (120, 20, 40), (60, 220, 220), (255, 130, 80),
    (150, 150, 255), (200, 200, 120),
)
# fmt: on
HEAT_OPACITY = 0.7
"""Share of the game that the greatest heat hides, from 0 to 1."""
PANEL_GAP = 4
"""Pixels between the panels of a strip."""
SMALLEST_PANEL = 160
"""Width in pixels below which a picture is enlarged by a whole factor, to make room for its title."""
SMALLEST_TEXT = 9
"""Height in pixels below which a text is cut instead of made smaller."""


# ------------------------------------------------------------------------------------------------------------
# Still images


def encode_png(image: np.ndarray) -> bytes:
    """Return the content of a PNG file of an image."""
    options = [cv2.IMWRITE_PNG_COMPRESSION, 6]  # half the size of OpenCV's default
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def heat_colours(heat: np.ndarray) -> np.ndarray:
    """Colour a heat map by INFERNO, which rises evenly in lightness, so that the colour-blind can read it.

    Args:
        heat: float (H, W) in [0, 1]; values outside are clipped.
    """
    levels = np.rint(255 * np.clip(heat, 0, 1)).astype(np.uint8)
    colours: np.ndarray = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return colours


def overlay(frame: np.ndarray, heat: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Lay a heat map over a frame, as opaque as it is hot, and outline the targets.

    The line, with a dark edge, runs along the mask's border just outside it, so that the target itself stays
    in view; it passes by gaps of up to 4 pixels, such as those between a monster's legs.

    Args:
        frame: uint8, grey (H, W) or RGB (H, W, 3).
        heat: float (h, w) in [0, 1], upsampled bilinearly.
        mask: uint8 {0, 1} (H_m, W_m) of the targets, or None for no outline.

    Returns:
        The image at the frame's size.
    """
    frame = _as_rgb(frame)
    size = (frame.shape[1], frame.shape[0])
    smooth = cv2.resize(heat.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    opacity = HEAT_OPACITY * np.clip(smooth, 0, 1)[..., None]
    colours = heat_colours(smooth).astype(np.float32)
    image: np.ndarray = np.rint(frame + opacity * (colours - frame)).astype(np.uint8)
    if mask is not None and mask.any():
        targets = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        targets = cv2.morphologyEx(targets, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
        cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
        border = cv2.dilate(targets, cross)
        edge = cv2.dilate(border, cross)
        image[edge != border] //= 3
        image[border != targets] = OUTLINE
    return image


def enlarged(image: np.ndarray, smallest: int = SMALLEST_PANEL) -> np.ndarray:
    """Repeat each pixel of an image, (H, W) or (H, W, 3), until it is at least `smallest` pixels wide."""
    factor = -(-smallest // image.shape[1])
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def attention_strip(
    frame: np.ndarray,
    mask: np.ndarray,
    heats: Mapping[str, np.ndarray],
    caption: str = "",
    subject: Literal["frame", "image"] = "frame",
    smallest: int = SMALLEST_PANEL,
) -> np.ndarray:
    """Draw a row of titled panels: frame, target mask and, of each heat map, itself and it over the frame.

    Args:
        frame: uint8, grey (h', w') or RGB (h', w', 3); enlarged to the mask's resolution where it is smaller.
        mask: uint8 {0, 1} (H, W) of the targets.
        heats: name -> float (h, w) in [0, 1]; a single heat map needs no name ("").
        caption: one line above all panels; a bar of the heat maps' colours ends it.
        subject: word for the frame in the titles.
        smallest: least width of a panel, in pixels.
    """
    height, width = (max(sizes) for sizes in zip(frame.shape[:2], mask.shape, strict=True))
    frame = cv2.resize(_as_rgb(frame), (width, height), interpolation=cv2.INTER_NEAREST)
    targets = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    frame, targets = enlarged(frame, smallest), enlarged(targets, smallest)
    height, width = targets.shape
    title = "target mask" if subject == "frame" else "mask"
    panels = [
        (subject, frame),
        (title if mask.any() else f"{title} (none in view)", _as_rgb(255 * targets)),
    ]
    for name, heat in heats.items():
        state = "" if heat.max() > 0 else " (dead map)"
        smooth = cv2.resize(heat.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        panels += [
            ((f"{name}: attention" if name else "attention") + state, heat_colours(smooth)),
            (f"{name}: over {subject}" if name else f"attention over {subject}", overlay(frame, heat, mask)),
        ]
    gap = PANEL_GAP
    whole = gap + (width + gap) * len(panels)
    text_size = max(round(whole / 80), 10)  # 11 pixels where a report's page shows all of it
    bar = 2 * round(0.8 * text_size)
    top = gap + bar * (2 if caption else 1)
    strip = _canvas(top + height + gap, whole)
    if caption:
        end, middle = whole - gap - 4, gap + bar // 2
        if heats:
            right, half = end - text_size, text_size // 2
            left = right - 6 * text_size
            strip[middle - half : middle + half, left:right] = heat_colours(
                np.linspace(0, 1, right - left)[None]
            )
            _write(strip, "1", end, middle, text_size, align="r")
            _write(strip, "attention 0", left - half, middle, text_size, align="r")
            end = left - 7 * text_size
        _write(strip, caption, gap + 4, middle, text_size, width=end - gap - 4)
    for index, (title, panel) in enumerate(panels):
        left = gap + (width + gap) * index
        strip[top - bar : top, left : left + width] = BAR
        _write(strip, title, left + 4, top - bar // 2, text_size, width=width - 8)
        strip[top : top + height, left : left + width] = panel
    return strip


def stack_strips(strips: Sequence[np.ndarray]) -> np.ndarray:
    """Stack strips on top of each other, narrow ones padded on the right."""
    width = max(strip.shape[1] for strip in strips)
    return np.concatenate([_padded(strip, right=width - strip.shape[1]) for strip in strips])


def _canvas(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), BACKGROUND, np.uint8)


def _padded(image: np.ndarray, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> np.ndarray:
    return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=BACKGROUND)


def _as_rgb(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _write(
    image: np.ndarray,
    text: str,
    x: int,
    middle: int,
    size: int = 11,
    colour: Colour = TEXT,
    align: Literal["l", "m", "r"] = "l",
    width: float = np.inf,
) -> None:
    """Write a line of text around row `middle`, from column `x` on ("l"), around it ("m") or up to it ("r").

    A text wider than `width` pixels is made smaller, then cut.
    """
    while size > SMALLEST_TEXT and _font(size).getlength(text) > width:
        size -= 1
    while len(text) > 1 and _font(size).getlength(text) > width:
        text = f"{text[:-2].rstrip()}…"
    top = max(middle - size, 0)
    rows = slice(top, middle + size)
    band = Image.fromarray(image[rows])
    ImageDraw.Draw(band).text((x, middle - top), text, colour, _font(size), f"{align}m")
    image[rows] = band


# ------------------------------------------------------------------------------------------------------------
# Episodes


class Trace(NamedTuple):
    """An agent's episode of T steps, T at least 1, as it decided."""

    title: str  # who plays what
    heats: np.ndarray  # float (T, h, w) in [0, 1], attention
    values: np.ndarray  # float (T,), the critic's value of each frame
    actions: np.ndarray  # int (T,), indices into `action_names`
    rewards: np.ndarray  # float (T,), raw
    ious: np.ndarray  # float (T,), NaN where no target is in view
    action_names: Sequence[str]  # "nothing" is shown in grey
    # What `doom.replay` gives for every tic: the index of its step, the screen, and the target mask.
    tics: Iterable[tuple[int, np.ndarray, np.ndarray]]


# Rows and columns of a column of a video, in pixels. All sizes of whole frames are even, as yuv420p needs.
GAP, SCREEN_WIDTH = 8, 320
HEADER, SCREENS, PLOT, STRIP = slice(0, 60), slice(86, 326), slice(346, 431), slice(434, 446)
CAPTION, LEGEND, LEGEND_LINE = 75, 452, 16
GUTTER = 52  # left of a plot, for the labels of its axis
SUBPIXEL = 16  # OpenCV draws lines at sixteenths of a pixel


def video_frames(traces: Sequence[Trace]) -> Iterator[np.ndarray]:
    """Draw the frames of a video of one agent, or of two side by side: one a tic, of the same, even size.

    One agent: the game beside the game with attention and outlined targets. Two: a column each, with the
    latter only; when one episode is over, its last screen stays, dimmed, until the other is over too. A title
    bar gives the step, the return up to and including that step, the critic's value, the IoU and the action.
    The plots below show values and actions so far, on axes that are fixed for the episode and the same for
    both agents.

    Args:
        traces: one or two, of screens of 240 x 320 pixels; their `tics` are taken one at a time.
    """
    values = np.concatenate([trace.values for trace in traces])
    steps = max(len(trace.values) for trace in traces)
    limits = (float(values.min()), float(values.max()))
    columns = [_Column(trace, 3 - len(traces), steps, limits) for trace in traces]
    for tics in itertools.zip_longest(*(trace.tics for trace in traces)):
        shown = (c.show(*tic) if tic else c.ended() for c, tic in zip(columns, tics, strict=True))
        row = np.concatenate([_padded(picture, left=GAP) for picture in shown], axis=1)
        yield _padded(row, GAP, GAP, right=GAP)


class _Column:
    """The part of a video frame that shows one agent.

    From top to bottom: title; fields of the step; screens; values and actions so far; legend.
    """

    def __init__(self, trace: Trace, screens: int, steps: int, limits: tuple[float, float]) -> None:
        self.trace, self.limits = trace, limits
        self.lefts = [(SCREEN_WIDTH + GAP) * index for index in range(screens)]  # of the screens
        width = self.lefts[-1] + SCREEN_WIDTH
        self.pixels_per_step = (width - GUTTER - 4) / steps
        self.fields = [10 + round((width - 20) * part) for part in (0, 0.24, 0.4, 0.56, 0.69, 1)]
        self.returns = np.cumsum(trace.rewards, dtype=np.float64)
        self.step = -1
        self.legend = []  # column and middle row of each action
        x, middle = 0, LEGEND + LEGEND_LINE // 2
        for name in trace.action_names:
            advance = round(_font(11).getlength(name)) + 25
            if x and x + advance > width:
                x, middle = 0, middle + LEGEND_LINE
            self.legend.append((x, middle))
            x += advance

        # All but what belongs to the current step, and all of it.
        self.past = self.picture = _canvas(middle + LEGEND_LINE // 2, width)
        self.past[HEADER] = BAR
        _write(self.past, trace.title, 10, 15, 15, width=width - 20)
        for label, x in zip(("step", "return", "value", "IoU", "action"), self.fields, strict=False):
            _write(self.past, label, x, 33, 10, MUTED)
        if screens > 1:
            _write(self.past, "game", 0, CAPTION, colour=MUTED)
        _write(self.past, "critic's value, in training rewards", GUTTER, PLOT.start - 8, colour=MUTED)
        self.past[PLOT, GUTTER - 4 :] = BAR
        for value in limits:
            row = self._point(0, value)[1] // SUBPIXEL
            self.past[row, GUTTER - 4 :] = GRID
            _write(self.past, f"{value:.3g}", GUTTER - 10, row, 10, MUTED, "r", GUTTER - 12)
        _write(self.past, "action", GUTTER - 10, 440, 10, MUTED, "r")
        self.past[STRIP, GUTTER - 4 :] = BAR

    def _point(self, step: int, value: float) -> tuple[int, int]:
        """Column and row of a value in the plot, in sixteenths of a pixel."""
        low, high = self.limits
        share = (value - low) / (high - low) if high > low else 0.5
        row = PLOT.stop - 9 - share * (PLOT.stop - PLOT.start - 17)
        column = GUTTER + (step + 0.5) * self.pixels_per_step
        return round(column * SUBPIXEL), round(row * SUBPIXEL)

    def _colour(self, action: int) -> Colour:
        return NOTHING if action == 0 else ACTION_COLOURS[(action - 1) % len(ACTION_COLOURS)]

    def show(self, step: int, screen: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Draw a tic of a step."""
        if step != self.step:
            self._begin(step)
        panels = [screen] * (len(self.lefts) - 1) + [overlay(screen, self.trace.heats[step], mask)]
        for left, panel in zip(self.lefts, panels, strict=True):
            self.picture[SCREENS, left : left + SCREEN_WIDTH] = panel
        return self.picture

    def _begin(self, step: int) -> None:
        """Draw the first picture of the step after the last one, but for the screens."""
        trace, self.step = self.trace, step
        action, value = int(trace.actions[step]), float(trace.values[step])
        point = self._point(step, value)
        previous = self._point(step - 1, float(trace.values[step - 1])) if step else point
        cv2.line(self.past, previous, point, TEXT, 1, cv2.LINE_AA, 4)
        left, right = (round(GUTTER + end * self.pixels_per_step) for end in (step, step + 1))
        self.past[STRIP, left : max(right, left + 1)] = self._colour(action)  # steps can be below a pixel
        self.picture = self.past.copy()
        self.picture[PLOT, point[0] // SUBPIXEL] = MUTED
        cv2.circle(self.picture, point, 3 * SUBPIXEL, TEXT, -1, cv2.LINE_AA, 4)
        texts = (
            f"{step + 1} / {len(trace.values)}",
            f"{self.returns[step]:.6g}",
            f"{value:.4g}",
            "\N{EN DASH}" if np.isnan(trace.ious[step]) else f"{trace.ious[step]:.2f}",
            trace.action_names[action],
        )
        for text, (x, end) in zip(texts, itertools.pairwise(self.fields), strict=True):
            _write(self.picture, text, x, 49, 13, width=end - x - 8)
        alive = trace.heats[step].max() > 0
        caption = "attention and outlined targets" if alive else "no attention: the map is dead"
        _write(self.picture, caption, self.lefts[-1], CAPTION, colour=MUTED)
        for index, (x, middle) in enumerate(self.legend):
            self.picture[middle - 4 : middle + 4, x : x + 8] = self._colour(index)
            colour = TEXT if index == action else MUTED
            _write(self.picture, trace.action_names[index], x + 13, middle, colour=colour)

    def ended(self) -> np.ndarray:
        """Return the last picture with dimmed screens, over which is written that the episode is over."""
        picture: np.ndarray = self.picture.copy()
        for left in self.lefts:
            picture[SCREENS, left : left + SCREEN_WIDTH] //= 3
            _write(picture, "ended", left + SCREEN_WIDTH // 2, 206, 28, align="m")
        return picture


# ------------------------------------------------------------------------------------------------------------
# Files


def encode_video(frames: Iterable[np.ndarray], frames_per_second: int) -> bytes:
    """Return the content of an MP4 file that browsers play: H.264, yuv420p, its index ahead of its pictures.

    The same frames give the same bytes, on the same build of PyAV.

    Args:
        frames: at least one image, all of the same, even size; taken one at a time.
        frames_per_second: at least 1.

    Raises:
        UserError: this PyAV can't encode H.264, or the temporary folder is full.
    """
    import av  # takes a tenth of a second, and training, which draws pictures, makes no videos

    if "libx264" not in av.codecs_available:
        raise UserError(
            "this build of PyAV has no libx264, so it can't encode H.264 videos. "
            "Install the build from PyPI: pip install --force-reinstall --only-binary av av"
        )
    frames = iter(frames)
    first = next(frames)
    # With AVX-512, x264's macroblock tree reads memory that nobody wrote: files would differ.
    options = {"crf": "33", "preset": "fast", "threads": "1", "x264-params": "no-mbtree=1"}
    # What FFmpeg converts RGB to; where a file does not say so, players guess.
    options |= {"colorspace": "smpte170m", "color_range": "tv"}
    try:
        # FFmpeg moves the index to the front by opening the file a second time, so it has to be a real one.
        with tempfile.TemporaryDirectory(prefix="camal_rl-") as folder:
            path = Path(folder) / "video.mp4"
            with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
                stream = container.add_stream("libx264", frames_per_second, options=options)
                stream.height, stream.width = first.shape[:2]
                stream.pix_fmt = "yuv420p"
                for index, image in enumerate(itertools.chain([first], frames)):
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                    frame.pts, frame.time_base = index, Fraction(1, frames_per_second)
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
            return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"can't make a video in {tempfile.gettempdir()}: {error.strerror or error}. "
            "Free some space there, or set TMPDIR to another folder."
        ) from error


def encode_gif(frames: Sequence[np.ndarray], frames_per_second: float) -> bytes:
    """Return the content of an animated GIF file that loops for ever, in 128 colours that all frames share.

    GIF counts in hundredths of a second: a frame lasts as many as keep the whole at its rate. Equal frames in
    a row become one that lasts as long.

    Args:
        frames: at least one image, all of the same size.
        frames_per_second: above 0, at most 50: browsers slow faster ones down.
    """
    sample = np.concatenate(frames[:: -(-len(frames) // 8)])
    palette = Image.fromarray(sample).quantize(128, Image.Quantize.FASTOCTREE)
    none = Image.Dither.NONE
    first, *others = (Image.fromarray(frame).quantize(palette=palette, dither=none) for frame in frames)
    ends = [round(100 * index / frames_per_second) for index in range(len(frames) + 1)]
    durations = [10 * (end - start) for start, end in itertools.pairwise(ends)]  # milliseconds
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=False)
    return file.getvalue()
