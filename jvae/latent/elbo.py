"""One training pass over a batch: a draw from the posterior and the terms of the objective."""

import jax.numpy as jnp
from jaxtyping import Array, Key

from jvae.api import (
    Batch,
    Draws,
    Params,
    Terms,
    TextVAE,
    aux_keys,
    example_keys,
    infer,
    per_example,
)
from jvae.latent.kl import kl


def measure(
    model: TextVAE,
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
    drop: Key[Array, ""] | None = None,
) -> Terms:
    """-log p(x | z), KL and auxiliary terms of every example for posterior draw 0, in nats.

    Args:
      key: key of the latent noise, folded with each example's index.
      drop: dropout key; None turns dropout off.
    """
    gen = model.gen
    cond, post, z_key = infer(gen, model.post, params, batch, key, drop)
    key_ke = example_keys(z_key, batch.id_e, jnp.arange(gen.draws))
    z_kegz = model.post.sample(params, post, key_ke)
    ctx = gen.prepare(params, batch, drop, cond=cond)
    nats = kl(params, model.post, post, z_kegz[0], model.prior, cond)
    return Terms(
        nll_e=-per_example(gen.log_lik(params, ctx, z_kegz[0]), batch),
        kl_e=nats.nats_e,
        kl_egz=nats.nats_egz,
        aux=gen.aux(params, ctx, Draws(z_kegz, post, cond, batch.valid_e, aux_keys(z_key, batch))),
        scored_e=per_example(batch.scored_bt.astype(jnp.float32), batch).astype(jnp.int32),
        valid_e=batch.valid_e,
    )
