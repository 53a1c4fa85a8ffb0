"""T5 stacks: the latent slot against the original T5-VAE, packing, stepwise decoding, buckets."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Side
from jvae.backbones import t5 as backbone
from jvae.models.common import unboxed
from jvae.nn import t5_layer
from jvae.nn.attention import owners
from jvae.nn.points import LatentKv, Points
from jvae.nn.t5_layer import T5Config
from jvae.pretrained import names
from jvae.pretrained import t5 as t5_names
from tests.tools import reference
from tests.tools.stacks import encoded, forced, t5_own, t5_pair

SMALL = T5Config(
    layers=2, width=16, heads=2, head=4, mlp=24, vocab=20, buckets=8, max_distance=16, dropout=0.0
)
V1_1 = dataclasses.replace(SMALL, gated=True, tied=False)


def _tree(decoder: T5Config):
    encoder = dataclasses.replace(decoder, cross=False)
    init, axes = unboxed(lambda key: t5_pair(encoder, decoder, key))
    return init, jax.eval_shape(init, jax.random.key(0)), axes


def _params(decoder: T5Config):
    """Random parameters, norm scales included; drawn by NumPy, which compiles nothing."""
    rng = np.random.default_rng(0)
    _, abstract, _ = _tree(decoder)
    return jax.tree.map(lambda a: rng.normal(0, 0.5, a.shape).astype(np.float32), abstract)


def _side(token_bt, segment_bt) -> Side:
    """Positions restart in each segment."""
    token_bt, segment_bt = np.asarray(token_bt), np.asarray(segment_bt)
    position_bt = np.zeros_like(segment_bt)
    for row, segments in enumerate(segment_bt):
        for segment in set(segments.tolist()):
            place = np.flatnonzero(segments == segment)
            position_bt[row, place] = np.arange(len(place)) if segment else 0
    return Side(*map(jnp.asarray, (token_bt, segment_bt, position_bt)))


def _bucket(distance: int, causal: bool, buckets: int, most: int) -> int:
    """The definition, in exact terms, one distance at a time."""
    first = 0
    if not causal:
        buckets //= 2
        first = buckets if distance < 0 else 0
        distance = abs(distance)
    distance = max(distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    # The largest b whose lower edge exact * (most / exact) ** (b / wide) is not past the distance.
    wide = buckets - exact
    b = max(b for b in range(wide) if distance**wide * exact**b >= exact**wide * most**b)
    return first + exact + b


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("buckets, most", [(32, 128), (8, 16), (16, 40)])
def test_buckets_follow_the_definition(causal, buckets, most):
    config = dataclasses.replace(SMALL, buckets=buckets, max_distance=most)
    distance = np.arange(-300, 301)
    got = jax.jit(lambda d: t5_layer.bucket_of(d, config, causal))(distance)
    want = [_bucket(int(d), causal, buckets, most) for d in distance]
    np.testing.assert_array_equal(got, want)
    assert len(set(want)) == (buckets if causal else buckets - 1)  # no token is 0 ahead


def test_layouts_are_stacked_and_named():
    _, params, axes = _tree(dataclasses.replace(V1_1, cross=True))
    assert sorted(params) == ["decoder", "embed", "encoder"]
    assert params["decoder"]["layers"]["cross"]["kv"]["kernel"].shape == (2, 16, 2, 2, 4)
    assert axes["decoder"]["layers"]["cross"]["kv"]["kernel"] == (
        *("layers", "embed", None, "heads", "head"),
    )
    assert params["decoder"]["head"]["table"].shape == (128, 16)
    assert "cross" not in params["encoder"]["layers"]
    _, tied, _ = _tree(SMALL)
    assert "head" not in tied["decoder"] and "cross" not in tied["decoder"]["layers"]


@pytest.mark.slow
def test_initial_scales_are_those_of_t5():
    wide = dataclasses.replace(SMALL, layers=4, width=64, heads=8, head=8, mlp=96, vocab=256)

    @jax.jit
    def stds(key):
        params = _tree(wide)[0](key)
        layers = params["encoder"]["layers"]
        return [
            jnp.std(layers["attn"]["qkv"]["kernel"], axis=(0, 1, 3, 4)),
            jnp.std(layers["attn"]["out"]["kernel"]),
            jnp.std(layers["mlp"]["down"]["kernel"]),
            jnp.std(params["embed"]["token"]["table"]),
        ]

    qkv, out, down, table = stds(jax.random.key(0))
    np.testing.assert_allclose(qkv, [(64 * 8) ** -0.5, 64**-0.5, 64**-0.5], rtol=0.03)
    np.testing.assert_allclose([out, down, table], [64**-0.5, 96**-0.5, 1.0], rtol=0.03)


@pytest.mark.slow
def test_packed_rows_equal_single_sentences():
    config = dataclasses.replace(V1_1, cross=True)
    params = _params(config)
    rng = np.random.default_rng(0)
    lengths, sources = (5, 4), (3, 6)
    token = [rng.integers(2, 20, n) for n in (*lengths, *sources)]
    kv_clenh = rng.normal(size=(2, 2, 2, 2, 4)).astype(np.float32)  # key and value, layer, example

    @jax.jit
    def run(target: Side, source: Side, key_lbmgh, value_lbmgh):
        stack, stack_params = backbone.stack(config), t5_own(params, "decoder")
        states, _ = encoded(stack, t5_own(params, "encoder"), source)
        x = stack.embed(stack_params, target.token_bt, target.position_bt)
        points = Points(
            slots=LatentKv(key_lbmgh, value_lbmgh),
            owner_m=owners(key_lbmgh.shape[2]),
            cross=stack.cross(stack_params, states),
            cross_owner_bs=source.segment_bt,
        )
        hidden, inputs = forced(stack, stack_params, x, target, points)
        assert inputs.shape == (2, *x.shape)
        scored = (target.segment_bt > 0) & (target.position_bt > 0)
        return stack.token_log_prob(stack_params, hidden, target, scored)

    def row(parts, width):
        segment = np.concatenate([np.full(len(p), i + 1) for i, p in enumerate(parts)])
        tail = np.zeros(width - len(segment), int)
        ids = np.concatenate([*parts, tail + 7])[None]
        return _side(ids, np.concatenate([segment, tail])[None])

    packed = run(row(token[:2], 12), row(token[2:], 11), *kv_clenh[:, :, None])
    assert np.all(np.isfinite(packed)) and not np.any(packed[0, [0, 5, 9, 10, 11]])
    start = 0
    for e in range(2):
        slot = kv_clenh[:, :, None, e : e + 1]
        one = run(row([token[e]], 6), row([token[2 + e]], 7), *slot)
        got = packed[0, start : start + lengths[e]]
        np.testing.assert_allclose(got, one[0, : lengths[e]], rtol=1e-4, atol=1e-5)
        assert np.all(one[0, 1 : lengths[e]] < 0)
        start += lengths[e]


@pytest.mark.fast_on("True")
@pytest.mark.parametrize("everything", [False, True])
def test_stepwise_decoding_equals_teacher_forcing(everything):
    latent = cross = everything  # else a bare v1.1 decoder
    config = dataclasses.replace(SMALL if everything else V1_1, cross=cross)
    params = _params(config)
    rng = np.random.default_rng(1)
    e, t, s, prompt = 3, 7, 4, 3
    token = rng.integers(2, 20, (e, t))
    length_e = np.array([1, 3, 2])  # ragged prompts
    slot = jnp.asarray(rng.normal(size=(2, e, 1, 2, 4)), jnp.float32)
    kv = LatentKv(slot, slot) if latent else None
    states = jnp.asarray(rng.normal(size=(e, s, 16)), jnp.float32)
    seen = jnp.asarray(np.arange(s) < np.array([[4], [2], [3]])) if cross else None
    place_ie = np.minimum(length_e + np.arange(t - 1)[:, None], t - 1)

    @jax.jit
    def both(params):
        stack, stack_params = backbone.stack(config), t5_own(params, "decoder")
        points = Points(slots=kv, owner_m=owners(1) if latent else None)
        if cross:
            seen_es = jnp.asarray(seen).astype(jnp.int32)
            points = points._replace(
                cross=stack.cross(stack_params, states), cross_owner_bs=seen_es
            )
        x = stack.embed(stack_params, jnp.asarray(token), None)
        full, _ = forced(stack, stack_params, x, _side(token, np.ones_like(token)), points)
        room = prompt + len(place_ie)
        hidden, cache = stack.prefill(
            stack_params, x[:, :prompt], jnp.asarray(length_e), room, points
        )

        def step(cache, place_e):
            x_ed = x[jnp.arange(e), place_e]
            return stack.step(stack_params, x_ed, cache, place_e, points)[::-1]

        return full, hidden, jax.lax.scan(step, cache, jnp.asarray(place_ie))[1]

    full, hidden, steps_ied = both(params)
    for i, n in enumerate(length_e):
        np.testing.assert_allclose(hidden[i, :n], full[i, :n], rtol=1e-4, atol=1e-5)
        want = np.asarray(full)[i, n:]
        np.testing.assert_allclose(steps_ied[: t - n, i], want, rtol=1e-4, atol=1e-5)
        assert not np.allclose(want[0], want[-1])


@pytest.mark.slow
def test_dropout_reaches_both_stacks():
    config = dataclasses.replace(V1_1, dropout=0.5, cross=True)
    params = _params(config)
    side = _side([[3, 4, 5]], [[1, 1, 1]])

    @jax.jit
    def run(key):
        stack, stack_params = backbone.stack(config), t5_own(params, "decoder")
        x, _ = encoded(stack, t5_own(params, "encoder"), side, key)
        points = Points(cross=stack.cross(stack_params, x), cross_owner_bs=side.segment_bt)
        y, _ = forced(stack, stack_params, x, side, points, key)
        return x, y

    noisy, other = run(jax.random.key(1)), run(jax.random.key(2))
    for a, b in zip(noisy, other, strict=True):
        assert not np.allclose(a, b)
        assert np.mean(np.asarray(b) == 0.0) > 0.2  # the last dropout


@pytest.mark.fast_on("float64")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_encoder_and_latent_slot_equal_the_original_t5_vae(dtype):
    data = np.load(reference.path("t5_vae/max_seed0.npz"))
    size = json.loads(str(data["meta/config_json"]))["size"]
    with jax.enable_x64(dtype == "float64"):
        foreign = {k[6:]: data[k] for k in data.files if k.startswith("param/t5.")}
        kernels = {n.removeprefix("t5."): foreign.pop(n) for n in list(foreign) if _is_latent(n)}
        assert len(kernels) == 3, sorted(foreign)
        vocab, width = foreign["t5.shared.weight"].shape
        memory = next(k for n, k in kernels.items() if k.shape[1] != width)
        head, layers = size.get("head", 16), 2
        heads = memory.shape[0] // (layers * head)
        config = T5Config(
            layers, width, heads, head, 48, vocab, dropout=0.0, dtype=dtype, xent_chunk=48
        )
        init, _ = unboxed(lambda key: t5_pair(config, config, key))
        like = jax.tree.map(
            lambda a: np.zeros(a.shape, dtype), jax.eval_shape(init, jax.random.key(0))
        )
        table = t5_names.table(vocab, gated=False, tied=True, cross=False, prefix="t5.")
        params = jax.tree.map(jnp.asarray, names.read(table, foreign, like))
        lengths = data["in/encoder_mask"].sum(1)
        mask = np.arange(data["in/labels"].shape[1]) < lengths[:, None]
        source = _side(data["in/encoder_ids"], mask.astype(int))
        target = _side(data["dec/input_ids"], np.ones_like(data["dec/input_ids"]))
        z = _stored(data, "lat/z", dtype)
        slot = (z @ memory.T.astype(dtype)).reshape(len(z), layers, 1, heads, head).swapaxes(0, 1)
        kv = LatentKv(jnp.asarray(slot), jnp.asarray(slot))

        @jax.jit
        def run(params):
            stack, stack_params = backbone.stack(config), t5_own(params, "decoder")
            x, inputs = encoded(stack, t5_own(params, "encoder"), source)
            y = stack.embed(stack_params, target.token_bt, target.position_bt)
            hidden, _ = forced(stack, stack_params, y, target, Points(slots=kv, owner_m=owners(1)))
            return [*inputs, x], stack.logits(stack_params, hidden)

        states, logits = run(params)
        close = dict(rtol=1e-4, atol=2e-5)
        for i, state in enumerate(states):  # stored in float32 alone
            want = data[f"enc/hidden_{i}"]
            np.testing.assert_allclose(np.asarray(state)[mask], want[mask], **close)
        want = _stored(data, "single/logits", dtype)
        if dtype == "float64":
            # The original computes variance and softmax in float32 whatever its dtype is, so its
            # float64 numbers carry that rounding; tests/parity/t5_vae puts it in: then 1e-8.
            close = dict(rtol=0.0, atol=1e-6)
        np.testing.assert_allclose(np.asarray(logits)[..., :vocab], want, **close)


def _is_latent(name: str) -> bool:
    return not name.startswith(("t5.shared", "t5.encoder.", "t5.decoder.", "t5.lm_head"))


def _stored(data, name: str, dtype: str) -> np.ndarray:
    twin = f"f64/{name}"
    return data[twin if dtype == "float64" and twin in data.files else name]
