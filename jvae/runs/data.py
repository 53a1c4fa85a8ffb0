"""The data of a run: its splits, tokenizers and rows.

All values derived from the data (vocabulary sizes, row lengths) are determined here, once, and
written to the config that the working directory and every checkpoint keep.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jvae.config import dataclass_from
from jvae.data import corpus, embedded, grammar, sources, tokenizers
from jvae.data.corpus import Corpus
from jvae.data.dataset import Dataset, RowSpec, block_rows, make_dataset
from jvae.data.formats import Reader
from jvae.data.kept import Arrays, digest, kept
from jvae.data.plan import FORMAT, propose_rows, shuffled
from jvae.data.tokenizers import TextTokenizer
from jvae.errors import ConfigError, DataError
from jvae.runs import model_names, phases
from jvae.runs import workdir as workdirs

SPLITS = ("train", "valid", "test")


HELD_OUT = 1_000  # most sentences to hold out per split of a single-file corpus


FILL_SAMPLE = 8_000  # examples used to report the packing efficiency


TOKENIZER_FOLDER = "tokenizers"
ROLES = ("encoder", "decoder")


def read_splits(
    config: ConfigDict,
) -> tuple[Mapping[str, sources.Lines | Corpus], dict[str, np.ndarray]]:
    """The lines of every split and, for the embedded corpus, the exact -log p in nats of each line.

    Files are only checked here; `prepare` reads them. The embedded corpus alone is in memory.
    """
    data = config.data
    if not data.train:
        sizes = dict(train=grammar.TRAIN, valid=grammar.VALID, test=grammar.TEST)
        cache = corpus.cache_dir(data.cache)
        drawn = {split: embedded.split(split, sizes[split], cache) for split in SPLITS}
        lines = {
            split: sources.lines_of(splits.texts, f"embedded corpus, {split}")
            for split, splits in drawn.items()
        }
        exact = {split: -splits.log_prob_n for split, splits in drawn.items()}
        return lines, exact
    reader = dataclass_from(
        Reader, {f.name: data[f.name] for f in dataclasses.fields(Reader)}, "data"
    )
    cache = corpus.cache_dir(data.cache)
    splits = {s: corpus.survey(data[s], reader, cache) for s in SPLITS if data[s]}
    _hold_out(splits)
    return splits, {}


def _hold_out(splits: dict[str, Corpus]) -> None:
    """Fills in missing splits by holding out train lines, chosen by a fixed permutation."""
    lines = len(splits["train"])
    for split in SPLITS[1:]:
        if split in splits:
            continue
        train = splits["train"]
        if lines < 20:
            raise DataError(
                f"{train}: {lines} lines are too few to hold some out "
                f"for {split}; set data.{split} or provide at least 20"
            )
        count = min(HELD_OUT, max(len(train) // 20, 1))
        left = np.arange(train.documents) if train.keep_d is None else np.flatnonzero(train.keep_d)
        held_d = np.zeros(train.documents, bool)
        held_d[left[shuffled(len(train), 0, 0, f"hold out {split}")[:count]]] = True
        kept_d = np.isin(np.arange(train.documents), left) & ~held_d
        splits[split], splits["train"] = train.select(held_d), train.select(kept_d)


def duplicate_files(splits: Mapping[str, sources.Lines | Corpus]) -> list[str]:
    """Warnings about files with the same content in two splits, or twice in one."""
    seen: dict[str, tuple[str, str]] = {}
    notes = []
    for split, lines in splits.items():
        if isinstance(lines, Corpus) and lines.keep_d is not None and split != "train":
            continue  # held out of train, so the files are the same by design
        for file in lines.files:
            if file.sha256 in seen:
                other_split, path = seen[file.sha256]
                where = (
                    f"both {other_split} and {split}" if other_split != split else f"{split} twice"
                )
                names = file.path if file.path == path else f"{path} and {file.path} (same content)"
                notes.append(f"{names}: in {where}; metrics on it would not be of unseen text")
            seen[file.sha256] = (split, file.path)
    return notes


def open_tokenizers(
    config: ConfigDict, workdir: Path, train: Callable[[], Iterable[str]]
) -> tuple[TextTokenizer, TextTokenizer]:
    """Opens the encoder and decoder tokenizers.

    They come from the working directory if training has saved something there, else from the
    config, else from the pretrained model that training starts from.

    Args:
      train: yields the sentences of the train split; called only if a tokenizer has to be trained,
        after all others are open.
    Raises: DataError naming the config key of a tokenizer that cannot be opened.
    """
    trained = bool(workdirs.checkpoints(workdir))
    source = model_names.folder_of(config.init.model) if config.init.model else None
    opened: dict[str, TextTokenizer] = {}
    for role in ROLES:
        folder = workdir / TOKENIZER_FOLDER / role
        name = config.data[f"{role}_tokenizer"]
        # A killed process may leave an empty folder, and a failed start only tokenizers.
        if trained and (folder / tokenizers.FILE).is_file():
            opened[role] = tokenizers.load(folder, role)
        elif name:
            try:
                opened[role] = tokenizers.open_tokenizer(name, role, _trains_tokens(config, role))
            except DataError as error:
                raise DataError(f"data.{role}_tokenizer: {error}") from None
        elif source and (source / TOKENIZER_FOLDER / role).is_dir():
            opened[role] = tokenizers.load(source / TOKENIZER_FOLDER / role, role)
    for role in ROLES:
        if role in opened:
            continue
        if "encoder" in opened and not config.data.encoder_tokenizer:
            opened[role] = opened["encoder"].for_role(role)
        elif not config.data.train:
            opened[role] = tokenizers.train_word_level(train(), role=role)
        elif config.data.tokenizer_kind == "word":
            opened[role] = tokenizers.train_word_level(
                train(), config.data.vocab or None, role=role
            )
        else:
            opened[role] = tokenizers.train_bpe(train(), config.data.vocab, role)
    return opened["encoder"], opened["decoder"]


def _trains_tokens(config: ConfigDict, role: str) -> bool:
    """Whether the token embedding that reads a role's text trains in any phase."""
    stack = role if role in config.model else "decoder"
    path = f"{stack}/embed/token/table"
    rules = [phase.optim.trainable for phase in phases.resolve(config)]
    return any(not of or any(re.search(rule[0], path) for rule in of) for of in rules)


def make_split(
    lines: sources.Lines | Corpus,
    by_side: dict[str, TextTokenizer],
    limits: dict[str, int],
    joined: tuple[str, ...],
    cache: Path,
) -> Dataset:
    if isinstance(lines, Corpus):
        from jvae.data.prepare import prepare  # imports TFDS

        return prepare(lines, by_side, limits, cache, joined=joined)
    if "cond" in by_side:
        raise ConfigError("data.train is empty: the embedded corpus has no source texts; set it")
    return make_dataset(lines, by_side["dec"], by_side.get("enc"), limits=limits, cache=cache)


def settle_vocab(section: ConfigDict, tokenizer: TextTokenizer, key: str) -> None:
    if section.vocab == 0:
        section.vocab = tokenizer.vocab_size
    elif section.vocab < tokenizer.vocab_size:
        raise ConfigError(
            f"{key} is {section.vocab}, but tokenizer {tokenizer.name} has "
            f"{tokenizer.vocab_size} entries; set it to 0 or to at least that"
        )


def settle_rows(config: ConfigDict, data: dict[str, Dataset], log: list[str]) -> None:
    """Sets row lengths and slots that fit every split; values of 0 are computed from train."""
    section = config.data
    sides = data["train"].sides
    lengths = {side: encoded.lengths for side, encoded in sides.items()}
    longest = {s: max(int(d.sides[s].lengths.max()) for d in data.values()) for s in sides}
    if section.packing == "bucket":
        section.slots = 1
        proposal = longest
    else:
        proposal = _proposal(lengths, section.row_tokens, corpus.cache_dir(section.cache))
        slots = proposal.pop("slots")
        section.slots = section.slots or slots
    for side in sides:
        key = f"{side}_row"
        section[key] = section[key] or max(proposal[side], longest[side])
        if section[key] < longest[side]:
            raise ConfigError(
                f"data.{key} is {section[key]}, but a sentence has {longest[side]} tokens on that "
                "side; raise it, set it to 0, or drop long lines with data.max_words and "
                "data.on_error=drop"
            )
    settings = ", ".join(f"data.{side}_row={section[f'{side}_row']}" for side in sides)
    log.append(
        f"rows: {settings}, data.slots={section.slots}, data.batch_rows={section.batch_rows}"
    )


def _proposal(lengths: Mapping[str, np.ndarray], tokens: int, cache: Path) -> dict[str, int]:
    """Row length of each side and `slots`, see `propose_rows`."""

    def propose() -> Arrays:
        chosen = propose_rows(lengths, tokens)
        return {name: np.array(n) for name, n in (chosen.row | dict(slots=chosen.slots)).items()}

    name = digest(repr((FORMAT, tokens, tuple(lengths))), *lengths.values())
    return {name: int(n) for name, n in kept(cache / "rows" / name, propose).items()}


def log_packing(data: Dataset, rows: RowSpec) -> str:
    """Packing efficiency as a log line, measured on a part of a large corpus to save time."""
    sample = shuffled(len(data), 0, 0, "fill")[:FILL_SAMPLE]
    plan = block_rows(data, rows, ids=sample)
    sides = ", ".join(f"{side} {share:.1%}" for side, share in plan.fill.items())
    return f"fill of rows with {len(sample):,} examples: {sides}, slots {plan.slot_fill:.1%}"
