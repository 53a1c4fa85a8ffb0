"""A one-layer LSTM over packed rows, whole and stepwise, and its output layer.

Gates are fused in the order input, forget, cell, output, with one bias on the input and one on the
state, as in cuDNN and PyTorch. The tokens' contribution to the gates is one matrix product outside
the scan, which contains only the recurrence. It is plain JAX: gradients with respect to the inputs
alone do not compute those of the weights, and second derivatives work.

Array suffix 4 is the gate axis.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jvae.api import Params, Side
from jvae.fields import setting
from jvae.nn import config as stack
from jvae.nn import xent
from jvae.nn.backbone import StackConfig
from jvae.nn.layers import accum_dtype, split_key


@dataclass(frozen=True)
class LstmConfig(StackConfig):
    """Sizes and compute choices of one LSTM: `width` of the token embedding, `hidden` of the state.

    `dropout` applies to embeddings and outputs. Parameters are initialised uniformly in
    +-`init_scale`. `vocab_multiple` is 1 to match published parameter counts; raise it to shard the
    vocabulary over a mesh.
    """

    width: int = setting(low=1, high=2**17, help="Width of the embeddings.")
    hidden: int = setting(low=1, high=2**17, help="Width of the state.")
    vocab: int = setting(**stack.VOCAB)
    dropout: float = setting(
        0.5, low=0.0, below=1.0, help="Dropout rate of embeddings and outputs."
    )
    init_scale: float = setting(
        0.1,
        low=0.0,
        high=10.0,
        help="Parameters are initialised uniformly in [-init_scale, init_scale].",
    )
    dtype: str = setting("float32", **stack.DTYPE)
    vocab_multiple: int = setting(1, **stack.VOCAB_MULTIPLE)
    xent_chunk: int = setting(16384, **stack.XENT_CHUNK)

    @property
    def layers(self) -> int:
        """Number of layers, always 1."""
        return 1

    @property
    def init_std(self) -> float:
        """Standard deviation of initial parameters, for what others put on top of this stack."""
        return self.init_scale / math.sqrt(3)

    @property
    def vocab_padded(self) -> int:
        """Rows of the token embedding and of the output layer."""
        return -(-self.vocab // self.vocab_multiple) * self.vocab_multiple


class LstmState(NamedTuple):
    """Hidden and cell state; the cell state is in float32 or wider."""

    hidden_ef: Float[Array, "e f"]
    cell_ef: Float[Array, "e f"]


def uniform(
    config: LstmConfig, key: Key[Array, ""], shape: tuple[int, ...], names: tuple[str | None, ...]
) -> Any:
    """One boxed parameter, uniform in +-`init_scale`."""

    def init(key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.uniform(key, shape, minval=-config.init_scale, maxval=config.init_scale)

    return nn.with_logical_partitioning(init, names)(key, shape)


def init_table(config: LstmConfig, key: Key[Array, ""]) -> Params:
    """Boxed token embedding."""
    shape = (config.vocab_padded, config.width)
    return {"table": uniform(config, key, shape, ("vocab", "embed"))}


def init_cell(config: LstmConfig, key: Key[Array, ""]) -> Params:
    """Boxed parameters {input, state}, each with a kernel and a bias."""
    keys = split_key(key, 4)
    width, hidden = config.width, config.hidden
    return {
        "input": {
            "kernel": uniform(config, keys[0], (width, 4, hidden), ("embed", None, None)),
            "bias": uniform(config, keys[1], (4, hidden), (None, None)),
        },
        "state": {
            "kernel": uniform(config, keys[2], (hidden, 4, hidden), ("embed", None, None)),
            "bias": uniform(config, keys[3], (4, hidden), (None, None)),
        },
    }


def init_output(config: LstmConfig, key: Key[Array, ""]) -> Params:
    """Boxed output layer, not tied to the token embedding."""
    keys = split_key(key, 2)
    shape = (config.vocab_padded, config.hidden)
    return {
        "table": uniform(config, keys[0], shape, ("vocab", "embed")),
        "bias": uniform(config, keys[1], shape[:1], ("vocab",)),
    }


def embed(config: LstmConfig, params: Params, token: Int[Array, "..."]) -> Float[Array, "... d"]:
    """Token embeddings in the compute dtype."""
    return jnp.take(params["table"], token, axis=0, mode="clip").astype(config.dtype)


def gates(params: Params, x: Float[Array, "*n d"]) -> Float[Array, "*n 4 f"]:
    """Contribution of the inputs to the gates, including both biases."""
    kernel_d4f = params["input"]["kernel"].astype(x.dtype)
    bias_4f = (params["input"]["bias"] + params["state"]["bias"]).astype(x.dtype)
    out = jnp.tensordot(x, kernel_d4f, axes=1)
    return out + bias_4f.reshape((1,) * (out.ndim - 2) + bias_4f.shape)


def state_gates(params: Params, hidden_ef: Float[Array, "e f"]) -> Float[Array, "e 4 f"]:
    """Contribution of a hidden state to the gates of the next token, without bias."""
    kernel_f4f = params["state"]["kernel"].astype(hidden_ef.dtype)
    return jnp.tensordot(hidden_ef, kernel_f4f, axes=1)


def cell(params: Params, gate_e4f: Float[Array, "e 4 f"], state: LstmState) -> LstmState:
    """The state after one token. Source: Hochreiter & Schmidhuber 1997; Gers et al. 2000."""
    gate_e4f = (gate_e4f + state_gates(params, state.hidden_ef)).astype(state.cell_ef.dtype)
    enter_ef, keep_ef, new_ef, leave_ef = (gate_e4f[:, i] for i in range(4))
    cell_ef = jax.nn.sigmoid(keep_ef) * state.cell_ef + jax.nn.sigmoid(enter_ef) * jnp.tanh(new_ef)
    hidden_ef = jax.nn.sigmoid(leave_ef) * jnp.tanh(cell_ef)
    return LstmState(hidden_ef.astype(state.hidden_ef.dtype), cell_ef)


def zero_state(gate_e4f: Float[Array, "e 4 f"]) -> LstmState:
    """The state before the first token, for gates of this shape and dtype."""
    zero_ef = jnp.zeros((gate_e4f.shape[0], gate_e4f.shape[2]), gate_e4f.dtype)
    return LstmState(zero_ef, zero_ef.astype(accum_dtype(gate_e4f.dtype)))


def run(
    params: Params, gate_bt4f: Float[Array, "b t 4 f"], first_bt: Bool[Array, "b t"]
) -> Float[Array, "b t f"]:
    """Hidden states of packed rows.

    Args:
      first_bt: True at the first token of a segment, where the state is reset to zero. To start
        from a non-zero hidden state h_0, add `state_gates(params, h_0)` to the gates there.
    """

    def body(state: LstmState, inputs: tuple[Array, Array]) -> tuple[LstmState, Array]:
        gate_b4f, first_b = inputs
        kept = jax.tree.map(lambda a: jnp.where(first_b[:, None], 0.0, a), state)
        state = cell(params, gate_b4f, kept)
        return state, state.hidden_ef

    inputs = (jnp.moveaxis(gate_bt4f, 1, 0), first_bt.T)
    _, hidden_tbf = jax.lax.scan(body, zero_state(gate_bt4f[:, 0]), inputs)
    return jnp.moveaxis(hidden_tbf, 0, 1)


def prefill(
    params: Params, gate_et4f: Float[Array, "e t 4 f"], length_e: Int[Array, "e"]
) -> LstmState:
    """The state after the last real token of each right-padded prompt; see `run` for h_0."""

    def body(state: LstmState, inputs: tuple[Array, Array]) -> tuple[LstmState, None]:
        gate_e4f, t = inputs
        new, live_e1 = cell(params, gate_e4f, state), (t < length_e)[:, None]
        return jax.tree.map(lambda a, b: jnp.where(live_e1, a, b), new, state), None

    inputs = (jnp.moveaxis(gate_et4f, 1, 0), jnp.arange(gate_et4f.shape[1]))
    return jax.lax.scan(body, zero_state(gate_et4f[:, 0]), inputs)[0]


def logits(config: LstmConfig, params: Params, hidden: Float[Array, "... f"]) -> Array:
    """Scores over the padded vocabulary, float32 or wider, -inf at padded columns."""
    return xent.logits(hidden, params["table"], config.vocab, params["bias"])


def token_log_prob(
    config: LstmConfig,
    params: Params,
    hidden_btf: Float[Array, "b t f"],
    side: Side,
    scored_bt: Bool[Array, "b t"],
) -> Float[Array, "b t"]:
    """Log p of each scored token at its position, in nats; the state at t-1 predicts token t."""
    nats = xent.token_log_prob(
        hidden_btf[:, :-1],
        params["table"],
        side.token_bt[:, 1:],
        config.vocab,
        config.xent_chunk,
        params["bias"],
    )
    return jnp.pad(jnp.where(scored_bt[:, 1:], nats, 0.0), ((0, 0), (1, 0)))
