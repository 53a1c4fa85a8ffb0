"""Common style of all figures: sizes, colours, export as bytes. No display, no global state."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jvae.report.palette import INK

WIDTH = 9.0  # inches
DPI = 144

_STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#b5b5b5",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "text.parse_math": False,  # dollar signs in texts and labels are literal
    "svg.hashsalt": "jvae",  # equal figures give equal files
}


class Picture(NamedTuple):
    """A figure as file contents."""

    png: bytes
    svg: bytes
    text: str  # alternative text
    width: float  # in inches


@contextmanager
def look() -> Iterator[None]:
    """Applies the common style to figures made inside."""
    with matplotlib.rc_context(_STYLE):
        yield


def figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, sized in inches, whose parts never overlap."""
    return Figure(figsize=(width, height), layout="constrained")


def picture(fig: Figure, text: str) -> Picture:
    """The figure as PNG and SVG, without dates."""
    png, svg = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        # Characters the font lacks become boxes here; the page has the text itself.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        fig.savefig(png, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
        fig.savefig(svg, format="svg", facecolor="white", metadata={"Date": None})
    return Picture(png.getvalue(), svg.getvalue(), text, float(fig.get_figwidth()))


def bare(ax: Axes) -> None:
    """Removes ticks and frame, for maps whose units have no meaning."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_color("#dddddd")
