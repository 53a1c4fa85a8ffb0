"""Priors fitted to small untrained models of every kind of latent, with labels."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest

from jvae import config as configs
from jvae.data import grammar
from jvae.errors import ConfigError, InputError
from jvae.evals import control, evaluation, prior_fit, split_latents
from jvae.evals.control import ControlRequest
from jvae.evals.prior_fit import PriorRequest, fit_prior
from jvae.fitted import FITTED
from jvae.parallel import mesh as meshes
from jvae.runs import build, priors

STACK = dict(width=8, mlp=8, heads=1, layers=2)
SIZES = ("samples=2", "sentences=6", "generate=4", "interpolations=2")
ROWS = ("data.batch_rows=8", "data.row_tokens=64", "data.vocab=300")


def stack(*sides):
    return tuple(f"model.{side}.{k}={v}" for side in sides for k, v in STACK.items())


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Sentences of a grammar, each with the number of its subject."""
    path = tmp_path_factory.mktemp("data") / "mine.tsv"
    lines = [
        f"{'many' if s.factors[0] else 'one'}\t{s.text}\n" for s in grammar.corpus("train", 200)
    ]
    path.write_text("".join(lines))
    return path


def opened(spec, path, folder, *more):
    values = (f"data.train={path}", "data.label=0", *(f"evals.{size}" for size in SIZES))
    config = configs.apply_overrides(configs.load(spec), (*ROWS, *values, *more))
    run = build.open_run(config, folder)
    mesh = meshes.make_mesh(dict(data=1), jax.devices()[:1])
    return run, mesh, evaluation.untrained(run, mesh)


@pytest.fixture(scope="module")
def optimus(labelled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimus")
    sizes = (*stack("encoder", "decoder"), "model.latent=3")
    return opened("optimus", labelled, folder, *sizes)


@pytest.mark.slow
def test_latents_are_encoded_once_and_checked(optimus, monkeypatch, caplog):
    run, mesh, params = optimus
    how = dict(weights="some", seed=1)
    z_nkgz = split_latents.split_latents(run, mesh, params, "train", 2, **how)
    assert z_nkgz.shape == (len(run.data["train"]), 2, 1, 3)
    assert np.std(z_nkgz[:, 0] - z_nkgz[:, 1]) > 0
    (path,) = (run.workdir / "latents").iterdir()
    data = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(split_latents.scoring, "draws", None)  # not called
        again = split_latents.split_latents(run, mesh, params, "train", 2, **how)
    np.testing.assert_array_equal(again, z_nkgz)
    path.write_bytes(data[:-4] + b"torn")
    again = split_latents.split_latents(run, mesh, params, "train", 2, **how)
    assert "its checksum is wrong; the latents are drawn again" in caplog.text
    np.testing.assert_array_equal(again, z_nkgz)
    assert path.read_bytes() == data
    ids = np.array([3, 5])
    draws = split_latents.split_latents(run, mesh, params, "train", 2, ids=ids, **how)
    np.testing.assert_allclose(draws, z_nkgz[ids], atol=1e-5)


@pytest.mark.slow
def test_a_prior_by_label(optimus):
    run, mesh, params = optimus
    tmp_path = run.workdir
    request = PriorRequest(kind="gaussian", name="by_label", samples=2, label="true")
    options = FITTED["gaussian"].options()
    table = fit_prior(run, mesh, params, 7, request, options)
    assert table.startswith("optimus-tiny, test: prior by_label (gaussian), fitted to 2 draws of")
    read = priors.read(tmp_path, "by_label", priors.weights_digest(params))
    assert read.labels == ("many", "one") and read.about["step"] == 7
    vae = dataclasses.replace(
        evaluation.text_vae_of(run, params), open_prior=priors.Opener(tmp_path, params)
    )
    assert len(vae.sample(2, prior="by_label", label="one")) == 2
    with pytest.raises(InputError, match="'on' is unknown to prior 'by_label'; did you mean 'one'"):
        vae.sample(2, prior="by_label", label="on")
    # A label alone means the only prior that knows labels.
    assert vae.sample(2, label="one") == vae.sample(2, prior="by_label", label="one")
    with pytest.raises(InputError, match="this needs a fitted prior; name one"):
        dataclasses.replace(vae, open_prior=None).sample(2, label="one")
    texts = ["a man is sleeping", "two girls were dancing"]
    moved = vae.transfer(texts, "one", labels=["one", "many"])
    assert moved[0] == vae.reconstruct(texts)[0] and len(moved) == 2
    with pytest.raises(InputError, match="strength is nan; expected a finite number"):
        vae.transfer(texts, "one", strength=float("nan"))
    with pytest.raises(ConfigError, match="--prior.label=tense: expected .* kind of labels: label"):
        fit_prior(run, mesh, params, 7, dataclasses.replace(request, label="tense"), options)


@pytest.mark.slow
def test_the_table_by_label(optimus, tmp_path):
    run, mesh, params = optimus
    request = PriorRequest(kind="gaussian", name="by_label", samples=2, label="true")
    if "by_label" not in priors.labelled(run.workdir):
        fit_prior(run, mesh, params, 7, request, FITTED["gaussian"].options())
    fitted = priors.read(run.workdir, "by_label", priors.weights_digest(params))
    path = tmp_path / "references.tsv"
    path.write_text("many\tmany men are sleeping\ta man is sleeping\n")
    request = ControlRequest(references=str(path), strengths=(1.0,))
    table = control.control(run, mesh, params, 7, [fitted], request)
    assert table.startswith(
        "optimus-tiny, step 7: generation and transfer by label\n\ngeneration  "
    )
    assert "Transfer: 1 sentences with references, each to the next label" in table
    content = json.loads((run.workdir / "eval/control.json").read_text())
    rows, moved = content["generation"], content["transfer"]
    assert set(rows) == {"by_label", "own prior", "shuffled labels", "test sentences"}
    assert content["labels"] == ["many", "one"] and content["each"] == 2
    assert set(rows["by_label"]["by_label"]) == {"many", "one"}
    assert {"as they are", "reconstructed", "mean difference x1", "by_label x1"} <= set(moved)
    assert moved["as they are"]["source_bleu"] == pytest.approx(100)
    assert 0 < moved["as they are"]["reference_bleu"] < 100
    lines = (run.workdir / "samples/control.txt").read_text().splitlines()
    assert [line.split("\t")[:2] for line in lines[-4:]] == [
        ["by_label", label] for label in ("many", "many", "one", "one")
    ]
    plain = dataclasses.replace(fitted, labels=())
    with pytest.raises(ConfigError, match="prior 'by_label' was fitted without labels; fit one"):
        control.control(run, mesh, params, 7, [plain], ControlRequest())


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec, more",
    [
        ("della", (*stack("decoder"), "model.latent=3", "model.decoder.positions=128")),
        ("sri:transformer", (*stack("decoder"), "model.latent=3", "model.chain.steps=2")),
    ],
)
@pytest.mark.parametrize(
    "kind, options",
    [
        ("gmm", dict(components=2, starts=1)),
        ("diffusion", dict(width=8, heads=2, layers=1, updates=3, steps=3, trace="exact")),
    ],
)
def test_chains_and_layers(spec, more, kind, options, labelled, tmp_path):
    """Layer-wise latents get a joint density; those of a sampler are ends of its chains."""
    run, mesh, params = opened(spec, labelled, tmp_path, *more)
    request = PriorRequest(kind=kind, samples=2, sentences=40)
    built = FITTED[kind].options(**options)
    fit_prior(run, mesh, params, 0, request, built)
    rows = json.loads((tmp_path / f"eval/prior-{kind}.json").read_text())["metrics"]
    assert all(np.isfinite(rows[n][c]) for n in ("nll_2", "kl") for c in ("own", "fitted"))
    read = priors.read(tmp_path, kind, priors.weights_digest(params))
    assert read.shape == run.model.latent_shape and read.about["sentences"] == 40
    report = evaluation.evaluate(run, mesh, params, 0, fitted=read)
    assert np.isfinite(report.value("nll_gain"))


@pytest.mark.slow
def test_without_a_density_likelihoods_are_not_measured(optimus):
    run, mesh, params = optimus
    tmp_path = run.workdir
    options = FITTED["diffusion"].options(width=8, heads=2, layers=1, updates=2, steps=2)
    table = fit_prior(run, mesh, params, 0, PriorRequest(kind="diffusion", samples=1), options)
    assert "no density: name a trace estimator, such as --prior.trace=exact" in table
    read = priors.read(tmp_path, "diffusion", None)
    with pytest.raises(ConfigError, match="prior 'diffusion' has no density"):
        evaluation.evaluate(run, mesh, params, 0, fitted=read)


@pytest.mark.slow
def test_programs_of_an_evaluation_are_compiled_for_its_mesh(optimus, monkeypatch):
    """Kernels ask the mesh in force whether the partitioner shards their operands."""
    run, mesh, params = optimus
    inside, outside, seen = [], [], set()

    @contextlib.contextmanager
    def recorded(_):
        inside.append(None)
        yield
        inside.pop()

    def watched(name, function):
        def call(*args, **named):
            seen.add(name)
            outside.extend([] if inside else [name])
            return function(*args, **named)

        return call

    monkeypatch.setattr(meshes, "inside", recorded)
    programs = {"evaluate_likelihood", "collect_posteriors", "rec_gap", "_accuracy", "cost_ratio"}
    for name in programs:
        monkeypatch.setattr(evaluation, name, watched(name, getattr(evaluation, name)))
    metric = watched("metric", lambda _: [])
    monkeypatch.setattr(evaluation, "wanted", lambda _: ["a metric of the user"])
    monkeypatch.setattr(evaluation, "METRICS", {"a metric of the user": metric})
    evaluation.evaluate(run, mesh, params, 0)
    assert seen == programs | {"metric"} and not outside


def test_models_that_no_prior_can_be_fitted_to(labelled, tmp_path):
    run, mesh, params = opened("lm", labelled, tmp_path, *stack("decoder"))
    options = FITTED["gaussian"].options()
    with pytest.raises(ConfigError, match="lm-tiny is a language model"):
        prior_fit.fit_prior(run, mesh, params, 0, PriorRequest(kind="gaussian"), options)
