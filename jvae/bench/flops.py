"""FLOPs of useful tokens: the matrix products of a training step on each sentence alone.

They are counted in the traced step, without padding, packing or recomputation. A sentence of n
tokens on a side costs a + b n + c n^2 there, and sides do not interact multiplicatively, so a few
lengths determine the formula. Both triangles of attention count, as in the usual 12 L D n^2.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jvae.api import Batch, Side
from jvae.bench.cases import Setting
from jvae.parallel.flops import matmul_flops
from jvae.runs import build, phases
from jvae.training import program

POINTS = (8, 16, 32)  # lengths at which the step is traced


def training(setting: Setting, lengths: Mapping[str, np.ndarray]) -> float:
    """FLOPs of one update on sentences of these lengths, (sentences,) per side."""
    plain = ConfigDict(setting.run.config.to_dict())
    for side in ("encoder", "decoder"):
        for key, value in dict(remat="none", xent_chunk=1 << 30).items():
            if side in plain.model and key in plain.model[side]:
                plain.model[side][key] = value
    alone = setting.run._replace(config=plain, model=build.build_model(plain))
    current = program.compile_phase(alone, phases.resolve(plain)[-1], setting.mesh, begin=0)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def cost(tokens: Mapping[str, int]) -> float:
        traced = current.train_step.trace(current.abstract, _alone(tokens), key)
        return matmul_flops(traced.jaxpr)

    first = dict.fromkeys(lengths, POINTS[0])
    base = cost(first)
    total = base * len(next(iter(lengths.values())))
    for side, tokens_e in lengths.items():
        costs = [base, *(cost(first | {side: n}) for n in POINTS[1:])]
        formula = np.polyfit(POINTS, np.subtract(costs, base), 2)
        total += float(np.polyval(formula, tokens_e).sum())
    return total


def _alone(tokens: Mapping[str, int]) -> Batch:
    """An abstract batch of one sentence without padding."""

    def side(name: str) -> Side | None:
        if name not in tokens:
            return None
        place = jax.ShapeDtypeStruct((1, tokens[name]), jnp.int32)
        return Side(place, place, place)  # pyright: ignore[reportArgumentType]

    dec = side("dec")
    assert dec is not None  # every model reads it
    return Batch(
        enc=side("enc"),
        dec=dec,
        cond=side("cond"),
        scored_bt=jax.ShapeDtypeStruct(dec.token_bt.shape, jnp.bool_),  # pyright: ignore
        id_e=jax.ShapeDtypeStruct((1,), jnp.int32),  # pyright: ignore
    )
