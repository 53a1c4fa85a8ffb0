"""Stepwise decoding: the same distribution as teacher forcing, from any prompt, in any order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Prompt, example_keys
from jvae.decode import DecodeConfig, decode

BEFORE, AFTER = 2, 3  # tokens decoded before and after the examples are copied and reordered
COPIES = 2

pytestmark = pytest.mark.fast_on("optimus", "sri", "lstm_lm")


@pytest.fixture(scope="module")
def teacher(system, sentences):
    """Sentences, latents and the nats that teacher forcing gives each token."""
    values, _ = system("single")
    token_et = sentences.batch["single"].dec.token_bt
    return token_et, values.z_kegz[0], values.nats_bt


@pytest.fixture(scope="module")
def prompt(teacher, sentences) -> Prompt:
    """One to four tokens of each sentence, never its last, with junk after them."""
    token_et, _, _ = teacher
    length_e = np.array([1, 1, 4, 2, 3, 1, 3], np.int32)
    assert np.all(length_e < sentences.lengths)
    junk_et = np.random.default_rng(4).integers(0, sentences.vocab, (len(token_et), 4))
    prompt_et = np.where(np.arange(4) < length_e[:, None], token_et[:, :4], junk_et)
    return Prompt(prompt_et.astype(np.int32), length_e)


@pytest.fixture(scope="module")
def order(teacher) -> np.ndarray:
    """For each place after reordering, which copy it gets: 2e and 2e + 1 are those of example e."""
    copies = COPIES * len(teacher[0])
    return np.random.default_rng(5).integers(0, copies, copies)


@pytest.fixture(scope="module")
def stepwise(system, teacher, order):
    """prompt -> logits after the prompt, and after every step of the copied examples."""
    token_et, z_egz, _ = teacher
    gen = system.model.gen
    stay = np.arange(len(order))
    order_se = np.stack([order if step == BEFORE else stay for step in range(BEFORE + AFTER)])
    # Each example's copies read its own sentence, and the reordered ones that of their example.
    example_se = np.stack([stay] * BEFORE + [order] * AFTER) // COPIES

    @system.jit
    def run(params, prompt: Prompt):
        def feed(state, inputs):
            order_e, example_e = inputs
            state = gen.reorder(state, order_e)
            place_e = jnp.minimum(state.position_e, token_et.shape[1] - 1)
            logits_ev, state = gen.step(params, state, jnp.asarray(token_et)[example_e, place_e])
            return state, logits_ev

        first_ev, state = gen.start(params, z_egz, prompt, token_et.shape[1] + BEFORE + AFTER)
        _, logits_sev = jax.lax.scan(feed, gen.expand(state, COPIES), (order_se, example_se))
        return first_ev, logits_sev

    def both(prompt: Prompt):
        first_ev, logits_sev = jax.device_get(run(system.params, prompt))
        return np.concatenate([first_ev[None], logits_sev[:BEFORE, ::COPIES]]), logits_sev[BEFORE:]

    return both


@pytest.fixture(scope="module")
def decoded(stepwise, prompt):
    """Logits (steps, E, V) before and (steps, 2E, V) after reordering."""
    return stepwise(prompt)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(logits, axis=-1))


def assert_teacher_forced(logits_sev, example_e, first_e, teacher, sentences):
    """Step s of place e gives the nats of token first_e[e] + s of sentence example_e[e]."""
    token_et, _, nats_et = teacher
    compared = 0
    for step, log_p_ev in enumerate(log_softmax(logits_sev)):
        for e, example in enumerate(example_e):
            place = first_e[e] + step
            if place < sentences.lengths[example]:
                got = log_p_ev[e, token_et[example, place]]
                np.testing.assert_allclose(got, nats_et[example, place], rtol=1e-5, atol=1e-5)
                compared += 1
    return compared


def test_ragged_prompts_give_teacher_forced_nats(decoded, prompt, teacher, sentences):
    examples = np.arange(sentences.count)
    compared = assert_teacher_forced(decoded[0], examples, prompt.length_e, teacher, sentences)
    assert compared > 2 * sentences.count - 3


def test_copied_and_reordered_states_go_on(decoded, prompt, order, teacher, sentences):
    example_e = order // COPIES
    first_e = prompt.length_e[example_e] + BEFORE + 1
    assert assert_teacher_forced(decoded[1], example_e, first_e, teacher, sentences) > 5


def test_junk_behind_a_prompt_changes_nothing(stepwise, decoded, prompt, sentences):
    behind_et = np.arange(4) >= prompt.length_e[:, None]
    other_et = np.where(behind_et, (prompt.token_et + 1) % sentences.vocab, prompt.token_et)
    again = stepwise(prompt._replace(token_et=other_et.astype(np.int32)))
    np.testing.assert_array_equal(again[0], decoded[0])
    np.testing.assert_array_equal(again[1], decoded[1])


def test_probabilities_sum_to_one_over_real_tokens(decoded, sentences):
    for logits in decoded:
        assert np.all(logits[..., sentences.vocab :] == -np.inf)
        assert np.all(np.isfinite(logits[..., : sentences.vocab]))
        total = np.sum(np.exp(log_softmax(logits)[..., : sentences.vocab], dtype=np.float64), -1)
        np.testing.assert_allclose(total, 1.0, atol=1e-6)


@pytest.mark.fast_on("optimus")
def test_sampling_is_a_function_of_the_examples_key(system, teacher, sentences):
    """Each sentence keeps its draw wherever it stands in the batch, and whoever else is there."""
    _, z_egz, _ = teacher
    examples = sentences.count
    prompt = Prompt(np.full((examples, 1), sentences.start, np.int32), np.ones(examples, np.int32))
    cfg = DecodeConfig(method="sample", max_length=6, top_p=0.9)

    @system.jit
    def sample(params, z_egz, id_e):
        key_e = example_keys(jax.random.key(6), id_e)
        ids = dict(end_id=sentences.end, pad_id=sentences.pad)
        return decode(system.model.gen, params, z_egz, prompt, key_e, cfg, **ids)

    id_e = np.arange(examples, dtype=np.int32)
    want = jax.device_get(sample(system.params, z_egz, id_e))
    turned_e = np.roll(id_e, 3)
    turned = jax.device_get(sample(system.params, z_egz[turned_e], turned_e))
    other = jax.device_get(sample(system.params, z_egz, id_e + examples))
    np.testing.assert_array_equal(turned.token_et, want.token_et[turned_e])
    np.testing.assert_allclose(turned.log_prob_e, want.log_prob_e[turned_e], rtol=1e-5)
    assert np.any(other.token_et != want.token_et)
    assert np.all(want.token_et < sentences.vocab)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sample", "beam"])
def test_caches_that_grow_change_nothing(system, teacher, prompt, sentences, method):
    """Rooms of 2, 4 and 8 tokens in turn, after prompts of one to four."""
    if system.model.gen.grow is None:
        pytest.skip("has no cache that grows")
    _, z_egz, _ = teacher
    key_e = example_keys(jax.random.key(9), np.arange(sentences.count))
    ids = dict(end_id=sentences.end, pad_id=sentences.pad)

    def run(room: int):
        cfg = DecodeConfig(method=method, beam_width=2, min_length=4, max_length=8, room=room)
        inputs = (system.params, z_egz, prompt, key_e)
        decoded = system.jit(lambda *inputs: decode(system.model.gen, *inputs, cfg, **ids))
        return jax.device_get(decoded(*inputs))

    got, want = run(2), run(8)
    assert want.length_e.max() == 8
    np.testing.assert_array_equal(got.token_et, want.token_et)
    np.testing.assert_allclose(got.log_prob_e, want.log_prob_e, rtol=1e-5)


def test_a_cache_does_not_outgrow_the_positions(system, teacher, prompt):
    gen, (_, z_egz, _) = system.model.gen, teacher
    if gen.grow is None or system.limit > 16:
        pytest.skip("has no bound on positions")
    _, state = jax.eval_shape(lambda p: gen.start(p, z_egz, prompt, 9), system.params)
    spare = system.limit - 9  # what stands in front of a text takes positions too
    jax.eval_shape(lambda state: gen.grow(state, spare), state)
    with pytest.raises(ValueError, match="17 positions requested; the decoder has 16"):
        jax.eval_shape(lambda state: gen.grow(state, spare + 1), state)
