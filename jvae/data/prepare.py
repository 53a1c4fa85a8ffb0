"""Tokenises files once into array_record shards, cached by content, tokenizers and options.

Shards are written with `array_record`, next to TFDS features and metadata, so
`tfds.builder_from_directory(folder).as_data_source("train")` reads them. TFDS's own writer is not
used: it shuffles, and it finishes no shard before all of them, so a killed preparation could not
resume.

Shard k holds the examples of documents [k * SHARD, (k + 1) * SHARD), so its bytes depend only on
the input. A preparation is in `<key>.part` until it is complete; a shard there is finished once it
has its final name. One process prepares while others wait.

`meta.json` has the CRC-32 of every file and its own key. They are checked whenever the folder is
opened, which reads the folder once and costs about as much as hashing the corpus files. A folder
that is damaged, incomplete or from another corpus is prepared again.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from jvae.data.corpus import Corpus, Located, cache_fault, reading_key, write_whole
from jvae.data.dataset import Dataset
from jvae.data.encode import TOO_LONG, encode, texts_of, unknown_note, unknown_tokens
from jvae.data.progress import Progress
from jvae.data.records import NAME, SPLIT, Records, StoredSide, StoredTexts
from jvae.data.rows import Encoded
from jvae.data.sources import PUBLIC, Lines, bad_line, drop_warning, sha256, too_long
from jvae.data.text_rules import BadLine
from jvae.data.tokenizers import TextTokenizer
from jvae.errors import DataError

FORMAT = 2  # increase when the stored content or the text rules change
SHARD = 32_768  # documents
_CHUNK, _CHUNK_CHARS = 1_024, 1 << 20  # maximum examples, and approximate characters, per chunk
_ABANDONED_S = 7 * 24 * 3600.0  # age at which leftovers of another preparation are removed
_OPTIONS = "group_size:1,uncompressed"  # single records for random access, too small to compress
# Type codes of `array`.
_COLUMNS = {"words": "i", "chars": "i", "line_no": "i", "file_no": "i", "document": "i"}
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class _Work(NamedTuple):
    """The inputs needed to make a shard."""

    corpus: Corpus
    tokenizers: dict[str, TextTokenizer]
    limits: dict[str, int]
    joined: tuple[str, ...]
    features: Any

    @property
    def columns(self) -> dict[str, str]:
        """`array` type code by column."""
        return {f"{side}_length": "i" for side in self.tokenizers} | _COLUMNS


def prepare(
    corpus: Corpus,
    tokenizers: Mapping[str, TextTokenizer],
    limits: Mapping[str, int],
    cache: Path,
    *,
    joined: Iterable[str] = (),
    shard: int = SHARD,
) -> Dataset:
    """Returns the tokenised examples of a corpus, from the cache or prepared into it.

    Args:
      tokenizers: by side: 'dec' and, if the model reads them, 'enc' and 'cond' (the sources).
      limits: maximum tokens per example and side, including special tokens.
      joined: sides that have the source in front of the text, see `encode`.
      shard: documents per shard.
    Raises: DataError naming file:line of a line that cannot be tokenised or exceeds a limit, with
      data.on_error=raise; if no line is left; if the cache cannot be written.
    """
    tokenizers = dict(tokenizers)
    if "cond" in tokenizers and not corpus.reader.source:
        raise DataError(f"{corpus}: the model reads a source text; set data.source to its column")
    features = _features(tokenizers, corpus)
    work = _Work(corpus, tokenizers, dict(limits), tuple(sorted(joined)), features)
    folder = cache / "prepared" / _key(work, shard)
    notes = list(corpus.notes)
    if _fault(folder):
        with _lock(folder):
            if fault := _fault(folder):  # another process may have been faster
                if folder.exists():
                    notes.append(f"{folder}: {fault}; it is prepared again")
                _prepare(folder, work, shard)
    return _open(folder, work, notes)


def _key(work: _Work, shard: int) -> str:
    corpus = work.corpus
    files = [[file.sha256, reading_key(corpus.reader, file.path)] for file in corpus.files]
    sides = {
        side: [
            tokenizer.fingerprint,
            tokenizer.prefix,
            tokenizer.start_id,
            tokenizer.end_id,
            work.limits.get(side),
        ]
        for side, tokenizer in work.tokenizers.items()
    }
    for side, tokenizer in work.tokenizers.items():
        if tokenizer.turns:
            sides[side].append(tokenizer.turns)
    text = json.dumps([FORMAT, shard, files, sides, work.joined], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _features(tokenizers: Iterable[str], corpus: Corpus) -> Any:
    ids = {s: tfds.features.Tensor(shape=(None,), dtype=np.dtype(np.int32)) for s in tokenizers}
    return tfds.features.FeaturesDict(
        {field: tfds.features.Text() for field in corpus.reader.fields} | ids
    )


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Locks a folder to one process, also across hosts that share the file system.

    The lock is released if the process is killed.
    """
    path = folder.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise cache_fault(folder, error) from error


def _fault(folder: Path) -> str | None:
    """What is wrong with a prepared folder; None if it is complete and intact."""
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        check = meta.pop("check")
        if meta["key"] != folder.name:
            return "was prepared from another corpus"
        if check != _checksum(meta):
            return "meta.json is damaged"
        damaged = (name for name, crc in meta["files"].items() if _crc(folder / name) != crc)
        return next((f"{name} is damaged" for name in damaged), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "is incomplete"


def _checksum(meta: Mapping[str, object]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _crc(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _prepare(folder: Path, work: _Work, shard: int) -> None:
    _remove(folder)  # damaged
    _remove_abandoned(folder.parent)
    part = folder.with_suffix(".part")
    (part / "shards").mkdir(parents=True, exist_ok=True)
    try:
        _write_shards(part, work, shard)
        _finish(part, work, folder.name)
        _check_unchanged(work.corpus)
    except DataError:
        shutil.rmtree(part)
        raise
    except (OSError, RuntimeError) as error:  # a full disk; array_record raises the latter
        shutil.rmtree(part, ignore_errors=True)
        raise cache_fault(part, error) from error
    part.rename(folder)
    shutil.rmtree(folder / "shards", ignore_errors=True)


def _check_unchanged(corpus: Corpus) -> None:
    """Raises DataError if a file no longer matches its digest in the cache key."""
    for file in corpus.files:
        if not file.path.startswith(PUBLIC) and sha256(file.path) != file.sha256:
            raise DataError(f"{file.path}: changed while it was being read; start again")


def _remove_abandoned(prepared: Path) -> None:
    for part in prepared.glob("*.part"):
        with contextlib.suppress(OSError), part.with_suffix(".lock").open("w") as file:
            newest = max(path.stat().st_mtime for path in (part, part / "shards"))
            if time.time() - newest > _ABANDONED_S:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: in use
                shutil.rmtree(part)


def _write_shards(part: Path, work: _Work, shard: int) -> None:
    for stale in part.rglob("*.tmp"):
        stale.unlink()
    total = -(-work.corpus.documents // shard)
    with Progress(f"preparing {work.corpus}", work.corpus.documents) as progress:
        by_shard = itertools.groupby(
            work.corpus.examples(), lambda located: located.document // shard
        )
        for k, examples in by_shard:
            path = part / f"{NAME}-{SPLIT}.array_record-{k:05d}-of-{total:05d}"
            columns = part / "shards" / f"{k:05d}.npz"
            if _finished(path, columns):
                progress.skip(min(shard, work.corpus.documents - k * shard))
                continue
            temporary = path.with_name(f"{path.name}.tmp")
            values, facts = _write_shard(temporary, examples, work, progress)
            with columns.with_suffix(".tmp").open("wb") as file:
                np.savez(file, **values)  # pyright: ignore[reportArgumentType]
            os.replace(file.name, columns)
            facts["crc"] = [_crc(temporary), _crc(columns)]
            write_whole(columns.with_suffix(".json"), json.dumps(facts))
            os.replace(temporary, path)  # last, as this marks the shard as finished


def _finished(path: Path, columns: Path) -> bool:
    """Whether an earlier attempt wrote this shard and it is still intact."""
    try:
        facts = json.loads(columns.with_suffix(".json").read_bytes())
        return facts["crc"] == [_crc(path), _crc(columns)]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_shard(
    path: Path, examples: Iterable[Located], work: _Work, progress: Progress
) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Writes one shard; returns its columns and the facts to sum over shards."""
    columns = {name: array(code) for name, code in work.columns.items()}
    dropped: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    written = 0
    writer = ArrayRecordWriter(str(path), _OPTIONS)
    try:
        for chunk in _chunks(examples):
            kept, sides, faults = _encode(chunk, work)
            dropped.update(faults)
            texts = [located.example.text for located in kept]
            sources = [located.example.source for located in kept]
            for side, encoded in sides.items():
                spelt = texts_of(side, texts, sources, work.joined)
                unknown[side] += unknown_tokens(encoded, work.tokenizers[side], spelt)
                columns[f"{side}_length"].extend(encoded.lengths.tolist())
            for i, located in enumerate(kept):
                columns["words"].append(len(located.example.text.split()))
                columns["chars"].append(len(located.example.text))
                columns["line_no"].append(located.line)
                columns["file_no"].append(located.file)
                columns["document"].append(located.document)
                spelt = {name: getattr(located.example, name) for name in work.corpus.reader.fields}
                tokens = {side: encoded.tokens(i) for side, encoded in sides.items()}
                record = _record(spelt | tokens)
                writer.write(record)
                written += len(record)
            progress.add(chunk[-1].document - chunk[0].document + 1)
    finally:
        writer.close()
    facts: dict[str, object] = {
        "examples": len(columns["words"]),
        "bytes": written,
        "dropped": dict(dropped),
        "unknown": dict(unknown),
    }
    return {name: np.array(column) for name, column in columns.items()}, facts


def _record(values: Mapping[str, str | np.ndarray]) -> bytes:
    """Serialises an example as TFDS reads it.

    The field order of TFDS's own `serialize_example` depends on the process's hash seed.
    """
    proto, fields = tf_feature_pb2, {}
    for name, value in values.items():
        if isinstance(value, str):
            values_list = {"bytes_list": proto.BytesList(value=[value.encode()])}
        else:
            values_list = {"int64_list": proto.Int64List(value=value.tolist())}
        fields[name] = proto.Feature(**values_list)
    features = proto.Features(feature=fields)
    example = tf_example_pb2.Example(features=features)  # pyright: ignore[reportAttributeAccessIssue]
    return example.SerializeToString(deterministic=True)


def _chunks(examples: Iterable[Located]) -> Iterator[list[Located]]:
    chunk, chars = [], 0
    for located in examples:
        chunk.append(located)
        chars += len(located.example.text) + len(located.example.source)
        if len(chunk) == _CHUNK or chars >= _CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def _encode(chunk: list[Located], work: _Work) -> tuple[list[Located], dict, Counter[str]]:
    sides, faults = _encode_texts(chunk, work)
    if faults and work.corpus.reader.on_error == "raise":
        i = min(faults)
        where = f"{work.corpus.files[chunk[i].file].path}:{chunk[i].line}"
        if faults[i].reason != TOO_LONG:
            raise bad_line(where, faults[i])
        lines = sum(file.lines for file in work.corpus.files)
        raise too_long(where, faults[i], _count_long(work), lines, positions=True)
    if faults:
        good = np.array([i for i in range(len(chunk)) if i not in faults], np.int64)
        sides = {side: encoded.take(good) for side, encoded in sides.items()}
        chunk = [chunk[i] for i in good]
    return chunk, sides, Counter(fault.reason for fault in faults.values())


def _encode_texts(
    chunk: list[Located], work: _Work
) -> tuple[dict[str, Encoded], dict[int, BadLine]]:
    texts = [located.example.text for located in chunk]
    by_side = {"enc": texts, "dec": texts, "cond": [located.example.source for located in chunk]}
    return encode(by_side, work.tokenizers, work.limits, work.joined)


def _count_long(work: _Work) -> int:
    """Number of corpus lines with more tokens than the model has positions."""
    long: set[tuple[int, int]] = set()
    with Progress("counting lines that are too long", work.corpus.documents) as progress:
        for chunk in _chunks(work.corpus.examples()):
            _, faults = _encode_texts(chunk, work)
            over = (chunk[i] for i, fault in faults.items() if fault.reason == TOO_LONG)
            long.update((located.file, located.line) for located in over)
            progress.add(chunk[-1].document - chunk[0].document + 1)
    return len(long)


def _finish(part: Path, work: _Work, key: str) -> None:
    """Writes the files that need all shards: columns, sums and TFDS metadata."""
    facts = [json.loads(file.read_text()) for file in sorted((part / "shards").glob("*.json"))]
    examples = sum(shard["examples"] for shard in facts)
    sums = {
        key: dict(sum((Counter(shard[key]) for shard in facts), Counter()))
        for key in ("dropped", "unknown")
    }
    if not examples:
        raise DataError(
            f"{work.corpus}: no line is left ({sums['dropped']}); check the row lengths"
        )
    (part / "columns").mkdir(exist_ok=True)
    for name, code in work.columns.items():
        path = part / "columns" / f"{name}.npy"
        column = np.lib.format.open_memmap(path, "w+", np.dtype(code), (examples,))
        first = 0
        for file in sorted((part / "shards").glob("*.npz")):
            with np.load(file) as stored:
                values = stored[name]
            column[first : first + len(values)] = values
            first += len(values)
        column.flush()
        del column
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=[shard["examples"] for shard in facts],
        num_bytes=sum(shard["bytes"] for shard in facts),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=part,
        features=work.features,
        split_infos=[split],
        version="1.0.0",
        filename_template=_TEMPLATE,
        check_data=False,  # reads with TensorFlow
    )
    shards = [path for path in sorted(part.iterdir()) if ".array_record-" in path.name]
    crcs = {path.name: shard["crc"][0] for path, shard in zip(shards, facts, strict=True)}
    for path in [*part.iterdir(), *(part / "columns").iterdir()]:
        if path.is_file() and path.name not in (*crcs, "meta.json"):
            crcs[str(path.relative_to(part))] = _crc(path)
    meta = sums | {"examples": examples, "key": key, "files": dict(sorted(crcs.items()))}
    write_whole(part / "meta.json", json.dumps(meta | {"check": _checksum(meta)}))


def _open(folder: Path, work: _Work, notes: list[str]) -> Dataset:
    corpus, sides = work.corpus, tuple(work.tokenizers)
    meta = json.loads((folder / "meta.json").read_text())
    all_records = Records(folder, sides)
    records = all_records
    if corpus.keep_d is not None:
        ids = np.flatnonzero(corpus.keep_d[all_records.column("document")]).astype(np.int32)
        records = Records(folder, sides, ids)
    count = len(records.column("words"))
    names = [file.path for file in corpus.files]
    if not count:
        raise DataError(f"{corpus}: no line is left ({meta['dropped']}); check the row lengths")
    texts = {name: StoredTexts(records, name, count) for name in corpus.reader.fields}
    dropped = dict(Counter(corpus.dropped) + Counter(meta["dropped"]))
    lines = Lines(
        text=texts["text"],
        line_no=records.column("line_no"),
        file_no=records.column("file_no"),
        files=corpus.files,
        dropped=dropped,
        source=texts.get("source"),
        label=texts.get("label"),
    )
    lost = drop_warning(corpus.files, dropped, meta["examples"])
    notes += [lost] if lost else []
    for side, tokenizer in work.tokenizers.items():
        tokens = int(all_records.column(f"{side}_length").sum())
        unknown = meta["unknown"].get(side, 0)
        if note := unknown_note(unknown, tokens, meta["examples"], tokenizer, names):
            notes.append(note)
    stored = {side: StoredSide(records, side) for side in sides}
    return Dataset(
        lines=lines,
        dec=stored["dec"],
        enc=stored.get("enc"),
        cond=stored.get("cond"),
        pad={side: tokenizer.pad_id for side, tokenizer in work.tokenizers.items()},
        words_e=records.column("words"),
        chars_e=records.column("chars"),
        notes=tuple(notes),
        joined=work.joined,
        records=records,
    )
