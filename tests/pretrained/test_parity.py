"""Outputs of Hugging Face's own classes, from both of their file formats."""

import copy
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Side
from jvae.backbones import bert as bert_stack
from jvae.backbones import gpt2 as gpt2_stack
from jvae.backbones import t5 as t5_stack
from jvae.models.common import unboxed
from jvae.nn import t5 as t5_nn
from jvae.nn.layers import Projection
from jvae.nn.points import Points
from jvae.nn.t5_layer import T5Config
from jvae.pretrained import backbones, bert, files, gpt2, names, t5
from jvae.pretrained.export import export_backbone
from jvae.tree import named_leaves
from tests.tools.stacks import encoded, forced, t5_own, t5_pair

HF = Path(__file__).parent / "hf"
# The two original classes, in float32, differ by up to 3.03e-5 among themselves, and by up to
# 3.8e-5 from the same computation in float64 (logits of t5_v1_1, which reach 19).
AGREE = dict(rtol=2e-6, atol=5e-5)
FORMATS = ("model.safetensors", "flax_model.msgpack")


def side(ids, mask) -> Side:
    place = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    return Side(jnp.asarray(ids), jnp.asarray(mask), place * mask)


class Case:
    """One fixture folder: config, how to build our tree, the table, and our outputs."""

    def __init__(self, name: str):
        self.name, self.folder = name, HF / name
        self.reference = dict(np.load(self.folder / "reference.npz"))
        self.backbone = {"bert": bert.BACKBONE, "gpt2": gpt2.BACKBONE}.get(name, t5.BACKBONE)
        self.sizes = backbones.sizes(self.backbone, files.open_checkpoint(self.folder))
        size = self.sizes | {"dropout": 0.0}
        self.vocab = size["vocab"]
        if name == "bert":
            self.ours = bert_stack.BertConfig(**size)
            self.table = bert.table(self.vocab, "encoder", "pooler")
            pooler = Projection((size["width"],), ("embed",), (None,))
            states = jnp.zeros((1, size["width"]))
            init = lambda key: {  # noqa: E731
                "encoder": bert_stack.stack(self.ours).init(key),
                "pooler": pooler.init(key, states)["params"],
            }
        elif name == "gpt2":
            self.ours = gpt2_stack.Gpt2Config(**size)
            self.table = gpt2.table(self.vocab, "decoder")
            init = lambda key: {"decoder": gpt2_stack.stack(self.ours).init(key)}  # noqa: E731
        else:
            self.ours = T5Config(**size, cross=True)
            gated, tied = size["gated"], size["tied"]
            self.table = t5.table(self.vocab, gated=gated, tied=tied, cross=True)
            encoder = T5Config(**size)
            init = lambda key: t5_pair(encoder, self.ours, key)  # noqa: E731
        self.init, self.axes = unboxed(init)
        self.target = jax.eval_shape(self.init, jax.random.key(0))

    def read(self, folder: Path, file: str | None = None):
        checkpoint = files.open_checkpoint(folder)
        if file is not None:
            tensors = files.read_file(folder / file)
            checkpoint = files.Checkpoint(
                str(folder), checkpoint.config, tensors, file.endswith("msgpack"), ()
            )
        foreign = backbones.canonical(self.backbone, checkpoint)
        return names.load_into(self.table, foreign, self.target)

    def outputs(self, params):
        ref, c = self.reference, self.ours
        source = side(ref["input_input_ids"], ref["input_attention_mask"])
        if self.name == "bert":
            # Our BERT has one segment type; here type 1 begins at position 4, so the difference of
            # the two type vectors may as well be part of the later positions.
            table = params["encoder"]["embed"]
            shift = table["type"]["table"][1:] - table["type"]["table"][:1]
            later = (jnp.arange(c.positions) >= 4)[:, None]
            position = {"table": table["position"]["table"] + later * shift}
            encoder = params["encoder"] | {"embed": table | {"position": position}}
            x_btd, _ = encoded(bert_stack.stack(c), encoder, source)
            pooled = x_btd[:, 0] @ params["pooler"]["kernel"] + params["pooler"]["bias"][None]
            return {"last_hidden_state": x_btd, "pooler_output": jnp.tanh(pooled)}
        if self.name == "gpt2":
            stack, stack_params = gpt2_stack.stack(c), params["decoder"]
            x_btd = stack.embed(stack_params, source.token_bt, source.position_bt)
            hidden_btd, _ = forced(stack, stack_params, x_btd, source)
            return {"logits": stack.logits(stack_params, hidden_btd)}
        stack, stack_params = t5_stack.stack(c), t5_own(params, "decoder")
        states_bsd, _ = encoded(stack, t5_own(params, "encoder"), source)
        ids = ref["input_decoder_input_ids"]
        target = side(ids, np.ones_like(ids))
        points = Points(
            cross=t5_nn.cross_kv(c, stack_params, states_bsd),
            # A target is segment 1; padding is the source of none.
            cross_owner_bs=jnp.where(source.segment_bt > 0, 1, -1),
        )
        x_btd = stack.embed(stack_params, target.token_bt, target.position_bt)
        hidden_btd, _ = forced(stack, stack_params, x_btd, target, points)
        return {
            "encoder_last_hidden_state": states_bsd,
            "logits": stack.logits(stack_params, hidden_btd),
        }


@pytest.fixture(scope="module", params=["bert", "gpt2", "t5", "t5_v1_1"])
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def params(case):
    return case.read(case.folder)


def test_outputs_equal_those_of_the_original_classes(case, params):
    """In float64, so that the rounding of the references alone counts: ours depends on the
    processor.
    """
    with jax.enable_x64(True):
        wide = copy.copy(case)
        wide.ours = dataclasses.replace(case.ours, dtype="float64")
        got = jax.jit(wide.outputs)(jax.tree.map(lambda a: a.astype(jnp.float64), params))
    real = case.reference["input_attention_mask"] > 0
    compared = 0
    for name, value in got.items():
        value = np.asarray(value)
        if name == "logits":
            assert np.all(np.isneginf(value[..., case.vocab :]))
            value = value[..., : case.vocab]
        masked = name != "pooler_output" and not (name == "logits" and case.name.startswith("t5"))
        where = real if masked else ...
        for kind in ("flax", "torch"):
            want = case.reference[f"{kind}_{name}"]
            np.testing.assert_allclose(value[where], want[where], err_msg=name, **AGREE)
            compared += 1
    assert compared == sum(k.startswith(("flax_", "torch_")) for k in case.reference)


def test_both_formats_give_the_same_bits(case, params):
    theirs = named_leaves(case.read(case.folder, FORMATS[1]))
    for path, leaf in named_leaves(params).items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


def test_padding_rows_are_zero(case, params):
    tables = [leaf for p, leaf in named_leaves(params).items() if p.endswith("token/table")]
    assert len(tables) == 1 and tables[0].shape[0] == 128
    assert not np.any(tables[0][case.vocab :]) and np.any(tables[0][case.vocab - 1])


def test_export_is_the_file_that_was_imported(case, params, tmp_path):
    ours = {f: getattr(case.ours, f) for f in case.sizes} | {"dropout": 0.0, "cross": True}
    export_backbone(tmp_path / "out", case.backbone, case.table, params, ours)
    want = files.read_file(case.folder / FORMATS[0])
    got = files.read_file(tmp_path / "out" / FORMATS[0])
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        np.testing.assert_array_equal(got[name], tensor, err_msg=name)
    assert backbones.sizes(case.backbone, files.open_checkpoint(tmp_path / "out")) == case.sizes
    again = named_leaves(case.read(tmp_path / "out"))
    for path, leaf in named_leaves(params).items():
        np.testing.assert_array_equal(again[path], leaf, err_msg=path)
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    theirs = json.loads((case.folder / "config.json").read_text())
    aliases = {"n_inner": 4 * theirs.get("n_embd", 0), "tie_word_embeddings": True}
    for key, value in stored.items():
        have = theirs.get(key)
        assert value == (aliases[key] if have is None else have), key


def test_transformers_reads_the_exported_config(case, params, tmp_path):
    from transformers import AutoConfig

    ours = {f: getattr(case.ours, f) for f in case.sizes} | {"dropout": 0.0, "cross": True}
    special = {"pad_token_id": 3}
    export_backbone(tmp_path / "out", case.backbone, case.table, params, ours, special)
    theirs = AutoConfig.from_pretrained(tmp_path / "out")
    assert theirs.model_type == case.backbone.name
    assert (theirs.vocab_size, theirs.pad_token_id) == (case.vocab, 3)
