"""Sentence BLEU against thousands of references. Equals sacreBLEU but reads each reference once."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

ORDER = 4  # longest n-gram of plain BLEU
LONGEST = 5  # longest n-gram of BLEU-5, which Optimus reports


def sacre_bleu(*, sentence: bool) -> Any:
    """The sacreBLEU metric with its default tokenizer (13a), case kept, exponential smoothing.

    Args:
      sentence: use effective order, as sacreBLEU's own `sentence_bleu` does.
    """
    from sacrebleu.metrics.bleu import (
        BLEU,
    )  # imported here so that evaluation without text metrics does not need the package

    return BLEU(effective_order=sentence, force=True)  # force: no warning about tokenized periods


def signature(nrefs: int | str, *, sentence: bool) -> str:
    """The settings that determine a BLEU score, in sacreBLEU's signature format.

    Args:
      nrefs: references per line; "var" if the number differs between lines.
    """
    import sacrebleu

    order = "yes" if sentence else "no"
    return (
        f"nrefs:{nrefs}|case:mixed|eff:{order}|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    )


def ngrams(words: Sequence[str], order: int) -> Iterator[tuple[str, ...]]:
    """All n-grams of one order, in the order of the text."""
    return (tuple(words[i : i + order]) for i in range(len(words) - order + 1))


class References:
    """Lines that all serve as references of one sentence.

    Clipping needs, for each n-gram, its largest count in any reference. Storing also the number of
    references that reach this count, and the next largest count, allows a line to be scored against
    all the others without a second pass.
    """

    def __init__(self, lines: Sequence[str]):
        if not lines:
            raise ValueError("References: no line. BLEU needs at least one reference.")
        self._metric = sacre_bleu(sentence=True)
        self._lengths: Counter[int] = Counter()
        self._best: dict[tuple[str, ...], int] = {}
        self._reached: dict[tuple[str, ...], int] = {}
        self._second: dict[tuple[str, ...], int] = {}
        for line in lines:
            counts, length = self._grams(line)
            self._lengths[length] += 1
            for gram, count in counts.items():
                best = self._best.get(gram, 0)
                if count > best:
                    self._best[gram], self._reached[gram] = count, 1
                    if best:
                        self._second[gram] = best
                elif count == best:
                    self._reached[gram] += 1
                else:
                    self._second[gram] = max(count, self._second.get(gram, 0))

    def _grams(self, line: str) -> tuple[Counter[tuple[str, ...]], int]:
        words = self._metric.tokenizer(line.rstrip()).split()
        counts: Counter[tuple[str, ...]] = Counter()
        for order in range(1, LONGEST + 1):
            counts.update(ngrams(words, order))
        return counts, len(words)

    def score(self, line: str, *, member: bool = False, order: int = ORDER) -> float:
        """Sentence BLEU of a line against all references, 0 to 100.

        Args:
          member: the line is one of the references, so it is scored against the others.
          order: the longest n-gram, at most `LONGEST`.
        """
        counts, length = self._grams(line)
        correct, total = [0] * LONGEST, [0] * LONGEST
        for gram, count in counts.items():
            limit = self._best.get(gram, 0)
            if member and limit == count and self._reached[gram] == 1:
                limit = self._second.get(gram, 0)
            correct[len(gram) - 1] += min(count, limit)
            total[len(gram) - 1] += count
        own_length = length if member and self._lengths[length] == 1 else None
        closest = min(
            (candidate for candidate in self._lengths if candidate != own_length),
            key=lambda candidate: (abs(candidate - length), candidate),
        )
        score = self._metric.compute_bleu(
            correct[:order],
            total[:order],
            length,
            closest,
            smooth_method="exp",
            effective_order=True,
            max_ngram_order=order,
        )
        return float(score.score)
