"""Attribute arithmetic on latents that can be read off: counts of a letter."""

import numpy as np
import pytest

from jvae.errors import DataError
from jvae.evals import attribute

TEXTS = ["x x x x", "x x x x x", "y y y y", "y y y y y", "x x x x"] * 8
LABELS = np.array([text[0] for text in TEXTS])
LATENT = np.array([[[text.count("x"), text.count("y")]] for text in TEXTS], np.float32)


def decode(z_egz, place_e):
    assert place_e.tolist() == list(range(len(z_egz)))
    return [" ".join("x" * round(x) + "y" * round(y)) for ((x, y),) in np.maximum(z_egz, 0)]


def test_an_exact_latent_flips_every_sentence():
    values = attribute.two_values(LABELS)
    assert values == ("x", "y")
    vector_gz = attribute.vector(LATENT, LABELS, values)
    np.testing.assert_allclose(vector_gz, [[-13 / 3, 4.5]], rtol=1e-6)
    judge = attribute.word_classifier(TEXTS, LABELS)
    assert (judge(TEXTS) == LABELS).all()
    arguments = (decode, judge, TEXTS, LABELS, LATENT)
    moved = attribute.edit(*arguments, 2 * vector_gz, values, 1.0)
    assert moved.flipped == 100 and moved.toward == (100, 100) and moved.bleu == 0
    assert moved.texts[:3] == ["y y y y y y y y y"] * 2 + ["x x x x x x x x x"]
    assert attribute.edit(*arguments, vector_gz, values, 2.0) == moved
    still = attribute.edit(*arguments, vector_gz, values, 0.0)
    assert still.flipped == 0 and still.texts == TEXTS and still.bleu == pytest.approx(100)


def test_both_ways_count_the_same_however_many_there_are():
    judge = lambda texts: np.array(["y"] * len(texts))  # noqa: E731
    zero = np.zeros((1, 2))
    edit = attribute.edit(decode, judge, TEXTS, LABELS, LATENT, zero, ("x", "y"), 1.0)
    assert edit.toward == (0, 100) and edit.flipped == 50  # 16 were y, 24 were x


def test_the_two_most_frequent_values():
    labels = np.array(["c", "a", "b", "b", "c", "c"])
    assert attribute.two_values(labels) == ("b", "c")
    with pytest.raises(DataError, match="all labels are the same"):
        attribute.two_values(np.array(["a", "a"]))
