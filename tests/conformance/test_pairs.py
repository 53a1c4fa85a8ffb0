"""A few pairs with every injection and every backbone, so that the fast suite runs each of them.

The other modules run the full product of injections and backbones, which is slow.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Prompt, example_keys
from jvae.backbones import BACKBONES
from jvae.latent.kl import kl
from jvae.tree import named_leaves

STEPS = 2  # tokens decoded after a prompt


def test_every_way_and_every_backbone_occur(pairs, sentences):
    def able(ability: str) -> set[str]:
        return {name for name, kind in BACKBONES.items() if ability in kind.abilities}

    assert {pair.way for pair in pairs.values()} == set(sentences.ways)
    assert {pair.writes for pair in pairs.values()} == able("decode")
    assert {pair.reads for pair in pairs.values()} - {None} == able("encode")


def bound(model, params, batch):
    """The negative bound, and the latents, KL and nats that it is made of."""
    gen, post = model.gen, model.post
    key_e = example_keys(jax.random.key(3), batch.id_e)
    cond = gen.condition(params, batch)
    q = post.encode(params, batch, cond=cond, key_e=key_e)
    z_egz = post.sample(params, q, key_e[None])[0]
    kl_e = kl(params, post, q, z_egz, model.prior, cond).nats_e
    nats_bt = gen.log_lik(params, gen.prepare(params, batch, cond=cond), z_egz)
    total = jnp.sum(jnp.where(batch.valid_e, kl_e, 0.0)) - jnp.sum(nats_bt)
    return total, (z_egz, kl_e, nats_bt)


def by_id(values, batch):
    """Latent, KL and nats of the tokens of each sentence, in the order of their ids."""
    z_egz, kl_e, nats_bt = values
    parts = {}
    for e in np.flatnonzero(batch.valid_e):
        row, segment = e // batch.slots, e % batch.slots + 1
        own_t = batch.dec.segment_bt[row] == segment
        parts[int(batch.id_e[e])] = z_egz[e], kl_e[e], nats_bt[row, own_t]
    return [parts[i] for i in sorted(parts)]


def check_values(got, want, sentences):
    """Compares the values of two packings, "mixed" and "packed"."""
    got, want = by_id(got, sentences.batch["mixed"]), by_id(want, sentences.batch["packed"])
    assert len(got) == len(want) == sentences.count
    for i, (got_parts, want_parts) in enumerate(zip(got, want, strict=True)):
        for name, *part in zip(("z", "KL", "nats"), got_parts, want_parts, strict=True):
            np.testing.assert_allclose(
                *part, rtol=1e-5, atol=1e-5, err_msg=f"{name} of sentence {i}"
            )
    # The comparison above would also hold for a model that ignores its input.
    assert len({round(float(nats_t.sum()), 3) for _, _, nats_t in want}) == sentences.count


@pytest.fixture(scope="module")
def outcome(writing_pair, sentences):
    """packing -> (gradient, values) of the bound, from one compiled program."""
    run = writing_pair.jit(jax.grad(functools.partial(bound, writing_pair.model), has_aux=True))
    return functools.cache(
        lambda packing: jax.device_get(run(writing_pair.params, sentences.batch[packing]))
    )


def test_packing_changes_no_value_and_no_gradient(outcome, sentences):
    (got, got_values), (want, want_values) = outcome("mixed"), outcome("packed")
    check_values(got_values, want_values, sentences)
    got, want = named_leaves(got), named_leaves(want)
    assert got.keys() == want.keys()
    largest = max(np.max(np.abs(leaf), initial=0.0) for leaf in want.values())
    assert largest > 0
    for name, leaf in want.items():
        np.testing.assert_allclose(got[name], leaf, rtol=0, atol=1e-5 * largest, err_msg=name)


def test_packing_changes_no_value_with_other_encoders(reading_pair, sentences):
    run = reading_pair.jit(functools.partial(bound, reading_pair.model))
    got, want = (
        jax.device_get(run(reading_pair.params, sentences.batch[packing])[1])
        for packing in ("mixed", "packed")
    )
    check_values(got, want, sentences)


def test_stepwise_decoding_equals_teacher_forcing(writing_pair, outcome, sentences):
    """After prompts of one to four tokens."""
    gen, batch = writing_pair.model.gen, sentences.batch["packed"]
    parts = by_id(outcome("packed")[1], batch)
    z_egz = np.stack([z_gz for z_gz, _, _ in parts])
    token_et = sentences.batch["single"].dec.token_bt
    longest = token_et.shape[1]
    length_e = np.array([1, 1, 4, 2, 3, 1, 3], np.int32)
    assert np.all(length_e < sentences.lengths)
    place_se = np.minimum(length_e + np.arange(STEPS)[:, None], longest - 1)
    token_se = token_et[np.arange(sentences.count), place_se]

    @writing_pair.jit
    def decoded(params, z_egz, prompt, token_se):
        def feed(state, token_e):
            logits_ev, state = gen.step(params, state, token_e)
            return state, logits_ev

        first_ev, state = gen.start(params, z_egz, prompt, longest + STEPS)
        _, logits_sev = jax.lax.scan(feed, state, token_se)
        return jax.nn.log_softmax(jnp.concatenate([first_ev[None], logits_sev]))

    prompt = Prompt(token_et[:, :4], length_e)
    log_p_sev = jax.device_get(decoded(writing_pair.params, z_egz, prompt, token_se))
    for e, (_, _, nats_t) in enumerate(parts):
        places = np.arange(length_e[e], min(length_e[e] + STEPS + 1, sentences.lengths[e]))
        got_t = log_p_sev[places - length_e[e], e, token_et[e, places]]
        np.testing.assert_allclose(
            got_t, nats_t[places], rtol=1e-5, atol=1e-5, err_msg=f"sentence {e}"
        )
