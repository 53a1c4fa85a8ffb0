"""Priors with parameters that are registered from outside."""

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.errors import ConfigError
from jvae.latent.priors import PRIORS, NoOptions, PriorKind, PriorParts, standard_normal
from jvae.runs import build
from jvae.validation.validate import validate


def _located(options, shape):
    return PriorParts(standard_normal(shape), lambda key: {"mean": jnp.zeros(shape)})


def _refusing(options, shape):
    raise ValueError("the latent must be even")


@pytest.fixture
def config_of(monkeypatch):
    """(config, prior) -> a shipped config with a prior of this file."""
    monkeypatch.setitem(PRIORS._members, "located", PriorKind(NoOptions, _located))
    monkeypatch.setitem(PRIORS._members, "refusing", PriorKind(NoOptions, _refusing))

    def of(spec, prior):
        config = configs.load(spec)
        with config.unlocked():
            config.model.prior = ConfigDict(dict(kind=prior))
        return config

    return of


def test_parameters_need_no_names_of_axes(config_of):
    config = config_of("lstm_vae:tiny", "located")
    validate(config)
    with config.unlocked():
        config.model.encoder.vocab = config.model.decoder.vocab = 9
    model = build.build_model(config)
    assert model.axes["prior"] == {"mean": (None, None)}
    shape = (1, config.model.latent)
    assert jax.eval_shape(model.init, jax.random.key(0))["prior"]["mean"].shape == shape


def test_what_a_member_refuses_is_an_error_of_its_section(config_of):
    with pytest.raises(ConfigError, match="^model.prior: the latent must be even$"):
        validate(config_of("lstm_vae:tiny", "refusing"))


@pytest.mark.parametrize("spec", ["sri:tiny", "sri:transformer"])
def test_short_run_inference_refuses_parameters(spec, config_of):
    with pytest.raises(ConfigError, match="model.prior.kind is 'located'.*standard_normal"):
        validate(config_of(spec, "located"))


def test_rules_that_never_train_the_prior_are_refused(config_of):
    config = config_of("lstm_vae:tiny", "located")
    with config.unlocked():
        config.optim.trainable = (("^decoder/", None, None, 0),)
    with pytest.raises(ConfigError, match="prior/mean would never train.*'\\^prior/'"):
        validate(config)
    with config.unlocked():
        config.optim.trainable += (("^prior/", None, None, 0),)
    validate(config)
