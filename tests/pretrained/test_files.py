"""Weight files, names and shapes: shards, heads, old names, the hub's cache, and damage."""

import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from jvae import hub
from jvae.backbones import bert as bert_stack
from jvae.backbones import distilbert
from jvae.backbones import gpt2 as gpt2_stack
from jvae.errors import WeightsError
from jvae.models.common import unboxed
from jvae.pretrained import backbones, bert, files, gpt2, names, t5
from jvae.pretrained.names import Vocab
from jvae.tree import named_leaves

HF = Path(__file__).parent / "hf"
SIZE = gpt2_stack.Gpt2Config(layers=2, width=32, heads=4, mlp=128, vocab=97, positions=32)
ST, MP = files.SAFETENSORS, files.MSGPACK


@pytest.fixture(scope="module")
def target():
    """Our GPT-2 tree for the fixture, and BERT's, as shapes."""
    init = {"gpt2": lambda k: {"decoder": gpt2_stack.stack(SIZE).init(k)}}
    bert_size = bert_stack.BertConfig(layers=2, width=32, heads=4, mlp=64, vocab=97, positions=32)
    init["bert"] = lambda k: {"encoder": bert_stack.stack(bert_size).init(k)}
    trees = {n: jax.eval_shape(unboxed(f)[0], jax.random.key(0)) for n, f in init.items()}
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)  # noqa: E731
    trees["bert"]["pooler"] = {"kernel": shape(32, 32), "bias": shape(32)}
    return trees


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(HF / "gpt2", tmp_path / "gpt2")
    return tmp_path / "gpt2"


def _load(folder, target, table=None):
    checkpoint = files.open_checkpoint(folder)
    foreign = backbones.canonical(gpt2.BACKBONE, checkpoint)
    return named_leaves(names.read(table or gpt2.table(97, "decoder"), foreign, target["gpt2"]))


@pytest.fixture(scope="module")
def truth(target):
    return _load(HF / "gpt2", target)


def _same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def _arrays(name: str) -> dict[str, np.ndarray]:
    return {k: np.asarray(t) for k, t in files.read_file(HF / name / ST).items()}


# --- layouts of files -----------------------------------------------------------------------------


def test_sharded_safetensors(folder, target, truth):
    arrays = _arrays("gpt2")
    (folder / ST).unlink()
    where = {n: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, n in enumerate(arrays)}
    for shard in set(where.values()):
        save_file({n: a for n, a in arrays.items() if where[n] == shard}, folder / shard)
    index = folder / (ST + ".index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    checkpoint = files.open_checkpoint(folder)
    assert len(checkpoint.files) == 2 and not checkpoint.flax
    assert _same(_load(folder, target), truth)

    wrong = dict(where) | {"transformer.wte.weight": "model-00002-of-00002.safetensors"}
    wrong["transformer.wpe.weight"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": wrong}))
    with pytest.raises(WeightsError, match="disagrees with"):
        files.open_checkpoint(folder)
    for bad in ("missing.safetensors", "../model.safetensors", "/etc/passwd"):
        index.write_text(json.dumps({"weight_map": where | {"x": bad}}))
        with pytest.raises(WeightsError, match=rf"1 of 3 shards are missing \({bad}\)"):
            files.open_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": where}))
    for shard in set(where.values()):
        (folder / shard).rename(folder / f"{shard}.away")
    with pytest.raises(
        WeightsError, match=r"2 of 2 shards are missing \(model-00001-of-00002.*, m"
    ):
        files.open_checkpoint(folder)
    index.write_text("{}")
    with pytest.raises(WeightsError, match="no weight_map"):
        files.open_checkpoint(folder)


def _pack(tree) -> bytes:
    def ext(array):
        shape, data = list(array.shape), array.tobytes()
        return msgpack.ExtType(1, msgpack.packb((shape, array.dtype.name, data)))

    def walk(node):
        return {k: walk(v) for k, v in node.items()} if isinstance(node, dict) else ext(node)

    return msgpack.packb(walk(tree))


def test_written_tensors_keep_their_shapes(tmp_path):
    arrays = {
        "scalar": np.array(2.5, np.float32),
        "one": np.array([3.0], np.float32),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "device": jnp.float32(1.5),
    }
    files.write_safetensors(tmp_path / ST, arrays, {})
    tensors = files.read_file(tmp_path / ST)
    assert [tensors[name].shape for name in arrays] == [(), (1,), (3, 2), ()]
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / ST).stat().st_mode == (tmp_path / "plain").stat().st_mode
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(tensors[name]), array)


def test_sharded_and_chunked_flax_files(folder, target, truth):
    tensors = {n: np.asarray(t) for n, t in files.read_file(folder / MP).items()}
    table = tensors["transformer/wte/embedding"]
    (folder / ST).unlink()
    (folder / MP).unlink()
    where = {n: f"flax_model-0000{i % 2 + 1}-of-00002.msgpack" for i, n in enumerate(tensors)}
    for shard in set(where.values()):
        part = names.nested({n: a for n, a in tensors.items() if where[n] == shard})
        if where["transformer/wte/embedding"] == shard:  # as Flax cuts arrays over 1 GiB
            part["transformer"]["wte"]["embedding"] = {
                "__msgpack_chunked_array__": np.array(True),
                "shape": {"0": np.array(97), "1": np.array(32)},
                "chunks": {str(i): c for i, c in enumerate(np.split(table.reshape(-1), 97))},
            }
        (folder / shard).write_bytes(_pack(part))
    (folder / (MP + ".index.json")).write_text(json.dumps({"weight_map": where}))
    assert files.open_checkpoint(folder).flax
    assert _same(_load(folder, target), truth)


@pytest.mark.parametrize("file", [ST, MP])
def test_bfloat16_files_and_targets(folder, target, truth, file):
    arrays = {
        n: np.asarray(t).astype(jnp.bfloat16) for n, t in files.read_file(folder / file).items()
    }
    (folder / ST).unlink()
    if file == ST:
        save_file(arrays, folder / ST)
    else:
        (folder / MP).write_bytes(_pack(names.nested(arrays)))
    got = _load(folder, target)
    for path, leaf in got.items():
        want = truth[path].astype(jnp.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(leaf, want)
        assert leaf.dtype == np.float32


def test_flax_names_need_no_table_of_their_own(target):
    for name, backbone in (("bert", bert), ("gpt2", gpt2), ("t5", t5), ("t5_v1_1", t5)):
        tensors = files.read_file(HF / name / MP)
        flax = files.Checkpoint(name, {}, tensors, True, ())
        torch = files.Checkpoint(name, {}, files.read_file(HF / name / ST), False, ())
        flax, torch = (backbones.canonical(backbone.BACKBONE, c) for c in (flax, torch))
        assert {n: t.shape for n, t in flax.items()} == {n: t.shape for n, t in torch.items()}


# --- heads, prefixes, old names -------------------------------------------------------------------


def _fit(table, backbone, arrays, target):
    checkpoint = files.Checkpoint("x", {}, files.of_arrays(arrays), False, ())
    foreign = backbones.canonical(backbone, checkpoint)
    return names.fit(table, foreign, target), named_leaves(names.read(table, foreign, target))


def test_bert_saved_with_heads_by_an_old_version(target):
    plain = _arrays("bert")
    table = bert.table(97, "encoder", "pooler")
    fit, want = _fit(table, bert.BACKBONE, plain, target["bert"])
    assert fit.ignored == ()
    old = {
        "bert."
        + n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"): a
        for n, a in plain.items()
    }
    heads = ("cls.predictions.bias", "cls.seq_relationship.weight", "classifier.weight")
    old |= {n: np.ones(3, np.float32) for n in heads}
    old["bert.embeddings.position_ids"] = np.arange(32)[None]
    fit, got = _fit(table, bert.BACKBONE, old, target["bert"])
    assert fit.ignored == tuple(sorted((*heads, "embeddings.position_ids")))
    assert _same(got, want)
    with pytest.raises(WeightsError, match="no part of the model uses: cls_extra"):
        _fit(table, bert.BACKBONE, plain | {"cls_extra": np.ones(3)}, target["bert"])
    both = old | {"bert.embeddings.LayerNorm.weight": np.ones(32)}
    with pytest.raises(WeightsError, match="both mean embeddings.LayerNorm.weight"):
        _fit(table, bert.BACKBONE, both, target["bert"])


def test_a_pooler_may_be_absent_or_left_aside_but_not_half_there(target):
    plain = _arrays("bert")
    table = bert.table(97, "encoder", "pooler")
    bare = {n: a for n, a in plain.items() if not n.startswith("pooler")}
    _, got = _fit(table, bert.BACKBONE, bare, target["bert"])
    assert not any(path.startswith("pooler") for path in got) and got
    half = bare | {"pooler.dense.weight": plain["pooler.dense.weight"]}
    with pytest.raises(WeightsError, match="missing: pooler.dense.bias"):
        _fit(table, bert.BACKBONE, half, target["bert"])
    without = {"encoder": target["bert"]["encoder"]}
    fit, _ = _fit(bert.table(97, "encoder", None), bert.BACKBONE, plain, without)
    assert fit.ignored == ("pooler.dense.bias", "pooler.dense.weight")


def test_gpt2_buffers_tied_head_and_missing_prefix(target, truth):
    table = gpt2.table(97, "decoder")
    plain = {n.removeprefix("transformer."): a for n, a in _arrays("gpt2").items()}
    plain["h.0.attn.bias"] = np.ones((1, 1, 32, 32))
    plain["h.1.attn.masked_bias"] = np.array(-1e4)
    plain["lm_head.weight"] = plain["wte.weight"]
    fit, got = _fit(table, gpt2.BACKBONE, plain, target["gpt2"])
    assert fit.ignored == ("h.0.attn.bias", "h.1.attn.masked_bias")
    assert _same(got, truth)
    plain["lm_head.weight"] = plain["wte.weight"] + 1
    with pytest.raises(WeightsError, match="lm_head.weight must equal wte.weight"):
        _fit(table, gpt2.BACKBONE, plain, target["gpt2"])


@pytest.mark.parametrize(
    "prefix",
    [
        *("", "transformer.", "_orig_mod.transformer.", "module.transformer.", "model."),
        *("0.auto_model.", "module._orig_mod.model.transformer.", "base_model.model."),
    ],
)
def test_any_stack_of_prefixes_is_taken_off_and_reported(target, truth, prefix):
    """The head of a model in a wrapper has the wrapper's prefix alone."""
    plain = {n.removeprefix("transformer."): a for n, a in _arrays("gpt2").items()}
    wrapped = {f"{prefix}{n}": a for n, a in plain.items()}
    outer = prefix.removesuffix("transformer.")
    wrapped[f"{outer}lm_head.weight"] = plain["wte.weight"]
    checkpoint = files.Checkpoint("x", {}, files.of_arrays(wrapped), False, ())
    foreign = backbones.canonical(gpt2.BACKBONE, checkpoint)
    got = names.read(gpt2.table(97, "decoder"), foreign, target["gpt2"])
    assert _same(named_leaves(got), truth)
    said = backbones.prefixes(gpt2.BACKBONE, checkpoint)
    assert said[:1] == ((prefix,) if prefix else ()) and set(said) == {prefix, outer} - {""}


def test_names_of_its_own_are_no_prefix():
    """DistilBERT has its layers under a word that elsewhere is a wrapper's."""
    tensors = ("embeddings.word_embeddings.weight", "transformer.layer.0.ffn.lin1.weight")
    for prefix in ("", "distilbert.", "_orig_mod.distilbert.", "module.", "0.auto_model."):
        arrays = {f"{prefix}{name}": np.zeros(4, np.float32) for name in tensors}
        checkpoint = files.Checkpoint("x", {}, files.of_arrays(arrays), False, ())
        assert tuple(backbones.canonical(distilbert.FILES, checkpoint)) == tensors


def test_an_unknown_prefix_is_named_in_a_short_message(target):
    plain = {n.removeprefix("transformer."): a for n, a in _arrays("gpt2").items()}
    odd = {f"policy.net.{n}": a for n, a in plain.items()}
    with pytest.raises(
        WeightsError, match=r"names of the file begin with 'policy\.net\.'"
    ) as error:
        _fit(gpt2.table(97, "decoder"), gpt2.BACKBONE, odd, target["gpt2"])
    assert "h.0.attn.c_attn.bias" in str(error.value) and " more" in str(error.value)
    assert len(str(error.value)) < 700


# --- vocabulary, dtype, sharding ------------------------------------------------------------------


def _vocab_target(target, rows, sharding=None, dtype=jnp.float32):
    spec = lambda a: jax.ShapeDtypeStruct(a.shape, dtype, sharding=sharding)  # noqa: E731
    tree = jax.tree.map(spec, target["gpt2"])
    table = jax.ShapeDtypeStruct((rows, 32), dtype, sharding=sharding)
    tree["decoder"]["embed"]["token"] = {"table": table}
    return tree


def test_new_rows_are_the_mean_and_padding_is_zero(target, truth):
    foreign = backbones.canonical(gpt2.BACKBONE, files.open_checkpoint(HF / "gpt2"))
    path = "decoder/embed/token/table"
    tree = _vocab_target(target, 128)
    grown = gpt2.table(Vocab(97, 100), "decoder")
    got = named_leaves(names.read(grown, foreign, tree))[path]
    np.testing.assert_array_equal(got[:97], truth[path][:97])
    mean = truth[path][:97].astype(np.float64).mean(0)
    np.testing.assert_allclose(got[97:100], np.tile(mean, (3, 1)), rtol=1e-6)
    assert not np.any(got[100:])
    assert names.write(grown, names.read(grown, foreign, tree))["wte.weight"].shape == (100, 32)

    for dtype in (jnp.bfloat16, np.float16):  # summed in more digits than it has
        half = {n: np.full(t.shape, 1.0, dtype) for n, t in foreign.items()}
        rows = named_leaves(names.read(grown, half, tree))[path]
        assert np.all(rows[:100] == 1.0) and not np.any(rows[100:])

    cut = gpt2.table(Vocab(97, 90), "decoder")
    got = named_leaves(names.read(cut, foreign, _vocab_target(target, 128)))[path]
    np.testing.assert_array_equal(got[:90], truth[path][:90])
    assert not np.any(got[90:])


def test_leaves_go_straight_to_their_shards_and_dtype(target, truth):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    where = {a.ndim: NamedSharding(mesh, P(*[None] * (a.ndim - 1), "x")) for a in truth.values()}
    tree = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(
            a.shape, jnp.bfloat16, sharding=where[len(a.shape)] if a.shape[-1] % 8 == 0 else
            NamedSharding(mesh, P())
        ),
        target["gpt2"],
    )  # fmt: skip
    foreign = backbones.canonical(gpt2.BACKBONE, files.open_checkpoint(HF / "gpt2"))
    got = named_leaves(names.load_into(gpt2.table(97, "decoder"), foreign, tree))
    like = named_leaves(tree)
    cut = 0
    for path, leaf in got.items():
        assert leaf.dtype == jnp.bfloat16 and leaf.sharding == like[path].sharding
        np.testing.assert_array_equal(leaf, truth[path].astype(jnp.bfloat16))
        if not leaf.is_fully_replicated:
            cut += 1
            assert all(s.data.size * 8 == leaf.size for s in leaf.addressable_shards)
    assert cut >= 6


# --- what can be wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu'"),
        ({"model_type": "roberta"}, "model_type is 'roberta'; expected 'bert'"),
        ({"hidden_size": None}, "hidden_size is None; expected a positive integer"),
        ({"num_hidden_layers": -2}, "num_hidden_layers is -2"),
    ],
)
def test_configs_that_are_not_ours(change, message):
    config = json.loads((HF / "bert/config.json").read_text()) | change
    checkpoint = files.Checkpoint("here", config, {}, False, ())
    with pytest.raises(WeightsError, match=f"here/config.json: {message}"):
        backbones.sizes(bert.BACKBONE, checkpoint)
    del config["hidden_size"]
    with pytest.raises(WeightsError, match="hidden_size|model_type|hidden_act|num_hidden_layers"):
        backbones.sizes(bert.BACKBONE, checkpoint)


def test_other_sizes_say_what_to_set():
    checkpoint = files.open_checkpoint(HF / "bert")
    ours = backbones.sizes(bert.BACKBONE, checkpoint) | {"dropout": 0.1, "vocab": 5}
    backbones.check_sizes(bert.BACKBONE, checkpoint, ours, "model.encoder")
    with pytest.raises(WeightsError, match="model.encoder.layers is 12, the checkpoint has 2") as e:
        backbones.check_sizes(
            bert.BACKBONE, checkpoint, ours | {"layers": 12, "norm_eps": 1e-5}, "model.encoder"
        )
    assert "--config.model.encoder.layers=2 --config.model.encoder.norm_eps=1e-12" in str(e.value)


def test_folders_without_what_is_needed(folder):
    (folder / "config.json").rename(folder / "c.json")
    with pytest.raises(WeightsError, match="has no config.json"):
        files.open_checkpoint(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(WeightsError, match="not a JSON object"):
        files.open_checkpoint(folder)
    (folder / "config.json").write_text("{}")
    for file in (ST, MP):
        (folder / file).unlink()
    with pytest.raises(WeightsError, match="has none of model.safetensors"):
        files.open_checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match="its pytorch_model.bin is a pickle and is not read"):
        files.open_checkpoint(folder)
    with pytest.raises(WeightsError, match="is a file"):
        files.open_checkpoint(folder / "c.json")
    with pytest.raises(WeightsError, match="expected a file of type"):
        files.read_file(folder / "c.json")


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "a/b/c", "~/no-such-folder-here"])
def test_a_path_that_is_not_there_is_no_hub_name(name):
    with pytest.raises(WeightsError, match="no such folder"):
        files.open_checkpoint(name)


def test_a_hub_name_offline(tmp_path, monkeypatch, target, truth):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="someone/tiny: no folder here, not in the Hugging Face"):
        files.open_checkpoint("someone/tiny")
    with pytest.raises(WeightsError, match="not a name!"):
        files.open_checkpoint("not a name!")
    with pytest.raises(WeightsError, match="not in the Hugging Face cache"):
        hub.folder("someone/tiny", WeightsError)
    repo = tmp_path / "models--someone--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text("0" * 40)
    (repo / "snapshots" / ("0" * 40)).mkdir(parents=True)
    for file in ("config.json", MP):
        shutil.copy(HF / "gpt2" / file, repo / "snapshots" / ("0" * 40) / file)
    assert files.open_checkpoint("someone/tiny").flax
    assert _same(_load("someone/tiny", target), truth)


# --- fuzz -----------------------------------------------------------------------------------------


def _structure(data: bytes, arrays) -> np.ndarray:
    """Positions of a file that hold no numbers."""
    is_data = np.zeros(len(data), bool)
    for array in arrays:
        raw = np.asarray(array).tobytes()
        start = data.find(raw)
        assert start >= 0
        is_data[start : start + len(raw)] = True
    return np.flatnonzero(~is_data)


def _damaged(rng, kind: str, file: str, data: bytes, where, arrays):
    if kind == "truncate":
        return data[: rng.integers(0, len(data))]
    if kind == "flip":
        out = bytearray(data)
        for at in rng.choice(where, rng.integers(1, 4)):
            out[at] ^= int(rng.integers(1, 256))
        return bytes(out)
    arrays = dict(arrays)
    name = str(rng.choice(list(arrays)))
    array = arrays.pop(name)
    shape = array.shape
    if kind == "rename":
        letters = list(name)
        letters[rng.integers(len(name))] = chr(rng.integers(97, 123))
        arrays["".join(letters) if rng.random() < 0.5 else str(rng.choice(list(arrays)))] = array
    elif kind == "shape":
        changes = (array[:-1], array[None], array.reshape(-1, 2), array.T.copy(), array[..., :1])
        # The transpose of a square matrix has the right shape: nothing in a file gives it away.
        changes = [change for change in changes if change.shape != shape]
        arrays[name] = changes[rng.integers(len(changes))]
    else:
        array = array.copy().reshape(-1)
        first = rng.integers(len(array))
        array[first : first + rng.integers(1, 40)] = rng.choice([np.nan, np.inf, -np.inf])
        arrays[name] = array.reshape(shape)
    if file == ST:
        from safetensors.numpy import save

        return save(arrays)
    return _pack(names.nested(arrays))


KINDS = ("truncate", "flip", "rename", "shape", "nan")


@pytest.mark.parametrize("file", [ST, MP])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_an_error_or_harmless(folder, target, truth, file, kind):
    (folder / (MP if file == ST else ST)).unlink()
    data = (folder / file).read_bytes()
    arrays = {n: np.asarray(t) for n, t in files.read_file(folder / file).items()}
    where = _structure(data, arrays.values())
    rng = np.random.default_rng(KINDS.index(kind))
    errors = 0
    for i in range(50):
        (folder / file).write_bytes(_damaged(rng, kind, file, data, where, arrays))
        try:
            got = _load(folder, target)
        except WeightsError as error:
            errors += 1
            assert re.search(r"\w{3,}", str(error)) and len(str(error)) < 4000
        else:
            assert _same(got, truth), f"wrong weights without a word, {kind} {i}"
    assert errors > (30 if kind == "flip" else 45)
