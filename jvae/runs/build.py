"""Builds the parts of a run from its config: splits, tokenizers, model, mesh.

All values derived from the data (vocabulary sizes, row lengths) are determined here, once, and
written to the config that the working directory and every checkpoint keep.
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
    """The objects shared by training, evaluation and the text modes."""

    config: ConfigDict  # finalised
    workdir: Path
    encoder: TextTokenizer
    decoder: TextTokenizer
    data: dict[str, Dataset]
    rows: RowSpec
    model: TextVAE
    exact: dict[str, np.ndarray]  # -log p (nats) of each sentence by split; embedded corpus only
    log: list[str]  # messages from preparing the data
    splits: identity.Splits = {}  # the text of `data`, as read

    @property
    def eval_rows(self) -> RowSpec:
        """The row layout of evaluation, where the end of a text is always scored."""
        return replace(self.rows, score_end=True)

    def record(self) -> identity.Record:
        """The record that identifies this run, see `jvae.runs.identity`."""
        return identity.record(self.config, self.splits, self.encoder, self.decoder)


def build_model(config: ConfigDict) -> TextVAE:
    """The model of a finalised config.

    Equal configs return the same object, so that programs compiled for it are shared by all runs of
    a process, such as those of a sweep, or a run and its export.
    """
    build, section = models.family(config.model.family).build, model_config(config)
    # The config of an external family may be mutable.
    return _built(build, section) if isinstance(section, Hashable) else build(section)


@functools.lru_cache(maxsize=64)
def _built(build: Callable[[Any], TextVAE], section: Hashable) -> TextVAE:
    return build(section)


def model_config(config: ConfigDict) -> Any:
    """The config dataclass of the model section."""
    family = models.family(config.model.family)
    section = {k: v for k, v in config.model.items() if k != "family"}
    return dataclass_from(family.config, section, "model")


def row_spec(config: ConfigDict, limits: dict[str, int]) -> RowSpec:
    """The row layout of a finalised config, for the sides that the model reads."""
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
    """Writes both tokenizers to the working directory, so that the run is self-contained.

    Raises: CheckpointError if they cannot be written.
    """
    for role, tokenizer in (("encoder", run.encoder), ("decoder", run.decoder)):
        folder = run.workdir / TOKENIZER_FOLDER / role
        try:
            tokenizer.save(folder)
        except OSError as error:
            raise CheckpointError(f"cannot write to {folder}: {error}") from error


def open_run(config: ConfigDict, workdir: Path, saved: identity.Saved | None = None) -> Run:
    """Reads and tokenises the data and builds the model. Uses no device, and writes only to the
    cache of prepared data.

    Args:
      saved: the checkpoints of the run to resume or measure; None for a new run.
    Raises: ConfigError, DataError; CheckpointError if text, tokenizers or random stream differ from
      those of `saved`.
    """
    read = functools.cache(lambda: read_splits(config))

    def sentences() -> Iterable[str]:
        train = read()[0]["train"]
        return train.texts() if isinstance(train, Corpus) else train.text

    # Open the tokenizers first, so that errors surface before the text is read.
    encoder, decoder = open_tokenizers(config, workdir, sentences)
    splits, exact = read()
    if saved:  # checked before spending time on the wrong text
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
            f"but {config.model.family} reads both sides with one embedding; set both to the same"
        )
    by_turns = replace(encoder, turns=config.data.turns)
    tokenizers = {"dec": decoder, "enc": encoder, "cond": by_turns}
    by_side = {side: tokenizers[side] for side in ("dec", *limits) if side in tokenizers}
    data = {
        split: make_split(texts, by_side, limits, joined, corpus.cache_dir(config.data.cache))
        for split, texts in splits.items()
    }
    for split, dataset in data.items():
        # Held-out splits repeat the messages about the files they come from.
        log += [f"{split}: {n}" for n in dataset.notes if not any(n in line for line in log)]
        if split in exact:
            exact[split] = exact[split][dataset.lines.line_no - 1]
    settle_rows(config, data, log)
    # Decoding is limited to the length of the longest training sentence, its end included.
    longest = int(data["train"].target_lengths.max())
    config.decode.max_length = config.decode.max_length or longest
    room = limits["dec"] - 1  # room for tokens after the start token
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
    """Splits one seed into named keys."""
    names = ("init", "train", "valid", "eval")
    return dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))


def param_shardings(model: TextVAE, mesh: Mesh) -> tuple[Params, Any]:
    """Abstract parameters and their shardings."""
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    return abstract, rules.shardings(model.axes, abstract, mesh)
