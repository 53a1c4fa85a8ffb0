"""Scores texts of a source -> text model against each source's own references, and measures how
much the texts differ.

The model writes several texts for every source. Average scores say how good a single text is; the
scores of the best text per source say whether a good one is among them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jvae import extras
from jvae.evals.bleu import References
from jvae.evals.collect import mean_se
from jvae.evals.text import corpus_bleu_of, distinct, jaccard, self_bleu

ROUGE = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}  # names used by rouge-score
# The latent counts as ignored if it changes texts by less than this share of what random decoding
# changes.
IGNORED_SHARE = 0.05

Texts = Sequence[Sequence[str]]  # indexed by source, then by text


class Group(NamedTuple):
    """A source and its references, in the order of the file, each once."""

    source: str
    references: list[str]


class Score(NamedTuple):
    """A mean over sources and its standard error, if the score is defined per source."""

    mean: float | None
    se: float | None = None


def groups(sources: Iterable[str], texts: Iterable[str]) -> list[Group]:
    """Groups the pairs of a split by source; pairs with the same source are its references."""
    references_of: dict[str, dict[str, None]] = {}
    for source, text in zip(sources, texts, strict=True):
        references_of.setdefault(source, {})[text] = None
    return [Group(source, list(references)) for source, references in references_of.items()]


def by_source(texts: Sequence[str], count: int) -> list[list[str]]:
    """Splits a flat list of texts into groups of `count`, one per source."""
    return [list(texts[i : i + count]) for i in range(0, len(texts), count)]


def fidelity(texts: Texts, references: Texts) -> dict[str, Score]:
    """BLEU and ROUGE of texts against the references of their own sources.

    Each score is the mean over the texts of a source; `<name>_best` uses the best text.

      bleu      corpus BLEU, 0 to 100: the mean over sets of one text per source, without a standard
                error; the best text is the one with the highest sentence BLEU
      rouge_1, rouge_2, rouge_l   F1 by rouge-score with stemming, 0 to 100, the largest over
                references

    Raises: ValueError unless all sources have the same number of texts and at least one reference.
    """
    counts = {len(group) for group in texts}
    if len(counts) != 1 or min(counts) < 1 or not all(references):
        raise ValueError("fidelity: expected the same number of texts for every source, from 1 on")
    if len(texts) != len(references):
        raise ValueError(
            f"fidelity: {len(texts)} sources with texts, {len(references)} with references"
        )
    sets = [
        corpus_bleu_of(references, [group[i] for group in texts])[0] for i in range(max(counts))
    ]
    best = []
    for group, refs in zip(texts, references, strict=True):
        scorer = References(refs)
        best.append(max(group, key=scorer.score))
    scores = {
        "bleu": Score(float(np.mean(sets))),
        "bleu_best": Score(corpus_bleu_of(references, best)[0]),
    }
    for name, score_en in _each(texts, references, rouge_scorer()).items():
        scores |= _mean_and_best(name, score_en)
    return scores


def rouge_scorer() -> Callable[[str, Sequence[str]], dict[str, float]]:
    """ROUGE of a text against references, 0 to 100 by name."""
    from rouge_score.rouge_scorer import RougeScorer  # NLTK takes a second to import

    scorer = RougeScorer(list(ROUGE), use_stemmer=True)

    def score(text: str, references: Sequence[str]) -> dict[str, float]:
        scores = scorer.score_multi(references, text)
        return {name: 100.0 * scores[key].fmeasure for key, name in ROUGE.items()}

    return score


def _each(
    texts: Texts,
    references: Texts,
    score: Callable[[str, Sequence[str]], dict[str, float]],
) -> dict[str, Float[np.ndarray, "e n"]]:
    """Every score of every text."""
    rows = [
        [score(text, refs) for text in group] for group, refs in zip(texts, references, strict=True)
    ]
    return {
        name: np.array([[cell[name] for cell in row] for row in rows]) for name in ROUGE.values()
    }


def _mean_and_best(name: str, score_en: Float[np.ndarray, "e n"]) -> dict[str, Score]:
    return {
        name: Score(*mean_se(score_en.mean(axis=1))),
        f"{name}_best": Score(*mean_se(score_en.max(axis=1))),
    }


def bert_score(texts: Texts, references: Texts, model: str) -> dict[str, Score]:
    """BERTScore F1 by bert-score, 0 to 100, the largest over references: mean and best text.

    Args:
      model: hub name or folder, such as roberta-large. Inverse document frequencies and rescaling
        are off.
    Raises: ConfigError if bert-score is not installed.
    """
    check_bert_score(model)
    from bert_score import score  # pyright: ignore[reportMissingImports] an extra, with PyTorch

    flat = [text for group in texts for text in group]
    refs_by_text = [
        list(refs) for group, refs in zip(texts, references, strict=True) for _ in group
    ]
    _, _, f1_n = score(flat, refs_by_text, model_type=model)
    score_en = 100.0 * np.asarray(f1_n, np.float64).reshape(len(texts), -1)
    return _mean_and_best("bertscore", score_en)


def check_bert_score(model: str) -> None:
    """Raises: ConfigError if a model is named and bert-score is not installed."""
    if model:
        extras.require("bertscore", "evals.bertscore")


def diversity(texts: Texts) -> dict[str, Score]:
    """How much the texts of one source differ, averaged over sources: self-BLEU-4 (0 to 100),
    Dist-1 to Dist-4, shared bigrams of pairs (`jaccard`), and the number of distinct texts.
    """
    values: dict[str, list[float]] = {}
    for group in texts:
        row = {
            "self_bleu": self_bleu(group, len(group)),
            **distinct(group),
            "jaccard": jaccard(group, len(group)),
            "distinct": float(len(set(group))),
        }
        for name, value in row.items():
            if value is not None:
                values.setdefault(name, []).append(value)
    return {name: Score(*mean_se(value_e)) for name, value_e in values.items()}


def latent_share(latents: dict[str, Score], draws: dict[str, Score]) -> float | None:
    """How much the latent changes greedy texts, relative to how much random decoding of one latent
    changes them: the ratio of the two means of 1 - `jaccard`. None if there are no pairs; 0 if
    neither changes anything.
    """
    by_latent, by_draw = latents.get("jaccard"), draws.get("jaccard")
    if by_latent is None or by_draw is None or by_latent.mean is None or by_draw.mean is None:
        return None
    changed, random = 1 - by_latent.mean, 1 - by_draw.mean
    if changed <= 0:
        return 0.0
    return changed / random if random > 0 else float("inf")
