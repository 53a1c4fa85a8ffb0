import re

import pytest

from jvae.evals import advice


def advice_of(values=None, bounds=(30.0, 20.0, 20.0), **facts):
    log = [{"step": i, "valid/neg_elbo": bound} for i, bound in enumerate(bounds)]
    plain = dict(texts=10_000, dropped=0, pretrained=False, ended_early=False, free_bits=True)
    sound = {"collapsed": False, "exact_match": 60.0}
    return advice.find(sound | (values or {}), log, **(plain | facts))


def test_a_sound_model_gets_none():
    assert advice_of() == []
    facts = dict(texts=10, dropped=0, pretrained=False, ended_early=False, free_bits=False)
    assert advice.find({}, [], **facts) == []


@pytest.mark.parametrize(
    "what, message",
    [
        (dict(values={"collapsed": True}), "The latent is not used. Try a longer time without KL"),
        (
            dict(bounds=(30.0, 20.0, 19.0)),
            r"still fell by 5.0 % up to the last check: .*steps",
        ),
        (
            dict(values={"exact_match": 3.0}),
            "3.0 % of the texts are reconstructed .* weight of the KL",
        ),
        (dict(values={"exact_match": 3.0}, texts=900), "900 texts are too few .*optimus:smollm2"),
        (
            dict(values={"exact_match": 3.0}, texts=900, pretrained=True),
            "3.0 % of the texts .* larger latent",
        ),
        (dict(dropped=200), "200 of 10,200 lines were left out"),
    ],
)
def test_each_fault_has_one_line(what, message):
    (line,) = advice_of(**what)
    assert re.search(message, line), line


def test_free_bits_are_recommended_only_where_the_kl_has_dimensions():
    (line,) = advice_of({"collapsed": True}, free_bits=False)
    assert "free bits" not in line and "objective.beta.stop=0.5), or noise.word_dropout" in line
    (line,) = advice_of({"collapsed": True})
    assert "free bits (objective.free_bits=dim_masked" in line


def test_what_is_no_fault():
    assert advice_of(bounds=(30.0, 20.0, 19.0), ended_early=True) == []
    assert advice_of(bounds=(30.0, 20.0, 19.9)) == []
    assert advice_of({"exact_match": 3.0, "exact_match_reachable": 40.0}) == []
    assert advice_of(dropped=50) == []
