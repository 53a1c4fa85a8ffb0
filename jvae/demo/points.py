"""The map of the example sentences, and what a point of it decodes to."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jvae.demo.state import Demo
from jvae.report.palette import OTHER, color_of
from jvae.report.plane import pca


class Points(NamedTuple):
    """Posterior means in the plane.

    share: fraction of the variance that the plane shows. colors: one per point. legend: colour of
    each label, most frequent first; empty without labels.
    """

    plane_e2: Float[np.ndarray, "e 2"]
    share: float
    colors: list[str]
    legend: dict[str, str]


class Point(NamedTuple):
    """One example sentence, what its latent decodes to, and its labels by kind."""

    text: str
    decoded: str
    labels: dict[str, str]


def points(demo: Demo, kind: str | None) -> Points:
    """The examples on the first two principal axes, coloured by a kind of label if one is named."""
    z_ed = demo.mean_egz.reshape(len(demo.mean_egz), -1).astype(np.float64)
    plane_e2, share = pca(z_ed)
    if kind is None:
        return Points(plane_e2, share, [OTHER] * len(z_ed), {})
    labels = demo.examples.labels[kind]
    legend = color_of(labels)
    return Points(plane_e2, share, [legend.get(label, OTHER) for label in labels], legend)


def point(demo: Demo, place: int) -> Point:
    """The example sentence at an index and what its posterior mean decodes to, greedily."""
    (decoded,) = demo.vae.decode(demo.mean_egz[place : place + 1])
    labels = {kind: values[place] for kind, values in demo.examples.labels.items()}
    return Point(demo.examples.texts[place], decoded, labels)
