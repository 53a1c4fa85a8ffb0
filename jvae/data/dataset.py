"""A tokenised split and its batches: an endless, resumable stream, or one pass for evaluation."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, SupportsInt

import grain
import jax
import numpy as np
from absl import flags

from jvae.api import Batch
from jvae.data import plan as planning
from jvae.data.encode import encode, texts_of, unknown_note, unknown_tokens
from jvae.data.prefetch import Prefetch
from jvae.data.records import Records, StoredSide
from jvae.data.rows import Encoded, pack_rows
from jvae.data.sources import Lines, bad_line, check_on_error
from jvae.data.tokenizers import TextTokenizer
from jvae.errors import ConfigError, DataError

Position = tuple[int, int]  # (block, row) of the next batch; see `jvae.data.plan`


@dataclass(frozen=True)
class RowSpec:
    """Row settings from config section `data`; a side whose row length is None is not read."""

    dec_row: int
    enc_row: int | None = None
    cond_row: int | None = None
    slots: int = 1
    batch_rows: int = 32  # rows per global batch
    packing: str = (
        "pack"  # 'pack': several examples per row; 'bucket': one, grouped by similar length
    )
    buckets: int = 4  # maximum number of row lengths with 'bucket'
    window: int = 128  # examples that the packer chooses from
    seed: int = 0
    score_end: bool = True  # False: end tokens are read but never scored

    def __post_init__(self) -> None:
        if self.packing not in ("pack", "bucket"):
            raise ConfigError(f"data.packing={self.packing!r}: expected 'pack' or 'bucket'")
        if self.packing == "bucket" and self.slots != 1:
            raise ConfigError(f"data.slots={self.slots}: expected 1 with data.packing=bucket")
        for key in ("dec_row", "enc_row", "cond_row", "slots", "batch_rows", "buckets", "window"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"data.{key}={value}: expected 1 or more")

    @property
    def row(self) -> dict[str, int]:
        """Row length of each side that is read."""
        lengths = {"enc": self.enc_row, "dec": self.dec_row, "cond": self.cond_row}
        return {side: value for side, value in lengths.items() if value is not None}


class Counts(NamedTuple):
    """Denominators of the likelihood metrics, summed over sentences; end tokens do not count."""

    sentences: int
    words: int  # whitespace words
    chars: int  # Unicode code points
    tokens: int  # native tokens of the decoder's tokenizer


@dataclass(frozen=True)
class Dataset:
    """One tokenised split. Example i is sentence i of `lines` on every side.

    Tokens and texts are in memory (`make_dataset`) or in prepared files (`prepare.prepare`).
    """

    lines: Lines
    dec: Encoded | StoredSide
    enc: Encoded | StoredSide | None
    cond: Encoded | StoredSide | None
    pad: dict[str, int]
    words_e: np.ndarray
    chars_e: np.ndarray
    notes: tuple[str, ...]  # warnings for the log
    joined: tuple[str, ...] = ()  # sides whose examples are prefixed with their tokens of `cond`
    records: Records | None = None  # storage of the tokens; None: in memory

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def texts(self) -> Sequence[str]:
        """The raw sentences."""
        return self.lines.text

    @property
    def labels(self) -> Sequence[str] | None:
        """Label of each sentence; None if labels were not read."""
        return self.lines.label

    @property
    def sides(self) -> dict[str, Encoded | StoredSide]:
        """The sides of this data set, by name."""
        named = {"enc": self.enc, "dec": self.dec, "cond": self.cond}
        return {name: side for name, side in named.items() if side is not None}

    @property
    def take(self) -> Callable[[np.ndarray], dict[str, Encoded]]:
        """A function that returns the tokens of given examples on every side.

        It holds no texts, so it is cheap to send to a worker process.
        """
        return partial(_take, self.sides) if self.records is None else self.records.take

    @property
    def target_lengths(self) -> np.ndarray:
        """Scored tokens per example: its tokens of `dec` after the start id or the source."""
        if "dec" in self.joined and self.cond is not None:
            return self.dec.lengths - self.cond.lengths
        return self.dec.lengths - 1

    def counts(self, ids: np.ndarray | None = None) -> Counts:
        """Counts over the examples `ids`; by default over all."""
        e = np.arange(len(self)) if ids is None else np.asarray(ids)
        tokens = self.target_lengths[e].sum() - len(e)
        return Counts(len(e), int(self.words_e[e].sum()), int(self.chars_e[e].sum()), int(tokens))


def _take(sides: dict[str, Encoded | StoredSide], ids: np.ndarray) -> dict[str, Encoded]:
    return {name: side.take(ids) for name, side in sides.items()}


def make_dataset(
    lines: Lines,
    dec: TextTokenizer,
    enc: TextTokenizer | None = None,
    cond: TextTokenizer | None = None,
    *,
    sources: Sequence[str] | None = None,
    limits: dict[str, int] | None = None,
    joined: Sequence[str] = (),
    on_error: str = "raise",
    cache: Path | None = None,
) -> Dataset:
    """Tokenises sentences in memory for every side.

    Args:
      dec, enc, cond: tokenizer of each side.
      sources: texts of the `cond` side, one per line; required with `cond`.
      limits: maximum tokens per example and side, including special tokens: the row length.
      joined: sides that have the source in front of the text, see `encode`.
      on_error: 'raise' stops at the first line that cannot be tokenised or exceeds a limit; 'drop'
        leaves such lines out and counts them by reason.
      cache: folder that keeps the tokens for later calls.
    Raises: DataError naming file:line with 'raise', or if no line is left.
    """
    check_on_error(on_error)
    if (cond is None) != (sources is None) or (sources and len(sources) != len(lines)):
        raise ValueError("a cond tokenizer needs one source text for each line, and vice versa")
    by_side = {"dec": dec, "enc": enc, "cond": cond}
    tokenizers = {side: tokenizer for side, tokenizer in by_side.items() if tokenizer is not None}
    texts = {"dec": lines.text, "enc": lines.text, "cond": sources or ()}
    sides, faults = encode(texts, tokenizers, limits or {}, joined, cache)
    if faults and on_error == "raise":
        i = min(faults)
        raise bad_line(lines.where(i), faults[i])
    names = [file.path for file in lines.files]
    dropped = Counter(fault.reason for fault in faults.values())
    keep_e = np.ones(len(lines), bool)
    keep_e[list(faults)] = False
    if not keep_e.any():
        raise DataError(
            f"{', '.join(names)}: no line is left ({dict(dropped)}); check the row lengths"
        )
    if faults:
        sides = {side: encoded.take(np.flatnonzero(keep_e)) for side, encoded in sides.items()}
        lines = lines.keep(keep_e, dropped)
        sources = [source for source, keep in zip(sources or (), keep_e, strict=False) if keep]
    notes = [] if lines.warning is None else [lines.warning]
    for side, tokenizer in tokenizers.items():
        spelt = texts_of(side, lines.text, sources or (), joined)
        unknown = unknown_tokens(sides[side], tokenizer, spelt)
        if note := unknown_note(unknown, len(sides[side].flat), len(lines), tokenizer, names):
            notes.append(note)
    return Dataset(
        lines=lines,
        dec=sides["dec"],
        enc=sides.get("enc"),
        cond=sides.get("cond"),
        pad={side: tokenizer.pad_id for side, tokenizer in tokenizers.items()},
        words_e=np.array([len(text.split()) for text in lines.text], np.int64),
        chars_e=np.array([len(text) for text in lines.text], np.int64),
        notes=tuple(notes),
        joined=tuple(joined),
    )


class BlockRows(NamedTuple):
    """The rows of one block. Batch k is rows [k * batch_rows, (k + 1) * batch_rows)."""

    ids_rs: np.ndarray  # (rows, slots) int32 example ids, -1 at empty slots
    row: tuple[dict[str, int], ...]  # row lengths: one entry for all batches, or one per batch
    fill: dict[str, float]  # packing efficiency per side, tokens / capacity
    slot_fill: float


def block_rows(
    dataset: Dataset,
    spec: RowSpec,
    block: int = 0,
    *,
    shuffle: bool = True,
    ids: np.ndarray | None = None,
) -> BlockRows:
    """Plans one block, identically on every process. `ids` restricts epochs to some examples."""
    if missing := sorted(set(spec.row) ^ set(dataset.sides)):
        raise ConfigError(
            f"data.{missing[0]}_row: row lengths are set for {sorted(spec.row)}, "
            f"but the data has {sorted(dataset.sides)}; set exactly those"
        )
    all_lengths = {side: dataset.sides[side].lengths for side in spec.row}
    lengths = (
        all_lengths if ids is None else {side: values[ids] for side, values in all_lengths.items()}
    )
    if spec.packing == "pack":
        packed = planning.plan_block(
            lengths,
            spec.row,
            spec.slots,
            spec.seed,
            block,
            window=spec.window,
            shuffle=shuffle,
        )
        rows, row, fill, slot_fill = packed.rows, (spec.row,), packed.fill, packed.slot_fill
    else:
        # Use the lengths of all examples, so that evaluating a subset needs no recompilation.
        buckets = planning.bucket_lengths(all_lengths, spec.row, spec.buckets)
        batches = planning.bucket_block(
            lengths, buckets, spec.batch_rows, spec.seed, block, shuffle=shuffle
        )
        row = tuple({side: buckets[side][b] for side in spec.row} for b, _ in batches)
        rows = np.concatenate([batch for _, batch in batches])[:, None]
        places = {side: spec.batch_rows * sum(bucket[side] for bucket in row) for side in spec.row}
        used = rows[rows >= 0]
        fill = {side: float(lengths[side][used].sum() / places[side]) for side in spec.row}
        slot_fill = float((rows >= 0).mean())
    if ids is not None:
        rows = np.where(rows >= 0, np.asarray(ids)[np.maximum(rows, 0)], -1).astype(np.int32)
    return BlockRows(rows, row, fill, slot_fill)


def batches(
    dataset: Dataset,
    spec: RowSpec,
    start: Position = (0, 0),
    *,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 4,
    workers: int = 0,
) -> Prefetch[tuple[Batch, Position]]:
    """Endless training batches, each with the position at which to resume after it.

    The position is the entire state and does not depend on the number of processes or workers.

    Args:
      prefetch: number of batches prepared in advance.
      workers: Grain worker processes; 0 uses a thread of this process. Workers restart with every
        block, which takes 2 to 3 s.
    Yields: (Batch of NumPy arrays, (block, row)). Each process gets its contiguous part of a global
      batch of `spec.batch_rows` rows. A block's last batch is padded with empty rows, so shapes are
      static.
    Raises: DataError if `start` is not within its block.
    """
    _check_processes(spec, process_index, process_count)

    def stream() -> Iterator[tuple[Batch, Position]]:
        block, first = start
        while True:
            plan = block_rows(dataset, spec, block)
            end = len(plan.ids_rs)
            aligned = spec.packing == "pack" or first % spec.batch_rows == 0
            if not 0 <= first < end or not aligned:
                raise DataError(
                    f"cannot resume at row {first} of block {block}, which has {end} "
                    "rows: the data or the settings of the rows have changed"
                )
            part = _Part.of(dataset, spec, plan, process_index, process_count)
            block_batches = _in_order(
                grain.MapDataset.range(first, end, spec.batch_rows).map(part), workers
            )
            for batch in block_batches:
                first += spec.batch_rows
                yield batch, ((block + 1, 0) if first >= end else (block, first))
            block, first = block + 1, 0

    return Prefetch(stream, prefetch)


def _in_order(rows: grain.MapDataset, workers: int) -> Iterator[Batch]:
    """The batches of a block, in an order that does not depend on the number of workers."""
    if workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read flags
    # Grain's own threads are turned off, as `Prefetch` already runs in a thread.
    pipeline = rows.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    if workers:
        pipeline = pipeline.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    iterator = iter(pipeline)
    try:
        for batch in iterator:
            # Copied out of the memory shared with a worker, to free that memory at once.
            yield jax.tree.map(np.array, batch) if workers else batch
    finally:
        iterator.close()


def eval_batches(
    dataset: Dataset,
    spec: RowSpec,
    ids: np.ndarray | None = None,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """One pass over the examples `ids` (all by default), in order as far as packing allows.

    Every process gets the same number of batches; `id_e` identifies the examples of a batch.
    """
    _check_processes(spec, process_index, process_count)
    for block in range(planning.blocks_of(len(dataset) if ids is None else len(ids))):
        plan = block_rows(dataset, spec, block, shuffle=False, ids=ids)
        part = _Part.of(dataset, spec, plan, process_index, process_count)
        for first in range(0, len(plan.ids_rs), spec.batch_rows):
            yield part(first)


def _check_processes(spec: RowSpec, index: int, count: int) -> None:
    if spec.batch_rows % count:
        raise ConfigError(
            f"data.batch_rows={spec.batch_rows}: expected a multiple of the {count} processes"
        )
    if not 0 <= index < count:
        raise ValueError(f"process {index} of {count}")


@dataclass(frozen=True)
class _Part:
    """Makes one process's part of a global batch; can be sent to a worker process."""

    take: Callable[[np.ndarray], dict[str, Encoded]]
    spec: RowSpec
    plan: BlockRows
    pad: dict[str, int]
    source_first: bool
    index: int
    count: int

    @classmethod
    def of(
        cls, dataset: Dataset, spec: RowSpec, plan: BlockRows, index: int, count: int
    ) -> "_Part":
        source_first = "dec" in dataset.joined
        return cls(dataset.take, spec, plan, dataset.pad, source_first, index, count)

    def __call__(self, first: SupportsInt) -> Batch:
        spec, plan, first = self.spec, self.plan, int(first)
        share = spec.batch_rows // self.count
        begin = first + self.index * share
        ids_bs = np.full((share, plan.ids_rs.shape[1]), -1, np.int32)
        rows = plan.ids_rs[begin : min(begin + share, first + spec.batch_rows)]
        ids_bs[: len(rows)] = rows
        row = plan.row[0] if len(plan.row) == 1 else plan.row[first // spec.batch_rows]
        used_bs = ids_bs >= 0
        place_bs = np.full_like(ids_bs, -1)
        place_bs[used_bs] = np.arange(used_bs.sum(), dtype=np.int32)
        sides = self.take(ids_bs[used_bs])
        batch = pack_rows(place_bs, sides, row, self.pad, spec.score_end, self.source_first)
        return batch._replace(id_e=ids_bs.reshape(-1))
