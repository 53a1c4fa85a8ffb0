"""Priors fitted from the command line: fit, sample, interpolate, measure, export; encoded draws."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jvae
from jvae.cli.main import main
from jvae.errors import WeightsError
from jvae.fitted import FITTED, fit
from jvae.runs import priors

ENDS = ("--text=a man is sleeping", "--text=two girls were dancing")


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory) -> Path:
    """A finished run with a fitted prior, in a folder of its own."""
    folder = tmp_path_factory.mktemp("priors") / "mine"
    shutil.copytree(finished, folder)
    assert main([f"--workdir={folder}", "--mode=prior", "--prior.kind=gaussian"]) == 0
    return folder


@pytest.fixture
def call(run, capsys):
    """Runs a mode on the run: words -> standard output, or the one error."""

    def of(*words, code=0):
        assert main([f"--workdir={run}", *words]) == code
        out, err = capsys.readouterr()
        assert not code or (err.count("error: ") == 1 and "Traceback" not in err)
        return err if code else out

    return of


def test_a_fit_leaves_files_and_a_table(run):
    names = sorted(path.name for path in (run / "priors").iterdir())
    assert names[1] == "gaussian.json" and names[0].startswith("gaussian-")
    content = json.loads((run / "priors/gaussian.json").read_text())
    assert content["tensors"] == names[0] and content["shape"] == [1, 4]
    assert content["about"] == {
        "label": "",
        "run": "optimus-tiny",
        "samples": 4,
        "seed": 0,
        "sentences": 361,
        "step": content["about"]["step"],
    }
    rows = json.loads((run / "eval/prior-gaussian.json").read_text())["metrics"]
    assert {"nll_3", "neg_elbo", "kl", "marginal_gap", "self_bleu", "memorised"} <= set(rows)
    for name in ("kl", "marginal_gap", "neg_elbo"):
        assert rows[name]["fitted"] != rows[name]["own"] and rows[name]["ceiling"] is None
    # One posterior: the KL to the fitted prior falls by what the marginal gap falls by.
    falls = [rows[name]["own"] - rows[name]["fitted"] for name in ("kl", "marginal_gap")]
    assert falls[0] == pytest.approx(falls[1], abs=1e-4)
    assert "training posteriors" in (run / "eval/prior-gaussian.txt").read_text()


@pytest.mark.slow
def test_sampling_and_interpolation_under_a_prior(run, call):
    unconditional = call("--mode=sample", "--n=5")
    assert unconditional.count("\n") == 5
    under = call("--mode=sample", "--n=5", "--prior=gaussian")
    assert under.count("\n") == 5
    assert call("--mode=sample", "--n=5", "--prior.name=gaussian") == under
    vae = jvae.load(run)
    z_egz = vae.sample_prior(5, prior="gaussian")
    fitted = vae.open_prior("gaussian")
    np.testing.assert_array_equal(vae.with_prior(fitted).sample_prior(5), z_egz)
    assert not np.array_equal(vae.sample_prior(5), z_egz)
    assert vae.sample(5, prior="gaussian", method="greedy") == vae.decode(z_egz)
    texts = ["a man is sleeping", "two girls were dancing"]
    assert not np.array_equal(vae.with_prior("gaussian").nll(texts, k=2), vae.nll(texts, k=2))
    way = call("--mode=interpolate", "--steps=3", "--prior=gaussian", "--how=slerp", *ENDS)
    ends = vae.reconstruct(texts)
    assert way.split("\n")[:3:2] == ends


@pytest.mark.slow
def test_evaluation_under_a_prior(run, call):
    before = (run / "eval/test.json").read_text()
    table = call("--mode=eval", "--prior=gaussian")
    assert "prior gaussian" in table.split("\n")[1]
    assert (run / "eval/test.json").read_text() == before
    report = json.loads((run / "eval/test.prior-gaussian.json").read_text())
    values = {name: metric["value"] for name, metric in report["metrics"].items()}
    gain = values["nll_own_prior"] - values["nll_3"]
    assert values["nll_gain"] == pytest.approx(gain, abs=1e-4)
    metrics = {n: m["value"] for n, m in json.loads(before)["metrics"].items()}
    assert values["nll_own_prior"] == pytest.approx(metrics["nll_3"], abs=1e-3)
    assert values["rec"] == pytest.approx(metrics["rec"], abs=1e-3)  # draws of the same posteriors
    assert values["mi"] == pytest.approx(metrics["mi"], abs=1e-3)
    assert report["details"]["prior"]["kind"] == "gaussian"
    assert {"nll_gain", "nll_own_prior", "kl_own_prior"} <= report["definitions"].keys()


@pytest.mark.slow
def test_sentences_with_another_label(run, call):
    vae = jvae.load(run)
    texts = ["a man is sleeping", "two girls were dancing"]
    mean_egz, rng = vae.encode(texts), np.random.default_rng(0)
    z_egz = np.tile(mean_egz, (40, 1, 1)) + 0.1 * rng.normal(size=(80, *mean_egz.shape[1:]))
    options = FITTED["gaussian"].options()
    labels = ("one", "two")
    how = dict(labels=labels, name="counted")
    fitted = fit("gaussian", options, z_egz, jax.random.key(0), np.arange(80) % 2, **how)
    fitted = dataclasses.replace(fitted, about={"label": "label", "step": 1})
    path = priors.write(run, fitted, priors.weights_digest(vae.params))
    try:
        transferred = jvae.load(run).transfer(texts, "two", strength=2.0)
        assert (
            call("--mode=transfer", "--label=two", "--strength=2", *ENDS).splitlines()
            == transferred
        )
        assert transferred[1] == vae.reconstruct(texts)[1]
        assert call("--mode=sample", "--n=2", "--label=two") == call(
            "--mode=sample", "--n=2", "--prior=counted", "--label=two"
        )
        error = call("--mode=transfer", "--label=tow", *ENDS, code=2)
        assert "label 'tow' is unknown to prior 'counted'; did you mean 'two'?" in error
    finally:
        path.unlink()


def test_an_export_takes_its_priors_along(run, tmp_path, caplog):
    stale = run / "priors/stale.json"
    content = json.loads((run / "priors/gaussian.json").read_text())
    stale.write_text(json.dumps(content | {"weights": "0" * 64}))
    jvae.export(run, tmp_path / "model")
    stale.unlink()
    assert "left out of the export" in caplog.text
    names = {path.name for path in (tmp_path / "model/priors").iterdir()}
    assert {"gaussian.json", content["tensors"]} <= names and "stale.json" not in names
    exported, original = jvae.load(tmp_path / "model"), jvae.load(run)
    np.testing.assert_array_equal(
        exported.sample_prior(3, prior="gaussian"), original.sample_prior(3, prior="gaussian")
    )
    (tmp_path / "model/priors" / content["tensors"]).write_bytes(b"")
    with pytest.raises(WeightsError, match="is not as it was exported"):
        jvae.load(tmp_path / "model")


def test_priors_of_other_weights_and_damaged_ones(run, call):
    path, content = run / "priors/gaussian.json", (run / "priors/gaussian.json").read_text()
    try:
        path.write_text(json.dumps(json.loads(content) | {"weights": "0" * 64}))
        error = call("--mode=sample", "--prior=gaussian", code=2)
        assert "was fitted to other weights (step" in error and "--prior.name=gaussian" in error
        assert "was fitted to other weights" in call("--mode=eval", "--prior=gaussian", code=2)
        path.write_text(json.dumps(json.loads(content) | {"sha256": "0" * 64}))
        assert "has changed since it was written" in call(
            "--mode=sample", "--prior=gaussian", code=2
        )
        path.write_text('{"format": 1}')
        assert "is damaged (KeyError" in call("--mode=sample", "--prior=gaussian", code=2)
    finally:
        path.write_text(content)


UNDER = ("--mode=sample", "--prior=gaussian")
FIT = ("--mode=prior",)


@pytest.mark.parametrize(
    "mode, more, message",
    [
        (["--mode=sample", "--prior=gausian"], "", "'gausian'; did you mean 'gaussian'? Priors: "),
        (UNDER, "--label=a", "was fitted without labels"),
        (["--mode=sample"], "--label=a", "a label needs a prior that was fitted with labels"),
        (["--mode=sample"], "--prior.steps=3", "--prior.KEY needs a fitted prior: add --prior=N"),
        (["--mode=decode"], "--label=a", "--label=a has no effect in --mode=decode; it applies to"),
        (["--mode=transfer"], "--text=a", "transfer to which label? Add --label=LABEL"),
        (["--mode=transfer"], "--text=a --label=a", "and there is none; fit one with --mode=prior"),
        (["--mode=control"], "", "and there is none; fit one with --mode=prior"),
        (["--mode=control", "--prior=gaussian"], "", "'gaussian' was fitted without labels; fit"),
        (["--mode=control"], "--control.strength=2", "no such option; did you mean 'strengths'"),
        (["--mode=control"], "--label=a", "--mode=control measures all labels; leave --label out"),
        (["--mode=eval"], "--control.strengths=2", "--control.KEY applies only to --mode=control"),
        (UNDER, "--prior.steps=3", "--prior.steps: no such option"),
        (UNDER, "--prior.ridge=1", "no option of that name that can change after the fit"),
        (["--mode=reconstruct", "--prior=gaussian"], "--text=a", "has no effect in --mode=recon"),
        (FIT, "", "what to fit? Add --prior.kind=ctrl_gen|diffusion|flow|gan|gaussian|gmm"),
        (FIT, "--prior.kind=gm", "--prior.kind is 'gm'; did you mean 'gmm'"),
        (FIT, "--prior.kind=gm --config.evals.samples=2", "did you mean 'gmm'"),
        (FIT, "--prior.kind=gmm --prior.covariance=x", "expected one of full, diagonal"),
        (FIT, "--prior.kind=flow --prior.layers=x", "--prior.layers=x: expected an integer"),
        (FIT, "--prior.kind=flow --prior.steps=0", "an integer from 1"),
        (FIT, "--prior.kind=flow --prior.layer=3", "no such option; did you mean 'layers'"),
        (FIT, "--prior.kind=gmm --prior.name=../x", "expected letters, digits"),
        (FIT, "--prior.kind=gmm --prior.label", "the train split has no labels"),
        (["--mode=encode"], "--split=train", "--split needs --samples=K"),
        (["--mode=encode", "--samples=2"], "--text=a --format=safetensors", "add --out=FILE"),
    ],
)
def test_mistakes_get_one_message(call, run, mode, more, message):
    before = sorted(run.rglob("*"))
    assert message in call(*mode, *more.split(), code=2)
    assert sorted(run.rglob("*")) == before


@pytest.mark.slow
def test_encoded_draws_and_their_statistics(run, call, tmp_path):
    draws = ("--mode=encode", "--samples=3")
    assert call(*draws, *ENDS, f"--out={tmp_path}/z.npz") == ""
    with np.load(tmp_path / "z.npz") as arrays:
        z_nkgz, text = arrays["z"], arrays["text"].tolist()
        assert z_nkgz.shape == (2, 3, 1, 4) and text == [e.removeprefix("--text=") for e in ENDS]
        flat_nd = z_nkgz.reshape(6, 4).astype(np.float64)
        np.testing.assert_allclose(arrays["mean"][0], flat_nd.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(arrays["scale"][0], flat_nd.std(axis=0), rtol=1e-4)
        covariance_dd = np.cov(flat_nd.T, bias=True)
        np.testing.assert_allclose(arrays["covariance"], covariance_dd, atol=1e-5)
        variance_d = np.linalg.eigvalsh(covariance_dd)[::-1]
        np.testing.assert_allclose(arrays["pca_share"], variance_d / variance_d.sum(), atol=1e-5)
    assert len(np.unique(z_nkgz[0, :, 0, 0])) == 3
    call(*draws, "--split=train", f"--out={tmp_path}/z.safetensors")
    tensors = load_file(tmp_path / "z.safetensors")
    assert set(tensors) == {"z", "mean", "scale", "covariance", "pca_share"}
    assert tensors["z"].shape == (361, 3, 1, 4)
