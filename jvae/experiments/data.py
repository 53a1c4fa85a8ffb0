"""The files of the comparison: the same splits and the same tokenizer for every model."""

import gzip
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jvae.data import tokenizers
from jvae.data.plan import plan_block, propose_rows, shuffled
from jvae.data.sources import sha256
from jvae.errors import ConfigError
from jvae.experiments.entries import Budget, Overrides
from jvae.runs import data as run_data
from jvae.runs import trim
from jvae.runs.workdir import write_text

UNKNOWN = ("<unk>", "_UNK")  # a text with one of these has a closed vocabulary
PREPARED, PUBLISHED = "prepared.json", "published.json"


class Prepared(NamedTuple):
    """The files of a data set under a budget, and their properties.

    kind: kind of the tokenizer, bpe or word. entries: size of its vocabulary. per_row: training
    sentences per packed row. files: SHA-256 of each, and of the tokenizer. labelled: whether the
    lines of the files are `label TAB sentence`. published: digests of published weights, by role.
    """

    name: str
    folder: Path
    kind: str
    entries: int
    sentences: int
    mean_words: float
    per_row: float
    files: Mapping[str, str]
    labelled: bool = False
    published: Mapping[str, str] = {}

    def flags(self) -> Overrides:
        """The config values that refer to the files."""
        tokenizer = str(self.folder / "tokenizer")
        return self._splits() | {f"data.{role}_tokenizer": tokenizer for role in run_data.ROLES}

    def published_flags(self, roles: Sequence[str]) -> Overrides:
        """The same for a model that starts from the published weights of `publish`."""
        return self._splits() | {f"init.{role}": str(self.folder / role) for role in roles}

    def _splits(self) -> Overrides:
        kind = "tsv" if self.labelled else "txt"
        files: Overrides = {}
        for split in run_data.SPLITS:
            files[f"data.{split}"] = str(self.folder / f"{split}.{kind}")
        return files | ({"data.text": "1", "data.label": "0"} if self.labelled else {})

    def publish(self, encoder: Path, decoder: Path) -> "Prepared":
        """Adds published weights to the files, see `publish`."""
        train = read_lines(self.folder, "train").sentences
        return self._replace(published=publish(self.folder, encoder, decoder, train))


def publish(folder: Path, encoder: Path, decoder: Path, train: Sequence[str]) -> dict[str, str]:
    """Adds a link to a published encoder and a decoder trimmed to the training text to a folder,
    unless they are there. Returns the digest of each published folder, by role.

    Raises: ConfigError if the folder has other weights; DataError or WeightsError for a folder that
      cannot be read.
    """
    digests = {"encoder": _digest(encoder), "decoder": _digest(decoder)}
    folder.mkdir(parents=True, exist_ok=True)
    stored, target = folder / PUBLISHED, folder / "decoder"
    if stored.is_file() and json.loads(stored.read_text(encoding="utf-8")) != digests:
        raise ConfigError(
            f"{folder}: has other published weights than those of --encoder and --decoder; give "
            "another --out, or remove that folder"
        )
    with tempfile.TemporaryDirectory(dir=folder) as part:
        link = Path(part) / "encoder"
        link.symlink_to(encoder.resolve(), target_is_directory=True)
        os.replace(link, folder / "encoder")
        if not stored.is_file():  # an interrupted command may have left a part of it
            trim.trim(decoder, Path(part) / "decoder", train)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(Path(part) / "decoder", target)
    write_text(stored, json.dumps(digests, indent=2, sort_keys=True) + "\n")
    return digests


def _digest(published: Path) -> str:
    """SHA-256 of the names and contents of a folder's files.

    Raises: ConfigError if there are none; DataError if one cannot be read.
    """
    files = sorted(path for path in published.glob("*") if path.is_file())
    if not files:
        raise ConfigError(f"{published}: expected a folder with published weights")
    whole = json.dumps([(path.name, sha256(path)) for path in files])
    return hashlib.sha256(whole.encode()).hexdigest()


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a file, plain or .gz, without their ends; empty ones are left out.

    Raises: ConfigError if it cannot be read.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            yield from (text for line in file if (text := line.rstrip("\r\n")))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from error


class Lines(NamedTuple):
    """The lines of a file; labelled: whether they are `label TAB sentence`."""

    path: Path
    lines: list[str]
    labelled: bool

    @property
    def sentences(self) -> list[str]:
        """The sentences without labels."""
        if not self.labelled:
            return self.lines
        return [line.partition("\t")[2] for line in self.lines]


def read_lines(folder: Path, split: str) -> Lines:
    """The lines of a split, from `split.tsv` if they have labels, or from `split.txt`; both may be
    compressed.

    Raises: ConfigError if there is no such file, or no line in it.
    """
    for name in ("tsv", "tsv.gz", "txt", "txt.gz"):
        path = folder / f"{split}.{name}"
        if path.is_file():
            lines = list(text_lines(path))
            if not lines:
                raise ConfigError(f"{path}: has no text")
            return Lines(path, lines, name.startswith("tsv"))
    raise ConfigError(
        f"{folder}: no {split}.txt or {split}.txt.gz, one sentence per line, and no {split}.tsv or "
        f"{split}.tsv.gz with labels"
    )


def prepare(name: str, source: Path, budget: Budget, folder: Path) -> Prepared:
    """Writes files and tokenizer of a data set to a folder, unless it already has them.

    Raises: ConfigError if a split is missing, or only some of them have labels.
    """
    files = {split: read_lines(source, split) for split in run_data.SPLITS}
    labelled = files["train"].labelled
    if any(one.labelled != labelled for one in files.values()):
        raise ConfigError(f"{source}: some splits are .tsv and others .txt; give all in one form")
    origin = {split: sha256(one.path) for split, one in files.items()}
    how = [origin, budget.lines, budget.vocab, budget.row_tokens]
    stored = folder / PREPARED
    if stored.is_file():
        record = json.loads(stored.read_text(encoding="utf-8"))
        if record.pop("how") == how:
            return Prepared(name=name, folder=folder, **record)
        raise ConfigError(
            f"{folder}: prepared from other files or for other sizes; give another --out, or "
            "remove that folder"
        )
    for split in ("valid", "test"):
        lines = files[split].lines
        if budget.lines and len(lines) > budget.lines:
            chosen = np.sort(shuffled(len(lines), 0, 0, f"fair {split}")[: budget.lines])
            files[split] = files[split]._replace(lines=[lines[i] for i in chosen])
    written = {split: folder / f"{split}.{'tsv' if labelled else 'txt'}" for split in files}
    for split, path in written.items():
        write_text(path, "".join(f"{line}\n" for line in files[split].lines))
    texts = {split: one.sentences for split, one in files.items()}
    train = texts["train"]
    closed = any(word in UNKNOWN for line in train for word in line.split())
    tokenizer = (
        tokenizers.train_word_level(train) if closed else tokenizers.train_bpe(train, budget.vocab)
    )
    tokenizer.save(folder / "tokenizer")
    prepared = Prepared(
        name=name,
        folder=folder,
        kind="word" if closed else "bpe",
        entries=tokenizer.vocab_size,
        sentences=len(train),
        mean_words=sum(len(line.split()) for line in train) / len(train),
        per_row=_per_row(tokenizer, texts, budget.row_tokens),
        files={split: sha256(path) for split, path in written.items()}
        | {"tokenizer": tokenizer.fingerprint},
        labelled=labelled,
    )
    record = prepared._asdict() | {"how": how}
    del record["name"], record["folder"], record["published"]
    write_text(stored, json.dumps(record, indent=2, sort_keys=True) + "\n")
    return prepared


def _per_row(
    tokenizer: tokenizers.TextTokenizer, texts: Mapping[str, Sequence[str]], row_tokens: int
) -> float:
    """Mean number of training sentences in a packed row, as a run packs them."""
    lengths = {
        split: np.array([len(ids) for ids in tokenizer.encode_batch(lines)])
        for split, lines in texts.items()
    }
    longest = max(int(split_lengths.max()) for split_lengths in lengths.values())
    proposal = propose_rows({"dec": lengths["train"]}, row_tokens)
    row = max(proposal.row["dec"], longest)
    rows = plan_block({"dec": lengths["train"]}, {"dec": row}, proposal.slots).rows
    return float((rows >= 0).sum() / len(rows))
