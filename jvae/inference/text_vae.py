"""A trained model with its tokenizers: text to latents and back. Arrays are NumPy in and out."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple, Protocol, Unpack, overload

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jvae import errors
from jvae.api import SPHERE, Batch, Cond, Params, Prompt, TextVAE
from jvae.data.dataset import RowSpec
from jvae.data.encode import encode
from jvae.data.progress import Progress
from jvae.data.rows import Encoded, pack_rows
from jvae.data.tokenizers import TextTokenizer
from jvae.decode import DecodeConfig
from jvae.errors import ConfigError, DataError, InputError, JvaeError
from jvae.fitted import Fitted, attach, join, transfer
from jvae.inference import batching, checks, scoring
from jvae.inference.neighbors import Neighbor, nearest
from jvae.inference.scoring import PosteriorStats, TokenLogProbs
from jvae.inference.settings import DecodeSettings
from jvae.latent import geometry
from jvae.latent.gaussian import DiagonalGaussian
from jvae.latent.iw_bound import score_batch
from jvae.parallel import mesh as meshes

__all__ = ["LoadedVAE", "Neighbor", "PosteriorStats", "TokenLogProbs"]

log = logging.getLogger(__name__)

RETURNS = ("mean", "sample", "stats")  # what `encode` can return
ACTIVITY = 100  # number of sentences on which the activity of dimensions is measured
QUIET_S = 10.0  # progress is shown only for longer work, including compilation


class StoredPriors(Protocol):
    """The fitted priors of a run or export, by name."""

    def __call__(self, name: str) -> Fitted: ...

    def labelled(self) -> str:
        """The name of the only prior that was fitted with labels.

        Raises: ConfigError if there is none, or more than one.
        """
        ...


class _Inputs(NamedTuple):
    """Inputs of decoding in addition to latents: the condition and the tokens to continue."""

    cond: Cond | None
    prompt: Prompt  # with NumPy arrays


@dataclass(frozen=True, repr=False)
class LoadedVAE:
    """Encodes, edits, decodes and scores text with one set of parameters.

    Latents are float32 arrays (n, groups, width). Groups are the `vectors` of a text, or the layers
    of DELLA; latents of a language model are (n, 0, 0). If latent vectors have length 1
    (`model.post.support`), edited ones are normalised again.

    A conditional model needs `sources`, one source text per sentence or latent; other models accept
    none. Any number of texts is allowed: they are split into batches of few shapes, each compiled
    once. Results for a text, including its noise, do not depend on the other texts.
    """

    model: TextVAE
    params: Params
    encoder: TextTokenizer
    decoder: TextTokenizer
    rows: RowSpec  # row settings of training; used for whether end tokens are scored
    limits: dict[str, int]  # maximum tokens per example and side
    max_length: int  # default length limit of decoded sentences, in tokens
    decode_batch: int = 256
    seed: int = 0
    joined: tuple[str, ...] = ()  # sides that have the source in front of the text
    turns: str = ""  # separator of the turns of a source
    open_prior: StoredPriors | None = field(default=None, repr=False, compare=False)
    publish: Callable[..., str] | None = field(default=None, repr=False, compare=False)
    fitted: Fitted | None = None  # the fitted prior that `model` uses in place of its own
    label: str | None = None  # the label that this prior is conditioned on
    name: str = ""  # name of the config
    pid: int = field(default_factory=os.getpid, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.seed(self.seed)

    def __reduce__(self) -> str:
        raise JvaeError(
            "a LoadedVAE cannot be pickled or copied: send the folder of its run or export and "
            "call jvae.load there; jvae.export writes a folder that needs nothing else"
        )

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        parts = [
            f"latent {' x '.join(map(str, self.model.latent_shape))}",
            f"{count:,} parameters",
            f"{self.decoder.vocab_size:,} tokens",
            f"texts of up to {self.limits['dec']} tokens",
            *([] if self.fitted is None else [f"prior {self.fitted.name}"]),
        ]
        return f"<{type(self).__name__} {self.name}: {', '.join(parts)}>"

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool = False,
        keep_card: bool = False,
        license: str = "",
        token: str | None = None,
        message: str = "",
    ) -> str:
        """Uploads the model to the Hugging Face hub and returns the repository's URL.

        The run or export that the model was loaded from is uploaded as an export in one commit,
        with the priors fitted to it. Load it with `jvae.load(name)`. Another upload to the same
        repository replaces the files of the earlier one; the hub keeps them in its history.

        Args:
          name: the hub repository, "user/model"; created if needed.
          private: create a private repository; an error if there is a public one.
          keep_card: leave the card of an earlier upload as it was edited there.
          license: license for the model card, as abbreviated on the hub, such as "apache-2.0".
          token: a token with write access; by default that of `hf auth login` or HF_TOKEN.
        Raises: WeightsError if the upload fails, or the repository holds other files.
        """
        if self.publish is None:
            raise InputError("this model was not loaded from a folder; export it and load that")
        return self.publish(
            name,
            private=private,
            keep_card=keep_card,
            license=license,
            token=token,
            message=message,
        )

    @property
    def _tokenizers(self) -> dict[str, TextTokenizer]:
        """The tokenizer of every side that the model reads."""
        tokenizers = {"dec": self.decoder, "enc": self.encoder, "cond": self._source_tokenizer}
        return {
            side: tokenizer
            for side, tokenizer in tokenizers.items()
            if side in ("dec", *self.limits)
        }

    @property
    def _source_tokenizer(self) -> TextTokenizer:
        return replace(self.encoder, turns=self.turns)

    def _truncated(self, texts: list[str], sources: Sequence[str] | None) -> list[str]:
        sources = self._sources(sources, len(texts))
        cut = batching.truncate(texts, sources, self._tokenizers, self.limits, self.joined)
        if short := sum(a != b for a, b in zip(texts, cut, strict=True)):
            log.warning(
                "%d of %d texts were truncated to the model's maximum length", short, len(texts)
            )
        return cut

    @property
    def conditional(self) -> bool:
        """Whether the model reads a source text in addition to each sentence."""
        return "cond" in self.limits

    # ----------------------------------------------------------------------------------------------
    # Text to latents and back.

    def batches(
        self,
        texts: Sequence[str],
        sources: Sequence[str] | None = None,
        most: int | None = None,
    ) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yields each text once, in batches of at most `most` texts.

        Each item is (indices in `texts` of the first rows, batch).

        Raises: DataError naming the first sentence that is empty or too long for the model.
        """
        checks.same_process(self.pid)
        texts = checks.listed(texts)
        sources = self._sources(sources, len(texts))
        tokenised = batching.tokenise(texts, sources, self._tokenizers, self.limits, self.joined)
        most = batching.SIZES[-1] if most is None else most
        errors.whole("batch_size", most, 1)
        return batching.batches(tokenised, source_first="dec" in self.joined, most=most)

    def count(self, texts: Sequence[str]) -> Int[np.ndarray, "n"]:
        """Number of decoder tokens of each text, including start and end.

        The model accepts at most `limits["dec"]` decoder tokens, and `limits["enc"]` tokens of its
        encoder's tokenizer.
        """
        ids = self.decoder.encode_batch(checks.listed(texts))
        return np.array([len(tokens) for tokens in ids], np.int64)

    @overload
    def encode(
        self,
        texts: Sequence[str],
        sources: Sequence[str] | None = None,
        *,
        return_: Literal["mean", "sample"] = "mean",
        seed: int | None = None,
        chains: int | None = None,
        truncate: bool = False,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> Float[np.ndarray, "n g z"]: ...

    @overload
    def encode(
        self,
        texts: Sequence[str],
        sources: Sequence[str] | None = None,
        *,
        return_: Literal["stats"],
        seed: int | None = None,
        truncate: bool = False,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> PosteriorStats: ...

    def encode(
        self,
        texts: Sequence[str],
        sources: Sequence[str] | None = None,
        *,
        return_: str = "mean",
        seed: int | None = None,
        chains: int | None = None,
        truncate: bool = False,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> Float[np.ndarray, "n g z"] | PosteriorStats:
        """Encodes sentences to posterior means, draws or statistics, in the given order.

        Args:
          return_: "mean" for posterior means; "sample" for one draw from each posterior; "stats"
            for means, standard deviations and KL to the prior, if the posterior is a diagonal
            Gaussian.
          seed: seed of draws, and of Langevin chains in a model without an encoder.
          chains: for a model without an encoder, the number of Langevin chains to average; by
            default that of its config.
          truncate: truncate texts that are too long for the model at a word boundary, and log how
            many were truncated.
          batch_size: maximum texts encoded together, 512 by default; changes memory and speed, not
            values.
          progress: show a progress bar; by default only for work of more than 10 seconds.
        Raises: DataError naming the first sentence that is empty or too long for the model;
          InputError for "stats" if the posterior is not a diagonal Gaussian.
        """
        if return_ not in RETURNS:
            raise InputError(f"return_ is {return_!r}; it must be one of {', '.join(RETURNS)}")
        if chains is not None:
            errors.whole("chains", chains, 1)
            if self.model.post.sampler is None:
                raise InputError(
                    f"chains is {chains}: this model has an encoder, so it runs no chains"
                )
            if return_ != "mean":
                raise InputError(f"chains is {chains}: return_={return_!r} reads one chain")
        gen, posterior, params = self.model.gen, self.model.post, self.params
        key = self._key(seed)
        pass_over = partial(
            self._pass_over, texts, sources, truncate=truncate, most=batch_size, progress=progress
        )
        if return_ == "mean":
            post = self.model.metric_post if chains is None else posterior
            return pass_over(
                lambda batch: scoring.means(gen, post, chains, self.params, batch, key)
            )
        if return_ == "sample":
            return pass_over(
                lambda batch: scoring.draws(gen, posterior, 1, params, batch, key)[:, 0]
            )
        if not isinstance(posterior.form, DiagonalGaussian):
            raise InputError(
                "the posterior of this model is not a diagonal Gaussian, so it has no standard "
                "deviations to return; draw from it with return_='sample' or posterior_samples"
            )
        rows = pass_over(
            lambda batch: scoring.stats(gen, self.model.prior, posterior, params, batch, key),
            shape=(2 * int(np.prod(self.model.latent_shape)) + 1,),
        )
        mean, std = np.split(rows[:, :-1].reshape(len(rows), 2, *self.model.latent_shape), 2, 1)
        return PosteriorStats(mean[:, 0], std[:, 0], rows[:, -1])

    def _pass_over(
        self,
        texts: Sequence[str],
        sources: Sequence[str] | None,
        values_of: Callable[[Batch], Array],
        *,
        shape: tuple[int, ...] | None = None,
        truncate: bool = False,
        most: int | None = None,
        progress: bool | None = None,
    ) -> Float[np.ndarray, "n ..."]:
        """Applies a compiled function to all texts, in batches.

        Args:
          values_of: computes the values of a batch on the mesh.
          shape: shape of a text's values; by default that of a latent.
          most: maximum texts per batch.
        """
        texts, mesh = checks.listed(texts), meshes.mesh_of(self.params)
        if truncate:
            texts = self._truncated(texts, sources)
        out = np.zeros((len(texts), *(self.model.latent_shape if shape is None else shape)), "f4")
        quiet_s = {None: QUIET_S, True: 0.0, False: math.inf}[progress]
        with Progress("encoding", len(texts), quiet_s=quiet_s) as bar:
            for place_e, batch in self.batches(texts, sources, most):
                batch = meshes.spread(batch, mesh)
                with meshes.inside(mesh):
                    value_e = values_of(batch)
                out[place_e] = np.asarray(value_e)[: len(place_e)]
                bar.add(len(place_e))
        return out

    def posterior_samples(
        self,
        texts: Sequence[str],
        samples: int,
        sources: Sequence[str] | None = None,
        *,
        seed: int | None = None,
    ) -> Float[np.ndarray, "n k g z"]:
        """Draws from the posterior of each sentence.

        For a model without an encoder, draws are end points of independent Langevin chains.

        Raises: DataError naming the first sentence that is empty or too long for the model.
        """
        errors.whole("samples", samples, 1)
        key, model = self._key(seed), self.model
        return self._pass_over(
            texts,
            sources,
            lambda batch: scoring.draws(model.gen, model.post, samples, self.params, batch, key),
            shape=(samples, *model.latent_shape),
        )

    def with_prior(
        self, prior: str | Fitted, label: str | int | None = None, **use: float | str
    ) -> "LoadedVAE":
        """Returns the model p'(z) p(x | z), in which a fitted prior p' replaces the model's own.

        Args:
          prior: its name in the folder of the run or export, or the prior itself.
          label: the label to condition on, if the prior was fitted with labels.
          use: options of its sampler and density, such as `steps`.
        Raises: ConfigError for an unknown name or option; InputError for an unknown label;
          WeightsError for a prior of another model.
        """
        if isinstance(prior, str):
            if self.open_prior is None:
                raise InputError(
                    f"prior {prior!r}: this model was not loaded from a folder, so it has no "
                    "stored priors"
                )
            prior = self.open_prior(prior)
        if self.conditional:
            raise InputError("the prior of this model reads a source text; a fitted one would not")
        fitted = prior.using(**use)
        return replace(
            self,
            model=attach(self.model, fitted, label),
            params=join(self.params, fitted),
            fitted=fitted,
            label=None if label is None else str(label),
        )

    def _under(self, prior: str | Fitted | None, label: str | int | None) -> "LoadedVAE":
        """This model with another prior or label, if one is given."""
        if prior is None and label is None:
            return self
        return self.with_prior(self._labelled(f"label is {label!r}", prior), label)

    def _labelled(self, why: str, prior: str | Fitted | None) -> str | Fitted:
        """The given prior, else this model's fitted prior, else the only one with labels.

        Args:
          why: the reason it is needed, for the message.
        """
        if prior is not None:
            return prior
        if self.fitted is not None:
            return self.fitted
        if self.open_prior is None:
            raise InputError(f"{why}: this needs a fitted prior; name one")
        return self.open_prior.labelled()

    def sample_prior(
        self,
        n: int,
        seed: int | None = None,
        sources: Sequence[str] | None = None,
        *,
        prior: str | Fitted | None = None,
        label: str | int | None = None,
    ) -> Float[np.ndarray, "n g z"]:
        """Draws n latents from the prior, or n adjacent ones per source if there are sources.

        For `prior` and `label` see `with_prior`; a label alone selects the only prior that was
        fitted with labels.
        """
        if prior is not None or label is not None:
            return self._under(prior, label).sample_prior(n, seed, sources)
        checks.same_process(self.pid)
        errors.whole("n", n, 0)
        sources = self._sources(sources, None)
        total = n if sources is None else n * len(sources)
        out = np.zeros((total, *self.model.latent_shape), np.float32)
        if total == 0:
            return out
        cond = None if sources is None else self._from_sources(sources).cond
        for place_e, index_e in batching.spans(total, self.decode_batch):
            given_e = index_e // n
            batch_cond = jax.tree.map(lambda leaf, at=given_e: leaf[at], cond)
            z_egz = scoring.prior(
                self.model.prior, self.params, self._key(seed), index_e, batch_cond
            )
            out[place_e] = np.asarray(z_egz)[: len(place_e)]
        return out

    def decode(
        self,
        z_egz: Float[np.ndarray, "n g z"],
        seed: int | None = None,
        sources: Sequence[str] | None = None,
        **settings: Unpack[DecodeSettings],
    ) -> list[str]:
        """Decodes latents to sentences; greedy unless `settings` select another method.

        A setting that only one method uses selects it: `temperature` sampling, `beam_width` beam
        search.

        Regardless of `max_length` and `min_length`, sentences are limited to the model's positions.
        A source in front of a text takes up some of these.
        """
        checks.same_process(self.pid)
        settings = checks.settings(settings)
        z_egz = checks.latents(z_egz, ("n", *self.model.latent_shape))
        defaults: DecodeSettings = {"max_length": self.max_length}
        settings = defaults | settings
        config = DecodeConfig(**settings)
        if len(z_egz) == 0:
            return []
        sources = self._sources(sources, len(z_egz))
        inputs = self._started(len(z_egz)) if sources is None else self._from_sources(sources)
        most_e = np.minimum(self.limits["dec"] - inputs.prompt.length_e, config.max_length)
        room = int(most_e.min())
        for name in () if "dec" in self.joined else ("max_length", "min_length"):
            if (value := settings.get(name, 0)) > room:
                raise ConfigError(
                    f"decode.{name} is {value}; this model has positions for {room} new tokens"
                )
        texts = [""] * len(z_egz)
        with Progress("decoding", len(z_egz), quiet_s=QUIET_S) as progress:
            # A long source leaves less room for its own text only, not for the others.
            for most in np.unique(most_e).tolist():
                group_e = np.flatnonzero(most_e == most).astype(np.int32)
                limited = replace(config, max_length=most, min_length=min(config.min_length, most))
                self._decode_group(texts, group_e, z_egz, inputs, limited, seed, progress)
        return texts

    def _decode_group(
        self,
        texts: list[str],
        group_e: Int[np.ndarray, "n"],
        z_egz: Float[np.ndarray, "e g z"],
        inputs: _Inputs,
        config: DecodeConfig,
        seed: int | None,
        progress: Progress,
    ) -> None:
        """Decodes the latents of a group, whose prompts leave positions for `max_length` tokens,
        and puts the sentences at their places in `texts`.
        """
        left_e, mesh = group_e, meshes.mesh_of(self.params)
        widest = int(inputs.prompt.length_e[group_e].max())
        tokens_et = inputs.prompt.token_et[:, :widest]
        inputs = inputs._replace(prompt=inputs.prompt._replace(token_et=tokens_et))
        for length in batching.lengths(config, len(group_e)):
            longer = []
            for place_e, index_e in batching.spans(len(left_e), self.decode_batch):
                at_e, count = left_e[index_e], len(place_e)
                batch = jax.tree.map(lambda leaf, at=at_e: leaf[at], inputs)
                draws = config.method == "sample"
                key_e = scoring.keys(self._key(seed), at_e) if draws else None
                z, prompt, key_e, cond = meshes.spread(
                    (z_egz[at_e], batch.prompt, key_e, batch.cond), mesh
                )
                with meshes.inside(mesh):
                    token_et, ended_e = scoring.written(
                        self.model.gen,
                        self.params,
                        z,
                        prompt,
                        key_e,
                        replace(config, max_length=length),
                        end_id=self.decoder.end_id,
                        pad_id=self.decoder.pad_id,
                        cond=cond,
                    )
                done_e = np.asarray(ended_e)[:count] | (length == config.max_length)
                told_et = np.asarray(token_et)[:count][done_e]
                for place, tokens in zip(at_e[:count][done_e], told_et, strict=True):
                    texts[place] = self.decoder.decode(tokens)
                longer.append(at_e[:count][~done_e])
                progress.add(int(done_e.sum()))
            if not len(left_e := np.concatenate(longer)):
                break

    def reconstruct(
        self,
        texts: Sequence[str],
        sources: Sequence[str] | None = None,
        *,
        truncate: bool = False,
        **settings: Unpack[DecodeSettings],
    ) -> list[str]:
        """Encodes each sentence to its posterior mean and decodes it; see `encode`, `decode`."""
        z_egz = self.encode(texts, sources, truncate=truncate)
        return self.decode(z_egz, sources=sources, **settings)

    def sample(
        self,
        n: int,
        seed: int | None = None,
        sources: Sequence[str] | None = None,
        *,
        prior: str | Fitted | None = None,
        label: str | int | None = None,
        **settings: Unpack[DecodeSettings],
    ) -> list[str]:
        """Generates n sentences from the prior, or n adjacent ones per source if there are sources.

        Uses ancestral sampling unless `settings` select another method, as in `decode`. For `prior`
        and `label` see `sample_prior`.
        """
        settings = checks.settings(settings, "sample")
        z_egz = self.sample_prior(n, seed, sources, prior=prior, label=label)
        repeated = sources and [source for source in sources for _ in range(n)]
        return self.decode(z_egz, seed, repeated, **settings)

    # ----------------------------------------------------------------------------------------------
    # Editing.

    def interpolate(
        self,
        a: str,
        b: str,
        steps: int = 11,
        source: str | None = None,
        *,
        how: str = "linear",
        **settings: Unpack[DecodeSettings],
    ) -> list[str]:
        """Decodes `steps` evenly spaced points between the posterior means of a and b.

        With a fitted prior (`with_prior`), points are interpolated in the prior's noise space, so
        that they stay where the prior has mass.

        Args:
          how: "linear", or "slerp" for spherical interpolation.
        Raises: InputError for a fitted prior without a map to noise.
        """
        z_egz = self._ends([a, b], source)
        if self.fitted is None:
            z_tgz = geometry.between(z_egz[:1], z_egz[1:], steps, how)[0]
            return self._decode_all(z_tgz, source, settings)
        maps = self.fitted.maps(self.label)
        if maps is None:
            raise InputError(
                f"a {self.fitted.kind} prior has no map to noise to interpolate in; leave the "
                "prior out, or fit one of kind gaussian, flow or diffusion"
            )
        u_egz = maps.to_noise(z_egz)
        u_tgz = geometry.between(u_egz[:1], u_egz[1:], steps, how)[0]
        return self._decode_all(maps.from_noise(u_tgz), source, settings)

    def analogy(
        self, a: str, b: str, c: str, source: str | None = None, **settings: Unpack[DecodeSettings]
    ) -> str:
        """Completes the analogy a : b = c : ?, by decoding z(c) + z(b) - z(a)."""
        z_egz = self._ends([a, b, c], source)
        moved_gz = z_egz[2] + geometry.direction(z_egz[:1], z_egz[1:2])
        return self._decode_all(moved_gz[None], source, settings)[0]

    def transfer(
        self,
        texts: Sequence[str],
        label: str | int,
        *,
        prior: str | Fitted | None = None,
        labels: Sequence[str | int] | None = None,
        strength: float = 1.0,
        truncate: bool = False,
        **settings: Unpack[DecodeSettings],
    ) -> list[str]:
        """Rewrites each sentence to have another label while keeping its other content.

        A sentence is encoded to its posterior mean, moved to the label with a fitted prior
        (`jvae.fitted.relabel`) and decoded. Sentences that already have the label are
        reconstructed. Guidance and the steps of a sampler are not used.

        Args:
          prior: as in `with_prior`; by default this model's fitted prior, or the only one with
            labels.
          labels: the current labels of the sentences; by default the most likely under the prior.
          strength: multiple of the step in latent space. Above 1, more sentences change their
            label, but less of their content is kept.
          truncate: see `encode`.
        Raises: ConfigError for an unknown prior; InputError for an unknown label, or a kind of
          prior that only samples.
        """
        errors.number("strength", strength)
        vae = self.with_prior(self._labelled(f"transfer to {label!r}", prior))
        assert vae.fitted is not None
        z_egz = self.encode(texts, truncate=truncate)
        return self.decode(transfer(vae.fitted, z_egz, label, labels, strength), **settings)

    def traverse(
        self,
        text: str,
        dims: Sequence[int] | None = None,
        offsets: Sequence[float] = geometry.OFFSETS,
        source: str | None = None,
        **settings: Unpack[DecodeSettings],
    ) -> list[list[str]]:
        """Decodes a sentence's latent while moving one dimension at a time, for each dimension.

        Args:
          dims: indices into the flattened latent; all of them by default.
          offsets: added to the dimension, in units of the latent.
        """
        (z_gz,) = self._ends([text], source)
        if len(offsets) == 0:
            raise InputError("offsets is empty; give at least one number")
        z_dtgz = geometry.axes(z_gz, range(z_gz.size) if dims is None else dims, offsets)
        texts = self._decode_all(z_dtgz.reshape(-1, *z_gz.shape), source, settings)
        return [texts[i : i + len(offsets)] for i in range(0, len(texts), len(offsets))]

    def active_dims(self, n: int = 10, source: str | None = None) -> list[int]:
        """The n most active dimensions of the flattened latent, most active first.

        Activity is the variance of posterior means over sentences that the model writes greedily
        from 100 draws of its prior, so that no data is needed.
        """
        errors.whole("n", n, 1)
        z_egz = self.sample_prior(ACTIVITY, sources=source and [source])
        texts = [text for text in self._decode_all(z_egz, source, {}) if text]
        sources = source and [source] * len(texts)
        return geometry.most_active(self.encode(texts, sources, truncate=True))[:n]

    def placed(self, z_egz: Float[np.ndarray, "n g z"]) -> Float[np.ndarray, "n g z"]:
        """Normalises latents to length 1 if the model's support is the sphere."""
        return geometry.on_sphere(z_egz) if self.model.post.support == SPHERE else z_egz

    def neighbors(
        self,
        text: str,
        corpus: Sequence[str],
        n: int = 5,
        source: str | None = None,
        sources: Sequence[str] | None = None,
        *,
        metric: str = "cosine",
    ) -> list[Neighbor]:
        """The n sentences of a corpus whose posterior means are nearest to that of a text.

        For many texts, encode the corpus once and use `jvae.inference.neighbors.nearest`.

        Args:
          sources: source texts of the corpus.
          metric: "cosine" or "euclidean".
        """
        query_egz = self._ends([text], source)
        corpus = checks.listed(corpus)
        (places,), (distances,) = nearest(query_egz, self.encode(corpus, sources), n, metric)
        pairs = zip(places.tolist(), distances.tolist(), strict=True)
        return [Neighbor(str(corpus[place]), place, distance) for place, distance in pairs]

    # ----------------------------------------------------------------------------------------------
    # Densities.

    def nll(
        self,
        texts: Sequence[str],
        sources: Sequence[str] | None = None,
        *,
        k: int = 100,
        chunk: int = 1,
        seed: int | None = None,
    ) -> Float[np.ndarray, "n"]:
        """Importance-weighted bound on -log p of each sentence, in nats; exact without a latent.

        Args:
          k: number of draws; the bound decreases towards the exact value as k grows.
          chunk: draws decoded together; changes memory, not values.
        """
        texts = checks.listed(texts)
        errors.whole("k", k, 1)
        errors.whole("chunk", chunk, 1)
        score = score_batch(self.model, k, chunk, (), self.model.proposal)
        key, mesh = self._key(seed), meshes.mesh_of(self.params)
        out = np.zeros(len(texts), np.float64)
        with Progress("scoring", len(texts), quiet_s=QUIET_S) as progress:
            for place_e, batch in self.batches(texts, sources):
                batch = meshes.spread(batch, mesh)
                with meshes.inside(mesh):
                    nll_e = score(self.params, batch, key).nll_e
                out[place_e] = np.asarray(nll_e)[: len(place_e)]
                progress.add(len(place_e))
        return out

    def token_log_probs(
        self,
        texts: Sequence[str],
        sources: Sequence[str] | None = None,
        *,
        z_egz: Float[np.ndarray, "n g z"] | None = None,
    ) -> list[TokenLogProbs]:
        """log p of each token of each sentence given its latent, in nats.

        Args:
          z_egz: the latents; by default posterior means.
        """
        texts = checks.listed(texts)
        z = self.encode(texts, sources) if z_egz is None else z_egz
        z_egz = checks.latents(z, (len(texts), *self.model.latent_shape))
        name_of = self.decoder.backend.id_to_token
        out: list[TokenLogProbs | None] = [None] * len(texts)
        for place_e, batch in self.batches(texts, sources):
            index_e = np.resize(place_e, len(batch.id_e))
            nats_bt = np.asarray(
                scoring.token_nats(self.model.gen, self.params, batch, z_egz[index_e])
            )
            for row, place in enumerate(place_e.tolist()):
                scored_t = np.asarray(batch.scored_bt[row])
                ids = np.asarray(batch.dec.token_bt[row])[scored_t].tolist()
                tokens = [name_of(i) or str(i) for i in ids]
                out[place] = TokenLogProbs(tokens, nats_bt[row, scored_t])
        return [entry for entry in out if entry is not None]

    # ----------------------------------------------------------------------------------------------

    def _decode_all(
        self, z_egz: Float[np.ndarray, "n g z"], source: str | None, settings: DecodeSettings
    ) -> list[str]:
        sources = source and [source] * len(z_egz)
        return self.decode(self.placed(z_egz), sources=sources, **settings)

    def _ends(self, texts: list[str], source: str | None) -> Float[np.ndarray, "n g z"]:
        """Posterior means of the sentences that an edit starts from."""
        if not np.prod(self.model.latent_shape):
            raise InputError("this model has no latent: there is nothing to edit or to compare")
        return self.encode(texts, source and [source] * len(texts))

    def _sources(self, sources: Sequence[str] | None, n: int | None) -> list[str] | None:
        """Checks sources and returns them as a list; None if the model reads no sources."""
        if not self.conditional:
            if sources is not None:
                raise InputError("this model reads no source text; leave `sources` out")
            return None
        if sources is None or isinstance(sources, str):
            raise InputError(
                "this model reads a source text: pass one per sentence as the list `sources`"
            )
        sources = checks.listed(sources, "source")
        if n is not None and len(sources) != n:
            raise InputError(f"{len(sources)} sources for {n} sentences; expected one for each")
        return sources

    def _started(self, n: int) -> _Inputs:
        start = self.decoder.start_id
        assert start is not None  # decoders always have one
        return _Inputs(None, Prompt(np.full((n, 1), start, np.int32), np.ones(n, np.int32)))  # pyright: ignore[reportArgumentType]

    def _from_sources(self, sources: Sequence[str]) -> _Inputs:
        """Condition and prompt of every source.

        Raises: DataError naming the first source that is empty or too long for the model.
        """
        limit = self.limits["cond"]
        if "dec" in self.joined:
            limit = min(limit, self.limits["dec"] - 1)  # leaves space for one token after it
        tokenizers = {"cond": self._source_tokenizer}
        sides, faults = encode({"cond": sources}, tokenizers, {"cond": limit}, self.joined)
        if faults:
            i = min(faults)
            raise DataError(f"source {i + 1}: {faults[i].detail}")
        side = sides["cond"]
        widest = int(side.lengths.max())
        row: dict[str, int] = dict.fromkeys(("dec", "cond"), min(-(-widest // 8) * 8, limit))
        pad: dict[str, int] = dict.fromkeys(row, self.encoder.pad_id)
        parts = []
        for place_e, index_e in batching.spans(len(sources), self.decode_batch):
            ids_bs = np.where(np.arange(len(index_e)) < len(place_e), index_e, -1)[:, None]
            # `condition` reads only the source, which also fills the side of the missing text.
            batch = pack_rows(ids_bs.astype(np.int32), dict.fromkeys(row, side), row, pad)
            count, cond = len(place_e), scoring.condition(self.model.gen, self.params, batch)
            parts.append(jax.tree.map(lambda leaf, n=count: leaf[:n], jax.device_get(cond)))
        cond = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        prompt = self._started(len(sources)).prompt
        if "dec" in self.joined:
            prompt = _prompt(side, widest, self.encoder.pad_id)
        return _Inputs(cond, prompt)

    def _key(self, seed: int | None) -> Key[Array, ""]:
        if seed is not None:
            checks.seed(seed)
        return jax.random.key(self.seed if seed is None else seed)


def _prompt(side: Encoded, widest: int, pad_id: int) -> Prompt:
    """Prompts with the tokens of every source."""
    token_et = np.full((len(side.lengths), widest), pad_id, np.int32)
    for i, length in enumerate(side.lengths):
        token_et[i, :length] = side.tokens(i)
    return Prompt(token_et, side.lengths.astype(np.int32))  # pyright: ignore[reportArgumentType]
