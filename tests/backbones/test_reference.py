"""Backbones against Hugging Face's own classes: states, logits, steps, gradients, greedy text."""

import dataclasses
import json
import re
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jvae.api import Side
from jvae.models.common import unboxed
from jvae.nn.attention import segments
from jvae.nn.backbone import BACKBONES, KEY
from jvae.pretrained import backbones, files, names
from jvae.pretrained.export import export_backbone
from jvae.pretrained.layouts import LAYOUTS
from jvae.pretrained.names import Vocab
from jvae.tree import named_leaves
from tests.tools import reference
from tests.tools.stacks import layer_input

# Folder: backbone.
DECODERS = {
    **{"llama": "llama", "llama_rope3": "llama", "smollm": "llama", "qwen2": "qwen2"},
    **{"qwen3": "qwen3", "mistral": "mistral", "mistral_window": "mistral", "gemma2": "gemma2"},
    **{"gemma3": "gemma3", "gpt_neox": "gpt_neox", "opt": "opt"},
}
# Fields of the classes' configs that determine what a model computes.
ARCHITECTURE = {
    *("model_type", "vocab_size", "max_position_embeddings", "tie_word_embeddings", "head_dim"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "ffn_dim", "dim", "n_layers", "n_heads", "hidden_dim"),
    *("rms_norm_eps", "layer_norm_eps", "norm_eps", "rope_parameters", "layer_types"),
    *("sliding_window", "local_attention", "attn_logit_softcapping", "final_logit_softcapping"),
    *("query_pre_attn_scalar", "use_parallel_residual", "hidden_act", "hidden_activation"),
    *("attention_bias", "use_bidirectional_attention", "type_vocab_size", "word_embed_proj_dim"),
}
ENCODERS = {"roberta": "roberta", "distilbert": "distilbert", "modernbert": "modernbert"}
TIGHT, LOOSE = 1e-8, 3e-5
# `config.json` as transformers 5 writes it, and as published checkpoints say the same.
CONFIG, OLDER = "config.json", "config_v4.json"


class Case:
    """One folder in one precision."""

    def __init__(self, folder: str, dtype: str):
        self.folder, self.dtype = reference.path(f"hf_backbones/{folder}"), dtype
        self.name = (DECODERS | ENCODERS)[folder]
        self.writes = folder in DECODERS
        self.layout = LAYOUTS[self.name]
        self.io = dict(np.load(self.folder / "io.npz"))
        # The cases inside the repository have float64 numbers alone, for both precisions.
        single = dtype == "float32" and "f32.loss" in self.io
        self.precision = "f32" if single else "f64"
        self.sizes = self.sizes_of(CONFIG)
        self.section = ConfigDict({KEY: self.name, **self.sizes, "dtype": dtype})
        kind = BACKBONES[self.name]
        self.stack = kind.stack(kind.config(**self.sizes, dtype=dtype))
        vocab = Vocab(self.sizes["vocab"], self.sizes["vocab"])
        role = "decoder" if self.writes else "encoder"
        self.table = self.layout.table(self.section, vocab, "decoder", role, None)
        init, _ = unboxed(lambda key: {"decoder": self.stack.init(key)})
        target = jax.eval_shape(init, jax.random.key(0))
        target = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), target)
        foreign = backbones.canonical(self.layout.files, files.open_checkpoint(self.folder))
        self.params = names.read(self.table, foreign, target)
        mask = self.io["attention_mask"]
        self.lengths = mask.sum(1)
        place = np.broadcast_to(np.arange(mask.shape[1]), mask.shape) * mask
        self.side = Side(*map(jnp.asarray, (self.io["input_ids"], mask, place)))

    def sizes_of(self, config: str) -> dict[str, Any]:
        checkpoint = files.open_checkpoint(self.folder)
        stated = json.loads((self.folder / config).read_text())
        return backbones.sizes(self.layout.files, dataclasses.replace(checkpoint, config=stated))

    def __call__(self, name: str) -> np.ndarray:
        return self.io[f"{self.precision}.{name}"]

    def close(self, got: Any, want: Any, name: str) -> None:
        bound = TIGHT if self.dtype == "float64" else LOOSE
        np.testing.assert_allclose(
            np.asarray(got), np.asarray(want), rtol=0, atol=bound, err_msg=name
        )

    def read(self, params: Any, x_btd: Any, side: Side) -> tuple[Any, Any]:
        """States of packed rows and the input of every layer, in the order the model reads in."""
        mask_spec = segments(side, causal=self.writes)
        return self.stack.rows(params, x_btd, mask_spec, read=layer_input)

    @cached_property
    def outputs(self) -> tuple[Any, Any, Any]:
        """States of every layer and last, and logits, of the padded batch."""

        @jax.jit
        def run(params):
            x_btd = self.stack.embed(params, self.side.token_bt, self.side.position_bt)
            hidden, inputs = self.read(params, x_btd, self.side)
            return inputs, hidden, self.stack.logits(params, hidden) if self.writes else None

        return jax.device_get(run(self.params["decoder"]))


@pytest.fixture(scope="module", params=[*DECODERS, *ENCODERS])
def folder(request) -> str:
    return request.param


@pytest.fixture(params=[pytest.param("float32", marks=pytest.mark.slow), "float64"], scope="module")
def case(request, folder):
    with jax.enable_x64(request.param == "float64"):
        yield Case(folder, request.param)


def test_states_and_logits(case):
    real = case.io["attention_mask"] > 0
    inputs, hidden, logits = case.outputs
    for i, state in enumerate(inputs):
        case.close(state[real], case("hidden")[i][real], f"hidden {i}")
    case.close(hidden[real], _final(case)[real], "final")
    if not case.writes:
        return
    vocab = case.sizes["vocab"]
    case.close(logits[real][:, :vocab], case("logits")[real], "logits")
    assert np.all(np.isneginf(logits[..., vocab:]))


def _final(case: Case) -> np.ndarray:
    """What a stack without a final norm ends with is the output of its last layer."""
    return case("final") if f"{case.precision}.final" in case.io else case("hidden")[-1]


@pytest.mark.fast_on("llama", "roberta")
def test_gradients_of_every_tensor(case):
    stack_params, side = case.params["decoder"], case.side
    scored = (side.segment_bt > 0) & (side.position_bt > 0)

    def loss(stack_params):
        x_btd = case.stack.embed(stack_params, side.token_bt, side.position_bt)
        hidden, _ = case.read(stack_params, x_btd, side)
        if not case.writes:
            real = side.segment_bt > 0
            probed_bt = jnp.tanh(jnp.einsum("btd,d->bt", hidden, case.io["probe"]))
            return jnp.sum(jnp.where(real, probed_bt, 0.0)) / jnp.sum(real)
        nats_bt = case.stack.token_log_prob(stack_params, hidden, side, scored)
        return -jnp.sum(nats_bt) / jnp.sum(scored)

    value, grads = jax.jit(jax.value_and_grad(loss))(stack_params)
    case.close(value, case("loss"), "loss")
    actual = names.write(case.table, {"decoder": grads}, tied=False)
    prefix = f"{case.precision}.grad."
    stored = {n.removeprefix(prefix): a for n, a in case.io.items() if n.startswith(prefix)}
    assert stored
    for name, want in stored.items():
        ours = name.removeprefix(case.layout.files.prefix)
        case.close(actual[ours], want, name)


@pytest.mark.fast_on("llama")
def test_a_packed_row_equals_single_sentences(case):
    token, segment = case.io["input_ids"], []
    rows = [token[i, :n] for i, n in enumerate(case.lengths)]
    segment = np.concatenate([np.full(len(row), i + 1) for i, row in enumerate(rows)])
    place = np.concatenate([np.arange(len(row)) for row in rows])
    side = Side(*(jnp.asarray(a)[None] for a in (np.concatenate(rows), segment, place)))

    @jax.jit
    def run(params):
        x_btd = case.stack.embed(params, side.token_bt, side.position_bt)
        return case.read(params, x_btd, side)[0][0]

    got, want = run(case.params["decoder"]), case.outputs[1]
    for i in range(len(rows)):
        case.close(got[segment == i + 1], want[i, : case.lengths[i]], f"sentence {i}")


@pytest.mark.fast_on("llama")
def test_steps_with_caches_and_greedy_text(case):
    """Ragged prompts of one to all tokens of a sentence, the rest of it, then twelve greedy ids."""
    if not case.writes:
        pytest.skip("an encoder writes no text")
    ids, lengths, more = case.io["input_ids"], jnp.asarray(case.lengths), 12
    begun = jnp.asarray([1, 4, 3], jnp.int32)  # tokens of the prompts
    width = ids.shape[1]

    @jax.jit
    def run(params):
        place = jnp.broadcast_to(jnp.arange(4)[None], (3, 4))
        x_etd = case.stack.embed(params, jnp.asarray(ids[:, :4]), place)
        hidden, kv = case.stack.prefill(params, x_etd, begun, 4 + width + more)
        last = jnp.take_along_axis(hidden, (begun - 1)[:, None, None], axis=1)[:, 0]

        def step(carry, _):
            scores, kv, position_e = carry
            forced_e = jnp.take_along_axis(
                jnp.asarray(ids), jnp.minimum(position_e, width - 1)[:, None], axis=1
            )[:, 0]
            greedy_e = jnp.argmax(scores, axis=-1).astype(forced_e.dtype)
            token_e = jnp.where(position_e < lengths, forced_e, greedy_e)
            x_ed = case.stack.embed(params, token_e, position_e)
            hidden_ed, kv = case.stack.step(params, x_ed, kv, position_e)
            return (case.stack.logits(params, hidden_ed), kv, position_e + 1), (scores, token_e)

        start = (case.stack.logits(params, last), kv, begun)
        return jax.lax.scan(step, start, None, length=width + more - 1)[1]

    scores, token = jax.device_get(run(case.params["decoder"]))
    vocab = case.sizes["vocab"]
    for e, n in enumerate(case.lengths):
        first = int(begun[e])
        stepwise = scores[: n - first + 1, e, :vocab]
        case.close(stepwise, case("logits")[e, first - 1 : n], f"steps of sentence {e}")
        greedy = token[n - first : n - first + more, e]
        np.testing.assert_array_equal(greedy, case.io["greedy_ids"][e])


def test_both_forms_of_config_say_the_same(folder):
    case = Case(folder, "float32")
    if not (case.folder / OLDER).is_file():
        pytest.skip(f"{folder} has no {OLDER}")
    assert case.sizes_of(OLDER) == case.sizes


@pytest.mark.fast_on("smollm", "llama")
def test_export_is_the_file_that_was_imported(folder, tmp_path):
    from transformers import AutoConfig

    case = Case(folder, "float32")
    fields = vars(case.stack.config)
    export_backbone(tmp_path / "out", case.layout.files, case.table, case.params, fields)
    want = files.read_file(case.folder / files.SAFETENSORS)
    got = files.read_file(tmp_path / "out" / files.SAFETENSORS)
    kept = {n: a for n, a in want.items() if not _is_head(case, n)}
    assert {case.layout.files.prefix + n for n in got} == kept.keys() or got.keys() == kept.keys()
    for name, tensor in kept.items():
        short = name if name in got else name.removeprefix(case.layout.files.prefix)
        np.testing.assert_array_equal(got[short], tensor, err_msg=name)
    again = files.open_checkpoint(tmp_path / "out")
    assert backbones.sizes(case.layout.files, again) == case.sizes
    theirs, source = (
        AutoConfig.from_pretrained(place).to_dict() for place in (tmp_path / "out", case.folder)
    )
    for key in ARCHITECTURE & source.keys():
        assert theirs[key] == source[key], key


def _is_head(case: Case, name: str) -> bool:
    """A tensor that our stack leaves aside, such as the head of a masked language model."""
    name = name.removeprefix(case.layout.files.prefix)
    return any(re.fullmatch(pattern, name) for pattern in case.table.ignored)


def test_an_unknown_scaling_is_refused():
    read = LAYOUTS["llama"].files.sizes
    config = json.loads(reference.path("hf_backbones/llama/config.json").read_text())
    config["rope_parameters"] = dict(rope_type="yarn", rope_theta=500.0, factor=2.0)
    with pytest.raises(ValueError, match="yarn"):
        read(config)


def test_leaves_of_a_tied_stack_hold_no_head():
    case = Case("smollm", "float32")
    assert not any("head/table" in path for path in named_leaves(case.params))
