"""Sizes of the published models, counted without allocating one; what configs refuse."""

import dataclasses

import jax
import pytest

from jvae import config, models
from jvae.backbones.bert import BertConfig
from jvae.backbones.gpt2 import Gpt2Config
from jvae.errors import ConfigError
from jvae.models import lm, optimus
from jvae.runs import build
from jvae.tree import sizes

CASED, GPT2 = 28_996, 50_257
ADDED = 3  # <PAD>, <BOS>, <EOS>
BASE = dict(layers=12, width=768, heads=12, mlp=3072)
BERT_BASE_CASED = 108_310_272  # pooler included
BERT_LARGE_CASED = 333_579_264  # likewise
GPT2_SMALL, GPT2_XL = 124_439_808, 1_557_611_200


def published(latent: int, **changes) -> optimus.OptimusConfig:
    """Optimus of the paper; changes to both of its stacks."""
    stack = BASE | dict(vocab_multiple=1) | changes
    return optimus.OptimusConfig(
        BertConfig(vocab=CASED, positions=512, **stack),
        Gpt2Config(vocab=GPT2 + ADDED, positions=1024, **stack),
        latent=latent,
    )


def counts(model, depth: int | None = None) -> dict[str, int]:
    return sizes(jax.eval_shape(model.init, jax.random.key(0)), depth)


@pytest.mark.parametrize(
    "latent, head, memory, offset",
    [(32, 49_152, 294_912, 24_576), (768, 1_179_648, 7_077_888, 589_824)],
)
def test_parameters_of_the_published_model(latent, head, memory, offset):
    actual = counts(optimus.build(published(latent)), depth=2)
    part = lambda name: sum(n for path, n in actual.items() if path.startswith(name))  # noqa: E731
    assert part("encoder/") + actual["posterior/pooler"] == BERT_BASE_CASED
    assert actual["posterior/head"] == head
    assert actual["decoder/memory"] == memory
    assert actual["decoder/offset"] == offset
    assert part("decoder/") == GPT2_SMALL + ADDED * 768 + memory + offset
    assert sum(actual.values()) == BERT_BASE_CASED + GPT2_SMALL + 2_304 + head + memory + offset


def test_padding_for_the_mesh_adds_vocabulary_rows_alone():
    exact = counts(optimus.build(published(32)))
    padded = counts(optimus.build(published(32, vocab_multiple=128)))
    differ = {path: n - exact[path] for path, n in padded.items() if n != exact[path]}
    assert exact.keys() == padded.keys()
    assert differ == {
        "encoder/embed/token/table": (29_056 - CASED) * 768,
        "decoder/embed/token/table": (50_304 - GPT2 - ADDED) * 768,
    }


def test_language_model_is_gpt2():
    decoder = dataclasses.replace(published(32).decoder, vocab=GPT2)
    assert sum(counts(lm.build(lm.LmConfig(decoder))).values()) == GPT2_SMALL


@pytest.mark.parametrize("preset, latent", [("base", 32), ("latent768", 768)])
def test_presets_are_the_published_model(preset, latent):
    c = config.load(f"optimus:{preset}").unlock()
    c.model.encoder.vocab, c.model.decoder.vocab = CASED, GPT2 + ADDED
    want = optimus.build(published(latent, vocab_multiple=128))
    assert counts(build.build_model(c)) == counts(want)


def test_large_is_bert_large_and_gpt2_xl():
    """Both as published, but for their new vocabulary rows, and what joins them."""
    c = config.load("optimus:large").unlock()
    c.model.encoder.vocab, c.model.decoder.vocab = CASED, GPT2 + ADDED
    for part in (c.model.encoder, c.model.decoder):
        part.vocab_multiple = 1
    actual = counts(build.build_model(c))
    both = BERT_LARGE_CASED + GPT2_XL + ADDED * 1_600
    head, memory, offset = 2 * 32 * 1_024, 32 * 48 * 1_600, 32 * 1_600
    assert sum(actual.values()) == both + head + memory + offset
    assert dict(c.mesh) == dict(data=-1, fsdp=8, tensor=1)


def test_choices_own_their_parameters():
    small = dict(layers=2, width=16, heads=2, mlp=32, vocab=20, positions=8)
    stacks = BertConfig(**small), Gpt2Config(**small)

    def paths(**choices) -> set[str]:
        return set(counts(optimus.build(optimus.OptimusConfig(*stacks, **choices))))

    both = paths()
    assert both - paths(use_memory=False) == {"decoder/memory/kernel"}
    assert both - paths(use_embedding=False) == {"decoder/offset/kernel"}
    assert both - paths(pool="mean") == {"posterior/pooler/kernel", "posterior/pooler/bias"}
    assert both == paths(log_var="unit")


@pytest.mark.parametrize(
    "choices, message",
    [
        (dict(use_memory=False, use_embedding=False), "are all off"),
    ],
)
def test_impossible_choices_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(published(32), **choices)


def test_limits_leave_a_position_for_the_memory():
    both = published(32)
    assert optimus.limits(both) == {"enc": 512, "dec": 1023}
    assert optimus.limits(dataclasses.replace(both, use_memory=False)) == {"enc": 512, "dec": 1024}
    assert lm.limits(lm.LmConfig(both.decoder)) == {"dec": 1024}


def test_unknown_family_is_refused():
    assert models.family("lm").config is lm.LmConfig
    with pytest.raises(ConfigError, match="'gpt'.*lm, .*optimus"):
        models.family("gpt")
