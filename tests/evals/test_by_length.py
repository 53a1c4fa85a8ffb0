"""Metrics in buckets of length, where one mean looked fine."""

from typing import Any

import numpy as np
import pytest

from jvae.evals.by_length import by_length, cells
from jvae.evals.card import Card, Report
from jvae.evals.likelihood import LikelihoodResult
from jvae.latent.iw_bound import Scores

WORDS = np.array([2, 4, 4, 6, 8, 9, 50, 4])


def likelihood(ids, latent=True):
    ids = np.asarray(ids)
    words = WORDS[ids].astype(float)
    kl = words / 2
    scores: dict[str, Any] = dict(nll_e=words, rec_e=words**2, kl_e=kl, ess_e=kl)
    scores |= dict(scored_e=WORDS[ids] + 1, bound_e={1: words})
    return LikelihoodResult(1, latent=latent, id_e=ids, scores=Scores(**scores))


def test_long_sentences_are_not_hidden_in_a_mean():
    exact = WORDS <= 6  # 5 of 8: a mean of 62.5 %
    train = np.array([2, 4, 4, 5, 6, 6, 8, 10])  # quartiles 4, 5, 6
    actual = by_length(WORDS, train, likelihood(range(8)), exact)
    assert actual["words_from"] == [0, 5, 6, 7] and actual["words_to"] == [4, 5, 6, 50]
    assert actual["sentences"] == [4, 0, 1, 3]
    assert actual["exact_match_by_length"] == [100, None, 100, 0]
    assert actual["rec_per_token_by_length"] == pytest.approx(
        [(4 + 3 * 16) / (3 + 3 * 5), None, 36 / 7, (64 + 81 + 2500) / (9 + 10 + 51)]
    )
    assert actual["kl_by_length"] == pytest.approx([1.75, None, 3, 67 / 6])
    weights = np.array(actual["sentences"])[[0, 2, 3]]
    means = np.array([100, 100, 0])
    assert weights @ means / weights.sum() == pytest.approx(100 * exact.mean())


def test_a_part_of_a_split_and_a_model_without_a_latent():
    actual = by_length(WORDS, np.full(9, 4), likelihood([1, 6], latent=False), None)
    assert actual["words_from"] == [0, 5] and actual["sentences"] == [1, 1]
    assert actual["exact_match_by_length"] == actual["kl_by_length"] == [None, None]
    assert actual["rec_per_token_by_length"][0] == 16 / 5
    short = by_length(WORDS, np.full(9, 4), likelihood([0, 1]), np.array([True, False]))
    assert short["words_to"] == [4] and short["exact_match_by_length"] == [50]


def test_the_table_has_the_buckets():
    card = Report("test", Card())
    card.details["by_length"] = by_length(WORDS, WORDS, likelihood(range(8)), WORDS <= 6)
    head, rows = cells(card.details["by_length"])
    assert head[0] == "words" and rows[0][0] == "0 to 4" and len(rows) == 3
    table = card.table()
    assert "by length in words" in table
    (line,) = [line for line in table.splitlines() if line.startswith("9 to 50")]
    assert line.split() == ["9", "to", "50", "2", "0.00", "42.31", "14.75"]
    assert card.as_dict()["details"]["by_length"]["sentences"] == [4, 2, 2]
