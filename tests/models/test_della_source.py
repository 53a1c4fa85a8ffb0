"""DELLA on an encoder and a decoder: the decoder attends to its own source and to no other, packed,
alone and step by step; the files of a BART or a T5 fill both stacks.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae import config as configs
from jvae.api import Batch, Prompt, RowStates, one_per_row, per_example
from jvae.backbones.bart import BartConfig
from jvae.data.rows import Encoded, pack_rows
from jvae.errors import ConfigError
from jvae.models import FAMILIES, della
from jvae.pretrained import backbones, files, names
from jvae.pretrained.names import Vocab
from jvae.runs import build
from jvae.tree import map_named, named_leaves
from tests.tools import reference

compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
VOCAB, START, END, PAD = 29, 26, 27, 28
STACK = BartConfig(2, 16, 2, 32, VOCAB, 16, dropout=0.0, vocab_multiple=8, dtype="float64")
CONFIG = della.DellaConfig(
    STACK,
    STACK,
    latent=3,
    rank=2,
    conditional=True,
    cvae_posterior="xc",
    source="cross",
    share_embedding=True,
    tie_lm_head=True,
)


def _sides() -> dict[str, Encoded]:
    rng = np.random.default_rng(0)
    text = lambda n: [START, *rng.integers(0, START, n), END]  # noqa: E731
    source, target = ([np.array(text(n)) for n in ns] for ns in ((2, 5, 3), (3, 1, 4)))
    return dict(enc=Encoded.of(target), dec=Encoded.of(target), cond=Encoded.of(source))


def _pack(ids_bs: list[list[int]], **row: int) -> Batch:
    batch = pack_rows(np.array(ids_bs, np.int32), _sides(), row, dict.fromkeys(row, PAD))
    return jax.tree.map(jnp.asarray, batch)


PACKED = _pack([[2, 0], [-1, 1]], enc=12, dec=12, cond=12)
SINGLE = _pack([[0], [1], [2]], enc=6, dec=6, cond=7)


@pytest.fixture(scope="module")
def built():
    with jax.enable_x64(True):
        model, rng = della.build(CONFIG), np.random.default_rng(1)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        noise = lambda path, like: 0.3 * rng.normal(size=like.shape) + path.endswith("scale")  # noqa: E731
        yield model, map_named(noise, shapes)


def test_sides_and_shared_embedding(built):
    _, params = built
    assert "token" not in params["encoder"]["embed"] and "position" in params["encoder"]["embed"]
    assert della.joined(CONFIG) == ()
    assert della.limits(CONFIG) == dict(enc=16, dec=16, cond=16)
    other = dataclasses.replace(CONFIG, encoder=dataclasses.replace(STACK, vocab=40))
    with pytest.raises(ConfigError, match=r"a table of \[40, 16\] and model.decoder with one of"):
        della.build(other)


def test_a_text_reads_its_own_source_in_every_packing(built):
    model, params = built
    z_egz = np.random.default_rng(2).normal(size=(3, 2, 3))

    @compiled
    def run(params, batch):
        cond = model.gen.condition(params, batch)
        post = model.post.encode(params, batch, cond=cond)
        ctx = model.gen.prepare(params, batch, cond=cond)
        nats_bt = model.gen.log_lik(params, ctx, jnp.asarray(z_egz)[batch.id_e])
        return per_example(nats_bt, batch), model.post.mean(params, post), cond.prior_egcz, nats_bt

    want = run(params, SINGLE)
    got = run(params, PACKED)
    for e, i in enumerate(np.asarray(PACKED.id_e)):
        if i < 0:
            continue
        for a, b in zip(got[:3], want[:3], strict=True):
            np.testing.assert_allclose(a[e], b[i], rtol=0, atol=1e-10)
    # Another source of the same length changes what each token costs, the first one included.
    assert SINGLE.cond is not None
    moved = SINGLE.cond._replace(token_bt=(SINGLE.cond.token_bt + 3) % START)
    changed = np.abs(run(params, SINGLE._replace(cond=moved))[3] - want[3])
    assert np.all((changed > 1e-4) == np.asarray(SINGLE.scored_bt))


@pytest.mark.slow
def test_steps_read_the_source_as_teacher_forcing_does(built):
    """Also after the examples were copied and put in another order."""
    model, params = built
    z_egz = np.random.default_rng(3).normal(size=(3, 2, 3))
    order = np.array([4, 0, 2], np.int32)  # 3 examples, twice each

    @compiled
    def run(params):
        cond = model.gen.condition(params, SINGLE)
        ctx = model.gen.prepare(params, SINGLE, cond=cond)
        forced_bt = model.gen.log_lik(params, ctx, z_egz)
        prompt = Prompt(SINGLE.dec.token_bt[:, :1], jnp.ones(3, jnp.int32))
        logits_ev, state = model.gen.start(params, z_egz, prompt, 6, cond)
        state = model.gen.reorder(model.gen.expand(state, 2), order)
        rows = order // 2
        logits_ev, nats = logits_ev[rows], []
        for i in range(1, 3):  # every text has two tokens after its start
            token_e = SINGLE.dec.token_bt[rows, i]
            nats.append(jax.nn.log_softmax(logits_ev)[jnp.arange(3), token_e])
            logits_ev, state = model.gen.step(params, state, token_e)
        return jnp.stack(nats, 1), forced_bt[rows, 1:3]

    stepwise, forced = run(params)
    np.testing.assert_allclose(stepwise, forced, rtol=0, atol=1e-6)  # logits are float32


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])
@pytest.mark.parametrize(
    "name, vocab", [("hf_backbones/bart", 96), ("hf_flax/t5", 97), ("hf_flax/t5_v1_1", 97)]
)
def test_the_files_of_a_bart_or_a_t5_fill_both_stacks(name, vocab, shared):
    checkpoint = files.open_checkpoint(reference.path(name))
    c = configs.load("della:bart" if "bart" in name else "della:t5").unlock()
    c.model.share_embedding = shared
    layout = FAMILIES["della"].parts(c.model)[0].backbone
    sizes = backbones.sizes(layout, checkpoint)
    c.model.decoder.update(sizes)
    if not shared:
        c.model.encoder.update(sizes)
    assert bool(FAMILIES["della"].adjust(c.model)) == shared
    parts = FAMILIES["della"].parts(c.model)
    sections = [("decoder", "encoder")] if shared else [("encoder",), ("decoder",)]
    assert [part.sections for part in parts] == sections
    assert c.model.encoder.to_dict() == c.model.decoder.to_dict()
    target = named_leaves(jax.eval_shape(build.build_model(c).init, jax.random.key(0)))
    targets = {}
    for part in parts:
        table = part.table(Vocab(vocab, vocab))
        like = {path: target[path] for path in (rule.path for rule in table.rules)}
        names.fit(table, backbones.canonical(part.backbone, checkpoint), like)
        targets |= like
    rest = {path.split("/")[1] for path in target.keys() - targets.keys() if path[:7] == "decoder"}
    assert rest == {"fusion"} and not any(
        p[:7] == "encoder" for p in target.keys() - targets.keys()
    )


def test_decoding_reads_packed_sources_one_per_row():
    states = RowStates(np.arange(24.0).reshape(2, 4, 3), np.array([[1, 1, 2, 0], [2, 2, 2, 0]]))  # pyright: ignore
    rows, kept = one_per_row((states, np.ones(4)), 2)
    np.testing.assert_array_equal(rows.state_bsd, np.repeat(states.state_bsd, 2, axis=0))
    mask = [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
    np.testing.assert_array_equal(rows.segment_bs, mask)
    assert kept.shape == (4,)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(decoder=dataclasses.replace(STACK, cross=True)), "decoder.cross is on"),
        (
            dict(decoder=FAMILIES["lm"].tiny(dict(dec=VOCAB)).decoder),
            "cannot attend to external",
        ),
    ],
)
def test_what_cannot_attend_is_refused(changes, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        della.build(dataclasses.replace(CONFIG, share_embedding=False, **changes))
