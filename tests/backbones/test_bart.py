"""BART against Hugging Face's class, in float64: states, logits, gradients, steps, greedy text; and
its files, in and out. See `tests/tools/make_bart.py`.
"""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jvae.api import Side
from jvae.backbones import bart
from jvae.errors import WeightsError
from jvae.models.common import unboxed
from jvae.nn.attention import segments
from jvae.nn.points import UNTOUCHED
from jvae.pretrained import backbones, files, names
from jvae.pretrained.export import export_backbone
from jvae.pretrained.names import Vocab
from tests.tools import reference
from tests.tools.stacks import layer_input

TIGHT = 1e-10
SECTIONS = ("encoder", "decoder")


class Case:
    """The folder as our two stacks around one token embedding, the decoder's."""

    def __init__(self):
        self.folder = reference.path("hf_backbones/bart")
        self.io = dict(np.load(self.folder / "io.npz"))
        self.checkpoint = files.open_checkpoint(self.folder)
        self.sizes = backbones.sizes(bart.FILES, self.checkpoint)
        reads = bart.BartConfig(**self.sizes, dropout=0.0, dtype="float64")
        self.config = dataclasses.replace(reads, cross=True)
        self.encoder, self.decoder = bart.stack(reads), bart.stack(self.config)
        self.table = bart.both(ConfigDict(), Vocab(reads.vocab, reads.vocab), True)
        foreign = backbones.canonical(bart.FILES, self.checkpoint)
        self.params = names.read(self.table, foreign, self.target("float64"))

    def target(self, dtype: str) -> Any:
        def init(key):
            encoder = self.encoder.init(key, head=False)
            encoder["embed"].pop("token")
            return dict(encoder=encoder, decoder=self.decoder.init(key))

        abstract = jax.eval_shape(unboxed(init)[0], jax.random.key(0))
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), abstract)

    def own(self, params: Any) -> tuple[Any, Any]:
        token = params["decoder"]["embed"]["token"]
        encoder = params["encoder"] | {"embed": params["encoder"]["embed"] | {"token": token}}
        return encoder, params["decoder"]

    def side(self, name: str) -> Side:
        mask = self.io[f"{name}_mask"]
        place = np.broadcast_to(np.arange(mask.shape[1]), mask.shape) * mask
        return Side(*map(jnp.asarray, (self.io[f"{name}_ids"], mask, place)))

    def states(self, params: Any, source: Side, target: Side) -> tuple[Any, ...]:
        """Inputs of the layers and last states of both stacks."""
        encoder, decoder = self.own(params)
        x_bsd = self.encoder.embed(encoder, source.token_bt, source.position_bt)
        read_bsd, read = self.encoder.rows(
            encoder, x_bsd, segments(source, causal=False), read=layer_input
        )
        points = UNTOUCHED._replace(
            cross=self.decoder.cross(decoder, read_bsd), cross_owner_bs=source.segment_bt
        )
        x_btd = self.decoder.embed(decoder, target.token_bt, target.position_bt)
        hidden_btd, written = self.decoder.rows(
            decoder, x_btd, segments(target, causal=True), points, read=layer_input
        )
        return read, read_bsd, written, hidden_btd, points


@pytest.fixture(scope="module")
def case():
    with jax.enable_x64(True):
        yield Case()


@pytest.mark.slow
def test_states_logits_and_gradients(case):
    source, target = case.side("source"), case.side("target")
    scored = (target.segment_bt > 0) & (target.position_bt > 0)

    def loss(params):
        *states, hidden, _ = case.states(params, source, target)
        _, stack_params = case.own(params)
        nats_bt = case.decoder.token_log_prob(stack_params, hidden, target, scored)
        value = -jnp.sum(nats_bt) / jnp.sum(scored)
        return value, (*states, hidden, case.decoder.logits(stack_params, hidden))

    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(case.params)
    read, last, written, hidden, logits = jax.device_get(out)
    close = lambda got, want: np.testing.assert_allclose(got, want, rtol=0, atol=TIGHT)  # noqa: E731
    for name, inputs, final, mask in (
        ("encoder", read, last, source.segment_bt),
        ("decoder", written, hidden, target.segment_bt),
    ):
        real, want = np.asarray(mask) > 0, case.io[f"f64.{name}_hidden"]
        for got, state in zip((*inputs, final), want, strict=True):
            close(got[real], state[real])
    vocab = case.sizes["vocab"]
    close(logits[np.asarray(target.segment_bt) > 0][:, :vocab], _real(case, "logits"))
    close(value, case.io["f64.loss"])
    actual = names.write(case.table, grads, tied=False)
    stored = [name for name in case.io if name.startswith("f64.grad.")]
    assert len(stored) > 10
    for name in stored:
        close(actual[name.removeprefix("f64.grad.model.")], case.io[name])


def _real(case, name):
    return case.io[f"f64.{name}"][case.io["target_mask"] > 0]


@pytest.mark.slow
def test_a_packed_row_equals_single_sentences(case):
    """Two texts of a row, each with its own source in the other row of sources."""
    order = (2, 0, 1)
    sides = {}
    for name in ("source", "target"):
        ids, lengths = case.io[f"{name}_ids"], case.io[f"{name}_mask"].sum(1)
        rows = [ids[i, : lengths[i]] for i in order]
        segment = np.concatenate([np.full(len(row), n + 1) for n, row in enumerate(rows)])
        place = np.concatenate([np.arange(len(row)) for row in rows])
        sides[name] = Side(*(jnp.asarray(a)[None] for a in (np.concatenate(rows), segment, place)))
    hidden = jax.jit(lambda p: case.states(p, sides["source"], sides["target"])[3])(case.params)
    want, begin = case.io["f64.decoder_hidden"][-1], 0
    for i in order:
        n = case.io["target_mask"][i].sum()
        np.testing.assert_allclose(hidden[0, begin : begin + n], want[i, :n], rtol=0, atol=TIGHT)
        begin += n


@pytest.mark.slow
def test_steps_with_caches_and_greedy_text(case):
    """Ragged prompts of one to three tokens, the rest of each text, then greedy ids."""
    source, ids = case.side("source"), jnp.asarray(case.io["target_ids"])
    lengths, (_, more) = case.io["target_mask"].sum(1), case.io["greedy_ids"].shape
    begun, width = jnp.asarray([1, 3, 2], jnp.int32), ids.shape[1]
    decoder = case.decoder

    @jax.jit
    def run(params):
        points, stack_params = (
            case.states(params, source, case.side("target"))[4],
            case.own(params)[1],
        )
        place = jnp.broadcast_to(jnp.arange(3)[None], (3, 3))
        hidden, kv = decoder.prefill(
            stack_params,
            decoder.embed(stack_params, ids[:, :3], place),
            begun,
            3 + width + more,
            points,
        )
        last = jnp.take_along_axis(hidden, (begun - 1)[:, None, None], axis=1)[:, 0]

        def step(carry, _):
            scores, kv, position_e = carry
            at = jnp.minimum(position_e, width - 1)[:, None]
            forced_e = jnp.take_along_axis(ids, at, axis=1)[:, 0]
            greedy_e = jnp.argmax(scores, axis=-1).astype(ids.dtype)
            token_e = jnp.where(position_e < jnp.asarray(lengths), forced_e, greedy_e)
            x_ed = decoder.embed(stack_params, token_e, position_e)
            hidden_ed, kv = decoder.step(stack_params, x_ed, kv, position_e, points)
            return (decoder.logits(stack_params, hidden_ed), kv, position_e + 1), (scores, token_e)

        start = (decoder.logits(stack_params, last), kv, begun)
        return jax.lax.scan(step, start, None, length=width + more - 1)[1]

    scores, token = jax.device_get(run(case.params))
    for e, n in enumerate(lengths):
        first = int(begun[e])
        want = case.io["f64.logits"][e, first - 1 : n]
        got = scores[: n - first + 1, e, : case.sizes["vocab"]]
        np.testing.assert_allclose(got, want, rtol=0, atol=TIGHT)
        greedy = token[n - first : n - first + more, e]
        np.testing.assert_array_equal(greedy, case.io["greedy_ids"][e])


def test_export_is_the_file_that_was_imported(case, tmp_path):
    from transformers import AutoConfig

    foreign = backbones.canonical(bart.FILES, case.checkpoint)
    params = names.read(case.table, foreign, case.target("float32"))
    fields = dataclasses.asdict(case.config)
    export_backbone(tmp_path / "out", bart.FILES, case.table, params, fields)
    want = files.read_file(case.folder / files.SAFETENSORS)
    got = files.read_file(tmp_path / "out" / files.SAFETENSORS)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        np.testing.assert_array_equal(got[name], tensor, err_msg=name)
    again = files.open_checkpoint(tmp_path / "out")
    assert backbones.sizes(bart.FILES, again) == case.sizes
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == "bart"
    with pytest.raises(WeightsError, match="without cross-attention cannot be loaded as a BART"):
        alone = fields | dict(cross=False)
        export_backbone(tmp_path / "no", bart.FILES, case.table, params, alone)


@pytest.mark.parametrize("role", SECTIONS)
def test_one_stack_alone_is_read(case, role):
    """With a token embedding of its own; the other stack is left aside."""
    section = dict(case.sizes, cross=role == "decoder")
    table = bart.table(section, Vocab(96, 96), "own", role, None)
    config = dataclasses.replace(case.config, cross=section["cross"])
    stack = bart.stack(config)
    init, _ = unboxed(lambda key: {"own": stack.init(key, head=role == "decoder")})
    target = jax.eval_shape(init, jax.random.key(0))
    stack_params = names.read(table, backbones.canonical(bart.FILES, case.checkpoint), target)[
        "own"
    ]
    layers, both = stack_params["layers"], case.params[role]["layers"]
    np.testing.assert_array_equal(layers["attn"]["qkv"]["kernel"], both["attn"]["qkv"]["kernel"])
    table_vd = case.params["decoder"]["embed"]["token"]["table"]
    np.testing.assert_array_equal(stack_params["embed"]["token"]["table"], table_vd)
    assert ("cross" in layers) == section["cross"]


def test_other_forms_of_bart_are_refused(case):
    stated = json.loads((case.folder / "config.json").read_text())
    for change in (dict(decoder_layers=1), dict(activation_function="relu")):
        with pytest.raises(ValueError, match=next(iter(change))):
            bart.FILES.sizes(stated | change)
