import pytest

from jvae.errors import ConfigError
from jvae.evals.settings import EvalConfig


def test_presets_are_those_of_the_protocol():
    quick, headline = EvalConfig().sizes(1_000), EvalConfig("headline").sizes(10_000)
    assert (quick.samples, quick.sentences) == (100, 500)
    assert (headline.samples, headline.sentences, headline.generate) == (500, None, 10_000)
    assert (headline.spot_samples, headline.spot_sentences) == (5_000, 200)
    assert headline.interpolations == 200 and EvalConfig().interpolation_steps == 11
    assert EvalConfig("headline").sizes(9_999).generate == 5_000
    comparison = EvalConfig("comparison")
    assert comparison.label == "comparison"
    assert comparison.sizes(500)[:4] == (100, 250, 500, 10) and not comparison.sizes(500).slerp


def test_what_is_set_on_top_is_said():
    cfg = EvalConfig("headline", samples=50, sentences=7)
    assert cfg.label == "headline, samples=50, sentences=7"
    sizes = cfg.sizes(1_000)
    assert (sizes.samples, sizes.sentences, sizes.generate) == (50, 7, 5_000)
    assert sizes.spot_samples == 0
    assert EvalConfig("headline", seed=3, chunk=4).label == "headline"


@pytest.mark.parametrize(
    "wrong, message",
    [
        (
            dict(preset="headlines"),
            "'headlines'; expected one of quick, comparison, headline",
        ),
        (dict(samples=-1), "evals.samples is -1"),
        (dict(few_labels=()), "evals.few_labels is \\(\\)"),
        (dict(few_labels=(100, 1)), "expected numbers of labels, 2 at least"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        EvalConfig(**wrong)
