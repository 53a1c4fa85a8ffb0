"""Fitting a prior to latents: the whole fit if it is fast, some updates if it uses gradients."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jvae.api import example_keys, has_latent
from jvae.bench import subjects
from jvae.bench.cases import Case, Setting
from jvae.bench.harness import Work
from jvae.fitted import FITTED
from jvae.fitted.contract import Density, density

LATENTS = {"cpu": 20_000, "gpu": 200_000, "tpu": 200_000}
TURNS = 20  # iterations of expectation maximisation, or gradient updates
SHORT: dict[str, dict[str, Any]] = {
    "gmm": dict(iterations=TURNS, tolerance=0.0, starts=1),
    "flow": dict(steps=TURNS),
    "diffusion": dict(updates=TURNS),
    "gan": dict(steps=TURNS),
    "ctrl_gen": dict(steps=TURNS),
}


def kinds(setting: Setting, **more: dict[str, Any]) -> dict[str, tuple[Density, Any]]:
    """The density of each kind for the latents of a model, and its options."""
    shape, densities = setting.run.model.latent_shape, {}
    for name, kind in FITTED.items():
        options = kind.options(**(more.get(name, {})))
        densities[name] = density(name, options, shape, 1), options
    return densities


def latents(setting: Setting, count: int) -> jax.Array:
    """Standardised draws from the prior of an untrained model."""
    key_e = example_keys(jax.random.key(0), jnp.arange(count))
    u_ngz = jax.jit(setting.run.model.prior.sample)(setting.params, key_e)
    left_ngz = u_ngz - jnp.mean(u_ngz, axis=0, keepdims=True)
    return left_ngz / jnp.std(u_ngz, axis=0, keepdims=True)


def works(setting: Setting) -> list[Work]:
    """One program per kind of prior, which fits it."""
    if not has_latent(setting.run.model) or "cond" in setting.run.rows.row:
        return []
    count = LATENTS[setting.preset.platform]
    u_ngz, label_n = latents(setting, count), jnp.zeros(count, jnp.int32)
    programs = []
    for name, (latent_density, options) in kinds(setting, **SHORT).items():
        turns = TURNS if name in SHORT else 1
        seen = turns * getattr(options, "batch", count)
        programs.append(
            Work(
                name=name,
                call=partial(latent_density.fit, u_ngz, label_n, jax.random.key(0)),
                sentences=seen,
                tokens=seen,
                shapes=dict(latents=count, dimensions=int(u_ngz[0].size)),
                extra={"turns": turns},
            )
        )
    return programs


CASE = Case(subjects.by_preset((subjects.OPTIMUS,), (subjects.OPTIMUS_BASE,)), works)
