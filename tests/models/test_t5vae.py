"""Parameter counts of the published T5-VAE, its starting weights, and what its options do."""

import dataclasses
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models

from jvae import config
from jvae.api import Batch
from jvae.data import tokenizers
from jvae.data.rows import Encoded, pack_rows
from jvae.models import family, t5vae
from jvae.nn import t5, t5_layer
from jvae.nn.attention import segments
from jvae.pretrained import backbones, files, names
from jvae.pretrained import t5 as t5_names
from jvae.runs import build, phases, schedules
from jvae.training import freezing, init_params, optim, program
from jvae.tree import map_named, named_leaves, sizes
from tests.tools.stacks import t5_own

SMALL = t5_layer.T5Config(
    layers=6, width=512, heads=8, head=64, mlp=2048, vocab=32_128, dropout=0.1
)
T5_SMALL = 60_506_624  # as published, cross-attention included
TINY = t5_layer.T5Config(
    layers=2, width=8, heads=2, head=4, mlp=12, vocab=12, vocab_multiple=4, dropout=0.0
)


def make(**choices) -> t5vae.T5VaeConfig:
    return t5vae.T5VaeConfig(**(dict(decoder=TINY, latent=3) | choices))


def abstract(c: t5vae.T5VaeConfig):
    return jax.eval_shape(t5vae.build(c).init, jax.random.key(0))


def counts(c: t5vae.T5VaeConfig, depth: int | None = None) -> dict[str, int]:
    return sizes(abstract(c), depth)


def test_new_parameters_of_t5_small():
    actual = counts(t5vae.T5VaeConfig(SMALL))
    (part,) = family("t5_vae").parts(config.load("t5_vae:base").model)
    pretrained = {rule.path for rule in part.table(init_params.Vocab(32_128, 32_128)).rules}
    new = {path: n for path, n in actual.items() if path not in pretrained}
    assert new == {"posterior/head/kernel": 32_768, "decoder/memory/kernel": 98_304}
    assert sum(new.values()) == 131_072
    assert pretrained <= actual.keys()
    # Phase 1 of the paper: all but embedding, decoder and memory.
    encoder_only = sum(n for p, n in actual.items() if p.startswith(("encoder/", "posterior/")))
    assert encoder_only == 18_914_048


def test_base_is_the_published_model():
    c = config.load("t5_vae:base").unlock()
    c.model.decoder.vocab = SMALL.vocab
    model = build.build_model(c)
    assert sizes(jax.eval_shape(model.init, jax.random.key(0))) == counts(t5vae.T5VaeConfig(SMALL))
    objective = program.build_objective(c.objective)
    assert (objective.free_bits, objective.free_bits_nats) == ("dim_max", 0.5)
    assert objective.rec_length == 256
    first, second = phases.resolve(c)
    assert (first.steps, second.steps) == (15 * 782, 10 * 782)
    assert not np.any(schedules.build(first.objective.beta, first.steps)(np.array([0, 9_000])))
    beta = schedules.build(second.objective.beta, second.steps)
    np.testing.assert_allclose(beta(np.array([0, 782, 7_820])), [0, 0.01, 0.1], 1e-6)
    abstract_ = jax.eval_shape(model.init, jax.random.key(0))
    plan = freezing.make_plan(first.optim.trainable, abstract_, model.axes, first.steps)
    trained, _ = freezing.split(plan, abstract_)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == 18_914_048
    tx = optim.build(c.optim, {"a": jnp.zeros(2)}, c.train.steps)
    assert len(tx.init({"a": jnp.zeros(2)})) == 3  # no clipping in front


def test_cross_attention_is_there_only_where_z_uses_it():
    assert not any("cross" in path for path in counts(t5vae.T5VaeConfig(SMALL)))
    actual = counts(t5vae.T5VaeConfig(SMALL, cross_slots=4, use_memory=False), depth=2)
    new = actual.pop("posterior/head") + actual.pop("decoder/source")
    assert sum(actual.values()) == T5_SMALL
    assert new == 32_768 + 32 * 4 * 512
    assert not any("memory" in path for path in actual)


@pytest.mark.slow
def test_new_layers_start_as_released():
    stack = dataclasses.replace(TINY, width=64, heads=8, head=16, bias_std=2.0)
    c = t5vae.T5VaeConfig(stack, cross_slots=3)

    @jax.jit
    def start(key):
        leaves = named_leaves(t5vae.build(c).init(key))
        paths = ("posterior/head/kernel", "decoder/memory/kernel", "decoder/source/kernel")
        return [leaves[path] for path in paths], leaves["encoder/bias/table"]

    kernels, table = start(jax.random.key(0))
    np.testing.assert_allclose(np.std(table), 2.0, rtol=0.15)
    for kernel, width in zip(kernels, (64, 32, 32), strict=True):
        assert 0.98 * width**-0.5 < np.max(np.abs(kernel)) <= width**-0.5
        np.testing.assert_allclose(np.std(kernel), (3 * width) ** -0.5, rtol=0.05)
        assert np.abs(np.mean(kernel)) < 0.05 * width**-0.5


@pytest.mark.parametrize(
    "choices, message",
    [
        (dict(pool="first", pool_padding=True), "first never reads padding"),
        (dict(use_memory=False), "never reach the decoder"),
        (dict(decoder=dataclasses.replace(TINY, cross=True)), "as cross_slots sets it"),
    ],
)
def test_impossible_choices_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        make(**choices)


def random_params(c: t5vae.T5VaeConfig):
    rng = np.random.default_rng(0)
    noise = lambda path, a: rng.normal(path.endswith("scale"), 0.5, a.shape).astype(np.float32)  # noqa: E731
    return map_named(noise, abstract(c))


def batch_of(rows: list[list[int]], width: int) -> Batch:
    sentences = [np.array([2, 5, 6, 3]), np.array([2, 4, 3]), np.array([2, 9, 8, 7, 4, 3])]
    sides = dict(enc=Encoded.of(sentences), dec=Encoded.of(sentences))
    return pack_rows(np.array(rows), sides, dict(enc=width, dec=width), dict(enc=0, dec=0))


def test_padding_is_pooled_on_request():
    c = make(pool_padding=True)
    model, params = t5vae.build(c), random_params(c)
    short, long = (batch_of([[2], [1]], width) for width in (6, 9))

    @jax.jit
    def means(params):
        return [model.post.encode(params, batch).mean_egz for batch in (short, long)]

    # Nothing of the first sentence's row is padding in the short rows.
    first, second = means(params)
    assert np.all(np.max(np.abs(first - second)[0]) > 1e-3)
    with pytest.raises(ValueError, match="2 sentences per row: set data.packing to bucket"):
        model.post.encode(params, batch_of([[0, 1]], 8))


def test_an_empty_slot_of_memory_still_takes_attention():
    """The slot is there: without it, a memory of zeros would change nothing."""
    c, batch = make(), batch_of([[0, 1], [2, -1]], 8)
    params = random_params(c)
    params["decoder"]["memory"]["kernel"] = np.zeros_like(params["decoder"]["memory"]["kernel"])
    model = t5vae.build(c)

    @jax.jit
    def both(params, z_egz):
        with_slot = model.gen.log_lik(params, model.gen.prepare(params, batch), z_egz)
        stack_params = t5_own(params, "decoder")
        x_btd = t5.embed(TINY, stack_params, batch.dec.token_bt)
        hidden_btd, _ = t5.rows(TINY, stack_params, x_btd, segments(batch.dec, causal=True))
        plain = t5.token_log_prob(TINY, stack_params, hidden_btd, batch.dec, batch.scored_bt)
        return with_slot, plain

    with_slot, plain = both(params, jnp.ones((4, 1, 3)))
    scored = batch.scored_bt
    assert np.all(np.abs(with_slot - plain)[scored] > 1e-4)


NEW = ("head/kernel", "memory/kernel", "source/kernel")
HF = Path(__file__).parents[1] / "pretrained/hf"


def _tokenizers(entries: int):
    """A batch as T5 reads it: no start, the end </s>, padding in front of the decoder's text."""
    words = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(entries - 3))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    backend.add_special_tokens([AddedToken(w, special=True) for w in words[:3]])
    return [tokenizers._wrap(backend, role, "test") for role in ("encoder", "decoder")]


@pytest.mark.parametrize("name, cross_slots", [("t5", 0), ("t5_v1_1", 2)])
def test_one_folder_fills_both_stacks(name, cross_slots, caplog):
    folder = HF / name
    checkpoint = files.open_checkpoint(folder)
    actual = backbones.sizes(t5_names.BACKBONE, checkpoint)
    rows = actual.pop("vocab")
    c = config.load("t5_vae:base").copy_and_resolve_references().unlock()
    c.model.update(latent=3, cross_slots=cross_slots)
    c.model.decoder.update(actual | dict(vocab=rows - 4))
    c.init.decoder = str(folder)
    run = build.Run(
        c,
        Path(),
        *_tokenizers(rows - 4),
        data={},
        rows=build.RowSpec(16, 16, 1, 1),
        model=build.build_model(c),
        exact={},
        log=[],
    )
    with caplog.at_level(logging.INFO, "jvae.training.init_params"):
        key = jax.random.key(0, impl="unsafe_rbg")  # compiles in no time
        params = jax.device_get(init_params.initial_params(run, None, key))
    assert "dropped 4 embedding rows that have no token" in caplog.text
    fresh = sum(leaf.size for path, leaf in named_leaves(params).items() if path.endswith(NEW))
    assert f"initialised at random: {fresh:,} parameters" in caplog.text
    sizes_ = dict(gated=actual["gated"], tied=actual["tied"], cross=cross_slots > 0)
    ours = names.write(t5_names.table(rows - 4, **sizes_), params, tied=False)
    theirs = backbones.canonical(t5_names.BACKBONE, checkpoint)
    assert any(n.startswith("encoder.block.1") for n in ours)
    assert any("EncDecAttention" in n for n in ours) == (cross_slots > 0)
    for tensor, array in ours.items():
        np.testing.assert_array_equal(array, np.asarray(theirs[tensor])[: len(array)], tensor)
