"""Use of the latent during training against the evaluation's own numbers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.backbones.bert import BertConfig
from jvae.backbones.gpt2 import Gpt2Config
from jvae.data.rows import Encoded, pack_rows
from jvae.evals.latent import collapse_reasons, collect_posteriors, latent_metrics
from jvae.latent.gaussian import DiagonalGaussian, StandardNormal
from jvae.models import della, optimus
from jvae.training import latent_monitor
from jvae.training.objectives import Objective
from jvae.training.step import make_valid_step
from jvae.tree import map_named

SIZES: dict[str, Any] = dict(layers=2, width=8, heads=2, mlp=16, vocab=12, positions=8)
SIZES |= dict(dropout=0.0, vocab_multiple=1)
STACK = Gpt2Config(**SIZES)
MODELS = (
    optimus.build(optimus.OptimusConfig(BertConfig(**SIZES), STACK, latent=3)),
    della.build(della.DellaConfig(STACK, latent=3, rank=2)),
)


def batches():
    ids = [np.array([1, *range(3, 3 + n), 2]) for n in (2, 5, 1, 4, 3, 2, 5, 1)]
    side = Encoded.of(ids)
    for rows in ([[0, 1], [2, 5]], [[3, 4], [7, -1]]):
        batch = pack_rows(
            np.array(rows), dict(dec=side, enc=side), dict(dec=14, enc=14), dict(dec=0, enc=0)
        )
        yield batch._replace(id_e=np.asarray(rows).reshape(-1).astype(np.int32))


@pytest.mark.slow
def test_validation_gives_the_posteriors_its_sums_are_of():
    for model in MODELS:
        random = np.random.default_rng(2)
        params = map_named(
            lambda path, like, random=random: jnp.asarray(
                0.3 * random.normal(size=like.shape) + path.endswith("scale"), like.dtype
            ),
            jax.eval_shape(model.init, jax.random.key(0)),
        )
        key = jax.random.key(1)
        plain = jax.jit(make_valid_step(model, Objective(), 0.5))
        step = jax.jit(make_valid_step(model, Objective(), 0.5, watched=True))
        parts = []
        for batch in batches():
            sums, post = step(params, batch, key)
            expected, nothing = plain(params, batch, key)
            assert nothing is None
            for name in expected:
                np.testing.assert_allclose(
                    *([s[name].sum, s[name].count] for s in (sums, expected)), rtol=1e-5
                )
            parts.append((batch.id_e, post))
        actual = latent_monitor.latent_use(model, params, parts, key, kl_nats=3.0)
        posts = collect_posteriors(model, params, batches(), key)
        want = latent_metrics(model, params, posts)
        assert actual.active == want.active[0.01] > 0
        np.testing.assert_allclose(actual.mi_nats, want.mi_nats, atol=1e-5)
        # The order of batches and sentences changes nothing.
        again = latent_monitor.latent_use(model, params, parts[::-1], key, kl_nats=3.0)
        assert again._replace(kl_gz=None) == actual._replace(kl_gz=None)
        standard = isinstance(model.prior.form, StandardNormal)
        standard &= isinstance(model.post.form, DiagonalGaussian)
        assert (actual.kl_gz is not None) == standard
        for latent_use in (actual, again) if standard else ():
            np.testing.assert_allclose(latent_use.kl_gz, want.kl_profile_gz, atol=1e-5)
        # Validation decides as the evaluation does: a KL that carries nothing is a collapse.
        same = dataclasses.replace(want, kl_nats=3.0, kl_nats_se=0.0)
        assert actual.collapse_reasons == collapse_reasons(same)
        dead = map_named(lambda path, leaf: 0 * leaf, params)
        parts = [(batch.id_e, step(dead, batch, key)[1]) for batch in batches()]
        use = latent_monitor.latent_use(model, dead, parts, key, kl_nats=3.0)
        assert use.active == 0 and len(use.collapse_reasons) == 2
