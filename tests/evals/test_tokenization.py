"""Unknown tokens and the ceiling of exact match: cases where the model looked too good or bad."""

from typing import Any

import numpy as np
import pytest

from jvae.data import tokenizers
from jvae.data.dataset import make_dataset
from jvae.data.sources import lines_of
from jvae.evals import text
from jvae.evals.card import Card, Report
from jvae.evals.compat import Block
from jvae.evals.compat.shared import CompatRow
from jvae.evals.likelihood import LikelihoodResult, text_counts
from jvae.evals.tokenization import Unknown, round_trip, unknown, unknown_in
from jvae.latent.iw_bound import Scores

WORD = tokenizers.train_word_level(["a man sleeps in a park"])
LINES = ["a man sleeps", "a zebra snores", "zebras snore loudly", "a <unk> sleeps"]


def result(lines, words=WORD):
    """One nat a token, the end included: a made-up language model."""
    tokens = np.array([len(ids) - 1 for ids in words.encode_batch(lines)])
    nats = tokens.astype(float)
    scores: dict[str, Any] = dict(nll_e=nats, rec_e=nats, kl_e=0 * nats, ess_e=0 * nats)
    scores |= dict(scored_e=tokens, bound_e={1: nats})
    return LikelihoodResult(1, latent=False, id_e=np.arange(len(lines)), scores=Scores(**scores))


def report(lines, lost):
    card = Report("test", Card())
    card.add_likelihood(result(lines), text_counts(lines), unknown={"dec": lost, "enc": lost})
    return card


def test_unknown_tokens_are_counted_by_token_and_by_sentence():
    data = make_dataset(lines_of(LINES, "lines"), WORD, WORD.for_role("encoder"))
    for side in ("dec", "enc"):
        # Of 12 words 5 are unknown; the marker that the last line spells is not.
        assert unknown(data, side, WORD, np.arange(4)) == pytest.approx((500 / 12, 50.0))
    assert unknown(data, "dec", WORD, np.array([0, 3])) == (0.0, 0.0)
    assert unknown_in(LINES, WORD) == pytest.approx((500 / 12, 50.0))
    bpe = tokenizers.train_bpe(LINES, 300)
    assert unknown_in(["żółw"], bpe) == (0.0, 0.0)


def test_unknown_tokens_of_a_source_do_not_count():
    cond = WORD.for_role("encoder")
    data = make_dataset(
        lines_of(["a man sleeps", "a zebra"], "lines"),
        WORD,
        cond=cond,
        sources=["zebras snore", "a man"],
        joined=("dec",),
    )
    assert unknown(data, "dec", WORD, np.arange(2)) == pytest.approx((20.0, 50.0))


def test_a_perplexity_of_unknown_words_is_withheld():
    """With most words unknown the perplexity per word looked excellent."""
    lost = unknown_in(LINES, WORD)
    card = report(LINES, lost)
    metrics = card.as_dict()["metrics"]
    for name in ("ppl_w", "bpc"):
        assert metrics[name]["value"] is None
        assert metrics[name]["note"] == "withheld: 41.67 % unknown tokens"
    assert metrics["ppl_t"]["value"] == pytest.approx(np.e)
    assert metrics["ppl_t"]["shown"] == "2.72 (<unk>)"
    assert metrics["nll_1"]["note"] == "41.67 % unknown tokens"
    assert metrics["unknown_tokens"]["value"] == lost.tokens_pct
    assert metrics["unknown_sentences"]["value"] == 50
    assert card.as_dict()["card"]["unknown_tokens"]["enc"]["sentences_pct"] == 50
    assert "41.67 % of the decoder's tokens are unknown" in card.notes[0]
    line = next(line for line in card.table().splitlines() if line.startswith("ppl_w  "))
    assert line.split()[1] == "-" and line.endswith("withheld: 41.67 % unknown tokens")


@pytest.mark.parametrize("share, withheld", [(0.0, False), (2.0, False), (2.1, True)])
def test_a_few_unknown_tokens_are_marked_only(share, withheld):
    card = report(["a man"], Unknown(share, 100.0))
    metrics = card.as_dict()["metrics"]
    assert (metrics["ppl_w"]["value"] is None) == (metrics["bpc"]["value"] is None) == withheld
    assert metrics["ppl_w"]["note"].endswith("unknown tokens") == (share > 0)
    assert bool(card.notes) == withheld
    per_word = Block("lagging", "w", [CompatRow("ppl", 7.0, "per word, K = 1")])
    per_token = Block("optimus", "w", [CompatRow("ppl", 8.0, "per token, K = 1")])
    card.add_compat([per_word, per_token])
    modes = card.as_dict()["compat"]
    assert (modes["lagging"]["metrics"]["ppl"]["value"] is None) == withheld
    assert modes["optimus"]["metrics"]["ppl"]["value"] == 8.0


def test_a_tokenizer_is_not_blamed_on_the_model():
    """A model without any error scored 25 %, as its tokenizer loses blanks and unknown words."""
    lines = ["a man sleeps", "a  man sleeps", "a man  sleeps ", "a man snores"]
    best = round_trip(lines, WORD)
    row = text.reconstruction(best, lines, ceiling=best)
    assert row["exact_match_pct"] == row["exact_match_ceiling_pct"] == 25
    assert row["exact_match_reachable_pct"] == 100
    row = text.reconstruction(["a man", *lines[1:]], lines, ceiling=best)
    assert (row["exact_match_pct"], row["exact_match_reachable_pct"]) == (75, 0)
    assert text.reconstruction(best, lines)["exact_match_ceiling_pct"] is None
