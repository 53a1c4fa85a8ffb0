"""The figures of a report, each a function of plain values."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from jvae.report import look, maps
from jvae.report.changes import changes
from jvae.report.gather import OFFSETS, Content
from jvae.report.look import Picture
from jvae.report.palette import COLORS, FAINT, INK, NEW
from jvae.runs.metrics import Line

KL, BETA = "KL, nats per sentence", "β"
# Panels of the training curves: title, names in the metrics file.
PANELS = (
    ("Loss, nats per sentence", ("train/loss", "valid/loss", "valid/neg_elbo")),
    ("Reconstruction, nats per sentence", ("train/rec", "valid/rec")),
    (KL, ("train/kl", "valid/kl")),
    ("Mutual information, nats", ("train/mi", "valid/mi")),
    ("Active units", ("train/au", "valid/au")),
    (BETA, ("train/beta",)),
)
LABELS = {"train": "train", "valid": "validation", "valid/neg_elbo": "validation −ELBO"}
SHADES = dict(zip(LABELS, COLORS, strict=False))  # the same in every panel
COUNTS = ("train/au", "valid/au")  # whole numbers
LINE = 96  # characters per line of a strip; longer sentences are wrapped


def draw(data: Content) -> dict[str, Picture]:
    """Every figure that has data, by file name."""
    pictures: dict[str, Picture | None] = {}
    with look.look():
        pictures["training"] = training(data.log, data.phases)
        evaluation = data.evaluation or {}
        values = {name: row["value"] for name, row in evaluation.get("metrics", {}).items()}
        pictures["nll"] = nll_curve(values, evaluation.get("card", {}).get("k"))
        if data.latents is not None:
            latents = data.latents
            if latents.kl_gz is not None:
                pictures["kl"] = kl_profile(latents.kl_gz, latents.groups)
            pictures["map"] = maps.latent_map(latents)
            if latents.interpolations:
                heads = [f"pair {i + 1}" for i in range(len(latents.interpolations))]
                pictures["interpolations"] = strips(heads, latents.interpolations)
            pictures["traversals"] = strips(
                [f"dimension {t.dim}" for t in latents.traversals],
                [t.texts for t in latents.traversals],
                [f"{offset:+g} sd" if offset else "0" for offset in OFFSETS],
            )
    return {name: picture for name, picture in pictures.items() if picture is not None}


def training(log: Sequence[Line], phases: Sequence[tuple[str, int]]) -> Picture | None:
    """Curves over steps; dashed lines mark the starts of phases. None without metrics."""
    panels = [
        (title, curves)
        for title, names in PANELS
        if (curves := {name: xy for name in names if (xy := _curve(log, name))})
    ]
    if not any(any(y) for title, curves in panels if title == KL for _, y in curves.values()):
        # Without a latent, or with one that has no KL in training, both would be flat lines.
        panels = [panel for panel in panels if panel[0] not in (KL, BETA)]
    if not panels:
        return None
    rows = -(-len(panels) // 2)
    fig = look.figure(2.5 * rows + 0.2)
    axes = fig.subplots(rows, 2, squeeze=False, sharex=True).ravel()
    for ax, panel in zip_longest(axes, panels):
        if panel is None:
            ax.set_visible(False)
            continue
        title, curves = panel
        ax.set_title(title)
        for name, (x, y) in curves.items():
            kind = name if name in LABELS else name.split("/")[0]
            dot = "o" if len(x) < 40 and name.startswith("valid") else ""
            ax.plot(x, y, color=SHADES[kind], label=LABELS[kind], marker=dot, markersize=3)
        _scale(ax, [y for _, y in curves.values()])
        if curves.keys() & set(COUNTS):
            ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        if any(name.startswith("valid") for name in curves):
            ax.legend(loc="best")
        for number, (name, begin) in enumerate(phases):
            if begin:
                ax.axvline(begin, color=FAINT, linestyle="--", linewidth=1)
            if ax is axes[0]:
                place = (begin, 1.0)
                ax.annotate(
                    name or f"phase {number + 1}",
                    place,
                    (3, -2),
                    xycoords=ax.get_xaxis_transform(),
                    textcoords="offset points",
                    va="top",
                    rotation=90,  # short phases are close together
                    color=FAINT,
                    fontsize=8,
                )
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    # The lowest panel of each column has the axis label, also above an empty panel.
    for column in (0, 1):
        visible = [ax for ax in axes[column::2] if ax.get_visible()]
        if visible:
            visible[-1].set_xlabel("step")
            visible[-1].tick_params(labelbottom=True)
    return look.picture(fig, f"Training curves: {', '.join(title for title, _ in panels)}")


def _curve(log: Sequence[Line], name: str) -> tuple[list[int], list[float]] | None:
    points = [(line["step"], line[name]) for line in log if line.get(name) is not None]
    return ([x for x, _ in points], [y for _, y in points]) if points else None


def _scale(ax: Axes, curves: Sequence[Sequence[float]]) -> None:
    """Uses a log scale if the steep first points would otherwise flatten all the others."""
    values = np.concatenate([np.asarray(y, float) for y in curves])
    late = np.concatenate([np.asarray(y, float)[len(y) // 10 :] for y in curves])
    if not len(late):
        return
    low, high = float(values.min()), float(late.max())
    if low > 0 and values.max() - low > 3 * (high - low) > 0:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def nll_curve(values: dict[str, Any], k: int | None = None) -> Picture | None:
    """The bound by number of draws up to k, with -ELBO above and, if known, the exact value."""
    bounds = {
        int(name.removeprefix("nll_")): value
        for name, value in values.items()
        if name.startswith("nll_") and name[4:].isdigit() and value is not None
    }
    # A bound with more draws is a spot check on fewer sentences.
    bounds = {draws: value for draws, value in bounds.items() if k is None or draws <= k}
    if len(bounds) < 2:
        return None
    fig = look.figure(2.9, 6.2)
    ax = fig.subplots()
    ks = sorted(bounds)
    ax.plot(ks, [bounds[k] for k in ks], "o-", color=COLORS[0])
    for k in ks:
        text = f"{bounds[k]:.2f}"
        ax.annotate(text, (k, bounds[k]), (0, 7), textcoords="offset points", ha="left")
    for name, label, color in (
        ("neg_elbo", "−ELBO", COLORS[1]),
        ("exact", "exact −log p", COLORS[2]),
    ):
        if values.get(name) is not None:
            ax.axhline(values[name], color=color, linestyle="--", linewidth=1.2)
            text = f"{label} {values[name]:.2f}"
            ax.annotate(
                text,
                (0.74, values[name]),  # between the last two points, to avoid their labels
                (0, 3 if name == "neg_elbo" else -3),
                xycoords=ax.get_yaxis_transform(),
                textcoords="offset points",
                ha="center",
                va="bottom" if name == "neg_elbo" else "top",
                color=color,
            )
    ax.set_xscale("log")
    ax.set_xlim(ks[0] / 1.3, ks[-1] * 2)
    ax.margins(y=0.25)
    ax.xaxis.set_major_locator(FixedLocator(ks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:,.0f}"))
    ax.set_xlabel("draws K")
    ax.set_ylabel("nats per sentence")
    ax.set_title("Bound on −log p(x) over draws")
    points = ", ".join(f"K = {k}: {bounds[k]:.2f}" for k in ks)
    return look.picture(fig, f"Importance-weighted bound in nats per sentence: {points}")


def kl_profile(kl_gz: np.ndarray, group: str = "layer") -> Picture:
    """KL of each dimension; also of each group (layer or vector) if there are several."""
    groups, width = kl_gz.shape
    if groups == 1:
        fig = look.figure(2.7)
        ax = fig.subplots()
        order = np.argsort(-kl_gz[0], kind="stable")
        ax.bar(range(width), kl_gz[0][order], color=COLORS[0], width=0.8)
        if width <= 40:
            ax.set_xticks(range(width), [str(i) for i in order], fontsize=8)
        ax.set_xlabel("dimension, largest KL first")
        ax.set_ylabel("nats per sentence")
        ax.set_title(f"KL of each dimension, {kl_gz.sum():.2f} nats in all")
        ax.grid(axis="x", visible=False)
        return look.picture(fig, f"KL of {width} dimensions, {kl_gz.sum():.2f} nats in all")
    fig = look.figure(1.5 + 0.32 * groups)
    ax, bars = fig.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    image = ax.imshow(-np.sort(-kl_gz, axis=1), aspect="auto", cmap="Blues", vmin=0)
    ax.set_title("KL of each dimension")
    ax.set_xlabel(f"dimension, largest KL of its {group} first")
    ax.set_ylabel(group)
    ax.set_yticks(range(groups))
    ax.grid(False)
    fig.colorbar(image, ax=ax, label="nats", pad=0.01)
    bars.barh(range(groups), kl_gz.sum(axis=1), color=COLORS[0], height=0.7)
    bars.set_title(f"KL of each {group}")
    bars.set_xlabel("nats per sentence")
    bars.grid(axis="y", visible=False)
    sums = ", ".join(f"{value:.2f}" for value in kl_gz.sum(axis=1))
    return look.picture(fig, f"KL of each dimension and {group}; by {group} {sums} nats")


def strips(
    heads: Sequence[str], blocks: Sequence[Sequence[str]], sides: Sequence[str] | None = None
) -> Picture:
    """Blocks of sentences, one below the other; words that are new since the previous row are
    coloured.

    Args:
      sides: label in front of each row, the same for all blocks; numbers by default.
    """
    size, row, gap = 9.0, 0.185, 0.42  # points, inches, inches
    letter = 0.602 * size / 72  # width of a letter of DejaVu Sans Mono, inches
    margin = 0.75
    wrapped = [
        [_wrapped(text, marks) for text, marks in zip(block, changes(block), strict=True)]
        for block in blocks
    ]
    height = sum(gap + row * sum(map(len, block)) for block in wrapped) + 0.1
    fig = look.figure(height, margin + LINE * letter + 0.25)
    fig.set_layout_engine("none")
    width = float(fig.get_figwidth())
    y = height - 0.22
    for head, block in zip(heads, wrapped, strict=True):
        fig.text(0.1 / width, y / height, head, weight="bold", fontsize=10, va="center")
        for i, lines in enumerate(block):
            side = sides[i] if sides else str(i)
            place = ((margin - 0.12) / width, (y - row) / height)
            fig.text(*place, side, ha="right", va="center", color=FAINT, fontsize=8)
            for line in lines:
                y -= row
                for column, word, new in line:
                    fig.text(
                        (margin + column * letter) / width,
                        y / height,
                        word,
                        family="DejaVu Sans Mono",
                        fontsize=size,
                        va="center",
                        color=NEW if new else INK,
                    )
        y -= gap
    return look.picture(fig, f"Sentences of {len(blocks)} blocks; the tables below hold the text")


def _wrapped(text: str, marks: Sequence[bool]) -> list[list[tuple[int, str, bool]]]:
    """Lines of words, each with its column and mark; a word longer than a line is split."""
    lines: list[list[tuple[int, str, bool]]] = [[]]
    column = 0
    for word, new in zip(text.split(" "), marks, strict=True):
        for part in [word[i : i + LINE] for i in range(0, len(word), LINE)] or [""]:
            if column and column + len(part) > LINE:
                lines.append([])
                column = 0
            lines[-1].append((column, part, new))
            column += len(part) + 1
    return lines
