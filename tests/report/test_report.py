"""Pictures and page of a run, from made-up values: what is drawn, and that text stays text."""

import io
import json
import re
from html import escape
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from jvae.evals.definitions import define
from jvae.report import figures, look, maps, page
from jvae.report.gather import OFFSETS, Content, Factor, Latents, Traversal, read_report

EVIL = '<script>alert("x")</script> & $\\a_b$ 🙂'
rng = np.random.default_rng(0)


def content(groups=1, **changes) -> Content:
    names = ["red", "green", EVIL]
    latents = Latents(
        mean_egz=rng.normal(size=(30, groups, 4)).astype(np.float32),
        kl_gz=rng.random((groups, 4)),
        groups="layer",
        labels={"colour": [names[i % 3] for i in range(30)]},
        words=list(range(30)),
        factors=[Factor("colour", 3, 0.1, 0.9, 2, 0.5)],
        disentangled=None,
        interpolations=[["a b", "a c", EVIL]],
        traversed=EVIL,
        traversals=[Traversal(1, 0.5, ["a b"] * len(OFFSETS))],
    )
    metrics = {
        name: dict(value=value, se=None, baseline=None, unit="nats", note=EVIL)
        for name, value in dict(nll_1=9.0, nll_10=8.5, neg_elbo=9.2, exact=8.0, mi=None).items()
    }
    log = [{"step": s, "train/loss": 100 / s, "train/kl": 1.0, "train/beta": s} for s in (1, 2, 3)]
    whole = Content(
        name=EVIL,
        config={"model.family": "optimus", "name": EVIL},
        log=[*log, {"step": 3, "valid/loss": 40.0, "valid/kl": None}],
        phases=[("first", 0), ("second", 2)],
        evaluation=dict(title="t", metrics=metrics, card={"data": [{"name": EVIL}]}, notes=[EVIL]),
        probes=dict(metrics={"mig": dict(value=0.5, se=None, baseline=0.1, unit="", note=EVIL)}),
        samples={"prior": [EVIL], "reconstructions": [EVIL, "a", "", "b", "b"]},
        latents=latents,
        notes=[EVIL],
    )
    return whole._replace(**changes)


class Reader(HTMLParser):
    """Tags that are open, every tag's name, and addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(maps, "tsne", lambda z_ed: maps.pca(z_ed)[0])
    monkeypatch.setattr(look, "DPI", 40)


def test_the_page_is_whole_and_escapes_what_it_shows():
    data = content()
    html = page.render(data, figures.draw(data))
    reader = Reader()
    reader.feed(html)
    assert reader.open == [] and "script" not in reader.seen
    assert all(link.startswith(("#", "data:image/")) for link in reader.links)
    text = "".join(reader.text)
    # title, heading, two notes, four metrics' notes, reconstruction, sample, strip, card, config...
    assert text.count(EVIL) >= 12
    sections = {link for link in reader.links if link.startswith("#")}
    assert {"#metrics", "#probes", "#training", "#maps", "#interpolations", "#card"} <= sections
    assert "http" not in html.replace("http://www.w3.org", "")


def test_numbers_stand_beside_what_limits_them():
    metrics = {
        "ppl_w": dict(value=None, note="withheld: 12.0 % unknown tokens"),
        "ppl_t": dict(value=6.99, shown="6.99 (<unk>)", note="12.0 % unknown tokens"),
        "unknown_tokens": dict(value=12.0, note=""),
        "mi": dict(value=4.5, shown="≥ 4.50 (saturated)", note=""),
        "exact_match": dict(value=25.0, note="at most 25.0, the tokenizer's ceiling"),
        "exact_match_ceiling": dict(value=25.0, note=""),
        "self_bleu": dict(value=50.0, note=""),
        "made_up": dict(value=1.0, note=""),
    }
    metrics = {name: dict(se=None, baseline=None, unit="") | row for name, row in metrics.items()}
    columns = dict(words_from=[0, 6], words_to=[5, 9], sentences=[3, 1])
    columns |= {
        f"{name}_by_length": [75.5, None] for name in ("exact_match", "rec_per_token", "kl")
    }
    report = dict(metrics=metrics, definitions={"made_up": EVIL}, details={"by_length": columns})
    html = page.render(content(evaluation=report, latents=None), {})
    reader = Reader()
    reader.feed(html)
    assert reader.open == [] and "script" not in reader.seen
    top = html[: html.index("<nav>")]
    assert "ppl_w<b>-</b>" in top and "withheld: 12.0 % unknown tokens" in top
    assert "unknown_tokens<b>12.00</b>" in top and "exact_match_ceiling<b>25.00</b>" in top
    assert "≥ 4.50 (saturated)" in top and "6.99 (&lt;unk&gt;)" in html
    assert f'title="{escape(define("self_bleu"))}"' in html and f'title="{escape(EVIL)}"' in html
    assert "6 to 9" in html and "75.50" in html and 'href="#length"' in html


def test_metrics_stand_in_groups_in_the_order_of_their_definitions():
    names = ("self_bleu", "nll_100", "nll_10", "made_up", "kl", "exact_match", "rec")
    metrics = {name: dict(value=1.0, se=None, baseline=None, unit="", note="") for name in names}
    for evaluation, k in (
        (dict(metrics=metrics), 100),
        (dict(metrics=metrics, card=dict(k=10)), 10),
    ):
        html = page.render(content(evaluation=evaluation, latents=None), {})
        assert f"nll_{k}<b>" in html[: html.index("<nav>")]
    html = page.render(content(evaluation=dict(metrics=metrics), latents=None), {})
    order = ["Likelihood", "rec", "nll_10", "nll_100", "Use of the latent", "kl"]
    order += ["Reconstruction", "exact_match", "Samples", "self_bleu", "Others", "made_up"]
    at = [html.index(f">{metric}<", html.index('id="metrics"')) for metric in order]
    assert at == sorted(at)
    assert html.count(escape(define("self_bleu"))) == 2  # on hover, and to be unfolded


def test_a_report_is_read_with_the_older_name_of_its_baselines(tmp_path):
    row = dict(value=2.0, se=None, unit="nats", note="")
    report = dict(card=dict(controls={"latent": "untrained model"}), notes=[], details={})
    path = tmp_path / "test.json"
    path.write_text(json.dumps(report | dict(metrics={"kl": row | {"control": 0.5}})))
    notes: list[str] = []
    actual = read_report(path, notes)
    assert actual is not None and not notes
    assert actual["metrics"] == {"kl": row | {"baseline": 0.5}}
    assert actual["card"] == {"baselines": {"latent": "untrained model"}}


def test_the_page_names_the_run_its_step_and_fits_dark_and_narrow_screens():
    log = [{"step": 700, "train/loss": 1.0}]
    warmth = {"greedy": ["a"], "T = 1": [EVIL]}
    html = page.render(content(name="mine", log=log, step=500, warmth=warmth, latents=None), {})
    assert "<h1>mine</h1>" in html and "trained 700 steps" in html
    assert "figures and texts of step 500, the best" in html
    assert "prefers-color-scheme: dark" in html and "max-width: 40rem" in html
    assert "T = 1</th>" in html and "several temperatures" in html
    assert not re.search(r"#[0-9a-f]{3,6}", html[html.index("body {") : html.index("</style>")])


def test_steep_curves_are_drawn_whole(monkeypatch):
    drawn = []
    monkeypatch.setattr(look, "picture", lambda fig, text: drawn.append(fig))
    log = [{"step": s, "train/kl": 500.0 if s < 3 else 10.0 + s / 100} for s in range(1, 41)]
    figures.training(log, [])
    (ax, *_) = drawn[0].axes
    low, high = ax.get_ylim()
    assert low < 10 and high > 500 and ax.get_yscale() == "log"


@pytest.mark.slow
def test_every_picture_is_an_image_in_both_formats():
    drawn = figures.draw(content())
    assert set(drawn) == {"training", "nll", "kl", "map", "interpolations", "traversals"}
    for picture in drawn.values():
        assert picture.png.startswith(b"\x89PNG") and picture.text
        assert ElementTree.parse(io.BytesIO(picture.svg)).getroot().tag.endswith("svg")
    assert figures.draw(content(groups=3)).keys() == drawn.keys()


def test_equal_values_are_equal_files():
    with look.look():
        kl_gz = np.random.default_rng(1).random((2, 4))
        first, second = figures.kl_profile(kl_gz), figures.kl_profile(kl_gz)
    assert first == second
    assert matplotlib.rcParams["axes.titleweight"] == "normal"  # the user's settings are kept


def test_what_a_run_lacks_is_left_out():
    bare = content(latents=None, evaluation=None, probes=None, log=[], samples={}, phases=[])
    assert figures.draw(bare) == {}
    html = page.render(bare, {})
    assert 'id="config"' in html and 'id="metrics"' not in html and "<figure>" not in html
    assert figures.nll_curve({"nll_1": 2.0}) is None
    # A spot check with more draws on fewer sentences is not a point of the curve.
    assert figures.nll_curve({"nll_1": 2.0, "nll_5000": 1.0}, k=1) is None
    few = content().latents
    assert few is not None and maps.latent_map(few._replace(mean_egz=few.mean_egz[:5])) is None
    alone = few._replace(labels={}, factors=[])
    with look.look():
        assert "number of words" in maps.latent_map(alone).text


def test_curves_have_the_points_of_the_log(monkeypatch):
    drawn = []
    monkeypatch.setattr(look, "picture", lambda fig, text: drawn.append(fig))
    data = content()
    figures.training(data.log, data.phases)
    loss, kl, beta, empty = drawn[0].axes
    (train, valid, _) = loss.get_lines()
    assert train.get_xydata().tolist() == [[1, 100], [2, 50], [3, 100 / 3]]
    assert valid.get_xydata().tolist() == [[3, 40]]
    assert loss.get_lines()[2].get_xdata()[0] == 2 and beta.get_title() == "β"
    assert len(kl.get_lines()) == 2 and not empty.get_visible()  # one curve and one phase
    assert [note.get_text() for note in loss.texts] == ["first", "second"]


def test_a_curve_has_the_colour_of_its_split(monkeypatch):
    drawn = []
    monkeypatch.setattr(look, "picture", lambda fig, text: drawn.append(fig))
    log = [{"step": s, "train/rec": 9.0, "valid/rec": 9.5, "valid/au": 31 + s % 2} for s in (1, 2)]
    figures.training(log, [])
    rec, units, *_ = drawn[0].axes
    train, valid = rec.get_lines()
    (alone,) = units.get_lines()
    assert alone.get_color() == valid.get_color() != train.get_color()
    assert [text.get_text() for text in units.get_legend().get_texts()] == ["validation"]
    assert all(tick == round(tick) for tick in units.get_yticks())


def test_long_sentences_go_on_below(monkeypatch):
    drawn = []
    monkeypatch.setattr(look, "picture", lambda fig, text: drawn.append(fig))
    long = " ".join(f"word{i}" for i in range(60)) + " " + "x" * 200
    figures.strips(["one", "two"], [["a b", long], ["a"]])
    (fig,) = drawn
    parts = [(t.get_text(), *t.get_position()) for t in fig.texts]
    words = [part for part in parts if part[0].startswith(("word", "x"))]
    assert [w for w, _, _ in words] == [*long.split()[:-1], "x" * 96, "x" * 96, "x" * 8]
    fig.set_dpi(144)
    fig.canvas.draw()
    for t in fig.texts:  # all inside, none over another
        box = t.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= fig.bbox.x1 and box.y0 >= 0 and box.y1 <= fig.bbox.y1
    boxes = [t.get_window_extent() for t in fig.texts if t.get_text()]
    assert not any(
        a.x0 < b.x1 and b.x0 < a.x1 and a.y0 + 2 < b.y1 and b.y0 + 2 < a.y1
        for i, a in enumerate(boxes)
        for b in boxes[i + 1 :]
    )


def test_new_words_are_marked():
    block = ["a man eats", "a dog eats bread", "a dog eats bread"]
    assert figures.changes(block) == [
        [False] * 3,
        [False, True, False, True],
        [False] * 4,
    ]


def test_principal_axes():
    x = rng.normal(size=(200, 1))
    z_ed = np.hstack([3 * x, -3 * x, 0.01 * rng.normal(size=(200, 1))])
    plane_e2, share = maps.pca(z_ed)
    assert abs(np.corrcoef(plane_e2[:, 0], x[:, 0])[0, 1]) > 0.999 and share > 0.99
    np.testing.assert_allclose(plane_e2[:, 0].var(), 2 * (3 * x).var(), rtol=1e-3)
    assert maps.pca(np.zeros((4, 1)))[0].shape == (4, 2)
