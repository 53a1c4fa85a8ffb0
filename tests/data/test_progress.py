"""What a person sees of a long preparation."""

import io

from jvae.data.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def watch(stream, steps):
    now = [0.0]
    with Progress("preparing x", 10, stream, lambda: now[0]) as progress:
        for seconds, n in steps:
            now[0] += seconds
            progress.add(n)
    return stream.getvalue()


def test_lines_where_there_is_no_terminal():
    text = watch(io.StringIO(), [(2, 2), (1, 1), (17, 2), (10, 5)])
    assert text.splitlines() == [
        "preparing x: 20%, 8 s left",
        "preparing x: 50%, 20 s left",
        "preparing x: done in 30 s",
    ]


def test_bar_on_a_terminal():
    text = watch(Terminal(), [(2, 5), (0.01, 1), (2, 4)])
    bars = text.split("\r")
    assert bars[1] == "preparing x: [============            ] 50%, 2 s left"
    assert bars[2].startswith("preparing x: [========================] 100%, 0 s left")
    assert len(bars) == 4 and bars[3].rstrip() == "preparing x: done in 4 s"
    assert text.endswith("\n")


def test_nothing_for_what_ends_at_once():
    assert watch(Terminal(), [(0.3, 5), (0.3, 5)]) == ""


def test_earlier_work_says_nothing_of_the_speed():
    stream, now = io.StringIO(), [0.0]
    with Progress("x", 10, stream, lambda: now[0]) as progress:
        progress.skip(6)
        now[0] = 4.0
        progress.add(2)
    assert stream.getvalue().splitlines()[0] == "x: 80%, 4 s left"
