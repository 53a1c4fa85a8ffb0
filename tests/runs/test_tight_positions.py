"""Sentences that just fit into the positions of a model can be decoded in full, and none is decoded
past them. Decoding is traced, where the models check their positions, and not compiled.
"""

import functools

import jax
import numpy as np
import pytest

from jvae import config as configs
from jvae import models
from jvae.decode import decode
from jvae.errors import ConfigError
from jvae.inference import scoring
from jvae.runs import build, loading

TOKENS = 42  # the longest sentence; more than the caches of the first decoding stage hold
LINES = ["a " * (TOKENS - 2), *("b c " * n for n in range(1, 19))]
SIZES = dict(layers=1, width=8, heads=2, mlp=8, head=4, hidden=8, vocab_multiple=8, unroll=1)
FAMILIES = {
    "adavae": ("adavae:tiny", "model.encoder_layers=1", "model.prefix=2"),
    "della": ("della:tiny",),
    "lm": ("lm:tiny",),
    "lstm_lm": ("lm:lstm",),
    "lstm_vae": ("lstm_vae:tiny",),
    "optimus": ("optimus:tiny",),
    "sri": ("sri:tiny",),
    "sri_transformer": ("sri:transformer",),
    "t5_vae": ("t5_vae:tiny",),
}


def test_every_family_is_here():
    assert FAMILIES.keys() == set(models.FAMILIES)


def open_run(name, folder, positions, *values):
    """A small model on `LINES` whose sides have that many positions, if they have a table."""
    spec, *choices = FAMILIES[name]
    config = configs.load(spec)
    (folder / "lines.txt").write_text("\n".join(line.strip() for line in LINES))
    values = [*choices, *values, "data.tokenizer_kind=word", "data.vocab=0"]
    values += [f"data.{split}={folder}/lines.txt" for split in ("train", "valid", "test")]
    for side in {"encoder", "decoder"} & set(config.model):
        sizes = {key: size for key, size in SIZES.items() if key in config.model[side]}
        if "positions" in config.model[side]:
            sizes["positions"] = positions
        values += [f"model.{side}.{key}={size}" for key, size in sizes.items()]
    flags = [f"--config.{value}" for value in [*values, f"data.cache={folder}/cache"]]
    return build.open_run(configs.apply_overrides(config, flags), folder)


@pytest.fixture
def lengths(monkeypatch):
    """Most new tokens of every batch that is decoded."""
    lengths = []

    def traced(gen, params, z_egz, prompt, key_e, config, *, cond, **ends):
        run = functools.partial(decode, gen, cfg=config, cond=cond, **ends)
        token_et = jax.eval_shape(run, params, z_egz, prompt, key_e).token_et
        lengths.append(token_et.shape[1])
        return np.zeros(token_et.shape, np.int32), np.ones(len(z_egz), bool)

    monkeypatch.setattr(scoring, "written", traced)
    return lengths


@pytest.mark.parametrize("name", FAMILIES)
def test_the_longest_sentence_that_fits_is_decoded_and_no_longer_one(name, tmp_path, lengths):
    # An Optimus has its memory at a position.
    positions = TOKENS + (name in ("optimus", "sri_transformer"))
    run = open_run(name, tmp_path, positions)
    limit = models.family(name).limits(build.model_config(run.config))["dec"]
    bounded = "positions" in run.config.model.decoder
    assert limit == TOKENS if bounded else limit > 1_000_000

    shapes = jax.eval_shape(run.model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    vae = loading.text_vae(run.config, run.model, params, run.encoder, run.decoder)
    z_egz = np.zeros((2, *run.model.latent_shape), np.float32)
    vae.decode(z_egz)
    most = TOKENS - 1 if bounded else 70
    for method in ("sample", "beam"):
        if bounded:  # asked for by name, what does not fit is an error
            with pytest.raises(ConfigError, match="max_length is 70"):
                vae.decode(z_egz, method=method, max_length=70)
        vae.decode(z_egz, method=method, max_length=most)
    assert lengths == [TOKENS - 1, most, most]

    run = open_run(name, tmp_path, positions, "decode.max_length=70")
    assert run.config.decode.max_length == most
    assert any("decode.max_length=70: lowered to 41" in line for line in run.log) == bounded
