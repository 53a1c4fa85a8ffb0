"""Probabilities, entropies and draws of the embedded corpus."""

import hashlib
import itertools
import math
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from jvae.data import grammar, lexicon
from jvae.errors import DataError

NAMES = tuple(factor.name for factor in grammar.FACTORS)


# --------------------------------------------------------------------------------------------------
# Probability.


def test_probabilities_of_the_factor_tree_sum_to_one() -> None:
    """Messages from the last factor to the first, in rational numbers: exactly one."""
    messages = [[Fraction(1)] * len(factor.values) for factor in grammar.FACTORS]
    total = Fraction(1)
    for f in reversed(range(len(NAMES))):
        node = grammar._NODES[f]
        sums = [
            sum(
                (Fraction(w, sum(row)) * m for w, m in zip(row, messages[f], strict=True)),
                Fraction(0),
            )
            for row in node.weight_pv.tolist()
        ]
        if node.parent < 0:
            total *= sums[0]
        else:
            assert len(sums) == len(messages[node.parent])
            messages[node.parent] = [
                m * s for m, s in zip(messages[node.parent], sums, strict=True)
            ]
    assert total == 1


def test_strings_of_a_part_of_the_language_have_its_probability() -> None:
    """Every string of a part of the language, built from words: log_prob adds up to its share."""
    looks = ["", "tired", "strong", "skilled", "experienced"]
    garments = ["apron", "jacket", "uniform", "vest"]
    dressed = [
        "",
        *(f"in {a} {c} {g}" for a in ("a", "an") for c in lexicon.COLOURS for g in garments),
    ]
    times = ["", "at dawn", "at sunset", "yesterday", "last week", "every day", "today"]
    objects = ["goats", "ponies", "lambs", "rabbits", "soup"]
    places = ["on a farm", "at a zoo", "in a barn", "in a meadow", "in a kitchen"]
    total, strings = 0.0, set()
    for first, article, look, dress, thing, place, last in itertools.product(
        times, ("a", "an"), looks, dressed, objects[1:], places[2:], times
    ):
        if first and last:
            continue
        phrases = (first, article, look, "nurse", dress, "slowly fed", thing, place, last)
        text = " ".join(filter(None, phrases))
        assert text not in strings
        strings.add(text)
        total += math.exp(grammar.log_prob(text))
    # one nurse, slowly, past simple, feed, three objects of four, two places of four
    share = 0.45 / 15 * (0.36 / 4) * 0.15 / 30 * (3 / 4) * (2 / 4)
    assert total == pytest.approx(share, rel=1e-12)


def test_entropy_agrees_with_the_sample_mean() -> None:
    nll_n = -np.array([s.log_prob for s in grammar.corpus("train", 40_000, seed=11)])
    error = nll_n.std(ddof=1) / math.sqrt(len(nll_n))
    assert abs(nll_n.mean() - grammar.entropy()) < 4 * error
    assert error < 0.02


def test_entropy_by_enumeration_of_values() -> None:
    """The chain rule against joint tables of the groups of factors that share an ancestor."""
    roots = {f: f for f in range(len(NAMES))}
    for f, node in enumerate(grammar._NODES):
        roots[f] = f if node.parent < 0 else roots[node.parent]
    total = 0.0
    for root in set(roots.values()):
        members = [f for f in roots if roots[f] == root]
        joint: dict[tuple[int, ...], float] = {(): 1.0}
        for f in members:
            node = grammar._NODES[f]
            joint = {
                (*prefix, v): p * q
                for prefix, p in joint.items()
                for v, q in enumerate(
                    node.prob_pv[prefix[members.index(node.parent)] if node.parent >= 0 else 0]
                )
                if q
            }
        total -= math.fsum(p * math.log(p) for p in joint.values())
    assert grammar.entropy() == pytest.approx(total, abs=1e-10)


def test_factor_entropies() -> None:
    exact = grammar.factor_entropies()
    assert tuple(exact) == NAMES
    assert min(exact.values()) >= 0.5
    assert sum(exact.values()) > grammar.entropy()
    sample = np.array([s.factors for s in grammar.corpus("valid", 40_000)])
    for f, name in enumerate(NAMES):
        share = np.bincount(sample[:, f], minlength=len(grammar.FACTORS[f].values)) / len(sample)
        assert np.all(share > 0)
        # plug-in bias is (values - 1) / 2n, its spread is below 1/sqrt(n)
        assert -np.sum(share * np.log(share)) == pytest.approx(exact[name], abs=0.02)


def test_every_factor_adds_half_a_nat_given_the_others_before() -> None:
    """Exact conditional entropies: no factor is a mere function of its parent."""
    marginals = grammar._marginals()
    for node in grammar._NODES:
        prob_p = np.ones(1) if node.parent < 0 else marginals[node.parent]
        inner = sum(
            p * grammar._entropy_v(row) for p, row in zip(prob_p, node.prob_pv, strict=True)
        )
        assert inner >= 0.5, node.factor.name


def test_draws_follow_the_tables() -> None:
    n = 40_000
    sample = np.array([s.factors for s in grammar.corpus("test", n, seed=5)])
    for f, prob_v in enumerate(grammar._marginals()):
        count_v = np.bincount(sample[:, f], minlength=len(prob_v))
        chi2 = np.sum((count_v - n * prob_v) ** 2 / (n * prob_v))
        free = len(prob_v) - 1
        assert chi2 < free + 5 * math.sqrt(2 * free), NAMES[f]


# --------------------------------------------------------------------------------------------------
# Corpora.


def test_corpus_is_the_same_everywhere() -> None:
    """Texts written down once: a change of NumPy, Python or machine must not change the corpus."""
    assert [s.text for s in grammar.corpus("train", 3)] == [
        "several old neighbors were walking with a friend over a bridge last night",
        "several sailors in orange aprons are repairing a truck on a street at sunset",
        "a strong sailor was happily grooming ponies at a zoo at sunset",
    ]
    digest = hashlib.sha256()
    for split in grammar.SPLITS:
        for sentence in grammar.corpus(split, 1_000, seed=7):
            digest.update(sentence.text.encode() + b"\n")
    assert digest.hexdigest() == "32cce139d114ce3d7db6269fa24756ec10ec0d810a1f12d4ccdd85cb89d6497c"


def test_splits_and_seeds_are_independent_and_shorter_corpora_are_prefixes() -> None:
    train = grammar.corpus("train", 100)
    assert train == grammar.corpus("train", 100)
    assert train[:30] == grammar.corpus("train", 30)
    drawn = [train, grammar.corpus("valid", 100), grammar.corpus("test", 100)]
    drawn.append(grammar.corpus("train", 100, seed=1))
    for first, second in itertools.combinations(drawn, 2):
        assert len({s.text for s in first} & {s.text for s in second}) < 5
    assert grammar.corpus("train", 0) == []


@pytest.mark.parametrize(
    ("split", "n", "seed", "message"),
    [
        ("dev", 1, 0, "'dev'.*train, valid, test"),
        ("train", -1, 0, "n=-1"),
        ("train", 1, -2, "seed=-2"),
    ],
)
def test_corpus_refuses(split: str, n: int, seed: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        grammar.corpus(split, n, seed)


def test_summary_meets_the_requirements() -> None:
    facts = grammar.summary()
    assert facts["train_sentences"] == grammar.TRAIN == 40_000
    assert 17 <= facts["entropy_nats"] <= 19
    off = abs(facts["train_nll_nats"] - facts["entropy_nats"])
    assert off < 4 * facts["train_nll_se_nats"]
    assert facts["word_types_used_20_times"] >= 300
    assert facts["test_seen_in_train_percent"] < 2
    assert 11 <= facts["words_mean"] <= 13
    assert 7 <= facts["words_min"] <= facts["words_max"] <= 22
    with pytest.raises(DataError, match="2 sentences"):
        grammar.summary(n_train=1)


def test_no_rare_tail() -> None:
    uses = Counter(w for s in grammar.corpus("train", grammar.TRAIN) for w in s.text.split())
    assert set(uses) == set(grammar.vocabulary())
    assert min(uses.values()) >= 20
    assert grammar.vocabulary() == tuple(sorted(set(grammar.vocabulary())))


def test_command_prints_the_facts() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "jvae.data.grammar"],
        capture_output=True,
        text=True,
        check=True,
    )
    for fact in ("entropy_nats", "word_types_used_20_times", "test_seen_in_train_percent"):
        assert fact in done.stdout
    assert len(grammar.FACTORS) == sum(" values " in line for line in done.stdout.splitlines())
