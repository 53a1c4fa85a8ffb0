"""A trained model with its tokenizers: text to latents, latents to text. NumPy in and out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jvae.api import Batch, Cond, Generator, Params, Posterior, Prompt, TextVAE, example_keys
from jvae.data.dataset import RowSpec, eval_batches, make_dataset
from jvae.data.encode import encode
from jvae.data.rows import pack_rows
from jvae.data.sources import lines_of
from jvae.data.tokenizers import TextTokenizer
from jvae.decode import DecodeConfig, decode_in_batches
from jvae.errors import DataError


@partial(jax.jit, static_argnames=("gen", "post"))
def _means(
    gen: Generator, post: Posterior, params: Params, batch: Batch, key: Key[Array, ""]
) -> Array:
    cond = gen.condition(params, batch)
    q = post.encode(params, batch, cond=cond, key_e=example_keys(key, batch.id_e))
    return post.mean(params, q)


@partial(jax.jit, static_argnames=("gen",))
def _condition(gen: Generator, params: Params, batch: Batch) -> Cond:
    return gen.condition(params, batch)


class _Given(NamedTuple):
    """What is given beside the latents: the condition and the tokens to go on from."""

    cond: Cond | None
    prompt: Prompt


@dataclass(frozen=True)
class LoadedVAE:
    """Encode, decode, reconstruct, sample and interpolate with one set of parameters.

    Latents are float32 arrays (n, groups, width); a language model's are (n, 0, 0). A conditional
    model needs `sources`, one source text for each sentence or latent; the others take none.
    """

    model: TextVAE
    params: Params
    encoder: TextTokenizer
    decoder: TextTokenizer
    rows: RowSpec
    limits: dict[str, int]  # most tokens of one example per side
    max_length: int  # default limit of decoded sentences, in tokens
    decode_batch: int = 256
    seed: int = 0
    joined: tuple[str, ...] = ()  # sides that hold the source in front of the text

    @property
    def conditional(self) -> bool:
        """Whether the model reads a source text beside each sentence."""
        return "cond" in self.limits

    def encode(
        self, texts: Sequence[str], sources: Sequence[str] | None = None
    ) -> Float[np.ndarray, "n g z"]:
        """Posterior means of sentences, in their order.

        Raises: DataError naming the first sentence that is empty or too long for the model.
        """
        if isinstance(texts, str):
            raise TypeError("encode takes a list of sentences, not one string")
        for i, text in enumerate(texts):
            if not text.strip():
                raise DataError(f"sentence {i + 1} is empty; there is nothing to encode")
        self._check_sources(sources, len(texts))
        dataset = make_dataset(
            lines_of(texts, "sentence"),
            self.decoder,
            self.encoder if "enc" in self.limits else None,
            self.encoder if self.conditional else None,
            sources=sources,
            limits=self.limits,
            joined=self.joined,
        )
        out = np.zeros((len(texts), *self.model.latent_shape), np.float32)
        key = jax.random.key(self.seed)
        for batch in eval_batches(dataset, self.rows):
            mean_egz = np.asarray(
                _means(self.model.gen, self.model.metric_post, self.params, batch, key)
            )
            out[batch.id_e[batch.valid_e]] = mean_egz[np.asarray(batch.valid_e)]
        return out

    def sample_prior(
        self, n: int, seed: int | None = None, sources: Sequence[str] | None = None
    ) -> Float[np.ndarray, "n g z"]:
        """n latents from the prior; n for each source where there are sources, adjacent."""
        self._check_sources(sources, None)
        cond = None if sources is None else self._given(sources).cond
        total = n if sources is None else n * len(sources)
        key_e = self._keys(total, self.seed if seed is None else seed)
        cond = jax.tree.map(lambda leaf: np.repeat(leaf, n, axis=0), cond)
        return np.asarray(jax.jit(self.model.gen.sample_prior)(self.params, key_e, cond))

    def decode(
        self,
        z_egz: Float[np.ndarray, "n g z"],
        seed: int | None = None,
        sources: Sequence[str] | None = None,
        **settings: Any,
    ) -> list[str]:
        """Sentences of latents; greedy unless `settings` (`DecodeConfig` fields) say otherwise.

        A source that stands in front of the text takes up positions: sentences then end where the
        positions of the model do.
        """
        z_egz = np.asarray(z_egz, np.float32)
        if z_egz.ndim != 3 or z_egz.shape[1:] != self.model.latent_shape:
            expected = ("n", *self.model.latent_shape)
            raise ValueError(f"latents have shape {z_egz.shape}; expected {expected}")
        if len(z_egz) == 0:
            return []
        self._check_sources(sources, len(z_egz))
        config = DecodeConfig(**({"method": "greedy", "max_length": self.max_length} | settings))
        given = self._started(len(z_egz)) if sources is None else self._given(sources)
        if "dec" in self.joined:
            room = self.limits["dec"] - given.prompt.token_et.shape[1]
            config = replace(config, max_length=min(config.max_length, room))
        out = decode_in_batches(
            self.model.gen,
            self.params,
            z_egz,
            given.prompt,
            self._keys(len(z_egz), self.seed if seed is None else seed),
            config,
            end_id=self.decoder.end_id,
            pad_id=self.decoder.pad_id,
            batch_size=min(self.decode_batch, len(z_egz)),
            cond=given.cond,
        )
        return [self.decoder.decode(tokens) for tokens in np.asarray(out.token_et)]

    def reconstruct(
        self, texts: Sequence[str], sources: Sequence[str] | None = None, **settings: Any
    ) -> list[str]:
        """Each sentence encoded to its posterior mean and decoded."""
        return self.decode(self.encode(texts, sources), sources=sources, **settings)

    def sample(
        self,
        n: int,
        seed: int | None = None,
        sources: Sequence[str] | None = None,
        **settings: Any,
    ) -> list[str]:
        """n sentences from the prior, by ancestral sampling unless `settings` say otherwise; n for
        each source where there are sources, adjacent.
        """
        z_egz = self.sample_prior(n, seed, sources)
        every = sources and [source for source in sources for _ in range(n)]
        return self.decode(z_egz, seed, every, **({"method": "sample"} | settings))

    def interpolate(
        self, a: str, b: str, steps: int = 11, source: str | None = None, **settings: Any
    ) -> list[str]:
        """Sentences at `steps` even points on the line between the posterior means of a and b."""
        z_egz = self.encode([a, b], source and [source] * 2)
        every = source and [source] * steps
        return self.decode(line(z_egz[:1], z_egz[1:], steps)[0], sources=every, **settings)

    def _check_sources(self, sources: Sequence[str] | None, n: int | None) -> None:
        if not self.conditional:
            if sources is not None:
                raise ValueError("this model reads no source text; leave `sources` out")
            return
        if sources is None or isinstance(sources, str):
            raise ValueError("this model reads a source text: `sources` is a list of them")
        if n is not None and len(sources) != n:
            raise ValueError(f"{len(sources)} sources for {n} sentences; expected one for each")

    def _started(self, n: int) -> _Given:
        start = self.decoder.start_id
        assert start is not None  # decoders always have one
        return _Given(None, Prompt(jnp.full((n, 1), start), jnp.ones(n, jnp.int32)))

    def _given(self, sources: Sequence[str]) -> _Given:
        """Condition and prompt of every source.

        Raises: DataError naming the first source that is empty or too long for the model.
        """
        limit = self.limits["cond"]
        if "dec" in self.joined:
            limit = min(limit, self.limits["dec"] - 1)  # room for a token behind it
        tokenizers = {"cond": self.encoder}
        sides, faults = encode({"cond": sources}, tokenizers, {"cond": limit}, self.joined)
        if faults:
            i = min(faults)
            raise DataError(f"source {i + 1}: {faults[i].detail}")
        side = sides["cond"]
        size = min(self.decode_batch, len(sources))
        widest = int(side.lengths.max())
        row: dict[str, int] = dict.fromkeys(("dec", "cond"), min(-(-widest // 8) * 8, limit))
        pad: dict[str, int] = dict.fromkeys(row, self.encoder.pad_id)
        parts = []
        for first in range(0, len(sources), size):
            ids_bs = np.arange(first, first + size, dtype=np.int32)[:, None]
            ids_bs = np.where(ids_bs < len(sources), ids_bs, -1)
            # `condition` reads the source alone: it stands for the text that there is not yet.
            batch = pack_rows(ids_bs, dict.fromkeys(row, side), row, pad)
            parts.append(jax.device_get(_condition(self.model.gen, self.params, batch)))
        cond = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(sources)], *parts)
        prompt = self._started(len(sources)).prompt
        if "dec" in self.joined:
            token_et = np.full((len(sources), widest), self.encoder.pad_id, np.int32)
            for i in range(len(sources)):
                token_et[i, : side.lengths[i]] = side.tokens(i)
            prompt = Prompt(jnp.asarray(token_et), jnp.asarray(side.lengths, jnp.int32))
        return _Given(cond, prompt)

    def _keys(self, n: int, seed: int) -> Key[Array, "n"]:
        return example_keys(jax.random.key(seed), jnp.arange(n))


def line(
    a_egz: Float[np.ndarray, "e g z"], b_egz: Float[np.ndarray, "e g z"], steps: int
) -> Float[np.ndarray, "e t g z"]:
    """`steps` even points from a to b, both ends included, for every pair."""
    if steps < 2:
        raise ValueError(f"steps is {steps}; expected at least the two ends")
    t = np.linspace(0.0, 1.0, steps, dtype=np.float32)[None, :, None, None]
    return (1 - t) * a_egz[:, None] + t * b_egz[:, None]
