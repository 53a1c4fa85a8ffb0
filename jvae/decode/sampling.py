"""Decoding options, and pure functions that turn logits into tokens.

Every function takes and returns float32 scores over the padded vocabulary. All of them keep columns
at -inf, so a padded column is never chosen.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jvae.errors import ConfigError

METHODS = ("greedy", "sample", "beam")
EARLY_STOPPING = ("always", "heuristic", "never")
NORM_LENGTHS = ("new", "total")
# Limits of length and beam width; memory per example grows with both.
LONGEST, WIDEST = 65_536, 256


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Decoding options; hashable, so that they can be a static argument of a compiled function.

    Attributes:
      method: "greedy", "sample" (ancestral) or "beam".
      temperature: divides the logits; used by "sample".
      top_k: keeps the k best tokens and ties with the last of them, 0 keeps all; used by "sample".
      top_p: keeps the smallest set of best tokens with mass above this, 1 keeps all; used by
        "sample".
      repetition_penalty: above 1 makes tokens of the prompt and of the output so far less likely; 1
        has no effect.
      min_length: minimum number of new tokens, not counting the end token.
      max_length: maximum number of new tokens, including the end token.
      room: initial cache capacity in new tokens; see `jvae.decode.stages`.
      beam_width: hypotheses kept per example; this and the following are used by "beam".
      length_penalty: the score of a hypothesis is sum log p / length ** length_penalty.
      norm_length: the length in that quotient. "new": new tokens, including the end token. "total":
        prompt and new tokens, without the end token, as in transformers up to 4.34.
      early_stopping: when an example with `beam_width` finished hypotheses is done. "always": at
        once. "heuristic": when the best unfinished one would score no better if it ended now.
        "never": when no continuation can score better.

    Raises: ConfigError naming the key, its value and the allowed values.
    """

    method: str = "greedy"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    min_length: int = 0
    max_length: int = 64
    room: int = 32
    beam_width: int = 4
    length_penalty: float = 1.0
    norm_length: str = "new"
    early_stopping: str = "heuristic"

    def __post_init__(self):
        _one_of("method", self.method, METHODS)
        _one_of("norm_length", self.norm_length, NORM_LENGTHS)
        _one_of("early_stopping", self.early_stopping, EARLY_STOPPING)
        _integer("top_k", self.top_k, 0, "0 keeps every token")
        _integer("min_length", self.min_length, 0, "new tokens before the end token may come")
        _integer("max_length", self.max_length, 1, "new tokens, the end token included", LONGEST)
        _integer("room", self.room, 1, "new tokens that caches have places for at first", LONGEST)
        _integer("beam_width", self.beam_width, 1, "hypotheses per example", WIDEST)
        _positive("temperature", self.temperature, "method=greedy is the limit of 0")
        _positive("repetition_penalty", self.repetition_penalty, "1 means none")
        _positive("top_p", self.top_p, "1 keeps every token")
        _number("length_penalty", self.length_penalty, "a finite number", "0 compares plain sums")
        if self.top_p > 1:
            raise ConfigError(
                f"decode.top_p is {self.top_p}; it is a probability, at most 1 (keeps every token)."
            )
        if self.min_length > self.max_length:
            raise ConfigError(
                f"decode.min_length is {self.min_length}, above decode.max_length, which is "
                f"{self.max_length}; raise max_length or lower min_length."
            )


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"decode.{name} is {value!r}; it must be one of {', '.join(choices)}.")


def _integer(name: str, value: object, least: int, hint: str, most: int = 2**31 - 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"decode.{name} is {value!r}; it must be an integer of at least {least} ({hint})."
        )
    if value > most:
        raise ConfigError(f"decode.{name} is {value!r}; it may be at most {most:,} ({hint}).")


def _number(name: str, value: object, what: str, hint: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"decode.{name} is {value!r}; it must be {what} ({hint}).")
    return value


def _positive(name: str, value: object, hint: str) -> None:
    if _number(name, value, "a finite number above 0", hint) <= 0:
        raise ConfigError(
            f"decode.{name} is {value!r}; it must be a finite number above 0 ({hint})."
        )


def penalise_repetition(
    score_ev: Float[Array, "e v"],
    token_et: Int[Array, "e t"],
    seen_et: Bool[Array, "e t"],
    penalty: float,
) -> Float[Array, "e v"]:
    """Makes tokens that have occurred less likely, once each regardless of their count.

    Scores below 0 are multiplied by the penalty, others divided by it. Costs O(E T): the scores of
    the tokens are gathered and scattered, without a mask over the vocabulary.

    Args:
      token_et: tokens read so far, in any order.
      seen_et: False at padding in `token_et`.
    Source: Keskar et al. 2019 (CTRL), section 4.1. Deviation: negative scores are multiplied, as in
      transformers, because dividing them would reward repetition.
    """
    if penalty == 1.0:
        return score_ev
    old_et = jnp.take_along_axis(score_ev, token_et, axis=1)
    new_et = jnp.where(old_et < 0, old_et * penalty, old_et / penalty)
    # Padding is sent past the vocabulary and dropped. Equal tokens write the same value.
    place_et = jnp.where(seen_et, token_et, score_ev.shape[1])
    example_e1 = jnp.arange(score_ev.shape[0])[:, None]
    return score_ev.at[example_e1, place_et].set(new_et, mode="drop")


def forbid_end(
    score_ev: Float[Array, "e v"], emitted: int | Int[Array, ""], min_length: int, end_id: int
) -> Float[Array, "e v"]:
    """Sets the end token to -inf while fewer than `min_length` new tokens have been emitted."""
    if min_length == 0:
        return score_ev
    return score_ev.at[:, end_id].add(jnp.where(emitted < min_length, -jnp.inf, 0.0))


def keep_top_k(logits_ev: Float[Array, "e v"], k: int) -> Float[Array, "e v"]:
    """Sets logits below the k-th best to -inf; keeps ties with the k-th. 0 keeps every token."""
    if k == 0 or k >= logits_ev.shape[1]:
        return logits_ev
    least_e = jax.lax.top_k(logits_ev, k)[0][:, -1]
    return jnp.where(logits_ev < least_e[:, None], -jnp.inf, logits_ev)


def keep_top_p(logits_ev: Float[Array, "e v"], p: float, among: int = 0) -> Float[Array, "e v"]:
    """Keeps the smallest set of best tokens with probability above p, at least one; -inf elsewhere.

    Among equal logits at the edge of the nucleus, the lowest ids are kept. 1 keeps every token.

    Args:
      among: k of a preceding `keep_top_k`, which has left only the k best tokens and their ties;
        the k best are then selected without sorting the vocabulary. 0 sorts it.
    Source: Holtzman et al. 2020, section 3.1; the token that crosses p belongs to the nucleus, as
      in the Optimus code.
    """
    if p >= 1.0:
        return logits_ev
    width = logits_ev.shape[1]
    count = min(among, width) or width
    sorted_es = (
        jax.lax.top_k(logits_ev, count)[0]
        if count < width
        else jnp.sort(logits_ev, axis=1, descending=True)
    )
    prob_es = jnp.exp(sorted_es - jax.nn.logsumexp(logits_ev, axis=1, keepdims=True))
    mass_es = jnp.cumsum(prob_es, axis=1)
    # A token is kept if the mass before it is at most p, so the first is always kept.
    kept_e = 1 + jnp.sum(mass_es[:, :-1] <= p, axis=1)
    if count < width:
        # Ties with the k-th best past the end of the selection: each adds that probability again.
        room_e = jnp.where(mass_es[:, -1] <= p, p - mass_es[:, -1], -1.0)
        extra_e = jnp.floor(room_e / jnp.maximum(prob_es[:, -1], jnp.finfo(prob_es.dtype).tiny)) + 1
        kept_e = kept_e + jnp.clip(extra_e, 0, width).astype(kept_e.dtype)
    edge_e = jnp.take_along_axis(sorted_es, jnp.minimum(kept_e, count)[:, None] - 1, axis=1)
    above_ev = logits_ev > edge_e
    tied_ev = logits_ev == edge_e
    tie_rank_ev = jnp.cumsum(tied_ev, axis=1)
    spare_e = kept_e - jnp.sum(above_ev, axis=1)
    return jnp.where(above_ev | (tied_ev & (tie_rank_ev <= spare_e[:, None])), logits_ev, -jnp.inf)


def ranks(
    logits_ev: Float[Array, "e v"],
    step: int | Int[Array, ""],
    key_e: Key[Array, "e"] | None,
    cfg: DecodeConfig,
) -> Float[Array, "e v"]:
    """Scores whose largest is the next token: a draw if there are keys, else the best token.

    Draws are after temperature, top-k and top-p, in this order. The draw of an example depends only
    on its own key and the step, not on the other examples of the batch.
    """
    if key_e is None:
        return logits_ev
    logits_ev = logits_ev / cfg.temperature
    logits_ev = keep_top_p(keep_top_k(logits_ev, cfg.top_k), cfg.top_p, among=cfg.top_k)
    key_e = jax.vmap(lambda key: jax.random.fold_in(key, step))(key_e)
    width, dtype = logits_ev.shape[1:], logits_ev.dtype
    # With the argmax of `choose`, the same as jax.random.categorical.
    return logits_ev + jax.vmap(lambda key: jax.random.gumbel(key, width, dtype))(key_e)


def choose(
    rank_ev: Float[Array, "e v"], model_ev: Float[Array, "e v"]
) -> tuple[Int[Array, "e"], Float[Array, "e"]]:
    """The token with the largest rank, ties to the lowest id, and its log p under `model_ev`.

    Accelerators read both arrays once; for CPUs separate reductions are faster.
    """
    token_e, mass_e = jax.lax.platform_dependent(rank_ev, model_ev, cpu=_passes, default=_one_pass)
    chosen_e = jnp.take_along_axis(model_ev, token_e[:, None], axis=1)[:, 0]
    # Not an element of log_softmax, which would write and read a vocabulary-sized array.
    return token_e, chosen_e - mass_e


def _passes(rank_ev: Array, model_ev: Array) -> tuple[Array, Array]:
    return best_token(rank_ev), jax.nn.logsumexp(model_ev, axis=1)


def _one_pass(rank_ev: Array, model_ev: Array) -> tuple[Array, Array]:
    """The same as `_passes`, up to the order of the sum, as one reduction of tuples."""
    floor = jnp.finfo(model_ev.dtype).min
    operands = (
        jnp.maximum(model_ev, floor),  # a difference of two infinities would be nan
        jnp.ones_like(model_ev),
        jnp.maximum(rank_ev, floor),
        jax.lax.broadcasted_iota(jnp.int32, rank_ev.shape, 1),
    )

    def merge(left: Sequence[Array], right: Sequence[Array]) -> tuple[Array, ...]:
        top, mass, rank, token = zip(left, right, strict=True)
        most = jnp.maximum(*top)
        scaled = [sum_ * jnp.exp(peak - most) for sum_, peak in zip(mass, top, strict=True)]
        first = (rank[0] > rank[1]) | ((rank[0] == rank[1]) & (token[0] < token[1]))
        return most, scaled[0] + scaled[1], jnp.maximum(*rank), jnp.where(first, *token)

    nothing = (floor, jnp.zeros((), model_ev.dtype), floor, jnp.int32(rank_ev.shape[1] - 1))
    top_e, mass_e, _, token_e = jax.lax.reduce(operands, nothing, merge, (1,))
    return token_e, top_e + jnp.log(mass_e)


def best_token(logits_ev: Float[Array, "e v"]) -> Int[Array, "e"]:
    """Argmax as two plain reductions; XLA's argmax reduces pairs, which is slow on CPUs."""
    id_ev = jax.lax.broadcasted_iota(jnp.int32, logits_ev.shape, 1)
    best_e1 = jnp.max(logits_ev, axis=1, keepdims=True)
    return jnp.min(jnp.where(logits_ev == best_e1, id_ev, logits_ev.shape[1] - 1), axis=1)
