"""Attribute arithmetic: adds an attribute's vector to a latent and decodes the result. Does the
sentence then have the attribute, and how much of the original is left?

A classifier on words, fitted to labelled sentences, judges whether a sentence has the attribute.
The scores are only as reliable as this classifier, so its own accuracy is reported with them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jvae.errors import DataError
from jvae.evals.text import corpus_bleu
from jvae.latent.geometry import direction

Decode = Callable[[Float[np.ndarray, "e g z"], Int[np.ndarray, "e"]], list[str]]


class Edit(NamedTuple):
    """Sentences moved to the other value of an attribute by one multiple of its vector."""

    texts: list[str]
    toward: tuple[float, float]  # % judged to have the target value, of those moved to a and to b
    bleu: float  # against the original sentences, 0 to 100

    @property
    def flipped(self) -> float:
        """Mean over both directions, %."""
        return sum(self.toward) / 2


def two_values(label_e: np.ndarray) -> tuple[str, str]:
    """The two most frequent labels, in alphabetical order.

    Raises: DataError if there is only one.
    """
    common = Counter(str(label) for label in label_e).most_common(2)
    if len(common) < 2:
        raise DataError("attribute: all labels are the same; a vector needs two values")
    a, b = sorted(value for value, _ in common)
    return a, b


def word_classifier(
    texts: Sequence[str], label_e: np.ndarray
) -> Callable[[Sequence[str]], np.ndarray]:
    """Fits a logistic regression on unigrams and bigrams; returns texts -> labels."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = CountVectorizer(token_pattern=r"\S+", lowercase=False, binary=True, ngram_range=(1, 2))
    judge = make_pipeline(words, LogisticRegression(C=1.0, max_iter=300, tol=1e-3))
    return judge.fit(list(texts), np.asarray(label_e)).predict


def vector(
    z_egz: Float[np.ndarray, "e g z"], label_e: np.ndarray, values: tuple[str, str]
) -> Float[np.ndarray, "g z"]:
    """The difference of the mean latents: from the first value to the second."""
    return direction(*(z_egz[label_e == value] for value in values))


def edit(
    decode: Decode,
    judge: Callable[[Sequence[str]], np.ndarray],
    texts: Sequence[str],
    label_e: np.ndarray,
    z_egz: Float[np.ndarray, "e g z"],
    vector_gz: Float[np.ndarray, "g z"],
    values: tuple[str, str],
    scale: float,
) -> Edit:
    """Moves each sentence to the attribute value it does not have and scores the result.

    Args:
      decode: (latents, indices of their sentences) -> sentences.
      scale: multiple of the vector; 0 decodes the latents unchanged.
    """
    to_b_e = label_e == values[0]
    sign_e = np.where(to_b_e, 1.0, -1.0).astype(np.float32)
    moved_egz = z_egz + scale * sign_e[:, None, None] * vector_gz
    edited = decode(moved_egz, np.arange(len(texts)))
    wanted_e = np.where(to_b_e, values[1], values[0])
    hit_e = np.asarray(judge(edited)) == wanted_e
    toward = 100.0 * float(hit_e[~to_b_e].mean()), 100.0 * float(hit_e[to_b_e].mean())
    return Edit(edited, toward, corpus_bleu(edited, texts)[0])
