"""From a config to the things a run is made of: splits, tokenizers, model, mesh.

Everything derived from the data (vocabulary sizes, row lengths) is settled here, once, and written
into the config that the working directory and every checkpoint keep.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from jvae import models
from jvae.api import Params, TextVAE
from jvae.data import grammar, sources, tokenizers
from jvae.data.dataset import Dataset, RowSpec, epoch_rows, make_dataset
from jvae.data.plan import propose_rows, shuffled
from jvae.data.tokenizers import TextTokenizer
from jvae.errors import ConfigError, DataError
from jvae.models.sri import Sampler
from jvae.objectives import Objective
from jvae.parallel import rules

SPLITS = ("train", "valid", "test")
HELD_OUT = 1_000  # most sentences held out per split of a corpus that comes as one file
TOKENIZER_FOLDER = "tokenizers"


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


def dataclass_from(cls: type, section: Any, where: str) -> Any:
    """A (nested) config dataclass from a config section; bad values name their key.

    Raises: ConfigError.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, value in section.items():
        if key not in fields:
            raise ConfigError(f"{where}.{key}: {cls.__name__} has no such field")
        kind: Any = fields[key].type
        nested = isinstance(kind, type) and dataclasses.is_dataclass(kind)
        values[key] = dataclass_from(kind, value, f"{where}.{key}") if nested else value
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None


def build_model(config: ConfigDict) -> TextVAE:
    """The model of a finalised config."""
    family = models.family(config.model.family)
    return family.build(model_config(config))


def build_sampler(config: ConfigDict, model: TextVAE) -> Sampler | None:
    """What the model of a config adds where its posterior is a sampler; None for the others."""
    family = models.family(config.model.family)
    return None if family.sampler is None else family.sampler(model_config(config), model)


def model_config(config: ConfigDict) -> Any:
    """The config dataclass of the model section."""
    family = models.family(config.model.family)
    section = {k: v for k, v in config.model.items() if k != "family"}
    return dataclass_from(family.config, section, "model")


def build_objective(config: ConfigDict) -> Objective:
    """The objective of a config."""
    section = {k: v for k, v in config.objective.items() if k != "beta"}
    return dataclass_from(Objective, section, "objective")


def row_spec(config: ConfigDict, limits: dict[str, int]) -> RowSpec:
    """The rows of a finalised config, for the sides that the model reads."""
    data = config.data
    return RowSpec(
        dec_row=data.dec_row,
        enc_row=data.enc_row if "enc" in limits else None,
        slots=data.slots,
        batch_rows=data.batch_rows,
        packing=data.packing,
        seed=config.seed,
        score_end=data.score_end,
    )


def read_splits(config: ConfigDict) -> tuple[dict[str, sources.Lines], dict[str, np.ndarray]]:
    """The lines of every split and, for the embedded corpus, the exact -log p of each in nats."""
    data = config.data
    if not data.train:
        if data.valid or data.test:
            raise ConfigError(
                "data.valid or data.test is set but data.train is not: name the train file"
            )
        sizes = dict(train=grammar.TRAIN, valid=grammar.VALID, test=grammar.TEST)
        corpora = {split: grammar.corpus(split, sizes[split]) for split in SPLITS}
        lines = {
            split: sources.lines_of([s.text for s in corpus], f"embedded corpus, {split}")
            for split, corpus in corpora.items()
        }
        exact = {s: -np.array([x.log_prob for x in corpus]) for s, corpus in corpora.items()}
        return lines, exact
    lines = {
        split: sources.read_lines(data[split], data.on_error, data.max_words)
        for split in SPLITS
        if data[split]
    }
    _hold_out(lines)
    return lines, {}


def _hold_out(lines: dict[str, sources.Lines]) -> None:
    """Splits that were not given, cut out of train by a fixed permutation."""
    for split in SPLITS[1:]:
        if split in lines:
            continue
        train = lines["train"]
        count = min(HELD_OUT, len(train) // 20)
        if count < 1:
            raise DataError(
                f"{train.files[0].path}: {len(train)} sentences are too few to hold some out "
                f"for {split}; set data.{split} or bring at least 20"
            )
        held = np.zeros(len(train), bool)
        held[shuffled(len(train), 0, 0, f"hold out {split}")[:count]] = True
        lines[split] = train.keep(held, {})
        lines["train"] = train.keep(~held, {})


def open_tokenizers(
    config: ConfigDict, workdir: Path, train: Callable[[], list[str]]
) -> tuple[TextTokenizer, TextTokenizer]:
    """Encoder and decoder tokenizer: those of the working directory where it has them.

    Args:
      train: gives the train split's sentences, read only when a tokenizer has to be trained.
    """
    opened = []
    for role in ("encoder", "decoder"):
        folder = workdir / TOKENIZER_FOLDER / role
        name = config.data[f"{role}_tokenizer"]
        if folder.is_dir():
            opened.append(tokenizers.load(folder, role))
        elif name:
            opened.append(tokenizers.open_tokenizer(name, role))
        elif opened and not config.data.encoder_tokenizer:
            opened.append(opened[0].for_role(role))
        elif not config.data.train:
            opened.append(tokenizers.train_word_level(train(), role=role))
        elif config.data.tokenizer_kind == "word":
            opened.append(
                tokenizers.train_word_level(train(), config.data.vocab or None, role=role)
            )
        elif config.data.tokenizer_kind == "bpe":
            opened.append(tokenizers.train_bpe(train(), config.data.vocab, role))
        else:
            kind = config.data.tokenizer_kind
            raise ConfigError(f"data.tokenizer_kind is {kind!r}; expected bpe or word")
    return opened[0], opened[1]


def save_tokenizers(run: Run) -> None:
    """Writes both tokenizers into the working directory, so that a run needs nothing else."""
    run.encoder.save(run.workdir / TOKENIZER_FOLDER / "encoder")
    run.decoder.save(run.workdir / TOKENIZER_FOLDER / "decoder")


def open_run(config: ConfigDict, workdir: Path) -> Run:
    """Reads and tokenises the data and builds the model; touches no device and writes nothing.

    Raises: ConfigError, DataError.
    """
    log: list[str] = []
    lines, exact = read_splits(config)
    for split_lines in lines.values():
        if warning := split_lines.warning:
            log.append(warning)
    encoder, decoder = open_tokenizers(config, workdir, lambda: list(lines["train"].text))

    config = ConfigDict(config.to_dict())
    for side, tokenizer in (("encoder", encoder), ("decoder", decoder)):
        if side in config.model:
            _settle_vocab(config.model[side], tokenizer, f"model.{side}.vocab")
    family = models.family(config.model.family)
    limits = family.limits(model_config(config))
    has_encoder = "enc" in limits
    shared = has_encoder and "encoder" not in config.model
    if shared and encoder.fingerprint != decoder.fingerprint:
        raise ConfigError(
            f"data.encoder_tokenizer is {encoder.name} and data.decoder_tokenizer {decoder.name}, "
            f"but one stack of {config.model.family} reads both sides; give both the same"
        )
    data = {
        split: make_dataset(
            split_lines,
            decoder,
            encoder if has_encoder else None,
            limits=limits,
            on_error=config.data.on_error,
        )
        for split, split_lines in lines.items()
    }
    for split, dataset in data.items():
        log += [f"{split}: {note}" for note in dataset.notes]
        if split in exact:
            exact[split] = exact[split][dataset.lines.line_no - 1]
    _settle_rows(config, data, log)
    # Decoding stops where the longest training sentence does, its end included.
    longest = int(data["train"].dec.lengths.max()) - 1
    config.decode.max_length = config.decode.max_length or longest
    rows = row_spec(config, limits)
    log.append(_fill(data["train"], rows))
    model = build_model(config)
    return Run(config.lock(), workdir, encoder, decoder, data, rows, model, exact, log)


def _settle_vocab(section: ConfigDict, tokenizer: TextTokenizer, key: str) -> None:
    if section.vocab == 0:
        section.vocab = tokenizer.vocab_size
    elif section.vocab < tokenizer.vocab_size:
        raise ConfigError(
            f"{key} is {section.vocab}, but tokenizer {tokenizer.name} has "
            f"{tokenizer.vocab_size} entries; set it to 0 or to at least that"
        )


def _settle_rows(config: ConfigDict, data: dict[str, Dataset], log: list[str]) -> None:
    """Row lengths and slots that fit every split, proposed from train where the config says 0."""
    section = config.data
    sides = data["train"].sides
    lengths = {side: encoded.lengths for side, encoded in sides.items()}
    longest = {s: max(int(d.sides[s].lengths.max()) for d in data.values()) for s in sides}
    if section.packing == "bucket":
        section.slots = 1
        proposal = longest
    else:
        found = propose_rows(lengths, section.row_tokens)
        proposal = found.row
        section.slots = section.slots or found.slots
    for side in sides:
        key = f"{side}_row"
        section[key] = section[key] or max(proposal[side], longest[side])
        if section[key] < longest[side]:
            raise ConfigError(
                f"data.{key} is {section[key]}, but a sentence has {longest[side]} tokens on that "
                "side; raise it, set it to 0, or drop long lines with data.max_words and "
                "data.on_error=drop"
            )
    shown = ", ".join(f"data.{side}_row={section[f'{side}_row']}" for side in sides)
    log.append(f"rows: {shown}, data.slots={section.slots}, data.batch_rows={section.batch_rows}")


def _fill(data: Dataset, rows: RowSpec) -> str:
    """How full the rows of the first epoch are, as a log line."""
    plan = epoch_rows(data, rows)
    sides = ", ".join(f"{side} {share:.1%}" for side, share in plan.fill.items())
    return f"fill of {len(plan.ids_rs):,} rows: {sides}, slots {plan.slot_fill:.1%}"


def seeds(seed: int) -> dict[str, Key[Array, ""]]:
    """One seed split once into named keys."""
    names = ("init", "train", "valid", "eval")
    return dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))


def param_shardings(model: TextVAE, mesh: Mesh) -> tuple[Params, Any]:
    """Abstract parameters and where each of them lives."""
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    return abstract, rules.shardings(model.axes, abstract, mesh)
