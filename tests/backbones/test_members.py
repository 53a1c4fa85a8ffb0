"""Backbones as members: what a config says of them, and pairs that do not fit."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.backbones import BACKBONES
from jvae.errors import ConfigError
from jvae.models import FAMILIES
from jvae.models.common import unboxed
from jvae.nn.attention import MaskSpec
from jvae.nn.backbone import ABILITIES, KEY, StackConfig, name_of, stack_of
from jvae.tree import sizes

VOCAB = dict(enc=23, dec=29)


@pytest.mark.fast_on("lstm")
@pytest.mark.parametrize("name", list(BACKBONES))
def test_every_backbone_keeps_the_contract(name):
    kind = BACKBONES[name]
    config = kind.tiny(VOCAB["dec"])
    assert type(config) is kind.config and name_of(config) == name
    promised = ("layers", "width", "vocab", "vocab_padded", "dtype", "dropout", "init_std")
    assert [field for field in promised if not hasattr(config, field)] == []
    assert kind.abilities and kind.abilities <= ABILITIES.keys()
    stack = stack_of(config, "model.decoder")
    init, axes = unboxed(stack.init)
    abstract = jax.eval_shape(init, jax.random.key(0))
    assert 0 < sum(sizes(abstract).values()) < 20_000
    flat = jax.tree.leaves(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert [len(axis_names) for axis_names in flat] == [
        leaf.ndim for leaf in jax.tree.leaves(abstract)
    ]
    parts = [part(jax.random.key(0)) for part in (stack.init_embed, stack.init_body)]
    headless = stack.init(jax.random.key(0), head=False)
    assert headless.keys() == parts[0].keys() | parts[1].keys()
    assert stack.longest >= config.vocab_padded - 24 or name in ("lstm", "t5")


@pytest.mark.parametrize(
    "family, section, message",
    [
        ("optimus", dict(decoder="lstm"), "decoder.backbone is lstm, which cannot write text"),
        ("optimus", dict(decoder="bert"), "decoder.backbone is bert, which cannot write text"),
        ("della", dict(decoder="lstm"), "decoder.backbone is lstm, which cannot write text"),
        ("adavae", dict(encoder="lstm"), "encoder.backbone is lstm, which cannot take additions"),
        ("della", dict(encoder="lstm"), "encoder.backbone is lstm, which cannot give the states"),
        ("lstm_vae", dict(decoder="gpt2"), "gpt2, which cannot start from a hidden state.*: lstm"),
        ("sri", dict(decoder="llama"), "llama, which cannot start from a hidden state.*: lstm"),
        ("t5_vae", dict(encoder="bert", decoder="gpt2"), "share one embedding"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused(family, section, message):
    tiny = FAMILIES[family].tiny(VOCAB)
    changes = {role: BACKBONES[name].tiny(VOCAB["dec"]) for role, name in section.items()}
    changes |= dict(t5_vae=dict(cross_slots=0), della=dict(end_layer=0)).get(family, {})
    with pytest.raises(ConfigError, match=message):
        FAMILIES[family].build(dataclasses.replace(tiny, **changes))


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_a_window_of_one_token_sees_the_token_alone(name):
    config = BACKBONES[name].tiny(VOCAB["dec"], layers=1, window=1, dropout=0.0)
    stack = stack_of(config, "model.decoder")
    params = unboxed(stack.init)[0](jax.random.key(0))
    segment_bt = np.ones((2, 4), np.int32)
    position_bt = np.broadcast_to(np.arange(4, dtype=np.int32), (2, 4))
    token_bt = np.array([[3, 4, 5, 6], [7, 4, 5, 6]], np.int32)
    x_btd = stack.embed(params, token_bt, position_bt)
    spec = MaskSpec(segment_bt, segment_bt, True, position_bt)
    states, _ = stack.rows(params, x_btd, spec)
    np.testing.assert_array_equal(states[0, 1:], states[1, 1:])
    assert np.abs(states[0, 0] - states[1, 0]).max() > 1e-3


def test_cross_attention_needs_a_decoder_that_has_it():
    tiny = FAMILIES["t5_vae"].config
    with pytest.raises(ValueError, match="has no cross-attention; set it to 0"):
        tiny(BACKBONES["gpt2"].tiny(VOCAB["dec"]), cross_slots=2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({KEY: None}, "model.decoder.backbone: missing; set it to one of bart, bert, "),
        ({KEY: "lama"}, "'lama'.*did you mean 'llama'"),
        (dict(kv_head=2), "model.decoder.kv_head: LlamaConfig has no such field"),
        (dict(kv_heads=4), "6 heads do not divide into 4 kv_heads"),
        (dict(head=5), "head is 5; rotary positions need an even width"),
        (dict(theta="x"), "model.decoder.theta='x': expected a number"),
        (dict(dtype="float32", attention="cudnn"), "attention cudnn needs dtype bfloat16"),
    ],
)
def test_a_wrong_section_names_its_key(changes, message):
    section = dict(backbone="llama", layers=1, width=12, heads=6, kv_heads=2, head=2, mlp=4)
    section = ConfigDict(section | dict(vocab=5, positions=8) | changes)
    with pytest.raises(ConfigError, match=message):
        StackConfig.from_section(section, "model.decoder")


def test_configs_of_older_runs_get_the_backbones_they_had():
    for spec, encoder, decoder in (
        ("optimus:tiny", "bert", "gpt2"),
        ("t5_vae:tiny", None, "t5"),
        ("sri:tiny", None, "lstm"),
        ("sri:transformer", None, "gpt2"),
        ("lstm_vae:tiny", "lstm", "lstm"),
    ):
        today = configs.load(spec)
        older = ConfigDict(today.to_dict())
        for role in ("encoder", "decoder"):
            if role in older.model:
                del older.model[role][KEY]
        if "tokens" in older.model:
            del older.model["tokens"]
        text = configs.to_json(older).replace(f'"schema": {configs.SCHEMA}', '"schema": 2')
        opened = configs.stored(text)
        assert opened.to_dict() == today.to_dict(), spec
        assert (opened.model.get("encoder") or {}).get(KEY) == encoder
        assert opened.model.decoder[KEY] == decoder
