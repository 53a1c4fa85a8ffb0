"""Exports of what a training added alone, which find the pretrained weights again."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae import config as configs
from jvae import hub
from jvae.data import tokenizers
from jvae.errors import WeightsError
from jvae.nn.backbone import KEY
from jvae.pretrained import files
from jvae.pretrained.export import export_backbone
from jvae.pretrained.layouts import LAYOUTS
from jvae.pretrained.names import Vocab
from jvae.runs import build, exports
from jvae.tree import map_named, named_leaves, sizes

STACK = dict(layers=2, width=16, heads=2, mlp=32, positions=8)
WAYS = {"adavae": ("adapter", "psa"), "lm": ("lora",)}  # what each adds


@pytest.fixture(scope="module", params=["lm", pytest.param("adavae", marks=pytest.mark.slow)])
def trained(request, tmp_path_factory) -> exports.Export:
    """A model on a frozen stack in bfloat16 that has files of its own."""
    folder, name = tmp_path_factory.mktemp(request.param) / "base", request.param
    words = tokenizers.train_word_level([f"word{i} and more" for i in range(30)], role="encoder")
    config = configs.load(name).unlock()
    config.init.decoder, config.init.frozen_dtype = str(folder), "bfloat16"
    config.model.decoder.update(STACK | dict(vocab=words.vocab_size))
    config.model.decoder.lora.rank = 2 * (name == "lm")
    if name == "adavae":
        config.model.update(adapter=4, encoder_layers=1)
    model, rng = build.build_model(config), np.random.default_rng(0)

    def leaf(path: str, like: jax.ShapeDtypeStruct) -> np.ndarray:
        value = rng.normal(size=like.shape).astype(np.float32)
        of_decoder = path.startswith("decoder/") and not any(way in path for way in WAYS[name])
        return value.astype(jnp.bfloat16) if of_decoder else value

    params = map_named(leaf, jax.eval_shape(model.init, jax.random.key(0)))
    vocab = words.vocab_size
    params["decoder"]["embed"]["token"]["table"][vocab:] = 0.0  # rows of no token
    layout, section = LAYOUTS[config.model.decoder[KEY]], config.model.decoder
    table = layout.table(section, Vocab(vocab, vocab), "decoder", "decoder", None)
    wide = jax.tree.map(lambda a: a.astype(np.float32), params)
    export_backbone(folder, layout.files, table, wide, section.to_dict())
    return exports.Export(config.lock(), words, words.for_role("decoder"), params)


def write(trained: exports.Export, folder) -> None:
    base = exports.base_of(trained.config, trained.params)
    exports.export_model(folder, *trained, base=base)


def test_the_rest_comes_from_the_base_bit_by_bit(trained, tmp_path):
    write(trained, tmp_path / "small")
    size = (tmp_path / "small" / exports.ADAPTERS).stat().st_size
    assert size < 0.75 * 4 * sum(sizes(trained.params).values())
    got, want = (
        named_leaves(p) for p in (exports.load_export(tmp_path / "small").params, trained.params)
    )
    assert list(got) == list(want)
    for path, leaf in want.items():
        assert got[path].dtype == leaf.dtype, path
        np.testing.assert_array_equal(got[path], leaf, err_msg=path)


def test_a_base_that_moved_is_named_and_another_one_is_refused(trained, tmp_path):
    write(trained, tmp_path / "small")
    base = trained.config.init.decoder
    moved = shutil.copytree(base, tmp_path / "moved")
    exports.load_export(tmp_path / "small", base={"decoder": str(moved)})
    with pytest.raises(WeightsError, match="has no base 'encoder'; it has decoder"):
        exports.load_export(tmp_path / "small", base={"encoder": str(moved)})


HINT = r"call jvae\.load\(\.\.\., base=\{'decoder': FOLDER\}\)"


def named(trained: exports.Export, name: str) -> exports.Export:
    """The same model, trained from a base under another name."""
    config = trained.config.copy_and_resolve_references().unlock()
    config.init.decoder = name
    return trained._replace(config=config.lock())


@pytest.fixture
def no_hub(monkeypatch):
    def file(name: str, *args: object) -> None:
        raise AssertionError(f"{name} was looked up on the hub")

    monkeypatch.setattr(hub, "file", file)


def test_a_relative_base_is_found_from_another_working_directory(
    trained, tmp_path, monkeypatch, no_hub
):
    shutil.copytree(trained.config.init.decoder, tmp_path / "models/base")
    monkeypatch.chdir(tmp_path)
    write(named(trained, "models/base"), "small")
    monkeypatch.chdir(tmp_path.parent)
    exports.load_export(tmp_path / "small")
    shutil.rmtree(tmp_path / "models/base")
    with pytest.raises(WeightsError, match=f"models/base: the folder was moved.*{HINT}"):
        exports.load_export(tmp_path / "small")


def test_a_base_that_moved_with_the_export_is_found(trained, tmp_path, no_hub):
    base = shutil.copytree(trained.config.init.decoder, tmp_path / "before/base")
    write(named(trained, str(base)), tmp_path / "before/runs/small")
    shutil.move(tmp_path / "before", tmp_path / "after")
    exports.load_export(tmp_path / "after/runs/small")


def test_the_error_for_a_base_that_is_gone_says_how_to_name_another(trained, tmp_path, no_hub):
    base = shutil.copytree(trained.config.init.decoder, tmp_path / "base")
    write(named(trained, str(base)), tmp_path / "small")
    moved = shutil.move(base, tmp_path / "moved")
    with pytest.raises(WeightsError, match=f"{base}: the folder was moved or deleted.*{HINT}"):
        exports.load_export(tmp_path / "small")
    exports.load_export(tmp_path / "small", base={"decoder": moved})
    with pytest.raises(WeightsError, match=f"{base}: no such folder.*{HINT}"):
        exports.load_export(tmp_path / "small", base={"decoder": str(base)})
    (moved / "config.json").unlink()
    with pytest.raises(WeightsError, match=f"{moved}: has no config.json.*{HINT}"):
        exports.load_export(tmp_path / "small", base={"decoder": str(moved)})


def test_a_base_on_the_hub_keeps_its_name(trained, tmp_path, monkeypatch):
    folder = trained.config.init.decoder
    with monkeypatch.context() as online:
        online.setattr(hub, "file", lambda name, file, error: present(Path(folder) / file))
        write(named(trained, "someone/base"), tmp_path / "small")
        exports.load_export(tmp_path / "small")
    assert folder.encode() not in (tmp_path / "small" / exports.ADAPTERS).read_bytes()
    with pytest.raises(WeightsError, match=f"someone/base: .*HF_HUB_OFFLINE is set.*{HINT}"):
        exports.load_export(tmp_path / "small")
    exports.load_export(tmp_path / "small", base={"decoder": folder})


def present(path: Path) -> Path | None:
    return path if path.is_file() else None


def test_weights_that_changed_are_refused(trained, tmp_path):
    base = shutil.copytree(trained.config.init.decoder, tmp_path / "base")
    write(named(trained, str(base)), tmp_path / "small")
    tensors = {
        name: np.asarray(t) + 1 for name, t in files.read_file(base / files.SAFETENSORS).items()
    }
    files.write_safetensors(base / files.SAFETENSORS, tensors, {"format": "pt"})
    with pytest.raises(WeightsError, match=f"{base} is not what it was trained on.*{HINT}"):
        exports.load_export(tmp_path / "small")


def test_the_card_names_bases_on_the_hub_and_no_local_path(trained, tmp_path):
    write(trained, tmp_path / "small")
    card = (tmp_path / "small" / exports.CARD).read_text()
    assert "were in a local folder when this model was exported" in card
    assert 'pass `base={"decoder": FOLDER}`' in card
    assert str(Path(trained.config.init.decoder).parent) not in card
    base = exports.base_of(trained.config, trained.params)
    base = base._replace(where={"decoder": "someone/base"})
    exports.export_model(tmp_path / "named", *trained, base=base)
    card = (tmp_path / "named" / exports.CARD).read_text()
    assert "`load` reads them from someone/base." in card and "FOLDER" not in card


def test_a_model_that_was_trained_whole_has_no_base(trained):
    params = jax.tree.map(lambda a: a + 1, trained.params)
    with pytest.raises(WeightsError, match="no parameters of this model are still those"):
        exports.base_of(trained.config, params)
    config = trained.config.copy_and_resolve_references().unlock()
    config.init.decoder = ""
    with pytest.raises(WeightsError, match="init.encoder and init.decoder are empty"):
        exports.base_of(config, params)
