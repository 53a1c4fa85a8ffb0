"""What the demo answers, without its page."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from jvae.data import tokenizers
from jvae.demo import html, log_probs, moves, slide
from jvae.demo.neighbors import neighbors
from jvae.demo.points import Point, point, points
from jvae.demo.samples import sample
from jvae.demo.unknown import unknown
from jvae.errors import InputError
from jvae.report.palette import COLORS, OTHER
from tests.tools.letters import TEXTS

EVIL = '<script>alert("x")</script>'


def test_unknown_words_are_named(demo):
    words = tokenizers.train_word_level(["a man sits", "two girls sit"])
    known = dataclasses.replace(demo, vae=SimpleNamespace(decoder=words))
    assert unknown(known, "two zebra sit", "a quantum zebra") == ["zebra", "quantum"]
    assert unknown(known, "a man", "") == []
    bpe = tokenizers.train_bpe(["a man sits"], 270)
    assert unknown(dataclasses.replace(demo, vae=SimpleNamespace(decoder=bpe)), "zebra") == []


def test_a_slide_has_its_ends_and_a_sentence_at_every_share(demo):
    sentences = slide.slide(demo, "a", "aabb", 3)
    assert sentences == ["a", "aab", "aabb"]
    assert [slide.index(sentences, share) for share in (0, 0.2, 0.3, 0.76, 1)] == [0, 0, 1, 2, 2]


def test_samples_pass_on_their_settings(demo):
    assert sample(demo, 2, 5, temperature=0.7, top_p=0.9, prior="flow", label="x") == ["aabb"] * 2
    asked = dict(seed=5, prior="flow", label="x", method="sample", temperature=0.7, top_p=0.9)
    assert demo.vae.settings == asked


def test_an_attribute_vector_leads_from_one_label_to_another(demo):
    # The means of yes and no are (1, 10/3) and (4/3, 1/3).
    assert moves.attribute(demo, "aa", "long", "no", "yes", (0, 1)) == ["aa", "aabbb"]
    others = moves.attribute(demo, "aa", "long", moves.OTHERS, "yes", (0, 1))
    assert others == ["aa", "aabbb"]
    with pytest.raises(InputError, match="starts and ends at .yes."):
        moves.attribute(demo, "aa", "long", "yes", "yes")


def test_a_dimension_moves_by_standard_deviations(demo):
    spread = np.std([t.count("b") for t in TEXTS])
    assert demo.spread_d[1] == pytest.approx(spread)
    assert moves.dimension(demo, "ab", 1, (0, 2)) == ["ab", "a" + "b" * round(1 + 2 * spread)]
    assert moves.active_dims(demo) == [1, 0]


def test_neighbors_are_examples(demo):
    rows = neighbors(demo, "aabbb", 2, "euclidean")
    assert [(row.text, row.place, row.distance) for row in rows] == [
        ("aabbb", 4, 0.0),
        ("abbb", 3, 1.0),
    ]


def test_points_are_coloured_by_label_and_decode(demo):
    plane = points(demo, "long")
    assert plane.plane_e2.shape == (6, 2) and plane.share == pytest.approx(1)
    assert plane.legend == {"no": COLORS[0], "yes": COLORS[1]}
    assert plane.colors == [COLORS[0]] * 3 + [COLORS[1]] * 3
    assert points(demo, None).colors == [OTHER] * 6 and not points(demo, None).legend
    assert point(demo, 3) == Point("abbb", "abbb", {"first": "a", "long": "yes"})


def test_tokens_are_scored_with_their_own_latent_and_another(demo):
    posterior, prior = log_probs.token_log_probs(demo, "ab")
    assert posterior.tokens == ["a", "b", "␣"] and posterior.nats == [-2.0] * 3
    assert prior.nats == [-4.0] * 3 and "prior" in prior.condition


def test_text_is_escaped(demo):
    plane = points(demo, "long")
    parts = (
        html.sentence(EVIL),
        html.strip([EVIL, ""], ["x", EVIL]),
        html.listing([EVIL]),
        html.tokens([log_probs.Scored(EVIL, [EVIL], [-1.0])]),
        html.scatter(plane._replace(legend={EVIL: OTHER}), [EVIL] * 6),
        html.point(Point(EVIL, EVIL, {EVIL: EVIL})),
    )
    for part in parts:
        assert "<script" not in part and "&lt;script" in part


def test_a_strip_marks_new_words_and_the_place(demo):
    page = html.strip(["0", "1"], ["a b", "a c"], at=1)
    assert "a <b>c</b>" in page and "<b>b" not in page
    assert page.count("jv-at") == 1 and page.index("jv-at") < page.index("a <b>")


def test_every_point_of_the_map_names_its_sentence(demo):
    page = html.scatter(points(demo, "first"), TEXTS)
    assert sorted(page.split('data-place="')[i][0] for i in range(1, 7)) == list("012345")
    assert page.count("<circle") == 6 and "<title>aabbb</title>" in page


def test_colour_grows_with_surprise():
    def strength(nats):
        return float(html.tokens([log_probs.Scored("", ["x"], [nats])]).split(",0,")[1][:4])

    assert 0 == strength(0.0) < strength(-1.0) < strength(-5.0) < strength(-6.0) == strength(-60.0)
