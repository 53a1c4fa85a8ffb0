"""A generator of the contract small enough to be written twice: with a cache, and without."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae import decode
from jvae.api import DecodeState, Generator, Prompt

VOCAB, WIDTH, BUCKETS = 4, 5, 31  # column 4 pads the vocabulary
START, END = 0, 1


def _absent(*_args, **_kwargs):
    raise AssertionError("decoding must not call this")


def _make_params(seed: int = 0, end_bias: float = 0.0):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(BUCKETS, WIDTH)).astype(np.float32)
    table[:, END] += end_bias
    return {"table": table, "z": rng.normal(size=(2, WIDTH)).astype(np.float32)}


def _reference_log_p(params, z, history):
    """Log-probabilities of the next token from the whole history, which a cache must have kept."""
    bucket = sum((token + 1) * (7 * place + 1) for place, token in enumerate(history)) % BUCKETS
    logits = params["table"][bucket] + z.reshape(-1) @ params["z"]
    logits = np.where(np.arange(WIDTH) < VOCAB, logits, -np.inf).astype(np.float64)
    return logits - np.log(np.sum(np.exp(logits)))


def _make_generator():
    """The generator, with counts of traces and executed steps; its cache has examples on axis 1."""
    counts = {"traces": 0, "steps": 0}

    def logits(params, cache, length_e):
        place_te = jnp.arange(cache["token_te"].shape[0])[:, None]
        weight_te = (cache["token_te"] + 1) * (7 * place_te + 1)
        bucket_e = jnp.sum(jnp.where(place_te < length_e[None, :], weight_te, 0), axis=0) % BUCKETS
        logits_ev = jnp.asarray(params["table"])[bucket_e] + cache["z_ze"].T @ params["z"]
        return jnp.where(jnp.arange(WIDTH)[None, :] < VOCAB, logits_ev, -jnp.inf)

    def start(params, z_egz, prompt, max_len, cond=None):
        counts["traces"] += 1
        grow = max_len - prompt.token_et.shape[1]
        cache = {
            "token_te": jnp.pad(prompt.token_et, ((0, 0), (0, grow))).T,
            "z_ze": z_egz[:, 0].T if cond is None else (z_egz[:, 0] + cond).T,
        }
        state = DecodeState(cache, prompt.length_e)
        return logits(params, cache, state.position_e), state

    def step(params, state, token_e):
        jax.debug.callback(lambda: counts.__setitem__("steps", counts["steps"] + 1))
        token_te = state.cache["token_te"]
        here_te = jnp.arange(token_te.shape[0])[:, None] == state.position_e[None, :]
        cache = {**state.cache, "token_te": jnp.where(here_te, token_e[None, :], token_te)}
        return logits(params, cache, state.position_e + 1), DecodeState(cache, state.position_e + 1)

    gen = Generator(
        *([_absent] * 4),
        start=start,
        step=step,
        expand=functools.partial(decode.expand_leading, axis_of=1),
        reorder=functools.partial(decode.reorder_leading, axis_of=1),
    )
    return gen, counts


def _make_inputs(examples: int = 6, seed: int = 1):
    """Latents and ragged prompts of 1 to 3 tokens, with junk after the prompts."""
    rng = np.random.default_rng(seed)
    token_et = rng.integers(0, VOCAB, (examples, 3))
    token_et[:, 0] = START
    prompt = Prompt(
        jnp.asarray(token_et, jnp.int32), jnp.asarray(1 + np.arange(examples) % 3, jnp.int32)
    )
    return jnp.asarray(rng.normal(size=(examples, 1, 2)), jnp.float32), prompt


@pytest.fixture(scope="session")
def toy():
    return types.SimpleNamespace(
        make_params=_make_params,
        make_generator=_make_generator,
        make_inputs=_make_inputs,
        log_p=_reference_log_p,
        ids=dict(end_id=END, pad_id=START),
        start=START,
        end=END,
        vocab=VOCAB,
        width=WIDTH,
    )


@pytest.fixture(autouse=True)
def _refuse_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield
