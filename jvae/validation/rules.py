"""Which config values are incompatible, and which have no effect in combination with others.

Each rule reads a `View`: the config as one phase sees it. Rules of a single model family belong to
its config dataclass instead: `__post_init__` for incompatible values, `jvae.fields.Needs` for
values without an effect.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jvae import extras
from jvae.api import Params
from jvae.fields import MOST
from jvae.training.objectives import MEAN_SUM


class Facts(NamedTuple):
    """Properties of the model of a config. kl: its training loss has a KL. dimensions: this KL is
    available per latent dimension. sides: most tokens of a text, by side.
    """

    family: str
    config: Any
    abstract: Params
    axes: Any
    sides: Mapping[str, int]
    groups: int
    sampler: bool
    kl: bool
    dimensions: bool

    @property
    def latent(self) -> bool:
        """False for a language model."""
        return self.groups > 0

    @property
    def without_kl(self) -> str:
        """Why the training loss has no KL."""
        if not self.latent:
            return f"model.family={self.family} has no latent"
        return f"the posterior of model.family={self.family} is a sampler, whose loss has no KL"


class View(NamedTuple):
    """A config as one phase sees it, by dotted key, and the steps of that phase."""

    values: Mapping[str, Any]
    phase: str
    steps: int

    def __getitem__(self, key: Any) -> Any:
        return self.values.get(key)


class Rule(NamedTuple):
    """Incompatible values. wrong: returns the reason, or None if the values are compatible."""

    keys: tuple[str, ...]
    wrong: Callable[[View], str | None]


class Idle(NamedTuple):
    """Values that only take effect under a condition.

    reads: the condition. why: the reason in words if it does not hold. free: values that are
    allowed although they have no effect.
    """

    keys: tuple[str, ...]
    reads: Callable[[View, Facts], bool]
    why: Callable[[View, Facts], str] | str
    free: tuple[object, ...] = ()


def _divided_twice(v: View) -> str | None:
    if v["objective.length_weighted"] and v["objective.rec_reduce"] != "sum":
        return (
            "objective.length_weighted with "
            f"objective.rec_reduce={v['objective.rec_reduce']} would divide twice by the length; "
            "set one of them"
        )
    if v["objective.rec_length"] and (
        v["objective.length_weighted"] or v["objective.rec_reduce"] != "sum"
    ):
        return (
            "objective.rec_length with objective.length_weighted or objective.rec_reduce would "
            "divide twice; set one of them"
        )
    return None


def _batch_floor(v: View) -> str | None:
    if v["train.accumulate"] == 1 or v["objective.free_bits"] != MEAN_SUM:
        return None
    return (
        f"objective.free_bits={MEAN_SUM} is of the mean over a batch, which train.accumulate="
        f"{v['train.accumulate']} never sees whole; use another floor, or accumulate=1"
    )


def _calls(v: View) -> str | None:
    together = v["train.steps_per_call"]
    if together == 1:
        return None
    if v["data.packing"] == "bucket":
        return (
            "train.steps_per_call needs batches of one shape; set data.packing=pack, or "
            "train.steps_per_call=1"
        )
    counts = {
        "train.log_every": v["train.log_every"],
        "train.check_every": v["train.check_every"],
        f"the number of steps of phase {v.phase}" if v.phase else "train.steps": v.steps,
    }
    for name, count in counts.items():
        if count % together:
            return f"train.steps_per_call is {together}, but {name} is {count}; use a multiple"
    return None


def _accumulated(v: View) -> str | None:
    if v["data.batch_rows"] % v["train.accumulate"] == 0:
        return None
    return (
        f"data.batch_rows is {v['data.batch_rows']}, which train.accumulate="
        f"{v['train.accumulate']} does not divide; use a multiple of it"
    )


def _pairs_of_sentences(v: View) -> str | None:
    if not (v["data.sentences"] and v["data.source"]):
        return None
    return (
        "data.sentences=true with data.source: pairs cannot be cut into sentences; unset one of "
        "them"
    )


def _only_held_out(v: View) -> str | None:
    if v["data.train"] or not (v["data.valid"] or v["data.test"]):
        return None
    return "data.valid or data.test is set but data.train is not: name the train file"


def _batch_tokens(v: View) -> str | None:
    lengths = [v[f"data.{side}_row"] for side in ("enc", "dec", "cond")] + [v["data.row_tokens"]]
    tokens = v["data.batch_rows"] * max(lengths)
    if tokens <= MOST:
        return None
    return (
        f"data.batch_rows={v['data.batch_rows']} rows of {max(lengths)} tokens are more than "
        f"{MOST:,} tokens; lower one of them"
    )


def _slots(v: View) -> str | None:
    lengths = [v[f"data.{side}_row"] for side in ("enc", "dec")]
    row = min([length for length in lengths if length], default=None)
    if row is None or v["data.slots"] <= row:
        return None
    return f"data.slots={v['data.slots']} texts cannot fit in a row of {row} tokens; lower it"


def _vocabulary(v: View) -> str | None:
    trained = not (v["data.encoder_tokenizer"] and v["data.decoder_tokenizer"])
    if not trained or not v["data.train"] or v["init.model"]:
        return None
    size, kind = v["data.vocab"], v["data.tokenizer_kind"]
    least = 260 if kind == "bpe" else 5  # four special tokens plus all bytes, or one word
    if size >= least or (size == 0 and kind == "word"):
        return None
    more = " (or 0, every word)" if kind == "word" else ""
    return f"data.vocab={size}: a vocabulary of kind {kind} needs at least {least} entries{more}"


def _decode_lengths(v: View) -> str | None:
    if not 0 < v["decode.max_length"] < v["decode.min_length"]:
        return None
    return (
        f"decode.min_length={v['decode.min_length']} is above decode.max_length="
        f"{v['decode.max_length']}; raise max_length or lower min_length"
    )


def _mauve(v: View) -> str | None:
    return extras.missing("probes", "evals.features (MAUVE)") if v["evals.features"] else None


RULES = (
    Rule(
        ("objective.length_weighted", "objective.rec_reduce", "objective.rec_length"),
        _divided_twice,
    ),
    Rule(("train.accumulate", "objective.free_bits"), _batch_floor),
    Rule(("data.batch_rows", "train.accumulate"), _accumulated),
    Rule(
        (
            "train.steps_per_call",
            "train.steps",
            "train.log_every",
            "train.check_every",
            "data.packing",
        ),
        _calls,
    ),
    Rule(("data.sentences", "data.source"), _pairs_of_sentences),
    Rule(("data.train", "data.valid", "data.test"), _only_held_out),
    Rule(
        ("data.batch_rows", "data.row_tokens", "data.enc_row", "data.dec_row", "data.cond_row"),
        _batch_tokens,
    ),
    Rule(("data.slots", "data.enc_row", "data.dec_row"), _slots),
    Rule(("data.vocab", "data.tokenizer_kind"), _vocabulary),
    Rule(("decode.min_length", "decode.max_length"), _decode_lengths),
    Rule(("evals.features",), _mauve),
)


def _has_kl(v: View, facts: Facts) -> bool:
    return facts.kl and v["objective.z"] == "posterior"


def _no_kl(v: View, facts: Facts) -> str:
    return facts.without_kl if not facts.kl else "objective.z=zero leaves no KL"


def _family(what: str) -> Callable[[View, Facts], str]:
    return lambda v, facts: f"model.family={facts.family} {what}"


_EMBEDDED = "data.train is empty, so the embedded corpus is read"
_BETA = ("start", "stop", "n_cycle", "ratio_zero", "ratio_increase", "n_iter")

# Not checked: `objective.beta` keys that its kind ignores, `data.row_tokens` and
# `decode.beam_width`. Presets set them, so that one flag is enough to switch the kind, the packing
# or the method.
IDLES = (
    Idle(
        (
            "objective.free_bits",
            "objective.free_bits_nats",
            "objective.kl_reduce",
            *(f"objective.beta.{name}" for name in _BETA),
        ),
        _has_kl,
        _no_kl,
    ),
    Idle(("objective.beta.kind",), _has_kl, _no_kl, free=("constant",)),
    Idle(
        ("objective.free_bits_nats",),
        lambda v, facts: v["objective.free_bits"] != "none",
        "objective.free_bits is none",
    ),
    Idle(
        ("objective.free_bits",),
        lambda v, facts: v["objective.free_bits_nats"] > 0,
        "objective.free_bits_nats is 0",
    ),
    Idle(
        ("objective.kl_reduce",),
        lambda v, facts: facts.groups > 1,
        _family("has one group of latents"),
    ),
    Idle(("objective.z",), lambda v, facts: facts.latent, _family("has no latent")),
    Idle(
        ("optim.no_decay",),
        lambda v, facts: v["optim.weight_decay"] > 0,
        "optim.weight_decay is 0",
        free=((),),
    ),
    Idle(
        ("noise.enc_delete", "data.enc_row"),
        lambda v, facts: "enc" in facts.sides,
        _family("has no encoder"),
    ),
    Idle(
        ("data.source", "data.cond_row", "data.turns", "data.source_words"),
        lambda v, facts: "cond" in facts.sides,
        _family("reads no source text, as a conditional model does"),
    ),
    Idle(
        ("evals.vectors",),
        lambda v, facts: "dialogue" in v["evals.metrics"],
        "evals.metrics does not name dialogue",
    ),
    Idle(
        ("evals.outputs", "evals.bertscore"),
        lambda v, facts: "cond" in facts.sides,
        _family("reads no source text, as a conditional model does"),
    ),
    Idle(
        ("data.format", "data.text", "data.source", "data.label", "data.keep", "data.sentences"),
        lambda v, facts: bool(v["data.train"]),
        _EMBEDDED,
    ),
    Idle(
        ("data.vocab",),
        lambda v, facts: bool(v["data.train"]),
        _EMBEDDED + ", whose vocabulary is all of its words",
        free=(0,),
    ),
    Idle(
        ("data.vocab",),
        lambda v, facts: not (v["data.encoder_tokenizer"] and v["data.decoder_tokenizer"]),
        "data.encoder_tokenizer and data.decoder_tokenizer bring their own",
        free=(0,),
    ),
    Idle(
        ("data.slots",),
        lambda v, facts: v["data.packing"] == "pack",
        "a row holds one text where data.packing is bucket",
        free=(1,),
    ),
    Idle(
        ("init.part", "init.optimizer"),
        lambda v, facts: bool(v["init.model"]),
        "init.model is empty",
    ),
    Idle(
        ("init.frozen_dtype",),
        lambda v, facts: bool(v["optim.trainable"]),
        "optim.trainable is empty, so every parameter trains",
    ),
    Idle(
        ("decode.temperature", "decode.top_k", "decode.top_p"),
        lambda v, facts: v["decode.method"] == "sample",
        lambda v, facts: f"decode.method is {v['decode.method']}, not sample",
    ),
    Idle(
        ("decode.length_penalty",),
        lambda v, facts: v["decode.method"] == "beam",
        lambda v, facts: f"decode.method is {v['decode.method']}, not beam",
    ),
    Idle(
        (
            "evals.compat",
            "evals.prior_samples",
            "evals.refine_steps",
            "evals.interpolations",
            "evals.interpolation_steps",
            "evals.posteriors",
        ),
        lambda v, facts: facts.latent,
        _family("has no latent"),
    ),
    Idle(
        ("evals.refine_steps",),
        lambda v, facts: not facts.sampler,
        _family("has a sampler as its posterior"),
    ),
    Idle(
        ("evals.refine_size",),
        lambda v, facts: v["evals.refine_steps"] > 0,
        "evals.refine_steps is 0",
    ),
)
