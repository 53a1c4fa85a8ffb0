"""The generator p(x | z) for any decoder stack with any injection.

`log_lik` scores packed rows; `start` and `step` decode with key-value caches. For a decoder that
cross-attends to a source text, the condition provides the states of that text. Vectors in front of
the text are treated as tokens, in packed rows and in decoding: in a packed row, those of all
examples come first, each in its example's segment. For recurrent stacks see
`jvae.models.recurrent`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jvae.api import Batch, Cond, DecodeState, Generator, Params, Prompt, RowStates, Side
from jvae.injections.contract import EXAMPLE_AXES, Injection, Lay, Once, Reach
from jvae.models.common import KV_AXES, expander, grower, last_of_prompt, reorderer
from jvae.nn.attention import segments, spread
from jvae.nn.backbone import Stack
from jvae.nn.cache import Caches
from jvae.nn.layers import fold_key, split_key
from jvae.nn.points import UNTOUCHED, CrossKv, Points


class Source(NamedTuple):
    """Cross-attention keys and values of source texts, and the segment that each is visible to."""

    kv: CrossKv
    segment_bs: Array


class Context(NamedTuple):
    """Everything that does not depend on z."""

    batch: Batch
    x_btd: Array
    once: Once
    drop: Key[Array, ""] | None
    hidden_btd: Array | None = None  # states of a language model, which has no z
    source: Source | None = None


class _Cache(NamedTuple):
    kv: Caches
    reach: Reach
    source: Source | None = None


def _decoder(params: Params) -> Params:
    return params["decoder"]


def room(stack: Stack, injection: Injection | None) -> int:
    """Maximum tokens of a text, after those that the injection puts in front of it."""
    in_front = 0 if injection is None else injection.lead + injection.tokens
    return stack.longest - in_front


def generator(
    stack: Stack,
    injection: Injection | None,
    stack_params_of: Callable[[Params], Params] = _decoder,
    states_of: Callable[[Cond], RowStates] | None = None,
) -> Generator:
    """Builds the generator of a decoder stack; without an injection it is a language model.

    Args:
      stack_params_of: selects the parameters of stack and injection, one dict, from the model's.
      states_of: selects the states for cross-attention from the condition; None without a source,
        or if the source is in front of the text.
    Raises: ValueError if a source and an injection both use cross-attention.
    """
    if states_of is not None and injection is not None and "cross" in injection.needs:
        raise ValueError("a source text and an injection cannot both use cross-attention")
    lead = 0 if injection is None else injection.lead
    tokens = 0 if injection is None else injection.tokens
    in_front, slots = lead + tokens, 0 if injection is None else injection.slots

    def check_room(places: int) -> None:
        if places + in_front > stack.longest:
            raise ValueError(
                f"{places + in_front} positions requested; the decoder has {stack.longest}"
            )

    def points_of(
        stack_params: Params, reach: Reach, lay: Lay, source: Source | None = None
    ) -> Points:
        if injection is None:
            return UNTOUCHED
        acting = injection.points(stack_params, reach, lay)
        points = acting._replace(slots=reach.slots, cross=reach.cross, lead=lead, always=tokens)
        if source is None:
            return points
        return points._replace(cross=source.kv, cross_owner_bs=source.segment_bs)

    def source_of(stack_params: Params, cond: Cond) -> Source | None:
        if states_of is None:
            return None
        states = states_of(cond)
        return Source(stack.cross(stack_params, states.state_bsd), states.segment_bs)

    def prepare(params: Params, batch: Batch, drop: Key[Array, ""] | None = None, *, cond=None):
        stack_params = stack_params_of(params)
        position_bt = batch.dec.position_bt
        x_btd = stack.embed(
            stack_params, batch.read_bt, position_bt + in_front if in_front else position_bt
        )
        if injection is None:
            mask_spec = segments(batch.dec, causal=True)
            hidden_btd, _ = stack.rows(stack_params, x_btd, mask_spec, UNTOUCHED, drop)
            return Context(batch, x_btd, None, None, hidden_btd)
        drop, once = fold_key(drop, 1), None
        if injection.once is not None:
            drop_once, drop = split_key(drop, 2)
            once = injection.once(stack_params, drop_once)
        return Context(batch, x_btd, once, drop, source=source_of(stack_params, cond))

    def hidden_states(stack_params: Params, ctx: Context, z_egz: Array) -> tuple[Array, Reach]:
        assert injection is not None
        side, (rows, _) = ctx.batch.dec, ctx.batch.dec.token_bt.shape
        slots = z_egz.shape[0] // rows
        reach = injection.reach(stack_params, z_egz, rows, ctx.once)
        x_btd = ctx.x_btd
        if reach.offset_ed is not None:
            x_btd = x_btd + spread(reach.offset_ed, side)
        if reach.token_emd is not None:
            side, x_btd = _behind_tokens(stack, stack_params, side, x_btd, reach.token_emd, lead)
        points = points_of(stack_params, reach, laid_out(side), ctx.source)
        points = points._replace(owner_m=None if reach.slots is None else injection.owners(slots))
        if reach.cross is not None:
            points = points._replace(cross_owner_bs=injection.cross_owners(slots)[None])
        hidden_btd, _ = stack.rows(
            stack_params, x_btd, segments(side, causal=True), points, ctx.drop
        )
        return hidden_btd[:, tokens * slots :] if tokens else hidden_btd, reach

    def log_lik(params: Params, ctx: Context, z_egz: Array) -> Float[Array, "b t"]:
        stack_params, side = stack_params_of(params), ctx.batch.dec
        if ctx.hidden_btd is not None:
            hidden_btd = ctx.hidden_btd
        else:
            hidden_btd, reach = hidden_states(stack_params, ctx, z_egz)
            stack_params, hidden_btd = scored(stack_params, hidden_btd, reach, laid_out(side))
        return stack.token_log_prob(stack_params, hidden_btd, side, ctx.batch.scored_bt)

    def scored(stack_params: Params, hidden: Array, reach: Reach, lay: Lay) -> tuple[Params, Array]:
        """Parameters and states for scoring, with the injection's features if it has any."""
        if injection is None or injection.table is None or reach.feature_ec is None:
            return stack_params, hidden
        return stack.with_features(
            stack_params, hidden, lay(reach.feature_ec), injection.table(stack_params)
        )

    def start(params: Params, z_egz: Array, prompt: Prompt, max_len: int, cond=None):
        check_room(max_len)
        stack_params = stack_params_of(params)
        examples, length = prompt.token_et.shape
        position_et = jnp.broadcast_to(jnp.arange(length)[None] + in_front, (examples, length))
        x_etd = stack.embed(stack_params, prompt.token_et, position_et)
        reach, length_e = Reach(), prompt.length_e
        if injection is not None:
            once = None if injection.once is None else injection.once(stack_params, None)
            reach = injection.reach(stack_params, z_egz, examples, once, decoding=True)
        if reach.offset_ed is not None:
            x_etd = x_etd + reach.offset_ed[:, None]
        if reach.token_emd is not None:
            place_em = jnp.broadcast_to(jnp.arange(tokens)[None] + lead, (examples, tokens))
            front_emd = stack.place(stack_params, reach.token_emd, place_em)
            x_etd = jnp.concatenate([front_emd.astype(x_etd.dtype), x_etd], axis=1)
            length_e = length_e + tokens
        source = source_of(stack_params, cond)
        points = points_of(stack_params, reach, _one_per_row, source)
        hidden_etd, kv = stack.prefill(stack_params, x_etd, length_e, max_len + tokens, points)
        last_ed = last_of_prompt(hidden_etd, length_e)
        state = DecodeState(_Cache(kv, reach.kept(), source), prompt.length_e)
        return stack.logits(*scored(stack_params, last_ed, reach, _itself)), state

    def step(params: Params, state: DecodeState, token_e: Array):
        stack_params, position_e = stack_params_of(params), state.position_e
        kv, reach, source = state.cache
        x_ed = stack.embed(stack_params, token_e, position_e + in_front if in_front else position_e)
        x_ed = x_ed if reach.offset_ed is None else x_ed + reach.offset_ed
        points = points_of(stack_params, reach, _one_per_row, source)
        place_e = position_e + tokens if tokens else position_e
        hidden_ed, kv = stack.step(stack_params, x_ed, kv, place_e, points)
        next_state = DecodeState(_Cache(kv, reach, source), position_e + 1)
        return stack.logits(*scored(stack_params, hidden_ed, reach, _itself)), next_state

    source_axes = None if states_of is None else Source._make((1, 0))
    example_axes = _Cache(KV_AXES, EXAMPLE_AXES, source_axes)
    return Generator(
        condition=lambda params, batch, drop=None: None,
        prepare=prepare,
        log_lik=log_lik,
        aux=lambda params, ctx, draws: {},
        start=start,
        step=step,
        expand=expander(example_axes),
        reorder=reorderer(example_axes),
        grow=grower(lambda places: check_room(places - slots - tokens)),
    )


def laid_out(side: Side) -> Lay:
    """Returns a function that broadcasts per-example values to the tokens of packed rows."""

    def lay(value: Float[Array, "e ..."]) -> Float[Array, "b t ..."]:
        flat_ed = value.reshape(value.shape[0], -1)
        laid_btd = spread(flat_ed, side)
        return laid_btd.reshape(*laid_btd.shape[:2], *value.shape[1:])

    return lay


def _one_per_row(value: Float[Array, "e ..."]) -> Float[Array, "e 1 ..."]:
    return value[:, None]


def _itself(value: Array) -> Array:
    return value


def _behind_tokens(
    stack: Stack, stack_params: Params, side: Side, x_btd: Array, token_emd: Array, lead: int
) -> tuple[Side, Array]:
    """Rows with the vectors of all examples in front of the texts, at positions from 0."""
    rows, (examples, count, width) = x_btd.shape[0], token_emd.shape
    slots = examples // rows

    def for_rows(value_m: Int[Array, "m"]) -> Int[Array, "b m"]:
        return jnp.broadcast_to(value_m[None], (rows, slots * count)).astype(side.token_bt.dtype)

    segment_bm = for_rows(jnp.repeat(jnp.arange(1, slots + 1), count))
    position_bm = for_rows(jnp.tile(jnp.arange(count), slots))
    front_bmd = token_emd.reshape(rows, slots * count, width)
    front_bmd = stack.place(stack_params, front_bmd, position_bm + lead)
    side_with_tokens = Side(
        jnp.concatenate([jnp.zeros_like(segment_bm), side.token_bt], axis=1),
        jnp.concatenate([segment_bm, side.segment_bt], axis=1),
        jnp.concatenate([position_bm, side.position_bt + count], axis=1),
    )
    return side_with_tokens, jnp.concatenate([front_bmd.astype(x_btd.dtype), x_btd], axis=1)
