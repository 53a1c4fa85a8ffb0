"""Moves a sentence's latent along an attribute vector or a single dimension."""

from collections.abc import Sequence

import numpy as np

from jvae.demo.state import Demo
from jvae.errors import InputError
from jvae.latent import geometry

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)  # multiples of the attribute vector
OTHERS = "all others"  # as the start of an attribute vector


def attribute(
    demo: Demo,
    text: str,
    kind: str,
    start: str,
    end: str,
    strengths: Sequence[float] = STRENGTHS,
) -> list[str]:
    """Decodes a sentence moved by multiples of the attribute vector between two labels.

    Args:
      kind: kind of label. start: label that the vector begins at, or `OTHERS`. end: label that it
        leads to.
    Raises: InputError for two equal labels, or one that no example sentence has.
    """
    if start == end:
        raise InputError(f"the attribute vector starts and ends at {end!r}; choose two labels")
    label_e = np.array(demo.examples.labels[kind])
    end_e = label_e == end
    start_e = ~end_e if start == OTHERS else label_e == start
    vector_gz = geometry.direction(demo.mean_egz[start_e], demo.mean_egz[end_e])
    (z_gz,) = demo.vae.encode([text], truncate=True)
    z_tgz = np.stack([z_gz + np.float32(strength) * vector_gz for strength in strengths])
    return demo.vae.decode(demo.vae.placed(z_tgz))


def dimension(
    demo: Demo, text: str, dim: int, offsets: Sequence[float] = geometry.OFFSETS
) -> list[str]:
    """Decodes a sentence with one dimension moved by standard deviations over the examples."""
    (z_gz,) = demo.vae.encode([text], truncate=True)
    steps = np.asarray(offsets) * demo.spread_d[dim]
    return demo.vae.decode(demo.vae.placed(geometry.axes(z_gz, [dim], steps.tolist())[0]))


def active_dims(demo: Demo) -> list[int]:
    """All dimensions, those that vary most over the example sentences first."""
    return geometry.most_active(demo.mean_egz)
