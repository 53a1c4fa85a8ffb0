"""Packing plans: complete, within every limit, repeatable, full."""

import numpy as np
import pytest

from jvae.data import plan as planning
from jvae.data.plan import bucket_block, bucket_lengths, plan_block, propose_rows, shuffled
from jvae.errors import DataError


def two_sides(n, seed=0, low=4, high=40):
    rng = np.random.RandomState(seed)
    dec = rng.randint(low, high, n)
    return {"enc": np.maximum(dec + rng.randint(-1, 4, n), 3), "dec": dec}


def check(plan, lengths, row, slots):
    """Every example exactly once, no side over its row, empty slots last, fill as stated."""
    ids = plan.rows
    n = len(lengths["dec"])
    assert ids.shape[1] == slots and ids.dtype == np.int32
    assert np.sort(ids[ids >= 0]).tolist() == list(range(n))
    assert (np.sort(ids < 0, axis=1) == (ids < 0)).all()
    assert (ids[:, 0] >= 0).all()
    for side, full in row.items():
        used = np.where(ids >= 0, lengths[side][np.maximum(ids, 0)], 0).sum(axis=1)
        assert used.max() <= full
        assert plan.fill[side] == pytest.approx(used.sum() / (len(ids) * full))
    assert plan.slot_fill == pytest.approx(n / ids.size)


@pytest.mark.parametrize("n", [1, 2, 7, 130, 1_000])
@pytest.mark.parametrize("slots", [1, 3, 9, 40])
@pytest.mark.parametrize("shuffle", [True, False])
def test_plan_is_complete_and_within_limits(n, slots, shuffle):
    lengths, row = two_sides(n, seed=n + slots), {"enc": 48, "dec": 45}
    check(plan_block(lengths, row, slots, 3, 1, shuffle=shuffle), lengths, row, slots)


def test_one_side_and_any_window():
    lengths = {"dec": np.random.RandomState(1).randint(1, 30, 300)}
    for window in (1, 5, 1_000):
        check(plan_block(lengths, {"dec": 64}, 8, window=window), lengths, {"dec": 64}, 8)


def test_no_examples():
    plan = plan_block({"dec": np.zeros(0, int)}, {"dec": 8}, 2)
    assert plan.rows.shape == (0, 2)


def test_plan_depends_on_seed_and_epoch_alone():
    lengths, row = two_sides(500), {"enc": 90, "dec": 80}
    first = plan_block(lengths, row, 8, 1, 2).rows
    assert np.array_equal(first, plan_block(lengths, row, 8, 1, 2).rows)
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        other = plan_block(lengths, row, 8, seed, epoch).rows
        assert other.shape != first.shape or not np.array_equal(other, first)


def test_shuffle_is_pinned():
    """A stored run must find its rows again under any later NumPy."""
    assert shuffled(8, 0, 0, "examples").tolist() == [4, 0, 7, 1, 5, 6, 2, 3]
    assert np.sort(shuffled(1_000, 5, 7, "rows")).tolist() == list(range(1_000))


def test_order_of_rows_does_not_follow_the_packing():
    """Rows packed last are the leftovers; they must not all come at the end of the epoch."""
    lengths = {"dec": two_sides(2_000)["dec"]}
    rows = plan_block(lengths, {"dec": 64}, 6, 0, 0).rows
    used = np.where(rows >= 0, lengths["dec"][np.maximum(rows, 0)], 0).sum(axis=1)
    half = len(used) // 2
    assert abs(used[:half].mean() - used[half:].mean()) < 1.0


def test_unshuffled_rows_follow_the_file():
    lengths, row = two_sides(2_000), {"enc": 180, "dec": 168}
    rows = plan_block(lengths, row, 8, shuffle=False, window=64).rows
    assert (np.diff(rows[:, 0]) > 0).all()
    inside = np.diff(np.where(rows >= 0, rows, 10**6), axis=1)
    assert ((inside > 0) | (rows[:, 1:] < 0)).all()
    order = rows[rows >= 0]
    assert np.abs(order - np.arange(2_000)).max() < 2_000 // 3


def test_both_sides_and_the_slots_are_full():
    lengths = two_sides(4_000)
    proposal = propose_rows(lengths, 256)
    plan = plan_block(lengths, proposal.row, proposal.slots, 0, 0)
    assert min(*plan.fill.values(), plan.slot_fill) >= 0.95
    assert all(value % 8 == 0 for value in proposal.row.values())
    assert f"data.slots={proposal.slots}" in str(proposal)


def test_a_proposal_admits_the_longest_example():
    lengths = {"dec": np.array([5] * 50 + [700])}
    proposal = propose_rows(lengths, 64)
    check(plan_block(lengths, proposal.row, proposal.slots), lengths, proposal.row, proposal.slots)


def test_fill_is_near_the_bound_when_one_side_is_scarce():
    """With a needlessly long encoder row the decoder side must still be packed tightly."""
    lengths = two_sides(3_000)
    plan = plan_block(lengths, {"enc": 512, "dec": 256}, 64, 0, 0)
    assert plan.fill["dec"] > 0.97


def test_longer_than_a_row_is_named_not_cut():
    lengths = {"enc": np.array([5, 60, 7, 61]), "dec": np.array([5, 5, 5, 5])}
    with pytest.raises(DataError) as caught:
        plan_block(lengths, {"enc": 50, "dec": 50}, 4)
    expected = (
        "2 examples do not fit a row of data.enc_row=50 tokens: 1 (60 tokens), 3 (61 tokens)."
    )
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("shuffle", [True, False])
def test_buckets(shuffle):
    lengths, row = two_sides(500), {"enc": 48, "dec": 44}
    buckets = bucket_lengths(lengths, row, 4)
    assert all(len(sizes) <= 4 and list(sizes) == sorted(sizes) for sizes in buckets.values())
    batches = bucket_block(lengths, buckets, 16, 0, 0, shuffle=shuffle)
    seen = np.concatenate([ids for _, ids in batches])
    assert np.sort(seen[seen >= 0]).tolist() == list(range(500))
    for bucket, ids in batches:
        assert ids.shape == (16,)
        for side, sizes in buckets.items():
            assert lengths[side][ids[ids >= 0]].max() <= sizes[bucket] <= row[side]
    again = bucket_block(lengths, buckets, 16, 0, 0, shuffle=shuffle)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(batches, again, strict=True))


def test_bucket_cuts_are_the_best_there_are():
    rng = np.random.RandomState(0)
    dec = np.minimum(rng.geometric(0.08, 400) + 2, 64)
    got = bucket_lengths({"dec": dec}, {"dec": 64}, 2, multiple=1)["dec"]

    def places(cut):
        low = dec <= cut
        return low.sum() * cut + (~low).sum() * dec.max()

    assert got[-1] == dec.max()
    assert places(got[0]) == min(places(cut) for cut in range(1, 64))


def test_bucket_refuses_longer_examples():
    with pytest.raises(DataError, match="1 examples do not fit a row of data.dec_row=16 tokens: 2"):
        bucket_block({"dec": np.array([3, 9, 17])}, {"dec": (8, 16)}, 2)


def test_blocks_of_an_epoch_are_planned_apart(monkeypatch):
    monkeypatch.setattr(planning, "BLOCK", 40)
    lengths, row = two_sides(100), {"enc": 48, "dec": 45}
    assert [planning.blocks_of(n) for n in (0, 1, 40, 41, 100)] == [1, 1, 1, 2, 3]
    buckets = bucket_lengths(lengths, row)
    for epoch in (0, 1):
        order = shuffled(100, 5, epoch, "examples")
        for k, part in enumerate((order[:40], order[40:80], order[80:])):
            block = 3 * epoch + k
            ids = plan_block(lengths, row, 4, 5, block).rows
            assert sorted(ids[ids >= 0]) == sorted(part)
            ids = np.concatenate(
                [batch for _, batch in bucket_block(lengths, buckets, 8, 5, block)]
            )
            assert sorted(ids[ids >= 0]) == sorted(part)
    ids = plan_block(lengths, row, 4, block=2, shuffle=False).rows
    assert sorted(ids[ids >= 0]) == list(range(80, 100))
