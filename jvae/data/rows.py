"""Lays out encoded sentences in arrays of packed rows."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from jvae.api import Batch, Side


class Encoded(NamedTuple):
    """Token ids of many examples, with special tokens; i is `flat[offset[i]:offset[i + 1]]`."""

    flat: np.ndarray  # (tokens,) int32
    offset: np.ndarray  # (examples + 1,) int64
    types: np.ndarray | None = None  # (tokens,) token types, such as 0 and 1 for sentence pairs

    @classmethod
    def of(cls, examples: Sequence[np.ndarray]) -> "Encoded":
        """Concatenates examples."""
        offset = np.zeros(len(examples) + 1, np.int64)
        np.cumsum([len(tokens) for tokens in examples], out=offset[1:])
        flat = np.concatenate(examples) if examples else np.zeros(0)
        return cls(flat.astype(np.int32, copy=False), offset)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, (examples,) int64."""
        return np.diff(self.offset)

    def tokens(self, i: int) -> np.ndarray:
        """Token ids of example i."""
        return self.flat[self.offset[i] : self.offset[i + 1]]

    def take(self, ids: np.ndarray) -> "Encoded":
        """The examples `ids` (int), in that order."""
        subset = Encoded.of([self.tokens(i) for i in ids])
        if self.types is None:
            return subset
        spans = [self.types[self.offset[i] : self.offset[i + 1]] for i in ids]
        return subset._replace(types=np.concatenate(spans) if spans else self.types[:0])


def pack_rows(
    ids_bs: Int32[np.ndarray, "b s"],
    sides: Mapping[str, Encoded | None],
    row: Mapping[str, int],
    pad: Mapping[str, int],
    score_end: bool = True,
    source_first: bool = False,
) -> Batch:
    """Lays out planned examples in rows; a slot is the same segment on every side.

    Args:
      ids_bs: example of every slot, -1 if empty.
      sides: 'dec' and, if the model reads them, 'enc' and 'cond'.
      row: row length in tokens, per side.
      pad: padding id, per side.
      score_end: whether the last token of an example is scored.
      source_first: whether each example of `dec` is prefixed with its tokens of `cond`.
    Returns: a Batch of NumPy arrays. All tokens of `dec` are scored except the source (or, without
      a source, the first token of each example) and, unless `score_end`, the last token.
    Raises: ValueError if the examples of a row exceed its length on some side.
    """
    packed = {
        name: _pack_side(name, ids_bs, side, row[name], pad[name])
        for name, side in sides.items()
        if side is not None
    }
    dec = packed["dec"]
    prefix_bs = np.ones(ids_bs.shape, np.int64)
    if source_first:
        source = sides["cond"]
        assert source is not None
        prefix_bs = _lengths(source, ids_bs)
    prefix_bt = np.take_along_axis(prefix_bs, np.maximum(dec.segment_bt - 1, 0), axis=1)
    scored_bt = (dec.segment_bt > 0) & (dec.position_bt >= prefix_bt)
    if not score_end:
        next_bt = np.pad(dec.segment_bt[:, 1:], ((0, 0), (0, 1)))
        scored_bt = scored_bt & (next_bt == dec.segment_bt)
    return Batch(
        enc=packed.get("enc"),
        dec=dec,
        cond=packed.get("cond"),
        scored_bt=scored_bt,
        id_e=np.ascontiguousarray(ids_bs.reshape(-1), np.int32),  # pyright: ignore[reportArgumentType]
    )


def _pack_side(name: str, ids_bs: np.ndarray, side: Encoded, row: int, pad: int) -> Side:
    rows, slots = ids_bs.shape
    start_bs = side.offset[np.maximum(ids_bs, 0)]
    length_bs = _lengths(side, ids_bs)
    end_bs = np.cumsum(length_bs, axis=1)
    if rows and end_bs[:, -1].max() > row:
        worst = int(end_bs[:, -1].argmax())
        raise ValueError(
            f"row {worst} of side '{name}' holds {end_bs[worst, -1]} tokens, over its {row}"
        )
    length_e = length_bs.reshape(-1)
    within = np.arange(length_e.sum()) - np.repeat(np.cumsum(length_e) - length_e, length_e)
    first_e = (end_bs - length_bs + row * np.arange(rows)[:, None]).reshape(-1)
    place = np.repeat(first_e, length_e) + within
    token_bt = np.full((rows, row), pad, np.int32)
    segment_bt = np.zeros((rows, row), np.int32)
    position_bt = np.zeros((rows, row), np.int32)
    token_bt.reshape(-1)[place] = side.flat[np.repeat(start_bs.reshape(-1), length_e) + within]
    segment_bt.reshape(-1)[place] = np.repeat(np.tile(np.arange(1, slots + 1), rows), length_e)
    position_bt.reshape(-1)[place] = within
    type_bt = None
    if side.types is not None:
        type_bt = np.zeros((rows, row), np.int32)
        source = np.repeat(start_bs.reshape(-1), length_e) + within
        type_bt.reshape(-1)[place] = side.types[source]
    return Side(token_bt, segment_bt, position_bt, type_bt)  # pyright: ignore[reportArgumentType]


def _lengths(side: Encoded, ids_bs: np.ndarray) -> np.ndarray:
    """Number of tokens of the example in every slot, 0 if empty."""
    safe_bs = np.maximum(ids_bs, 0)
    stop_bs = side.offset[np.minimum(safe_bs + 1, len(side.offset) - 1)]  # no example: all empty
    return np.where(ids_bs >= 0, stop_bs - side.offset[safe_bs], 0)
