"""The contract of a backbone, and the registry of all.

A backbone is a stack of layers that reads or writes text: GPT-2, BERT, T5, Llama, an LSTM. A file
registers a `BackboneKind`; a config names it by the key `backbone` of a section such as
`model.decoder`, whose other keys are the fields of that backbone's config. A model is built from
the functions of a `Stack` and names no backbone.

What a backbone cannot do is not among its `abilities`, and a model that needs it is a ConfigError.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jvae.config import dataclass_from
from jvae.errors import ConfigError
from jvae.fields import Problem, check_dataclass, lines
from jvae.nn.lora import Lora, with_lora
from jvae.registry import Registry

ABILITIES = {
    "encode": "read text",
    "layers": "give the states of its layers",
    "decode": "write text with caches of keys and values",
    "tokens": "read vectors in front of the text as tokens",
    "slots": "attend to extra keys and values",
    "values": "change the values of its attention",
    "taps": "take additions to its residual stream",
    "cross": "attend to states beside the text",
    "features": "score more features than its states",
    "low_rank": "take low-rank additions to its kernels",
    "recurrent": "start from a hidden state and read an extra input at every token",
}


class Recurrent(NamedTuple):
    """What a recurrent stack has in place of a cache of keys and values.

    Its gates are what inputs give to a step, (..., 4, F) for an LSTM; h is a hidden state (E, F).

    hidden: F.
    gates(own, x) -> what token embeddings give to the gates.
    state_gates(own, h_ef) -> what a hidden state gives to the gates of the next token.
    run(own, gate_bt4f, first_bt) -> hidden_btf, of packed rows; a segment begins where `first_bt`.
    prefill(own, gate_et4f, length_e) -> state after right-padded prompts
    cell(own, gate_e4f, state) -> state after one token
    output(state) -> the states that are scored
    uniform(key, shape, names) -> one boxed parameter of the stack's own scale
    """

    hidden: int
    gates: Callable[..., Any]
    state_gates: Callable[..., Any]
    run: Callable[..., Any]
    prefill: Callable[..., Any]
    cell: Callable[..., Any]
    output: Callable[..., Any]
    uniform: Callable[..., Any]


def _unable(*args: Any, **options: Any) -> Any:
    raise TypeError("this backbone has no such function; its abilities say so")


class Stack(NamedTuple):
    """A backbone of one config: functions over parameters `own` that are passed in.

    For the axes see `jvae.api`; states are in the compute dtype.

    config: with at least the fields layers, width, vocab, vocab_padded, dtype, dropout, init_std,
      and kv_heads and head of a key or value where there are slots.
    features: width of the states that `rows` gives.
    longest: most tokens of a text, slots with a position of their own included.
    init(key, head=True) -> own, boxed: the embedding {embed}, the body {layers, ...} and the output
      head {head}, where that is wanted and not the embedding. Stacks that share one of them are
      made of these parts by init_embed(key), init_body(key) and init_head(key), dicts to be joined.
    embed(own, token, position, kind=None) -> x
      Of any shape (...), in the compute dtype; `kind` are token types.
    place(own, x, position) -> x
      Vectors in place of token embeddings, at these positions.
    rows(own, x_btd, mask_spec, points, drop=None, *, read=None, read_l=None) -> (hidden_btd, reads)
      Packed rows, in both directions or causal as `mask_spec` says; see `jvae.nn.transformer.rows`.
    prefill(own, x_etd, length_e, max_len, points) -> (hidden_etd, kv)
    step(own, x_ed, kv, position_e, points) -> (hidden_ed, kv)
    logits(own, hidden) -> scores over the padded vocabulary, float32, -inf at padded columns
    token_log_prob(own, hidden_btd, side, scored_bt) -> nats_bt
    cross(own, state_bsd) -> CrossKv, where "cross" is an ability.
    with_features(own, hidden, feature, table_vc) -> (own, hidden)
      Scores hidden . table + feature . table_vc, where "features" is an ability.
    recurrent: where that is an ability, in place of `prefill` and `step`.
    """

    config: Any
    features: int
    longest: int
    init: Callable[..., Any]
    init_embed: Callable[..., Any]
    init_body: Callable[..., Any]
    init_head: Callable[..., Any]
    embed: Callable[..., Any]
    place: Callable[..., Any]
    rows: Callable[..., Any]
    prefill: Callable[..., Any] = _unable
    step: Callable[..., Any] = _unable
    logits: Callable[..., Any] = _unable
    token_log_prob: Callable[..., Any] = _unable
    cross: Callable[..., Any] = _unable
    with_features: Callable[..., Any] = _unable
    recurrent: Recurrent | None = None


class BackboneKind(NamedTuple):
    """A registered backbone.

    config: the dataclass of its sizes and choices, a `StackConfig`.
    abilities: names of `ABILITIES`.
    stack(config, own_head=False) -> Stack; with `own_head` its output head is not tied to the
      embedding, whatever the config says.
    tiny(vocab, **changes) -> a config of a few hundred parameters, for the suites of all backbones.
    """

    config: type
    abilities: frozenset[str]
    stack: Callable[..., Stack]
    tiny: Callable[..., Any]


BACKBONES: Registry[BackboneKind] = Registry("backbone", "model.decoder.backbone")
KEY = "backbone"


@dataclass(frozen=True)
class StackConfig:
    """The config of some registered backbone; fields of model configs have this type.

    lora: what is added to its kernels, for backbones with the ability "low_rank".
    """

    lora: Lora = field(default=Lora(), kw_only=True)

    @classmethod
    def problems_of(cls, section: Any, where: str) -> list[Problem]:
        """What is wrong with a section of this kind."""
        if isinstance(section, cls):
            return []
        if not hasattr(section, "items"):
            return [Problem((where,), f"{where}: expected a section with a backbone")]
        values, key = dict(section), f"{where}.{KEY}"
        name = values.pop(KEY, None)
        if not isinstance(name, str):
            known = ", ".join(BACKBONES)
            return [Problem((key,), f"{key}: missing; set it to one of {known}")]
        try:
            kind = BACKBONES[name]
        except ConfigError as error:
            return [Problem((key,), str(error))]
        return check_dataclass(kind.config, values, where)

    @classmethod
    def from_section(cls, section: Any, where: str) -> "StackConfig":
        """The config of the backbone that a section names. Raises: ConfigError."""
        if isinstance(section, cls):
            return section
        if problems := cls.problems_of(section, where):
            raise ConfigError(lines(problems))
        values = dict(section)
        return dataclass_from(BACKBONES[values.pop(KEY)].config, values, where)


def name_of(config: StackConfig) -> str:
    """The name of the backbone that a config belongs to. Raises: ConfigError for an unknown one."""
    for name, kind in BACKBONES.items():
        if kind.config is type(config):
            return name
    raise ConfigError(
        f"{type(config).__name__} is the config of no registered backbone; known: "
        f"{', '.join(BACKBONES)}"
    )


def abilities_of(config: StackConfig) -> frozenset[str]:
    """What the backbone of a config can do. Raises: ConfigError for an unknown one."""
    return BACKBONES[name_of(config)].abilities


def stack_of(config: StackConfig, where: str, *needs: str, own_head: bool = False) -> Stack:
    """The backbone of a config.

    Args:
      where: the config key of its section, for messages. needs: abilities that it must have.
      own_head: gives it an output head apart from the embedding, whatever its config says.
    Raises: ConfigError for a backbone without such an ability, or without what its low-rank
      additions need.
    """
    name, able = name_of(config), abilities_of(config)
    for ability in (*needs, *(["low_rank"] if config.lora.rank else [])):
        if ability not in able:
            others = [other for other, kind in BACKBONES.items() if ability in kind.abilities]
            raise ConfigError(
                f"{where}.{KEY} is {name}, which cannot {ABILITIES[ability]}; backbones that can: "
                f"{', '.join(others) or 'none'}"
            )
    stack = BACKBONES[name].stack(config, own_head)
    return with_lora(stack, config.lora, where) if config.lora.rank else stack
