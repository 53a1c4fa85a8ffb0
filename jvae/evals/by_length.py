"""Metrics by sentence length: an overall mean hides that long sentences degrade first."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int

from jvae.evals.likelihood import LikelihoodResult

QUARTILES = (0.25, 0.5, 0.75)
TITLE = "by length in words; the buckets are quartiles of the training sentences"
# Keys of `by_length` that appear as columns of the table, with their headings.
COLUMNS = {
    "sentences": "sentences",
    "exact_match_by_length": "exact match %",
    "rec_per_token_by_length": "rec, nats/token",
    "kl_by_length": "kl, nats/sentence",
}


def by_length(
    words_e: Int[np.ndarray, "n"],
    train_words_e: Int[np.ndarray, "m"],
    likelihood: LikelihoodResult,
    exact_e: Bool[np.ndarray, "e"] | None,
) -> dict[str, list[float | None]]:
    """Exact match in %, Rec per decoder token (the end counted) and KL of each length bucket.

    Args:
      words_e: words of every sentence of the split, by id.
      train_words_e: words of the training sentences. Their quartiles bound the buckets; equal
        quartiles give fewer buckets.
      exact_e: which sentences of `likelihood` were reconstructed exactly; None without a latent.
    Returns: columns with one entry per bucket: fewest and most words, number of `sentences`, means.
      The means of an empty bucket are None.
    """
    bounds = np.unique(np.quantile(train_words_e, QUARTILES, method="lower")).astype(int)
    own_e, s = words_e[likelihood.id_e], likelihood.scores
    bucket_e = np.searchsorted(bounds, own_e)  # a bound belongs to the bucket below
    longest = max(int(own_e.max()), int(np.max(train_words_e)))
    rows: list[dict[str, float | None]] = []
    for at, low in enumerate([0, *bounds + 1]):
        in_bucket = bucket_e == at
        count = int(in_bucket.sum())
        high = int(bounds[at]) if at < len(bounds) else longest
        if low > high:
            continue  # no training sentence is longer than the last quartile
        tokens = int(s.scored_e[in_bucket].sum())
        rec = float(np.sum(s.rec_e[in_bucket], dtype=np.float64))
        kl = float(np.mean(s.kl_e[in_bucket], dtype=np.float64)) if count else None
        rows.append(
            {
                "words_from": int(low),
                "words_to": high,
                "sentences": count,
                "exact_match_by_length": (
                    None
                    if exact_e is None or not count
                    else 100.0 * float(exact_e[in_bucket].mean())
                ),
                "rec_per_token_by_length": rec / tokens if tokens else None,
                "kl_by_length": kl if likelihood.latent else None,
            }
        )
    return {name: [row[name] for row in rows] for name in rows[0]}


def cells(
    columns: Mapping[str, Sequence[float | None]],
) -> tuple[list[str], list[list[float | str | None]]]:
    """Heading and rows of a table: the range of words as text, then the values of `COLUMNS`."""
    ranges = zip(columns["words_from"], columns["words_to"], strict=True)
    values = zip(*(columns[name] for name in COLUMNS), strict=True)
    rows = [[f"{a} to {b}", *row] for (a, b), row in zip(ranges, values, strict=True)]
    return ["words", *COLUMNS.values()], rows
