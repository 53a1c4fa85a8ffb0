"""config.json: absent keys, refused variants, values of a wrong type, and exports."""

import copy
import dataclasses
import functools
import json
import typing
from pathlib import Path
from typing import Any

import pytest

from jvae.backbones import BACKBONES, LAYOUTS
from jvae.errors import WeightsError
from jvae.pretrained import backbones, export
from jvae.pretrained.files import Checkpoint
from tests.tools import reference

# Differences between the classes' defaults and what a family of ours can represent.
CHANGES: dict[str, dict[str, Any]] = {"roberta": dict(type_vocab_size=1)}


def sizes(name: str, config: dict[str, Any]) -> dict[str, Any]:
    return backbones.sizes(LAYOUTS[name].files, Checkpoint("here", config, {}, False, ()))


def completed(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """A config.json with every default of its class in transformers filled in."""
    from transformers import AutoConfig

    stated = copy.deepcopy(config)  # the classes change sections in place
    stated["model_type"] = LAYOUTS[name].files.name
    return AutoConfig.for_model(**stated).to_dict()


@functools.cache
def _whole(name: str) -> str:
    return json.dumps(completed(name, CHANGES.get(name, {})))


def whole(name: str) -> dict[str, Any]:
    """A complete config.json of a family."""
    return json.loads(_whole(name))


@pytest.fixture(params=list(LAYOUTS))
def name(request) -> str:
    return request.param


def variants(name: str) -> list[dict[str, Any]]:
    """Complete configs of a family, with the classes' sizes and with those of a tiny stack of ours,
    which differ from the defaults, in the forms that transformers 5 and older versions write.
    """
    kind = BACKBONES[name]
    fields = vars(kind.tiny(32, width=24)) | dict(cross=True)
    if name == "gemma2":
        fields |= dict(local_theta=fields["theta"])
    if name in ("bart", "opt", "distilbert"):
        fields |= dict(norm_eps=sizes(name, whole(name))["norm_eps"])
    ours = export.config_of(LAYOUTS[name].files, fields)
    return [whole(name), ours, json.loads(json.dumps(completed(name, ours)))]


def test_an_absent_key_is_the_default_of_the_class(name):
    for config in variants(name):
        want = sizes(name, config)
        assert sizes(name, completed(name, config)) == want
        optional = set()
        for key in config.keys() - {"model_type"}:
            less = {k: value for k, value in config.items() if k != key}
            try:
                got = sizes(name, less)
            except WeightsError as error:
                assert key in str(error), key
                continue
            assert got == sizes(name, completed(name, less)), key
            optional.add(key)
        # Defaults that depend on other absent keys.
        less = {k: value for k, value in config.items() if k not in optional}
        assert sizes(name, less) == sizes(name, completed(name, less)), optional


@pytest.mark.parametrize(
    "name, config, want",
    [
        ("gemma2", {}, dict(logit_cap=50.0, score_cap=30.0)),
        (
            "gemma2",
            dict(attn_logit_softcapping=None, final_logit_softcapping=None),
            dict(logit_cap=0.0, score_cap=0.0),
        ),
        ("gemma3", {}, dict(theta=1e6, local_theta=1e4, score_cap=0.0)),
        ("gemma3", dict(rope_theta=50.0), dict(theta=50.0, local_theta=1e4)),
        ("gemma3", dict(final_logit_softcapping=20.0), dict(score_cap=20.0)),
        ("mistral", {}, dict(window=4096, kv_heads=8)),
        ("mistral", dict(sliding_window=None), dict(window=0)),
        ("llama", dict(num_key_value_heads=None), dict(kv_heads=32)),
        ("qwen2", dict(num_attention_heads=64, num_key_value_heads=None), dict(kv_heads=64)),
        ("qwen2", dict(num_attention_heads=64), dict(kv_heads=32)),
        ("qwen3", dict(num_attention_heads=64), dict(kv_heads=32, head=128)),
        ("roberta", {}, dict(norm_eps=1e-12)),
        ("t5", dict(scale_decoder_outputs=False), dict(tied=False)),
    ],
)
def test_defaults_and_nulls(name, config, want):
    optional = ("rope_parameters", "layer_types", "sliding_window", "num_key_value_heads")
    optional += ("attn_logit_softcapping", "final_logit_softcapping", "layer_norm_eps", "head_dim")
    if name.startswith("gemma"):
        optional = tuple(set(optional) - {"sliding_window", "num_key_value_heads", "head_dim"})
    less = {key: value for key, value in whole(name).items() if key not in optional}
    got = sizes(name, less | config)
    assert {field: got[field] for field in want} == want


YARN = dict(rope_type="yarn", factor=2.0, rope_theta=1e4)
LINEAR = dict(rope_type="linear", factor=2.0, rope_theta=1e4)
PLAIN = dict(rope_type="default", rope_theta=1e4)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("modernbert", dict(rope_parameters=dict(full_attention=YARN)), "rope_type is 'yarn'"),
        ("modernbert", dict(rope_parameters=dict(sliding_attention=LINEAR)), "rope_type"),
        ("modernbert", dict(rope_scaling=dict(type="linear", factor=2.0)), "rope_type is 'linear'"),
        ("gemma3", dict(rope_parameters=dict(sliding_attention=LINEAR)), "rope_type is 'linear'"),
        ("gemma3", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping is 50.0"),
        ("gemma3", dict(use_bidirectional_attention=True), "use_bidirectional_attention is True"),
        ("gemma2", dict(use_bidirectional_attention=True), "use_bidirectional_attention is True"),
        ("gemma2", dict(rope_parameters=LINEAR), "rope_type is 'linear'"),
        ("gemma2", dict(rope_parameters=dict(full_attention=PLAIN)), "section 'full_attention'"),
        ("gpt_neox", dict(rope_parameters=dict(type="linear", factor=2.0)), "'linear'"),
        ("llama", dict(rope_parameters=PLAIN | dict(partial_rotary_factor=0.5)), "rotary_factor"),
        ("llama", dict(rope_parameters=PLAIN | dict(rope_type="none")), "scaling is 'none'"),
        ("qwen2", dict(layer_types=["sliding_attention"] * 32), "contains 'sliding_attention'"),
        ("qwen3", dict(layer_types=["sliding_attention"] * 32), "contains 'sliding_attention'"),
        ("qwen3", dict(use_sliding_window=True), "use_sliding_window is True"),
        ("mistral", dict(layer_types=["full_attention"] * 32), "contains 'full_attention'"),
        ("gemma3", dict(layer_types=["full_attention"]), "expected one value per layer"),
        ("bert", dict(is_decoder=True), "is_decoder is True"),
        ("roberta", dict(pad_token_id=0), "pad_token_id is 0; only 1"),
        ("roberta", dict(pad_token_id=None), "pad_token_id is None; only 1"),
        ("roberta", dict(type_vocab_size=2), "type_vocab_size is 2; only 1"),
        ("roberta", dict(max_position_embeddings=2), "expected more than 2"),
        ("bart", dict(decoder_attention_heads=8), "decoder_attention_heads is 8, enc.* is 16"),
        ("t5", dict(tie_word_embeddings=False), "scale_decoder_outputs is true"),
        ("t5", dict(dense_act_fn="gelu"), "dense_act_fn is 'gelu'"),
    ],
)
def test_a_variant_that_is_not_implemented_is_refused(name, change, message):
    with pytest.raises(WeightsError, match=f"^here/config.json: .*{message}"):
        sizes(name, whole(name) | change)


WRONG = ("6", "", 0, -1, 1.5, True, None, [24], [], {}, {"a": 1}, [1], float("nan"), 10**400)


def test_a_value_of_a_wrong_type_is_an_error_that_names_the_file(name):
    """Accepted values must still make a config of ours; all others are one WeightsError."""
    kinds = typing.get_type_hints(BACKBONES[name].config)
    for config in variants(name):
        nested = [key for key, value in config.items() if isinstance(value, dict)]
        keys = [(key,) for key in config if key != "model_type"]
        keys += [(key, inner) for key in nested for inner in config[key]]
        for path in keys:
            for value in WRONG:
                changed = copy.deepcopy(config)
                place = changed
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = value
                try:
                    got = sizes(name, changed)
                except WeightsError as error:
                    assert str(error).startswith("here/config.json: "), (path, value)
                    continue
                for field, size in got.items():
                    assert type(size) is kinds[field], (path, value, field, size)


def test_a_size_of_a_wrong_type_names_its_key():
    for value in ("6", 0, [24], None, 1.5, True):
        config = whole("llama") | dict(num_attention_heads=value)
        with pytest.raises(WeightsError, match="num_attention_heads is .*; expected a positive in"):
            sizes("llama", config)
    with pytest.raises(WeightsError, match=r"rope_parameters is \[1\]; expected a section"):
        sizes("llama", whole("llama") | dict(rope_parameters=[1]))


def test_the_reader_of_an_outside_backbone_may_raise_anything():
    def read(config):
        return dict(head=config["hidden_size"] // config["num_attention_heads"])

    outside = dataclasses.replace(LAYOUTS["llama"].files, sizes=read)
    for config in (
        dict(hidden_size=[24], num_attention_heads=4),
        dict(hidden_size=24, num_attention_heads=0),
        dict(hidden_size=24, num_attention_heads="6"),
    ):
        with pytest.raises(WeightsError, match="here/config.json: a value has the wrong type"):
            backbones.sizes(outside, Checkpoint("here", config, {}, False, ()))


# Folders of Hugging Face's classes, each with the config.json that transformers wrote.
OWN = Path(__file__).parent / "hf"
FOLDERS = (
    *("bart", "distilbert", "gemma2", "gemma3", "gpt_neox", "llama", "llama_rope3", "minilm"),
    *("mistral", "mistral_window", "modernbert", "opt", "qwen2", "qwen3", "roberta", "smollm"),
)
# What an export does not take from the folder: names, and ids that only a tokenizer needs.
ELSEWHERE = {"architectures", "dtype", "_name_or_path", "cls_token_id", "sep_token_id"}
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@pytest.mark.parametrize(
    "folder", [*FOLDERS, *(OWN / n for n in ("bert", "gpt2", "t5", "t5_v1_1"))]
)
def test_an_exported_config_is_the_imported_one_to_transformers(folder, tmp_path):
    """Field by field, after the classes have filled in what either file leaves out."""
    from transformers import AutoConfig

    source = folder if isinstance(folder, Path) else reference.path(f"hf_backbones/{folder}")
    config = json.loads((source / "config.json").read_text())
    kinds = {layout.files.name: name for name, layout in LAYOUTS.items()}
    name = kinds[config["model_type"]]
    fields = BACKBONES[name].config(**sizes(name, config), dropout=_dropout(config))
    special = {key: config[key] for key in IDS if config.get(key) is not None}
    written = export.config_of(LAYOUTS[name].files, vars(fields) | dict(cross=True), special)
    (tmp_path / "config.json").write_text(json.dumps(written))
    got, want = (AutoConfig.from_pretrained(place).to_dict() for place in (tmp_path, source))
    keys = whole(name).keys() - ELSEWHERE
    if want.get("n_inner", 0) is None:  # GPT-2's default, four times the width
        want["n_inner"] = 4 * want["n_embd"]
    assert len(keys) > 15
    assert {key: got[key] for key in keys} == {key: want.get(key, got[key]) for key in keys}


def _dropout(config: dict[str, Any]) -> float:
    keys = ("hidden_dropout_prob", "hidden_dropout", "dropout", "resid_pdrop", "dropout_rate")
    return next((config[key] for key in keys if key in config), 0.0)


def test_the_padding_id_of_a_roberta_stays_whatever_the_tokenizer():
    fields = vars(BACKBONES["roberta"].tiny(32))
    written = export.config_of(LAYOUTS["roberta"].files, fields, dict(pad_token_id=0))
    assert written["pad_token_id"] == 1
    fields = vars(BACKBONES["bert"].tiny(32))
    assert (
        export.config_of(LAYOUTS["bert"].files, fields, dict(pad_token_id=3))["pad_token_id"] == 3
    )


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("gemma2", dict(local_theta=20.0), "the same rotary frequencies"),
        ("gemma2", dict(local_theta=50.0, factor=2.0), "the same rotary frequencies"),
        ("gemma3", dict(logit_cap=5.0), "logit_cap is 5.0"),
    ],
)
def test_a_stack_that_the_classes_cannot_hold_is_not_exported(name, change, message):
    with pytest.raises(ValueError, match=message):
        export.config_of(LAYOUTS[name].files, vars(BACKBONES[name].tiny(32)) | change)
