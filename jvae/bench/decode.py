"""Greedy decoding from given latents, for several batch sizes.

Every sentence has the maximum length: parameters are fresh, so natural ends would be meaningless.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jvae.api import Params, Prompt, example_keys
from jvae.bench import peers, subjects
from jvae.bench.cases import Case, Setting
from jvae.bench.harness import Work
from jvae.decode import DecodeConfig, decode
from jvae.errors import ConfigError
from jvae.parallel.flops import matmul_bytes, matmul_flops

TOKENS = 32  # tokens per sentence, its end included
_MANY = (1, 64, 1024, 4096)  # 1: the latency of a single sentence
LATENTS = {"cpu": (1, 16, 256), "gpu": _MANY, "tpu": _MANY}


def fixed_length(method: str = "greedy") -> DecodeConfig:
    """Settings that prevent sentences from ending early."""
    return DecodeConfig(method=method, min_length=TOKENS, max_length=TOKENS)


def starts(setting: Setting, examples: int) -> Prompt:
    """The start id as prompt. Raises: ConfigError for a model whose decoder reads a source."""
    if "cond" in setting.run.rows.row:
        raise ConfigError(
            f"{setting.run.config.name} decodes from a source, which no case gives it"
        )
    start = setting.run.decoder.start_id
    assert start is not None  # decoders have a start token
    return Prompt(jnp.full((examples, 1), start, jnp.int32), jnp.ones(examples, jnp.int32))


def ends(setting: Setting) -> dict[str, int]:
    """Ids that decoding needs to know."""
    return dict(end_id=setting.run.decoder.end_id, pad_id=setting.run.decoder.pad_id)


def latents(setting: Setting, examples: int) -> Any:
    """Draws from the prior."""
    key_e = example_keys(jax.random.key(0), jnp.arange(examples))
    return jax.jit(setting.run.model.prior.sample)(setting.params, key_e)


def step_cost(setting: Setting, examples: int) -> dict[str, float]:
    """FLOPs and bytes read by the matrix products of one step for this many sentences."""
    gen = setting.run.model.gen
    z_egz = jax.eval_shape(lambda: latents(setting, examples))
    prompt = jax.eval_shape(lambda: starts(setting, examples))
    _, state = jax.eval_shape(partial(_start, gen), setting.params, z_egz, prompt)
    token_e = jax.ShapeDtypeStruct((examples,), jnp.int32)
    traced = jax.make_jaxpr(gen.step)(setting.params, state, token_e)
    return dict(flops=matmul_flops(traced), bytes=matmul_bytes(traced))


def _start(gen: Any, params: Params, z_egz: Any, prompt: Prompt) -> Any:
    return gen.start(params, z_egz, prompt, TOKENS + 1)


def works(setting: Setting) -> list[Work]:
    """A program for every number of latents."""
    return [_work(setting, examples) for examples in LATENTS[setting.preset.platform]]


def _work(setting: Setting, examples: int) -> Work:
    gen = setting.run.model.gen
    prompt, z_egz = starts(setting, examples), latents(setting, examples)
    call = partial(
        decode, gen, setting.params, z_egz, prompt, None, fixed_length(), **ends(setting)
    )
    cost = step_cost(setting, examples)
    return Work(
        name=f"latents_{examples}",
        call=call,
        sentences=examples,
        tokens=examples * TOKENS,
        shapes=dict(latents=examples, tokens=TOKENS),
        program_flops=TOKENS * cost["flops"],
        read_bytes=TOKENS * cost["bytes"],
        extra={"bytes_per_token": cost["bytes"] / examples},
    )


def beside(setting: Setting) -> list[Work]:
    """Hugging Face `generate` on a GPT-2 of the decoder's size, for the largest batch size."""
    if setting.run.config.model.family != "optimus":
        return []
    examples = LATENTS[setting.preset.platform][-1] if setting.preset.platform == "cpu" else 1024
    return [peers.generation(setting, examples, TOKENS, f"latents_{examples}")]


CASE = Case(subjects.by_preset(), works, peers=beside)
