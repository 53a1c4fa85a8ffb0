"""Several responses per context, scored as in dialogue papers: `evals.metrics=dialogue`.

BLEU uses up to 3-grams with equal weights and smoothing 7 of Chen & Cherry 2014 (NLTK), on
lower-cased whitespace words. Recall takes the best response for each reference, precision the best
reference for each response; with one reference these are the maximum and the mean over responses,
as in Li et al. 2020 (Optimus). This smoothing can score short responses above 1. Word-vector
similarities: Liu et al. 2016.
"""

import gzip
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jvae.errors import ConfigError, DataError
from jvae.evals import references
from jvae.evals.card import Row
from jvae.evals.collect import mean_se
from jvae.evals.metric import METRICS, Evaluation
from jvae.evals.references import Texts
from jvae.evals.source_text import groups_of

Words = Sequence[str]
Vectors = Mapping[str, Float[np.ndarray, "d"]]
_BLEU = (("bleu_recall", 0), ("bleu_precision", 1))


class Scores(NamedTuple):
    """BLEU of the responses to each context."""

    recall_e: Float[np.ndarray, "e"]
    precision_e: Float[np.ndarray, "e"]

    @property
    def f1(self) -> float:
        """Harmonic mean of the means over contexts."""
        recall, precision = float(self.recall_e.mean()), float(self.precision_e.mean())
        return 2 * recall * precision / max(recall + precision, 1e-12)


def _words(texts: Sequence[str]) -> list[list[str]]:
    return [text.lower().split() for text in texts]


def sentence_bleu() -> Callable[[Words, Words], float]:
    """BLEU-3 of a response against one reference."""
    from nltk.translate import bleu_score  # a second to import

    smooth, weights = bleu_score.SmoothingFunction().method7, (1 / 3,) * 3

    def score(response: Words, reference: Words) -> float:
        if not response or not reference:
            return 0.0
        return float(bleu_score.sentence_bleu([reference], response, weights, smooth))  # pyright: ignore[reportArgumentType]

    return score


def bleu(responses: Texts, targets: Texts) -> Scores:
    """BLEU of the responses to each context."""
    score, recall, precision = sentence_bleu(), [], []
    for group, refs in zip(responses, targets, strict=True):
        table = np.array([[score(r, k) for k in _words(refs)] for r in _words(group)])
        recall.append(table.max(axis=0).mean())
        precision.append(table.max(axis=1).mean())
    return Scores(np.array(recall), np.array(precision))


def intra_dist(responses: Texts, order: int) -> float | None:
    """Distinct n-grams of a response divided by all of its n-grams, averaged over responses."""
    shares = []
    for text in (text for group in responses for text in group):
        words = text.split()
        grams = [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]
        if grams:
            shares.append(len(set(grams)) / len(grams))
    return float(np.mean(shares)) if shares else None


def read_vectors(path: str | Path, vocabulary: set[str]) -> dict[str, Float[np.ndarray, "d"]]:
    """Reads the vectors of some words from a GloVe file: lines `word number number ...`, plain or
    .gz. A first line of two numbers, as in word2vec files, is skipped.

    Raises: DataError if the file cannot be read or its lines differ in length.
    """
    path, vectors, width = Path(path).expanduser(), {}, 0
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                word, *numbers = line.rstrip().split(" ")
                if number == 1 and len(numbers) == 1:
                    continue
                width = width or len(numbers)
                if len(numbers) != width:
                    raise DataError(
                        f"{path}:{number}: {len(numbers)} numbers, but the first line has {width}"
                    )
                if word in vocabulary:
                    vectors[word] = np.array(numbers, np.float64)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as word vectors ({error})") from None
    return vectors


def embedding_scores(response: Words, reference: Words, vectors: Vectors) -> dict[str, float]:
    """Cosine similarity of the average vectors, of the vectors of per-dimension extrema, and of
    greedy word-by-word matches in both directions; 0 if one side has no known word.
    """
    a, b = ([vectors[word] for word in words if word in vectors] for words in (response, reference))
    if not a or not b:
        return dict.fromkeys(("average", "extrema", "greedy"), 0.0)
    a_wd, b_wd = np.stack(a), np.stack(b)
    unit_a, unit_b = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a_wd, b_wd)
    )
    table = unit_a @ unit_b.T
    return {
        "average": _cosine(a_wd.mean(axis=0), b_wd.mean(axis=0)),
        "extrema": _cosine(_extreme(a_wd), _extreme(b_wd)),
        "greedy": float(table.max(axis=1).mean() + table.max(axis=0).mean()) / 2,
    }


def _extreme(x_wd: Float[np.ndarray, "w d"]) -> Float[np.ndarray, "d"]:
    place_d = np.abs(x_wd).argmax(axis=0)
    return x_wd[place_d, np.arange(x_wd.shape[1])]


def _cosine(a_d: np.ndarray, b_d: np.ndarray) -> float:
    return float(a_d @ b_d / max(float(np.linalg.norm(a_d) * np.linalg.norm(b_d)), 1e-12))


def best_embeddings(
    responses: Texts, targets: Texts, vectors: Vectors
) -> dict[str, Float[np.ndarray, "e"]]:
    """For each score, the best pair of a response and a reference of each context."""
    by_context = []
    for group, refs in zip(responses, targets, strict=True):
        pairs = [embedding_scores(r, k, vectors) for r in _words(group) for k in _words(refs)]
        by_context.append({name: max(scores[name] for scores in pairs) for name in pairs[0]})
    return {name: np.array([scores[name] for scores in by_context]) for name in by_context[0]}


@METRICS.register("dialogue")
def dialogue(at: Evaluation) -> list[Row]:
    """Scores responses against the references of their context; the baseline uses the references of
    another context.

    Raises: ConfigError for a model without a source side; DataError for unreadable word vectors.
    """
    if "outputs" not in at.samples:
        raise ConfigError("evals.metrics=dialogue: the model reads no source, such as a context")
    sources, count = at.samples["prior_sources"], at.config.outputs
    by_source = {group.source: group.references for group in groups_of(at.data)}
    targets = [by_source[source] for source in sources]
    responses = references.by_source(
        at.samples["outputs"], len(at.samples["outputs"]) // len(sources)
    )
    shifted = targets[1:] + targets[:1]
    scores, baseline = bleu(responses, targets), bleu(responses, shifted)
    note = f"{len(sources)} contexts, {count} responses each"
    rows = []
    for name, i in _BLEU:
        mean, se = mean_se(scores[i])
        rows.append(Row(f"dialogue_{name}", mean, "", se, float(baseline[i].mean()), note))
        note = ""
    rows.append(Row("dialogue_bleu_f1", scores.f1, "", baseline=baseline.f1))
    rows += [Row(f"dialogue_intra_dist_{n}", intra_dist(responses, n), "0-1") for n in (1, 2)]
    lengths = [len(text.split()) for group in responses for text in group]
    rows.append(Row("dialogue_length", float(np.mean(lengths)), "words"))
    if not at.config.vectors:
        return rows
    texts = [text for part in (responses, targets) for group in part for text in group]
    vectors = read_vectors(at.config.vectors, {word for words in _words(texts) for word in words})
    best, chance = (best_embeddings(responses, refs, vectors) for refs in (targets, shifted))
    for name, value_e in best.items():
        mean, se = mean_se(value_e)
        baseline = float(chance[name].mean())
        rows.append(
            Row(f"dialogue_{name}", mean, "cosine", se, baseline, Path(at.config.vectors).name)
        )
    return rows
