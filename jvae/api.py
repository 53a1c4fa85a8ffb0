"""The interface that every jvae model implements: prior x posterior x generator.

A model consists of a *prior* p(z), a *posterior* (how z is inferred) and a *generator* p(x | z),
each chosen independently of the others. The trainer, the evaluator and the sampler depend only on
the types in this file and never refer to a particular model.

Each letter in an array suffix has one meaning: B rows, E examples, T target positions, S source or
key positions, D width, N heads, H head width, F hidden width, V vocabulary, L layers, G latent
groups, Z latent width, M memory slots, K posterior samples.

**Latents are per example, tokens are per row.** A row has a static number of *slots*, each of which
is empty or holds one example. Hence E = B * slots and e = b * slots + (segment - 1), in row-major
order, so sharding E over the data axis is the same as sharding rows. An unpacked batch has
slots = 1. A slot has the same segment id on every side of a batch.

**Noise is per example too.** All randomness in a latent comes from one key per example
(`example_keys`), derived from the example's own index. The draws for a sentence therefore do not
depend on how it was packed, batched or sharded, nor on how K samples were split into chunks.
Dropout masks are the exception: they are per row and come from a single key, `drop`. Dropout is on
if and only if that key is given.

**Nats, float32.** Every log-probability and divergence here is in nats and at least float32,
regardless of the compute dtype.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

# Folded into a key for a purpose of its own. JAX's split(key)[i] equals fold_in(key, i), so a small
# number would give the key of an example, of a step, or of something that splits the same key.
AUX_STREAM = 0xA0_A11  # noise of auxiliary terms
DRAW_STREAM = 0xF0_0000_01  # draws of a prior that needs several keys
START_STREAM = 2**31 - 1  # start of a chain
TUNE_STREAM = 0xF0_0000_02  # tuning between updates
DROPOUT_STREAM = 0xF0_0000_03  # dropout of a classifier
SPACE, SPHERE = "space", "sphere"  # support of latent vectors: all of space, or unit length
Params = Any  # a pytree of arrays; its paths, joined by "/", are public API
Post = Any  # opaque pytree, every leaf with leading axis E
Cond = Any  # opaque pytree, every leaf with leading axis E except those of `RowStates`
Context = Any  # opaque pytree: everything log_lik needs that does not depend on z


class Side(NamedTuple):
    """One tokenised side of a batch of rows.

    Padding is marked by segment 0, not by a token id. Positions restart in each segment.
    """

    token_bt: Int[Array, "b t"]
    segment_bt: Int[Array, "b t"]
    position_bt: Int[Array, "b t"]
    type_bt: Int[Array, "b t"] | None = None  # token types, such as 0 and 1 for a sentence pair


class RowStates(NamedTuple):
    """Per-row states that a decoder attends to, such as the encoded source text.

    The only part of a `Cond` whose leading axis is rows rather than examples. Decoding has one
    example per row, so there the leading axis is E as everywhere else.
    """

    state_bsd: Float[Array, "b s d"]
    segment_bs: Int[Array, "b s"]  # 0 is padding; a token attends to states of its own segment


def one_per_row(cond: Cond, slots: int) -> Cond:
    """Unpacks a condition for decoding, so that every example has its own row."""

    def apart(leaf: Any) -> Any:
        if not isinstance(leaf, RowStates):
            return leaf
        state_esd, segment_es = (jnp.repeat(part, slots, axis=0) for part in leaf)
        slot_e = jnp.tile(jnp.arange(1, slots + 1), leaf.segment_bs.shape[0])
        own_es = segment_es == slot_e[:, None]
        return RowStates(state_esd, own_es.astype(segment_es.dtype))

    return jax.tree.map(apart, cond, is_leaf=lambda leaf: isinstance(leaf, RowStates))


class Batch(NamedTuple):
    """Rows of packed examples.

    Sides may differ in row length and tokenizer, but a slot has the same segment id on all of them.
    """

    enc: Side | None  # what the posterior reads
    dec: Side  # what is scored, start id first
    cond: Side | None  # source text; None when unconditional
    scored_bt: Bool[
        Array, "b t"
    ]  # True where a token of `dec` is predicted; False at start id, source prefix and padding
    id_e: Int[Array, "e"]  # index of the example in its split; -1 at an empty slot
    noisy_bt: Int[Array, "b t"] | None = None  # what the decoder reads in place of `dec`'s tokens

    @property
    def read_bt(self) -> Int[Array, "b t"]:
        """Input tokens of the decoder; its targets are always those of `dec`."""
        return self.dec.token_bt if self.noisy_bt is None else self.noisy_bt

    @property
    def valid_e(self) -> Bool[Array, "e"]:
        """False at empty slots, where every per-example value is finite but meaningless."""
        return self.id_e >= 0

    @property
    def slots(self) -> int:
        """Slots per row."""
        return self.id_e.shape[0] // self.dec.token_bt.shape[0]


class DecodeState(NamedTuple):
    """State of stepwise decoding. The cache is opaque: its example axis may be any axis."""

    cache: Any
    position_e: Int[Array, "e"]  # tokens read so far


class Prompt(NamedTuple):
    """Right-padded prefixes to continue, each with at least the start id: 1 <= length_e <= T."""

    token_et: Int[Array, "e t"]
    length_e: Int[Array, "e"]


@runtime_checkable
class SamplePrior(Protocol):
    """Returns one draw per key; layer-wise priors use ancestral sampling over groups.

    Tokens and the steps of chains fold their numbers into the same keys, so a prior must either use
    a key as it is or take those of `draw_keys`.
    """

    def __call__(
        self, params: Params, key_e: Key[Array, "e"], cond: Cond | None = None, /
    ) -> Float[Array, "e g z"]: ...


@runtime_checkable
class LogPrior(Protocol):
    """Returns log p(z) for any z, in nats."""

    def __call__(
        self, params: Params, z_egz: Float[Array, "e g z"], cond: Cond | None = None, /
    ) -> Float[Array, "e"]: ...


class Prior(NamedTuple):
    """p(z), or p(z | source) for a conditional model.

    form: selects a closed-form KL by its type, see `jvae.latent.kl`; None if there is none.
    support: SPACE or SPHERE; densities on SPHERE are per unit of surface area.
    """

    sample: SamplePrior
    log_prob: LogPrior
    form: Any = None
    support: str = SPACE


@runtime_checkable
class Encode(Protocol):
    """Encodes a batch; only samplers without an encoder (Langevin) use `key_e`."""

    def __call__(
        self,
        params: Params,
        batch: Batch,
        drop: Key[Array, ""] | None = None,
        /,
        *,
        cond: Cond | None = None,
        key_e: Key[Array, "e"] | None = None,
    ) -> Post: ...


@runtime_checkable
class SamplePosterior(Protocol):
    """Returns one draw per key."""

    def __call__(
        self, params: Params, post: Post, key_ke: Key[Array, "k e"], /
    ) -> Float[Array, "k e g z"]: ...


@runtime_checkable
class LogPosterior(Protocol):
    """Returns log q(z | x) for any z, in nats."""

    def __call__(
        self, params: Params, post: Post, z_egz: Float[Array, "e g z"], /
    ) -> Float[Array, "e"]: ...


@runtime_checkable
class Mean(Protocol):
    """Returns the posterior mean; for layer-wise posteriors, the chain of means."""

    def __call__(self, params: Params, post: Post, /) -> Float[Array, "e g z"]: ...


@runtime_checkable
class Track(Protocol):
    """Returns parameters with running statistics updated on one more training batch."""

    def __call__(self, params: Params, batch: Batch, /) -> Params: ...


@runtime_checkable
class EncoderFeatures(Protocol):
    """Returns one encoder state per example, averaged if the encoder gives several vectors."""

    def __call__(
        self,
        params: Params,
        batch: Batch,
        drop: Key[Array, ""] | None = None,
        /,
        *,
        cond: Cond | None = None,
    ) -> Float[Array, "e d"]: ...


class Posterior(NamedTuple):
    """How z is inferred. Call `encode` once; its result serves any number of samples and densities.

    A posterior is independent of the prior; `jvae.latent.kl.kl` computes the KL between them.

    log_prob: None for a posterior without a density.
    form: selects a closed-form KL by its type; None if there is none.
    has_kl: False only for posteriors whose KL is 0 by definition, in the loss and in reports: a
      point, the empty latent of a language model, or an MCMC sampler, whose loss has no KL term.
    sampler: the extra functions of a posterior that is a sampler; None for the others.
    features: encoder states for classifiers, the inputs of the density; None for a posterior
      without an encoder.
    support: as in `Prior`; prior and posterior must have the same support.
    coupled: whether `encode` with a dropout key mixes the examples of a batch, so that the batch
      cannot be split into parts.
    track(params, batch) -> params
      Updates running statistics with one more training batch; None if there are none.
    """

    encode: Encode
    sample: SamplePosterior
    log_prob: LogPosterior | None
    mean: Mean
    form: Any = None
    has_kl: bool = True
    sampler: "Sampler | None" = None
    features: EncoderFeatures | None = None
    support: str = SPACE
    coupled: bool = False
    track: Track | None = None


@runtime_checkable
class Propose(Protocol):
    """Returns one draw per key."""

    def __call__(
        self, params: Params, post: Post, key_ke: Key[Array, "k e"], cond: Cond | None, /
    ) -> Float[Array, "k e g z"]: ...


@runtime_checkable
class LogProposal(Protocol):
    """Returns the log density of any z, in nats."""

    def __call__(
        self, params: Params, post: Post, z_egz: Float[Array, "e g z"], cond: Cond | None, /
    ) -> Float[Array, "e"]: ...


class Proposal(NamedTuple):
    """Proposal distribution of a likelihood bound; its density must be positive everywhere."""

    sample: Propose
    log_prob: LogProposal


@runtime_checkable
class Measure(Protocol):
    """Returns the terms of one training pass at a given optimizer step."""

    def __call__(
        self,
        step: Int[Array, ""],
        params: Params,
        batch: Batch,
        key: Key[Array, ""],
        drop: Key[Array, ""],
        /,
    ) -> "Terms": ...


@runtime_checkable
class Tune(Protocol):
    """Returns parameters with updated step sizes, which are learned between optimizer updates."""

    def __call__(self, params: Params, batch: Batch, key: Key[Array, ""], /) -> Params: ...


class Sampler(NamedTuple):
    """Extra functions for training and metrics, for a posterior that is a sampler.

    measure: replaces `jvae.latent.elbo.measure` in training; handles annealing by step and
      gradients along chains.
    metric: the posterior that metrics use, which has a density.
    baseline: the metric posterior, with every end point replaced by a draw from the prior.
    proposal: proposal for likelihood bounds; None to draw from `metric`.
    tune: learns step sizes; None if they are fixed.
    config: the sampler's own config.
    """

    measure: Measure
    metric: Posterior
    baseline: Posterior
    proposal: Proposal | None
    tune: Tune | None
    config: Any


class Draws(NamedTuple):
    """Inputs of auxiliary training terms in addition to the decoder's context."""

    z_kegz: Float[Array, "k e g z"]  # `Generator.draws` latents per example; the first is scored
    post: Post
    cond: Cond | None
    valid_e: Bool[Array, "e"]
    key_e: Key[Array, "e"]  # for any further noise


@runtime_checkable
class Condition(Protocol):
    """Encodes `batch.cond`, and reads nothing else; returns None for an unconditional model."""

    def __call__(
        self, params: Params, batch: Batch, drop: Key[Array, ""] | None = None, /
    ) -> Cond | None: ...


@runtime_checkable
class Prepare(Protocol):
    """Computes everything that does not depend on z, once."""

    def __call__(
        self,
        params: Params,
        batch: Batch,
        drop: Key[Array, ""] | None = None,
        /,
        *,
        cond: Cond | None = None,
    ) -> Context: ...


@runtime_checkable
class LogLik(Protocol):
    """Returns log p of each scored token at its position in `dec`, in nats; 0 elsewhere."""

    def __call__(
        self, params: Params, ctx: Context, z_egz: Float[Array, "e g z"], /
    ) -> Float[Array, "b t"]: ...


@runtime_checkable
class Aux(Protocol):
    """Returns additional training terms by name, in nats; {} for most models.

    A term may couple the examples of a batch (`Generator.coupled`).
    """

    def __call__(
        self, params: Params, ctx: Context, draws: Draws, /
    ) -> dict[str, Float[Array, "e"]]: ...


@runtime_checkable
class Start(Protocol):
    """Returns the logits after ragged prompts, and a decode state.

    The state has capacity for `max_len` tokens, including the prompt and its padding.
    """

    def __call__(
        self,
        params: Params,
        z_egz: Float[Array, "e g z"],
        prompt: Prompt,
        max_len: int,
        cond: Cond | None = None,
        /,
    ) -> tuple[Float[Array, "e v"], DecodeState]: ...


@runtime_checkable
class Step(Protocol):
    """Returns the logits after one more token per example, and the new state."""

    def __call__(
        self, params: Params, state: DecodeState, token_e: Int[Array, "e"], /
    ) -> tuple[Float[Array, "e v"], DecodeState]: ...


class Generator(NamedTuple):
    """The decoder, as pure functions that take params first.

    expand(state, k): repeats each example k times; copies of an example are adjacent.
    reorder(state, idx_e): puts the state of example idx_e[i] at index i.
    grow(state, more): extends the cache by `more` tokens; None if the state has no fixed capacity.
    draws: latents per example that `aux` reads.
    coupled: whether a term of `aux` depends on other examples, so that a batch cannot be split into
      parts.

    Logits are float32 over the padded vocabulary; columns at and past the vocabulary size are -inf.
    """

    condition: Condition
    prepare: Prepare
    log_lik: LogLik
    aux: Aux
    start: Start
    step: Step
    expand: Callable[[DecodeState, int], DecodeState]
    reorder: Callable[[DecodeState, Int[Array, "e"]], DecodeState]
    grow: Callable[[DecodeState, int], DecodeState] | None = None
    draws: int = 1
    coupled: bool = False


class TextVAE(NamedTuple):
    """A model, prior x posterior x generator: functions only, no arrays.

    init(key) -> params
    axes: a tree like params, with a tuple of logical axis names per leaf.
    latent_shape: (G, Z), with G = 0 for a language model.
    groups: meaning of the axis G: "vector" for several vectors per text, "layer" for a chain with
      one vector per decoder layer.
    """

    init: Callable[[Key[Array, ""]], Params]
    axes: Any
    prior: Prior
    gen: Generator
    post: Posterior
    latent_shape: tuple[int, int]
    groups: str = "vector"

    @property
    def metric_post(self) -> Posterior:
        """The posterior that metrics use: the model's own, or the sampler's `metric`."""
        return self.post if self.post.sampler is None else self.post.sampler.metric

    @property
    def proposal(self) -> Proposal | None:
        """Proposal of likelihood bounds; None to draw from the metric posterior."""
        return None if self.post.sampler is None else self.post.sampler.proposal


class Terms(NamedTuple):
    """Per-example results of one pass over a batch, in nats; an objective weights them."""

    nll_e: Float[Array, "e"]  # -log p(x | z), summed over tokens
    kl_e: Float[Array, "e"]
    kl_egz: Float[Array, "e g z"] | None  # per latent dimension; None without such a closed form
    aux: dict[str, Float[Array, "e"]]
    scored_e: Int[Array, "e"]  # scored tokens
    valid_e: Bool[Array, "e"]


def example_keys(
    key: Key[Array, ""], id_e: Int[Array, "e"], draws: Int[Array, "k"] | None = None
) -> Key[Array, "..."]:
    """One random key per example (E), or per draw and example (K, E) if `draws` is given.

    Args:
      draws: indices of the draws.

    Draw k of example i gets the same key for any packing, batch size, chunking and device count.
    """
    key_e = jax.vmap(lambda i: jax.random.fold_in(key, i))(id_e)
    if draws is None:
        return key_e
    return jax.vmap(
        lambda k: jax.vmap(lambda example_key: jax.random.fold_in(example_key, k))(key_e)
    )(draws)


def draw_keys(key_e: Key[Array, "e"]) -> Key[Array, "e 2"]:
    """Two keys per draw, for a prior that needs more than one; see `SamplePrior`."""
    return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, DRAW_STREAM)))(key_e)


def aux_keys(z_key: Key[Array, ""], batch: Batch) -> Key[Array, "e"]:
    """Keys for the noise of auxiliary terms, separate from those of latent draws from `z_key`."""
    return example_keys(jax.random.fold_in(z_key, AUX_STREAM), batch.id_e)


def per_example(value_bt: Float[Array, "b t"], batch: Batch) -> Float[Array, "e"]:
    """Sums per-token values of `batch.dec` over each example's tokens; 0 at empty slots."""
    slot = jnp.arange(1, batch.slots + 1, dtype=batch.dec.segment_bt.dtype)
    member_bts = batch.dec.segment_bt[:, :, None] == slot[None, None]
    return jnp.einsum("bt,bts->bs", value_bt, member_bts.astype(value_bt.dtype)).reshape(-1)


def mean_valid(value_e: Float[Array, "e"], valid_e: Bool[Array, "e"]) -> Float[Array, ""]:
    """Mean over the valid examples of the (global) batch; 0 if there are none."""
    return jnp.sum(jnp.where(valid_e, value_e, 0.0)) / jnp.maximum(jnp.sum(valid_e), 1)


class Inferred(NamedTuple):
    """Everything computed for a batch before a latent is drawn."""

    cond: Cond | None
    post: Post
    z_key: Key[Array, ""]  # source of the draws from `post`


def infer(
    gen: Generator,
    posterior: Posterior,
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
    drop: Key[Array, ""] | None = None,
) -> Inferred:
    """Encodes the condition and infers the posterior of every example.

    Training and all metrics split `key` here, so that they split it the same way: one key for a
    posterior that is a sampler, one for draws.
    """
    chain_key, z_key = jax.random.split(key)
    cond = gen.condition(params, batch, drop)
    key_e = example_keys(chain_key, batch.id_e)
    return Inferred(cond, posterior.encode(params, batch, drop, cond=cond, key_e=key_e), z_key)


def has_latent(model: TextVAE) -> bool:
    """False for a language model, whose z is empty."""
    return model.latent_shape[0] * model.latent_shape[1] > 0
