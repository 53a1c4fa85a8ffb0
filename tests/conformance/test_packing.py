"""What a sentence costs depends on the sentence: not on its row, its slot or its neighbours."""

import jax
import numpy as np
import pytest

from jvae.tree import named_leaves

pytestmark = pytest.mark.fast_on("optimus", "della", "sri", "lstm_vae", "lstm_lm")


def by_id(values, batch) -> dict[int, dict[str, np.ndarray]]:
    """Everything said of each sentence, its tokens in their own order."""
    slots = batch.slots
    out = {}
    for e in np.flatnonzero(batch.valid_e):
        row, segment = e // slots, e % slots + 1
        own_t = batch.dec.segment_bt[row] == segment
        values_of = {f"aux/{name}": value[e] for name, value in values.aux.items()}
        for name, value in values._asdict().items():
            if name == "nats_bt":
                values_of[name] = value[row, own_t]
            elif name.endswith("_kegz") and value is not None:
                values_of[name] = value[:, e]
            elif name != "aux" and value is not None:
                values_of[name] = value[e]
        out[int(batch.id_e[e])] = values_of
    return out


def assert_close(got, want, tolerance: float):
    """Equal relative to the largest value of the whole tree, named leaf by named leaf."""
    got, want = named_leaves(got), named_leaves(want)
    assert got.keys() == want.keys()
    atol = tolerance * largest(want)
    for name, leaf in want.items():
        np.testing.assert_allclose(got[name], leaf, rtol=0, atol=atol, err_msg=name)


def largest(tree, least: float = 1.0) -> float:
    """The largest absolute value in a tree, or `least` if all are smaller."""
    return max([least, *(np.max(np.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(tree))])


# Another shape is another program; the fast suite compiles it for one system alone.
PACKINGS = ["mixed", pytest.param("single", marks=pytest.mark.slow)]


@pytest.mark.parametrize("packing", PACKINGS)
def test_packing_changes_no_value(system, sentences, packing):
    check_values(system, sentences, packing)


@pytest.mark.parametrize("packing", PACKINGS)
def test_packing_changes_no_gradient(system, packing):
    check_gradient(system, packing)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["optimus-llama"], indirect=True)
def test_a_row_for_each_sentence_changes_nothing(system, sentences):
    check_values(system, sentences, "single")
    check_gradient(system, "single")


@pytest.mark.slow
@pytest.mark.parametrize("system", ["optimus-context"], indirect=True)
def test_packing_changes_nothing_of_a_text_and_its_context(system, sentences):
    """The term that couples a batch has the same examples in it."""
    check_values(system, sentences, "mixed")
    check_gradient(system, "mixed")


def check_values(system, sentences, packing):
    want = by_id(system("packed")[0], sentences.batch["packed"])
    got = by_id(system(packing)[0], sentences.batch[packing])
    assert sorted(want) == sorted(got) == list(range(sentences.count))
    for i, row in want.items():
        for name, value in row.items():
            np.testing.assert_allclose(
                got[i][name], value, rtol=1e-5, atol=1e-5, err_msg=f"{name} of sentence {i}"
            )


def check_gradient(system, packing):
    """Within 1e-6 in float32; a system that rounds more than that, within 1e-12 in float64."""
    got, want = system(packing)[1], system("packed")[1]
    assert_close(got, want, 1e-3)
    if largest(jax.tree.map(np.subtract, got, want), least=0.0) > 1e-6 * largest(want):
        with jax.enable_x64(True):
            assert_close(system.wide(packing)[1], system.wide("packed")[1], 1e-12)


def test_sentences_differ(system, sentences):
    """The comparisons above would hold for a model that ignores its input."""
    rows = by_id(system("packed")[0], sentences.batch["packed"])
    assert len({round(float(row["nll_e"]), 3) for row in rows.values()}) == sentences.count
    if system.has_latent:
        means = np.stack([row["mean_egz"].ravel() for row in rows.values()])
        apart = np.abs(means[:, None] - means[None]).max(axis=2)
        assert np.min(apart[~np.eye(sentences.count, dtype=bool)]) > 1e-2


def test_scored_tokens_alone_have_nats(system, sentences):
    nats_bt = system("packed")[0].nats_bt
    scored_bt = sentences.batch["packed"].scored_bt
    assert np.all(nats_bt[~scored_bt] == 0)
    assert np.all(nats_bt[scored_bt] < 0)


def test_content_of_padding_changes_nothing(system, sentences):
    batch = sentences.batch["packed"]
    got = system.run(sentences.with_junk(batch))
    want = system("packed")
    valid_e = batch.valid_e
    np.testing.assert_array_equal(got[0].nats_bt, want[0].nats_bt)
    np.testing.assert_array_equal(got[0].mean_egz[valid_e], want[0].mean_egz[valid_e])
    assert_close(got[1], want[1], 1e-7)


def test_empty_rows_change_no_value(system, sentences):
    for part in ("first", "last"):
        got = by_id(system(part)[0], sentences.batch[part])
        want = by_id(system("packed")[0], sentences.batch["packed"])
        assert got
        for i, row in got.items():
            for name, value in row.items():
                np.testing.assert_allclose(value, want[i][name], rtol=1e-6, atol=1e-6)


def test_gradients_of_parts_add_up(system):
    parts = jax.tree.map(np.add, system("first")[1], system("last")[1])
    assert_close(parts, system("packed")[1], 1e-6)


def test_empty_batch_is_finite_and_has_no_gradient(system):
    values, grads = system("empty")
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(values))
    for name, leaf in named_leaves(grads).items():
        np.testing.assert_array_equal(leaf, 0.0, err_msg=name)


@pytest.mark.parametrize("packing", ["packed", "first", "last"])
def test_empty_slots_stay_finite(system, packing):
    values, grads = system(packing)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((values, grads)))


def test_noise_belongs_to_the_draw(system):
    """Draw 2 is the same alone and among others; draws from a density differ from one another."""
    values = system("packed")[0]
    np.testing.assert_allclose(values.alone_kegz[0], values.z_kegz[2], rtol=1e-6, atol=1e-6)
    if system.has_latent and system.model.post.log_prob is not None:
        flat_ki = values.z_kegz.reshape(len(values.z_kegz), -1)
        assert np.all(np.min(np.abs(np.diff(flat_ki, axis=0)), axis=1) > 0)
        assert np.all(np.max(np.abs(np.diff(flat_ki, axis=0)), axis=1) > 0.1)
