from types import SimpleNamespace

from jvae import config as configs
from jvae.evals import evaluation
from jvae.evals.settings import EvalConfig
from jvae.runs import workdir


def test_presets_are_those_of_the_protocol():
    quick, full = EvalConfig().sizes(1_000), EvalConfig("full").sizes(10_000)
    assert (quick.samples, quick.sentences) == (100, 500)
    assert (full.samples, full.sentences, full.generate) == (500, None, 10_000)
    assert (full.spot_samples, full.spot_sentences) == (5_000, 200)
    assert full.interpolations == 200 and EvalConfig().interpolation_steps == 11
    assert EvalConfig("full").sizes(9_999).generate == 5_000
    comparison = EvalConfig("comparison")
    assert comparison.label == "comparison"
    assert comparison.sizes(500)[:4] == (100, 250, 500, 10) and not comparison.sizes(500).slerp


def test_what_is_set_on_top_is_said():
    cfg = EvalConfig("full", samples=50, sentences=7)
    assert cfg.label == "full, samples=50, sentences=7"
    sizes = cfg.sizes(1_000)
    assert (sizes.samples, sizes.sentences, sizes.generate) == (50, 7, 5_000)
    assert sizes.spot_samples == 0
    assert EvalConfig("full", seed=3, chunk=4).label == "full"


def test_the_preset_of_a_run_is_that_of_its_training(tmp_path):
    plain = configs.load("lm")
    named = configs.apply_overrides(plain, ["evals.preset=comparison"])
    run = SimpleNamespace(config=plain, workdir=tmp_path)
    assert evaluation._own_preset(run) == "quick"
    workdir.claim(tmp_path, named)
    assert evaluation._own_preset(run) == "comparison"
