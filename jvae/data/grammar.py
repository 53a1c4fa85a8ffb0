"""The embedded corpus: captions of a small grammar with exact probabilities, factors and entropy.

    at dawn two young women in red coats are slowly feeding goats on a farm
    time    count look who  garment      tense manner action object place

A sentence is twelve factor values. Each factor depends on one other at most (colour on garment,
object on action, time on tense), so probability, marginals and entropy are sums over small tables.
The grammar is unambiguous: no string has two vectors of values, hence the probability of the vector
is that of the string. All is in nats.

    python -m jvae.data.grammar        prints the measured facts of the default corpus
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jvae.data import lexicon
from jvae.errors import DataError

TRAIN, VALID, TEST = 40_000, 1_000, 1_000  # default sizes
SPLITS = ("train", "valid", "test")
NONE = "none"  # the label of an optional factor that is absent, always value 0


class Sentence(NamedTuple):
    """A sentence, its factor values in `FACTORS` order, its exact log-probability in nats."""

    text: str
    factors: tuple[int, ...]
    log_prob: float


class Factor(NamedTuple):
    """A factor of variation: value i of a sentence means `values[i]`."""

    name: str
    values: tuple[str, ...]


class _Node(NamedTuple):
    """A factor given its parent (-1: none, one row).

    Integer weights, because sums of floats could differ between platforms and move a draw.
    """

    factor: Factor
    parent: int
    weight_pv: Int[np.ndarray, "p v"]

    @property
    def prob_pv(self) -> Float[np.ndarray, "p v"]:
        return self.weight_pv / self.weight_pv.sum(axis=1, keepdims=True)

    @property
    def log_prob_pv(self) -> Float[np.ndarray, "p v"]:
        return np.array([[math.log(p) if p else -math.inf for p in row] for row in self.prob_pv])


def _even(values: Iterable[str]) -> dict[str, int]:
    return dict.fromkeys(values, 1)


def _optional(values: Sequence[str], percent: int) -> dict[str, int]:
    """Absent with 100 - `percent`, else one of the values evenly."""
    return {NONE: (100 - percent) * len(values), **dict.fromkeys(values, percent)}


def _network() -> tuple[_Node, ...]:
    """The factors, parents first, each with one row of weights per value of its parent."""
    people = {noun.split()[0]: group for group in lexicon.PEOPLE for noun in group.nouns}
    actions = {verb.split()[0]: group for group in lexicon.ACTIONS for verb in group.verbs}
    times = {
        name: _optional(lexicon.ANY_TIMES + tense.times, lexicon.TIME_PERCENT)
        for name, tense in lexicon.TENSES.items()
    }
    tenses = {name: tense.percent for name, tense in lexicon.TENSES.items()}
    garments = {
        who: _optional([garment.split()[0] for garment in group.garments], lexicon.GARMENT_PERCENT)
        for who, group in people.items()
    }
    absent = {NONE: 1}
    nodes: list[_Node] = []

    def add(name: str, given: str | None, row_of: Callable[[str], dict[str, int]]) -> None:
        names = [node.factor.name for node in nodes]
        parent = -1 if given is None else names.index(given)
        rows = [row_of(label) for label in (nodes[parent].factor.values if given else ("",))]
        values = tuple(dict.fromkeys(label for row in rows for label in row))
        weight_pv = np.array([[row.get(label, 0) for label in values] for row in rows], np.int64)
        nodes.append(_Node(Factor(name, values), parent, weight_pv))

    add("count", None, lambda _: lexicon.COUNT_PERCENT)
    add("who", None, lambda _: _even(people))
    add("look", "who", lambda who: _optional(people[who].looks, lexicon.LOOK_PERCENT))
    add("garment", "who", lambda who: garments[who])
    add("colour", "garment", lambda garment: absent if garment == NONE else _even(lexicon.COLOURS))
    add("tense", None, lambda _: tenses)
    add("manner", None, lambda _: _optional(lexicon.MANNERS, lexicon.MANNER_PERCENT))
    add("action", None, lambda _: _even(actions))
    add("object", "action", lambda action: _even(actions[action].objects))
    add("place", "action", lambda action: _even(actions[action].places))
    add("time", "tense", lambda tense: times[tense])
    add(
        "order", "time", lambda time: absent if time == NONE else _even(("time last", "time first"))
    )
    return tuple(nodes)


_NODES = _network()
_LOG_PROB = tuple((node.parent, node.log_prob_pv.tolist()) for node in _NODES)
FACTORS: tuple[Factor, ...] = tuple(node.factor for node in _NODES)


# --------------------------------------------------------------------------------------------------
# Factor values to text.


def _surface(name: str) -> list[str]:
    """What each value of an optional or uninflected factor adds to the text."""
    values = next(factor.values for factor in FACTORS if factor.name == name)
    return ["" if value == NONE else value for value in values]


_FORMS = ("base", "third", "past", "ing")
_NOUN = [noun.split() for group in lexicon.PEOPLE for noun in group.nouns]  # [who][plural]
_VERB = [verb.split() for group in lexicon.ACTIONS for verb in group.verbs]  # [action][form]
# [tense][plural]
_AUXILIARY = [tense.auxiliary.split() or ["", ""] for tense in lexicon.TENSES.values()]
_FORM = [[_FORMS.index(form) for form in tense.form.split()] for tense in lexicon.TENSES.values()]
_GARMENTS = dict(garment.split() for group in lexicon.PEOPLE for garment in group.garments)
_GARMENT = [["", ""], *map(list, _GARMENTS.items())]  # [garment][plural]
_COUNT, _LOOK, _COLOUR, _MANNER = map(_surface, ("count", "look", "colour", "manner"))
_OBJECT, _PLACE, _TIME = map(_surface, ("object", "place", "time"))
_LAST, _FIRST = (FACTORS[-1].values.index(order) for order in ("time last", "time first"))


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def realise(factors: Sequence[int]) -> str:
    """The sentence of a vector of factor values, which must be one the grammar can draw."""
    count, who, look, garment, colour, tense, manner, action, object_, place, time, order = factors
    plural = count > 0
    noun = _NOUN[who][plural]
    words = [
        _TIME[time] if order == _FIRST else "",
        _COUNT[count] if plural else _article(_LOOK[look] or noun),
        _LOOK[look],
        noun,
    ]
    if garment:
        words += [
            "in",
            "" if plural else _article(_COLOUR[colour]),
            _COLOUR[colour],
            _GARMENT[garment][plural],
        ]
    words += [
        _AUXILIARY[tense][plural],
        _MANNER[manner],
        _VERB[action][_FORM[tense][plural]],
        _OBJECT[object_],
        _PLACE[place],
        "" if order == _FIRST else _TIME[time],
    ]
    return " ".join(filter(None, words))


def vocabulary() -> tuple[str, ...]:
    """Every word a sentence can hold, sorted."""
    inflected = (
        word for table in (_NOUN, _VERB, _AUXILIARY, _GARMENT) for row in table for word in row
    )
    plain = (*_COUNT[1:], *_LOOK, *_COLOUR, *_MANNER, *_OBJECT, *_PLACE, *_TIME, "a", "an", "in")
    return tuple(sorted({word for phrase in (*inflected, *plain) for word in phrase.split()}))


# --------------------------------------------------------------------------------------------------
# Text to factor values.


def _pattern() -> re.Pattern[str]:
    """The order of the phrases, blind to agreement and selection."""

    def group(name: str, phrases: Iterable[str]) -> str:
        return f"(?P<{name}>{'|'.join(sorted(set(phrases) - {''}))})"

    def forms(table: Sequence[Sequence[str]]) -> list[str]:
        return [word for row in table for word in row]

    return re.compile(
        f"(?:{group('time_first', _TIME)} )?"
        f"{group('count', (*_COUNT[1:], 'a', 'an'))} "
        f"(?:{group('look', _LOOK)} )?"
        f"{group('who', forms(_NOUN))} "
        f"(?:in (?:an? )?{group('colour', _COLOUR)} {group('garment', forms(_GARMENT))} )?"
        f"(?:{group('auxiliary', forms(_AUXILIARY))} )?"
        f"(?:{group('manner', _MANNER)} )?"
        f"{group('action', forms(_VERB))} "
        f"{group('object', _OBJECT)} "
        f"{group('place', _PLACE)}"
        f"(?: {group('time_last', _TIME)})?"
    )


def _index(table: Sequence[Sequence[str]]) -> dict[str, int]:
    """From a word to the row that holds it."""
    return {word: row for row, words in enumerate(table) for word in words}


_PATTERN = _pattern()
_WHO, _ACTION, _WEARS = map(_index, (_NOUN, _VERB, _GARMENT))
_COUNTED = {"a": 0, "an": 0, **{word: value for value, word in enumerate(_COUNT) if value}}
_LOOKS, _COLOURED, _MANNERED, _OBJECTS, _PLACES, _TIMES = (
    {phrase: value for value, phrase in enumerate(table)}
    for table in (_LOOK, _COLOUR, _MANNER, _OBJECT, _PLACE, _TIME)
)
_TENSE_OF = {  # auxiliary and form of the verb to tense
    (_AUXILIARY[tense][plural], _FORM[tense][plural]): tense
    for tense in range(len(_FORM))
    for plural in (False, True)
}


def parse(text: str) -> tuple[int, ...] | None:
    """The factor values in the order of `FACTORS`, or None when `text` is not in the language.

    The pattern proposes the only values the phrases allow. They stand if the grammar can draw them
    (selection) and says them in exactly these words (agreement), so no rule is written twice.
    Nothing is normalised: capitals, full stops or extra spaces are not in the language.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        return None
    part = match.groupdict(default="")
    action = _ACTION[part["action"]]
    tense = _TENSE_OF.get((part["auxiliary"], _VERB[action].index(part["action"])))
    if tense is None:
        return None
    time = part["time_first"] or part["time_last"]
    factors = (
        _COUNTED[part["count"]],
        _WHO[part["who"]],
        _LOOKS[part["look"]],
        _WEARS[part["garment"]],
        _COLOURED[part["colour"]],
        tense,
        _MANNERED[part["manner"]],
        action,
        _OBJECTS[part["object"]],
        _PLACES[part["place"]],
        _TIMES[time],
        _FIRST if part["time_first"] else _LAST if time else 0,
    )
    legal = _log_prob_of(factors) > -math.inf and realise(factors) == text
    return factors if legal else None


# --------------------------------------------------------------------------------------------------
# Probability.


def _log_prob_of(factors: Sequence[int]) -> float:
    total = 0.0
    for value, (parent, log_prob_pv) in zip(factors, _LOG_PROB, strict=True):
        total += log_prob_pv[0 if parent < 0 else factors[parent]][value]
    return total


def log_prob(text: str) -> float:
    """Exact log-probability of the string in nats, -inf when the grammar cannot produce it."""
    factors = parse(text)
    return -math.inf if factors is None else _log_prob_of(factors)


def _marginals() -> list[Float[np.ndarray, "v"]]:
    marginals: list[np.ndarray] = []
    for node in _NODES:
        prob_p = np.ones(1) if node.parent < 0 else marginals[node.parent]
        marginals.append(prob_p @ node.prob_pv)
    return marginals


def _entropy_v(prob_v: Float[np.ndarray, "v"]) -> float:
    return -math.fsum(p * math.log(p) for p in prob_v.tolist() if p)


def factor_entropies() -> dict[str, float]:
    """Exact entropy of each factor on its own, in nats.

    Factors depend on each other, so these add up to more than `entropy()`.
    """
    return {
        factor.name: _entropy_v(prob_v)
        for factor, prob_v in zip(FACTORS, _marginals(), strict=True)
    }


def entropy() -> float:
    """Exact entropy of a sentence in nats: each factor's entropy given its parent, added up."""
    marginals = _marginals()
    total = 0.0
    for node in _NODES:
        prob_p = np.ones(1) if node.parent < 0 else marginals[node.parent]
        total += math.fsum(p * _entropy_v(row) for p, row in zip(prob_p, node.prob_pv, strict=True))
    return total


# --------------------------------------------------------------------------------------------------
# Corpora.


def corpus(split: str, n: int, seed: int = 0) -> list[Sentence]:
    """Draws `n` independent sentences. A shorter corpus is the beginning of a longer one.

    Each (seed, split) is its own stream: `PCG64(SeedSequence(seed, spawn_key=(index of split,)))`,
    read as raw 64-bit words, which NumPy keeps fixed across versions and platforms. With integer
    weights, equal arguments give equal text everywhere.

    Args:
      split: one of `SPLITS`. None is filtered against another: that would void the exact entropy.
      n: sentences; `TRAIN`, `VALID` and `TEST` are the default sizes.
    Raises: DataError for an unknown split or a negative number.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r} is not known; expected one of {', '.join(SPLITS)}")
    if n < 0 or seed < 0:
        raise DataError(
            f"the embedded corpus needs n >= 0 and seed >= 0, got n={n} and seed={seed}"
        )
    stream = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split),)))
    bits_nf = stream.random_raw(n * len(_NODES)).reshape(n, len(_NODES))
    uniform_nf = (bits_nf >> np.uint64(11)) * 2.0**-53
    value_nf = np.zeros((n, len(_NODES)), np.int64)
    log_prob_n = np.zeros(n)
    for f, node in enumerate(_NODES):
        row_n = np.zeros(n, np.int64) if node.parent < 0 else value_nf[:, node.parent]
        edge_pv = np.cumsum(node.weight_pv, axis=1)
        point_n = np.floor(uniform_nf[:, f] * edge_pv[row_n, -1]).astype(np.int64)
        value_nf[:, f] = np.sum(edge_pv[row_n] <= point_n[:, None], axis=1)
        log_prob_n += node.log_prob_pv[row_n, value_nf[:, f]]
    return [
        Sentence(realise(factors), tuple(factors), log_prob)
        for factors, log_prob in zip(value_nf.tolist(), log_prob_n.tolist(), strict=True)
    ]


def summary(n_train: int = TRAIN, n_test: int = TEST, seed: int = 0) -> dict[str, float]:
    """Measured facts of a corpus: entropy beside its sample mean, word types, overlap, lengths.

    Raises: DataError if `n_train` or `n_test` is below 2, where there is no standard error.
    """
    if min(n_train, n_test) < 2:
        raise DataError(f"a summary needs 2 sentences a split, got {n_train} and {n_test}")
    train, test = corpus("train", n_train, seed), corpus("test", n_test, seed)
    nll_n = -np.array([sentence.log_prob for sentence in train])
    words_n = np.array([len(sentence.text.split()) for sentence in train])
    uses = Counter(word for sentence in train for word in sentence.text.split())
    seen = {sentence.text for sentence in train}
    return {
        "train_sentences": n_train,
        "test_sentences": n_test,
        "entropy_nats": entropy(),
        "train_nll_nats": float(nll_n.mean()),
        "train_nll_se_nats": float(nll_n.std(ddof=1) / math.sqrt(n_train)),
        "word_types": len(vocabulary()),
        "word_types_used_20_times": sum(count >= 20 for count in uses.values()),
        "test_seen_in_train_percent": 100 * sum(s.text in seen for s in test) / n_test,
        "train_distinct_percent": 100 * len(seen) / n_train,
        "words_mean": float(words_n.mean()),
        "words_min": int(words_n.min()),
        "words_max": int(words_n.max()),
    }


def main() -> None:
    for sentence in corpus("train", 8):
        print(f"{-sentence.log_prob:6.2f} nats  {sentence.text}")
    print()
    for name, value in summary().items():
        print(f"{name:28} {value:g}")
    print()
    for factor, nats in zip(FACTORS, factor_entropies().values(), strict=True):
        print(f"{factor.name:8} {len(factor.values):3} values {nats:5.2f} nats")


if __name__ == "__main__":
    main()
