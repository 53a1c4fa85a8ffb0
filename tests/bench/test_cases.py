"""Every case on small models: what it runs, what it counts."""

import jax
import numpy as np
import pytest

from jvae.bench import (
    CASES,
    cases,
    data,
    decode,
    flops,
    iw_nll,
    langevin,
    prior_fit,
    prior_latents,
    prior_sample,
)
from jvae.data.dataset import batches, block_rows
from jvae.errors import ConfigError


def finite(tree):
    return all(bool(np.all(np.isfinite(leaf))) for leaf in jax.tree.leaves(jax.device_get(tree)))


@pytest.mark.slow
@pytest.mark.slow
def test_updates_go_on_from_call_to_call(optimus):
    (work,) = CASES["train_step"].works(optimus)
    batches = optimus.train_batches(4)
    assert work.tokens == sum(int(batch.scored_bt.sum()) for batch in batches)
    assert work.sentences == sum(int(batch.valid_e.sum()) for batch in batches)
    assert set(work.fill) == {"enc", "dec", "slots"} and 0 < work.fill["dec"] <= 1
    first, second = work.call(), work.call()
    assert finite(first) and float(first["loss"].sum) != float(second["loss"].sum)
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(optimus.params))
    # Padding and the recomputation of a chunked loss are what the program does on top.
    assert work.flops < work.program_flops


@pytest.mark.slow
def test_useful_flops_are_those_of_the_formula(lm):
    """FLOPs of a language model: 6 per weight and token, and 12 L D n^2 for attention."""
    lengths, stack = np.array([5, 9, 30]), lm.run.config.model.decoder
    width, layers, vocab = stack.width, stack.layers, -(-stack.vocab // 128) * 128
    weights = layers * (4 * width**2 + 2 * width * stack.mlp)
    tokens = lengths.sum()
    expected = 6 * weights * tokens + 12 * layers * width * (lengths**2).sum()
    # The last token predicts nothing.
    expected += 6 * vocab * width * (tokens - len(lengths))
    actual = flops.training(lm, {"dec": lengths})
    assert actual == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_the_means_are_those_of_the_encoder(optimus):
    (work,) = CASES["encode"].works(optimus)
    out = work.call()
    assert out[0].shape[1:] == (1, 2) and finite(out)
    assert work.sentences == len(optimus.run.data["test"])
    read = sum(int(n) for n in optimus.run.data["test"].enc.lengths)
    assert work.tokens == read and work.program_flops > 0


@pytest.mark.slow
def test_a_language_model_has_nothing_to_encode(lm):
    assert CASES["encode"].works(lm) == []


@pytest.mark.slow
def test_a_sampler_encodes_by_its_chain(sri):
    (work,) = CASES["encode"].works(sri)
    assert finite(work.call()) and "enc" not in work.fill


@pytest.mark.slow
def test_decoded_sentences_have_the_length_that_is_counted(optimus, monkeypatch):
    monkeypatch.setattr(decode, "TOKENS", 5)
    monkeypatch.setattr(decode, "LATENTS", {"cpu": (1, 3)})
    few, many = CASES["decode"].works(optimus)
    out = many.call()
    assert many.tokens == 15 and np.all(out.length_e == 5)
    # Weights are read once for all, caches for each: more latents, fewer bytes a token.
    assert many.extra["bytes_per_token"] < few.extra["bytes_per_token"]
    assert many.program_flops == pytest.approx(3 * few.program_flops)


@pytest.mark.slow
def test_samples_of_the_prior(sri, monkeypatch):
    monkeypatch.setattr(decode, "TOKENS", 5)
    monkeypatch.setattr(prior_sample, "TOKENS", 5)
    monkeypatch.setattr(prior_sample, "SENTENCES", {"cpu": 3})
    (work,) = CASES["prior_sample"].works(sri)
    assert work.call().shape == (3, 5) and work.tokens == 15


@pytest.mark.slow
def test_fitted_priors_of_every_kind(optimus, lm, monkeypatch):
    monkeypatch.setattr(prior_fit, "LATENTS", {"cpu": 40})
    monkeypatch.setattr(prior_latents, "LATENTS", 6)
    monkeypatch.setattr(prior_latents, "DECODED", {"cpu": 2})
    small = dict(
        gmm=dict(components=2, iterations=2, starts=1),
        flow=dict(layers=1, width=4, steps=1),
        diffusion=dict(width=4, layers=1, updates=1, steps=2),
        gan=dict(width=4, layers=1, steps=1),
        ctrl_gen=dict(width=4, steps=1),
    )
    monkeypatch.setattr(prior_fit, "SHORT", small)
    monkeypatch.setattr(prior_latents, "BARELY", small)
    fits, (*draws, decoding) = (
        CASES[f"prior_{case}"].works(optimus) for case in ("fit", "latents")
    )
    names = ["ctrl_gen", "diffusion", "flow", "gan", "gaussian", "gmm"]
    assert [work.name for work in fits] == [work.name for work in draws] == names
    assert finite([work.call() for work in fits])
    for work in draws:
        assert work.call().shape == (6, 1, 2) and finite(work.call())
    assert decoding.call().shape == (2, decoding.tokens // 2)
    rates = {"flow": 50.0, "decode": 5.0}
    records = [dict(program=name, sentences_per_s=rate) for name, rate in rates.items()]
    prior_latents.compare(records)
    assert records[0]["of_decoding"] == 0.1 and "of_decoding" not in records[1]
    assert CASES["prior_fit"].works(lm) == CASES["prior_latents"].works(lm) == []


def test_lengths_like_those_of_the_corpora():
    for corpus, quantiles in data.QUANTILES.items():
        assert len(quantiles) == 21 and list(quantiles) == sorted(quantiles)
        lengths = data.lengths_like(corpus, 2_000)
        words = np.median(quantiles)
        assert abs(np.median(lengths["dec"]) / (1.12 * words + 2) - 1) < 0.1
        assert np.any(lengths["enc"] != lengths["dec"])
        assert np.corrcoef(lengths["enc"], lengths["dec"])[0, 1] > 0.8


@pytest.mark.slow
def test_the_pipeline_is_measured_whole(optimus, monkeypatch):
    monkeypatch.setattr(data, "SENTENCES", 300)
    monkeypatch.setattr(data, "ROWS", 4)
    synthetic = optimus.run.config.copy_and_resolve_references()
    synthetic.unlock()
    synthetic.data.train = ()
    setting = optimus._replace(run=optimus.run._replace(config=synthetic))
    works = CASES["data"].works(setting)
    assert [work.name for work in works] == ["ptb", "yahoo", "snli"]
    for work in works:
        assert work.sentences == 300 and work.call().dec.token_bt.shape[0] == 4
        assert min(work.fill["enc"], work.fill["dec"]) > 0.8 and not work.compiles
    (files,) = CASES["data"].works(optimus)
    plan = block_rows(optimus.run.data["train"], optimus.run.rows)
    assert files.name == "files" and files.fill["slots"] == plan.slot_fill


def test_synthetic_sentences_keep_their_lengths():
    lengths = dict(enc=np.array([3, 5, 2]), dec=np.array([4, 4, 6]))
    dataset = data.synthetic(lengths)
    spec = data.RowSpec(8, enc_row=8, slots=2, batch_rows=2)
    with batches(dataset, spec) as stream:
        batch, _ = next(stream)
    actual = cases.lengths([batch])
    pairs = sorted(zip(actual["enc"].tolist(), actual["dec"].tolist(), strict=True))
    assert pairs == [(2, 6), (3, 4), (5, 4)]


@pytest.mark.slow
def test_the_cost_of_the_likelihood_is_compared(optimus, monkeypatch):
    monkeypatch.setattr(iw_nll, "SAMPLES", {"cpu": (1, 2)})
    works = CASES["iw_nll"].works(optimus)
    assert [work.name for work in works] == ["nll_1", "passes_1", "nll_2", "passes_2"]
    batch = optimus.batch()
    assert works[2].tokens == 2 * works[0].tokens == 2 * cases.useful_tokens(batch)
    assert works[0].sentences == int(batch.valid_e.sum())
    assert works[1].call().shape == (1, *batch.id_e.shape)
    records = [
        dict(program=w.name, call_ms=ms, host_ms=2 * ms, sentences_per_s=10.0, **w.extra)
        for w, ms in zip(works, (3, 2, 5, 4), strict=True)
    ]
    CASES["iw_nll"].compare(records)
    assert records[0]["cost_ratio"] == 1.5 and records[2]["cost_ratio"] == 1.25
    assert records[0]["over_linear"] == pytest.approx(5 / 3 / 2)
    assert records[0]["cost_ratio_host"] == 1.5 and records[0]["ptb_test_s"] == 376.1
    assert "cost_ratio" not in records[1]


@pytest.mark.slow
@pytest.mark.slow
def test_chains_are_measured_beside_the_plain_step_and_the_floor(sri, optimus, monkeypatch):
    monkeypatch.setattr(langevin, "STEPS", {"cpu": (2,)})
    monkeypatch.setattr(langevin, "VOCAB", 400)
    built = langevin.works(sri)
    assert [work.name for work in built] == ["plain", "chain_2"]
    plain, moved = (float(work.call()[1]["rec"].sum) for work in built)
    assert plain != moved  # the chain leaves the z that the plain step reads
    assert built[1].program_flops > built[0].program_flops
    records = [
        *(dict(program="plain", call_ms=2), dict(program="chain_2", call_ms=9, k=2)),
        dict(program="torch_loop", call_ms=90, k=2, peer="torch"),
    ]
    langevin.compare(records)
    assert [r.get("ratio") for r in records] == [None, 4.5, None]
    assert records[1]["ratio_floor"] == 14 / 6
    assert records[1]["over_floor"] == pytest.approx(4.5 / (14 / 6))
    with pytest.raises(ConfigError, match="has no chain"):
        langevin.works(optimus)
