"""A tokenised split and its batches: endless and resumable, or one ordered pass for evaluation."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jvae.api import Batch
from jvae.data import plan as planning
from jvae.data.prefetch import Prefetch
from jvae.data.rows import Encoded, pack_rows
from jvae.data.sources import BadLine, Lines, bad_line, check_on_error
from jvae.data.tokenizers import TextTokenizer
from jvae.errors import ConfigError, DataError

SIDES = ("enc", "dec", "cond")
UNKNOWN_WARNING = 0.01  # share of unknown tokens above which a run says so

Position = tuple[int, int]  # (epoch, row) of the next batch


@dataclass(frozen=True)
class RowSpec:
    """The values of config section `data` that decide the rows; a side without one is not read."""

    dec_row: int
    enc_row: int | None = None
    cond_row: int | None = None
    slots: int = 1
    batch_rows: int = 32  # rows of a global batch
    packing: str = (
        "pack"  # 'pack': several examples a row; 'bucket': one, with like lengths together
    )
    buckets: int = 4  # at most so many row lengths under 'bucket'
    window: int = 128  # examples the packer chooses from
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
    """Denominators of the likelihood metrics, summed over sentences, without their end tokens."""

    sentences: int
    words: int  # whitespace words
    chars: int  # Unicode code points
    tokens: int  # native tokens of the decoder's tokenizer


@dataclass(frozen=True)
class Dataset:
    """One split, tokenised once. Example i is sentence i of `lines` on every side."""

    lines: Lines
    dec: Encoded
    enc: Encoded | None
    cond: Encoded | None
    pad: dict[str, int]
    special_tokens: int  # of each example of `dec`
    words_e: np.ndarray
    chars_e: np.ndarray
    notes: tuple[str, ...]  # warnings for the log

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def texts(self) -> Sequence[str]:
        """The raw sentences."""
        return self.lines.text

    @property
    def sides(self) -> dict[str, Encoded]:
        """The sides there are, by name."""
        every = {"enc": self.enc, "dec": self.dec, "cond": self.cond}
        return {name: side for name, side in every.items() if side is not None}

    def counts(self, ids: np.ndarray | None = None) -> Counts:
        """Counts over the examples `ids`, all by default."""
        e = np.arange(len(self)) if ids is None else np.asarray(ids)
        tokens = self.dec.lengths[e].sum() - self.special_tokens * len(e)
        return Counts(len(e), int(self.words_e[e].sum()), int(self.chars_e[e].sum()), int(tokens))


def make_dataset(
    lines: Lines,
    dec: TextTokenizer,
    enc: TextTokenizer | None = None,
    cond: TextTokenizer | None = None,
    *,
    sources: Sequence[str] | None = None,
    limits: dict[str, int] | None = None,
    on_error: str = "raise",
) -> Dataset:
    """Tokenises a split for every side.

    Args:
      dec, enc, cond: tokenizer of each side.
      sources: texts of the `cond` side, one for each line; needed with `cond`.
      limits: most tokens of an example, special tokens included, per side: its row length.
      on_error: as in `read_lines`, for lines that cannot be tokenised or exceed a limit.
    Raises: DataError naming file:line under 'raise', or if no line is left.
    """
    check_on_error(on_error)
    tokenizers = {"dec": dec, "enc": enc, "cond": cond}
    texts = {"dec": lines.text, "enc": lines.text, "cond": sources}
    if (cond is None) != (sources is None) or (sources and len(sources) != len(lines)):
        raise ValueError("a cond tokenizer needs one source text for each line, and the reverse")
    sides: dict[str, Encoded] = {}
    keep_e = np.ones(len(lines), bool)
    dropped: Counter[str] = Counter()
    for side, tokenizer in tokenizers.items():
        if tokenizer is None:
            continue
        sides[side] = Encoded.of(tokenizer.encode_batch(texts[side] or ()))
        for i, fault in _faults(side, sides[side], tokenizer, (limits or {}).get(side)):
            if on_error == "raise":
                raise bad_line(lines.where(i), fault)
            if keep_e[i]:
                keep_e[i] = False
                dropped[fault.reason] += 1
    if not keep_e.any():
        names = ", ".join(one.path for one in lines.files)
        raise DataError(f"{names}: no line is left ({dict(dropped)}); check the row lengths")
    if not keep_e.all():
        sides = {side: encoded.take(np.flatnonzero(keep_e)) for side, encoded in sides.items()}
        lines = lines.keep(keep_e, dropped)
    notes = [] if lines.warning is None else [lines.warning]
    for side, encoded in sides.items():
        tokenizer = tokenizers[side]
        if tokenizer is not None and (note := _unknown_note(side, encoded, tokenizer, lines)):
            notes.append(note)
    return Dataset(
        lines=lines,
        dec=sides["dec"],
        enc=sides.get("enc"),
        cond=sides.get("cond"),
        pad={side: one.pad_id for side, one in tokenizers.items() if one is not None},
        special_tokens=_special_tokens(dec),
        words_e=np.array([len(text.split()) for text in lines.text], np.int64),
        chars_e=np.array([len(text) for text in lines.text], np.int64),
        notes=tuple(notes),
    )


def _special_tokens(tokenizer: TextTokenizer) -> int:
    return 1 if tokenizer.start_id is None else 2


def _faults(
    side: str, encoded: Encoded, tokenizer: TextTokenizer, limit: int | None
) -> Iterator[tuple[int, BadLine]]:
    """Examples that cannot be used: no tokens, a control token inside, or too many tokens."""
    special = _special_tokens(tokenizer)
    lengths = encoded.lengths
    control = np.isin(encoded.flat, tokenizer.control_ids)
    control_e = np.add.reduceat(control, encoded.offset[:-1]) if len(lengths) else lengths
    bare = lengths <= special
    spelt = control_e > special
    over = np.zeros(len(lengths), bool) if limit is None else lengths > limit
    for i in np.flatnonzero(bare | spelt | over).tolist():
        if bare[i]:
            yield i, BadLine("no tokens", f"gives no tokens with tokenizer {tokenizer.name}")
        elif spelt[i]:
            inside = encoded.tokens(i)[special - 1 : -1]
            token = tokenizer.backend.id_to_token(
                int(inside[np.isin(inside, tokenizer.control_ids)][0])
            )
            detail = f"spells the special token {token!r} of tokenizer {tokenizer.name}"
            yield i, BadLine("special token", detail)
        else:
            detail = (
                f"{lengths[i]} tokens with tokenizer {tokenizer.name}, "
                f"more than the {limit} that the model has positions for ({side} side)"
            )
            yield i, BadLine("too many tokens", detail)


def _unknown_note(
    side: str, encoded: Encoded, tokenizer: TextTokenizer, lines: Lines
) -> str | None:
    if tokenizer.unk_id is None:
        return None
    unknown = int((encoded.flat == tokenizer.unk_id).sum())
    # A corpus may spell the marker itself, which is not the tokenizer's doing.
    marker = tokenizer.backend.id_to_token(tokenizer.unk_id) or ""
    unknown -= sum(text.count(marker) for text in lines.text) if side != "cond" else 0
    share = unknown / max(len(encoded.flat) - _special_tokens(tokenizer) * len(lines), 1)
    if share <= UNKNOWN_WARNING:
        return None
    names = ", ".join(one.path for one in lines.files)
    return (
        f"{names}: {share:.1%} of the tokens are unknown to tokenizer {tokenizer.name} "
        f"({tokenizer.vocab_size} entries); use one that fits the text, or a larger vocabulary"
    )


class EpochRows(NamedTuple):
    """The rows of one epoch. Batch k is rows [k * batch_rows, (k + 1) * batch_rows)."""

    ids_rs: np.ndarray  # (rows, slots) int32 example ids, -1 where empty
    row: tuple[dict[str, int], ...]  # row lengths: one entry for all, or one for each batch
    fill: dict[str, float]  # tokens / places per side
    slot_fill: float


def epoch_rows(
    dataset: Dataset,
    spec: RowSpec,
    epoch: int = 0,
    *,
    shuffle: bool = True,
    ids: np.ndarray | None = None,
) -> EpochRows:
    """Plans one epoch: the same on every process. `ids` restricts it to some examples."""
    if missing := sorted(set(spec.row) ^ set(dataset.sides)):
        raise ConfigError(
            f"data.{missing[0]}_row: row lengths are set for {sorted(spec.row)}, "
            f"but the data has {sorted(dataset.sides)}; set exactly those"
        )
    chosen = np.arange(len(dataset)) if ids is None else np.asarray(ids)
    lengths = {side: dataset.sides[side].lengths[chosen] for side in spec.row}
    if spec.packing == "pack":
        packed = planning.plan_epoch(
            lengths,
            spec.row,
            spec.slots,
            spec.seed,
            epoch,
            window=spec.window,
            shuffle=shuffle,
        )
        rows, row, fill, slot_fill = packed.rows, (spec.row,), packed.fill, packed.slot_fill
    else:
        # From all lengths, so that evaluating a part of a split compiles nothing new.
        every = {side: dataset.sides[side].lengths for side in spec.row}
        buckets = planning.bucket_lengths(every, spec.row, spec.buckets)
        batches = planning.bucket_epoch(
            lengths, buckets, spec.batch_rows, spec.seed, epoch, shuffle=shuffle
        )
        row = tuple({side: buckets[side][b] for side in spec.row} for b, _ in batches)
        rows = np.concatenate([one for _, one in batches])[:, None]
        places = {side: spec.batch_rows * sum(one[side] for one in row) for side in spec.row}
        fill = {side: float(lengths[side].sum() / places[side]) for side in spec.row}
        slot_fill = float((rows >= 0).mean())
    rows = np.where(rows >= 0, chosen[np.maximum(rows, 0)], -1).astype(np.int32)
    return EpochRows(rows, row, fill, slot_fill)


def batches(
    dataset: Dataset,
    spec: RowSpec,
    start: Position = (0, 0),
    *,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 4,
) -> Prefetch[tuple[Batch, Position]]:
    """Training batches without end, each with the position to resume behind it.

    Yields: (Batch of NumPy arrays, (epoch, row)). Of each global batch of `spec.batch_rows` rows a
      process gets its
      contiguous part. An epoch's last batch is filled up with empty rows, so shapes are static.
    Raises: DataError if `start` does not lie within its epoch.
    """
    _check_processes(spec, process_index, process_count)

    def stream() -> Iterator[tuple[Batch, Position]]:
        epoch, first = start
        while True:
            plan = epoch_rows(dataset, spec, epoch)
            aligned = spec.packing == "pack" or first % spec.batch_rows == 0
            if not 0 <= first < len(plan.ids_rs) or not aligned:
                raise DataError(
                    f"cannot resume at row {first} of epoch {epoch}, which has {len(plan.ids_rs)} "
                    "rows: the data or the settings of the rows have changed"
                )
            while first < len(plan.ids_rs):
                batch = _batch(dataset, spec, plan, first, process_index, process_count)
                first += spec.batch_rows
                ends = first >= len(plan.ids_rs)
                yield batch, ((epoch + 1, 0) if ends else (epoch, first))
            epoch, first = epoch + 1, 0

    return Prefetch(stream, prefetch)


def eval_batches(
    dataset: Dataset,
    spec: RowSpec,
    ids: np.ndarray | None = None,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """One pass over the examples `ids` (all by default), in their order as far as packing allows.

    Every process gets the same number of batches; `id_e` tells which examples a batch holds.
    """
    _check_processes(spec, process_index, process_count)
    plan = epoch_rows(dataset, spec, shuffle=False, ids=ids)
    for first in range(0, len(plan.ids_rs), spec.batch_rows):
        yield _batch(dataset, spec, plan, first, process_index, process_count)


def _check_processes(spec: RowSpec, index: int, count: int) -> None:
    if spec.batch_rows % count:
        raise ConfigError(
            f"data.batch_rows={spec.batch_rows}: expected a multiple of the {count} processes"
        )
    if not 0 <= index < count:
        raise ValueError(f"process {index} of {count}")


def _batch(
    dataset: Dataset, spec: RowSpec, plan: EpochRows, first: int, index: int, count: int
) -> Batch:
    share = spec.batch_rows // count
    begin = first + index * share
    ids_bs = np.full((share, plan.ids_rs.shape[1]), -1, np.int32)
    part = plan.ids_rs[begin : min(begin + share, first + spec.batch_rows)]
    ids_bs[: len(part)] = part
    row = plan.row[0] if len(plan.row) == 1 else plan.row[first // spec.batch_rows]
    return pack_rows(ids_bs, dataset.sides, row, dataset.pad, spec.score_end)
