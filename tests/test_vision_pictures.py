"""Files of pictures: read in any mode, or refused with the file's name and the reason."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camal_rl.errors import UserError
from camal_rl.vision.pictures import colours, decode, levels


def test_colours_are_rgb_of_8_bits_whatever_the_picture_holds() -> None:
    wide = Image.fromarray(np.array([[0, 257 * 9, 65535]], np.uint16))
    assert np.asarray(colours(wide)).tolist() == [[[0] * 3, [9] * 3, [255] * 3]]
    half = Image.new("RGBA", (1, 1), (200, 100, 0, 51))
    assert colours(half).getpixel((0, 0)) == (200, 100, 0)
    assert colours(half, "black").getpixel((0, 0)) == (40, 20, 0)
    assert colours(Image.new("P", (1, 1))).mode == "RGB"


def test_levels_are_the_numbers_as_they_are_stored() -> None:
    wide = np.array([[0, 300, 65535]], np.uint16)
    np.testing.assert_array_equal(levels(Image.fromarray(wide)), wide)
    assert levels(Image.new("RGB", (1, 1), (7, 7, 7))).tolist() == [[7]]
    assert levels(Image.new("LA", (1, 1), (7, 0))).tolist() == [[0]], "it is transparent"
    with pytest.raises(ValueError, match="its channels differ"):
        levels(Image.new("RGB", (1, 1), (7, 7, 8)))


def test_a_file_that_cannot_be_read_is_named_with_the_reason_and_advice(tmp_path: Path) -> None:
    Image.new("RGB", (2, 1)).save(tmp_path / "good.png")
    assert decode(tmp_path / "good.png", colours, "").size == (2, 1)
    with pytest.raises(UserError, match=r"none\.png can't be read \(.*No such file.*\): look again\.$"):
        decode(tmp_path / "none.png", colours, "look again")
