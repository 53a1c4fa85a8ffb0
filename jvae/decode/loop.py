"""Greedy and ancestral decoding: one compiled loop for every generator of the contract.

    prompt    <s> a        `start` reads the prompt and gives the logits of token 0
    step 0        cat      chosen from them
    step 1        sat      `step(cat)` gives the next logits
    step 2        </s>     this example is done; it emits pad_id from here on
    ...                    the loop ends with its slowest example, or at max_length

The longest output of n tokens costs n - 1 calls of `step`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jvae.api import Cond, DecodeState, Generator, Params, Prompt
from jvae.decode import sampling, stages
from jvae.decode.sampling import DecodeConfig


class Generated(NamedTuple):
    """Decoded examples. T is `max_length`; the prompt is not part of the output.

    `log_prob_e` is in nats: the model's own log p of these tokens, before any processing, summed.
    """

    token_et: Int[Array, "e t"]  # new tokens only, the end token included, then pad_id
    length_e: Int[Array, "e"]  # new tokens, the end token included
    log_prob_e: Float[Array, "e"]
    ended_e: Bool[Array, "e"]  # False where max_length came before the end token


class _Carry(NamedTuple):
    emitted: Int[Array, ""]
    token_e: Int[Array, "e"]
    state: DecodeState
    out: Generated


@functools.partial(jax.jit, static_argnames=("gen", "cfg", "end_id", "pad_id"))
def generate(
    gen: Generator,
    params: Params,
    z_egz: Float[Array, "e g z"],
    prompt: Prompt,
    key_e: Key[Array, "e"] | None,
    cfg: DecodeConfig,
    *,
    end_id: int,
    pad_id: int,
    cond: Cond | None = None,
) -> Generated:
    """Continues every prompt, greedily or at random, to the end token or `cfg.max_length`.

    Compiled once per generator, config and shapes: build the generator once and pass the same one
    each time. Greedy decoding gives ties to the lowest id. The tokens of an example do not depend
    on the other examples of the batch.

    Args:
      key_e: one key per example, as from `api.example_keys`; read by method "sample" only, may be
        None else.
      end_id: token that ends an example.
      pad_id: fills the output after the end, and is what a done example feeds to `step`.
    Raises: ValueError for method "beam" (see `beam_search`), or without keys for method "sample".
    """
    if cfg.method == "beam":
        raise ValueError(
            "generate() keeps one hypothesis; use beam_search() or decode() for method 'beam'"
        )
    if cfg.method == "greedy":
        pick = sampling.best_token
    elif key_e is not None:
        pick = functools.partial(sampling.sample_token, key_e=key_e, cfg=cfg)
    else:
        raise ValueError("method 'sample' needs key_e, one random key per example")
    examples, width = prompt.token_et.shape

    def choose(logits_ev, emitted, out: Generated) -> tuple[Array, Generated]:
        score_ev = jnp.asarray(logits_ev, jnp.float32)
        model_score_ev = score_ev
        score_ev = process(score_ev, prompt, out.token_et, emitted, cfg, end_id)
        token_e = pick(score_ev, emitted)
        # Not a slice of log_softmax: that would be an array of the vocabulary, written and read.
        log_p_e = jnp.take_along_axis(model_score_ev, token_e[:, None], axis=1)[:, 0]
        log_p_e -= jax.nn.logsumexp(model_score_ev, axis=1)
        token_e = jnp.where(out.ended_e, pad_id, token_e)
        out = Generated(
            token_et=out.token_et.at[:, emitted].set(token_e),
            length_e=jnp.where(out.ended_e, out.length_e, emitted + 1),
            log_prob_e=jnp.where(out.ended_e, out.log_prob_e, out.log_prob_e + log_p_e),
            ended_e=out.ended_e | (token_e == end_id),
        )
        return token_e, out

    def body(carry: _Carry) -> _Carry:
        logits_ev, state = gen.step(params, carry.state, carry.token_e)
        token_e, out = choose(logits_ev, carry.emitted, carry.out)
        return _Carry(carry.emitted + 1, token_e, state, out)

    room = stages.rooms(gen, cfg)[0]
    logits_ev, state = gen.start(params, z_egz, prompt, width + room, cond)
    nothing = Generated(
        token_et=jnp.full((examples, cfg.max_length), pad_id, jnp.int32),
        length_e=jnp.zeros(examples, jnp.int32),
        log_prob_e=jnp.zeros(examples, jnp.float32),
        ended_e=jnp.zeros(examples, bool),
    )
    # The first token is chosen outside the loop, so that no step is made whose logits nobody reads.
    token_e, out = choose(logits_ev, jnp.int32(0), nothing)
    carry = _Carry(jnp.int32(1), token_e, state, out)
    return stages.run(gen, cfg, lambda c: ~jnp.all(c.out.ended_e), body, carry).out


def process(
    score_ev: Float[Array, "e v"],
    prompt: Prompt,
    token_et: Int[Array, "e t"],
    emitted: int | Int[Array, ""],
    cfg: DecodeConfig,
    end_id: int,
) -> Float[Array, "e v"]:
    """Repetition penalty, then minimum length: what every method applies to its scores.

    Args:
      token_et: output so far; the first `emitted` places are read.
    """
    if cfg.repetition_penalty != 1.0:
        read_et = jnp.concatenate([prompt.token_et, token_et], axis=1)
        in_prompt_et = jnp.arange(prompt.token_et.shape[1])[None, :] < prompt.length_e[:, None]
        in_output_t = jnp.arange(token_et.shape[1]) < emitted
        seen_et = jnp.concatenate(
            [in_prompt_et, jnp.broadcast_to(in_output_t[None, :], token_et.shape)], axis=1
        )
        score_ev = sampling.penalise_repetition(score_ev, read_et, seen_et, cfg.repetition_penalty)
    return sampling.forbid_end(score_ev, emitted, cfg.min_length, end_id)


def expand_leading(state: DecodeState, k: int, axis_of: int = 0) -> DecodeState:
    """`Generator.expand` for a cache whose leaves all have the examples on axis `axis_of`."""
    return DecodeState(
        cache=jax.tree.map(lambda leaf: jnp.repeat(leaf, k, axis=axis_of), state.cache),
        position_e=jnp.repeat(state.position_e, k, axis=0),
    )


def reorder_leading(state: DecodeState, idx_e: Int[Array, "e"], axis_of: int = 0) -> DecodeState:
    """`Generator.reorder` for a cache whose leaves all have the examples on axis `axis_of`."""
    return DecodeState(
        cache=jax.tree.map(lambda leaf: jnp.take(leaf, idx_e, axis=axis_of), state.cache),
        position_e=jnp.take(state.position_e, idx_e, axis=0),
    )
