"""Two-dimensional maps of sentence latents, coloured by sentence labels."""

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from jvae.report import look
from jvae.report.gather import Latents
from jvae.report.look import Picture
from jvae.report.palette import COLORS, OTHER, color_of
from jvae.report.plane import pca

KINDS = 3  # most kinds of labels, one row of maps each
LEAST = 10  # fewest sentences for a map


def latent_map(latents: Latents) -> Picture | None:
    """PCA and t-SNE of posterior means; None for very few sentences.

    Rows are the kinds of labels that single dimensions encode best; without labels, the length.
    """
    if len(latents.mean_egz) < LEAST:
        return None
    z_ed = np.asarray(latents.mean_egz, np.float64).reshape(len(latents.mean_egz), -1)
    planes, share = {}, 0.0
    planes["PCA"], share = pca(z_ed)
    planes["t-SNE"] = tsne(z_ed)
    kinds = _kinds(latents)
    rows = max(len(kinds), 1)
    fig = look.figure(3.7 * rows)
    axes = fig.subplots(rows, 2, squeeze=False)
    for row, ax_pair in enumerate(axes):
        for ax, (name, plane_e2) in zip(ax_pair, planes.items(), strict=True):
            look.bare(ax)
            share_text = f" ({100 * share:.0f} % of the variance)" if name == "PCA" else ""
            if kinds:
                _by_label(ax, plane_e2, latents.labels[kinds[row]])
                ax.set_title(f"{name} by {kinds[row]}{share_text}")
            else:
                dots = ax.scatter(*plane_e2.T, s=7, c=latents.words, cmap="viridis", linewidths=0)
                ax.set_title(f"{name}{share_text}")
                if name == "t-SNE":
                    fig.colorbar(dots, ax=ax, label="words")
        if kinds:
            ax_pair[1].legend(
                loc="center left",
                bbox_to_anchor=(1.0, 0.5),
                markerscale=2.2,
                handletextpad=0.2,
                title=kinds[row],
            )
    by = ", ".join(kinds) or "number of words"
    return look.picture(fig, f"{len(z_ed)} latents in the plane, PCA and t-SNE, coloured by {by}")


def tsne(z_ed: Float[np.ndarray, "e d"], seed: int = 0) -> Float[np.ndarray, "e 2"]:
    """A map that keeps neighbors together; large distances in it mean little."""
    from sklearn.manifold import TSNE  # slow to import

    perplexity = min(30.0, (len(z_ed) - 1) / 3)
    start_e2 = pca(z_ed)[0]
    start_e2 = 1e-4 * start_e2 / max(float(start_e2[:, 0].std()), 1e-12)
    model = TSNE(2, perplexity=perplexity, init=start_e2, random_state=seed)
    return model.fit_transform(z_ed.astype(np.float32))


def _kinds(latents: Latents) -> list[str]:
    """The kinds of labels to colour by: those with few values that the latent encodes best."""
    limit = len(COLORS) + 4
    few = [name for name, v in latents.labels.items() if 1 < len(set(v)) <= limit]
    few = few or [name for name, v in latents.labels.items() if len(set(v)) > 1]
    share = {factor.name: factor.share for factor in latents.factors}
    return sorted(few, key=lambda name: -share.get(name, 0.0))[:KINDS]


def _by_label(ax: Axes, plane_e2: np.ndarray, labels: list[str]) -> None:
    """Colours the most frequent values; the others are grey, in the background."""
    value_e, colors = np.array(labels), color_of(labels)
    for value, color in colors.items():
        some_e = value_e == value
        name = value if len(value) <= 24 else value[:23] + "…"
        ax.scatter(*plane_e2[some_e].T, s=7, color=color, linewidths=0, label=name)
    rest_e = ~np.isin(value_e, list(colors))
    if rest_e.any():  # last in the legend, in the background of the map
        place_e2 = plane_e2[rest_e]
        ax.scatter(*place_e2.T, s=7, color=OTHER, linewidths=0, label="other", zorder=0.5)
