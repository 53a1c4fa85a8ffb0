"""Rows and budgets of the comparison: which models, how large, for how long."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

Overrides = dict[str, object]  # config values by dotted key


VECTORS = 4  # latent vectors of the model with several


class Budget(NamedTuple):
    """The size of a run and of its model.

    words: of training text that a run reads, in whole sentences. update: approximate number of
    sentences per update. layers, width: of the Transformer language model. latent: total number of
    dimensions. lines: of the validation and test files, drawn with a seed; None for all. rows: the
    rows of a batch are a multiple of it. compiled: for a slice that is not available; nothing is
    trained.
    """

    words: float
    update: int
    seeds: tuple[int, ...]
    vocab: int
    layers: int
    width: int
    latent: int
    lines: int | None
    evals: Overrides
    checks: int = 8
    rows: int = 1
    row_tokens: int = 64
    overrides: Overrides = {}  # overrides for all models
    compiled: bool = False

    @property
    def heads(self) -> int:
        """Attention heads of every Transformer."""
        return max(4, self.width // 64)


_TWO_CORES = Budget(
    words=4e5,
    update=32,
    seeds=(0,),
    vocab=4_000,
    layers=4,
    width=128,
    latent=32,
    lines=500,
    evals=dict(preset="comparison"),
)
BUDGETS = {
    # About 3 minutes per run on two cores; SRI takes longer, as every update runs a chain.
    "cpu-short": _TWO_CORES,
    # About 10 minutes.
    "cpu": _TWO_CORES._replace(
        words=1.5e6,
        lines=1_000,
        evals=dict(preset="comparison", sentences=500, generate=1_000, interpolations=20),
    ),
    # About an hour in total on one GPU.
    "gpu": Budget(
        words=8e6,
        update=128,
        seeds=(0, 1, 2),
        vocab=8_000,
        layers=8,
        width=256,
        latent=32,
        lines=2_000,
        evals=dict(
            preset="comparison", samples=500, sentences=1_000, generate=2_000, interpolations=20
        ),
    ),
    # Pretrained weights, about an hour per run.
    "laptop": _TWO_CORES._replace(words=3.8e5, update=24, checks=4),
    # For a slice of accelerators; compiled and counted on this machine, never run.
    "pod": Budget(
        words=4e9,
        update=8_192,
        seeds=(0,),
        vocab=32_000,
        layers=24,
        width=1_024,
        latent=384,
        lines=None,
        evals=dict(preset="full"),
        rows=256,
        row_tokens=256,
        overrides={"optim.lr": 3e-4},
        compiled=True,
    ),
}


class Entry(NamedTuple):
    """A row of the table.

    config: file and preset. knob: the keys whose value is chosen to match the parameter count.
    unit: the step of that value. floor: the language model with the same kind of decoder. values:
    other differences from the preset. published: whether it starts from published weights, with
    their tokenizers and a decoder trimmed to the training text.
    """

    title: str
    config: str
    knob: tuple[str, ...]
    unit: int
    floor: str | None
    values: Callable[[Budget], Overrides]
    published: bool = False


def _stack(budget: Budget, layers: int, *sides: str) -> Overrides:
    """The sizes of Transformer stacks; the width is divided among the attention heads."""
    sizes = dict(layers=layers, width=budget.width, heads=budget.heads)
    if budget.compiled:
        sizes |= dict(dtype="bfloat16", init_std=0.02, unroll=1)
    return {f"model.{side}.{key}": value for side in sides for key, value in sizes.items()}


def _lm(budget: Budget) -> Overrides:
    return _stack(budget, budget.layers, "decoder") | {"model.decoder.mlp": 4 * budget.width}


def _optimus(budget: Budget) -> Overrides:
    return _stack(budget, budget.layers // 2, "encoder", "decoder") | {
        "model.latent": budget.latent
    }


def _optimus_vectors(budget: Budget) -> Overrides:
    return _optimus(budget) | {
        "model.vectors": VECTORS,
        "model.latent": budget.latent // VECTORS,
        "model.pool": "queries",
    }


def _t5(budget: Budget) -> Overrides:
    sizes = _stack(budget, budget.layers // 2, "decoder")
    sizes.pop("model.decoder.init_std", None)
    head = budget.width // budget.heads
    return sizes | {"model.decoder.head": head, "model.latent": budget.latent}


def _adavae(budget: Budget) -> Overrides:
    # The stack is frozen after stage 0. With 60 % of the 1,139 updates on SNLI before that, the
    # validation -ELBO ended at 56.3 nats, with 75 % at 55.6 (the command of its row with these
    # shares); the preset has 30 %.
    return {
        **_stack(budget, budget.layers // 2, "decoder"),
        "phases.stage0.share": 0.75,
        "phases.stage1.share": 0.25,
        "model.encoder_layers": budget.layers // 2,
        "model.adapter": budget.width,
        "model.latent": budget.latent,
        "model.decoder.positions": 256,
    }


def _della(budget: Budget) -> Overrides:
    layers = budget.layers // 2
    return _stack(budget, layers, "decoder") | {
        "model.latent": budget.latent // layers,
        "model.decoder.positions": 256,
    }


def _lstm(budget: Budget) -> Overrides:
    del budget
    return {}


def in_float32(*roles: str) -> Overrides:
    """Computes in float32 from published weights, which CPUs without 16-bit arithmetic do faster.

    Args:
      roles: encoder, decoder or both, those that the model has.
    """
    dtypes: Overrides = {f"model.{role}.dtype": "float32" for role in roles}
    dtypes["init.frozen_dtype"] = "float32"
    return dtypes


def _published(*roles: str) -> Callable[[Budget], Overrides]:
    return lambda budget: in_float32(*roles)


def _latent(budget: Budget) -> Overrides:
    return {"model.latent": budget.latent}


def _sri_transformer(budget: Budget) -> Overrides:
    return _stack(budget, budget.layers, "decoder") | {
        "model.latent": budget.latent,
        "model.decoder.dropout": 0.0,
        "model.decoder.init_std": 0.06,
        "model.chain.steps": 10,
        "model.annealing.epoch_steps": 0,
        "data.packing": "pack",
        "optim.lr": 3e-3,
        "optim.warmup_steps": 100,
    }


_MLP = ("model.decoder.mlp",)
_LSTM = ("model.decoder.hidden", "model.decoder.width")  # the width is half the hidden state
_LSTM_VAE = (*_LSTM, "model.encoder.hidden", "model.encoder.width")
ENTRIES = {
    "lm": Entry("Transformer LM", "lm", (), 0, None, _lm),
    "lstm_lm": Entry("LSTM LM", "lm:lstm", _LSTM, 4, None, _lstm),
    "lstm_vae": Entry("LSTM-VAE", "lstm_vae", _LSTM_VAE, 4, "lstm_lm", _latent),
    "lstm_vae_annealed": Entry(
        "LSTM-VAE, annealed", "lstm_vae:annealed", _LSTM_VAE, 4, "lstm_lm", _latent
    ),
    "lstm_vae_free_bits": Entry(
        "LSTM-VAE, AE + free bits", "lstm_vae:ae_free_bits", _LSTM_VAE, 4, "lstm_lm", _latent
    ),
    "optimus": Entry("Optimus", "optimus", (*_MLP, "model.encoder.mlp"), 16, "lm", _optimus),
    "t5_vae": Entry("T5-VAE", "t5_vae", _MLP, 16, "lm", _t5),
    "adavae": Entry("AdaVAE", "adavae", _MLP, 16, "lm", _adavae),
    "della": Entry("DELLA", "della", _MLP, 16, "lm", _della),
    "sri": Entry("SRI", "sri", _LSTM, 4, "lstm_lm", _latent),
    # Not in the table by default.
    "optimus_vectors": Entry(
        "Optimus, 4 vectors", "optimus", (*_MLP, "model.encoder.mlp"), 16, "lm", _optimus_vectors
    ),
    "sri_transformer": Entry(
        "SRI, Transformer", "sri:transformer", _MLP, 16, "lm", _sri_transformer
    ),
    "optimus_plain": Entry(
        "Optimus, β = 1", "optimus:tiny_plain", (*_MLP, "model.encoder.mlp"), 16, "lm", _optimus
    ),
    "della_plain": Entry("DELLA, β = 1", "della:tiny_plain", _MLP, 16, "lm", _della),
    "smollm2_lm": Entry("SmolLM2 LM", "lm:pretrained", (), 0, None, _published("decoder"), True),
    "optimus_smollm2": Entry(
        "Optimus, MiniLM + SmolLM2",
        "optimus:smollm2",
        (),
        0,
        "smollm2_lm",
        _published("encoder", "decoder"),
        True,
    ),
    "adavae_smollm2": Entry(
        "AdaVAE, SmolLM2",
        "adavae:smollm2",
        (),
        0,
        "smollm2_lm",
        _published("decoder"),
        True,
    ),
}
DEFAULT = tuple(ENTRIES)[:10]
# Rate against distortion. Short-run inference has no β: its chains sample from p(x, z)^(1/τ²), so
# they minimise Rec + E[-log p(z)] - τ² H(q), which is the bound at τ = 1; smaller τ gives narrower
# posteriors with a higher rate.
SWEEPS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "optimus": ("objective.beta.stop", (0.1, 0.3, 1.0)),
    "della": ("objective.beta.stop", (0.1, 0.3, 1.0)),
    "sri": ("model.chain.temperature", (0.05, 0.5, 1.0)),
}
