"""Originals in, whole models out and in again; no pickle is ever executed."""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import pickle
import shutil
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from jvae import config as configs
from jvae.api import Batch, Side
from jvae.backbones.bert import BertConfig
from jvae.backbones.gpt2 import Gpt2Config
from jvae.data import tokenizers
from jvae.errors import ConfigError, WeightsError
from jvae.models import family, optimus
from jvae.pretrained import names
from jvae.runs import build, exports, model_card
from jvae.runs.model_card import About
from jvae.tree import named_leaves
from tests.tools import reference

STACK = Gpt2Config(layers=2, width=16, heads=2, mlp=32, vocab=20, positions=8)
CONFIG = optimus.OptimusConfig(
    BertConfig(**vars(STACK)), dataclasses.replace(STACK, vocab=23), latent=4
)


def _random(model, seed=0):
    rng = np.random.default_rng(seed)
    target = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), target)


@pytest.fixture(scope="module")
def theirs():
    """A state dict as Optimus saves it, and our parameters of it."""
    params = _random(optimus.build(CONFIG))
    for side, vocab in (("encoder", 20), ("decoder", 23)):
        params[side]["embed"]["token"]["table"][vocab:] = 0.0
    state = names.write(family("optimus").original(CONFIG), params)
    state["decoder.transformer.h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.float32)
    return state, named_leaves(params)


def _check(path, params):
    got = named_leaves(exports.import_original(path, "optimus", CONFIG))
    assert got.keys() == params.keys()
    for name, leaf in got.items():
        np.testing.assert_array_equal(leaf, params[name], err_msg=name)


# --- originals ------------------------------------------------------------------------------------


def test_originals_from_safetensors_and_npz(theirs, tmp_path):
    state, params = theirs
    parallel = {f"module.{name}": np.ascontiguousarray(array) for name, array in state.items()}
    save_file(parallel, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **state)
    for file in ("a.safetensors", "a.npz"):
        _check(tmp_path / file, params)
    np.savez(tmp_path / "b.npz", **state, extra=np.ones(3))
    with pytest.raises(WeightsError, match=r"b.npz: tensors that no part .* extra \(3,\)"):
        exports.import_original(tmp_path / "b.npz", "optimus", CONFIG)


def test_originals_that_cannot_be_imported(tmp_path):
    with pytest.raises(ConfigError, match="'lm' cannot be imported; known: .*optimus"):
        exports.import_original(tmp_path / "a.npz", "lm", CONFIG)
    with pytest.raises(ConfigError, match="model.family is 'rnn'"):
        exports.import_original(tmp_path / "a.npz", "rnn", CONFIG)
    for file, message in (("a.npz", "no such file"), ("a.bin", "no such file"), ("a.h5", "type")):
        with pytest.raises(WeightsError, match=message):
            exports.import_original(tmp_path / file, "optimus", CONFIG)


class _Tensor:
    """What is used of a torch tensor."""

    def __init__(self, array, dtype=None):
        self.array, self.shape = array, array.shape
        self.dtype = f"torch.{dtype or array.dtype}"

    def detach(self):
        return self

    def float(self):
        return _Tensor(self.array.astype(np.float32))

    def numpy(self):
        assert "bfloat16" not in self.dtype
        return self.array


@pytest.fixture
def torch(monkeypatch):
    """A stand-in for torch that records how files are loaded."""
    fake = types.ModuleType("torch")
    fake.calls, fake.tree, fake.safe = [], {}, []

    def load(path, **options):
        fake.calls.append(options)
        if isinstance(fake.tree, Exception):
            raise fake.tree
        return fake.tree

    @contextlib.contextmanager
    def safe_globals(kinds):
        fake.safe += kinds
        yield

    fake.load = load
    fake.serialization = types.SimpleNamespace(safe_globals=safe_globals)
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


def test_torch_files_go_through_the_weights_only_loader(theirs, tmp_path, torch):
    state, params = theirs
    (tmp_path / "training.bin").write_bytes(b"anything")
    torch.tree = {"iter": 3, "model_state_dict": {n: _Tensor(a) for n, a in state.items()}}
    _check(tmp_path / "training.bin", params)
    assert torch.calls == [{"map_location": "cpu", "weights_only": True}]
    assert torch.safe == [argparse.Namespace]

    torch.tree = {n: _Tensor(a, "bfloat16") for n, a in state.items()}
    _check(tmp_path / "training.bin", params)

    for tree, message in (
        (RuntimeError("Unsupported global: os.system"), "refuses it .*os.system"),
        ({"state_dict": [1, 2]}, "holds list"),
        ({"epoch": 3, "loss": 0.5}, "epoch, loss are not tensors"),
    ):
        torch.tree = tree
        with pytest.raises(WeightsError, match=message):
            exports.import_original(tmp_path / "training.bin", "optimus", CONFIG)


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_is_never_executed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    mark = tmp_path / "executed"
    bomb = pickle.dumps({"w": _Bomb(mark)})
    for name in ("a.bin", "a.pt", "a.ckpt", "a.pth", "a.npz", "a.safetensors", "a.msgpack"):
        (tmp_path / name).write_bytes(bomb)
        with pytest.raises(WeightsError, match="torch is not installed|damaged"):
            exports.import_original(tmp_path / name, "optimus", CONFIG)
    np.savez(tmp_path / "b.npz", w=np.array([_Bomb(mark)], object))
    with pytest.raises(WeightsError, match="allow_pickle"):
        exports.import_original(tmp_path / "b.npz", "optimus", CONFIG)
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists()  # it was a live one


@pytest.mark.parametrize("variant", ["memory", "emb", "both"])
def test_the_original_optimus_goes_through_the_public_importer(variant, tmp_path):
    data = np.load(reference.path(f"optimus/{variant}_seed0.npz"))
    meta = json.loads(str(data["meta/config_json"]))
    size = meta["size"]
    stack = dict(positions=64, dropout=0.0)
    config = optimus.OptimusConfig(
        BertConfig(2, 32, 2, 128, size["bert_vocab"], norm_eps=1e-12, **stack),
        Gpt2Config(2, 32, 2, 128, size["gpt_vocab"] + 3, **stack),
        latent=size["latent"],
        use_memory=meta["latent_as_gpt_memory"],
        use_embedding=meta["latent_as_gpt_emb"],
    )
    state = {k[6:]: data[k] for k in data.files if k.startswith("param/")}
    np.savez(tmp_path / "original.npz", **state)
    params = exports.import_original(tmp_path / "original.npz", "optimus", config)
    again = names.write(family("optimus").original(config), params)
    assert len(again) > 40
    for name, array in again.items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


# --- exports --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    """Config, tokenizers and parameters of a small model, as a run leaves them."""
    words = [f"word{i} and more" for i in range(30)]
    encoder = tokenizers.train_word_level(words, role="encoder")
    decoder = encoder.for_role("decoder")
    config = configs.load("optimus:tiny").copy_and_resolve_references()
    with config.unlocked():
        for side in ("encoder", "decoder"):
            config.model[side].update(layers=1, width=16, heads=2, mlp=32, positions=8)
            config.model[side].vocab = encoder.vocab_size
    model = build.build_model(config)
    return config.lock(), encoder, decoder, _random(model), model


@pytest.fixture(scope="module")
def exported(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "model"
    exports.export_model(folder, *whole[:4], about=About(results="| BLEU | 1 |"))
    return folder


def test_an_export_loads_again_bit_by_bit(whole, exported):
    config, encoder, decoder, params, _ = whole
    got = exports.load_export(exported)
    assert configs.diff(got.config, config) == {}
    assert got.encoder.fingerprint == encoder.fingerprint
    assert (got.decoder.role, got.decoder.fingerprint) == ("decoder", decoder.fingerprint)
    ours, theirs = named_leaves(params), named_leaves(got.params)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(theirs[path], leaf, err_msg=path)
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: jvae\n") and "| BLEU | 1 |" in card
    assert f"| all | {sum(a.size for a in ours.values()):,} |" in card
    assert model_card.EXAMPLE.format(name="optimus-tiny") in card
    readme = Path(__file__).parents[2] / "README.md"
    assert model_card.EXAMPLE.format(name="optimus-tiny") in readme.read_text()
    assert [p.name for p in exported.parent.iterdir()] == ["model"]  # nothing half-written is left
    for line in (exported / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest


def test_low_rank_additions_of_a_context_are_merged(whole, tmp_path):
    config, encoder, decoder, _, _ = whole
    config = config.copy_and_resolve_references().unlock()
    config.model.encoder.layers, config.model.context_layers = 2, 1
    config.model.encoder.lora.rank = 2
    model = build.build_model(config.lock())
    params = _random(model)
    assert "lora" in params["context"]["layers"]["attn"]["qkv"]
    content = exports.Export(config, encoder, decoder, params)
    exports.export_model(tmp_path / "out", *exports.merged(content))
    got = exports.load_export(tmp_path / "out")
    assert got.config.model.encoder.lora.rank == 0
    ones = jnp.ones((2, 6), jnp.int32)
    side = Side(3 + jnp.arange(12).reshape(2, 6), ones, jnp.tile(jnp.arange(6), (2, 1)))
    batch = Batch(side, side, side, ones > 0, np.arange(2, dtype=np.int32))

    def read(model, params):
        return model.gen.condition(params, batch), model.post.encode(params, batch)

    again = jax.tree.leaves(read(build.build_model(got.config), got.params))
    for a, b in zip(again, jax.tree.leaves(read(model, params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_what_files_say_of_a_tokenizer_goes_along(whole, tmp_path):
    config, encoder, _, params, _ = whole
    encoder.save(tmp_path / "own")
    (tmp_path / "own/tokenizer_config.json").write_text('{"pad_token": "</s>"}')
    loaded = tokenizers.load(tmp_path / "own", "encoder")
    assert loaded.pad_id == loaded.end_id and loaded.fingerprint != encoder.fingerprint
    exports.export_model(tmp_path / "out", config, loaded, loaded.for_role("decoder"), params)
    got = exports.load_export(tmp_path / "out")
    for tokenizer in (got.encoder, got.decoder):
        assert (tokenizer.fingerprint, tokenizer.pad_id) == (loaded.fingerprint, loaded.pad_id)
    (tmp_path / "out/tokenizers/decoder/tokenizer_config.json").unlink()
    with pytest.raises(WeightsError, match="lacks tokenizers/decoder/tokenizer_config.json"):
        exports.load_export(tmp_path / "out")


def test_an_export_loads_onto_a_mesh(whole, exported):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

    def where(a):
        return NamedSharding(mesh, P("x") if a.shape[0] % 8 == 0 else P())

    shardings = jax.tree.map(where, whole[3])
    params = exports.load_export(exported, shardings).params
    for path, leaf in named_leaves(params).items():
        assert leaf.sharding == named_leaves(shardings)[path]
    table = params["decoder"]["embed"]["token"]["table"]
    assert {s.data.shape for s in table.addressable_shards} == {(16, 16)}
    np.testing.assert_array_equal(table, whole[3]["decoder"]["embed"]["token"]["table"])


def test_every_flipped_byte_is_caught(exported, monkeypatch):
    def stop(*args):
        raise AssertionError("a changed folder got past its hashes")

    monkeypatch.setattr(configs, "from_json", stop)
    rng = np.random.default_rng(0)
    for file in sorted(p for p in exported.rglob("*") if p.is_file() and p.name != "README.md"):
        data = file.read_bytes()
        all_of_it = len(data) < 1000
        places = range(len(data)) if all_of_it else rng.integers(0, len(data), 60)
        for at in [*places, 0, len(data) - 1]:
            changed = bytearray(data)
            changed[at] ^= 1 << int(rng.integers(8))
            file.write_bytes(changed)
            with pytest.raises(WeightsError, match=r"SHA256SUMS|lacks"):
                exports.load_export(exported)
        file.write_bytes(data)
    with pytest.raises(AssertionError, match="got past"):
        exports.load_export(exported)  # whole again


def test_folders_that_are_no_export(whole, exported, tmp_path):
    with pytest.raises(WeightsError, match="already exists"):
        exports.export_model(exported, *whole[:4])
    with pytest.raises(WeightsError, match="has no SHA256SUMS"):
        exports.load_export(tmp_path)
    with pytest.raises(WeightsError, match="no such folder"):
        exports.load_export(tmp_path / "nothing")
    extra = exported / "notes.txt"
    extra.write_text("x")
    with pytest.raises(WeightsError, match="does not list notes.txt"):
        exports.load_export(exported)
    extra.rename(exported / ".gitattributes")  # hubs add it
    exports.load_export(exported)
    card, sums = exported / "README.md", exported / "SHA256SUMS"
    written, text = card.read_bytes(), sums.read_text()
    card.write_text("edited on a hub")
    exports.load_export(exported)
    card.unlink()
    exports.load_export(exported)
    card.write_bytes(written)
    assert "README.md" not in text
    digest = hashlib.sha256(b"as it was").hexdigest()  # older exports list their card
    sums.write_text(text + f"{digest}  README.md\n")
    exports.load_export(exported)
    sums.write_text(text)
    sums.write_text(text[: text.rindex("\n")])
    with pytest.raises(WeightsError):
        exports.load_export(exported)
    sums.write_text(text)


def test_parameters_of_another_model_are_not_exported(whole, tmp_path):
    config, encoder, decoder, params, _ = whole
    less = {k: v for k, v in params.items() if k != "posterior"}
    with pytest.raises(WeightsError, match="do not match the config: posterior/head"):
        exports.export_model(tmp_path / "x", config, encoder, decoder, less)
    assert not any(tmp_path.iterdir())
    bad = jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan), params)
    exports.export_model(tmp_path / "x", config, encoder, decoder, bad)
    with pytest.raises(WeightsError, match="NaN"):
        exports.load_export(tmp_path / "x")


# --- damage ---------------------------------------------------------------------------------------


def _summed(folder):
    """The sums of what the folder holds now."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n"
        for path in files
        if path.name != "SHA256SUMS" and not path.name.startswith(".")
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe", "cannot be read"),
        (b"", "stored config is not JSON"),
        (b"[" * 100_000, "stored config is not JSON"),
        (b"[1]", "stored config is not a JSON object"),
        (b'{"model": 5}', "model.family is missing"),
        (b'{"model": {"family": "optimus", "encoder": 3}}', "model.encoder is not a section"),
        (b'{"model": {"family": "optimus"}, "optim": 3}', "optim is a number, expected a section"),
        (b'{"model": {"family": "optimus"}, "seed": "x"}', "seed is text, expected a number"),
    ],
)
def test_configs_that_cannot_be(exported, tmp_path, text, message):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    (folder / "config.json").write_bytes(text)
    _summed(folder)
    with pytest.raises(WeightsError, match=message) as caught:
        exports.load_export(folder)
    assert str(folder) in str(caught.value)


def test_tokenizers_of_another_model(whole, exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    words = [f"word{i} and more" for i in range(30)]
    for texts, message in (
        ([*words, "one"], r"its encoder tokenizer has 37 tokens and the model 36; put back"),
        (words[:-1], r"the 35 tokens of its encoder tokenizer are not those it was exported with"),
        ([*words, "word7"], r"the 36 tokens of its encoder tokenizer are not those"),
    ):
        tokenizers.train_word_level(texts, role="encoder").save(folder / "tokenizers/encoder")
        _summed(folder)
        with pytest.raises(WeightsError, match=message):
            exports.load_export(folder)
    whole[1].save(folder / "tokenizers/encoder")
    _summed(folder)
    exports.load_export(folder)


def test_shapes_are_compared_before_anything_is_allocated(whole, exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    config = whole[0].copy_and_resolve_references()
    with config.unlocked():
        config.model.decoder.mlp = 10**12
    (folder / "config.json").write_text(configs.to_json(config))
    _summed(folder)
    with pytest.raises((WeightsError, ConfigError)):
        exports.load_export(folder)
