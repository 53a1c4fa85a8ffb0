"""The train step: noise on what the encoder reads, with keys of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.api import Batch, Terms, example_keys
from jvae.data.rows import Encoded, pack_rows
from jvae.data.tokenizers import train_word_level
from jvae.training import program
from jvae.training.objectives import Objective
from jvae.training.step import StepKeys, init_state, make_train_step


def test_noise_has_a_key_of_its_own_and_leaves_the_others_alone():
    keys = StepKeys.at(jax.random.key(3), jnp.int32(5))
    latent, drop = jax.random.split(jax.random.fold_in(jax.random.key(3), 5))
    assert (keys.latent == latent) and (keys.drop == drop)
    assert keys.noise not in (latent, drop)


def settings(rate: float, family: str = "optimus") -> ConfigDict:
    return configs.apply_overrides(
        configs.load(f"{family}:tiny"), [f"--config.noise.enc_delete={rate}"]
    )


def noise_of(config: ConfigDict, tok):
    return program.build_noise(config.noise, tok, tok)


@pytest.mark.slow
def test_deletion_reaches_the_encoder_in_training_alone():
    tok = train_word_level([" ".join(f"w{i}" for i in range(16))])
    side = Encoded.of([np.array([1, *range(4, 4 + n), 2]) for n in (15, 12)])
    rows = dict(enc=20, dec=20)
    sides = dict(enc=side, dec=side)
    batch = pack_rows(np.array([[0], [1]]), sides, rows, dict.fromkeys(rows, tok.pad_id))
    delete = noise_of(settings(0.9), tok)

    def measured(step, params, batch: Batch, key, drop) -> Terms:
        read_e = params["w"] * jnp.sum(batch.enc.segment_bt > 0, axis=1)
        scored_e = jnp.sum(batch.scored_bt, axis=1)
        return Terms(read_e, jnp.zeros(2), jnp.zeros((2, 1, 1)), {}, scored_e, batch.valid_e)

    def step(noise):
        tx = optax.sgd(0.1)
        train_step = make_train_step(
            None, Objective(), lambda step: jnp.ones(()), tx, measure_at=measured, noise=noise
        )
        state = init_state({"w": jnp.ones(())}, tx)
        return jax.jit(train_step)(state, batch, jax.random.key(2))[1]

    whole, noisy = step(None), step(delete)
    assert float(whole["loss"].sum) == side.lengths.sum() > float(noisy["loss"].sum)
    # Tokens are those of the data, so that values per token compare with those of validation.
    assert jax.tree.all(jax.tree.map(np.array_equal, whole["tokens"], noisy["tokens"]))
    keys = StepKeys.at(jax.random.key(2), jnp.int32(0))
    seen = delete(example_keys(keys.noise, batch.id_e), batch)
    assert float(noisy["loss"].sum) == (seen.enc.segment_bt > 0).sum()
    assert seen.dec is batch.dec and seen.scored_bt is batch.scored_bt


def test_without_noise_there_is_nothing_to_do():
    assert noise_of(settings(0.0), train_word_level(["a"])) is None
