"""A user's mistake: one line on stderr and exit code 2."""

import pytest

from camal_rl.errors import UserError, print_mistake


def test_a_mistake_is_printed_as_one_line_and_gives_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_mistake(UserError("no environment named 'basic'.")) == 2
    assert capsys.readouterr() == ("", "camal_rl: no environment named 'basic'.\n")
