"""Generates sentences from the prior: one program draws latents and decodes them by sampling."""

from functools import partial

import jax
import jax.numpy as jnp

from jvae.api import example_keys
from jvae.bench import subjects
from jvae.bench.cases import Case, Setting
from jvae.bench.decode import TOKENS, ends, fixed_length, starts, step_cost
from jvae.bench.harness import Work
from jvae.decode import decode

SENTENCES = {"cpu": 256, "gpu": 1024, "tpu": 1024}


def works(setting: Setting) -> list[Work]:
    """The program of this case."""
    examples, model = SENTENCES[setting.preset.platform], setting.run.model
    gen, prior = model.gen, model.prior
    prompt, settings = starts(setting, examples), fixed_length("sample")

    @jax.jit
    def sample(params, key):
        key_e = example_keys(key, jnp.arange(examples))
        z_egz = prior.sample(params, key_e)
        return decode(gen, params, z_egz, prompt, key_e, settings, **ends(setting)).token_et

    cost = step_cost(setting, examples)
    work = Work(
        name="sentences",
        call=partial(sample, setting.params, jax.random.key(0)),
        sentences=examples,
        tokens=examples * TOKENS,
        shapes=dict(latents=examples, tokens=TOKENS),
        program_flops=TOKENS * cost["flops"],
        read_bytes=TOKENS * cost["bytes"],
        extra={"bytes_per_token": cost["bytes"] / examples},
    )
    return [work]


CASE = Case(subjects.by_preset(), works)
