"""The interface and the registry of backbones.

A backbone is a stack of layers that reads or writes text: GPT-2, BERT, T5, Llama, an LSTM. A file
registers a `BackboneKind`. A config selects it with the key `backbone` of a section such as
`model.decoder`; the section's other keys are the fields of that backbone's config. Models use only
the functions of a `Stack` and never refer to a particular backbone.

`abilities` lists what a backbone supports. A model that needs a missing ability raises ConfigError.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, Key

from jvae.api import Params, Side
from jvae.config import dataclass_from
from jvae.errors import ConfigError
from jvae.fields import Problem, check_dataclass, lines
from jvae.nn.attention import MaskSpec
from jvae.nn.cache import Caches
from jvae.nn.lora import Lora, with_lora
from jvae.nn.points import UNTOUCHED, CrossKv, Points, Read
from jvae.registry import Registry

ABILITIES = {
    "encode": "read text",
    "layers": "give the states of its layers",
    "decode": "write text with caches of keys and values",
    "tokens": "read vectors in front of the text as tokens",
    "slots": "attend to extra keys and values",
    "values": "change the values of its attention",
    "taps": "take additions to its residual stream",
    "cross": "attend to external states",
    "features": "score features in addition to its states",
    "low_rank": "take low-rank additions to its kernels",
    "recurrent": "start from a hidden state and read an extra input at every token",
}


State = Any  # state of a recurrent stack, opaque except to its own functions


class Recurrent(NamedTuple):
    """Functions of a recurrent stack, which has a state instead of a key-value cache.

    Gates are pre-activations, (..., 4, F) for an LSTM; h is a hidden state (E, F).

    hidden: F.
    gates(params, x): contribution of token embeddings to the gates.
    state_gates(params, h_ef): contribution of a hidden state to the gates of the next token.
    run(params, gate_bt4f, first_bt): hidden states of packed rows; `first_bt` marks segment starts.
    prefill(params, gate_et4f, length_e): the state after right-padded prompts.
    cell(params, gate_e4f, state): the state after one token.
    output(state): the hidden states that are scored.
    uniform(key, shape, names): one boxed parameter, initialised at the stack's own scale.
    """

    hidden: int
    gates: Callable[[Params, Float[Array, "*n d"]], Float[Array, "*n 4 f"]]
    state_gates: Callable[[Params, Float[Array, "e f"]], Float[Array, "e 4 f"]]
    run: Callable[[Params, Float[Array, "b t 4 f"], Bool[Array, "b t"]], Float[Array, "b t f"]]
    prefill: Callable[[Params, Float[Array, "e t 4 f"], Int[Array, "e"]], State]
    cell: Callable[[Params, Float[Array, "e 4 f"], State], State]
    output: Callable[[State], Float[Array, "e f"]]
    uniform: Callable[[Key[Array, ""], tuple[int, ...], tuple[str | None, ...]], Params]


def _unable(*args: Any, **options: Any) -> Any:
    raise TypeError("this backbone has no such function; its abilities say so")


@runtime_checkable
class InitStack(Protocol):
    """Returns boxed parameters: the embedding {embed}, the body {layers, ...} and the head {head}.

    The head is included if it is requested and not tied to the embedding.
    """

    def __call__(self, key: Key[Array, ""], /, head: bool = True) -> dict[str, Any]: ...


@runtime_checkable
class Embed(Protocol):
    """Embeds tokens of any shape in the compute dtype; `kind` gives token types."""

    def __call__(
        self,
        params: Params,
        token: Int[Array, "*n"],
        position: Int[Array, "*n"],
        kind: Int[Array, "*n"] | None = None,
        /,
    ) -> Float[Array, "*n d"]: ...


@runtime_checkable
class Rows(Protocol):
    """Runs packed rows, bidirectional or causal according to `mask_spec`.

    Returns the final states and the outputs of `read` for every layer; see
    `jvae.nn.transformer.rows`.
    """

    def __call__(
        self,
        params: Params,
        x_btd: Float[Array, "b t d"],
        mask_spec: MaskSpec,
        points: Points = UNTOUCHED,
        drop: Key[Array, ""] | None = None,
        /,
        *,
        read: Read | None = None,
        read_l: Any = None,
    ) -> tuple[Float[Array, "b t f"], Any]: ...


@runtime_checkable
class Prefill(Protocol):
    """Returns states of right-padded prompts, and caches with capacity for `max_len` tokens."""

    def __call__(
        self,
        params: Params,
        x_etd: Float[Array, "e t d"],
        length_e: Int[Array, "e"],
        max_len: int,
        points: Points = UNTOUCHED,
        /,
    ) -> tuple[Float[Array, "e t d"], Caches]: ...


@runtime_checkable
class StackStep(Protocol):
    """Returns the states of one more token per example, and the updated caches."""

    def __call__(
        self,
        params: Params,
        x_ed: Float[Array, "e d"],
        kv: Caches,
        position_e: Int[Array, "e"],
        points: Points = UNTOUCHED,
        /,
    ) -> tuple[Float[Array, "e d"], Caches]: ...


class Stack(NamedTuple):
    """A backbone for one config: its functions are pure and take its parameters.

    For the axes see `jvae.api`; states are in the compute dtype.

    config: has at least the fields layers, width, vocab, vocab_padded, dtype, dropout, init_std,
      and kv_heads and head (of keys and values) if the stack supports slots.
    features: width of the states that `rows` returns.
    longest: maximum tokens per text, including slots that take up a position.
    init: initialises a whole stack. For stacks that share parts, init_embed(key), init_body(key)
      and init_head(key) return dicts to merge.
    place(params, x, position): prepares vectors that replace token embeddings at these positions.
    logits(params, hidden): scores over the padded vocabulary, float32, -inf at padded columns.
    token_log_prob(params, hidden_btd, side, scored_bt): log p of each scored token at its position,
      in nats.
    cross(params, state_bsd): cross-attention keys and values of the states, with ability "cross".
    with_features(params, hidden, feature, table_vc): parameters and states with scores
      hidden . table + feature . table_vc, with ability "features".
    recurrent: replaces `prefill` and `step`, with ability "recurrent".
    """

    config: Any
    features: int
    longest: int
    init: InitStack
    init_embed: Callable[[Key[Array, ""]], dict[str, Any]]
    init_body: Callable[[Key[Array, ""]], dict[str, Any]]
    init_head: Callable[[Key[Array, ""]], dict[str, Any]]
    embed: Embed
    place: Callable[[Params, Float[Array, "*n d"], Int[Array, "*n"]], Float[Array, "*n d"]]
    rows: Rows
    prefill: Prefill = _unable
    step: StackStep = _unable
    logits: Callable[[Params, Float[Array, "*n d"]], Float[Array, "*n v"]] = _unable
    token_log_prob: Callable[
        [Params, Float[Array, "b t d"], Side, Bool[Array, "b t"]], Float[Array, "b t"]
    ] = _unable
    cross: Callable[[Params, Float[Array, "b s d"]], CrossKv] = _unable
    with_features: Callable[
        [Params, Float[Array, "*n d"], Float[Array, "*n c"], Float[Array, "v c"]],
        tuple[Params, Float[Array, "*n f"]],
    ] = _unable
    recurrent: Recurrent | None = None


@runtime_checkable
class MakeStack(Protocol):
    """Builds the stack of a config.

    `own_head` unties the output head from the embedding, overriding the config.
    """

    def __call__(self, config: Any, own_head: bool = False, /) -> Stack: ...


@runtime_checkable
class MakeTiny(Protocol):
    """Makes a config with a few hundred parameters, for the test suites of all backbones."""

    def __call__(self, vocab: int, /, **changes: Any) -> "StackConfig": ...


class BackboneKind(NamedTuple):
    """A registered backbone.

    config: its config dataclass, a `StackConfig`.
    abilities: names from `ABILITIES`.
    """

    config: type["StackConfig"]
    abilities: frozenset[str]
    stack: MakeStack
    tiny: MakeTiny


BACKBONES: Registry[BackboneKind] = Registry("backbone", "model.decoder.backbone")
KEY = "backbone"


@dataclass(frozen=True)
class StackConfig:
    """Base class for configs of registered backbones; model configs use it as a field type.

    lora: low-rank additions to the kernels, for backbones with the ability "low_rank".
    """

    lora: Lora = field(default=Lora(), kw_only=True)

    @classmethod
    def problems_of(cls, section: Any, where: str) -> list[Problem]:
        """Problems of a backbone section."""
        if isinstance(section, cls):
            return []
        if not hasattr(section, "items"):
            return [Problem((where,), f"{where}: expected a section with a backbone")]
        values, key = dict(section), f"{where}.{KEY}"
        name = values.pop(KEY, None)
        if not isinstance(name, str):
            names = ", ".join(BACKBONES)
            return [Problem((key,), f"{key}: missing; set it to one of {names}")]
        try:
            kind = BACKBONES[name]
        except ConfigError as error:
            return [Problem((key,), str(error))]
        return check_dataclass(kind.config, values, where)

    @classmethod
    def from_section(cls, section: Any, where: str) -> "StackConfig":
        """Builds the config of the backbone that a section selects. Raises: ConfigError."""
        if isinstance(section, cls):
            return section
        if problems := cls.problems_of(section, where):
            raise ConfigError(lines(problems))
        values = dict(section)
        return dataclass_from(BACKBONES[values.pop(KEY)].config, values, where)


def name_of(config: StackConfig) -> str:
    """The name of a config's backbone. Raises: ConfigError for an unknown one."""
    for name, kind in BACKBONES.items():
        if kind.config is type(config):
            return name
    raise ConfigError(
        f"{type(config).__name__} is the config of no registered backbone; known: "
        f"{', '.join(BACKBONES)}"
    )


def abilities_of(config: StackConfig) -> frozenset[str]:
    """The abilities of a config's backbone. Raises: ConfigError for an unknown one."""
    return BACKBONES[name_of(config)].abilities


def stack_of(config: StackConfig, where: str, *needs: str, own_head: bool = False) -> Stack:
    """Builds the stack of a config.

    Args:
      where: the config key of its section, for messages.
      needs: abilities that the backbone must have.
      own_head: unties the output head from the embedding, overriding the config.
    Raises: ConfigError if the backbone lacks one of these abilities, or "low_rank" while the config
      sets low-rank additions.
    """
    name, able = name_of(config), abilities_of(config)
    for ability in (*needs, *(["low_rank"] if config.lora.rank else [])):
        if ability not in able:
            capable = [
                other_name for other_name, kind in BACKBONES.items() if ability in kind.abilities
            ]
            raise ConfigError(
                f"{where}.{KEY} is {name}, which cannot {ABILITIES[ability]}; backbones that can: "
                f"{', '.join(capable) or 'none'}"
            )
    stack = BACKBONES[name].stack(config, own_head)
    return with_lora(stack, config.lora, where) if config.lora.rank else stack
