"""Likelihood of sentences: importance-weighted bounds, their parts, perplexities, cost."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Int, Key

from jvae.api import (
    Batch,
    Params,
    TextVAE,
    has_latent,
)
from jvae.evals.collect import collect, mean_se
from jvae.latent.iw_bound import CURVE, Scores, score_batch
from jvae.latent.mixture import Proposal

LOOSE_ESS = 5.0  # effective sample size below which the bound counts as loose


class TextCounts(NamedTuple):
    """Size of each sentence of a split, by example id, without the end-of-sentence token."""

    words_e: Int[np.ndarray, "e"]
    chars_e: Int[np.ndarray, "e"]


def text_counts(lines: Sequence[str]) -> TextCounts:
    """Whitespace words and Unicode code points of each raw line, without its newline."""
    lines = [line.rstrip("\r\n") for line in lines]
    return TextCounts(
        words_e=np.array([len(line.split()) for line in lines], np.int64),
        chars_e=np.array([len(line) for line in lines], np.int64),
    )


@dataclasses.dataclass(frozen=True)
class LikelihoodResult:
    """Scores of every sentence of a set, ordered by id, on the host."""

    k: int
    latent: bool  # False: z is empty, the NLL is exact and the KL 0
    id_e: np.ndarray
    scores: Scores  # holds NumPy arrays

    def by_sentence(self) -> list[dict[str, float]]:
        """One record per sentence: its index in the split (from 0), scored tokens, and nats.

        Differences on the same sentences distinguish two models far better than two means do.
        """
        s = self.scores
        named = {"sentence": self.id_e, "tokens": s.scored_e}
        nats = {f"nll_{self.k}": s.nll_e, "rec": s.rec_e, "kl": s.kl_e}
        if not self.latent:
            nats = {"nll": s.nll_e}
        columns = {name: np.asarray(values).tolist() for name, values in named.items()} | {
            name: np.round(np.asarray(values, np.float64), 5).tolist()
            for name, values in nats.items()
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def summary(self, counts: TextCounts | None = None) -> dict[str, Any]:
        """Means over sentences, standard errors (`_se`), perplexities; None where undefined.

        Args:
          counts: sizes by example id; without them `ppl_w` and `bpc` are None.
        """
        s = self.scores
        neg_elbo_e = np.asarray(s.rec_e, np.float64) + np.asarray(s.kl_e, np.float64)
        row: dict[str, Any] = {"sentences": int(self.id_e.size), "k": self.k}
        for name, value_e in (
            ("rec_nats", s.rec_e),
            ("kl_nats", s.kl_e),
            ("neg_elbo_nats", neg_elbo_e),
            ("nll_nats", s.nll_e),
        ):
            row[name], row[f"{name}_se"] = mean_se(value_e)
        row["ess"] = mean_se(s.ess_e)[0] if self.latent else None
        row["loose"] = row["ess"] is not None and row["ess"] < LOOSE_ESS and self.k > 1
        row["nll_nats_at"] = {k: mean_se(value_e)[0] for k, value_e in s.bound_e.items()}
        row["tokens_with_end"] = int(s.scored_e.sum())
        row["words_with_end"] = row["chars_with_end"] = None
        if counts is not None:
            row["words_with_end"] = int(counts.words_e[self.id_e].sum() + self.id_e.size)
            row["chars_with_end"] = int(counts.chars_e[self.id_e].sum() + self.id_e.size)
        total = float(np.sum(s.nll_e, dtype=np.float64))
        row["ppl_w"] = _exp(total, row["words_with_end"])
        row["ppl_t"] = _exp(total, row["tokens_with_end"])
        chars = row["chars_with_end"]
        row["bpc"] = total / (float(np.log(2.0)) * chars) if chars else None
        return row


def _exp(total_nats: float, count: int | None) -> float | None:
    with np.errstate(over="ignore"):
        return float(np.exp(total_nats / count)) if count else None


def evaluate_likelihood(
    model: TextVAE,
    params: Params,
    batches: Iterable[Batch],
    key: Key[Array, ""],
    k: int,
    *,
    chunk: int = 1,
    bounds: Sequence[int] = CURVE,
    proposal: Proposal | None = None,
) -> LikelihoodResult:
    """Scores each sentence of `batches` once with K draws; see `score_batch` for the arguments.

    Raises: ValueError as in `score_batch`; DataError if a sentence occurs twice or there are none.
    """
    score = score_batch(model, k, chunk, bounds, proposal)
    id_e, scores = collect((batch.id_e, score(params, batch, key)) for batch in batches)
    return LikelihoodResult(k=k, latent=has_latent(model), id_e=id_e, scores=scores)


def draw_sentences(available: int, count: int, seed: int = 0) -> Int[np.ndarray, "n"]:
    """Ids of at most `count` sentences of a split, ascending; they depend on the seed only."""
    order = np.random.default_rng(seed).permutation(available)
    return np.sort(order[: min(count, available)])


def draw_encoded(
    available: int, limit: int | None, chosen: Int[np.ndarray, "n"], seed: int
) -> Int[np.ndarray, "m"] | None:
    """Ids of the sentences whose posteriors are measured, those of `chosen` included; None for the
    whole split.
    """
    return None if limit is None else draw_sentences(available, max(limit, len(chosen)), seed)


def spot_row(result: LikelihoodResult, fewer: int) -> dict[str, Any]:
    """Arguments of `Report.add` for a spot check with many draws on few sentences.

    Args:
      fewer: the K of the main result, also a point of this curve; the row shows the gain from the
        larger K.
    """
    s = result.summary()
    less = s["nll_nats_at"].get(fewer)
    note = f"{s['sentences']} sentences"
    note += "" if less is None else f"; with K = {fewer} these have {less:.2f}"
    nats, se = s["nll_nats"], s["nll_nats_se"]
    return dict(name=f"nll_{result.k}", value=nats, unit="nats/sentence", se=se, note=note)
