"""The table engine: exact round trips, and errors that name the tensors."""

import numpy as np
import pytest

from jvae.errors import WeightsError
from jvae.pretrained.names import (
    NameRule,
    NameTable,
    flat,
    joined_bias,
    joined_linear,
    kernel_rows,
    linear,
    nested,
    read,
    vocab_rows,
    write,
)
from jvae.tree import named_leaves

LAYERS, WIDTH, HEADS, HEAD, MLP, VOCAB, ROWS = 3, 6, 2, 3, 8, 5, 7
QKV = ("query", "key", "value")

TABLE = NameTable(
    rules=(
        NameRule("embed/token", ("wte",), vocab_rows(VOCAB)),
        NameRule("embed/position", ("wpe",), flat(2)),
        NameRule("norm/scale", ("ln.weight",), flat(1)),
        NameRule("layers/qkv/kernel", tuple(f"h.{{i}}.{n}.weight" for n in QKV), joined_linear(3)),
        NameRule("layers/qkv/bias", tuple(f"h.{{i}}.{n}.bias" for n in QKV), joined_bias(3)),
        NameRule("layers/out/kernel", ("h.{i}.out.weight",), linear(2)),
        NameRule("layers/up/kernel", ("h.{i}.up.weight",), linear()),
        NameRule("layers/down/kernel", ("h.{i}.down.weight",), kernel_rows(1)),
        NameRule("layers/conv/kernel", ("h.{i}.conv.weight",), kernel_rows(2)),
    ),
    ignored=(r"h\.\d+\.mask",),
    tied=(("head", "wte"),),
)

SHAPES = {
    "embed/token": (ROWS, WIDTH),
    "embed/position": (4, WIDTH),
    "norm/scale": (WIDTH,),
    "layers/qkv/kernel": (LAYERS, WIDTH, 3, HEADS, HEAD),
    "layers/qkv/bias": (LAYERS, 3, HEADS, HEAD),
    "layers/out/kernel": (LAYERS, HEADS, HEAD, WIDTH),
    "layers/up/kernel": (LAYERS, WIDTH, MLP),
    "layers/down/kernel": (LAYERS, MLP, WIDTH),
    "layers/conv/kernel": (LAYERS, HEADS, HEAD, MLP),
}


@pytest.fixture
def params():
    """Ours, padding rows of the embedding zero."""
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
    leaves["embed/token"][VOCAB:] = 0
    return nested(leaves)


@pytest.fixture
def foreign(params) -> dict[str, np.ndarray]:
    return write(TABLE, params)


def test_reading_what_was_written_gives_the_same_tree(params, foreign):
    got = named_leaves(read(TABLE, foreign, params))
    want = named_leaves(params)
    assert got.keys() == want.keys()
    for path, leaf in want.items():
        assert got[path].dtype == leaf.dtype
        np.testing.assert_array_equal(got[path], leaf, err_msg=path)


def test_writing_what_was_read_gives_the_same_tensors(params, foreign):
    again = write(TABLE, read(TABLE, foreign, params))
    assert again.keys() == foreign.keys()
    for name, tensor in foreign.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)


def test_foreign_tensors_are_what_the_transforms_say(params, foreign):
    """Linear layers act on vectors as the foreign y = W x does, in every layout."""
    rng = np.random.default_rng(1)
    layers = params["layers"]
    x, h, m = rng.normal(size=WIDTH), rng.normal(size=(HEADS, HEAD)), rng.normal(size=MLP)
    for i in range(LAYERS):
        for part, name in enumerate(QKV):
            ours = np.einsum("d,dnh->nh", x, layers["qkv"]["kernel"][i][:, part])
            theirs = foreign[f"h.{i}.{name}.weight"] @ x
            np.testing.assert_allclose(ours.ravel(), theirs, rtol=1e-6)
            bias = layers["qkv"]["bias"][i, part].ravel()
            np.testing.assert_array_equal(bias, foreign[f"h.{i}.{name}.bias"])
        out = np.einsum("nh,nhd->d", h, layers["out"]["kernel"][i])
        np.testing.assert_allclose(out, foreign[f"h.{i}.out.weight"] @ h.ravel(), rtol=1e-6)
        up = x @ layers["up"]["kernel"][i]
        np.testing.assert_allclose(up, foreign[f"h.{i}.up.weight"] @ x, rtol=1e-6)
        down = m @ layers["down"]["kernel"][i]
        np.testing.assert_allclose(down, m @ foreign[f"h.{i}.down.weight"], rtol=1e-6)
        conv = np.einsum("nh,nhf->f", h, layers["conv"]["kernel"][i])
        np.testing.assert_allclose(conv, h.ravel() @ foreign[f"h.{i}.conv.weight"], rtol=1e-6)
    np.testing.assert_array_equal(foreign["wte"], params["embed"]["token"][:VOCAB])
    np.testing.assert_array_equal(foreign["head"], foreign["wte"])


def refused(foreign, params, *words: str, table: NameTable = TABLE):
    with pytest.raises(WeightsError) as caught:
        read(table, foreign, params)
    for word in words:
        assert word in str(caught.value)


def test_every_missing_tensor_is_named(params, foreign):
    for name in ("h.1.key.weight", "ln.weight", "h.2.up.weight"):
        del foreign[name]
    refused(foreign, params, "missing", "h.1.key.weight", "ln.weight", "h.2.up.weight")


def test_every_unused_tensor_is_named_with_its_shape(params, foreign):
    foreign["h.3.up.weight"] = foreign["h.0.up.weight"]
    foreign["pooler"] = np.zeros((2, 9), np.float32)
    refused(foreign, params, f"h.3.up.weight {(MLP, WIDTH)}", "pooler (2, 9)")


def test_ignored_tensors_are_no_error(params, foreign):
    foreign["h.0.mask"] = np.ones((4, 4), np.float32)
    read(TABLE, foreign, params)
    foreign["x.h.0.mask"] = np.ones((4, 4), np.float32)  # a pattern fits whole names
    refused(foreign, params, "x.h.0.mask")


@pytest.mark.parametrize(
    "name",
    [
        "wte",
        "wpe",
        "ln.weight",
        "h.1.value.weight",
        "h.1.query.bias",
        "h.2.out.weight",
        "h.0.up.weight",
        "h.0.down.weight",
        "h.2.conv.weight",
    ],
)
def test_wrong_shape_is_named(params, foreign, name):
    have = foreign[name].shape
    foreign[name] = np.zeros((have[0] + 1, *have[1:]), np.float32)
    if name == "wte":
        foreign["head"] = foreign[name]
    refused(foreign, params, name, str(foreign[name].shape))


@pytest.mark.parametrize("name", ["wpe", "h.0.up.weight", "h.0.down.weight", "h.2.conv.weight"])
def test_transposed_matrix_is_refused(params, foreign, name):
    """It has as many elements and would be scrambled in silence."""
    foreign[name] = foreign[name].T
    refused(foreign, params, name, str(foreign[name].shape))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_tensors_that_are_not_finite_are_named(params, foreign, value):
    foreign["h.1.out.weight"][0, 0] = value
    refused(foreign, params, "h.1.out.weight", "layers/out/kernel", "NaN")


def test_unequal_ties_are_named(params, foreign):
    foreign["head"] = foreign["wte"] + 1
    refused(foreign, params, "head", "wte", "tied")


def test_absent_tie_is_no_error(params, foreign):
    del foreign["head"]
    read(TABLE, foreign, params)


def test_every_unfilled_parameter_is_named_with_its_shape(params, foreign):
    params["layers"]["extra"] = np.zeros((LAYERS, 2), np.float32)
    params["bias"] = np.zeros(4, np.float32)
    refused(foreign, params, "bias (4,)", f"layers/extra {(LAYERS, 2)}")


def test_rule_without_a_leaf_is_an_error(params, foreign):
    del params["norm"]
    refused(foreign, params, "norm/scale")


def test_dtype_is_that_of_the_target(params, foreign):
    double = {name: tensor.astype(np.float64) for name, tensor in foreign.items()}
    for leaf in named_leaves(read(TABLE, double, params)).values():
        assert leaf.dtype == np.float32
