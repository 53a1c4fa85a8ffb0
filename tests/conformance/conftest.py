"""Every system as a small model, and seven ragged sentences in several packings.

A registered family is in the whole suite by its own tiny config; a line in `VARIANTS` adds a choice
of it. Families of a file outside the package join where JVAE_TEST_MEMBERS names that file.
"""

import dataclasses
import functools
import itertools
import os
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae import config as configs
from jvae import models
from jvae.api import Batch, Draws, TextVAE, example_keys, per_example
from jvae.data.rows import Encoded, pack_rows
from jvae.latent.choice import Choice
from jvae.latent.kl import kl
from jvae.nn.backbone import BACKBONES
from jvae.nn.lora import Lora
from jvae.tree import map_named

VOCAB = dict(enc=23, dec=29)  # padded to 24 and 32
START, END, PAD = 26, 27, 28  # special ids of the decoder
DRAWS = 3

SEVERAL: dict[str, Any] = dict(vectors=2, pool="queries")
VAMP = Choice("vamp", (("components", 3), ("length", 4)))
VMF = Choice("vmf", (("kappa", 5.0),))
# As large as the kernels, which are random too: a product of both does not amplify rounding.
LORA = Lora(rank=2, alpha=1.0)

# Choices of a family that its tiny config does not make; a stack by the name of its backbone.
VARIANTS: dict[str, dict[str, Any]] = {
    "adavae-all": dict(
        use_memory=True,
        use_embedding=True,
        use_output=True,
        use_adapters=True,
        layerwise_projection=True,
        prefix=2,
        learn_scale=True,
        pool="mean_max_linear",
        read_end=False,
    ),
    "adavae-apart": dict(encoder="bert", decoder="llama"),
    "della-apart": dict(encoder="bert", decoder="t5"),
    "della-source": dict(conditional=True, cvae_posterior="xc"),
    "della-offset": dict(fuse="offset", layer_latents="independent"),
    "della-shared": dict(layer_latents="shared"),
    "lstm_vae-apart": dict(encoder="gpt2"),
    "optimus-apart": dict(encoder="llama", decoder="t5", tokens=2, pool="last"),
    "optimus-context": dict(context_layers=1),
    "optimus-memory": dict(use_embedding=False),
    "optimus-embedding": dict(use_memory=False),
    "optimus-softmax": dict(use_memory=False, use_embedding=False, use_softmax=True),
    "optimus-mean": dict(pool="mean", log_var_shift=-1.0),
    "optimus-causal": dict(encoder="llama", pool="last", causal_encoder=True),
    "t5_vae-llama": dict(decoder="llama", cross_slots=0),
    # Latents of several vectors.
    "adavae-vectors": dict(
        use_memory=True,
        use_embedding=True,
        use_output=True,
        use_adapters=True,
        layerwise_projection=True,
        prefix=2,
        **SEVERAL,
    ),
    "lstm_vae-vectors": SEVERAL,
    "optimus-query": dict(pool="queries"),
    "optimus-vectors": dict(vectors=3, pool="queries", tokens=1),
    "sri_transformer-vectors": dict(vectors=2),
    "t5_vae-vectors": dict(vectors=3, pool="queries", cross_slots=1),
    # Priors and posteriors that no tiny config chooses.
    "optimus-flow": dict(
        prior=Choice("flow", (("bins", 3), ("layers", 2), ("width", 4))), **SEVERAL
    ),
    "optimus-vamp": dict(prior=VAMP),
    "optimus-vmf": dict(prior=Choice("uniform_sphere"), posterior=VMF, **SEVERAL),
    "optimus-bn": dict(posterior=Choice("bn", (("min_kl", 2.0),))),
    "adavae-vamp": dict(prior=VAMP),
    "lstm_vae-bn": dict(posterior=Choice("bn"), **SEVERAL),
    "lstm_vae-vamp": dict(prior=VAMP),
    "t5_vae-vamp": dict(
        prior=VAMP,
        posterior=VMF,
    ),
    # Low-rank additions under the injections; where one stack reads and writes, under both.
    "optimus-low_rank": dict(decoder="llama", tokens=2, lora=LORA),
    "adavae-low_rank": dict(use_memory=True, use_adapters=True, prefix=2, lora=LORA),
    "della-low_rank": dict(lora=dataclasses.replace(LORA, targets="attn/(q|v|out)")),
    "t5_vae-low_rank": dict(lora=LORA),
}

# Every backbone that writes under every injection, and every one that reads as an encoder.
WAYS: dict[str, dict[str, Any]] = {
    "optimus": dict(tokens=1, prior=Choice("gmm", (("components", 3),)), **SEVERAL),
    "adavae": dict(prefix=2, use_memory=True, use_output=True, use_adapters=True),
    "della": {},
    "sri_transformer": {},
    "lm": {},
}
VARIANTS |= {
    f"{family}-{name}": choices | dict(decoder=name)
    for family, choices in WAYS.items()
    for name, kind in BACKBONES.items()
    if "decode" in kind.abilities
}
VARIANTS |= {f"optimus-reads_{name}": dict(encoder=name, pool="mean") for name in BACKBONES}


class Pair(NamedTuple):
    """One of the few systems that together have every way of `WAYS` and every backbone."""

    way: str
    reads: str | None  # backbone that encodes; None without an encoder
    writes: str  # backbone that decodes


def _covering_pairs() -> dict[str, Pair]:
    """Pairs in which every way occurs, every backbone that writes and every one that reads.

    A way without an encoder occurs once; one whose stack both reads and writes, twice. The ways
    with two stacks cover the remaining backbones.
    """
    reading, writing = (
        [name for name, kind in BACKBONES.items() if ability in kind.abilities]
        for ability in ("encode", "decode")
    )
    next_writer = itertools.cycle(writing)
    pairs, two_stacks = [], []
    for way in WAYS:
        config = models.family(way).tiny(VOCAB)
        if not hasattr(config, "encoder"):
            pairs.append(Pair(way, None, next(next_writer)))
        elif config.encoder is None:
            pairs += [Pair(way, name, name) for name in itertools.islice(next_writer, 2)]
        else:
            two_stacks.append(way)
    for way in itertools.cycle(two_stacks):
        unread = [name for name in reading if name not in {pair.reads for pair in pairs}]
        unwritten = [name for name in writing if name not in {pair.writes for pair in pairs}]
        if not unread and not unwritten:
            break
        pairs.append(Pair(way, [*unread, *reading][0], next(next_writer)))
    return {f"{pair.way}-{pair.reads or 'none'}-{pair.writes}": pair for pair in pairs}


PAIRS = _covering_pairs()


def _choices_of(pair: Pair) -> dict[str, Any]:
    """The injections of its way, with the plainest latent and pooling, which compile fastest."""
    choices = {k: v for k, v in WAYS[pair.way].items() if k not in ("prior", *SEVERAL)}
    if getattr(models.family(pair.way).tiny(VOCAB), "encoder", None) is not None:
        choices |= dict(encoder=pair.reads, pool="mean")
    return choices | dict(decoder=pair.writes)


CHOICES = VARIANTS | {name: _choices_of(pair) for name, pair in PAIRS.items()}


def _builder(name: str) -> tuple[Callable[..., TextVAE], Callable[[], int]]:
    """(changes to the stacks: dtype, remat, unroll) -> the model of a family, variant or pair; and
    the most tokens that its decoder writes.
    """
    family = models.family(name.partition("-")[0])

    def config_of(**stack: Any) -> Any:
        changes = dict(CHOICES.get(name, {}))
        stack |= {"lora": changes.pop("lora")} if "lora" in changes else {}
        config = family.tiny(VOCAB, **stack)
        # Where one stack reads both sides, so does its vocabulary.
        shared = "encoder" not in changes and getattr(config, "encoder", None) is None
        for role, side in (("encoder", "enc"), ("decoder", "dec")):
            if role in changes:
                vocab = VOCAB["dec" if shared else side]
                changes[role] = BACKBONES[changes[role]].tiny(vocab, **stack)
        return dataclasses.replace(config, **changes)

    def build(**stack: Any) -> TextVAE:
        return family.build(config_of(**stack))

    return build, lambda: family.limits(config_of())["dec"]


if outside := os.environ.get("JVAE_TEST_MEMBERS"):
    configs.load(outside)
SYSTEMS = {name: _builder(name) for name in (*models.FAMILIES, *CHOICES)}


@functools.cache
def _sentences() -> dict[str, Encoded]:
    """Random sentences, the lengths of the two sides unrelated; one is start and end alone."""
    rng = np.random.default_rng(0)
    enc = [rng.integers(1, VOCAB["enc"], n) for n in (2, 6, 3, 5, 2, 4, 6)]
    dec = [[START, *rng.integers(0, START, n - 2), END] for n in (5, 2, 7, 3, 6, 7, 4)]
    return dict(enc=Encoded.of(enc), dec=Encoded.of([np.array(ids) for ids in dec]))


def _pack(ids_bs: list[list[int]], **row: int) -> Batch:
    """The sentences `ids_bs`, -1 at empty slots, in rows of the given lengths."""
    batch = pack_rows(np.array(ids_bs), _sentences(), row, dict(enc=0, dec=PAD))
    return batch._replace(cond=batch.enc)  # a source, for the models that read one


def _make_packings() -> dict[str, Batch]:
    """The same sentences, laid out in different ways; all but `single` have one shape."""
    rows = dict(enc=15, dec=18)
    none = [-1, -1, -1]
    return {
        "packed": _pack([[4, 0, 2], [1, -1, 5], [3, 6, -1]], **rows),
        "mixed": _pack([[5, 1, 3], [-1, 2, 6], [0, -1, 4]], **rows),
        "first": _pack([[4, 0, 2], [1, -1, 5], none], **rows),
        "last": _pack([none, none, [3, 6, -1]], **rows),
        "empty": _pack([none, none, none], **rows),
        "single": _pack([[i] for i in range(7)], enc=6, dec=7),
    }


def _with_junk(batch: Batch) -> Batch:
    """The batch with random tokens and positions where there is only padding."""
    rng = np.random.default_rng(1)

    def junk(side, vocab: int):
        pad_bt = side.segment_bt == 0
        token_bt = np.where(pad_bt, rng.integers(0, vocab, pad_bt.shape), side.token_bt)
        position_bt = np.where(pad_bt, rng.integers(0, 9, pad_bt.shape), side.position_bt)
        return side._replace(
            token_bt=token_bt.astype(np.int32), position_bt=position_bt.astype(np.int32)
        )

    return batch._replace(enc=junk(batch.enc, VOCAB["enc"]), dec=junk(batch.dec, VOCAB["dec"]))


class Values(NamedTuple):
    """What a model says about a batch; by example but for `nats_bt`."""

    mean_egz: Any
    z_kegz: Any  # draws 0, 1, 2
    alone_kegz: Any  # draw 2, made alone
    kl_e: Any  # draw 0, like the next
    kl_egz: Any
    log_q_e: Any
    log_prior_e: Any
    nll_e: Any
    aux: Any
    nats_bt: Any


def _fast_compilation() -> dict[str, Any]:
    """Options under which XLA compiles small CPU programs about seven times faster, if known."""
    options = dict(xla_backend_optimization_level=0, xla_cpu_use_fusion_emitters=False)
    try:
        jax.jit(lambda x: x, compiler_options=options)(0.0)
    except jax.errors.JaxRuntimeError:
        return {}
    return options


class System:
    """One small model with random parameters, and its compiled functions."""

    def __init__(self, name: str, **stack: Any):
        self.name, (build, limit) = name, SYSTEMS[name]
        self.build = functools.partial(build, **stack)
        self.limit = limit()
        self.model = self.build()
        self.has_latent = self.model.latent_shape[0] > 0
        self.jit = functools.partial(jax.jit, compiler_options=_fast_compilation())
        rng = np.random.default_rng(2)

        # Far from initial values, near which most of a model is silent.
        def leaf(path: str, like: jax.ShapeDtypeStruct) -> jax.Array:
            noise = 0.3 * rng.normal(size=like.shape)
            around = path.endswith(("scale", "running/var"))
            return jnp.asarray(noise + around, stack.get("dtype", like.dtype))

        self.params = map_named(leaf, jax.eval_shape(self.model.init, jax.random.key(0)))
        self._run = self.compile(self.model)
        self._results: dict[str, tuple[Values, Any]] = {}

    def compile(self, model: TextVAE):
        """(params, batch) -> values, and the gradient of the summed negative bound."""

        def bound(params, batch: Batch):
            gen, post = model.gen, model.post
            chain_key, z_key = jax.random.split(jax.random.key(3))
            key_e = example_keys(chain_key, batch.id_e)
            cond = gen.condition(params, batch)
            q = post.encode(params, batch, cond=cond, key_e=key_e)
            z_kegz = post.sample(params, q, example_keys(z_key, batch.id_e, jnp.arange(DRAWS)))
            alone_kegz = post.sample(params, q, example_keys(z_key, batch.id_e, jnp.array([2])))
            nats = kl(params, post, q, z_kegz[0], model.prior, cond)
            metric = model.metric_post
            metric_q = metric.encode(params, batch, cond=cond, key_e=key_e)
            ctx = gen.prepare(params, batch, cond=cond)
            nats_bt = gen.log_lik(params, ctx, z_kegz[0])
            values = Values(
                mean_egz=post.mean(params, q),
                z_kegz=z_kegz,
                alone_kegz=alone_kegz,
                kl_e=nats.nats_e,
                kl_egz=nats.nats_egz,
                log_q_e=metric.log_prob(params, metric_q, z_kegz[1]),
                log_prior_e=model.prior.log_prob(params, z_kegz[1], cond),
                nll_e=-per_example(nats_bt, batch),
                aux=gen.aux(params, ctx, Draws(z_kegz[: gen.draws], q, cond, batch.valid_e, key_e)),
                nats_bt=nats_bt,
            )
            parts = [values.nll_e, values.kl_e, *values.aux.values()]
            return jnp.sum(jnp.where(batch.valid_e, sum(parts), 0.0)), values

        @self.jit
        def run(params, batch: Batch):
            (_, values), grads = jax.value_and_grad(bound, has_aux=True)(params, batch)
            return values, grads

        return run

    @functools.cached_property
    def in_training(self):
        """(drop, z_egz, noisy_bt) -> (mean_egz, nats_bt) of the batch "packed" with dropout."""
        batch, (gen, post) = PACKINGS["packed"], (self.model.gen, self.model.post)

        @self.jit
        def run(params, drop, z_egz, noisy_bt):
            cond = gen.condition(params, batch, drop)
            key_e = example_keys(jax.random.key(8), batch.id_e)
            q = post.encode(params, batch, drop, cond=cond, key_e=key_e)
            noisy = batch._replace(noisy_bt=noisy_bt)
            nats_bt = gen.log_lik(params, gen.prepare(params, noisy, drop, cond=cond), z_egz)
            return post.mean(params, q), nats_bt

        return lambda *args: jax.device_get(run(self.params, *args))

    @functools.cached_property
    def wide(self) -> "System":
        """The same in float64, which must be enabled."""
        return System(self.name, dtype="float64")

    def __call__(self, packing: str) -> tuple[Values, Any]:
        """Values and gradient of the sentences in one packing, as NumPy arrays."""
        if packing not in self._results:
            self._results[packing] = self.run(PACKINGS[packing])
        return self._results[packing]

    def run(self, batch: Batch) -> tuple[Values, Any]:
        """Values and gradient of a batch, as NumPy arrays."""
        return jax.device_get(self._run(self.params, batch))


PACKINGS = _make_packings()


# Forms of a system of which a richer one is in the fast suite, and the full product of ways and
# backbones, which the fast suite only samples by `PAIRS`.
SLOW = {*VARIANTS, "adavae", "sri_transformer", "lm"} - {"adavae-all"}

# Of these only tests that name them.
ASKED_FOR = ("della-source", "optimus-context")


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(s, marks=[pytest.mark.slow] * (s in SLOW))
        for s in SYSTEMS
        if s not in ASKED_FOR and s not in PAIRS
    ],
)
def system(request) -> System:
    return System(request.param)


# The first pair of every backbone that writes; each of the others adds one that reads.
WRITING = {pair.writes: name for name, pair in reversed(PAIRS.items())}.values()


@pytest.fixture(scope="session", params=sorted(WRITING))
def writing_pair(request) -> System:
    """A pair for each backbone that writes, in the fast suite."""
    return System(request.param)


@pytest.fixture(scope="session", params=sorted(PAIRS.keys() - WRITING))
def reading_pair(request) -> System:
    """The other pairs, each with another backbone that reads."""
    return System(request.param)


@pytest.fixture(scope="session")
def pairs() -> Mapping[str, Pair]:
    """Every `writing_pair` and `reading_pair` by name."""
    return PAIRS


@pytest.fixture(scope="session")
def sentences():
    """The packings by name, and what tests need to make and read batches."""
    dec = _sentences()["dec"]
    return types.SimpleNamespace(
        batch=PACKINGS,
        systems=tuple(SYSTEMS),
        ways=tuple(WAYS),
        with_junk=_with_junk,
        lengths=dec.lengths,
        count=len(dec.lengths),
        start=START,
        end=END,
        pad=PAD,
        vocab=VOCAB["dec"],
        draws=DRAWS,
    )
