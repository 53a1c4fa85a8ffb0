"""A trained model with its tokenizers: text to latents, latents to text. NumPy in and out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jvae.api import Batch, Params, Posterior, Prompt, TextVAE, example_keys
from jvae.data.dataset import RowSpec, eval_batches, make_dataset
from jvae.data.sources import lines_of
from jvae.data.tokenizers import TextTokenizer
from jvae.decode import DecodeConfig, decode_in_batches
from jvae.errors import DataError


@partial(jax.jit, static_argnames=("post",))
def _means(post: Posterior, params: Params, batch: Batch, key: Key[Array, ""]) -> Array:
    q = post.encode(params, batch, key_e=example_keys(key, batch.id_e))
    return post.mean(params, q)


@dataclass(frozen=True)
class LoadedVAE:
    """Encode, decode, reconstruct, sample and interpolate with one set of parameters.

    Latents are float32 arrays (n, groups, width); a language model's are (n, 0, 0).
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

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n g z"]:
        """Posterior means of sentences, in their order.

        Raises: DataError naming the first sentence that is empty or too long for the model.
        """
        if isinstance(texts, str):
            raise TypeError("encode takes a list of sentences, not one string")
        for i, text in enumerate(texts):
            if not text.strip():
                raise DataError(f"sentence {i + 1} is empty; there is nothing to encode")
        enc = self.encoder if "enc" in self.limits else None
        dataset = make_dataset(lines_of(texts, "sentence"), self.decoder, enc, limits=self.limits)
        out = np.zeros((len(texts), *self.model.latent_shape), np.float32)
        key = jax.random.key(self.seed)
        for batch in eval_batches(dataset, self.rows):
            mean_egz = np.asarray(_means(self.model.metric_post, self.params, batch, key))
            out[batch.id_e[batch.valid_e]] = mean_egz[np.asarray(batch.valid_e)]
        return out

    def sample_prior(self, n: int, seed: int | None = None) -> Float[np.ndarray, "n g z"]:
        """n latents from the prior."""
        key_e = self._keys(n, self.seed if seed is None else seed)
        return np.asarray(jax.jit(self.model.gen.sample_prior)(self.params, key_e))

    def decode(
        self, z_egz: Float[np.ndarray, "n g z"], seed: int | None = None, **settings: Any
    ) -> list[str]:
        """Sentences of latents; greedy unless `settings` (`DecodeConfig` fields) say otherwise."""
        z_egz = np.asarray(z_egz, np.float32)
        if z_egz.ndim != 3 or z_egz.shape[1:] != self.model.latent_shape:
            expected = ("n", *self.model.latent_shape)
            raise ValueError(f"latents have shape {z_egz.shape}; expected {expected}")
        if len(z_egz) == 0:
            return []
        config = DecodeConfig(**({"method": "greedy", "max_length": self.max_length} | settings))
        start = self.decoder.start_id
        assert start is not None  # decoders always have one
        prompt = Prompt(jnp.full((len(z_egz), 1), start), jnp.ones(len(z_egz), jnp.int32))
        out = decode_in_batches(
            self.model.gen,
            self.params,
            z_egz,
            prompt,
            self._keys(len(z_egz), self.seed if seed is None else seed),
            config,
            end_id=self.decoder.end_id,
            pad_id=self.decoder.pad_id,
            batch_size=min(self.decode_batch, len(z_egz)),
        )
        return [self.decoder.decode(tokens) for tokens in np.asarray(out.token_et)]

    def reconstruct(self, texts: Sequence[str], **settings: Any) -> list[str]:
        """Each sentence encoded to its posterior mean and decoded."""
        return self.decode(self.encode(texts), **settings)

    def sample(self, n: int, seed: int | None = None, **settings: Any) -> list[str]:
        """n sentences from the prior, by ancestral sampling unless `settings` say otherwise."""
        return self.decode(self.sample_prior(n, seed), seed, **({"method": "sample"} | settings))

    def interpolate(self, a: str, b: str, steps: int = 11, **settings: Any) -> list[str]:
        """Sentences at `steps` even points on the line between the posterior means of a and b."""
        z_egz = self.encode([a, b])
        return self.decode(line(z_egz[:1], z_egz[1:], steps)[0], **settings)

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
