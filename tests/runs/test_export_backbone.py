"""Pretrained parts out of trained models, as folders that `transformers` opens."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.backbones import BACKBONES
from jvae.data import tokenizers
from jvae.errors import WeightsError
from jvae.pretrained import files
from jvae.pretrained.layouts import LAYOUTS
from jvae.runs import build, exports, loading, published, start
from jvae.training import init_params
from jvae.tree import map_named, named_leaves

SHARED = Path(__file__).parents[3] / "shared/fixtures/hf_backbones"
OWN = Path(__file__).parents[1] / "pretrained/hf"
WRITE = (
    *("llama", "llama_rope3", "smollm", "qwen2", "qwen3", "mistral", "mistral_window"),
    *("gemma2", "gemma3", "gpt_neox", "opt"),
)
READ = ("roberta", "distilbert", "modernbert")
FAST = ("gpt2", "llama", "roberta")


def cases() -> list:
    cases = [("lm", SHARED / name, "decoder") for name in WRITE]
    cases += [("optimus", SHARED / name, "encoder") for name in READ]
    cases += [("lm", OWN / "gpt2", "decoder"), ("optimus", OWN / "bert", "encoder")]
    cases += [("t5_vae", OWN / name, "decoder") for name in ("t5", "t5_v1_1")]
    out = []
    for family, folder, role in cases:
        marks = [] if folder.name in FAST else [pytest.mark.slow]
        marks += [pytest.mark.skipif(not folder.is_dir(), reason=f"{folder.name} is not here")]
        out.append(pytest.param(family, folder, role, id=folder.name, marks=marks))
    return out


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Four special tokens and a few words."""
    tokenizer = tokenizers.train_word_level(["a dog runs", "two dogs run"])
    tokenizer.save(tmp_path_factory.mktemp("tokenizer"))
    return tokenizer


def model_of(family, folder, role, tokenizer, out):
    """An export of a model of that family whose part comes from a folder, all else zeros."""
    flags = ["model.cross_slots=2"] if family == "t5_vae" else []
    config = start.configure(configs.load(family), [f"init.{role}={folder}", *flags])
    (part, name), *_ = start.wanted(config)
    checkpoint = files.open_checkpoint(name)
    rows = init_params.backbones.sizes(part.backbone, checkpoint)["vocab"]
    with config.unlocked():
        for section in ("encoder", "decoder"):
            if section in config.model:
                config.model[section].vocab = rows
    target = named_leaves(jax.eval_shape(build.build_model(config).init, jax.random.key(0)))
    table, tensors, like, _ = published.fitted(
        part, checkpoint, init_params.Vocab(rows, rows), target
    )
    loaded = named_leaves(init_params.names.read(table, tensors, like))
    model = jax.eval_shape(build.build_model(config).init, jax.random.key(0))
    params = map_named(lambda path, leaf: loaded.get(path, np.zeros(leaf.shape, leaf.dtype)), model)
    exports.export_model(out, config, tokenizer.for_role("encoder"), tokenizer, params)
    return checkpoint


@pytest.mark.filterwarnings("default")  # the reference library's own warnings are not ours
@pytest.mark.parametrize("family, folder, role", cases())
def test_a_part_goes_back_as_it_came(family, folder, role, tokenizer, tmp_path, caplog):
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

    came = model_of(family, folder, role, tokenizer, tmp_path / "model")
    loading.export_backbone(tmp_path / "model", tmp_path / "out", role)
    went = files.open_checkpoint(tmp_path / "out")
    assert 10 < len(went.tensors) <= len(came.tensors)
    for name, tensor in went.tensors.items():
        ends = [
            tensor_name
            for tensor_name in came.tensors
            if tensor_name == name or tensor_name.endswith(f".{name}")
        ]
        assert len(ends) == 1, name
        np.testing.assert_array_equal(tensor, came.tensors[ends[0]], err_msg=name)
    theirs = AutoConfig.from_pretrained(tmp_path / "out")
    assert theirs.model_type == came.config["model_type"]
    assert theirs.vocab_size == came.config["vocab_size"]
    # A Qwen 2 gets its own class whatever the folder says, and that reads no words.
    kind = PreTrainedTokenizerFast if folder.name == "qwen2" else AutoTokenizer
    words = kind.from_pretrained(tmp_path / "out")
    ids = tokenizer.encode_batch(["two dogs run"])[0]
    assert words("two dogs run", add_special_tokens=False)["input_ids"] == ids[1:-1].tolist()
    stated = json.loads((tmp_path / "out/config.json").read_text())
    assert (words.eos_token_id, words.pad_token_id) == (tokenizer.end_id, tokenizer.pad_id)
    assert words.bos_token_id == stated["bos_token_id"] == tokenizer.start_id
    fixed = {layout.files.name: layout.files.fixed for _, layout in LAYOUTS.items()}
    pad = fixed[theirs.model_type].get("pad_token_id", tokenizer.pad_id)
    assert theirs.pad_token_id == stated["pad_token_id"] == pad
    assert ("config.json has pad_token_id=" in caplog.text) == (pad != tokenizer.pad_id)
    # What was written is read again, as sizes and as a tokenizer.
    again = start.configure(configs.load(family), [f"init.{role}={tmp_path / 'out'}"])
    first = start.configure(configs.load(family), [f"init.{role}={folder}"])
    assert again.model[role].to_dict() == first.model[role].to_dict()
    assert again.data[f"{role}_tokenizer"] == str(tmp_path / "out")
    opened = tokenizers.open_tokenizer(tmp_path / "out", tokenizer.role)
    assert opened.fingerprint == tokenizer.fingerprint


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family, folder, role", cases())
def test_the_reference_class_loads_every_tensor(family, folder, role, tokenizer, tmp_path):
    pytest.importorskip("torch", reason="the reference classes need PyTorch")
    from transformers import AutoModel, AutoModelForCausalLM

    model_of(family, folder, role, tokenizer, tmp_path / "model")
    loading.export_backbone(tmp_path / "model", tmp_path / "out", role)
    kind = AutoModelForCausalLM if family == "lm" else AutoModel
    _, about = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not about["missing_keys"] and not about["unexpected_keys"]


def della_with_its_own_head(name, tokenizer, out, **changes):
    """An export of a small DELLA on a backbone, with random parameters, which are returned."""
    config = configs.load("della").unlock()
    stack = BACKBONES[name].tiny(tokenizer.vocab_size, **changes)
    config.model.decoder = ConfigDict(dict(backbone=name, **dataclasses.asdict(stack)))
    config.model.tie_lm_head = False
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(build.build_model(config).init, jax.random.key(0))
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes)
    exports.export_model(out, config.lock(), tokenizer.for_role("encoder"), tokenizer, params)
    return params


@pytest.mark.parametrize(
    "name, changes",
    [("gpt2", {}), ("llama", dict(tied=True)), ("opt", {}), ("gemma2", dict(local_theta=50.0))],
)
def test_an_output_head_of_its_own_is_written(name, changes, tokenizer, tmp_path):
    params = della_with_its_own_head(name, tokenizer, tmp_path / "model", **changes)
    loading.export_backbone(tmp_path / "model", tmp_path / "out")
    tensors = files.open_checkpoint(tmp_path / "out").tensors
    head = params["decoder"]["head"]["table"][: tokenizer.vocab_size]
    np.testing.assert_array_equal(tensors["lm_head.weight"], head)
    stated = json.loads((tmp_path / "out/config.json").read_text())
    assert stated["tie_word_embeddings"] is False


def test_an_output_head_that_the_family_cannot_have_is_refused(tokenizer, tmp_path):
    della_with_its_own_head("bart", tokenizer, tmp_path / "model")
    with pytest.raises(WeightsError, match="its output head is not its token embedding, as bart"):
        loading.export_backbone(tmp_path / "model", tmp_path / "out")


def della_with_an_encoder(name, tokenizer, out, **changes):
    """An export of a small DELLA whose decoder attends to an encoder, with zeros."""
    config = configs.load(f"della:{name}").unlock()
    config.model.update(changes)
    stack = BACKBONES[name].tiny(tokenizer.vocab_size)
    for role in ("encoder", "decoder"):
        config.model[role] = ConfigDict(dict(backbone=name, **dataclasses.asdict(stack)))
    shapes = jax.eval_shape(build.build_model(config).init, jax.random.key(0))
    params = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), shapes)
    exports.export_model(out, config.lock(), tokenizer.for_role("encoder"), tokenizer, params)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_the_decoder_starts_with_the_start_of_the_tokenizer(name, tokenizer, tmp_path):
    della_with_an_encoder(name, tokenizer, tmp_path / "model")
    loading.export_backbone(tmp_path / "model", tmp_path / "out")
    stated = json.loads((tmp_path / "out/config.json").read_text())
    assert tokenizer.start_id == 1  # not 0 and not 2, the usual ids of a T5 and a BART
    assert stated["decoder_start_token_id"] == tokenizer.start_id


def test_a_decoder_is_not_written_without_the_encoder_that_it_reads(tokenizer, tmp_path):
    della_with_an_encoder("bart", tokenizer, tmp_path / "model", share_embedding=False)
    with pytest.raises(
        WeightsError, match="its encoder and decoder do not share a token embedding"
    ):
        loading.export_backbone(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_part_that_there_is_not(tokenizer, tmp_path):
    model_of("lm", OWN / "gpt2", "decoder", tokenizer, tmp_path / "model")
    with pytest.raises(
        WeightsError, match="model.family=lm has no encoder to export; parts: decoder"
    ):
        loading.export_backbone(tmp_path / "model", tmp_path / "out", "encoder")
    assert not (tmp_path / "out").exists()
    loading.export_backbone(tmp_path / "model", tmp_path / "out")
    with pytest.raises(WeightsError, match=r"holds model.safetensors already"):
        loading.export_backbone(tmp_path / "model", tmp_path / "out")
