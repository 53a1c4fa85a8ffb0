"""Exports of what a training added alone, which find the pretrained weights again."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae import config as configs
from jvae.data import tokenizers
from jvae.errors import WeightsError
from jvae.nn.backbone import KEY
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


def test_a_model_that_was_trained_whole_has_no_base(trained):
    params = jax.tree.map(lambda a: a + 1, trained.params)
    with pytest.raises(WeightsError, match="no parameters of this model are still those"):
        exports.base_of(trained.config, params)
    config = trained.config.copy_and_resolve_references().unlock()
    config.init.decoder = ""
    with pytest.raises(WeightsError, match="init.encoder and init.decoder are empty"):
        exports.base_of(config, params)
