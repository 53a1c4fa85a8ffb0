"""The contract every model of jvae fulfils: prior x posterior x generator.

A model is a *prior* p(z), a *posterior* (how z is inferred) and a *generator* p(x | z), each chosen
without regard to the others. The trainer, the evaluator and the sampler know only the types of this
file; no model's name appears in them.

Letters of the array suffixes, one meaning each: B rows, E examples, T target position, S source or
key position, D width, N heads, H head width, F hidden, V vocabulary, L layers, G latent groups, Z
latent width, M memory slots, K posterior samples.

**Latents belong to examples, tokens to rows.** A row holds a static number of *slots*, each empty
or one example, so E = B * slots and e = b * slots + (segment - 1), row-major: sharding E over the
data axis is sharding rows. An unpacked batch is the case slots = 1. The same slot has the same
segment id on every side of a batch.

**Noise belongs to examples too.** Whatever is random in a latent is drawn from one key per example
(`example_keys`), made from the example's own index. So the draws of a sentence do not depend on how
it was packed, batched or sharded, nor on how K samples were cut into chunks. Dropout masks are the
exception: they belong to rows and come from one key, `drop`; dropout is on exactly when that key is
given.

**Nats, float32.** Every log-probability and divergence here is in nats and at least float32,
whatever the compute dtype.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

AUX_STREAM = 0xA0_A11  # of the noise of auxiliary terms
SPACE, SPHERE = "space", "sphere"  # where vectors of latents lie: anywhere, or at length 1
Params = Any  # a pytree of arrays, paths joined by "/" are public API
Post = Any  # opaque pytree, every leaf with leading axis E
Cond = Any  # opaque pytree, every leaf with leading axis E but those of `RowStates`
Context = Any  # opaque pytree: what log_lik needs that does not depend on z


class Side(NamedTuple):
    """One tokenised side of a batch of rows. Segment 0 is padding (no token id is); positions
    restart in each segment.
    """

    token_bt: Int[Array, "b t"]
    segment_bt: Int[Array, "b t"]
    position_bt: Int[Array, "b t"]
    type_bt: Int[Array, "b t"] | None = None  # token types, such as 0 and 1 of a sentence pair


class RowStates(NamedTuple):
    """States of rows that a decoder attends to, such as those of a source text.

    The one part of a `Cond` whose leaves lead with rows. Decoding has one example per row, so there
    they are leaves per example like all others.
    """

    state_bsd: Float[Array, "b s d"]
    segment_bs: Int[Array, "b s"]  # 0 is padding; a token reads states of its own segment


def one_per_row(cond: Cond, slots: int) -> Cond:
    """A condition of packed rows as decoding reads it, with a row for each example."""

    def apart(leaf: Any) -> Any:
        if not isinstance(leaf, RowStates):
            return leaf
        state_esd, segment_es = (jnp.repeat(part, slots, axis=0) for part in leaf)
        slot_e = jnp.tile(jnp.arange(1, slots + 1), leaf.segment_bs.shape[0])
        own_es = segment_es == slot_e[:, None]
        return RowStates(state_esd, own_es.astype(segment_es.dtype))

    return jax.tree.map(apart, cond, is_leaf=lambda leaf: isinstance(leaf, RowStates))


class Batch(NamedTuple):
    """Rows of packed examples. Sides may differ in row length and tokenizer; a slot has one segment
    id on all of them.
    """

    enc: Side | None  # what the posterior reads
    dec: Side  # what is scored, start id first
    cond: Side | None  # source text; None when unconditional
    scored_bt: Bool[
        Array, "b t"
    ]  # True where the token of `dec` is predicted: no start id, source prefix or padding
    id_e: Int[Array, "e"]  # index of the example in its split; -1 at an empty slot
    noisy_bt: Int[Array, "b t"] | None = None  # what the decoder reads in place of `dec`'s tokens

    @property
    def read_bt(self) -> Int[Array, "b t"]:
        """Tokens that the decoder reads; those of `dec` are what it is scored on."""
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
    """State of stepwise decoding. The cache is opaque: its example axis need not be the first."""

    cache: Any
    position_e: Int[Array, "e"]  # tokens read so far


class Prompt(NamedTuple):
    """Ragged prefixes to continue, right-padded: at least the start id, so 1 <= length_e <= T."""

    token_et: Int[Array, "e t"]
    length_e: Int[Array, "e"]


@runtime_checkable
class SamplePrior(Protocol):
    """One draw per key; ancestral over groups when layer-wise."""

    def __call__(
        self, params: Params, key_e: Key[Array, "e"], cond: Cond | None = None, /
    ) -> Float[Array, "e g z"]: ...


@runtime_checkable
class LogPrior(Protocol):
    """log p(z) of any z, in nats."""

    def __call__(
        self, params: Params, z_egz: Float[Array, "e g z"], cond: Cond | None = None, /
    ) -> Float[Array, "e"]: ...


class Prior(NamedTuple):
    """p(z), or p(z | source) for a conditional model.

    form: what closed forms of the KL go by, see `jvae.latent.kl`; None for a prior without any.
    support: where it has its mass; densities on the SPHERE are per unit of its surface.
    """

    sample: SamplePrior
    log_prob: LogPrior
    form: Any = None
    support: str = SPACE


@runtime_checkable
class Encode(Protocol):
    """Reads a batch; `key_e` is read by samplers without an encoder (Langevin) only."""

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
    """One draw per key."""

    def __call__(
        self, params: Params, post: Post, key_ke: Key[Array, "k e"], /
    ) -> Float[Array, "k e g z"]: ...


@runtime_checkable
class LogPosterior(Protocol):
    """log q(z | x) of any z, in nats."""

    def __call__(
        self, params: Params, post: Post, z_egz: Float[Array, "e g z"], /
    ) -> Float[Array, "e"]: ...


@runtime_checkable
class Mean(Protocol):
    """The posterior mean; layer-wise: the chain of means."""

    def __call__(self, params: Params, post: Post, /) -> Float[Array, "e g z"]: ...


@runtime_checkable
class Track(Protocol):
    """Parameters whose running statistics have seen one more batch of training."""

    def __call__(self, params: Params, batch: Batch, /) -> Params: ...


@runtime_checkable
class EncoderFeatures(Protocol):
    """The encoder's state of each example; of several vectors, their mean."""

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
    """How z is inferred. `encode` runs once; its result serves any number of samples and densities.

    A posterior knows nothing of the prior: the KL between them is `jvae.latent.kl.kl`.

    log_prob: None for a posterior without a density.
    form: what closed forms of the KL go by; None for a posterior without any.
    has_kl: False only for posteriors whose KL is 0 by definition, in the loss and in reports: a
      point, the absent latent of a language model, an MCMC sampler, whose loss has no KL.
    sampler: what a posterior that is a sampler adds; None for the others.
    features: the state that the density is made from, for classifiers; None for a posterior without
      an encoder.
    support: as of `Prior`; both lie in one place.
    coupled: whether `encode` with a dropout key reads the examples of a batch together, so that a
      batch cannot be measured in parts.
    track(params, batch) -> params
      Running statistics after one more batch of training; None where there are none.
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
    """One draw per key."""

    def __call__(
        self, params: Params, post: Post, key_ke: Key[Array, "k e"], cond: Cond | None, /
    ) -> Float[Array, "k e g z"]: ...


@runtime_checkable
class LogProposal(Protocol):
    """Log density of any z, in nats."""

    def __call__(
        self, params: Params, post: Post, z_egz: Float[Array, "e g z"], cond: Cond | None, /
    ) -> Float[Array, "e"]: ...


class Proposal(NamedTuple):
    """Where the draws of a likelihood bound come from; its support must be everywhere."""

    sample: Propose
    log_prob: LogProposal


@runtime_checkable
class Measure(Protocol):
    """Terms of one pass at an optimizer step."""

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
    """Parameters with step sizes that were learned between updates."""

    def __call__(self, params: Params, batch: Batch, key: Key[Array, ""], /) -> Params: ...


class Sampler(NamedTuple):
    """What a posterior that is a sampler brings to training and to metrics.

    measure: in place of `jvae.latent.elbo.measure` in training: annealing by step, gradients along
      chains.
    metric: the posterior that metrics use, which has a density.
    baseline: the metric posterior with every end point a draw from the prior.
    proposal: draws of likelihood bounds; None for draws from `metric`.
    tune: None where step sizes are fixed.
    config: of the sampler itself.
    """

    measure: Measure
    metric: Posterior
    baseline: Posterior
    proposal: Proposal | None
    tune: Tune | None
    config: Any


class Draws(NamedTuple):
    """What auxiliary training terms may read besides the decoder's context."""

    z_kegz: Float[Array, "k e g z"]  # `Generator.draws` latents per example, the first one scored
    post: Post
    cond: Cond | None
    valid_e: Bool[Array, "e"]
    key_e: Key[Array, "e"]  # of further noise


@runtime_checkable
class Condition(Protocol):
    """Reads `batch.cond` only; None for an unconditional model."""

    def __call__(
        self, params: Params, batch: Batch, drop: Key[Array, ""] | None = None, /
    ) -> Cond | None: ...


@runtime_checkable
class Prepare(Protocol):
    """All that does not depend on z, made once."""

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
    """Log p of each scored token at its own place in `dec`, 0 elsewhere, in nats."""

    def __call__(
        self, params: Params, ctx: Context, z_egz: Float[Array, "e g z"], /
    ) -> Float[Array, "b t"]: ...


@runtime_checkable
class Aux(Protocol):
    """Further training terms in nats by name; {} for most. A term may couple the examples of a
    batch (`Generator.coupled`).
    """

    def __call__(
        self, params: Params, ctx: Context, draws: Draws, /
    ) -> dict[str, Float[Array, "e"]]: ...


@runtime_checkable
class Start(Protocol):
    """Logits after ragged prompts, and a state with room for `max_len` tokens, prompt and its
    padding included.
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
    """Logits after one more token of each example."""

    def __call__(
        self, params: Params, state: DecodeState, token_e: Int[Array, "e"], /
    ) -> tuple[Float[Array, "e v"], DecodeState]: ...


class Generator(NamedTuple):
    """The decoder, pure functions with params first.

    expand(state, k): the state of E * k examples, copies of an example adjacent.
    reorder(state, idx_e): the state of example idx_e[i] at place i.
    grow(state, more): the state with room for `more` further tokens; None where a state has no room
      of its own.
    draws: latents per example that `aux` reads.
    coupled: whether a term of `aux` depends on other examples, so that a batch cannot be measured
      in parts.

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

    init(key) -> params; axes: a tree like params with a tuple of logical axis names per leaf.
    `latent_shape` is (G, Z), with G = 0 for a language model. groups: what the G are, "vector" for
    those of one text, "layer" for a chain with one for each decoder layer.
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
        """The posterior that metrics use: the model's own, unless it is a sampler."""
        return self.post if self.post.sampler is None else self.post.sampler.metric

    @property
    def proposal(self) -> Proposal | None:
        """Where likelihood bounds draw from; None for the metric posterior."""
        return None if self.post.sampler is None else self.post.sampler.proposal


class Terms(NamedTuple):
    """What one pass over a batch measures, per example, in nats; an objective weighs it."""

    nll_e: Float[Array, "e"]  # -log p(x | z), summed over tokens
    kl_e: Float[Array, "e"]
    kl_egz: Float[Array, "e g z"] | None  # per latent dimension, where the pair has a closed form
    aux: dict[str, Float[Array, "e"]]
    scored_e: Int[Array, "e"]  # scored tokens
    valid_e: Bool[Array, "e"]


def example_keys(
    key: Key[Array, ""], id_e: Int[Array, "e"], draws: Int[Array, "k"] | None = None
) -> Key[Array, "..."]:
    """One random key per example, or per draw and example (K, E) when the indices of the draws are
    given.

    Draw k of example i has the same key in every packing, batch size, chunking and device count.
    """
    key_e = jax.vmap(lambda i: jax.random.fold_in(key, i))(id_e)
    if draws is None:
        return key_e
    return jax.vmap(lambda k: jax.vmap(lambda one: jax.random.fold_in(one, k))(key_e))(draws)


def aux_keys(z_key: Key[Array, ""], batch: Batch) -> Key[Array, "e"]:
    """Keys of the noise of auxiliary terms, apart from those of the draws from `z_key`."""
    return example_keys(jax.random.fold_in(z_key, AUX_STREAM), batch.id_e)


def per_example(value_bt: Float[Array, "b t"], batch: Batch) -> Float[Array, "e"]:
    """Sums a value per token of `batch.dec` over the tokens of each example; 0 at empty slots."""
    slot = jnp.arange(1, batch.slots + 1, dtype=batch.dec.segment_bt.dtype)
    member_bts = batch.dec.segment_bt[:, :, None] == slot[None, None]
    return jnp.einsum("bt,bts->bs", value_bt, member_bts.astype(value_bt.dtype)).reshape(-1)


def mean_valid(value_e: Float[Array, "e"], valid_e: Bool[Array, "e"]) -> Float[Array, ""]:
    """Mean over the valid examples of the (global) batch; 0 when there are none."""
    return jnp.sum(jnp.where(valid_e, value_e, 0.0)) / jnp.maximum(jnp.sum(valid_e), 1)


class Inferred(NamedTuple):
    """What is known of a batch before a latent is drawn."""

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
    """Reads the condition and infers the posterior of every example.

    Training and every metric split `key` here, in one way: half of it for a posterior that is a
    sampler, half for draws.
    """
    chain_key, z_key = jax.random.split(key)
    cond = gen.condition(params, batch, drop)
    key_e = example_keys(chain_key, batch.id_e)
    return Inferred(cond, posterior.encode(params, batch, drop, cond=cond, key_e=key_e), z_key)


def has_latent(model: TextVAE) -> bool:
    """False for a language model, whose z is empty."""
    return model.latent_shape[0] * model.latent_shape[1] > 0
