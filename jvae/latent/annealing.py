"""Training with short-run inference: chain annealing over epochs, and the terms of a pass."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jvae.api import (
    Batch,
    Draws,
    Generator,
    Measure,
    Params,
    Prior,
    Terms,
    aux_keys,
    example_keys,
    per_example,
)
from jvae.fields import MOST, Needs, setting
from jvae.latent import short_run
from jvae.latent.short_run import ChainConfig

PARAM_GRADS = ("final", "trajectory")
_EPOCHS = Needs(lambda c: c.epoch_steps > 0, "epoch_steps is 0")


@dataclass(frozen=True)
class Annealing:
    """Settings of the training chain that differ from the evaluation chain.

    epoch_steps: optimizer steps per epoch; 0 turns both schedules off. Epochs count from 1.
    temperature_start, temperature_hold, temperature_rise: the temperature is `temperature_start` up
      to epoch `temperature_hold`, then rises by `temperature_rise` per epoch to the chain's own.
    prior_start, prior_epochs: the weight of log p(z) in the target rises linearly from
      `prior_start` to 1 over `prior_epochs` epochs.
    param_grad: "final" trains the decoder at the end point alone. "trajectory" adds the gradient at
      every earlier point of the chain, summed over the batch, as the released code does by not
      clearing gradients. It is the auxiliary term `trajectory`, with weight 1.
    """

    epoch_steps: int = setting(0, low=0, high=MOST, help="Updates per epoch; 0: no schedules.")
    temperature_start: float = setting(
        0.05, low=0.0, high=1e6, help="Temperature of the first epochs.", needs=_EPOCHS
    )
    temperature_hold: int = setting(
        15, low=0, high=MOST, help="Number of epochs at temperature_start.", needs=_EPOCHS
    )
    temperature_rise: float = setting(
        0.05,
        low=0.0,
        high=1e6,
        help="Rise of the temperature per epoch after temperature_hold.",
        needs=_EPOCHS,
    )
    prior_start: float = setting(
        1.0,
        low=0.0,
        high=1e6,
        help="Weight of log p(z) in the target at the start.",
        needs=Needs(lambda c: c.epoch_steps > 0 and c.prior_epochs > 0, "prior_epochs is 0"),
    )
    prior_epochs: int = setting(
        0,
        low=0,
        high=MOST,
        help="Number of epochs over which prior_start rises to 1.",
        needs=_EPOCHS,
    )
    param_grad: str = setting(
        "final", choices=PARAM_GRADS, help="Points of the chain at which the decoder is trained."
    )


def temperature_at(
    annealing: Annealing, cfg: ChainConfig, epoch: Int[Array, ""] | int
) -> Float[Array, ""]:
    """The chain's temperature in an epoch. Source: `train_sri.py` of the released code."""
    over = jnp.maximum(jnp.asarray(epoch) - annealing.temperature_hold, 0)
    heat = annealing.temperature_start + annealing.temperature_rise * over
    return jnp.minimum(heat, cfg.temperature).astype(jnp.float32)


def prior_weight_at(annealing: Annealing, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """The weight of log p(z) in the target at a step. Source: `semi_sup_classification.py`."""
    span = max(1, annealing.prior_epochs * annealing.epoch_steps)
    done = jnp.minimum(jnp.asarray(step) / span, 1.0)
    weight = annealing.prior_start + (1.0 - annealing.prior_start) * done
    return jnp.asarray(weight if annealing.prior_epochs else 1.0, jnp.float32)


class _Setting(NamedTuple):
    temperature: Array | float
    prior_weight: Array | float


def measure(gen: Generator, prior: Prior, cfg: ChainConfig, annealing: Annealing) -> Measure:
    """Training terms of a chain; replaces `jvae.latent.elbo.measure`."""

    def setting(step: Int[Array, ""]) -> _Setting:
        if not annealing.epoch_steps:
            return _Setting(cfg.temperature, 1.0)
        epoch = 1 + step // annealing.epoch_steps
        return _Setting(temperature_at(annealing, cfg, epoch), prior_weight_at(annealing, step))

    def run(
        step: Int[Array, ""],
        params: Params,
        batch: Batch,
        key: Key[Array, ""],
        drop: Key[Array, ""] | None = None,
    ) -> Terms:
        chain_key, z_key = jax.random.split(key)
        cond = gen.condition(params, batch, drop)
        now = setting(step)
        chain = short_run.prepare(
            gen,
            prior,
            cfg,
            params,
            batch,
            drop,
            cond=cond,
            temperature=now.temperature,
            prior_weight=now.prior_weight,
        )
        leak = annealing.param_grad == "trajectory"
        z_egz, path_kegz = chain.end(example_keys(chain_key, batch.id_e), path=leak)
        ctx = gen.prepare(params, batch, drop, cond=cond)
        draws = Draws(z_egz[None], z_egz, cond, batch.valid_e, aux_keys(z_key, batch))
        aux = gen.aux(params, ctx, draws)
        if path_kegz is not None:
            sentences = jnp.sum(batch.valid_e)
            aux |= {"trajectory": sentences * _along(params, batch, drop, cond, path_kegz)}
        return Terms(
            nll_e=-per_example(gen.log_lik(params, ctx, z_egz), batch),
            kl_e=jnp.zeros(batch.id_e.shape, jnp.float32),
            kl_egz=jnp.zeros(z_egz.shape, jnp.float32),
            aux=aux,
            scored_e=per_example(batch.scored_bt.astype(jnp.float32), batch).astype(jnp.int32),
            valid_e=batch.valid_e,
        )

    def _along(
        params: Params, batch: Batch, drop: Array | None, cond: object, path_kegz: Array
    ) -> Float[Array, "e"]:
        """sum_k -log p(x | z_k), with the dropout masks of step k."""
        shared = gen.prepare(params, batch, drop, cond=cond)

        @jax.checkpoint
        def body(sum_e: Array, inputs: tuple[Array, Array]) -> tuple[Array, None]:
            z_egz, k = inputs
            ctx = shared
            if cfg.fresh_dropout and drop is not None:
                ctx = gen.prepare(params, batch, jax.random.fold_in(drop, k), cond=cond)
            return sum_e - per_example(gen.log_lik(params, ctx, z_egz), batch), None

        start_e = jnp.zeros(batch.id_e.shape, jnp.float32)
        return jax.lax.scan(body, start_e, (path_kegz, jnp.arange(cfg.steps)))[0]

    return run
