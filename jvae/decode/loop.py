"""Greedy and ancestral decoding: one compiled loop for any `jvae.api.Generator`.

    prompt    <s> a        `start` reads the prompt and returns the logits of token 0
    step 0        cat      chosen from them
    step 1        sat      `step(cat)` returns the next logits
    step 2        </s>     this example is done; it emits pad_id from here on
    ...                    the loop ends with its slowest example, or at max_length

The longest output of n tokens costs n - 1 calls of `step`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jvae.api import Cond, DecodeState, Generator, Params, Prompt
from jvae.decode import sampling, stages
from jvae.decode.hoist import hoisted
from jvae.decode.sampling import DecodeConfig


class Generated(NamedTuple):
    """Decoded examples. T is `max_length`; the prompt is not part of the output.

    `log_prob_e` is the sum of the model's own log p of these tokens before any processing, in nats.
    """

    token_et: Int[Array, "e t"]  # new tokens only, including the end token, then pad_id
    length_e: Int[Array, "e"]  # number of new tokens, including the end token
    log_prob_e: Float[Array, "e"]
    ended_e: Bool[Array, "e"]  # False if max_length was reached before the end token


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
    """Continues every prompt, greedily or by sampling, to the end token or `cfg.max_length`.

    Compiled once per generator, config and shapes, so build the generator once and reuse it. Greedy
    decoding resolves ties to the lowest id. The tokens of an example do not depend on the other
    examples of the batch.

    Args:
      key_e: one key per example, see `api.example_keys`, required for method "sample"; other
        methods ignore it.
      end_id: token that ends an example.
      pad_id: fills the output after the end, and is the input of `step` for finished examples.
    Raises: ValueError for method "beam" (see `beam_search`), or without keys for method "sample".
    """
    if cfg.method == "beam":
        raise ValueError(
            "generate() keeps one hypothesis; use beam_search() or decode() for method 'beam'"
        )
    if cfg.method == "sample" and key_e is None:
        raise ValueError("method 'sample' needs key_e, one random key per example")
    keys = key_e if cfg.method == "sample" else None
    examples, width = prompt.token_et.shape

    def choose(logits_ev, emitted, out: Generated) -> tuple[Array, Generated]:
        model_ev = jnp.asarray(logits_ev, jnp.float32)
        score_ev = process(model_ev, prompt, out.token_et, emitted, cfg, end_id)
        rank_ev = sampling.ranks(score_ev, emitted, keys, cfg)
        token_e, log_p_e = sampling.choose(rank_ev, model_ev)
        token_e = jnp.where(out.ended_e, pad_id, token_e)
        out = Generated(
            token_et=out.token_et.at[:, emitted].set(token_e),
            length_e=jnp.where(out.ended_e, out.length_e, emitted + 1),
            log_prob_e=jnp.where(out.ended_e, out.log_prob_e, out.log_prob_e + log_p_e),
            ended_e=out.ended_e | (token_e == end_id),
        )
        return token_e, out

    def body_for(carry: _Carry) -> Callable[[_Carry], _Carry]:
        step = hoisted(gen.step, params, carry.state, carry.token_e)

        def body(carry: _Carry) -> _Carry:
            logits_ev, state = step(carry.state, carry.token_e)
            token_e, out = choose(logits_ev, carry.emitted, carry.out)
            return _Carry(carry.emitted + 1, token_e, state, out)

        return body

    room = stages.rooms(gen, cfg)[0]
    logits_ev, state = gen.start(params, z_egz, prompt, width + room, cond)
    nothing = Generated(
        token_et=jnp.full((examples, cfg.max_length), pad_id, jnp.int32),
        length_e=jnp.zeros(examples, jnp.int32),
        log_prob_e=jnp.zeros(examples, jnp.float32),
        ended_e=jnp.zeros(examples, bool),
    )
    # Choosing the first token outside the loop saves a final step whose logits would be unused.
    token_e, out = choose(logits_ev, jnp.int32(0), nothing)
    carry = _Carry(jnp.int32(1), token_e, state, out)
    return stages.run(gen, cfg, lambda c: ~jnp.all(c.out.ended_e), body_for, carry).out


def process(
    score_ev: Float[Array, "e v"],
    prompt: Prompt,
    token_et: Int[Array, "e t"],
    emitted: int | Int[Array, ""],
    cfg: DecodeConfig,
    end_id: int,
) -> Float[Array, "e v"]:
    """Applies repetition penalty, then minimum length, to the scores of any method.

    Args:
      token_et: output so far; only the first `emitted` tokens are read.
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
    """`Generator.expand` for a cache in which all leaves have the example axis `axis_of`."""
    return DecodeState(
        cache=jax.tree.map(lambda leaf: jnp.repeat(leaf, k, axis=axis_of), state.cache),
        position_e=jnp.repeat(state.position_e, k, axis=0),
    )


def reorder_leading(state: DecodeState, idx_e: Int[Array, "e"], axis_of: int = 0) -> DecodeState:
    """`Generator.reorder` for a cache in which all leaves have the example axis `axis_of`."""
    return DecodeState(
        cache=jax.tree.map(lambda leaf: jnp.take(leaf, idx_e, axis=axis_of), state.cache),
        position_e=jnp.take(state.position_e, idx_e, axis=0),
    )
