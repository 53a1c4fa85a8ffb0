"""Batches texts of any number and length into few shapes, to limit compilation.

A row holds one text. Row lengths are powers of two, and there are three batch sizes, so a text's
row does not depend on the other texts.
"""

import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jvae.api import Batch
from jvae.data.encode import encode, texts_of, unknown_note, unknown_tokens
from jvae.data.rows import Encoded, pack_rows
from jvae.data.tokenizers import TextTokenizer
from jvae.decode import DecodeConfig
from jvae.errors import DataError

log = logging.getLogger(__name__)

SHORTEST = 16  # length of the shortest rows, in tokens
SIZES = (8, 64, 512)  # rows per batch
TOKENS = 16_384  # maximum tokens per batch, padding included, unless one row has more


class Tokenised(NamedTuple):
    """Texts, tokenised for every side that the model reads."""

    sides: dict[str, Encoded]
    pad: dict[str, int]
    limits: Mapping[str, int]  # maximum tokens per example and side
    noise_e: np.ndarray  # (texts,) int32: the example id that keys each text's noise


def tokenise(
    texts: Sequence[str],
    sources: Sequence[str] | None,
    tokenizers: Mapping[str, TextTokenizer],
    limits: Mapping[str, int],
    joined: Sequence[str] = (),
) -> Tokenised:
    """Tokenises texts that `checks.listed` has returned.

    See `jvae.data.encode.encode` for the arguments.

    Raises: DataError naming the first text that is too long for the model.
    """
    spelt = {side: texts if side != "cond" else sources or () for side in tokenizers}
    sides, faults = encode(spelt, tokenizers, limits, joined)
    if faults:
        i = min(faults)
        raise DataError(f"sentence {i + 1}: {faults[i].detail}")
    for side, tokenizer in tokenizers.items():
        side_texts = texts_of(side, texts, sources or (), joined)
        unknown = unknown_tokens(sides[side], tokenizer, side_texts)
        tokens = len(sides[side].flat)
        if note := unknown_note(unknown, tokens, len(texts), tokenizer, ["sentences"]):
            log.warning("%s", note)
            break  # both sides would give the same message
    pairs = zip(texts, sources or [""] * len(texts), strict=True)
    noise = [zlib.crc32(f"{source}\0{text}".encode()) & 0x7FFFFFFF for text, source in pairs]
    pad = {side: tokenizer.pad_id for side, tokenizer in tokenizers.items()}
    return Tokenised(sides, pad, limits, np.array(noise, np.int32))


def truncate(
    texts: Sequence[str],
    sources: Sequence[str] | None,
    tokenizers: Mapping[str, TextTokenizer],
    limits: Mapping[str, int],
    joined: Sequence[str] = (),
) -> list[str]:
    """Truncates each text at a word boundary to the length limits of all sides.

    A text whose first word is too long is left unchanged, so that `tokenise` reports it.
    """

    def too_long(part: Sequence[str], at: Sequence[int]) -> set[int]:
        part_sources = [sources[i] for i in at] if sources else ()
        spelt = {side: part_sources if side == "cond" else part for side in tokenizers}
        return set(encode(spelt, tokenizers, limits, joined)[1])

    cut = list(texts)
    for i in sorted(too_long(texts, range(len(texts)))):
        words = texts[i].split(" ")
        low, high = 0, len(words)  # `low` words fit, `high` words do not
        while high - low > 1:
            middle = (low + high) // 2
            if too_long([" ".join(words[:middle])], [i]):
                high = middle
            else:
                low = middle
        if low:
            cut[i] = " ".join(words[:low])
    return cut


def batches(
    tokenised: Tokenised,
    *,
    source_first: bool = False,
    most: int = SIZES[-1],
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields every text once, shortest first, in batches of at most `most` rows.

    Each item is (indices (n,) of the texts in the first n rows, batch). The id of an example is a
    hash of its text, so that its noise does not depend on its position or on the other texts.
    """
    need_e = np.full(len(tokenised.noise_e), SHORTEST, np.int64)
    for encoded in tokenised.sides.values():
        need_e = np.maximum(need_e, encoded.lengths)
    rung_e = np.int64(1) << np.ceil(np.log2(need_e)).astype(np.int64)
    for rung in np.unique(rung_e).tolist():
        row = {side: min(rung, tokenised.limits.get(side, rung)) for side in tokenised.sides}
        left_e = np.flatnonzero(rung_e == rung)
        while len(left_e):
            rows = batch_size(len(left_e), min(max(TOKENS // rung, 1), most))
            place_e, left_e = left_e[:rows], left_e[rows:]
            ids_bs = np.full((rows, 1), -1, np.int32)
            ids_bs[: len(place_e), 0] = place_e
            batch = pack_rows(
                ids_bs, tokenised.sides, row, tokenised.pad, source_first=source_first
            )
            noise_e = np.full(rows, -1, np.int32)
            noise_e[: len(place_e)] = tokenised.noise_e[place_e]
            yield place_e, batch._replace(id_e=noise_e)


def batch_size(n: int, most: int) -> int:
    """Rows of the next batch for n texts: one of `SIZES`, capped at `most`.

    One batch that is more than a quarter full is preferred to several smaller ones.
    """
    sizes = sorted({min(size, most) for size in (*SIZES, most) if size <= max(most, SIZES[0])})
    above = next((size for size in sizes if size >= n), sizes[-1])
    if n >= above or 4 * n > above:
        return above
    return max((size for size in sizes if size <= n), default=sizes[0])


def spans(total: int, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of few sizes over 0..total-1: (indices, indices padded by repeating the last)."""
    first = 0
    while first < total:
        size = batch_size(total - first, most)
        index_e = np.minimum(np.arange(first, first + size, dtype=np.int32), total - 1)
        yield index_e[: total - first], index_e
        first += size


def lengths(config: DecodeConfig, total: int) -> list[int]:
    """Successive length limits for decoding; each one applies to the sentences still unfinished.

    A batch takes as long as its longest sentence. Many sentences are therefore decoded to a short
    limit first, and the few longer ones from all batches are decoded again together. Greedy and
    sampled tokens do not depend on the limit; beam search does, so it uses a single limit.
    """
    limits, length = [], max(SHORTEST, config.min_length)
    if total > SIZES[1] and config.method != "beam":
        while 3 * length <= 2 * config.max_length:
            limits.append(length)
            length *= 2
    return [*limits, config.max_length]
