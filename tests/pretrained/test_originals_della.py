"""The name table of DELLA there and back, for parameters of every option it knows."""

import jax
import numpy as np
import pytest

from jvae.backbones.gpt2 import Gpt2Config
from jvae.models import della
from jvae.pretrained import names, originals_della

DECODER = Gpt2Config(3, 8, 2, 32, 13, 9, vocab_multiple=8)


@pytest.mark.parametrize(
    "choices, layers",
    [
        ({}, (0, 2)),
        (dict(use_bow=True), (0, 1)),
        (dict(conditional=True), (1, 2)),
    ],
)
def test_round_trip(choices, layers):
    first, last = layers
    config = della.DellaConfig(
        DECODER, latent=4, rank=2, begin_layer=first, end_layer=last, **choices
    )
    shapes = jax.eval_shape(della.build(config).init, jax.random.key(0))
    draw = np.random.default_rng(0).normal
    params = jax.tree.map(lambda a: draw(size=a.shape).astype(np.float32), shapes)
    for path in (("embed", "token"), ("head",)):  # rows past the vocabulary are 0 when read
        table = params["decoder"]
        for word in path:
            table = table[word]
        table["table"][DECODER.vocab :] = 0
    table = originals_della.della(
        vocab=13,
        layers=3,
        width=8,
        latent=4,
        rank=2,
        first=first,
        last=last,
        conditional=config.conditional,
        bow=config.use_bow,
    )
    foreign = names.write(table, params)
    assert foreign[f"encoder.h.{first}.attn.lmf.text_factor.1.weight"].shape == (8, 9)
    assert foreign[f"encoder.recog_network.{last}.weight"].shape == (8, 12)
    extra = {"encoder.h.0.attn.bias": np.zeros(1)}
    extra |= {f"encoder.pooling.{i}.attention_weights": np.zeros(8) for i in {0, 1, 2}}
    again = names.read(table, extra | foreign, shapes)
    jax.tree.map(np.testing.assert_array_equal, again, params)
