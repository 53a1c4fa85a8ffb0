"""How well texts show the label that was asked for, and what that costs: an oracle classifier, and
the scores of generation and of transfer under it.

The oracle is the classifier of words of `jvae.evals.attribute`, fitted to the validation split,
which neither the model nor its priors were fitted to; its accuracy on real test sentences is the
most that the accuracies of generated ones can be held to. G is the geometric mean of accuracy and
BLEU. Source: label-conditional generation of Li et al. 2020, arXiv 2004.04092.
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
MAX_CHARS = 1_000_000  # of a line of references


class Accuracy(NamedTuple):
    """Shares of texts that the oracle gives the label that was asked for, in %."""

    mean: float  # over labels
    se: float  # binomial
    by_label: Mapping[str, float]


class Oracle:
    """A classifier that says which label a text has."""

    def __init__(self, texts: Sequence[str], label_n: Labels) -> None:
        self._predict = word_classifier(texts, np.asarray(label_n))
        self.sentences = len(texts)

    def accuracy(self, texts: Sequence[str], wanted_n: Labels) -> Accuracy:
        """Scores of texts against the labels that were asked for."""
        wanted = np.asarray(wanted_n)
        right_n = self._predict(list(texts)) == wanted
        shares = {str(one): right_n[wanted == one] for one in np.unique(wanted)}
        mean = float(np.mean([share.mean() for share in shares.values()]))
        variance = np.mean([share.var() / len(share) for share in shares.values()]) / len(shares)
        by_label = {name: 100.0 * float(share.mean()) for name, share in shares.items()}
        return Accuracy(100.0 * mean, 100.0 * float(variance) ** 0.5, by_label)


class Generation(NamedTuple):
    """Texts generated for every label, as many for each."""

    accuracy: float  # %, mean over labels
    accuracy_se: float
    by_label: Mapping[str, float]
    bleu: float  # mean sentence BLEU-4 with all test sentences as references, 0 to 100
    g: float  # geometric mean of accuracy and bleu, 0 to 100
    self_bleu: float | None  # 0 to 100; lower is more diverse
    dist_2: float | None  # 0 to 1
    distinct: float  # % of texts that differ from all before them
    ppl: float | None = None  # per token, of a language model; None without one
    grammatical: float | None = None  # %, of the embedded corpus


def generation(
    oracle: Oracle,
    texts: Sequence[str],
    wanted_n: Labels,
    test: Sequence[str],
    *,
    members: bool = False,
) -> Generation:
    """Scores of texts.

    Args:
      test: sentences that are the references of BLEU.
      members: the texts are among them: each is scored against the others.
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
    """Sentences brought to another label."""

    accuracy: float  # %, of the label they were brought to, mean over labels
    accuracy_se: float
    by_label: Mapping[str, float]
    source_bleu: float  # corpus BLEU with the sentences as they were, 0 to 100
    g: float  # geometric mean of accuracy and source_bleu
    reference_bleu: float | None  # corpus BLEU with references, 0 to 100; None without any
    exact: float  # % of sentences that did not change


def transfer(
    oracle: Oracle,
    texts: Sequence[str],
    wanted_n: Labels,
    originals: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
) -> Transfer:
    """Scores of sentences brought to a label, against what they were and perhaps references."""
    accuracy, bleu = oracle.accuracy(texts, wanted_n), metrics.corpus_bleu(texts, originals)[0]
    return Transfer(
        *accuracy,
        source_bleu=bleu,
        g=(accuracy.mean * bleu) ** 0.5,
        reference_bleu=metrics.corpus_bleu_of(references, texts)[0] if references else None,
        exact=metrics.exact_match(texts, originals) or 0.0,
    )


class Referenced(NamedTuple):
    """Sentences with their labels, and references of each with another label."""

    texts: list[str]
    label_n: list[str]
    references: list[list[str]]


def read_references(path: str, labels: Sequence[str]) -> Referenced:
    """Lines `label<TAB>sentence<TAB>reference`, with further columns for further references.

    The label is that of the sentence; references have the label that it is brought to.

    Raises: DataError naming the first line that is none of these or has an unknown label.
    """
    found = Referenced([], [], [])
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
        found.texts.append(rest[0])
        found.label_n.append(label)
        found.references.append(rest[1:])
    return found
