"""A condition that holds states of rows: a decoder that attends to its own source, and to no
other, in any packing and after copies are made and reordered.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae import decode
from jvae.api import Batch, DecodeState, Generator, Prompt, RowStates, per_example
from jvae.data.rows import Encoded, pack_rows
from jvae.decode import DecodeConfig

VOCAB, WIDTH = 9, 4
START, END = 7, 8
IDS = dict(end_id=END, pad_id=START)


class _Cond(NamedTuple):
    rows: RowStates
    shift_ed: jax.Array  # one per example


class _Cache(NamedTuple):
    cond: _Cond
    sum_ed: jax.Array  # the sum of what is added to queries


def _absent(*_args, **_kwargs):
    raise AssertionError("not part of this toy")


def _attended(query_btd, segment_bt, rows: RowStates):
    """Mean of the states of each token's own segment, weighted by a softmax."""
    score_bts = jnp.einsum("btd,bsd->bts", query_btd, rows.state_bsd)
    own_bts = (segment_bt[:, :, None] == rows.segment_bs[:, None]) & (segment_bt > 0)[:, :, None]
    weight_bts = jax.nn.softmax(jnp.where(own_bts, score_bts, -1e30), axis=2) * own_bts
    return jnp.einsum("bts,bsd->btd", weight_bts, rows.state_bsd)


def _condition(params, batch, drop=None):
    side = batch.cond
    state_bsd = params["embed"][side.token_bt] + 0.3 * side.position_bt[:, :, None]
    slot_s = jnp.arange(1, batch.slots + 1)
    member_bts = (side.segment_bt[:, :, None] == slot_s[None, None]).astype(jnp.float32)
    shift_ed = jnp.einsum("btd,bts->bsd", state_bsd, member_bts).reshape(-1, WIDTH)
    return _Cond(RowStates(state_bsd, side.segment_bt), jnp.tanh(shift_ed))


def _log_lik(params, ctx, z_egz):
    batch, cond = ctx
    given_bsd = (z_egz[:, 0] + cond.shift_ed).reshape(len(batch.dec.token_bt), -1, WIDTH)
    place_bt = jnp.maximum(batch.dec.segment_bt - 1, 0)
    query_btd = jnp.take_along_axis(given_bsd, place_bt[:, :, None], axis=1)
    query_btd = query_btd + params["embed"][batch.dec.token_bt]
    read_btd = _attended(query_btd, batch.dec.segment_bt, cond.rows)
    log_p_btv = jax.nn.log_softmax((query_btd + read_btd) @ params["out"])
    nats_bt = jnp.take_along_axis(log_p_btv[:, :-1], batch.dec.token_bt[:, 1:, None], axis=2)
    return jnp.where(batch.scored_bt, jnp.pad(nats_bt[:, :, 0], ((0, 0), (1, 0))), 0.0)


def _logits(params, cache: _Cache, token_e):
    """Decoding has one example per row."""
    query_ed = cache.sum_ed + params["embed"][token_e]
    ones_e1 = jnp.ones((len(token_e), 1), jnp.int32)
    read_ed = _attended(query_ed[:, None], ones_e1, cache.cond.rows)[:, 0]
    return (query_ed + read_ed) @ params["out"]


def _start(params, z_egz, prompt, max_len, cond=None):
    last_e = jnp.take_along_axis(prompt.token_et, prompt.length_e[:, None] - 1, axis=1)[:, 0]
    cache = _Cache(cond, z_egz[:, 0] + cond.shift_ed)
    return _logits(params, cache, last_e), DecodeState(cache, prompt.length_e)


def _step(params, state, token_e):
    logits_ev = _logits(params, state.cache, token_e)
    return logits_ev, DecodeState(state.cache, state.position_e + 1)


GEN = Generator(
    condition=_condition,
    prepare=lambda params, batch, drop=None, *, cond=None: (batch, cond),
    log_lik=_log_lik,
    aux=_absent,
    start=_start,
    step=_step,
    expand=decode.expand_leading,
    reorder=decode.reorder_leading,
)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    table = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {"embed": table(VOCAB, WIDTH), "out": table(WIDTH, VOCAB)}


def _pack(ids_bs, **row) -> Batch:
    rng = np.random.default_rng(1)
    source = [rng.integers(0, START, n) for n in (3, 1, 4, 2, 5)]
    text = [np.array([START, *rng.integers(0, START, n), END]) for n in (2, 3, 1, 4, 3)]
    sides = dict(dec=Encoded.of(text), cond=Encoded.of(source))
    batch = pack_rows(np.array(ids_bs), sides, row, dict(dec=START, cond=0))
    return jax.tree.map(jnp.asarray, batch)


PACKED = _pack([[4, 0, -1], [1, 2, 3]], dec=16, cond=10)
SINGLE = _pack([[0], [1], [2], [3], [4]], dec=6, cond=5)
Z = np.random.default_rng(2).normal(size=(5, 1, WIDTH)).astype(np.float32)


def _nats(params, batch):
    cond = GEN.condition(params, batch)
    z_egz = jnp.asarray(Z)[batch.id_e]
    nats_bt = GEN.log_lik(params, GEN.prepare(params, batch, cond=cond), z_egz)
    return nats_bt, per_example(nats_bt, batch)


def test_packed_rows_are_single_rows(params):
    packed_e, single_e = (np.asarray(_nats(params, batch)[1]) for batch in (PACKED, SINGLE))
    real = np.asarray(PACKED.valid_e)
    np.testing.assert_allclose(packed_e[real], single_e[PACKED.id_e[real]], rtol=1e-5)
    assert packed_e[~real] == 0
    # A source counts for its own example alone.
    other = SINGLE.cond._replace(token_bt=SINGLE.cond.token_bt.at[2].set(0))
    changed_e = np.asarray(_nats(params, SINGLE._replace(cond=other))[1]) != single_e
    np.testing.assert_array_equal(changed_e, np.arange(5) == 2)


def test_copied_and_reordered_states_read_their_own_source(params):
    """Every position continues as the teacher-forced sentence whose state it took."""
    order_e = np.array([7, 0, 3, 2, 9, 9, 4, 1, 6, 5])  # places of two copies each
    example_e = order_e // 2
    token_et, nats_et = SINGLE.dec.token_bt, np.asarray(_nats(params, SINGLE)[0])

    @jax.jit
    def run(params):
        cond = GEN.condition(params, SINGLE)
        prompt = Prompt(token_et[:, :1], jnp.ones(5, jnp.int32))
        first_ev, state = GEN.start(params, jnp.asarray(Z), prompt, 6, cond)
        state = GEN.reorder(GEN.expand(state, 2), jnp.asarray(order_e))
        next_ev, state = GEN.step(params, state, token_et[example_e, 1])
        return jax.nn.log_softmax(first_ev), jax.nn.log_softmax(next_ev), state

    first_ev, next_ev, state = run(params)
    here = np.arange(5), np.asarray(token_et)[:, 1]
    np.testing.assert_allclose(np.asarray(first_ev)[here], nats_et[:, 1], rtol=1e-5)
    there = np.arange(10), np.asarray(token_et)[example_e, 2]
    np.testing.assert_allclose(np.asarray(next_ev)[there], nats_et[example_e, 2], rtol=1e-5)
    assert isinstance(state.cache.cond.rows, RowStates)
    np.testing.assert_array_equal(
        state.cache.cond.rows.segment_bs, np.asarray(SINGLE.cond.segment_bt)[example_e]
    )


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_batches_of_decoding_cut_row_states_with_their_examples(params, method):
    cond = GEN.condition(params, SINGLE)
    prompt = Prompt(SINGLE.dec.token_bt[:, :1], jnp.ones(5, jnp.int32))
    cfg = DecodeConfig(
        method=method, max_length=4, **dict(beam_width=2) if method == "beam" else {}
    )
    whole = decode.decode(GEN, params, jnp.asarray(Z), prompt, None, cfg, cond=cond, **IDS)
    parts = decode.decode_in_batches(
        GEN, params, Z, prompt, None, cfg, cond=cond, batch_size=2, **IDS
    )
    np.testing.assert_array_equal(parts.token_et, whole.token_et)
    assert len({row.tobytes() for row in np.asarray(whole.token_et)}) > 1
