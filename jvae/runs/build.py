"""From a config to the things a run is made of: splits, tokenizers, model, mesh.

Everything derived from the data (vocabulary sizes, row lengths) is settled here, once, and written
into the config that the working directory and every checkpoint keep.
"""

import functools
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from jvae import models
from jvae.api import Params, TextVAE
from jvae.config import dataclass_from
from jvae.data import corpus
from jvae.data.corpus import Corpus
from jvae.data.dataset import Dataset, RowSpec
from jvae.data.tokenizers import TextTokenizer
from jvae.errors import CheckpointError, ConfigError
from jvae.parallel import rules
from jvae.pretrained.parts import one_embedding
from jvae.runs import identity
from jvae.runs.data import (
    TOKENIZER_FOLDER,
    duplicate_files,
    log_packing,
    make_split,
    open_tokenizers,
    read_splits,
    settle_rows,
    settle_vocab,
)


class Run(NamedTuple):
    """What training, evaluation and the text modes share."""

    config: ConfigDict  # finalised
    workdir: Path
    encoder: TextTokenizer
    decoder: TextTokenizer
    data: dict[str, Dataset]
    rows: RowSpec
    model: TextVAE
    exact: dict[str, np.ndarray]  # -log p of each sentence by split, nats; embedded corpus only
    log: list[str]  # what preparation has to say
    splits: identity.Splits = {}  # the text of `data` as it was read

    def record(self) -> dict[str, Any]:
        """What makes this run itself, see `jvae.runs.identity`."""
        return identity.record(self.config, self.splits, self.encoder, self.decoder)


def build_model(config: ConfigDict) -> TextVAE:
    """The model of a finalised config.

    Equal configs give the same object, so that programs compiled for it serve every run of a
    process: those of a sweep, a run and its export.
    """
    build, section = models.family(config.model.family).build, model_config(config)
    # A family from outside may have a config that can change.
    return _built(build, section) if isinstance(section, Hashable) else build(section)


@functools.lru_cache(maxsize=64)
def _built(build: Callable[[Any], TextVAE], section: Any) -> TextVAE:
    return build(section)


def model_config(config: ConfigDict) -> Any:
    """The config dataclass of the model section."""
    family = models.family(config.model.family)
    section = {k: v for k, v in config.model.items() if k != "family"}
    return dataclass_from(family.config, section, "model")


def row_spec(config: ConfigDict, limits: dict[str, int]) -> RowSpec:
    """The rows of a finalised config, for the sides that the model reads."""
    data = config.data
    return RowSpec(
        dec_row=data.dec_row,
        enc_row=data.enc_row if "enc" in limits else None,
        cond_row=data.cond_row if "cond" in limits else None,
        slots=data.slots,
        batch_rows=data.batch_rows,
        packing=data.packing,
        seed=config.seed,
        score_end=data.score_end,
    )


def save_tokenizers(run: Run) -> None:
    """Writes both tokenizers into the working directory, so that a run needs nothing else.

    Raises: CheckpointError where it cannot.
    """
    for role, tokenizer in (("encoder", run.encoder), ("decoder", run.decoder)):
        folder = run.workdir / TOKENIZER_FOLDER / role
        try:
            tokenizer.save(folder)
        except OSError as error:
            raise CheckpointError(f"cannot write to {folder}: {error}") from error


def open_run(config: ConfigDict, workdir: Path, saved: identity.Saved | None = None) -> Run:
    """Reads and tokenises the data and builds the model; touches no device, writes to no folder but
    the cache of prepared data.

    Args:
      saved: the checkpoints of the run that is resumed or measured; None for a first start.
    Raises: ConfigError, DataError; CheckpointError where text, tokenizers or random stream are not
      those of `saved`.
    """
    read = functools.cache(lambda: read_splits(config))

    def sentences() -> Iterable[str]:
        train = read()[0]["train"]
        return train.texts() if isinstance(train, Corpus) else train.text

    # A tokenizer that cannot be opened is known before the text is read.
    encoder, decoder = open_tokenizers(config, workdir, sentences)
    splits, exact = read()
    if saved:  # before the work of preparing another text
        identity.check_data(saved, config, splits)
        identity.check_tokenizers(saved, encoder, decoder)
    log = duplicate_files(splits)
    log += [f"{t.role} tokenizer {t.name}: {t.described()}" for t in (encoder, decoder)]

    config = ConfigDict(config.to_dict())
    for side, tokenizer in (("encoder", encoder), ("decoder", decoder)):
        if side in config.model:
            settle_vocab(config.model[side], tokenizer, f"model.{side}.vocab")
    family = models.family(config.model.family)
    limits = family.limits(model_config(config))
    joined = family.joined(model_config(config))
    shared = "enc" in limits and one_embedding(config.model)
    if shared and encoder.fingerprint != decoder.fingerprint:
        raise ConfigError(
            f"data.encoder_tokenizer is {encoder.name} and data.decoder_tokenizer {decoder.name}, "
            f"but one embedding of {config.model.family} is of both sides; give both the same"
        )
    by_turns = replace(encoder, turns=config.data.turns)
    every = {"dec": decoder, "enc": encoder, "cond": by_turns}
    by_side = {side: every[side] for side in ("dec", *limits) if side in every}
    data = {
        split: make_split(found, by_side, limits, joined, corpus.cache_dir(config.data.cache))
        for split, found in splits.items()
    }
    for split, dataset in data.items():
        # Held-out splits repeat what is to say of the files they come from.
        log += [f"{split}: {n}" for n in dataset.notes if not any(n in line for line in log)]
        if split in exact:
            exact[split] = exact[split][dataset.lines.line_no - 1]
    settle_rows(config, data, log)
    # Decoding stops where the longest training sentence does, its end included.
    longest = int(data["train"].target_lengths.max())
    config.decode.max_length = config.decode.max_length or longest
    room = limits["dec"] - 1  # after the start token
    if config.decode.max_length > room:
        log.append(
            f"decode.max_length={config.decode.max_length}: lowered to {room}, as the decoder has "
            "no positions for longer sentences"
        )
        config.decode.max_length = room
    rows = row_spec(config, limits)
    log.append(log_packing(data["train"], rows))
    model = build_model(config)
    return Run(config.lock(), workdir, encoder, decoder, data, rows, model, exact, log, splits)


def seeds(seed: int) -> dict[str, Key[Array, ""]]:
    """One seed split once into named keys."""
    names = ("init", "train", "valid", "eval")
    return dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))


def param_shardings(model: TextVAE, mesh: Mesh) -> tuple[Params, Any]:
    """Abstract parameters and where each of them lives."""
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    return abstract, rules.shardings(model.axes, abstract, mesh)
