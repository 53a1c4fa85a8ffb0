"""Beam search against exhaustive search, greedy decoding and a beam search in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae import decode
from jvae.decode import DecodeConfig


def lists(token, length):
    pairs = zip(np.asarray(token).tolist(), np.asarray(length).tolist(), strict=True)
    return [row[:n] for row, n in pairs]


def hypotheses(beams, e):
    """(tokens, score, log p, ended) of one example's beams."""
    mine = jax.tree.map(lambda part: np.asarray(part[e]).tolist(), beams)
    actual = zip(
        lists(mine.token_ewt, mine.length_ew),
        mine.score_ew,
        mine.log_prob_ew,
        mine.ended_ew,
        strict=True,
    )
    return [hypothesis for hypothesis in actual if hypothesis[0]]


def prompt_rows(prompt):
    return lists(prompt.token_et, prompt.length_e)


def slow_beam(toy, params, z, prompt, cfg):
    """One example at a time, with lists; transformers 4.8 where norm_length is "total"."""

    def norm(emitted, ended):
        length = emitted if cfg.norm_length == "new" else len(prompt) + emitted - ended
        return float(length) ** cfg.length_penalty

    live, finished, done = [([], 0.0, 0.0)], [], False  # tokens, processed sum, own sum
    for emitted in range(1, cfg.max_length + 1):
        candidates = []
        for tokens, total, state in live:
            log_p = toy.log_p(params, z, prompt + tokens)
            gain = log_p.copy()
            for token in set(prompt + tokens):
                gain[token] *= cfg.repetition_penalty
            if len(tokens) < cfg.min_length:
                gain[toy.end] = -np.inf
            for token in np.flatnonzero(np.isfinite(gain)).tolist():
                candidates.append((tokens + [token], total + gain[token], state + log_p[token]))
        candidates = sorted(candidates, key=lambda c: -c[1])[: 2 * cfg.beam_width]
        live = [c for c in candidates if c[0][-1] != toy.end][: cfg.beam_width]
        for rank, (tokens, total, state) in enumerate(candidates):
            if tokens[-1] == toy.end and rank < cfg.beam_width:
                finished.append((tokens, total / norm(emitted, 1), state, True))
        finished = sorted(finished, key=lambda h: -h[1])[: cfg.beam_width]
        if len(finished) == cfg.beam_width:
            bound = candidates[0][1] / norm(emitted, 1)
            if cfg.early_stopping == "never" and cfg.length_penalty > 0:
                bound = candidates[0][1] / norm(cfg.max_length, 0)
            done = cfg.early_stopping == "always" or finished[-1][1] >= bound
        if done or not live:
            return finished
    finished += [(tokens, total / norm(emitted, 0), state, False) for tokens, total, state in live]
    return sorted(finished, key=lambda h: -h[1])[: cfg.beam_width]


def case(width, length, penalty, repetition, norm_length, early_stopping, least=0):
    return DecodeConfig(
        method="beam",
        beam_width=width,
        max_length=length,
        min_length=least,
        length_penalty=penalty,
        repetition_penalty=repetition,
        norm_length=norm_length,
        early_stopping=early_stopping,
    )


CASES = [
    case(3, 7, 1.0, 1.2, "total", "heuristic", least=3),  # as DELLA decodes
    case(3, 7, 1.0, 1.0, "new", "heuristic"),
    case(2, 6, 2.0, 1.3, "new", "never"),
    case(4, 6, 0.7, 0.8, "total", "never", least=1),
    case(2, 7, 0.0, 1.3, "new", "always", least=2),
    case(5, 6, 2.0, 1.0, "total", "always"),
    case(3, 6, -0.5, 1.0, "new", "heuristic"),
]


@pytest.mark.fast_on("0", "5")
@pytest.mark.parametrize("cfg", CASES, ids=range(len(CASES)))
def test_beams_equal_slow_python(toy, cfg):
    gen, _ = toy.make_generator()
    params, (z_egz, prompt) = toy.make_params(4, end_bias=0.3), toy.make_inputs(5)
    beams = decode.beam_search(gen, params, z_egz, prompt, cfg, **toy.ids)
    after_ewt = np.arange(cfg.max_length)[None, None, :] >= np.asarray(beams.length_ew)[:, :, None]
    assert np.all(np.asarray(beams.token_ewt)[after_ewt] == toy.ids["pad_id"])
    for e, row in enumerate(prompt_rows(prompt)):
        got, expected = hypotheses(beams, e), slow_beam(toy, params, np.asarray(z_egz[e]), row, cfg)
        assert [h[0] for h in got] == [h[0] for h in expected]
        assert [h[3] for h in got] == [h[3] for h in expected]
        np.testing.assert_allclose([h[1] for h in got], [h[1] for h in expected], rtol=2e-5)
        np.testing.assert_allclose([h[2] for h in got], [h[2] for h in expected], rtol=2e-5)


def every_output(toy, params, z, prompt, max_length):
    """All outputs that end or have max_length tokens, with their log p."""
    stack, actual = [([], 0.0)], []
    while stack:
        tokens, total = stack.pop()
        if len(tokens) == max_length or tokens[-1:] == [toy.end]:
            actual.append((tokens, total))
            continue
        log_p = toy.log_p(params, z, prompt + tokens)
        stack += [(tokens + [token], total + log_p[token]) for token in range(toy.vocab)]
    return actual


def test_the_widest_beam_is_exhaustive_search(toy):
    """1 + 3 outputs end before the third token, 9 * 4 with it: 40 places hold them all."""
    gen, _ = toy.make_generator()
    params, (z_egz, prompt) = toy.make_params(2), toy.make_inputs(3)
    cfg = case(44, 3, 1.5, 1.0, "new", "never")
    beams = decode.beam_search(gen, params, z_egz, prompt, cfg, **toy.ids)
    best = decode.best(beams)
    for e, row in enumerate(prompt_rows(prompt)):
        outputs = every_output(toy, params, np.asarray(z_egz[e]), row, 3)
        outputs.sort(key=lambda o: -o[1] / len(o[0]) ** 1.5)
        got = hypotheses(beams, e)
        assert sorted(h[0] for h in got) == sorted(o[0] for o in outputs)
        assert got[0][0] == outputs[0][0] == best.token_et[e, : best.length_e[e]].tolist()
        scores = [total / len(tokens) ** 1.5 for tokens, total in outputs]
        np.testing.assert_allclose([h[1] for h in got], scores, rtol=2e-5)
        assert np.sum(np.exp([h[2] for h in got])) == pytest.approx(1, abs=1e-5)
    assert np.all(np.isneginf(beams.score_ew[:, len(got) :]))
    assert np.all(beams.length_ew[:, len(got) :] == 0)


@pytest.mark.parametrize(
    ("early_stopping", "norm_length"), [("always", "new"), ("heuristic", "total")]
)
def test_width_one_is_greedy(toy, early_stopping, norm_length):
    gen, counts = toy.make_generator()
    params, (z_egz, prompt) = toy.make_params(1, end_bias=0.4), toy.make_inputs(8)
    common = dict(max_length=9, min_length=1)
    greedy = decode.generate(gen, params, z_egz, prompt, None, DecodeConfig(**common), **toy.ids)
    jax.effects_barrier()
    steps = counts["steps"]
    cfg = DecodeConfig(
        method="beam",
        beam_width=1,
        length_penalty=1.3,
        early_stopping=early_stopping,
        norm_length=norm_length,
        **common,
    )
    beam = decode.decode(gen, params, z_egz, prompt, None, cfg, **toy.ids)
    jax.effects_barrier()
    assert counts["steps"] == 2 * steps, "the beam should stop where greedy decoding does"
    assert beam.token_et.tolist() == greedy.token_et.tolist()
    assert beam.length_e.tolist() == greedy.length_e.tolist()
    assert beam.ended_e.tolist() == greedy.ended_e.tolist()
    np.testing.assert_allclose(beam.log_prob_e, greedy.log_prob_e, rtol=1e-6)


@pytest.mark.slow
def test_beams_score_at_least_as_well_as_greedy_on_the_whole(toy):
    """Not for every input: what greedy keeps may fall out of the beam. Those are counted."""
    gen, _ = toy.make_generator()
    params, (z_egz, prompt) = toy.make_params(3, end_bias=0.4), toy.make_inputs(200)
    cfg = DecodeConfig(method="beam", beam_width=3, length_penalty=0.0, max_length=8)
    greedy = decode.generate(
        gen, params, z_egz, prompt, None, DecodeConfig(max_length=8), **toy.ids
    )
    beam = decode.decode(gen, params, z_egz, prompt, None, cfg, **toy.ids)
    gain_e = np.asarray(beam.log_prob_e) - np.asarray(greedy.log_prob_e)
    violations = int(np.sum(gain_e < -1e-5))
    assert gain_e.mean() > 0 and violations <= 10, f"{violations} of 200 below greedy"
    assert np.sum(gain_e > 1e-5) > 20  # and the beam found something else


@pytest.mark.slow
def test_search_ends_when_every_example_is_done(toy):
    gen, counts = toy.make_generator()
    params, (z_egz, prompt) = toy.make_params(end_bias=2.0), toy.make_inputs(4)
    cfg = DecodeConfig(method="beam", beam_width=2, max_length=30, early_stopping="always")
    beams = decode.beam_search(gen, params, z_egz, prompt, cfg, **toy.ids)
    jax.effects_barrier()
    assert np.all(beams.ended_ew)
    assert counts["steps"] == int(jnp.max(beams.length_ew)) - 1 < 29
