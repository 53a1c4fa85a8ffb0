import io

from jvae.runs.console import Console, _clock_time


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_terminal_keeps_the_bar_below_the_lines():
    stream, now = Terminal(), [0.0]
    console = Console(stream, 120, clock=lambda: now[0])
    console.progress(0)
    now[0] = 0.05
    console.progress(1)  # too soon to draw
    now[0] = 10.0
    console.progress(60)
    console.write(60, {"loss": 1.0})
    console.close()
    bar = "step 60/120 [" + "=" * 12 + " " * 12 + "] 6.0 steps/s, 0:10 left"
    start = "\rstep 0/120 [" + " " * 24 + "]"
    line = "\r" + "step 60/120  loss 1".ljust(len(bar)) + "\n"
    assert stream.getvalue() == f"{start}\r{bar}{line}\r{bar}\n"


def test_time_left():
    assert _clock_time(59.9) == "0:59"
    assert _clock_time(3_600 + 61) == "1:01:01"
