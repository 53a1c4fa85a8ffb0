"""How well texts match the requested label, and at what cost: an oracle classifier, and the scores
of generation and transfer based on it.

The oracle is the word classifier of `jvae.evals.attribute`, fitted to the validation split, which
neither the model nor its priors were fitted to. Its accuracy on real test sentences is the ceiling
for the accuracy of generated ones. G is the geometric mean of accuracy and BLEU.
Source: label-conditional generation of Li et al. 2020, arXiv 2004.04092.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jvae.data import sources
from jvae.data.text_rules import BadLine, clean, decode
from jvae.errors import DataError
from jvae.evals import text as metrics
from jvae.evals.attribute import word_classifier
from jvae.evals.bleu import References

Labels = Sequence[str] | np.ndarray
MAX_CHARS = 1_000_000  # longest line of a references file


class Accuracy(NamedTuple):
    """Share of texts to which the oracle gives the requested label, in %."""

    mean: float  # over labels
    se: float  # binomial
    by_label: Mapping[str, float]


class Oracle:
    """A classifier that predicts the label of a text."""

    def __init__(self, texts: Sequence[str], label_n: Labels) -> None:
        self._predict = word_classifier(texts, np.asarray(label_n))
        self.sentences = len(texts)

    def accuracy(self, texts: Sequence[str], wanted_n: Labels) -> Accuracy:
        """Accuracy of texts against the requested labels."""
        goal_n = np.asarray(wanted_n)
        right_n = self._predict(list(texts)) == goal_n
        shares = {str(label): right_n[goal_n == label] for label in np.unique(goal_n)}
        mean = float(np.mean([share.mean() for share in shares.values()]))
        variance = np.mean([share.var() / len(share) for share in shares.values()]) / len(shares)
        by_label = {name: 100.0 * float(share.mean()) for name, share in shares.items()}
        return Accuracy(100.0 * mean, 100.0 * float(variance) ** 0.5, by_label)


class Generation(NamedTuple):
    """Scores of texts generated for every label, the same number for each."""

    accuracy: float  # %, mean over labels
    accuracy_se: float
    by_label: Mapping[str, float]
    bleu: float  # mean sentence BLEU-4 with all test sentences as references, 0 to 100
    g: float  # geometric mean of accuracy and bleu, 0 to 100
    self_bleu: float | None  # 0 to 100; lower is more diverse
    dist_2: float | None  # 0 to 1
    distinct: float  # % of texts that do not repeat an earlier one
    ppl: float | None = None  # per token, under a language model; None without one
    grammatical: float | None = None  # %, embedded corpus only


def generation(
    oracle: Oracle,
    texts: Sequence[str],
    wanted_n: Labels,
    test: Sequence[str],
    *,
    members: bool = False,
) -> Generation:
    """Scores generated texts.

    Args:
      test: sentences that serve as the references of BLEU.
      members: the texts are themselves test sentences, so each is scored against the others.
    """
    accuracy, references = oracle.accuracy(texts, wanted_n), References(test)
    bleu = float(np.mean([references.score(text, member=members) for text in texts]))
    return Generation(
        *accuracy,
        bleu=bleu,
        g=(accuracy.mean * bleu) ** 0.5,
        self_bleu=metrics.self_bleu(texts),
        dist_2=metrics.distinct(texts)["dist_2"],
        distinct=100.0 * len(set(texts)) / len(texts),
    )


class Transfer(NamedTuple):
    """Scores of sentences transferred to another label."""

    accuracy: float  # %, for the target label, mean over labels
    accuracy_se: float
    by_label: Mapping[str, float]
    source_bleu: float  # corpus BLEU against the original sentences, 0 to 100
    g: float  # geometric mean of accuracy and source_bleu
    reference_bleu: float | None  # corpus BLEU with references, 0 to 100; None without
    exact: float  # % of sentences that did not change


def transfer(
    oracle: Oracle,
    texts: Sequence[str],
    wanted_n: Labels,
    originals: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
) -> Transfer:
    """Scores transferred sentences against the originals and, if given, references."""
    accuracy, bleu = oracle.accuracy(texts, wanted_n), metrics.corpus_bleu(texts, originals)[0]
    return Transfer(
        *accuracy,
        source_bleu=bleu,
        g=(accuracy.mean * bleu) ** 0.5,
        reference_bleu=metrics.corpus_bleu_of(references, texts)[0] if references else None,
        exact=metrics.exact_match(texts, originals) or 0.0,
    )


class Referenced(NamedTuple):
    """Sentences with their labels, and references with another label for each."""

    texts: list[str]
    label_n: list[str]
    references: list[list[str]]


def read_references(path: str, labels: Sequence[str]) -> Referenced:
    """Reads lines `label<TAB>sentence<TAB>reference`; more columns are more references.

    The label is that of the sentence; the references have the label it is transferred to.

    Raises: DataError naming the first line with another format or an unknown label.
    """
    referenced = Referenced([], [], [])
    for number, raw in sources.raw_lines(sources.expand_user(path), MAX_CHARS):
        where = f"{Path(path)}:{number}"
        line = decode(raw) if isinstance(raw, bytes) else raw
        columns = [line] if isinstance(line, BadLine) else [clean(c) for c in line.split("\t")]
        for column in columns:
            if isinstance(column, BadLine):
                raise DataError(f"{where}: {column.detail}")
        label, *rest = (str(column) for column in columns)
        if len(rest) < 2:
            raise DataError(
                f"{where}: {len(columns)} columns; expected label<TAB>sentence<TAB>reference"
            )
        if label not in labels:
            raise DataError(f"{where}: unknown label {label!r}; known: {', '.join(labels[:20])}")
        referenced.texts.append(rest[0])
        referenced.label_n.append(label)
        referenced.references.append(rest[1:])
    return referenced
