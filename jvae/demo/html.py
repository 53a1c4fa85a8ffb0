"""Answers as HTML. All text from models and data is escaped."""

import math
from collections.abc import Iterable, Sequence
from html import escape

from jvae.demo.log_probs import Scored
from jvae.demo.points import Point, Points
from jvae.inference.neighbors import Neighbor
from jvae.report.changes import changes
from jvae.report.palette import OTHER

WIDTH, HEIGHT, MARGIN = 640, 440, 14  # size of the map, in its own units
DARKEST = 6.0  # nats of surprise at which a token's colour is strongest


def sentence(text: str) -> str:
    """One sentence, large."""
    return f'<p class="jv-sentence">{escape(text) or "(the empty sentence)"}</p>'


def note(text: str) -> str:
    return f'<p class="jv-note">{escape(text)}</p>'


def strip(sides: Sequence[str], texts: Sequence[str], at: int | None = None) -> str:
    """Sentences one below the other, words that are new since the row above marked.

    Args:
      sides: label in front of each row. at: index of a row to highlight.
    """
    rows = zip(sides, texts, changes(texts), strict=True)
    return _table(
        (
            (side, " ".join(_word(*pair) for pair in zip(text.split(" "), marks, strict=True)))
            for side, text, marks in rows
        ),
        at,
    )


def listing(texts: Sequence[str]) -> str:
    """A numbered list of sentences."""
    return _table((str(i), escape(text)) for i, text in enumerate(texts, 1))


def neighbors(rows: Sequence[Neighbor]) -> str:
    return _table((f"{neighbor.distance:.3f}", escape(neighbor.text)) for neighbor in rows)


def tokens(scored: Sequence[Scored]) -> str:
    """Tokens coloured by surprise, with the exact values on hover and the total of each row."""
    rows = []
    for row in scored:
        cells = "".join(_token(*pair) for pair in zip(row.tokens, row.nats, strict=True))
        total = -sum(row.nats)
        rows.append(
            f'<h4>Given {escape(row.condition)}</h4><p class="jv-tokens">{cells}</p>'
            f'<p class="jv-note">−log p = {total:.2f} nats, {total / len(row.nats):.2f} per '
            "token</p>"
        )
    key = "".join(
        f'<span class="jv-token" style="{_shade(-nats)}">{nats:g}</span>'
        for nats in (0, 1, 2, 4, 6)
    )
    return f'{"".join(rows)}<p class="jv-tokens">nats: {key} or more</p>'


def scatter(points: Points, texts: Sequence[str]) -> str:
    """The map as SVG; each point has the index of its sentence in `data-place`."""
    low_2, high_2 = points.plane_e2.min(axis=0), points.plane_e2.max(axis=0)
    size_2 = (high_2 - low_2).clip(min=1e-12)
    share_e2 = (points.plane_e2 - low_2) / size_2
    x_e = MARGIN + share_e2[:, 0] * (WIDTH - 2 * MARGIN)
    y_e = HEIGHT - MARGIN - share_e2[:, 1] * (HEIGHT - 2 * MARGIN)
    order = sorted(range(len(texts)), key=lambda i: points.colors[i] != OTHER)  # grey at the back
    dots = "".join(
        f'<circle data-place="{i}" cx="{x_e[i]:.1f}" cy="{y_e[i]:.1f}" r="5" '
        f'fill="{points.colors[i]}"><title>{escape(texts[i])}</title></circle>'
        for i in order
    )
    items = [*points.legend.items(), *([("other", OTHER)] if OTHER in points.colors else [])]
    legend = "".join(
        f'<span><i style="background:{color}"></i>{escape(label)}</span>'
        for label, color in (items if points.legend else [])
    )
    return (
        f'<svg class="jv-map" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{len(texts)} latents in the plane">{dots}</svg>'
        f'<div class="jv-legend">{legend}</div>'
        f'<p class="jv-note">The plane shows {100 * points.share:.0f} % of the variance of '
        f"{len(texts)} posterior means. Click a point to decode it.</p>"
    )


def point(chosen: Point) -> str:
    """A sentence of the map and, below it, what its latent decodes to."""
    labels = " · ".join(f"{kind}: {label}" for kind, label in chosen.labels.items())
    rows = strip(["sentence", "decoded"], [chosen.text, chosen.decoded])
    return rows + (note(labels) if labels else "")


def _table(rows: Iterable[tuple[str, str]], at: int | None = None) -> str:
    """A table whose rows have a plain label and a cell that is already HTML."""
    body = "".join(
        f"<tr{' class=jv-at' if i == at else ''}><th>{escape(side)}</th><td>{cell}</td></tr>"
        for i, (side, cell) in enumerate(rows)
    )
    return f'<table class="jv-rows">{body}</table>'


def _word(word: str, new: bool) -> str:
    return f"<b>{escape(word)}</b>" if new else escape(word)


def _token(token: str, nats: float) -> str:
    share = min(100.0 * math.exp(nats), 100.0)
    title = f"p = {share:.3g} %, log p = {nats:.2f}"
    return f'<span class="jv-token" style="{_shade(nats)}" title="{title}">{escape(token)}</span>'


def _shade(nats: float) -> str:
    strength = min(max(-nats, 0.0) / DARKEST, 1.0)
    return f"background:rgba(213,94,0,{0.75 * strength:.2f})"
