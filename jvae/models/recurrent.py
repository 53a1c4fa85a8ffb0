"""The generator p(x | z) of a recurrent stack.

z is an input of every step, together with the token, and sets the first hidden state.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jvae.api import Batch, DecodeState, Generator, Params, Prompt, Side
from jvae.injections import recurrent as injection
from jvae.models.common import expander, reorderer
from jvae.nn.attention import own_slot
from jvae.nn.backbone import Recurrent, Stack
from jvae.nn.layers import dropout, fold_key


class _Context(NamedTuple):
    side: Side
    scored_bt: Array
    gate_bt4f: Array  # contribution of the tokens to the gates
    place_bts: Array  # first S columns: a token's slot; next S: that slot at its first token only
    drop: Key[Array, ""] | None


class _Cache(NamedTuple):
    state: Any  # the stack's recurrent state
    gate_e4f: Array  # contribution of z to the gates of every step


def init(stack: Stack, latent: int, key: Key[Array, ""]) -> Params:
    """Boxed parameters of the generator; without those that read z if `latent` is 0."""
    keys = jax.random.split(key, 6)
    params = stack.init_embed(keys[0]) | stack.init_body(keys[1]) | stack.init_head(keys[2])
    return params | injection.init(stack, latent, keys[3:]) if latent else params


def generator(stack: Stack, latent: int) -> Generator:
    """Builds the generator over `params["decoder"]`; a language model if `latent` is 0."""
    config, cell = stack.config, _cell(stack)

    def embed_gates(
        stack_params: Params, token: Array, drop: Key[Array, ""] | None = None
    ) -> Array:
        x = dropout(drop, config.dropout, stack.embed(stack_params, token, jnp.zeros_like(token)))
        return cell.gates(stack_params, x)

    def prepare(params: Params, batch: Batch, drop: Key[Array, ""] | None = None, *, cond=None):
        del cond
        gate_bt4f = embed_gates(params["decoder"], batch.read_bt, fold_key(drop, 1))
        own_bts = own_slot(batch.dec, batch.slots)
        first_bts = own_bts & (batch.dec.position_bt == 0)[:, :, None]
        place_bts = jnp.concatenate([own_bts, first_bts], axis=2).astype(config.dtype)
        return _Context(batch.dec, batch.scored_bt, gate_bt4f, place_bts, fold_key(drop, 2))

    def log_lik(params: Params, ctx: _Context, z_egz: Array) -> Array:
        stack_params, gate_bt4f = params["decoder"], ctx.gate_bt4f
        if latent:
            gates = [
                a.reshape(ctx.place_bts.shape[0], -1, *a.shape[1:])
                for a in injection.gates(stack, stack_params, z_egz)
            ]
            given_bs4f = jnp.concatenate(gates, axis=1)
            gate_bt4f = gate_bt4f + jnp.einsum("bts,bsgf->btgf", ctx.place_bts, given_bs4f)
        hidden_btf = cell.run(stack_params, gate_bt4f, ctx.side.position_bt == 0)
        hidden_btf = dropout(ctx.drop, config.dropout, hidden_btf)
        return stack.token_log_prob(stack_params, hidden_btf, ctx.side, ctx.scored_bt)

    def start(params: Params, z_egz: Array, prompt: Prompt, max_len: int, cond=None):
        del cond, max_len  # the size of the state does not depend on the length
        stack_params = params["decoder"]
        gate_et4f = embed_gates(stack_params, prompt.token_et)
        token_e4f = jnp.zeros_like(gate_et4f[:, 0])
        if latent:
            token_e4f, first_e4f = injection.gates(stack, stack_params, z_egz)
            gate_et4f = (gate_et4f + token_e4f[:, None]).at[:, 0].add(first_e4f)
        state = cell.prefill(stack_params, gate_et4f, prompt.length_e)
        scores_ev = stack.logits(stack_params, cell.output(state))
        return scores_ev, DecodeState(_Cache(state, token_e4f), prompt.length_e)

    def step(params: Params, state: DecodeState, token_e: Array):
        stack_params = params["decoder"]
        gate_e4f = embed_gates(stack_params, token_e) + state.cache.gate_e4f
        new = cell.cell(stack_params, gate_e4f, state.cache.state)
        next_state = DecodeState(_Cache(new, state.cache.gate_e4f), state.position_e + 1)
        return stack.logits(stack_params, cell.output(new)), next_state

    axis: Any = 0  # example axis of all leaves
    example_axes = _Cache(axis, axis)
    return Generator(
        condition=lambda params, batch, drop=None: None,
        prepare=prepare,
        log_lik=log_lik,
        aux=lambda params, ctx, draws: {},
        start=start,
        step=step,
        expand=expander(example_axes),
        reorder=reorderer(example_axes),
    )


def _cell(stack: Stack) -> Recurrent:
    assert stack.recurrent is not None  # the model's config is checked for this ability
    return stack.recurrent
