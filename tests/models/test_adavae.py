"""AdaVAE alone: what its encoder sees, what its options mean. Packing, decoding and training are
covered for every system by the conformance suite, numbers of the original by the parity tests.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Batch, Side
from jvae.backbones.gpt2 import Gpt2Config
from jvae.data.rows import Encoded, pack_rows
from jvae.models import adavae, lm
from jvae.models.adavae_config import AdaVaeConfig
from jvae.models.adavae_encoder import adapter_of, without_end
from jvae.tree import map_named

STACK = Gpt2Config(2, 16, 2, 32, 20, positions=12, dropout=0.0, vocab_multiple=1)
TEXTS = ([1, 5, 6, 7, 2], [1, 8, 9, 2], [1, 4, 2])


def rows(*ids_bs, texts=TEXTS, length=9, score_end=True) -> Batch:
    side = Encoded.of([np.array(text) for text in texts])
    size = dict(enc=length, dec=length)
    pad = dict(enc=0, dec=0)
    return pack_rows(np.array(ids_bs), dict(enc=side, dec=side), size, pad, score_end)


def small(**choices) -> AdaVaeConfig:
    sizes = dict(encoder_layers=1, latent=3, adapter=4, prefix_middle=3)
    return AdaVaeConfig(STACK, **(sizes | choices))


def random_params(model):
    rng = np.random.default_rng(0)
    target = jax.eval_shape(model.init, jax.random.key(0))
    return map_named(
        lambda path, a: jnp.asarray(
            0.3 * rng.normal(size=a.shape) + path.endswith("scale"), a.dtype
        ),
        target,
    )


def posterior_means(config, params, *batches):
    model = adavae.build(config)
    run = jax.jit(lambda params, batch: model.post.encode(params, batch).mean_egz[:, 0])
    return [np.asarray(run(params, batch)) for batch in batches]


@pytest.mark.fast_on("True")
@pytest.mark.parametrize("read_end", [True, False])
def test_the_encoder_reads_both_ways_and_the_end_only_if_asked(read_end):
    config = small(read_end=read_end, pool="averaged_attn", prefix=2)
    params = random_params(adavae.build(config))
    other_end = ([1, 5, 6, 7, 3], *TEXTS[1:])
    other_word = ([1, 5, 6, 4, 2], *TEXTS[1:])
    packed = [rows([0, 1], [2, -1], texts=texts) for texts in (TEXTS, other_end, other_word)]
    first, end, word = posterior_means(config, params, *packed)
    assert np.array_equal(first[0], end[0]) != read_end
    assert not np.array_equal(first[0], word[0])
    np.testing.assert_array_equal(first[1:3], word[1:3])


def test_without_end_takes_the_last_token_of_every_segment():
    segment_bt = jnp.array([[1, 1, 1, 2, 3, 3, 0], [1, 1, 2, 2, 2, 2, 2]])
    got = without_end(Side(segment_bt, segment_bt, segment_bt)).segment_bt
    np.testing.assert_array_equal(got, [[1, 1, 0, 0, 3, 0, 0], [1, 0, 2, 2, 2, 2, 0]])


@pytest.mark.slow
def test_the_released_temperature_makes_a_sentence_depend_on_its_batch():
    alone, both = rows([0], length=5), rows([0], [1], length=5)
    for scale, depends in (("one", False), ("sqrt_batch", True)):
        config = small(pool_scale=scale)
        params = random_params(adavae.build(config))
        one, two = posterior_means(config, params, alone, both)
        assert np.allclose(one[0], two[0], rtol=1e-5) != depends


@pytest.mark.slow
def test_without_adapters_and_latent_the_decoder_is_gpt2():
    config = small(use_psa=False, use_embedding=True, adapter_scale=0.0)
    model, plain = adavae.build(config), lm.build(lm.LmConfig(STACK))
    params = random_params(model)
    batch = rows([0, 1], [2, -1])

    @jax.jit
    def both(params):
        zero = jnp.zeros((4, 1, 3))
        ours = model.gen.log_lik(params, model.gen.prepare(params, batch), zero)
        subtree = {"decoder": {k: params["decoder"][k] for k in ("embed", "layers", "norm")}}
        return ours, plain.gen.log_lik(subtree, plain.gen.prepare(subtree, batch), None)

    ours, want = both(params)
    np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-6)
    assert "layers" not in params["encoder"] and np.abs(want).sum() > 1


def test_the_released_form_also_adapts_the_input():
    names = lambda placement, form, decoder: set(  # noqa: E731
        small(placement=placement, placement_form=form).places(decoder)
    )
    assert names("parallel_ffn", "intended", True) == {"hidden"}
    assert names("parallel_ffn", "released", False) == {"hidden", "input"}
    assert names("sequential_attn", "released", False) == {"input"}
    assert names("sequential_attn", "released", True) == {"input", "mlp"}


def test_identity_start_leaves_the_frozen_function():
    x = jnp.linspace(-1.0, 1.0, 32).reshape(2, 16)
    for identity in (True, False):
        adapter = adapter_of(small(adapter=2, identity_start=identity), STACK)
        out, params = jax.jit(lambda key, a=adapter: a.init_with_output(key, x))(jax.random.key(0))
        assert np.any(out) != identity and np.any(params["params"]["down"]["kernel"])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (dict(encoder_layers=3), "encoder_layers is 3; expected 1 to 2"),
        (dict(use_psa=False), "z would never reach the decoder"),
        (dict(use_adapters=True, adapt_decoder=False), "set adapt_decoder"),
        (
            dict(use_psa=False, use_output=True, layerwise_projection=True),
            "nothing uses a projection of z",
        ),
        (dict(pool_padding=True), "latent_attn never reads padding"),
    ],
)
def test_impossible_choices_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        small(**choices)


def test_padding_is_pooled_only_from_rows_of_one_sentence():
    config = small(pool="linear", pool_padding=True)
    model = adavae.build(config)
    with pytest.raises(ValueError, match="data.packing to bucket"):
        jax.eval_shape(
            lambda key: model.post.encode(model.init(key), rows([0, 1])), jax.random.key(0)
        )


def test_unscored_ends_leave_every_other_token():
    scored, kept = rows([0, 1], [2, -1]), rows([0, 1], [2, -1], score_end=False)
    lost = scored.scored_bt & ~kept.scored_bt
    assert not np.any(kept.scored_bt & ~scored.scored_bt)
    np.testing.assert_array_equal(scored.dec.token_bt[lost], [2, 2, 2])
    assert kept.scored_bt.sum() == 3 + 2 + 1
