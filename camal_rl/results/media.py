"""Pictures and videos of attention: heat maps over frames, beside the targets' masks and the critic's values.

Every image is uint8 (H, W, 3), RGB.
"""

from __future__ import annotations

import io
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from camal_rl.errors import UserError

if TYPE_CHECKING:
    from PIL import ImageFont

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
"""How much of the game the greatest heat hides, from 0 to 1."""
SMALLEST_TEXT = 9
"""In pixels; below this, text is cut instead."""
GAP = 8
"""Pixels around the parts of a video frame; even, so that the game's colours stay sharp in yuv420p."""
SMALLEST_PANEL = 160
"""Pixels: a narrower picture is enlarged by a whole factor, or there would be no room to say what it is."""
SMALLEST_COLUMN = 320
"""Pixels: a narrower screen is enlarged by a whole factor, or a video's text would not fit."""
GUTTER = 48
"""Pixels at the left of a plot, for the labels of its axis."""
INSET = 4
"""Pixels between the edges of a plot and its first and last step, for the dot at the current step."""


# ------------------------------------------------------------------------------------------------------------
# Still images


def encode_png(image: np.ndarray) -> bytes:
    """The content of a PNG file of an image."""
    _check_image(image)
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def heat_colours(heat: np.ndarray) -> np.ndarray:
    """Colours of a heat map: INFERNO, which rises evenly in lightness, so that the colour-blind can read it.

    Args:
        heat: float (H, W) in [0, 1]; what is outside is clipped.
    """
    levels = np.rint(255 * np.clip(heat, 0, 1)).astype(np.uint8)
    colours: np.ndarray = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return colours


def overlay(frame: np.ndarray, heat: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """A heat map over a frame, as opaque as it is hot, and around the targets a line with a dark edge.

    The line runs along the mask's border just outside it, so that the target itself stays in view; gaps of up
    to 4 pixels, as between a monster's legs, it passes by.

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
    """The image, (H, W) or (H, W, 3), with each pixel repeated until it is not narrower than this."""
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
    """One row of titled panels: frame, target mask and, for each heat map, itself and itself over the frame.

    Args:
        frame: uint8, grey (h', w') or RGB (h', w', 3); enlarged to the mask's resolution where it is smaller.
        mask: uint8 {0, 1} (H, W) of the targets.
        heats: name -> float (h, w) in [0, 1]; a single heat map needs no name ("").
        caption: one line above all panels.
        subject: what the titles call the frame.
        smallest: width of a panel, at least.
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
    text_size = min(max(round(height / 18), 10), 14)
    bar, gap = 2 * round(0.8 * text_size), 4
    top = gap + bar * (2 if caption else 1)
    strip = _canvas(top + height + gap, gap + (width + gap) * len(panels))
    if caption:
        _write(strip, caption, gap + 4, gap + bar // 2, text_size, width=strip.shape[1] - 2 * gap - 8)
    for index, (title, panel) in enumerate(panels):
        left = gap + (width + gap) * index
        strip[top - bar : top, left : left + width] = BAR
        _write(strip, title, left + 4, top - bar // 2, text_size, width=width - 8)
        strip[top : top + height, left : left + width] = panel
    return strip


def stack_strips(strips: Sequence[np.ndarray]) -> np.ndarray:
    """Strips on top of each other, narrow ones padded on the right.

    Raises:
        ValueError: there is none, or one is no image.
    """
    if not strips:
        raise ValueError("no strips to stack: pass at least one")
    for strip in strips:
        _check_image(strip)
    stacked = _canvas(sum(strip.shape[0] for strip in strips), max(strip.shape[1] for strip in strips))
    top = 0
    for strip in strips:
        stacked[top : top + strip.shape[0], : strip.shape[1]] = strip
        top += strip.shape[0]
    return stacked


def _canvas(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), BACKGROUND, np.uint8)


def _as_rgb(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{image.dtype} {image.shape} is no image: it has to be uint8 (H, W, 3), RGB")


# ------------------------------------------------------------------------------------------------------------
# Text


def _write(
    image: np.ndarray,
    text: str,
    x: float,
    middle: int,
    size: int,
    colour: Colour = TEXT,
    align: float = 0.0,
    width: int | None = None,
) -> None:
    """Write one line, its capitals centred on row `middle`; to fit `width` it is made smaller, then cut.

    `align` is the fraction of the text that lies left of `x`: 0 starts there, 1 ends there.
    """
    text, size = _fit(text, size, width)
    glyphs, ascent = _glyphs(text, size)
    left, top = round(x - align * glyphs.shape[1]), middle + round(0.36 * size) - ascent
    rows = slice(max(top, 0), max(top + glyphs.shape[0], 0))
    columns = slice(max(left, 0), max(left + glyphs.shape[1], 0))
    area = image[rows, columns]
    cover = glyphs[rows.start - top :, columns.start - left :][: area.shape[0], : area.shape[1], None]
    area[:] = np.rint(area + cover * (np.array(colour, np.float32) - area))


@lru_cache(maxsize=512)
def _glyphs(text: str, size: int) -> tuple[np.ndarray, int]:
    """How much of each pixel a text covers, float32 (h, w) in [0, 1], and the row of its baseline."""
    from PIL import Image, ImageDraw

    font = _font(size)
    ascent, descent = font.getmetrics()
    image = Image.new("L", (max(round(font.getlength(text)), 1), ascent + descent))
    ImageDraw.Draw(image).text((0, 0), text, fill=255, font=font)
    return np.asarray(image, np.float32) / 255, ascent


@lru_cache(maxsize=512)
def _fit(text: str, size: int, width: int | None) -> tuple[str, int]:
    if width is None:
        return text, size
    while size > SMALLEST_TEXT and _text_width(text, size) > width:
        size -= 1
    if _text_width(text, size) > width:
        while text and _text_width(f"{text}…", size) > width:
            text = text[:-1].rstrip()
        text = f"{text}…"
    return text, size


def _text_width(text: str, size: int) -> float:
    return _font(size).getlength(text)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


# ------------------------------------------------------------------------------------------------------------
# Episodes


@dataclass(frozen=True)
class Trace:
    """One agent's episode of T steps as it decided.

    Raises:
        ValueError: there is no step, the lengths differ, or an action has no name.
    """

    title: str
    """Who plays what."""
    heats: np.ndarray
    """Attention at each step: float (T, h, w) in [0, 1]."""
    values: np.ndarray
    """The critic's value of what it saw at each step: float (T,)."""
    actions: np.ndarray
    """What it did: int (T,), indices into `action_names`."""
    rewards: np.ndarray
    """What it got for that: float (T,), raw."""
    action_names: Sequence[str]
    """As they are shown; "nothing" is grey."""
    tics: Iterable[tuple[int, np.ndarray, np.ndarray]]
    """One a tic: index of the step, ascending; screen, uint8 (H, W, 3); target mask, uint8 {0, 1} (H, W)."""

    def __post_init__(self) -> None:
        lengths = [len(array) for array in (self.heats, self.values, self.actions, self.rewards)]
        if lengths[0] == 0 or len(set(lengths)) > 1:
            raise ValueError(
                "an episode has at least one step, and of each a heat map, a value, an action and a reward; "
                f"their numbers are {', '.join(map(str, lengths))}"
            )
        if self.actions.min() < 0 or self.actions.max() >= len(self.action_names):
            raise ValueError(
                f"actions go from {self.actions.min()} to {self.actions.max()}, "
                f"but there are {len(self.action_names)} action names"
            )


def video_frames(traces: Sequence[Trace]) -> Iterator[np.ndarray]:
    """The frames of a video of one agent, or of two side by side: one a tic, of the same, even size.

    One agent: the game in colour beside the game with attention and outlined targets. Two: a column each,
    with the latter only; when one episode is over, its last screen stays, dimmed, until the other is over
    too. A title bar gives the step, the return up to and including that step, the critic's value and the
    action. The plot below gives values and actions so far, on axes that are fixed for the episode and the
    same for both agents.

    Args:
        traces: one or two, of screens of the same size; their `tics` are taken one at a time.

    Raises:
        ValueError: neither one nor two traces, one without a tic, screens of different sizes, or steps that
            descend or are not in the trace. Raised when the frame in question is asked for.
    """
    if len(traces) not in (1, 2):
        raise ValueError(f"{len(traces)} traces: a video shows one agent, or two side by side")
    sources = [iter(trace.tics) for trace in traces]
    upcoming = [next(source, None) for source in sources]
    sizes = {None if tic is None else tic[1].shape for tic in upcoming}
    size = sizes.pop()
    if size is None or sizes:
        raise ValueError("each trace needs at least one tic, and the screens of all the same size")
    steps = max(len(trace.values) for trace in traces)
    values = np.concatenate([trace.values for trace in traces])
    limits = (float(values.min()), float(values.max()))
    columns = [_Column(trace, size[:2], len(traces) == 1, steps, limits) for trace in traces]
    height = max(column.image.shape[0] for column in columns) + 2 * GAP
    width = sum(column.image.shape[1] + GAP for column in columns) + GAP
    empty = _canvas(height + height % 2, width + width % 2)
    while any(tic is not None for tic in upcoming):
        frame = empty.copy()
        left = GAP
        for index, (column, tic) in enumerate(zip(columns, upcoming, strict=True)):
            if tic is None:
                column.end()
            else:
                column.show(*tic)
                upcoming[index] = next(sources[index], None)
            rows, width_now = column.image.shape[:2]
            frame[GAP : GAP + rows, left : left + width_now] = column.image
            left += width_now + GAP
        yield frame


class _Column:
    """What a video shows of one trace: title bar, game and plot; `image` is drawn anew only where it changes.

    From top to bottom: the title; step, return, value and action; captions of the screens; the screens; the
    plot of values; the strip of actions; their legend.
    """

    def __init__(
        self,
        trace: Trace,
        screen_size: tuple[int, int],
        with_plain: bool,
        steps: int,
        limits: tuple[float, float],
    ) -> None:
        self.trace = trace
        self.steps, self.limits = steps, limits  # of the plot's axes
        self.screen_size = screen_size
        self.factor = -(-SMALLEST_COLUMN // screen_size[1])
        height, width = (self.factor * side for side in screen_size)
        self.step = -1
        self.ended = False
        self.returns = np.cumsum(trace.rewards, dtype=np.float64)
        self.decimals = _decimals(limits[1] - limits[0])

        self.lefts = [(width + GAP) * index for index in range(1 + with_plain)]
        total_width = self.lefts[-1] + width
        self.fields_top, caption_top = 26, 66
        self.captions = slice(caption_top, caption_top + 20)
        self.screens = slice(caption_top + 20, caption_top + 20 + height)
        plot_top = self.screens.stop + 20
        self.plot = slice(plot_top, plot_top + 85)
        self.strip = slice(self.plot.stop + 3, self.plot.stop + 15)
        self.legend_top = self.strip.stop + 6
        self.legend = _legend(trace, total_width)
        lines = 1 + max(line for line, _, _ in self.legend)
        self.image = _canvas(self.legend_top + 16 * lines, total_width)

        self.image[: caption_top - 6] = BAR
        _write(self.image, trace.title, 10, 15, 15, width=total_width - 20)
        # The action's name is the longest of the four fields.
        self.fields = [10 + round((total_width - 20) * part) for part in (0, 0.25, 0.43, 0.61)]
        for label, x in zip(("step", "return", "value", "action"), self.fields, strict=True):
            _write(self.image, label, x, self.fields_top + 7, 10, MUTED)
        if with_plain:
            _write(self.image, "game", 0, caption_top + 9, 11, MUTED, width=width)
        _write(self.image, "critic's value, in training rewards", GUTTER, self.plot.start - 8, 11, MUTED)
        _write(self.image, "action", GUTTER - 6, self.strip.start + 6, 10, MUTED, align=1)
        self._draw_plot()

    def _draw_plot(self) -> None:
        """Draw the plot without its line into the image, and keep it whole: `show` uncovers it up to now."""
        values = self.trace.values.astype(np.float64)
        height, margin = self.plot.stop - self.plot.start, 8
        width = self.image.shape[1] - GUTTER - 2 * INSET
        low, high = self.limits

        def rows(some: np.ndarray) -> np.ndarray:
            share = (some - low) / (high - low) if high > low else np.full(len(some), 0.5)
            return np.asarray((height - 1 - margin) - share * (height - 1 - 2 * margin))

        self.rows = rows(values)
        self.centres = INSET + (np.arange(len(values)) + 0.5) * width / self.steps
        end = INSET + len(values) * width / self.steps - 1
        area = self.image[self.plot, GUTTER:]
        area[:] = BAR
        for value, row in zip((low, high), np.rint(rows(np.array([low, high]))).astype(int), strict=True):
            area[row] = GRID
            label = f"{value:.{self.decimals}f}"
            _write(self.image, label, GUTTER - 6, self.plot.start + row, 10, MUTED, align=1, width=GUTTER - 8)
            if high == low:
                break
        whole = area.copy()
        # From edge to edge, so that an episode of one step has a line too.
        xs, ys = np.r_[INSET, self.centres, end], np.r_[self.rows[0], self.rows, self.rows[-1]]
        points = np.rint(np.stack([xs, ys], axis=1) * 16).astype(np.int32)  # 4 fractional bits
        cv2.polylines(whole, [points], False, TEXT, 1, cv2.LINE_AA, 4)
        self.plot_empty, self.plot_whole = area.copy(), whole

        self.image[self.strip, GUTTER:] = BAR
        colours = np.array([_action_colour(self.trace, action) for action in self.trace.actions], np.uint8)
        # Pixels up to a step's end: more steps than pixels share them.
        self.step_ends = -(-np.arange(1, len(values) + 1) * width // self.steps)
        self.strip_whole = colours[np.arange(self.step_ends[-1]) * self.steps // width]  # (pixels, 3)

    def show(self, step: int, screen: np.ndarray, mask: np.ndarray) -> None:
        """Draw a tic of a step."""
        _check_image(screen)
        if screen.shape[:2] != self.screen_size:
            raise ValueError(f"a screen of {screen.shape} among screens of {self.screen_size} pixels")
        if step != self.step:
            if not self.step < step < len(self.trace.values):
                raise ValueError(
                    f"a tic of step {step} after one of step {self.step}, of {len(self.trace.values)} steps"
                )
            self.step = step
            self._show_step()
        if self.factor > 1:
            screen = screen.repeat(self.factor, axis=0).repeat(self.factor, axis=1)
        panels = [screen] * (len(self.lefts) - 1) + [overlay(screen, self.trace.heats[step], mask)]
        for left, panel in zip(self.lefts, panels, strict=True):
            self.image[self.screens, left : left + panel.shape[1]] = panel

    def _show_step(self) -> None:
        step, trace = self.step, self.trace
        texts = (
            f"{step + 1} / {len(trace.values)}",
            f"{self.returns[step]:.6g}",
            f"{trace.values[step]:.{self.decimals}f}",
            trace.action_names[trace.actions[step]],
        )
        fields = slice(self.fields_top + 14, self.fields_top + 34)
        self.image[fields] = BAR
        rights = [*self.fields[1:], self.image.shape[1]]
        for text, left, right in zip(texts, self.fields, rights, strict=True):
            _write(self.image, text, left, fields.start + 9, 13, width=right - left - 8)

        left, shown = self.lefts[-1], trace.heats[step].max() > 0
        self.image[self.captions, left:] = BACKGROUND
        caption = "attention and outlined targets" if shown else "no attention: the map is dead"
        _write(
            self.image, caption, left, self.captions.start + 9, 11, MUTED, width=self.image.shape[1] - left
        )

        area = self.image[self.plot, GUTTER:]
        now = int(self.centres[step])
        area[:, : now + 1] = self.plot_whole[:, : now + 1]
        area[:, now + 1 :] = self.plot_empty[:, now + 1 :]
        area[:, now] = MUTED
        centre = (round(self.centres[step] * 16), round(self.rows[step] * 16))
        cv2.circle(area, centre, 3 * 16, TEXT, -1, cv2.LINE_AA, 4)
        end = self.step_ends[step]
        self.image[self.strip, GUTTER + INSET : GUTTER + INSET + end] = self.strip_whole[:end]

        self.image[self.legend_top :] = BACKGROUND
        for line, x, action in self.legend:
            middle = self.legend_top + 16 * line + 8
            self.image[middle - 4 : middle + 4, x : x + 8] = _action_colour(trace, action)
            colour = TEXT if action == trace.actions[step] else MUTED
            _write(self.image, trace.action_names[action], x + 13, middle, 11, colour)

    def end(self) -> None:
        """Dim the last screen and write over it that the episode is over."""
        if self.ended:
            return
        self.ended = True
        for left in self.lefts:
            screen = self.image[self.screens, left : left + self.factor * self.screen_size[1]]
            screen //= 3
            _write(screen, "ended", screen.shape[1] / 2, screen.shape[0] // 2, 28, align=0.5)


def _decimals(span: float) -> int:
    """Decimals that tell values apart which lie within `span`."""
    return int(np.clip(2 - np.floor(np.log10(span)), 0, 4)) if span > 0 else 2


def _action_colour(trace: Trace, action: int) -> Colour:
    """The same in every trace of the same actions, however few of them were taken."""
    if trace.action_names[action] == "nothing":
        return NOTHING
    others = sum(name != "nothing" for name in trace.action_names[:action])
    return ACTION_COLOURS[others % len(ACTION_COLOURS)]


def _legend(trace: Trace, width: int) -> list[tuple[int, int, int]]:
    """Line, x and action of each action that is ever taken: in one line of `width` pixels, or in columns."""
    actions = np.unique(trace.actions).tolist()
    widths = [round(_text_width(trace.action_names[action], 11)) + 25 for action in actions]
    if sum(widths) <= width:
        return [(0, sum(widths[:index]), action) for index, action in enumerate(actions)]
    columns = max(width // max(widths), 1)
    return [
        (index // columns, index % columns * width // columns, action) for index, action in enumerate(actions)
    ]


# ------------------------------------------------------------------------------------------------------------
# Files


def encode_video(frames: Iterable[np.ndarray], frames_per_second: int) -> bytes:
    """The content of an MP4 file that browsers play: H.264, yuv420p, its index ahead of its pictures.

    The same frames give the same bytes, on the same build of PyAV.

    Args:
        frames: images of the same, even size; taken one at a time.
        frames_per_second: at least 1.

    Raises:
        ValueError: no frame, sizes that differ or are odd, or a rate below 1.
        UserError: this PyAV can't encode H.264, or the temporary folder is full.
    """
    import av

    if frames_per_second < 1:
        raise ValueError(f"{frames_per_second} frames per second: at least 1 is needed")
    if "libx264" not in av.codecs_available:
        raise UserError(
            "this build of PyAV has no libx264, so it can't encode H.264 videos. "
            "Install the build from PyPI: pip install --force-reinstall --only-binary av av"
        )
    first, frames = _first(frames)
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"frames of {width} x {height} pixels: yuv420p needs an even width and height")
    try:
        # FFmpeg moves the index to the front by opening the file a second time, so it has to be a real one.
        with tempfile.TemporaryDirectory(prefix="camal_rl-") as folder:
            file = Path(folder) / "video.mp4"
            _encode(file, (width, height), frames, frames_per_second)
            return file.read_bytes()
    except OSError as error:
        raise UserError(
            f"can't make a video in {tempfile.gettempdir()}: {error.strerror or error}. "
            "Free some space there, or set TMPDIR to another folder."
        ) from error


def _encode(file: Path, size: tuple[int, int], frames: Iterable[np.ndarray], frames_per_second: int) -> None:
    import av

    with av.open(str(file), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=frames_per_second)
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        stream.options = {
            "crf": "25",
            "preset": "faster",
            "threads": "1",
            # With AVX-512, x264's macroblock tree reads memory that nobody wrote: files would differ.
            "x264-params": "no-mbtree=1",
            # What FFmpeg converts RGB to; where a file does not say so, players guess.
            "colorspace": "smpte170m",
            "color_range": "tv",
        }
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, frames_per_second)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def encode_gif(frames: Sequence[np.ndarray], frames_per_second: float) -> bytes:
    """The content of an animated GIF file that loops for ever, in 128 colours that all its frames share.

    GIF counts in hundredths of a second: a frame lasts as many as keep the whole at its rate. Equal frames in
    a row become one that lasts as long.

    Args:
        frames: images of the same size.
        frames_per_second: above 0, at most 50: browsers slow faster ones down.

    Raises:
        ValueError: no frame, sizes that differ, or a rate that is out of range.
    """
    from PIL import Image

    if not 0 < frames_per_second <= 50:
        raise ValueError(f"{frames_per_second} frames per second: a GIF has more than 0 and at most 50")
    _, checked = _first(frames)
    images = [Image.fromarray(frame) for frame in checked]
    sample = np.concatenate([frames[index] for index in range(0, len(frames), -(-len(frames) // 8))])
    palette = Image.fromarray(sample).quantize(128, Image.Quantize.FASTOCTREE)
    paletted = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    ends = [round(100 * index / frames_per_second) for index in range(len(frames) + 1)]
    durations = [10 * (end - start) for start, end in itertools.pairwise(ends)]  # milliseconds
    buffer = io.BytesIO()
    paletted[0].save(
        buffer, "GIF", save_all=True, append_images=paletted[1:], duration=durations, loop=0, optimize=False
    )
    return buffer.getvalue()


def _first(frames: Iterable[np.ndarray]) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """The first frame, and all of them, each checked when it is taken."""
    source = iter(frames)
    first = next(source, None)
    if first is None:
        raise ValueError("no frames: pass at least one")
    _check_image(first)

    def checked() -> Iterator[np.ndarray]:
        for frame in itertools.chain([first], source):
            _check_image(frame)
            if frame.shape != first.shape:
                raise ValueError(f"a frame of {frame.shape} after frames of {first.shape}")
            yield frame

    return first, checked()
