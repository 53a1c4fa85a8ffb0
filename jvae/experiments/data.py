"""The files of the comparison: the same splits and the same tokenizer for every model."""

import gzip
import json
from collections.abc import Mapping, Sequence
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
PREPARED = "prepared.json"


class Prepared(NamedTuple):
    """The files of a data set under a budget, and their properties.

    kind: kind of the tokenizer, bpe or word. entries: size of its vocabulary. per_row: training
    sentences per packed row. files: SHA-256 of each, and of the tokenizer. labelled: whether the
    lines of the files are `label TAB sentence`.
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

    def publish(self, encoder: Path, decoder: Path) -> None:
        """Adds published weights to the files, see `publish`."""
        publish(self.folder, encoder, decoder, read_lines(self.folder, "train").sentences)


def publish(folder: Path, encoder: Path, decoder: Path, train: Sequence[str]) -> None:
    """Adds a link to a published encoder and a decoder trimmed to the training text to a folder,
    unless they are there.

    Raises: DataError or WeightsError for a folder that cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "encoder"
    link.unlink(missing_ok=True)
    link.symlink_to(encoder.resolve(), target_is_directory=True)
    if not (folder / "decoder").is_dir():
        trim.trim(decoder, folder / "decoder", train)


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

    Raises: ConfigError if there is no such file.
    """
    for name in ("tsv", "tsv.gz", "txt", "txt.gz"):
        path = folder / f"{split}.{name}"
        if path.is_file():
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as f:
                lines = [text for line in f if (text := line.rstrip("\r\n"))]
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
    del record["name"], record["folder"]
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
