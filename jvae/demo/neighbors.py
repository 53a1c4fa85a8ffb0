"""The example sentences nearest to a text."""

from jvae.demo.state import Demo
from jvae.inference.neighbors import Neighbor, nearest


def neighbors(demo: Demo, text: str, count: int, metric: str = "cosine") -> list[Neighbor]:
    """The `count` examples whose posterior means are nearest, nearest first.

    Raises: InputError for an unknown metric.
    """
    query_egz = demo.vae.encode([text], truncate=True)
    (places,), (distances,) = nearest(query_egz, demo.mean_egz, count, metric)
    texts = demo.examples.texts
    return [
        Neighbor(texts[place], place, distance)
        for place, distance in zip(places.tolist(), distances.tolist(), strict=True)
    ]
