"""Packed arrays against a slow construction, token by token."""

import numpy as np
import pytest

from jvae.api import per_example
from jvae.data.rows import Encoded, pack_rows

PAD = {"enc": 0, "dec": 99, "cond": 7}


def corpus(n, seed=0):
    rng = np.random.RandomState(seed)
    return {
        side: Encoded.of([rng.randint(100, 200, rng.randint(2, 9)) for _ in range(n)])
        for side in ("enc", "dec", "cond")
    }


def slow_side(ids_bs, side, row, pad):
    token = np.full((len(ids_bs), row), pad)
    segment, position, kind = (np.zeros_like(token) for _ in range(3))
    for b, slots in enumerate(ids_bs):
        t = 0
        for slot, i in enumerate(slots):
            for p, value in enumerate(side.tokens(i) if i >= 0 else []):
                token[b, t], segment[b, t], position[b, t] = value, slot + 1, p
                if side.types is not None:
                    kind[b, t] = side.types[side.offset[i] + p]
                t += 1
    return token, segment, position, None if side.types is None else kind


def test_rows_equal_a_slow_construction():
    sides = corpus(12)
    kinds = np.random.RandomState(1).randint(0, 2, len(sides["enc"].flat)).astype(np.int32)
    sides["enc"] = sides["enc"]._replace(types=kinds)
    ids_bs = np.array([[3, 0, 11], [-1, 5, -1], [-1, -1, -1], [7, 7, 1]], np.int32)
    row = {"enc": 26, "dec": 24, "cond": 30}
    batch = pack_rows(ids_bs, sides, row, PAD)
    for name in sides:
        for got, want in zip(
            getattr(batch, name),
            slow_side(ids_bs, sides[name], row[name], PAD[name]),
            strict=True,
        ):
            assert (got is None) == (want is None)
            if want is not None:
                assert got.dtype == np.int32
                assert np.array_equal(got, want)
    assert 0 < batch.enc.type_bt.sum() < (batch.enc.segment_bt > 0).sum()
    assert batch.slots == 3
    assert batch.id_e.tolist() == ids_bs.reshape(-1).tolist()
    assert batch.valid_e.tolist() == (ids_bs.reshape(-1) >= 0).tolist()


def test_all_but_the_first_token_of_each_example_is_scored():
    sides = corpus(6)
    ids_bs = np.array([[0, 1, -1], [2, 3, 4], [-1, 5, -1]], np.int32)
    batch = pack_rows(ids_bs, {"dec": sides["dec"]}, {"dec": 30}, PAD)
    assert batch.enc is None and batch.cond is None
    scored_e = np.asarray(per_example(batch.scored_bt.astype(np.float32), batch))
    lengths = sides["dec"].lengths
    want = [lengths[i] - 1 if i >= 0 else 0 for i in ids_bs.reshape(-1)]
    assert scored_e.tolist() == want
    # Position 0 of each segment holds the start id and is the one not scored.
    first = (batch.dec.segment_bt > 0) & (batch.dec.position_bt == 0)
    assert not (batch.scored_bt & first).any()
    assert (batch.scored_bt | first | (batch.dec.segment_bt == 0)).all()


def test_a_row_that_is_exactly_full_and_one_too_full():
    side = Encoded.of([np.arange(4), np.arange(5)])
    ids_bs = np.array([[0, 1]], np.int32)
    batch = pack_rows(ids_bs, {"dec": side}, {"dec": 9}, PAD)
    assert (batch.dec.segment_bt > 0).all()
    with pytest.raises(ValueError, match="row 0 of side 'dec' holds 9 tokens, over its 8"):
        pack_rows(ids_bs, {"dec": side}, {"dec": 8}, PAD)


def test_encoded():
    side = Encoded.of([np.array([5, 6]), np.array([], int), np.array([7])])
    assert side.flat.tolist() == [5, 6, 7] and side.flat.dtype == np.int32
    assert side.lengths.tolist() == [2, 0, 1]
    taken = side.take(np.array([2, 0]))
    assert taken.flat.tolist() == [7, 5, 6] and taken.lengths.tolist() == [1, 2]
    assert taken.types is None
    typed = side._replace(types=np.array([0, 1, 1], np.int32)).take(np.array([2, 0]))
    assert typed.types is not None and typed.types.tolist() == [1, 0, 1]
    assert Encoded.of([]).lengths.tolist() == []
