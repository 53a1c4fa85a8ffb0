"""Shipped configs of the LSTM families and SRI build the models they name."""

import math

import jax
import pytest

from jvae import config as configs
from jvae import models
from jvae.runs import build
from jvae.training import program

VOCAB = 10_002  # words of Penn Treebank and the special tokens
SPECS = [f"sri:{name}" for name in ("tiny", "ptb", "yelp_short", "transformer")]
SPECS += [f"lstm_vae:{name}" for name in ("tiny", "annealed", "ae_free_bits")]
SPECS += ["lm:tiny", "lm:lstm"]


def _build(spec, **changes):
    config = configs.load(spec)
    with config.unlocked():
        for side in ("encoder", "decoder"):
            if side in config.model:
                config.model[side].vocab = VOCAB
        config.update_from_flattened_dict(changes)
    return config, build.build_model(config)


@pytest.mark.parametrize("spec", SPECS)
def test_every_preset_builds_and_names_the_axes_of_its_parameters(spec):
    config, model = _build(spec)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    ranks = jax.tree.map(lambda leaf, axes: len(axes) == leaf.ndim, abstract, model.axes)
    assert all(jax.tree.leaves(ranks))
    assert ("enc" in models.family(config.model.family).limits(build.model_config(config))) == (
        "encoder" in abstract
    )
    assert (model.post.sampler is not None) == spec.startswith("sri")
    objective = program.build_objective(config.objective)
    assert "trajectory" in objective.aux_weight or not spec.startswith("sri")


def test_published_size_of_ptb():
    _, model = _build("sri:ptb")
    leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == 5_698_578


def test_learned_steps_are_parameters_and_bring_their_update():
    config, model = _build("sri:tiny", **{"model.chain.schedule": "learned"})
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    assert abstract["posterior"]["size"].shape == (config.model.chain.steps,)
    sampler = model.post.sampler
    assert sampler is not None and sampler.tune is not None
    fixed = _build("sri:tiny")[1].post.sampler
    assert fixed is not None and fixed.tune is None
