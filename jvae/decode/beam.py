"""Beam search for any generator: `expand` once, then `reorder` before each step.

Axis letters are those of `jvae.api`, plus W for the beam and C = 2 W for the candidates of a step.

Every step considers the 2 W best extensions of an example's W open hypotheses. Of these, end tokens
among the best W are added to the finished set if they score well enough, and the W best others stay
open. There are always W of them, since each open hypothesis has only one end-token extension.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jvae.api import Cond, DecodeState, Generator, Params, Prompt
from jvae.decode import stages
from jvae.decode.hoist import hoisted
from jvae.decode.loop import Generated, process
from jvae.decode.sampling import DecodeConfig


class Beams(NamedTuple):
    """Hypotheses per example, best first. An empty entry has score -inf and length 0."""

    token_ewt: Int[Array, "e w t"]  # new tokens only, including the end token, then pad_id
    length_ew: Int[Array, "e w"]  # number of new tokens, including the end token
    score_ew: Float[Array, "e w"]  # sum of processed log p / length ** length_penalty
    log_prob_ew: Float[Array, "e w"]  # nats: sum of the model's own log p, before any processing
    ended_ew: Bool[Array, "e w"]  # False if max_length was reached before the end token


class _Open(NamedTuple):
    """Unfinished hypotheses; -inf in `sum_ew` marks an empty entry."""

    token_ewt: Int[Array, "e w t"]
    sum_ew: Float[Array, "e w"]  # processed log p
    log_prob_ew: Float[Array, "e w"]  # the model's own


class _Search(NamedTuple):
    parent_ew: Int[Array, "e w"]  # beam index before the last token was chosen
    token_ew: Int[Array, "e w"]  # the last token, not yet read by the model
    open: _Open
    finished: Beams
    done_e: Bool[Array, "e"]


class _Carry(NamedTuple):
    emitted: Int[Array, ""]
    state: DecodeState
    search: _Search


@functools.partial(jax.jit, static_argnames=("gen", "cfg", "end_id", "pad_id"))
def beam_search(
    gen: Generator,
    params: Params,
    z_egz: Float[Array, "e g z"],
    prompt: Prompt,
    cfg: DecodeConfig,
    *,
    end_id: int,
    pad_id: int,
    cond: Cond | None = None,
) -> Beams:
    """The `cfg.beam_width` best hypotheses found for every prompt, best first.

    Compiled once per generator, config and shapes. Ties go to the better open hypothesis, then to
    the lowest id. Width 1 gives the greedy tokens unless a repetition penalty is set or
    `early_stopping` is "never": as in transformers, the penalty applies to log-probabilities here
    but to logits in greedy decoding.

    Args:
      end_id: token that ends a hypothesis.
      pad_id: fills the output after the end.
    Source: beam search of transformers 4.8 for `norm_length="total"`, and of 4.35 and later for
      "new". An open hypothesis is added to the finished ones only at max_length, and only if its
      example is not done.
    """
    examples, prompt_width = prompt.token_et.shape
    room = stages.rooms(gen, cfg)[0]
    logits_ev, state = gen.start(params, z_egz, prompt, prompt_width + room, cond)
    state = gen.expand(state, cfg.beam_width)
    logits = jnp.repeat(logits_ev, cfg.beam_width, axis=0)
    search = _nothing(examples, cfg, pad_id)
    advance = functools.partial(_advance, prompt=prompt, cfg=cfg, end_id=end_id, pad_id=pad_id)

    def body_for(carry: _Carry) -> Callable[[_Carry], _Carry]:
        step = hoisted(gen.step, params, carry.state, carry.search.token_ew.reshape(-1))

        def body(carry: _Carry) -> _Carry:
            first_e = jnp.arange(examples) * cfg.beam_width
            place = (first_e[:, None] + carry.search.parent_ew).reshape(-1)
            token = carry.search.token_ew.reshape(-1)
            logits, state = step(gen.reorder(carry.state, place), token)
            return _Carry(carry.emitted + 1, state, advance(logits, carry.search, carry.emitted))

        return body

    # Choosing the first tokens outside the loop saves a final step whose logits would be unused.
    carry = _Carry(jnp.int32(1), state, advance(logits, search, jnp.int32(0)))
    carry = stages.run(gen, cfg, lambda c: ~jnp.all(c.search.done_e), body_for, carry)
    search = carry.search
    divisor_e = _divisor(prompt, cfg, jnp.int32(cfg.max_length), ended=False)
    score_ew = search.open.sum_ew / divisor_e[:, None]
    score_ew = jnp.where(search.done_e[:, None], -jnp.inf, score_ew)
    return _merge(search.finished, search.open, score_ew, jnp.int32(cfg.max_length), ended=False)


def best(beams: Beams) -> Generated:
    """The best hypothesis of every example."""
    return Generated(
        token_et=beams.token_ewt[:, 0],
        length_e=beams.length_ew[:, 0],
        log_prob_e=beams.log_prob_ew[:, 0],
        ended_e=beams.ended_ew[:, 0],
    )


def _nothing(examples: int, cfg: DecodeConfig, pad_id: int) -> _Search:
    """The initial search: one empty open hypothesis per example, as W would give equal copies."""
    shape = (examples, cfg.beam_width)
    token_ewt = jnp.full((*shape, cfg.max_length), pad_id, jnp.int32)
    none_ew = jnp.full(shape, -jnp.inf, jnp.float32)
    zero_ew = jnp.zeros(shape, jnp.float32)
    place_ew = jnp.zeros(shape, jnp.int32)
    return _Search(
        parent_ew=place_ew,
        token_ew=place_ew,
        open=_Open(token_ewt, sum_ew=none_ew.at[:, 0].set(0.0), log_prob_ew=zero_ew),
        finished=Beams(token_ewt, place_ew, none_ew, zero_ew, jnp.zeros(shape, bool)),
        done_e=jnp.zeros(examples, bool),
    )


def _advance(
    logits: Array,
    search: _Search,
    emitted: Array,
    *,
    prompt: Prompt,
    cfg: DecodeConfig,
    end_id: int,
    pad_id: int,
) -> _Search:
    """Chooses token number `emitted` of every open hypothesis from logits of shape (E * W, V)."""
    beam, width = search.open, cfg.beam_width
    examples, vocab = search.done_e.shape[0], logits.shape[1]
    log_p = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=1)
    wide_prompt = jax.tree.map(lambda part: jnp.repeat(part, width, axis=0), prompt)
    history = beam.token_ewt.reshape(examples * width, cfg.max_length)
    gain = process(log_p, wide_prompt, history, emitted, cfg, end_id)
    sum_ewv = gain.reshape(examples, width, vocab) + beam.sum_ew[:, :, None]
    sum_ec, flat_ec = jax.lax.top_k(sum_ewv.reshape(examples, width * vocab), 2 * width)
    parent_ec, token_ec = flat_ec // vocab, flat_ec % vocab
    own_ec = jnp.take_along_axis(log_p.reshape(examples, width * vocab), flat_ec, axis=1)
    # A candidate without a hypothesis may have any column; the model must not read a padded one.
    token_ec = jnp.where(sum_ec > -jnp.inf, token_ec, pad_id).astype(jnp.int32)
    candidate = _Open(
        token_ewt=_take(beam.token_ewt, parent_ec).at[:, :, emitted].set(token_ec),
        sum_ew=sum_ec,
        log_prob_ew=_take(beam.log_prob_ew, parent_ec) + own_ec,
    )
    is_end_ec = (token_ec == end_id) & (sum_ec > -jnp.inf)

    # An end token below the W best candidates is dropped, as W better hypotheses are still open.
    in_beam_c = jnp.arange(2 * width) < width
    divisor_e = _divisor(prompt, cfg, emitted + 1, ended=True)
    score_ec = jnp.where(is_end_ec & in_beam_c[None, :], sum_ec / divisor_e[:, None], -jnp.inf)
    merged = _merge(search.finished, candidate, score_ec, emitted + 1, ended=True)
    finished = jax.tree.map(functools.partial(_where, search.done_e), search.finished, merged)

    rest_ec = jnp.where(is_end_ec, -jnp.inf, sum_ec)
    rest_ew, keep_ew = jax.lax.top_k(rest_ec, width)
    beam = _Open(
        token_ewt=_take(candidate.token_ewt, keep_ew),
        sum_ew=rest_ew,
        log_prob_ew=_take(candidate.log_prob_ew, keep_ew),
    )
    finishes_e = _is_done(finished, sum_ec[:, 0], emitted + 1, prompt, cfg)
    return _Search(
        parent_ew=_take(parent_ec, keep_ew),
        token_ew=_take(token_ec, keep_ew),
        open=beam,
        finished=finished,
        done_e=search.done_e | finishes_e | (rest_ew[:, 0] == -jnp.inf),
    )


def _divisor(prompt: Prompt, cfg: DecodeConfig, emitted: Array, ended: bool) -> Float[Array, "e"]:
    """length ** length_penalty for hypotheses with `emitted` new tokens, including an end token."""
    length_e = jnp.broadcast_to(emitted.astype(jnp.float32), prompt.length_e.shape)
    if cfg.norm_length == "total":
        length_e = length_e + prompt.length_e - int(ended)
    return length_e**cfg.length_penalty


def _is_done(
    finished: Beams, best_sum_e: Array, emitted: Array, prompt: Prompt, cfg: DecodeConfig
) -> Bool[Array, "e"]:
    worst_e = finished.score_ew[:, -1]
    full_e = worst_e > -jnp.inf
    if cfg.early_stopping == "always":
        return full_e
    if cfg.early_stopping == "never" and cfg.length_penalty > 0:
        # Sums can only decrease, so the best case keeps the sum up to the maximum length.
        divisor_e = _divisor(prompt, cfg, jnp.int32(cfg.max_length), ended=False)
    else:
        divisor_e = _divisor(prompt, cfg, emitted, ended=True)
    return full_e & (worst_e >= best_sum_e / divisor_e)


def _merge(
    finished: Beams, new: _Open, score_ec: Float[Array, "e c"], length: Array, ended: bool
) -> Beams:
    """Merges new hypotheses of finite score with the finished ones, best first; ties keep order."""
    new_ec = score_ec > -jnp.inf
    candidates = Beams(
        token_ewt=jnp.concatenate([finished.token_ewt, new.token_ewt], axis=1),
        length_ew=jnp.concatenate([finished.length_ew, jnp.where(new_ec, length, 0)], axis=1),
        score_ew=jnp.concatenate([finished.score_ew, score_ec], axis=1),
        log_prob_ew=jnp.concatenate([finished.log_prob_ew, new.log_prob_ew], axis=1),
        ended_ew=jnp.concatenate([finished.ended_ew, new_ec & ended], axis=1),
    )
    order_ew = jax.lax.top_k(candidates.score_ew, finished.score_ew.shape[1])[1]
    return jax.tree.map(lambda part: _take(part, order_ew), candidates)


def _take(value: Array, place_ew: Int[Array, "e w"]) -> Array:
    """Picks entries on axis 1 of an array (E, C, ...), per example."""
    return jax.vmap(lambda row, place: row[place])(value, place_ew)


def _where(done_e: Bool[Array, "e"], old: Array, new: Array) -> Array:
    return jnp.where(done_e.reshape(-1, *(1,) * (old.ndim - 1)), old, new)
