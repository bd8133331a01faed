"""Threads that share work: who does what, with how many torch threads, and what happens when one fails."""

import threading
import time

import pytest
import torch

from camal_rl.run.workers import Workers


def test_results_come_in_the_order_of_the_calls_which_are_made_at_once() -> None:
    barrier = threading.Barrier(3, timeout=10)

    def call(number: int, word: str) -> tuple[int, str]:
        barrier.wait()  # passes only if all three are inside
        return number, word

    with Workers(3) as workers:
        assert workers.run(call, [1, 2, 3], "abc") == [(1, "a"), (2, "b"), (3, "c")]


@pytest.mark.parametrize(("threads", "calls", "share"), [(4, 2, 2), (4, 1, 4), (3, 2, 1), (2, 3, 1)])
def test_each_call_has_an_equal_share_of_torchs_threads(threads: int, calls: int, share: int) -> None:
    with Workers(threads) as workers:
        assert workers.run(lambda _: torch.get_num_threads(), range(calls)) == [share] * calls
    assert torch.get_num_threads() == threads


def test_one_thread_makes_one_call_after_the_other() -> None:
    with Workers(1) as workers:
        threads = workers.run(lambda _: threading.current_thread(), range(3))
    assert threads == [threading.current_thread()] * 3


def test_a_failure_is_raised_after_all_have_ended() -> None:
    ended = []

    def call(number: int) -> None:
        if number == failing:
            raise ValueError(f"number {number}")
        time.sleep(0.1)
        ended.append(number)

    with Workers(3) as workers:
        for failing in range(3):
            ended.clear()
            with pytest.raises(ValueError, match=f"number {failing}"):
                workers.run(call, range(3))
            assert sorted(ended) == [one for one in range(3) if one != failing]


@pytest.mark.parametrize(("threads", "length"), [(1, 5), (2, 5), (3, 8), (8, 3)])
def test_slices_cover_everything_once_and_are_as_equal_as_can_be(threads: int, length: int) -> None:
    with Workers(threads) as workers:
        slices = workers.slices(length)
    assert [index for one in slices for index in range(length)[one]] == list(range(length))
    sizes = [one.stop - one.start for one in slices]
    assert len(sizes) == min(threads, length)
    assert max(sizes) - min(sizes) <= 1


def test_no_part_is_shorter_than_asked_for() -> None:
    with Workers(4) as workers:
        assert [workers.parts(length, 64) for length in (10, 64, 127, 128, 200, 1000)] == [1, 1, 1, 2, 3, 4]
