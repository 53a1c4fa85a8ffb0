"""From a config to the things a run is made of: splits, tokenizers, model, mesh.

Everything derived from the data (vocabulary sizes, row lengths) is settled here, once, and written
into the config that the working directory and every checkpoint keep.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from jvae import models, noise
from jvae.api import Batch, Params, TextVAE
from jvae.data import corpus, grammar, sources, tokenizers
from jvae.data.corpus import Corpus
from jvae.data.dataset import Dataset, RowSpec, block_rows, make_dataset
from jvae.data.formats import Reader
from jvae.data.plan import propose_rows, shuffled
from jvae.data.prepare import prepare
from jvae.data.tokenizers import TextTokenizer
from jvae.errors import CheckpointError, ConfigError, DataError
from jvae.models.sri import Sampler
from jvae.objectives import Objective
from jvae.parallel import rules
from jvae.pretrained import files

SPLITS = ("train", "valid", "test")
HELD_OUT = 1_000  # most sentences held out per split of a corpus that comes as one file
FILL_SAMPLE = 8_000  # examples the fill of the rows is told of
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


def build_objective(section: ConfigDict) -> Objective:
    """The objective of a config section; its `beta` is a schedule of its own."""
    return dataclass_from(Objective, {k: v for k, v in section.items() if k != "beta"}, "objective")


def build_noise(
    section: ConfigDict, config: ConfigDict, encoder: TextTokenizer, decoder: TextTokenizer
) -> Callable[[Key[Array, "e"], Batch], Batch] | None:
    """What training does to the tokens that are read, None where it leaves them alone.

    Args:
      section: the `noise` of the config or of a phase.
    Raises: ConfigError for a share that is none, or a model that has no encoder.
    """
    rates: dict[str, float] = section.to_dict()
    for name, rate in rates.items():
        if not 0.0 <= rate <= 1.0:
            raise ConfigError(f"noise.{name}={rate}: expected a share from 0 to 1")
    delete, drop = rates["enc_delete"], rates["word_dropout"]
    family = models.family(config.model.family)
    if delete and "enc" not in family.limits(model_config(config)):
        raise ConfigError(
            f"noise.enc_delete={delete}: model.family={config.model.family} has no encoder; set it "
            "to 0, or choose a model with one"
        )
    if not (delete or drop):
        return None
    drop_id = decoder.pad_id if decoder.unk_id is None else decoder.unk_id

    def noisy(key_e: Key[Array, "e"], batch: Batch) -> Batch:
        if delete and batch.enc is not None:
            enc = noise.delete_tokens(key_e, batch.enc, delete, encoder.pad_id)
            batch = batch._replace(enc=enc)
        if drop:
            key_e = jax.vmap(lambda key: jax.random.fold_in(key, 2))(key_e)
            batch = noise.drop_words(key_e, batch, drop, drop_id)
        return batch

    return noisy


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


def read_splits(
    config: ConfigDict,
) -> tuple[Mapping[str, sources.Lines | Corpus], dict[str, np.ndarray]]:
    """What every split holds and, for the embedded corpus, the exact -log p of each line in nats.

    Files are checked here and read for good by `prepare`; only the embedded corpus is in memory.
    """
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
    reader = dataclass_from(
        Reader, {f.name: data[f.name] for f in dataclasses.fields(Reader)}, "data"
    )
    cache = corpus.cache_dir(data.cache)
    found = {s: corpus.survey(data[s], reader, cache) for s in SPLITS if data[s]}
    _hold_out(found)
    return found, {}


def _hold_out(found: dict[str, Corpus]) -> None:
    """Splits that were not given, cut out of train by a fixed permutation of its lines."""
    for split in SPLITS[1:]:
        if split in found:
            continue
        train = found["train"]
        count = min(HELD_OUT, len(train) // 20)
        if count < 1:
            raise DataError(
                f"{train}: {len(train)} lines are too few to hold some out "
                f"for {split}; set data.{split} or bring at least 20"
            )
        left = np.arange(train.documents) if train.keep_d is None else np.flatnonzero(train.keep_d)
        held_d = np.zeros(train.documents, bool)
        held_d[left[shuffled(len(train), 0, 0, f"hold out {split}")[:count]]] = True
        kept_d = np.isin(np.arange(train.documents), left) & ~held_d
        found[split], found["train"] = train.select(held_d), train.select(kept_d)


def _doubles(splits: Mapping[str, sources.Lines | Corpus]) -> list[str]:
    """Warnings about files of the same content in two splits, or twice in one."""
    seen: dict[str, tuple[str, str]] = {}
    notes = []
    for split, found in splits.items():
        if isinstance(found, Corpus) and found.keep_d is not None and split != "train":
            continue  # held out of train: the files are the same by design
        for file in found.files:
            if file.sha256 in seen:
                other, path = seen[file.sha256]
                where = f"both {other} and {split}" if other != split else f"{split} twice"
                names = file.path if file.path == path else f"{path} and {file.path} (same content)"
                notes.append(f"{names}: in {where}; figures on it would not be of unseen text")
            seen[file.sha256] = (split, file.path)
    return notes


def open_tokenizers(
    config: ConfigDict, workdir: Path, train: Callable[[], Iterable[str]]
) -> tuple[TextTokenizer, TextTokenizer]:
    """Encoder and decoder tokenizer: those of the working directory where it has them, else those
    that the config names, else those of the model that training starts from.

    Args:
      train: gives the train split's sentences, read only when a tokenizer has to be trained.
    """
    opened = []
    source = config.init.model
    if source:
        source = Path(source).expanduser() if files.is_local(source) else files.fetch_folder(source)
    for role in ("encoder", "decoder"):
        folder = workdir / TOKENIZER_FOLDER / role
        name = config.data[f"{role}_tokenizer"]
        if (folder / tokenizers.FILE).is_file():  # a folder alone is what a kill may leave
            opened.append(tokenizers.load(folder, role))
        elif name:
            opened.append(tokenizers.open_tokenizer(name, role))
        elif source and (source / TOKENIZER_FOLDER / role).is_dir():
            opened.append(tokenizers.load(source / TOKENIZER_FOLDER / role, role))
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
    """Writes both tokenizers into the working directory, so that a run needs nothing else.

    Raises: CheckpointError where it cannot.
    """
    for role, tokenizer in (("encoder", run.encoder), ("decoder", run.decoder)):
        folder = run.workdir / TOKENIZER_FOLDER / role
        try:
            tokenizer.save(folder)
        except OSError as error:
            raise CheckpointError(f"cannot write to {folder}: {error}") from error


def open_run(config: ConfigDict, workdir: Path) -> Run:
    """Reads and tokenises the data and builds the model; touches no device, writes to no folder but
    the cache of prepared data.

    Raises: ConfigError, DataError.
    """
    splits, exact = read_splits(config)
    log = _doubles(splits)
    train = splits["train"]
    encoder, decoder = open_tokenizers(
        config, workdir, lambda: train.texts() if isinstance(train, Corpus) else train.text
    )

    config = ConfigDict(config.to_dict())
    for side, tokenizer in (("encoder", encoder), ("decoder", decoder)):
        if side in config.model:
            _settle_vocab(config.model[side], tokenizer, f"model.{side}.vocab")
    family = models.family(config.model.family)
    limits = family.limits(model_config(config))
    joined = family.joined(model_config(config))
    shared = "enc" in limits and "encoder" not in config.model
    if shared and encoder.fingerprint != decoder.fingerprint:
        raise ConfigError(
            f"data.encoder_tokenizer is {encoder.name} and data.decoder_tokenizer {decoder.name}, "
            f"but one stack of {config.model.family} reads both sides; give both the same"
        )
    if config.data.source and "cond" not in limits:
        raise ConfigError(
            f"data.source={config.data.source}: model.family={config.model.family} reads no source "
            "text; unset it, or choose a conditional model"
        )
    every = {"dec": decoder, "enc": encoder, "cond": encoder}
    by_side = {side: every[side] for side in ("dec", *limits) if side in every}
    data = {
        split: _dataset(found, by_side, limits, joined, corpus.cache_dir(config.data.cache))
        for split, found in splits.items()
    }
    for split, dataset in data.items():
        # Held-out splits repeat what is to say of the files they come from.
        log += [f"{split}: {n}" for n in dataset.notes if not any(n in line for line in log)]
        if split in exact:
            exact[split] = exact[split][dataset.lines.line_no - 1]
    _settle_rows(config, data, log)
    # Decoding stops where the longest training sentence does, its end included.
    longest = int(data["train"].target_lengths.max())
    config.decode.max_length = config.decode.max_length or longest
    rows = row_spec(config, limits)
    log.append(_fill(data["train"], rows))
    model = build_model(config)
    return Run(config.lock(), workdir, encoder, decoder, data, rows, model, exact, log)


def _dataset(
    found: sources.Lines | Corpus,
    by_side: dict[str, TextTokenizer],
    limits: dict[str, int],
    joined: tuple[str, ...],
    cache: Path,
) -> Dataset:
    if isinstance(found, Corpus):
        return prepare(found, by_side, limits, cache, joined=joined)
    if "cond" in by_side:
        raise ConfigError("data.train is empty: the embedded corpus has no source texts; set it")
    return make_dataset(found, by_side["dec"], by_side.get("enc"), limits=limits)


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
    """How full the rows are, as a log line; of a part of a large corpus, as planning takes time."""
    some = shuffled(len(data), 0, 0, "fill")[:FILL_SAMPLE]
    plan = block_rows(data, rows, ids=some)
    sides = ", ".join(f"{side} {share:.1%}" for side, share in plan.fill.items())
    return f"fill of rows with {len(some):,} examples: {sides}, slots {plan.slot_fill:.1%}"


def seeds(seed: int) -> dict[str, Key[Array, ""]]:
    """One seed split once into named keys."""
    names = ("init", "train", "valid", "eval")
    return dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))


def param_shardings(model: TextVAE, mesh: Mesh) -> tuple[Params, Any]:
    """Abstract parameters and where each of them lives."""
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    return abstract, rules.shardings(model.axes, abstract, mesh)
