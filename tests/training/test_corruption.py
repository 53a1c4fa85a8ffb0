"""Deletion of encoder tokens and dropping of words: how many, which, whatever the packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import example_keys
from jvae.data.rows import Encoded, pack_rows
from jvae.training.corruption import delete_tokens, drop_words, most_deleted

PAD = 0
RNG = np.random.default_rng(0)
SENTENCES = [RNG.permutation(np.arange(2, 60))[:n] for n in (21, 5, 1, 12, 2)]


def packed(ids_bs, row: int):
    sides = dict(enc=Encoded.of(SENTENCES), dec=Encoded.of(SENTENCES))
    return pack_rows(np.array(ids_bs), sides, dict(enc=row, dec=row), dict(enc=PAD, dec=PAD))


BATCHES = {
    "packed": packed([[0, 4, -1], [3, -1, 2], [-1, -1, 1]], 24),
    "single": packed([[i] for i in range(5)], 21),
}


@pytest.fixture(scope="module")
def drawn():
    """For each batch and seed, the tokens of each sentence that are left."""

    def left(batch, rate, seeds):
        def one(seed):
            key_e = example_keys(jax.random.key(seed), batch.id_e)
            return delete_tokens(key_e, batch.enc, rate, PAD)

        side = jax.device_get(jax.jit(jax.vmap(one))(jnp.arange(seeds)))
        out = []
        for draw in range(seeds):
            actual = {}
            for e, i in enumerate(batch.id_e):
                row, segment = e // batch.slots, e % batch.slots + 1
                in_segment = side.segment_bt[draw, row] == segment
                if i >= 0:
                    actual[int(i)] = side.token_bt[draw, row, in_segment]
                    np.testing.assert_array_equal(
                        side.position_bt[draw, row, in_segment], np.arange(in_segment.sum())
                    )
                else:
                    assert not in_segment.any()
            out.append(actual)
            padding = side.segment_bt[draw] == 0
            assert np.all(side.token_bt[draw][padding] == PAD)
            assert np.all(side.position_bt[draw][padding] == 0)
        return out

    return {name: left(batch, 0.4, 300) for name, batch in BATCHES.items()}


@pytest.mark.parametrize(
    "rate, tokens, want", [(0.15, 21, 2), (0.4, 5, 0), (0.4, 6, 1), (0.15, 1, 0), (1.0, 5, 3)]
)
def test_how_many_may_go(rate, tokens, want):
    """max_drop - 1, of max_drop = int(n * p) for n tokens before the end."""
    assert most_deleted(21, rate)[tokens] == want


def test_what_is_left_is_in_order_and_ends_as_before(drawn):
    counts = {i: [] for i in range(len(SENTENCES))}
    firsts = set()
    for actual in drawn["single"]:
        for i, left in actual.items():
            whole = SENTENCES[i]
            kept = np.isin(whole, left)
            np.testing.assert_array_equal(whole[kept], left)
            assert left[-1] == whole[-1]
            counts[i].append(len(whole) - len(left))
            firsts.add((i, bool(kept[0])))
    # 20 * 0.4 = 8 and 11 * 0.4 = 4.4: uniform from 0 to 7, from 0 to 3; none of the short ones.
    for i, most in ((0, 7), (3, 3), (1, 0), (2, 0), (4, 0)):
        assert set(counts[i]) == set(range(most + 1))
        assert abs(np.mean(counts[i]) - most / 2) <= 0.16 * most
    assert {(0, True), (0, False)} <= firsts


def test_every_token_but_the_last_goes_equally_often(drawn):
    gone = np.mean([~np.isin(SENTENCES[0], actual[0]) for actual in drawn["single"]], axis=0)
    assert gone[-1] == 0
    assert np.all(np.abs(gone[:-1] - 3.5 / 20) < 0.08)


def test_draws_belong_to_the_example(drawn):
    for packed, single in zip(drawn["packed"], drawn["single"], strict=True):
        for i in packed:
            np.testing.assert_array_equal(packed[i], single[i])


def test_nothing_goes_at_rate_zero_and_rates_are_shares():
    batch = BATCHES["packed"]
    key_e = example_keys(jax.random.key(0), batch.id_e)
    same = jax.jit(lambda: delete_tokens(key_e, batch.enc, 0.0, PAD))()
    for got, want in zip(same, batch.enc, strict=True):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match="rate is 1.5"):
        delete_tokens(key_e, batch.enc, 1.5, PAD)


@pytest.mark.slow
def test_words_are_dropped_where_they_are_scored_at_the_rate_and_by_example():
    rng = np.random.default_rng(0)
    side = Encoded.of([np.array([1, *rng.integers(4, 20, 30), 2]) for _ in range(60)])
    rows, pad = dict(dec=64), dict(dec=0)
    pairs = pack_rows(np.arange(60).reshape(30, 2), dict(dec=side), rows, pad)
    key_e = example_keys(jax.random.key(0), jnp.asarray(pairs.id_e))
    noisy = drop_words(key_e, pairs, 0.3, 3)
    assert (noisy.read_bt == pairs.read_bt)[~pairs.scored_bt].all()
    changed = (noisy.read_bt != pairs.read_bt)[pairs.scored_bt]
    assert 0.25 < changed.mean() < 0.35
    assert set(np.unique(noisy.read_bt[noisy.read_bt != pairs.read_bt])) == {3}
    assert noisy.dec is pairs.dec and noisy.scored_bt is pairs.scored_bt

    swapped = pack_rows(np.array([[1, 0]]), dict(dec=side), rows, pad)
    key_e = example_keys(jax.random.key(0), jnp.asarray(swapped.id_e))
    again = drop_words(key_e, swapped, 0.3, 3).read_bt[0]
    np.testing.assert_array_equal(again[:32], noisy.read_bt[0, 32:])
    np.testing.assert_array_equal(again[32:], noisy.read_bt[0, :32])
    with pytest.raises(ValueError, match="rate is 2; expected a share"):
        drop_words(key_e, swapped, 2, 3)
