"""What pictures and videos show, read back from their pixels and from the files they are encoded to."""

import io
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from camal_rl.errors import UserError
from camal_rl.results import media

font = media._font
ROOT = Path(__file__).resolve().parent.parent
NAMES = ("nothing", "ATTACK", "MOVE_RIGHT", "MOVE_LEFT")
SCREEN = (240, 320)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def rectangle(height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[rows, columns] = 1
    return mask


def pixels_of(image: np.ndarray, colour: Sequence[int]) -> np.ndarray:
    found: np.ndarray = (image == colour).all(axis=-1)
    return found


def make_trace(steps: int = 5, tics_a_step: int = 4, **changes: Any) -> media.Trace:
    """An episode whose screens are grey: 90, and 1 more with each tic."""
    tics = [
        (tic // tics_a_step, np.full((*SCREEN, 3), (90 + tic) % 256, np.uint8), np.zeros(SCREEN, np.uint8))
        for tic in range(steps * tics_a_step)
    ]
    content: dict[str, Any] = {
        "title": "Basic: CAMAL, seed 1",
        "heats": np.zeros((steps, 7, 7), np.float32),
        "values": np.linspace(-1.0, 1.0, steps),
        "actions": np.arange(steps) % len(NAMES),
        "rewards": np.ones(steps),
        "ious": np.full(steps, np.nan),
        "action_names": NAMES,
        "tics": tics,
    }
    return media.Trace(**(content | changes))


# ------------------------------------------------------------------------------------------------------------
# Still images


def test_a_png_holds_the_image() -> None:
    image = noise(5, 7, 3)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(media.encode_png(image)))), image)


def test_heat_colours_rise_in_lightness_and_are_clipped() -> None:
    colours = media.heat_colours(np.linspace(-1, 2, 301, dtype=np.float32)[None])
    assert colours.shape == (1, 301, 3)
    assert colours.dtype == np.uint8
    lightness = cv2.cvtColor(colours.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0, :, 0]
    assert (np.diff(lightness[100:201:5]) > 0).all()
    assert (colours[0, :100] == colours[0, 100]).all()
    assert (colours[0, 201:] == colours[0, 200]).all()


@pytest.mark.parametrize("shape", [(12, 16), (12, 16, 3)], ids=["grey", "RGB"])
def test_without_heat_the_frame_is_unchanged_and_its_hottest_place_changes_most(
    shape: tuple[int, ...],
) -> None:
    frame = noise(*shape)
    as_rgb = frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, axis=2)
    np.testing.assert_array_equal(media.overlay(frame, np.zeros((3, 4)), None), as_rgb)

    grey = np.full(shape, 100, np.uint8)
    heat = np.zeros((3, 4), np.float32)
    heat[1, 2] = 1
    change = np.abs(media.overlay(grey, heat, None).astype(int) - 100).sum(axis=2)
    assert (change[:, :4] == 0).all()  # farther than bilinear upsampling reaches
    assert change[5:7, 9:11].min() > 100
    assert change[4:8, 8:12].sum() > 0.4 * change.sum()


def test_full_heat_hides_as_much_of_the_game_as_its_opacity() -> None:
    colour = media.heat_colours(np.ones((1, 1)))[0, 0].astype(float)
    expected = np.rint(40 + media.HEAT_OPACITY * (colour - 40))
    np.testing.assert_allclose(
        media.overlay(np.full((4, 4), 40, np.uint8), np.ones((2, 2)), None),
        np.broadcast_to(expected, (4, 4, 3)),
        atol=1,
    )


def test_the_outline_runs_along_the_border_of_the_mask() -> None:
    frame = np.full((20, 30), 120, np.uint8)
    mask = rectangle(20, 30, slice(6, 12), slice(10, 22))
    image = media.overlay(frame, np.zeros((7, 7)), mask)
    beside = np.zeros((20, 30), bool)
    beside[5, 10:22] = beside[12, 10:22] = beside[6:12, 9] = beside[6:12, 22] = True
    np.testing.assert_array_equal(pixels_of(image, media.OUTLINE), beside)
    assert (image[mask == 1] == 120).all()
    assert (image[4, 10:22] == 40).all()  # the dark edge
    assert (image[:3] == 120).all()


def test_the_outline_passes_by_narrow_gaps_and_follows_a_mask_of_another_resolution() -> None:
    mask = rectangle(20, 30, slice(6, 14), slice(10, 22))
    mask[8:14, 14:17] = 0
    frame = np.zeros((40, 60), np.uint8)
    outline = pixels_of(media.overlay(frame[:20, :30], np.zeros((7, 7)), mask), media.OUTLINE)
    assert not outline[8:13, 14:17].any()
    outline = pixels_of(media.overlay(frame, np.zeros((7, 7)), mask), media.OUTLINE)
    assert outline[11, 20:44].all()
    assert not outline[:11].any()


def test_an_empty_mask_has_no_outline_and_one_that_fills_the_frame_none_to_draw() -> None:
    frame = noise(20, 30, 3)
    for mask in (np.zeros((20, 30), np.uint8), np.ones((20, 30), np.uint8)):
        np.testing.assert_array_equal(media.overlay(frame, np.zeros((7, 7)), mask), frame)


@pytest.mark.parametrize("size", [(120, 160), (240, 320)])
@pytest.mark.parametrize("names", [[""], ["gradcam"], ["vanilla", "camal"]])
def test_a_strip_has_two_panels_and_two_for_each_heat_map(size: tuple[int, int], names: list[str]) -> None:
    height, width = size
    mask = rectangle(height, width, slice(40, 60), slice(50, 90))
    heats = {name: np.full((7, 7), 1 / (1 + index)) for index, name in enumerate(names)}
    strip = media.attention_strip(noise(84, 84), mask, heats)
    panels = 2 + 2 * len(names)
    assert strip.dtype == np.uint8
    assert strip.shape[1] == panels * (width + 4) + 4
    frame, shown_mask, *others = (
        strip[-4 - height : -4, 4 + index * (width + 4) :][:, :width] for index in range(panels)
    )
    resized = cv2.resize(noise(84, 84), (width, height), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(frame, np.repeat(resized[..., None], 3, axis=2))
    np.testing.assert_array_equal(shown_mask, np.repeat(255 * mask[..., None], 3, axis=2))
    for index, heat in enumerate(heats.values()):
        attention, over = others[2 * index : 2 * index + 2]
        np.testing.assert_array_equal(attention, np.broadcast_to(media.heat_colours(heat)[0, 0], frame.shape))
        np.testing.assert_array_equal(over, media.overlay(frame, heat, mask))
    bars = strip[4 : -4 - height]
    assert pixels_of(bars, media.BAR).mean() > 0.5
    for index in range(panels):
        assert (bars[:, 4 + index * (width + 4) :][:, :width].min(axis=2) > 150).any(), "no title"


def test_a_caption_ends_in_a_bar_of_the_heat_maps_colours() -> None:
    mask, heat = np.zeros((240, 320), np.uint8), np.eye(7)
    for names in (["camal"], ["camal", "vanilla"]):
        strip = media.attention_strip(noise(84, 84), mask, dict.fromkeys(names, heat), "caption " * 30)
        row = strip[4 + round(0.8 * round(strip.shape[1] / 80))].astype(int)
        colours = media.heat_colours(np.linspace(0, 1, 50)[None])[0]
        places = [abs(row - colour).sum(axis=1).argmin() for colour in colours]
        assert (np.diff(places) > 0).all()
        assert places[0] > 0.8 * len(row)
        assert places[-1] < len(row) - 4


@pytest.mark.parametrize("names", [["camal seed 1"], ["camal seed 1", "vanilla seed 1"]])
def test_titles_of_strips_are_legible_where_a_report_s_page_shows_them(
    names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    monkeypatch.setattr(media, "_font", lambda size: sizes.append(size) or font(size))  # type: ignore[func-returns-value]
    strip = media.attention_strip(
        noise(84, 84), np.zeros((240, 320), np.uint8), dict.fromkeys(names, np.eye(7))
    )
    assert min(sizes) * 880 / strip.shape[1] > 10  # pixels, in the column of a page at 1280


def test_a_caption_is_one_more_bar_and_a_frame_larger_than_the_mask_keeps_its_size() -> None:
    mask, heats = np.zeros((60, 80), np.uint8), {"": np.zeros((7, 7))}
    frame = noise(120, 160, 3)
    plain = media.attention_strip(frame, mask, heats)
    np.testing.assert_array_equal(plain[-124:-4, 4:164], frame)
    captioned = media.attention_strip(frame, mask, heats, "step 1,000,000 of seed 0")
    extra = captioned.shape[0] - plain.shape[0]
    assert 10 < extra < 30
    np.testing.assert_array_equal(captioned[4 + extra :], plain[4:])
    assert (captioned[4 : 4 + extra].min(axis=2) > 150).any()
    assert not pixels_of(captioned[4 : 4 + extra], media.BAR).any()


@pytest.mark.parametrize(("side", "factor"), [(32, 5), (100, 2), (159, 2), (160, 1)])
def test_a_small_picture_is_enlarged_by_a_whole_factor(side: int, factor: int) -> None:
    frame, mask, heat = noise(side, side, 3), rectangle(side, side, slice(5, 20), slice(5, 20)), np.eye(3)
    strip = media.attention_strip(frame, mask, {"": heat})
    shown = factor * side
    assert strip.shape[1] == 4 + 4 * (shown + 4)
    panels = [strip[-4 - shown : -4, 4 + place * (shown + 4) :][:, :shown] for place in range(4)]
    large = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    np.testing.assert_array_equal(panels[0], large)
    np.testing.assert_array_equal(panels[1][..., 0], 255 * mask.repeat(factor, axis=0).repeat(factor, axis=1))
    # The outline is drawn afterwards, so that it stays thin.
    np.testing.assert_array_equal(panels[3], media.overlay(large, heat, mask))


def test_titles_speak_of_frames_or_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(media, "_write", lambda image, text, *_, **__: written.append(text))
    frame, heat = noise(160, 160, 3), np.eye(2)
    for subject, words in (("frame", ("frame", "target mask")), ("image", ("image", "mask"))):
        written.clear()
        media.attention_strip(frame, frame[..., 0] // 255, {"": heat}, subject=subject)  # type: ignore[arg-type]
        assert written == [*words, "attention", f"attention over {subject}"]


def test_a_mask_without_a_target_says_so() -> None:
    heats = {"": np.zeros((7, 7))}
    strips = [
        media.attention_strip(np.zeros((120, 160), np.uint8), rectangle(120, 160, rows, slice(0, 9)), heats)
        for rows in (slice(0, 0), slice(0, 9))
    ]
    titles = [strip[4:-124, 168:328].min(axis=2) > 120 for strip in strips]
    assert titles[0].sum() > 1.5 * titles[1].sum()


def test_stacked_strips_are_padded_to_the_widest() -> None:
    stacked = media.stack_strips([noise(3, 4, 3), noise(2, 6, 3, seed=1)])
    assert stacked.shape == (5, 6, 3)
    np.testing.assert_array_equal(stacked[:3, :4], noise(3, 4, 3))
    np.testing.assert_array_equal(stacked[3:], noise(2, 6, 3, seed=1))
    assert (stacked[:3, 4:] == media.BACKGROUND).all()


def test_text_too_long_for_its_place_gets_smaller_and_is_cut_within_it() -> None:
    sizes, ends = [], []
    for length in (4, 20, 200):
        image = np.zeros((40, 120, 3), np.uint8)
        media._write(image, "M" * length, 10, 20, 14, width=100)
        rows, columns = np.nonzero(image.any(axis=2))
        sizes.append(np.ptp(rows))
        ends.append(columns.max())
    assert sizes[0] > sizes[1] == sizes[2]
    assert ends[0] < 80 < ends[1] < 110
    assert ends[2] < 110


# ------------------------------------------------------------------------------------------------------------
# Frames of videos


def test_a_video_of_one_agent_has_a_frame_a_tic_with_the_game_at_its_own_size() -> None:
    screens = [noise(240, 320, 3, seed=tic) for tic in range(6)]
    mask = rectangle(240, 320, slice(100, 140), slice(50, 80))
    heats = np.random.default_rng(0).random((3, 7, 7))
    trace = make_trace(3, heats=heats, tics=[(tic // 2, screens[tic], mask) for tic in range(6)])
    frames = list(media.video_frames([trace]))
    assert len(frames) == 6
    height, width = frames[0].shape[:2]
    assert width == 2 * 320 + 3 * media.GAP
    for tic, frame in enumerate(frames):
        assert frame.shape == (height, width, 3)
        assert frame.dtype == np.uint8
        top = next(row for row in range(height) if (frame[row, 8:328] == screens[tic][0]).all())
        np.testing.assert_array_equal(frame[top : top + 240, 8:328], screens[tic])
        over = media.overlay(screens[tic], heats[tic // 2], mask)
        np.testing.assert_array_equal(frame[top : top + 240, 336:656], over)
    assert height % 2 == width % 2 == 0


def test_two_agents_play_until_the_longer_episode_ends_and_the_other_stays_dimmed() -> None:
    frames = list(media.video_frames([make_trace(2), make_trace(5)]))
    assert len(frames) == 5 * 4
    half = frames[0].shape[1] // 2
    row, column = 150, 40  # in the left game, beside what is written over it
    shown = [frame[row, column, 0] for frame in frames]
    assert shown[:8] == list(range(90, 98))
    assert shown[8:] == [97 // 3] * 12
    assert [frame[row, half + column, 0] for frame in frames] == list(range(90, 110))
    left = [frame[:, :half] for frame in frames]
    assert all((later == left[8]).all() for later in left[9:])
    game = pixels_of(left[7], (97, 97, 97))[:, column]
    np.testing.assert_array_equal((left[8] != left[7]).any(axis=(1, 2)), game)
    assert (left[8][100:250] > 200).any(), 'no "ended" in the dimmed game'


def test_frames_belong_to_whoever_took_them() -> None:
    frames = media.video_frames([make_trace(2)])
    first = next(frames)
    copy = first.copy()
    next(frames)[:] = 0
    next(frames)
    np.testing.assert_array_equal(first, copy)


def test_tics_are_taken_one_at_a_time() -> None:
    trace = make_trace(5)
    taken = []

    def tics() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for tic in trace.tics:
            taken.append(tic[0])
            yield tic

    frames = media.video_frames([make_trace(5, tics=tics())])
    assert taken == []
    for count, _ in enumerate(itertools.islice(frames, 6), start=1):
        assert len(taken) <= count + 1


def test_the_plot_shows_the_steps_so_far_and_nothing_of_those_to_come() -> None:
    trace = make_trace(4, 1)
    frames = list(media.video_frames([trace]))
    # Another end of the episode, within the same range of values and of the same actions.
    others = list(
        media.video_frames(
            [make_trace(4, 1, values=trace.values[[0, 1, 3, 2]], actions=trace.actions[[0, 1, 3, 2]])]
        )
    )
    same = [bool((left == right).all()) for left, right in zip(frames, others, strict=True)]
    assert same == [True, True, False, False]
    colours = [media.NOTHING, *media.ACTION_COLOURS[:3]]
    for now, frame in enumerate(frames):
        strip = frame[-40:-29]  # above the legend
        for action, colour in enumerate(colours):
            share = pixels_of(strip, colour).mean(axis=1).max()
            assert share == pytest.approx(0.225, abs=0.02) if action <= now else share < 0.05


@pytest.mark.parametrize("values", [np.array([0.3]), np.array([-7e5])])
def test_an_episode_of_one_step_can_be_shown(values: np.ndarray) -> None:
    trace = make_trace(1, values=values)
    assert len(list(media.video_frames([trace]))) == 4
    assert len(list(media.video_frames([trace, make_trace(2)]))) == 8


def test_a_video_tells_the_iou_of_each_frame_and_that_there_is_none_without_a_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []
    monkeypatch.setattr(media, "_write", lambda image, text, *_, **__: written.append(text))
    list(media.video_frames([make_trace(3, 1, ious=np.array([0.256, np.nan, 0.0]))]))
    values = written[written.index("1 / 3") :]
    told = [values[values.index(f"{step} / 3") + 3] for step in (1, 2, 3)]
    assert "IoU" in written
    assert told == ["0.26", "\N{EN DASH}", "0.00"]


def test_constant_values_are_a_straight_line() -> None:
    *_, frame = media.video_frames([make_trace(6, values=np.full(6, 2.5, np.float32))])
    plot = frame[-130:-48, 120:480]
    bright = (plot.min(axis=2) > 200).mean(axis=1)
    assert bright.max() == 1
    assert (bright > 0.1).sum() == 1


def test_more_steps_than_pixels_can_be_shown() -> None:
    steps = 700
    values = np.sin(np.arange(steps) / 50)
    trace = make_trace(steps, 1, values=values, tics=make_trace(3, 1).tics)
    last = make_trace(steps, 1, values=values, tics=[(steps - 1, *tic[1:]) for tic in make_trace(1, 1).tics])
    assert len(list(media.video_frames([trace, last]))) == 3


def test_the_return_counts_up_to_the_step_and_the_action_taken_is_bright() -> None:
    rewards = np.array([1.0, 0.0])
    actions = np.array([0, 0])
    rewarded, unrewarded = (
        make_trace(2, 1, rewards=r, values=np.zeros(2), actions=actions) for r in (rewards, rewards * 0)
    )
    first, second = (next(media.video_frames([trace])) for trace in (rewarded, unrewarded))
    assert (first[:70] != second[:70]).any()
    np.testing.assert_array_equal(first[70:], second[70:])
    frames = list(media.video_frames([make_trace(2, 1, rewards=rewards, values=np.zeros(2))]))
    legends = [frame[-24:-8] for frame in frames]
    bright = [np.nonzero((legend.min(axis=2) > 200).any(axis=0))[0] for legend in legends]
    assert bright[0].max() < bright[1].min()  # "nothing", then "ATTACK"


def test_every_action_has_a_colour_and_a_place_in_the_legend() -> None:
    names = ("nothing", *(f"SELECT_WEAPON{index}" for index in range(19)))
    trace = make_trace(20, 1, actions=np.arange(20), action_names=names)
    column = media._Column(trace, 1, 20, (-1.0, 1.0))
    colours = [column._colour(action) for action in range(20)]
    assert len(set(colours)) == 20
    assert len(set(column.legend)) == 20
    assert max(x for x, _ in column.legend) < 320 - 100
    *_, frame = media.video_frames([trace])
    assert all((pixels_of(frame[-150:-8], colour).sum() >= 64) for colour in colours)


# ------------------------------------------------------------------------------------------------------------
# Files


def moving_square(count: int, height: int = 66, width: int = 98) -> list[np.ndarray]:
    frames = []
    for index in range(count):
        frame = np.full((height, width, 3), (30, 60, 90), np.uint8)
        frame[10:30, 2 * index : 2 * index + 20] = (200, 40, 40)
        frames.append(frame)
    return frames


def test_a_video_reads_back_as_what_went_in() -> None:
    frames = moving_square(30)
    content = media.encode_video(iter(frames), 35)
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.width, stream.height) == (98, 66)
        assert stream.average_rate == 35
        assert container.duration == pytest.approx(1e6 * 30 / 35, abs=1e3)  # MP4 counts milliseconds
    assert len(decoded) == 30
    for frame, back in zip(frames, decoded, strict=True):
        assert np.abs(frame.astype(int) - back).mean() < 4
        np.testing.assert_allclose(back.mean(axis=(0, 1)), frame.mean(axis=(0, 1)), atol=4)


def test_the_index_of_a_video_comes_before_its_pictures() -> None:
    content = media.encode_video(moving_square(40), 35)
    assert content[4:8] == b"ftyp"
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_the_same_frames_are_the_same_bytes_whatever_was_in_memory() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_media;"
        "sys.stdout.buffer.write(test_media.media.encode_video(test_media.moving_square(40), 35))"
    )
    environment = os.environ | {"MALLOC_PERTURB_": "170"}  # what glibc fills new memory with
    finished = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, timeout=60, cwd=ROOT
    )
    assert finished.returncode == 0, finished.stderr.decode()
    assert finished.stdout == media.encode_video(moving_square(40), 35)


def test_frames_of_an_episode_make_a_video() -> None:
    frames = list(media.video_frames([make_trace(3), make_trace(2)]))
    with av.open(io.BytesIO(media.encode_video(frames, 35))) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == 12
    for frame, back in zip(frames, decoded, strict=True):
        assert np.abs(frame.astype(int) - back).mean() < 4


def test_without_an_encoder_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    with pytest.raises(UserError, match=r"no libx264.*pip install"):
        media.encode_video(moving_square(2), 35)


@pytest.mark.parametrize("rate", [35 / 4, 10, 50, 0.5])
def test_a_gif_reads_back_with_its_frames_its_duration_and_a_loop_for_ever(rate: float) -> None:
    frames = moving_square(12)
    with Image.open(io.BytesIO(media.encode_gif(frames, rate))) as image:
        assert image.n_frames == 12
        assert image.info["loop"] == 0
        durations = []
        for index, frame in enumerate(frames):
            image.seek(index)
            durations.append(image.info["duration"])
            np.testing.assert_allclose(np.asarray(image.convert("RGB")).astype(int), frame, atol=10)
    assert sum(durations) == pytest.approx(12_000 / rate, abs=5)
    assert np.ptp(durations) <= 10


def test_equal_frames_of_a_gif_last_as_long_together() -> None:
    frames = moving_square(2)
    with Image.open(io.BytesIO(media.encode_gif([frames[0]] * 3 + [frames[1]], 10))) as image:
        assert image.n_frames == 2
        assert image.info["duration"] == 300


def test_a_dead_map_is_called_so() -> None:
    mask = np.ones((120, 160), np.uint8)
    alive, dead = np.eye(7, dtype=np.float32), np.zeros((7, 7), np.float32)
    shown = [
        media.attention_strip(np.zeros((120, 160), np.uint8), mask, {"": heat}) for heat in (alive, dead)
    ]
    titles = [strip[4:20, 2 * 164 :] for strip in shown]
    assert (titles[0] != titles[1]).any()
    frames = [next(media.video_frames([make_trace(3, heats=np.stack([heat] * 3))])) for heat in (alive, dead)]
    assert (frames[0][60:95, 340:] != frames[1][60:95, 340:]).any()


def test_two_agents_share_the_axes_of_their_plots() -> None:
    low, high = (make_trace(3, values=np.array(values)) for values in ([0.0, 1.0, 0.5], [5.0, 6.0, 5.5]))
    both = list(media.video_frames([low, high]))[-1]
    twice = list(media.video_frames([low, low]))[-1]
    width = (both.shape[1] - 3 * media.GAP) // 2
    left, right = media.GAP, 2 * media.GAP + width
    assert (both[:, left : left + width] != twice[:, left : left + width]).any()  # the axis goes to 6
    assert (twice[:, left : left + width] == twice[:, right : right + width]).all()


def test_a_full_temporary_folder_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise av.error.OSError(28, "No space left on device")

    monkeypatch.setattr(av, "open", full)
    with pytest.raises(UserError, match=r"can't make a video in .*No space left.*set TMPDIR"):
        media.encode_video([np.zeros((16, 16, 3), np.uint8)], 35)
