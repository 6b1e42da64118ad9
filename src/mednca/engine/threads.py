"""How the slices of a scan are shared out among threads.

The library starts no thread: the threads are Python's, which hold no lock while C computes.
"""

from __future__ import annotations

import collections
import math
import queue
import threading
from collections.abc import Callable, Sequence

#: Takes slices done and slices in all.
Progress = Callable[[int, int], None]


def team_size(slices: int, rows: int, threads: int) -> int:
    """Slices, rows of their grid and threads -> how many threads share a slice; 1: each has its own slices.

    A thread of a team should have at least 16 rows, as all wait for each other twice in each step; the time
    for that is taken as a fifth of the work. Of the two ways the one with less to do, one after the other, is
    taken.
    """
    team = min(threads, rows // 16)
    return team if team > 1 and 1.2 * slices / team < math.ceil(slices / threads) else 1


def in_turn(progress: Progress | None, lengths: Sequence[int]) -> list[Progress | None]:
    """What to call with slices done and slices in all, and the numbers of slices of several parts -> what
    each part calls with its own."""

    def part(at: int) -> Progress | None:
        before, total = sum(lengths[:at]), sum(lengths)
        return None if progress is None else lambda done, _: progress(before + done, total)

    return [part(at) for at in range(len(lengths))]


def run_slices(
    one: Callable[[int, int], None],
    slices: int,
    threads: int,
    together: bool,
    progress: Progress | None,
) -> None:
    """Call one(slice, thread) for every slice in threads, and tell the caller's own thread of the progress.

    Args:
        one: Computes a slice, or, if `together`, a thread's part of it.
        slices: How many.
        threads: How many.
        together: Whether all threads share each slice, or each takes slices of its own.
        progress: Called with slices done and slices in all.

    The caller's thread only waits, so that an interrupt is seen at once. The others are not waited for then:
    they hold what they work on, end with the slice that they are at, and do not keep Python from ending.
    """
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    open_slices = collections.deque(range(slices))

    def own(thread: int) -> None:
        try:
            while True:
                try:
                    number = open_slices.popleft()
                except IndexError:
                    return
                one(number, thread)
                done.put(None)
        except BaseException as error:
            done.put(error)

    def shared(number: int, thread: int) -> None:
        try:
            one(number, thread)
            done.put(None)
        except BaseException as error:
            done.put(error)

    def wait() -> None:
        while True:  # with a time limit, as without one Windows sees no interrupt
            try:
                error = done.get(timeout=0.2)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            return

    try:
        if not together:
            for thread in range(min(threads, slices)):
                threading.Thread(target=own, args=(thread,), daemon=True).start()
        for number in range(slices):
            if together:
                for thread in range(threads):
                    threading.Thread(target=shared, args=(number, thread), daemon=True).start()
            for _ in range(threads if together else 1):
                wait()
            if progress:
                progress(number + 1, slices)
    finally:
        open_slices.clear()
