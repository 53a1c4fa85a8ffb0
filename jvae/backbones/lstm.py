"""A one-layer LSTM; see `jvae.nn.lstm`. Embedding and output layer are untied."""

from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float, Key

from jvae.api import Params
from jvae.nn import lstm
from jvae.nn.attention import MaskSpec
from jvae.nn.backbone import BACKBONES, BackboneKind, Recurrent, Stack
from jvae.nn.layers import dropout, split_key
from jvae.nn.lstm import LstmConfig
from jvae.nn.points import UNTOUCHED, Points, Read

UNBOUNDED = 2**31 - 1  # recurrent networks have no maximum length


def rows(
    config: LstmConfig,
    params: Params,
    x_btd: Float[Array, "b t d"],
    mask_spec: MaskSpec,
    points: Points = UNTOUCHED,
    drop: Key[Array, ""] | None = None,
    *,
    read: Read | None = None,
    read_l: Any = None,
) -> tuple[Float[Array, "b t f"], None]:
    """Hidden states of packed rows, with dropout on inputs and outputs of the LSTM.

    It always runs forwards, even if `mask_spec` is not causal. Position 0 starts a segment.
    """
    del points, read, read_l  # an LSTM has no such points
    assert mask_spec.position_bt is not None  # every side has positions
    first_drop, last_drop = split_key(drop, 2)
    gate_bt4f = lstm.gates(params["cell"], dropout(first_drop, config.dropout, x_btd))
    hidden_btf = lstm.run(params["cell"], gate_bt4f, mask_spec.position_bt == 0)
    return dropout(last_drop, config.dropout, hidden_btf), None


def stack(config: LstmConfig, own_head: bool = False) -> Stack:
    """Builds the functions of a stack; see `jvae.nn.backbone.Stack`."""
    del own_head  # the output head is always untied

    def init(key: Key[Array, ""], head: bool = True) -> Params:
        embed_key, body_key, head_key = jax.random.split(key, 3)
        output = init_head(head_key) if head else {}
        return init_embed(embed_key) | init_body(body_key) | output

    def init_embed(key: Key[Array, ""]) -> Params:
        return {"embed": lstm.init_table(config, key)}

    def init_body(key: Key[Array, ""]) -> Params:
        return {"cell": lstm.init_cell(config, key)}

    def init_head(key: Key[Array, ""]) -> Params:
        return {"output": lstm.init_output(config, key)}

    def embed(params: Params, token: Array, position: Any = None, kind: Any = None) -> Array:
        del position, kind  # an LSTM needs no position embeddings
        return lstm.embed(config, params["embed"], token)

    recurrent = Recurrent(
        hidden=config.hidden,
        gates=lambda params, x: lstm.gates(params["cell"], x),
        state_gates=lambda params, h_ef: lstm.state_gates(params["cell"], h_ef),
        run=lambda params, gate, first: lstm.run(params["cell"], gate, first),
        prefill=lambda params, gate, length_e: lstm.prefill(params["cell"], gate, length_e),
        cell=lambda params, gate, state: lstm.cell(params["cell"], gate, state),
        output=lambda state: state.hidden_ef,
        uniform=partial(lstm.uniform, config),
    )
    return Stack(
        config=config,
        features=config.hidden,
        longest=UNBOUNDED,
        init=init,
        init_embed=init_embed,
        init_body=init_body,
        init_head=init_head,
        embed=embed,
        place=lambda params, x, position: x,
        rows=partial(rows, config),
        logits=lambda params, hidden: lstm.logits(config, params["output"], hidden),
        token_log_prob=lambda params, hidden_btf, side, scored_bt: lstm.token_log_prob(
            config, params["output"], hidden_btf, side, scored_bt
        ),
        recurrent=recurrent,
    )


def _tiny(vocab: int, dtype: str = "float32", **changes: Any) -> LstmConfig:
    """A tiny config; `changes` to layers, remat or unroll do not apply."""
    del changes
    return LstmConfig(width=6, hidden=10, vocab=vocab, vocab_multiple=8, xent_chunk=10, dtype=dtype)


ABILITIES = frozenset({"encode", "recurrent"})
BACKBONES.register("lstm")(BackboneKind(LstmConfig, ABILITIES, stack, _tiny))
