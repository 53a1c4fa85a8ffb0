"""Assigns examples to rows: pure NumPy functions of (lengths, settings, seed, block).

An epoch is planned in blocks of `BLOCK` examples, so that time and memory before the first batch do
not grow with the corpus. Block numbers continue across epochs; for a corpus of up to `BLOCK`
examples, one block is one epoch. Plans do not depend on processes, workers or token values, so rows
are the same on any number of devices, and (block, row) is enough to resume.

Shuffles use a hash rather than a NumPy generator, whose stream may change between NumPy versions.
The packer uses integer arithmetic only, so a plan is the same on every machine.
"""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jvae.errors import DataError

FORMAT = 1  # increase when a change of the code changes rows or proposals
_UNIT = 1 << 20  # one full row in the packer's integer arithmetic
_NEVER = np.int64(1 << 60)
BLOCK = 1 << 19  # examples planned at once, in about 5 s


class RowPlan(NamedTuple):
    """The rows of one block and their packing efficiency, between 0 and 1."""

    rows: np.ndarray  # (rows, slots) int32: example of each slot, -1 if empty
    fill: dict[str, float]  # per side: tokens / capacity
    slot_fill: float  # examples / slots


class RowProposal(NamedTuple):
    """Row lengths and slots that suit a corpus, with the resulting packing efficiency."""

    row: dict[str, int]
    slots: int
    fill: dict[str, float]
    slot_fill: float

    def __str__(self) -> str:
        sides = ", ".join(
            f"data.{k}_row={v} (fill {self.fill[k]:.1%})" for k, v in self.row.items()
        )
        return f"{sides}, data.slots={self.slots} (fill {self.slot_fill:.1%})"


def shuffled(n: int, seed: int, epoch: int, use: str) -> np.ndarray:
    """A permutation of n indices (int64), determined by its arguments.

    `use` separates shuffles for different purposes. Source: argsort of SplitMix64 values, Steele,
    Lea & Flood 2014.
    """
    salt = hashlib.blake2b(f"{use}/{seed}/{epoch}".encode(), digest_size=8).digest()
    x = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x += np.frombuffer(salt, "<u8")
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")


def blocks_of(n: int) -> int:
    """Number of blocks in an epoch of n examples."""
    return max(-(-n // BLOCK), 1)


def _block_order(n: int, seed: int, block: int, shuffle: bool) -> np.ndarray:
    """The examples of a block, in the order in which they are planned."""
    epoch, k = divmod(block, blocks_of(n))
    begin, end = k * BLOCK, min((k + 1) * BLOCK, n)
    if not shuffle:
        return np.arange(begin, end)
    return shuffled(n, seed, epoch, "examples")[begin:end].copy()  # frees the epoch's permutation


def plan_block(
    lengths: Mapping[str, np.ndarray],
    row: Mapping[str, int],
    slots: int,
    seed: int = 0,
    block: int = 0,
    *,
    window: int = 128,
    shuffle: bool = True,
) -> RowPlan:
    """Packs every example of a block into exactly one row, on all sides at once.

    Rows are filled one after another from the next `window` examples. Each row starts with the
    example that has waited longest. The packer then adds the example that leaves all sides and the
    slots equally far from full; once about two more examples fit, it adds the one that leaves the
    least free space. Time is linear: about 10 us per example.

    Args:
      lengths: tokens of each example of the epoch, (examples,), per side.
      row: row length in tokens, per side.
      slots: maximum examples per row.
      window: examples to choose from. A larger window packs better and mixes the file order more.
      shuffle: False keeps the file order as far as packing allows, for evaluation.
    Raises: DataError if examples are longer than a row, with their number and indices; examples are
      never truncated.
    """
    check_lengths(lengths, row)
    order = _block_order(len(next(iter(lengths.values()))), seed, block, shuffle)
    need_ne = np.ones((len(row) + 1, len(order)), np.int64)
    for d, side in enumerate(row):
        need_ne[d] = lengths[side][order]
    capacity = np.array([*row.values(), slots], np.int64)
    rows = _pack(need_ne, capacity, window)
    ids = np.full((len(rows), slots), -1, np.int32)
    for r, members in enumerate(rows):
        chosen = np.asarray(members)
        ids[r, : len(members)] = order[chosen if shuffle else np.sort(chosen)]
    if shuffle:
        ids = ids[shuffled(len(ids), seed, block, "rows")]
    places = np.maximum(len(rows), 1) * capacity
    fill = need_ne.sum(axis=1) / places
    return RowPlan(ids, dict(zip(row, fill.tolist(), strict=False)), float(fill[-1]))


def _pack(need_dn: np.ndarray, capacity: np.ndarray, window: int) -> list[array]:
    """Indices of the examples in each row. Axis d runs over the sides and, last, the slots."""
    n = need_dn.shape[1]
    if n == 0:
        return []
    # Even use: amount of each side per row if all rows were equal and the scarcest side full.
    total = need_dn.sum(axis=1)
    fewest_rows = (total / capacity).max()
    unit_d = np.maximum(_UNIT * fewest_rows // np.maximum(total, 1), 1).astype(np.int64)
    spare_d = np.maximum(capacity - np.ceil(total / fewest_rows).astype(np.int64), 0) * unit_d
    endgame = int(2 * _UNIT * fewest_rows / n)  # space for about two more average examples
    need_dn = need_dn * unit_d[:, None]
    full_d = capacity * unit_d

    width = min(window, n)
    pool_dw = need_dn[:, :width].copy()
    index_w = np.arange(width)  # order of arrival; _NEVER once an entry stays vacant
    arriving = width
    rows: list[array] = []
    waiting = n
    while waiting:
        members = array("i")  # much smaller than a list of Python integers
        room_d = full_d
        pick = int(index_w.argmin())
        while True:
            members.append(int(index_w[pick]))
            room_d = room_d - pool_dw[:, pick]
            waiting -= 1
            if arriving < n:
                pool_dw[:, pick] = need_dn[:, arriving]
                index_w[pick] = arriving
                arriving += 1
            else:
                pool_dw[:, pick] = _NEVER
                index_w[pick] = _NEVER
            if not waiting:
                break
            left_dw = room_d[:, None] - pool_dw
            fits_w = left_dw.min(axis=0) >= 0
            gap_dw = left_dw - spare_d[:, None]
            score_w = gap_dw.max(axis=0)
            if (room_d - spare_d).min() > endgame:
                score_w = score_w + 4 * (score_w - gap_dw.min(axis=0))
            score_w[~fits_w] = _NEVER
            pick = int(score_w.argmin())
            if not fits_w[pick]:
                break
        rows.append(members)
    return rows


def propose_rows(
    lengths: Mapping[str, np.ndarray],
    tokens: int = 256,
    *,
    multiple: int = 8,
    sample: int = 8_000,
) -> RowProposal:
    """Proposes row lengths and slots that pack well, by packing a sample of the corpus.

    Args:
      lengths: tokens of each example, per side.
      tokens: approximate row length of the longest side; increased if an example needs it.
      multiple: row lengths are multiples of this.
      sample: number of examples on which candidates are tried.
    """
    n = len(next(iter(lengths.values())))
    mean = {side: max(float(np.mean(x)), 1.0) for side, x in lengths.items()}
    longest = {side: int(np.max(x)) for side, x in lengths.items()}
    examples = max([tokens / max(mean.values())] + [longest[side] / mean[side] for side in lengths])
    chosen = shuffled(n, 0, 0, "propose")[:sample]
    subset = {side: np.asarray(x)[chosen] for side, x in lengths.items()}
    best: RowProposal | None = None
    for slots in range(max(1, int(examples)), int(examples) + 3):
        for margin in (1.0, 1.02):
            row = {
                side: -(-int(max(slots * mean[side] * margin, longest[side])) // multiple)
                * multiple
                for side in lengths
            }
            plan = plan_block(subset, row, slots)
            trial = RowProposal(row, slots, plan.fill, plan.slot_fill)
            # Rank by sides first, rounded so that slots break ties.
            rank = (round(min(trial.fill.values()), 2), trial.slot_fill)
            if best is None or rank > (round(min(best.fill.values()), 2), best.slot_fill):
                best = trial
    assert best is not None
    return best


def bucket_lengths(
    lengths: Mapping[str, np.ndarray], row: Mapping[str, int], count: int = 4, *, multiple: int = 8
) -> dict[str, tuple[int, ...]]:
    """Row lengths of at most `count` buckets per side that minimise padding, each at most `row`.

    Lengths are multiples of `multiple`, capped at `row`. Uses dynamic programming over 64 levels.
    """
    check_lengths(lengths, row)
    levels = 64
    share_e = np.max([np.asarray(lengths[side]) / row[side] for side in row], axis=0)
    level_e = np.ceil(share_e * levels).astype(np.int64)
    sizes = {}
    for side, full in row.items():
        longest = np.zeros(levels + 1, np.int64)
        np.maximum.at(longest, level_e, lengths[side])
        sizes[side] = np.minimum(-(-np.maximum.accumulate(longest) // multiple) * multiple, full)
    size_j = np.sum(list(sizes.values()), axis=0)  # places of a row that holds levels up to j
    below_j = np.cumsum(np.bincount(level_e, minlength=levels + 1))
    # cost[j]: minimum capacity for levels up to j; cut[k][j]: start of its last bucket.
    cost, cuts = np.where(np.arange(levels + 1) == 0, 0.0, np.inf), []
    for _ in range(count):
        more_ij = cost[:, None] + np.maximum(below_j[None] - below_j[:, None], 0) * size_j[None]
        more_ij[np.tril_indices(levels + 1, -1)] = np.inf
        cuts.append(more_ij.argmin(axis=0))
        cost = more_ij.min(axis=0)
    ends, j = [], levels
    for cut in reversed(cuts):
        ends.append(j)
        j = int(cut[j])
    distinct = sorted(
        {tuple(int(sizes[side][j]) for side in row) for j in ends} - {(0,) * len(row)}
    )
    return {side: tuple(bucket[d] for bucket in distinct) for d, side in enumerate(row)}


def bucket_block(
    lengths: Mapping[str, np.ndarray],
    buckets: Mapping[str, Sequence[int]],
    batch_rows: int,
    seed: int = 0,
    block: int = 0,
    *,
    shuffle: bool = True,
) -> list[tuple[int, np.ndarray]]:
    """Plans one example per row, grouped by similar length; arguments as in `plan_block`.

    Returns: batches (bucket, ids (batch_rows,) int32), with -1 at empty rows of a bucket's last
      batch. All sides of a batch have the lengths `buckets[side][bucket]`.
    Raises: DataError if an example is longer than the last bucket.
    """
    check_lengths(lengths, {side: sizes[-1] for side, sizes in buckets.items()})
    order = _block_order(len(next(iter(lengths.values()))), seed, block, shuffle)
    need_e = np.max(
        [np.searchsorted(sizes, lengths[side][order]) for side, sizes in buckets.items()], axis=0
    )
    batches: list[tuple[int, np.ndarray]] = []
    for bucket in np.unique(need_e):
        members = order[need_e == bucket]
        for first in range(0, len(members), batch_rows):
            ids = np.full(batch_rows, -1, np.int32)
            part = members[first : first + batch_rows]
            ids[: len(part)] = part
            batches.append((int(bucket), ids))
    if shuffle:
        batches = [batches[i] for i in shuffled(len(batches), seed, block, "rows")]
    return batches


def check_lengths(lengths: Mapping[str, np.ndarray], row: Mapping[str, int]) -> None:
    """Raises DataError naming the examples that are longer than their row on some side."""
    for side, full in row.items():
        over = np.flatnonzero(np.asarray(lengths[side]) > full)
        if len(over):
            named = ", ".join(f"{i} ({lengths[side][i]} tokens)" for i in over[:5])
            raise DataError(
                f"{len(over)} examples do not fit a row of data.{side}_row={full} tokens: {named}"
                f"{', ...' if len(over) > 5 else ''}. "
                f"Raise data.{side}_row, or leave them out with data.on_error=drop"
            )
