"""Every family at the longest text it accepts: no width is rounded up past its positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Batch, Side
from jvae.backbones.gpt2 import Gpt2Config
from jvae.data.dataset import RowSpec
from jvae.data.tokenizers import train_word_level
from jvae.errors import DataError
from jvae.evals.latent import PosteriorSet
from jvae.evals.text import token_accuracy
from jvae.inference.text_vae import LoadedVAE
from jvae.latent.short_run import ChainConfig
from jvae.models import FAMILIES, adavae, della, lm, lstm_vae, optimus, sri, t5vae
from jvae.nn.lstm import LstmConfig
from jvae.nn.t5_layer import T5Config
from jvae.tree import map_named

TOK = train_word_level(["a b c d e f g h"])
POSITIONS = 11  # no power of two, nor a multiple of 8
STACK = Gpt2Config(
    layers=1, width=8, heads=2, mlp=8, vocab=TOK.vocab_size, positions=POSITIONS, vocab_multiple=4
)
RECURRENT = LstmConfig(4, 6, TOK.vocab_size, vocab_multiple=4)
T5 = T5Config(
    layers=1, width=8, heads=2, head=4, mlp=8, vocab=TOK.vocab_size, buckets=4, max_distance=8
)
CHAIN = ChainConfig(1, "constant", step_size=0.2, temperature=1.0, chains=4, chunk=4)
CONFIGS = {
    "adavae": adavae.AdaVaeConfig(STACK, encoder_layers=1, latent=3, adapter=2),
    "della": della.DellaConfig(STACK, latent=3, rank=2),
    "lm": lm.LmConfig(STACK),
    "lstm_lm": lm.LmConfig(RECURRENT),
    "lstm_vae": lstm_vae.LstmVaeConfig(RECURRENT, RECURRENT, latent=3),
    "optimus": optimus.OptimusConfig(STACK, STACK, latent=3),
    "sri": sri.SriConfig(RECURRENT, latent=3, chain=CHAIN),
    "sri_transformer": sri.SriTransformerConfig(STACK, latent=3, chain=CHAIN),
    "t5_vae": t5vae.T5VaeConfig(T5, latent=3),
}


def test_no_family_is_left_out():
    assert CONFIGS.keys() == set(FAMILIES)


def prepared(name):
    """Model, parameters and the length of its longest text, both ends included."""
    family, config = FAMILIES[name], CONFIGS[name]
    model = family.build(config)
    params = map_named(
        lambda _, leaf: jnp.full(leaf.shape, 0.1, leaf.dtype),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    limits = {side: min(limit, POSITIONS) for side, limit in family.limits(config).items()}
    return model, params, limits


@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in ("lm", "lstm_lm")])
def test_token_accuracy_of_the_longest_text(name):
    model, params, limits = prepared(name)
    longest = min(limits.values())
    tokens = np.full((2, longest), TOK.start_id, np.int32)
    place = np.broadcast_to(np.arange(longest), tokens.shape)
    side = Side(tokens, np.ones_like(tokens), place)
    batch = Batch(side, side, None, place > 0, np.arange(2))
    z_egz, none_e = np.zeros((2, *model.latent_shape), np.float32), np.zeros(2)
    posts = PosteriorSet(np.arange(2), None, z_egz, z_egz, none_e, none_e, None)
    assert token_accuracy(model, params, [batch], posts) in (0.0, 100.0)  # equal tokens all


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_longest_text(name):
    model, params, limits = prepared(name)
    longest = min(limits.values())
    vae = LoadedVAE(model, params, TOK, TOK, RowSpec(8), limits, limits["dec"] - 1)
    text = " ".join("abcdefgh"[i % 8] for i in range(longest - 2))
    assert len(vae.reconstruct([text])) == 1
    assert np.isfinite(vae.nll([text], k=1)).all()
    with pytest.raises(DataError, match=f"{longest + 1} tokens .* more than the {longest}"):
        vae.nll([f"{text} a"], k=1)
