"""Latents of several vectors: how they are pooled, where they stand, and who may have them."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.api import Side
from jvae.errors import ConfigError
from jvae.models import FAMILIES, adavae, optimus
from jvae.nn.resampler import NORM_EPS, Resampler
from jvae.runs.completed import completed
from jvae.validation.validate import validate

VOCAB = dict(enc=11, dec=11)
QUERIES = dict(vectors=3, pool="queries")


def _config(family, **changes):
    return dataclasses.replace(FAMILIES[family].tiny(VOCAB), **changes)


@pytest.mark.slow
def test_queries_attend_to_their_own_segment():
    """Against plain attention over each text alone."""
    width, heads, vectors = 6, 2, 3
    segment_bt = np.array([[1, 1, 2, 2, 2, 0], [2, 2, 2, 2, 0, 0]], np.int32)
    side = Side(segment_bt, segment_bt, np.zeros_like(segment_bt))
    x_btd = np.random.default_rng(0).normal(size=(2, 6, width)).astype(np.float32)
    module = Resampler(vectors, heads)

    @jax.jit
    def run(key):
        params = nn.unbox(module.init(key, x_btd, side, 2)["params"])
        moved = lambda a: a + 0.3 * jax.random.normal(key, a.shape)  # noqa: E731
        params = jax.tree.map(moved, params)
        return params, module.apply({"params": params}, x_btd, side, 2)

    params, h_egd = jax.device_get(run(jax.random.key(0)))
    params = jax.tree.map(np.asarray, params)
    query, key, value, out = (
        params[name] if name == "query" else params[name]["kernel"]
        for name in ("query", "key", "value", "out")
    )
    for row, segment in ((0, 1), (0, 2), (1, 2)):
        x_td = x_btd[row, segment_bt[row] == segment]
        x_td = (x_td - x_td.mean(1, keepdims=True)) / np.sqrt(x_td.var(1, keepdims=True) + NORM_EPS)
        x_td = x_td * params["norm"]["scale"] + params["norm"]["bias"]
        logit = np.einsum("qnh,td,dnh->qnt", query, x_td, key) / np.sqrt(width / heads)
        weight = np.exp(logit - logit.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        want = np.einsum("qnt,td,dnh,nhe->qe", weight, x_td, value, out)
        np.testing.assert_allclose(h_egd[2 * row + segment - 1], want, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(h_egd[2], 0.0)  # an empty slot


@pytest.mark.parametrize("family", ["optimus", "adavae", "t5_vae", "lstm_vae"])
def test_several_vectors_need_queries(family):
    with pytest.raises(ValueError, match="vectors is 3, but pool .* set pool to queries"):
        _config(family, vectors=3)
    assert FAMILIES[family].build(_config(family, **QUERIES)).latent_shape == (3, 5)


def test_layers_and_vectors_are_never_mixed():
    config = configs.load("della:tiny")
    with pytest.raises(ConfigError, match="model.vectors"):
        configs.apply_overrides(config, ["model.vectors=2"])
    with config.unlocked():
        config.model.vectors = 2
    with pytest.raises(ConfigError, match="model.vectors: DellaConfig has no such field"):
        validate(config)
    groups = {f: FAMILIES[f].build(_config(f)).groups for f in ("della", "optimus")}
    assert groups == {"della": "layer", "optimus": "vector"}


def test_slots_take_one_position_and_tokens_one_each():
    family = FAMILIES["optimus"]
    one, three = _config("optimus"), _config("optimus", **QUERIES)
    assert family.limits(one) == family.limits(three)
    behind = dataclasses.replace(three, tokens=2)
    assert family.limits(behind)["dec"] == family.limits(one)["dec"] - 3 * 2


INJECTIONS = {
    "memory": (optimus.decoder_of, "optimus", dict(use_embedding=False)),
    "embedding": (optimus.decoder_of, "optimus", dict(use_memory=False)),
    "tokens": (
        optimus.decoder_of,
        "optimus",
        dict(use_memory=False, use_embedding=False, tokens=2),
    ),
    "psa": (adavae.decoder_of, "adavae", dict(adapt_decoder=False)),
    "all ways": (
        adavae.decoder_of,
        "adavae",
        dict(
            use_memory=True,
            use_embedding=True,
            use_output=True,
            use_adapters=True,
            layerwise_projection=True,
        ),
    ),
}


@pytest.mark.parametrize("name", INJECTIONS)
def test_every_vector_of_an_example_reaches_its_own_tokens(name):
    """Rows of two examples hold what each gives alone, and each vector changes its own example."""
    decoder_of, family, choices = INJECTIONS[name]
    config = _config(family, **QUERIES, **choices)
    _, injection = decoder_of(config)
    noise = np.random.default_rng(0).normal
    shapes = jax.eval_shape(lambda: nn.unbox(injection.init(jax.random.key(0))))
    params = jax.tree.map(lambda a: noise(size=a.shape).astype(np.float32), shapes)
    z_egz = noise(size=(2, 3, 5)).astype(np.float32)
    if config.use_memory or getattr(config, "use_psa", False):
        owner_m = injection.owners(2)
        packed = injection.reach(params, z_egz, 1).slots.key_lbmgh[:, 0]
        for e in range(2):
            alone = injection.reach(params, z_egz[e : e + 1], 1).slots.key_lbmgh[:, 0]
            assert alone.shape[1] == injection.slots
            np.testing.assert_allclose(packed[:, owner_m == e + 1], alone, rtol=1e-5, atol=1e-4)
    before = injection.reach(params, z_egz, 2)
    for vector in range(3):
        moved_egz = z_egz.copy()
        moved_egz[0, vector] += 1.0
        after = jax.tree.leaves(injection.reach(params, moved_egz, 2))
        changed = [np.any(a != b) for a, b in zip(after, jax.tree.leaves(before), strict=True)]
        assert all(changed)


def test_configs_without_the_keys_of_the_latent_are_the_same_models():
    for spec in ("optimus:tiny", "adavae:tiny", "t5_vae:tiny", "lstm_vae:tiny", "sri:transformer"):
        today = configs.load(spec)
        older = ConfigDict(today.to_dict())
        for key in ("vectors", "prior", "posterior"):
            assert key in older.model or (spec, key) == ("sri:transformer", "posterior")
            if key in older.model:
                del older.model[key]
        assert configs.diff(completed(older), completed(today)) == {}
    other = ConfigDict(configs.load("optimus:tiny").to_dict())
    other.model.vectors = 2
    assert set(configs.diff(completed(older), completed(other))) > {"model.vectors"}
