"""Every prior and posterior of the package, and latents of several vectors, from shipped configs by
flags alone: train, measure, sample, edit, fit a prior, export, load, resume.
"""

import json

import numpy as np
import pytest

import jvae
from jvae.cli.main import main
from jvae.latent.densities import POSTERIORS
from jvae.latent.priors import PRIORS

pytestmark = pytest.mark.slow

ENDS = ("--text=a man is sleeping", "--text=two girls were dancing")
CASES = {
    "gmm": ("prior.kind=gmm", "prior.components=3", "vectors=2", "pool=queries"),
    "flow": ("prior.kind=flow", "prior.width=8", "tokens=1", "vectors=3", "pool=queries"),
    "vamp": ("prior.kind=vamp", "prior.components=3", "prior.length=5"),
    "vmf": ("posterior.kind=vmf", "posterior.kappa=20", "prior.kind=uniform_sphere"),
    "bn": ("posterior.kind=bn", "posterior.min_kl=2"),
}


def test_every_member_has_a_case():
    chosen = {
        word.partition("=")[2] for case in CASES.values() for word in case if ".kind=" in word
    }
    names = {name for registry in (PRIORS, POSTERIORS) for name in registry}
    assert names >= chosen
    package = {
        name
        for registry in (PRIORS, POSTERIORS)
        for name, kind in registry.items()
        if kind.build.__module__.startswith("jvae.")
    }
    assert package - chosen <= {"standard_normal", "gaussian"}


@pytest.fixture(scope="module", params=CASES)
def run(request, command, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "run"
    flags = (f"--config.model.{word}" for word in CASES[request.param])
    assert main(command(folder, *flags)) == 0
    return request.param, folder


@pytest.fixture
def call(run, capsys):
    def of(*words, code=0):
        assert main([f"--workdir={run[1]}", *words]) == code
        out, err = capsys.readouterr()
        return err if code else out

    return of


def test_it_is_measured(run, call):
    name, folder = run
    report = json.loads((folder / "eval/test.json").read_text())
    values = {name: row["value"] for name, row in report["metrics"].items()}
    assert values["nll_3"] <= values["neg_elbo"] + 1e-3 and np.isfinite(values["mi"])
    dimensions = report["details"]["latent"]["kl_profile_nats"]
    assert (dimensions is not None) == (name == "bn")
    call("--mode=nll", *ENDS)


def test_text_tools_work(run, call, tmp_path):
    name, folder = run
    assert call("--mode=sample", "--n=4").count("\n") == 4
    assert call("--mode=interpolate", "--steps=3", *ENDS).count("\n") == 3
    analogy = call("--mode=analogy", *ENDS, "--text=a dog is running")
    assert analogy.count("\n") == 1
    shape = jvae.load(folder).model.latent_shape
    assert call("--mode=traverse", "--dims=0", ENDS[0])
    assert call("--mode=reconstruct", *ENDS).count("\n") == 2
    jvae.export(folder, tmp_path / "out")
    vae, again = jvae.load(folder), jvae.load(tmp_path / "out")
    texts = [word.removeprefix("--text=") for word in ENDS]
    z_egz = vae.encode(texts)
    assert z_egz.shape == (2, *shape)
    np.testing.assert_array_equal(z_egz, again.encode(texts))
    np.testing.assert_array_equal(vae.sample_prior(3), again.sample_prior(3))
    if name == "vmf":
        np.testing.assert_allclose(np.linalg.norm(z_egz, axis=2), 1.0, rtol=1e-5)


def test_priors_are_fitted_to_it_unless_it_lies_on_a_sphere(run, call):
    name, _ = run
    words = ("--mode=prior", "--prior.kind=diffusion", "--prior.updates=5", "--prior.width=16")
    if name == "vmf":
        assert "length 1" in call(*words, code=2)
        return
    call(*words)
    assert call("--mode=sample", "--n=2", "--prior=diffusion").count("\n") == 2


def test_the_same_command_resumes(run, command):
    name, folder = run
    flags = [f"--config.model.{word}" for word in CASES[name]]
    assert main(command(folder, *flags, "--config.train.steps=16")) == 0
