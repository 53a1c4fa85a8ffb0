"""The compiled loop against a loop in plain Python over the same model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae import decode
from jvae.api import DecodeState, Prompt, example_keys
from jvae.decode import DecodeConfig


def slow_greedy(toy, params, z, prompt, cfg):
    history, new, total = list(prompt), [], 0.0
    while len(new) < cfg.max_length and toy.end not in new:
        log_p = toy.log_p(params, z, history + new)
        bucket_logits = (
            log_p.copy()
        )  # log p is a shift of the logits, so it serves without a penalty
        if len(new) < cfg.min_length:
            bucket_logits[toy.end] = -np.inf
        new.append(int(np.argmax(bucket_logits)))
        total += log_p[new[-1]]
    return new, total


def lists(token_et, length_e):
    pairs = zip(np.asarray(token_et).tolist(), np.asarray(length_e).tolist(), strict=True)
    return [row[:n] for row, n in pairs]


def rows(prompt):
    return lists(prompt.token_et, prompt.length_e)


def new_tokens(out):
    return lists(out.token_et, out.length_e)


@pytest.mark.parametrize(
    "cfg", [DecodeConfig(max_length=7), DecodeConfig(max_length=7, min_length=4)]
)
@pytest.mark.parametrize("end_bias", [-1.0, 0.5])
def test_greedy_equals_slow_python(toy, cfg, end_bias):
    gen, _ = toy.make_generator()
    params = toy.make_params(end_bias=end_bias)
    z_egz, prompt = toy.make_inputs(8)
    out = decode.generate(gen, params, z_egz, prompt, None, cfg, **toy.ids)
    expected = [
        slow_greedy(toy, params, np.asarray(z), row, cfg)
        for z, row in zip(z_egz, rows(prompt), strict=True)
    ]
    assert new_tokens(out) == [new for new, _ in expected]
    np.testing.assert_allclose(out.log_prob_e, [total for _, total in expected], rtol=1e-5)
    assert out.ended_e.tolist() == [new[-1] == toy.end for new, _ in expected]
    after_et = np.arange(cfg.max_length)[None, :] >= np.asarray(out.length_e)[:, None]
    assert np.all(np.asarray(out.token_et)[after_et] == toy.ids["pad_id"])
    assert len(set(out.length_e.tolist())) > 1, "the case should have ends at different places"
    assert min(out.length_e.tolist()) > cfg.min_length or cfg.min_length == 0


def test_repetition_penalty_reads_prompt_and_output(toy):
    """Raw logits: those of the toy, not their normalised form."""
    gen, _ = toy.make_generator()
    params = toy.make_params(end_bias=-3.0)
    z_egz, prompt = toy.make_inputs(8)
    cfg = DecodeConfig(max_length=6, repetition_penalty=1.7)
    out = decode.generate(gen, params, z_egz, prompt, None, cfg, **toy.ids)
    plain = decode.generate(gen, params, z_egz, prompt, None, DecodeConfig(max_length=6), **toy.ids)
    for e, history in enumerate(rows(prompt)):
        new = []
        while len(new) < cfg.max_length and toy.end not in new:
            seen = history + new
            bucket = sum((token + 1) * (7 * place + 1) for place, token in enumerate(seen)) % 31
            logits = params["table"][bucket] + np.asarray(z_egz[e, 0]) @ params["z"]
            for token in set(seen):
                logits[token] *= 1.7 if logits[token] < 0 else 1 / 1.7
            new.append(int(np.argmax(logits[: toy.vocab])))
        assert new_tokens(out)[e] == new
    assert new_tokens(out) != new_tokens(plain)


METHODS = [
    DecodeConfig(max_length=6),
    DecodeConfig(
        "sample", temperature=0.8, top_k=3, top_p=0.9, repetition_penalty=1.2, max_length=6
    ),
    DecodeConfig("beam", max_length=6, beam_width=3, repetition_penalty=1.2),
]


@pytest.mark.fast_on("sample")
@pytest.mark.parametrize("cfg", METHODS, ids=lambda cfg: cfg.method)
def test_an_example_depends_on_no_neighbour_and_calls_share_a_trace(toy, cfg):
    gen, counts = toy.make_generator()
    key_e = example_keys(jax.random.key(0), jnp.arange(5))
    place = jnp.array([4, 1])
    for seed in range(2):
        params, (z_egz, prompt) = toy.make_params(seed), toy.make_inputs(5, seed=seed)
        prompts = Prompt(prompt.token_et[place], prompt.length_e[place])
        whole = decode.decode(gen, params, z_egz, prompt, key_e, cfg, **toy.ids)
        part = decode.decode(gen, params, z_egz[place], prompts, key_e[place], cfg, **toy.ids)
        assert new_tokens(part) == [new_tokens(whole)[4], new_tokens(whole)[1]]
        np.testing.assert_allclose(part.log_prob_e, whole.log_prob_e[place], rtol=1e-6)
    assert counts["traces"] == 2  # one per batch size


@pytest.mark.parametrize("method", ["greedy", "sample"])
def test_loop_ends_with_its_slowest_example(toy, method):
    gen, counts = toy.make_generator()
    params, (z_egz, prompt) = toy.make_params(end_bias=1.0), toy.make_inputs(4)
    key_e = jax.random.split(jax.random.key(3), 4)
    cfg = DecodeConfig(method=method, max_length=40)
    out = decode.generate(gen, params, z_egz, prompt, key_e, cfg, **toy.ids)
    jax.effects_barrier()
    assert np.all(out.ended_e)
    assert counts["steps"] == max(out.length_e.tolist()) - 1 < 39


def test_one_new_token_needs_no_step(toy):
    gen, counts = toy.make_generator()
    z_egz, prompt = toy.make_inputs(3)
    out = decode.generate(
        gen, toy.make_params(), z_egz, prompt, None, DecodeConfig(max_length=1), **toy.ids
    )
    jax.effects_barrier()
    assert (
        counts["steps"] == 0 and out.token_et.shape == (3, 1) and out.length_e.tolist() == [1] * 3
    )


def test_sampled_texts_have_the_frequencies_of_the_model(toy):
    """Pearson's statistic of whole two-token outputs, against its 0.999 quantile (13 outcomes)."""
    gen, _ = toy.make_generator()
    params, draws = toy.make_params(), 4000
    z_egz = jnp.full((draws, 1, 2), 0.3)
    prompt = Prompt(jnp.full((draws, 1), toy.start), jnp.ones(draws, jnp.int32))
    key_e = example_keys(jax.random.key(1), jnp.arange(draws))
    cfg = DecodeConfig(method="sample", max_length=2)
    out = decode.generate(gen, params, z_egz, prompt, key_e, cfg, **toy.ids)
    z = np.full(2, 0.3, np.float32)
    expected = {}
    for first in range(toy.vocab):
        log_p = toy.log_p(params, z, [toy.start])[first]
        if first == toy.end:
            expected[(first,)] = log_p
            continue
        for second in range(toy.vocab):
            expected[first, second] = log_p + toy.log_p(params, z, [toy.start, first])[second]
    seen = [tuple(tokens) for tokens in new_tokens(out)]
    assert set(seen) <= set(expected)
    chi2 = sum(
        (seen.count(t) - draws * np.exp(p)) ** 2 / (draws * np.exp(p)) for t, p in expected.items()
    )
    assert chi2 < 32.91
    np.testing.assert_allclose(out.log_prob_e, [expected[t] for t in seen], rtol=1e-5)


def test_greedy_gives_ties_to_the_lowest_id(toy):
    gen, _ = toy.make_generator()
    params = {
        "table": np.zeros((31, toy.width), np.float32),
        "z": np.zeros((2, toy.width), np.float32),
    }
    z_egz, prompt = toy.make_inputs(2)
    for cfg in (
        DecodeConfig(max_length=3),
        DecodeConfig(method="beam", beam_width=1, max_length=3),
    ):
        out = decode.decode(gen, params, z_egz, prompt, None, cfg, **toy.ids)
        assert new_tokens(out) == [[0, 0, 0]] * 2


def test_wrong_use_is_refused(toy):
    gen, _ = toy.make_generator()
    z_egz, prompt = toy.make_inputs(2)
    args = (gen, toy.make_params(), z_egz, prompt, None)
    with pytest.raises(ValueError, match="key_e"):
        decode.generate(*args, DecodeConfig(method="sample"), **toy.ids)
    with pytest.raises(ValueError, match="beam_search"):
        decode.generate(*args, DecodeConfig(method="beam"), **toy.ids)
    with pytest.raises(ValueError, match="at least one"):
        decode.decode_in_batches(*args, DecodeConfig(), batch_size=0, **toy.ids)


def test_leading_helpers_copy_and_permute():
    state = DecodeState({"a": jnp.arange(6).reshape(2, 3)}, jnp.array([5, 6, 7]))
    wide = decode.expand_leading(state, 2, axis_of=1)
    assert wide.cache["a"].tolist() == [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]]
    assert wide.position_e.tolist() == [5, 5, 6, 6, 7, 7]
    moved = decode.reorder_leading(state, jnp.array([2, 0, 0]), axis_of=1)
    assert moved.cache["a"].tolist() == [[2, 0, 0], [5, 3, 3]]
    assert moved.position_e.tolist() == [7, 5, 5]
    assert decode.expand_leading(state, 2).cache["a"].tolist() == [[0, 1, 2]] * 2 + [[3, 4, 5]] * 2


@pytest.mark.slow
def test_batches_equal_one_batch(toy):
    gen, counts = toy.make_generator()
    params, (z_egz, prompt) = jax.device_put(toy.make_params()), toy.make_inputs(7)
    inputs = (z_egz, prompt, 0.5 * z_egz[:, 0])
    key_e = example_keys(jax.random.key(0), jnp.arange(7))
    cfg = DecodeConfig(method="sample", max_length=5)
    whole = decode.decode(gen, params, z_egz, prompt, key_e, cfg, cond=inputs[2], **toy.ids)
    for z, prompts, cond in (inputs, jax.device_get(inputs)):
        with jax.transfer_guard("disallow"):
            parts = decode.decode_in_batches(
                gen, params, z, prompts, key_e, cfg, batch_size=3, cond=cond, **toy.ids
            )
        for got, expected in zip(parts, whole, strict=True):
            assert isinstance(got, np.ndarray)
            np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert counts["traces"] == 2  # seven at once, and one compiled batch of three
