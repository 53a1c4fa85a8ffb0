"""Drawing latents from fitted priors, compared with decoding them: the cost of a better prior."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jvae.api import Params, example_keys, has_latent
from jvae.bench import prior_fit, subjects
from jvae.bench.cases import Case, Setting
from jvae.bench.decode import TOKENS, ends, starts
from jvae.bench.harness import Work
from jvae.decode import DecodeConfig, decode

LATENTS = 10_000
FITTED_TO = 1_000
DECODED = {"cpu": 1_024, "gpu": LATENTS, "tpu": LATENTS}  # latents in the decoding program
DECODE = "decode"
# The cost of draws does not depend on the fit, so the fits are minimal.
BARELY: dict[str, dict[str, Any]] = {
    "gmm": dict(iterations=1, starts=1),
    "flow": dict(steps=1),
    "diffusion": dict(updates=1),
    "gan": dict(steps=1),
    "ctrl_gen": dict(steps=1),
}


def works(setting: Setting) -> list[Work]:
    """One program per kind of prior, and random decoding to the longest training sentence."""
    if not has_latent(setting.run.model) or "cond" in setting.run.rows.row:
        return []
    u_ngz, key = prior_fit.latents(setting, FITTED_TO), jax.random.key(0)
    key_e, label_e = example_keys(key, jnp.arange(LATENTS)), jnp.zeros(LATENTS, jnp.int32)
    programs = []
    for name, (latent_density, options) in prior_fit.kinds(setting, **BARELY).items():
        params = latent_density.fit(u_ngz, jnp.zeros(FITTED_TO, jnp.int32), key)
        extra = {"steps": options.steps} if name == "diffusion" else {}
        programs.append(
            Work(
                name=name,
                call=partial(jax.jit(latent_density.sample), params, key_e, label_e),
                sentences=LATENTS,
                tokens=LATENTS,
                shapes=dict(latents=LATENTS, dimensions=int(u_ngz[0].size)),
                extra=extra,
            )
        )
    return [*programs, _decoding(setting, u_ngz)]


def _decoding(setting: Setting, u_ngz: jax.Array) -> Work:
    count = DECODED[setting.preset.platform]
    length = min(TOKENS, setting.run.config.decode.max_length)
    settings = DecodeConfig(method="sample", min_length=length, max_length=length)
    z_egz, prompt = jnp.resize(u_ngz, (count, *u_ngz.shape[1:])), starts(setting, count)
    key_e = example_keys(jax.random.key(1), jnp.arange(count))

    @jax.jit
    def tokens(params: Params, z_egz: jax.Array) -> jax.Array:
        out = decode(setting.run.model.gen, params, z_egz, prompt, key_e, settings, **ends(setting))
        return out.token_et

    return Work(
        name=DECODE,
        call=partial(tokens, setting.params, z_egz),
        sentences=count,
        tokens=count * length,
        shapes=dict(latents=count, tokens=length),
    )


def compare(records: list[dict[str, Any]]) -> None:
    """Adds the ratio of the time to draw a latent to the time to decode it."""
    decoding = next(row for row in records if row["program"] == DECODE)
    for row in records:
        if row is not decoding:
            row["of_decoding"] = decoding["sentences_per_s"] / row["sentences_per_s"]


CASE = Case(subjects.by_preset((subjects.OPTIMUS,), (subjects.OPTIMUS_BASE,)), works, compare)
