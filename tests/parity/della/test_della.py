"""DELLA against numbers that the original code produced, through the public name table.

Float32 within the tolerances of the fixtures' README; float64 within 1e-8 wherever a float64 number
is stored, the stronger proof.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jvae.api import Batch, Prompt, Side, measure, per_example
from jvae.decode import DecodeConfig, decode
from jvae.errors import WeightsError
from jvae.latent import gaussian, layerwise
from jvae.models import della
from jvae.nn import fusion, gpt2
from jvae.nn.attention import attend
from jvae.nn.config import TransformerConfig
from jvae.nn.layers import LayerNorm
from jvae.nn.transformer import Gpt2Layer
from jvae.objectives import Objective, batch_loss
from jvae.pretrained import names, originals_della

FIXTURES = Path(__file__).parents[4] / "shared/fixtures/della"
if not FIXTURES.is_dir():
    FIXTURES = Path("/work/shared/fixtures/della")
pytestmark = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the fixtures of the original code are not here"
)

VARIANTS = ("uncond", "uncond_bow_threshold", "uncond_layers1to2", "cond")
UNCONDITIONAL = VARIANTS[:3]
HIDDEN = dict(rtol=1e-4, atol=5e-5)
DENSITY = dict(rtol=2e-4)
LOSS = dict(rtol=1e-5)
BOW_WEIGHT = 0.2
# These programs run once or a few times: what they cost is their compilation.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Case:
    """One fixture file as our model, parameters and batch, in one dtype."""

    def __init__(self, variant: str, dtype: str):
        self.data = np.load(FIXTURES / f"{variant}_seed0.npz")
        self.meta = json.loads(str(self.data["meta/config_json"]))
        self.dtype = dtype
        size, options = self.meta["size"], self.meta["options"]
        self.config = della.DellaConfig(
            decoder=TransformerConfig(
                size["layers"],
                size["hidden"],
                size["heads"],
                4 * size["hidden"],
                size["vocab"] + 2,
                64,
                dropout=0.0,
                dtype=dtype,
                xent_chunk=48,
            ),
            latent=size["latent"],
            rank=size["rank"],
            conditional=options.get("is_cvae", False),
            begin_layer=options.get("begin_layer", 0),
            pool="attn_unmasked",
            use_bow=options.get("use_bow", False),
        )
        self.objective = Objective(
            kl_floor="group_max",
            floor=options.get("kl_threshold", 0.0),
            kl_reduce="group_mean",
            aux_weight={"bow": BOW_WEIGHT},
        )
        self.model = della.build(self.config)
        self.chain = della.chain(self.config)
        self.table = originals_della.della(
            vocab=self.config.decoder.vocab,
            layers=size["layers"],
            width=size["hidden"],
            latent=size["latent"],
            rank=size["rank"],
            first=self.config.begin_layer,
            conditional=self.config.conditional,
            bow=self.config.use_bow,
        )
        target = jax.eval_shape(self.model.init, jax.random.key(0))
        self.like = jax.tree.map(lambda a: np.zeros(a.shape, dtype), target)
        self.params = self.read(self.weights("param/"))
        self.batch = self._batch()
        self.eps_egz = self.latents("in/eps")

    def read(self, weights: dict[str, np.ndarray]):
        return jax.tree.map(jnp.asarray, names.read(self.table, weights, self.like))

    def weights(self, prefix: str) -> dict[str, np.ndarray]:
        """Tensors under a prefix by their foreign names."""
        files = (k for k in self.data.files if k.startswith(prefix))
        return {k.removeprefix(prefix): self.data[k] for k in files}

    def latents(self, name: str) -> jax.Array:
        """A stored (..., N, B, Z) array as ours, (..., B, N, Z)."""
        return jnp.asarray(np.moveaxis(self.data[name], -3, -2), self.dtype)

    def _batch(self) -> Batch:
        def side(ids: np.ndarray, mask: np.ndarray) -> Side:
            place = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
            segment = (mask > 0).astype(np.int32)
            return Side(*map(jnp.asarray, (ids, segment, place * segment)))

        text = side(self.data["in/input_ids"], self.data["in/attention_mask"])
        scored = (text.segment_bt > 0) & (text.position_bt > 0)
        source = None
        if self.config.conditional:
            source = side(self.data["in/condition"], self.data["in/condition_mask"])
            scored &= jnp.asarray(self.data["in/labels"]) != self.meta["pad"]
        return Batch(text, text, source, scored, jnp.arange(len(scored)))

    @property
    def real(self) -> np.ndarray:
        """True at tokens that are no padding."""
        return np.asarray(self.batch.dec.segment_bt > 0)

    def model_with_noise(self, noise_egz):
        """The model whose posterior draws once, with this noise."""

        def sample(params, post, key_ke):
            z_egz, kl_egz = layerwise.draw(self.chain, params, post, noise_egz)
            return z_egz[None], kl_egz[None]

        return self.model._replace(post=self.model.post._replace(sample=sample))

    def close(self, got, name: str, rtol: float, atol: float = 0.0, where=...):
        """Compares with a stored array at the README's tolerance; with its float64 twin at 1e-8."""
        want, twin = self.data[name], f"f64/{name}"
        if self.dtype == "float64" and twin in self.data.files:
            want = self.data[twin]
            rtol, atol = 1e-8, 1e-8 * np.max(np.abs(want))
        got = np.asarray(got)
        assert got.shape == want.shape, name
        np.testing.assert_allclose(got[where], want[where], rtol=rtol, atol=atol, err_msg=name)


@pytest.fixture(
    scope="module", params=[(v, d) for v in VARIANTS for d in ("float32", "float64")], ids="-".join
)
def case(request):
    variant, dtype = request.param
    with jax.enable_x64(dtype == "float64"):
        yield Case(variant, dtype)


@pytest.fixture(scope="module", params=VARIANTS)
def single(request):
    """Where no float64 number is stored."""
    return Case(request.param, "float32")


@pytest.fixture(scope="module", params=UNCONDITIONAL)
def scored(request):
    return Case(request.param, "float32")


def _grouped(x_egz):
    return jnp.moveaxis(x_egz, 1, 0)


def _by_layer(case: Case, params, post):
    """Latents from the stored noise, and the Gaussians on their way."""
    addends = dict(text_egcz=post.text_egcz, source_egcz=post.source_egcz)
    found = layerwise.walk(case.chain, params, layerwise.reparameterized, case.eps_egz, **addends)
    out = {"lat/z": _grouped(found.z_egz)}
    for name, stats in (("post", found.posterior), ("prior", found.prior)):
        out[f"lat/{name}_mu"] = _grouped(stats.mean_egz)
        out[f"lat/{name}_logvar"] = _grouped(stats.log_var_egz)
    return found.z_egz, out


def _encoder(case: Case, params):
    """States of the encoder as released: padding has a place and sees the text."""
    side, dec, p = case.batch.enc, case.config.decoder, params["decoder"]
    rows, length = side.token_bt.shape
    place_bt = jnp.broadcast_to(jnp.arange(length)[None], (rows, length))
    mask_bts = jnp.broadcast_to(side.segment_bt[:, None] > 0, (rows, length, length))
    x_btd = gpt2.embed(dec, p, side.token_bt, place_bt)
    last, outputs = gpt2.encode(dec, p, x_btd, mask_bts, lambda x_btd, _: x_btd)
    out = {f"enc/block_out_{i}": x for i, x in enumerate(outputs)}
    return out | {"enc/last_hidden": last}


def _decoder(case: Case, params, z_egz):
    """States, values before and after fusion, and scores of the decoder."""
    c, dec, p, side = case.config, case.config.decoder, params["decoder"], case.batch.dec
    how = fusion.Fusion(dec, c.begin_layer, c.groups, c.ltp)
    factor_lernh = fusion.latent_factor(how, p["fusion"], z_egz)
    fuse_l = fusion.inputs(how, p["fusion"], factor_lernh)
    fuse = partial(fusion.fuse, side=side)
    x_btd = gpt2.embed(dec, p, side.token_bt, side.position_bt)
    hidden, inputs = gpt2.teacher_forced(dec, p, x_btd, side, fuse=fuse, fuse_l=fuse_l)
    out = {f"dec/block_out_{i}": x for i, x in enumerate(inputs[1:])}
    for i in range(c.groups):
        layer = c.begin_layer + i
        one_layer, one_fuse = jax.tree.map(lambda a, i=layer: a[i], (p["layers"], fuse_l))
        value = lambda q, k, v, f=one_fuse: (v, (v, fuse(v, f)))  # noqa: E731
        _, (before, after) = Gpt2Layer(dec).apply({"params": one_layer}, inputs[layer], value)
        out[f"dec/lmf_in_{i}"] = before.reshape(x_btd.shape)
        out[f"dec/lmf_out_{i}"] = after.reshape(x_btd.shape)
    # The stored last states come before the final norm.
    last = jnp.asarray(case.data[f"dec/block_out_{dec.layers - 1}"], case.dtype)
    normed = LayerNorm(dec.norm_eps).apply({"params": p["norm"]}, last)
    return out | {
        "last": (hidden, normed),
        "dec/logits": gpt2.logits(dec, p, hidden)[..., : dec.vocab],
    }


def _everything(case: Case, params):
    """All stored quantities of the forward pass, in one compiled function."""
    model, batch, c = case.model, case.batch, case.config
    cond = model.gen.condition(params, batch)
    post = model.post.encode(params, batch, cond=cond)
    z_egz, out = _by_layer(case, params, post)
    same_z_egz, kl_egz = layerwise.draw(case.chain, params, post, case.eps_egz)
    out |= _encoder(case, params) | _decoder(case, params, z_egz)
    out["same z"] = (z_egz, same_z_egz)
    out["enc/pooled"] = _grouped(della.pooled(c, params, batch.enc, batch.slots))
    if c.conditional:
        out["cond/pooled"] = _grouped(della.pooled(c, params, batch.cond, batch.slots))
    out["lat/kl_per_dim"] = _grouped(kl_egz)
    out["lat/kl_per_layer"] = _grouped(jnp.sum(kl_egz, axis=2))
    out["lat/log_prior_layer_mean"] = model.gen.log_prior(params, z_egz, cond) / c.groups
    out["lat/log_post_layer_mean"] = model.post.log_q(params, post, z_egz) / c.groups

    ctx = model.gen.prepare(params, batch, cond=cond)
    nats_bt = model.gen.log_lik(params, ctx, z_egz)
    out |= {"dec/ce_per_token": -nats_bt[:, 1:], "dec/ce_per_example": -per_example(nats_bt, batch)}
    terms = measure(case.model_with_noise(case.eps_egz), params, batch, jax.random.key(0))
    out["loss/ce"] = jnp.mean(terms.nll_e)
    for beta in (1.0, 0.3):
        out[f"loss/total_beta{beta}"], loss = batch_loss(case.objective, terms, beta)
    out["plain kl"] = loss.kl_e
    only_kl = terms._replace(nll_e=jnp.zeros_like(terms.nll_e), aux={})
    out["loss/kl"], loss = batch_loss(case.objective, only_kl, 1.0)
    out["lat/kl_thresholded_layer_mean"] = loss.total_e
    if c.use_bow:
        out["loss/bow"] = jnp.mean(terms.aux["bow"])
        bow = params["decoder"]["bow"]
        bow_ed = z_egz[:, -1] @ bow["kernel"] + bow["bias"][None]
        scores = gpt2.logits(c.decoder, params["decoder"], bow_ed)
        out["dec/bow_logits"] = scores[..., : c.decoder.vocab]
    return out


@pytest.fixture(scope="module")
def outputs(case):
    return compiled(lambda params: _everything(case, params))(case.params)


def test_encoder_states_and_pooled_vectors(case, outputs):
    for i in range(case.config.decoder.layers):
        case.close(outputs[f"enc/block_out_{i}"], f"enc/block_out_{i}", **HIDDEN)
    case.close(outputs["enc/last_hidden"], "enc/last_hidden", **HIDDEN)
    # Layers without a latent are not pooled here; the original pools them for nothing.
    unused = [np.asarray(case.data["enc/pooled"][: case.config.begin_layer])]
    if case.dtype == "float64":
        unused = [np.asarray(case.data["f64/enc/pooled"][: case.config.begin_layer])]
    case.close(np.concatenate([*unused, outputs["enc/pooled"]]), "enc/pooled", **HIDDEN)
    if case.config.conditional:
        case.close(outputs["cond/pooled"], "cond/pooled", **HIDDEN)


def test_latents(case, outputs):
    for name in ("prior_mu", "prior_logvar", "post_mu", "post_logvar", "z"):
        case.close(outputs[f"lat/{name}"], f"lat/{name}", **HIDDEN)
    np.testing.assert_array_equal(*outputs["same z"])
    crossing = np.abs(np.asarray(outputs["lat/post_logvar"])) > case.config.clip
    crossing |= np.abs(np.asarray(outputs["lat/post_mu"])) > case.config.clip
    assert case.config.conditional or crossing.any()  # the clip takes part in these numbers


def test_divergences_and_densities(case, outputs):
    case.close(outputs["lat/kl_per_dim"], "lat/kl_per_dim", rtol=2e-4, atol=1e-5)
    for name in ("kl_per_layer", "log_prior_layer_mean", "log_post_layer_mean"):
        case.close(outputs[f"lat/{name}"], f"lat/{name}", **DENSITY)
    name = "lat/kl_thresholded_layer_mean"
    case.close(outputs[name], name, **DENSITY)
    summed_e = np.sum(np.asarray(outputs["lat/kl_per_layer"]), axis=0)
    np.testing.assert_allclose(outputs["plain kl"], summed_e, rtol=1e-5)  # never the mean


def test_decoder_states_fused_values_and_logits(case, outputs):
    for i in range(case.config.decoder.layers - 1):
        case.close(outputs[f"dec/block_out_{i}"], f"dec/block_out_{i}", **HIDDEN, where=case.real)
    np.testing.assert_allclose(*(np.asarray(x)[case.real] for x in outputs["last"]), **HIDDEN)
    for i in range(case.config.groups):
        for name in (f"dec/lmf_in_{i}", f"dec/lmf_out_{i}"):
            case.close(outputs[name], name, **HIDDEN, where=case.real)
    case.close(outputs["dec/logits"], "dec/logits", **HIDDEN, where=case.real)


def test_losses(case, outputs):
    case.close(outputs["dec/ce_per_token"], "dec/ce_per_token", **HIDDEN)
    for name in ("dec/ce_per_example", "loss/ce", "loss/total_beta1.0", "loss/total_beta0.3"):
        case.close(outputs[name], name, **LOSS)
    case.close(outputs["loss/kl"], "loss/kl", **DENSITY)
    if case.config.use_bow:
        case.close(outputs["dec/bow_logits"], "dec/bow_logits", **HIDDEN)
        case.close(outputs["loss/bow"], "loss/bow", **LOSS)


def _foreign(case: Case, tree) -> dict[str, np.ndarray]:
    return names.write(case.table, jax.tree.map(np.asarray, tree))


@pytest.fixture(scope="module")
def gradients(case):
    """(params, noise_egz, beta) -> loss, and gradients for the first two; compiled once."""

    def loss(params, noise_egz, beta):
        model = case.model_with_noise(noise_egz)
        terms = measure(model, params, case.batch, jax.random.key(0))
        return batch_loss(case.objective, terms, beta)[0]

    return compiled(jax.value_and_grad(loss, (0, 1)))


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_gradients(case, gradients, beta):
    log_var = case.data["lat/post_logvar"]
    if case.dtype == "float64":
        log_var = case.data["f64/lat/post_logvar"]
    prefix = f"grad/beta{beta}/"
    _, (grads, grad_noise_egz) = gradients(case.params, case.eps_egz, beta)
    # A latent is its mean + std * noise, and its own KL does not depend on the noise.
    std = np.exp(0.5 * np.clip(log_var, -5, 5))
    ours = _foreign(case, grads) | {"z": np.moveaxis(np.asarray(grad_noise_egz), 1, 0) / std}
    norm = np.sqrt(sum(np.sum(np.square(np.asarray(g))) for g in jax.tree.leaves(grads)))
    case.close(norm, f"{prefix}__global_norm__", rtol=2e-3)
    stored = set(case.weights(prefix)) - {"__global_norm__"}
    assert len(stored) == 12 + case.config.use_bow
    for key in stored:
        largest = np.max(np.abs(case.data[prefix + key]))
        # A softmax's gradient is a difference of near equals: the stored float32 numbers of the
        # pooling are themselves 2.4e-4 of the largest away from their float64 twins.
        atol = (1e-3 if "pooling" in key else 2e-5) * largest
        case.close(ours[key], prefix + key, rtol=2e-3, atol=atol)


def test_four_optimizer_updates(case, gradients):
    np.testing.assert_array_equal(case.data["train/lr"], 1e-3)
    # The original adds eps before the bias correction, optax after it.
    eps = lambda count: 1e-6 / jnp.sqrt(1 - 0.999 ** (count + 1))  # noqa: E731
    tx = optax.inject_hyperparams(optax.adam)(1e-3, eps=eps)

    @compiled
    def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, optax.tree.norm(grads)

    params, state = case.params, tx.init(case.params)
    for i, noise_egz in enumerate(case.latents("train/eps")):
        value, (grads, _) = gradients(params, noise_egz, 0.5)
        params, state, norm = update(params, state, grads)
        np.testing.assert_allclose(value, case.data["train/loss"][i], rtol=2e-3)
        np.testing.assert_allclose(norm, case.data["train/grad_norm"][i], rtol=2e-3)
    ours = _foreign(case, params)
    stored = case.weights("train/final/")
    assert len(stored) == 5
    for key, want in stored.items():
        np.testing.assert_allclose(ours[key], want, rtol=2e-3, atol=2e-6, err_msg=key)
        assert np.max(np.abs(want - case.data[f"param/{key}"])) > 2e-3  # it was trained


def _shifted_networks(case: Case) -> dict[str, np.ndarray]:
    """Parameters as the released prior sampler reads them: its networks count from 0, whatever
    the first layer with a latent is.
    """
    weights = case.weights("param/")
    shifted = dict(weights)
    for kind in ("prior_network", "reccurnt_cell_weight_hh", "reccurnt_cell_weight_ih"):
        for i in range(case.config.groups):
            for part in ("weight", "bias"):
                theirs = f"encoder.{kind}.{i}.{part}"
                shifted[f"encoder.{kind}.{i + case.config.begin_layer}.{part}"] = weights[theirs]
    return shifted


def test_ancestral_sampling_from_the_prior(single):
    case = single
    params = case.read(_shifted_networks(case))

    @compiled
    def sample(params, noise_egz):
        cond = case.model.gen.condition(params, case.batch)
        source_egcz = None if cond is None else cond.prior_egcz
        return layerwise.walk(
            case.chain, params, layerwise.reparameterized, noise_egz, source_egcz=source_egcz
        )

    found = sample(params, case.latents("prior/eps"))
    assert found.posterior is None
    case.close(_grouped(found.z_egz), "prior/z", **HIDDEN)
    case.close(_grouped(found.prior.mean_egz), "prior/mu", **HIDDEN)
    case.close(_grouped(found.prior.log_var_egz), "prior/logvar", **HIDDEN)


def _released_start(case: Case):
    """The released generation predicts the first new token from the last place of the padded
    prompt: a padding token at position 1 that sees the prompt and not itself.
    """
    dec, c = case.config.decoder, case.config
    how = fusion.Fusion(dec, c.begin_layer, c.groups, c.ltp)

    def start(params, z_egz, prompt, max_len, cond=None):
        logits_ev, state = case.model.gen.start(params, z_egz, prompt, max_len, cond)
        p, width = params["decoder"], prompt.token_et.shape[1]
        fuse_l = fusion.inputs(how, p["fusion"], state.cache.factor_lernh)
        cache = state.cache.kv
        seen_e1m = (jnp.arange(width)[None] < prompt.length_e[:, None])[:, None]
        x = gpt2.embed(dec, p, prompt.token_et[:, -1:], jnp.ones((len(z_egz), 1), jnp.int32))
        for i in range(dec.layers):
            one_layer, _ = jax.tree.map(lambda a, i=i: a[i], (p["layers"], fuse_l))
            kv = cache.key_lemnh[i, :, :width], cache.value_lemnh[i, :, :width]
            look = lambda q, k, v, kv=kv: (attend(q, *kv, seen_e1m), None)  # noqa: E731
            x, _ = Gpt2Layer(dec).apply({"params": one_layer}, x, look)
        x = LayerNorm(dec.norm_eps).apply({"params": p["norm"]}, x)
        padded_e = prompt.length_e < width
        return jnp.where(padded_e[:, None], gpt2.logits(dec, p, x[:, 0]), logits_ev), state

    return start


@pytest.mark.parametrize("name", ["greedy_ids_rp1.0", "greedy_ids_rp1.2", "greedy_ids_stop"])
def test_greedy_ids(single, name):
    _check_ids(single, name, method="greedy")


def test_beam_ids(single):
    _check_ids(single, "beam3_ids_rp1.2", method="beam", beam_width=3, norm_length="total")


def _check_ids(case: Case, name: str, **settings):
    want, gen = case.data[f"gen/{name}"], case.model.gen
    end = int(case.data["gen/stop_id"]) if name.endswith("stop") else case.meta["eos"]
    z_egz = case.latents("prior/z")
    prompt = Prompt(jnp.full((4, 1), case.meta["bos"]), jnp.ones(4, jnp.int32))
    if case.config.conditional:
        length_e = case.data["in/condition_mask"].sum(axis=1).astype(np.int32)
        prompt = Prompt(jnp.asarray(case.data["in/condition"]), jnp.asarray(length_e))
    width = prompt.token_et.shape[1]
    config = DecodeConfig(
        min_length=case.meta["gen_min_length"] - width,
        max_length=case.meta["gen_max_length"] - width,
        repetition_penalty=1.2 if name.endswith("rp1.2") else 1.0,
        **settings,
    )

    def check(gen, rows):
        run = partial(decode, gen, cfg=config, key_e=None, end_id=end, pad_id=case.meta["pad"])
        out = compiled(lambda *given: run(*given).token_et)(case.params, z_egz, prompt)
        np.testing.assert_array_equal(np.asarray(out)[rows], want[rows, width:])

    if not case.config.conditional:
        check(gen, slice(None))
        return
    if name == "greedy_ids_rp1.0":
        check(gen, case.data["in/condition_mask"].all(axis=1))
    check(gen._replace(start=_released_start(case)), slice(None))


def _layer_means(case: Case, found: layerwise.Walk):
    """Densities of the chain, averaged over layers as released, prior and posterior."""
    clipped = (layerwise.clipped(case.chain, g) for g in (found.prior, found.posterior))
    return [gaussian.log_density(g, found.z_egz) / case.config.groups for g in clipped]


@pytest.fixture(scope="module")
def weigh(scored):
    """noise_egz -> log p(x | z), log weight and KL as released, posterior means."""
    case = scored

    @compiled
    def weigh(params, noise_egz):
        post = case.model.post.encode(params, case.batch)
        found = layerwise.walk(
            case.chain, params, layerwise.reparameterized, noise_egz, text_egcz=post.text_egcz
        )
        ctx = case.model.gen.prepare(params, case.batch)
        log_lik_e = per_example(case.model.gen.log_lik(params, ctx, found.z_egz), case.batch)
        log_p_e, log_q_e = _layer_means(case, found)
        _, kl_egz = layerwise.draw(case.chain, params, post, noise_egz)
        floored_eg = jnp.maximum(jnp.sum(kl_egz, axis=2), case.objective.floor)
        stats = (log_lik_e, log_lik_e + log_p_e - log_q_e, jnp.mean(floored_eg, axis=1))
        return (*stats, found.posterior.mean_egz)

    return partial(weigh, case.params)


def test_likelihood_with_the_stored_noise(scored, weigh):
    """The released estimator, layer means and all, from our densities."""
    case = scored
    log_lik_e, log_w_e, _, _ = weigh(case.latents("iw/sample_eps"))
    case.close(log_lik_e, "iw/sample_log_gen", **LOSS)
    case.close(log_w_e, "iw/sample_log_likelihood", **DENSITY)

    first, *draws = [weigh(noise_egz) for noise_egz in case.latents("iw/eval_eps")]
    log_lik_ke, log_w_ke = (np.array([draw[i] for draw in draws]) for i in (0, 1))
    log_p_e = np.logaddexp.reduce(log_w_ke, axis=0) - np.log(len(draws))
    tokens = int(case.real.sum())
    kl, nll = np.mean(np.asarray(first[2])), -log_lik_ke.mean()
    case.close(np.exp(-log_p_e.sum() / tokens), "iw/eval_ppl", rtol=1e-3)
    case.close(kl, "iw/eval_kl", **DENSITY)
    case.close(nll, "iw/eval_nll", **LOSS)
    case.close(kl + nll, "iw/eval_elbo", **DENSITY)


def test_active_units_with_the_stored_noise(scored, weigh):
    centre, spread = (np.asarray(weigh(noise)[3]) for noise in scored.latents("au/eps"))
    variance = np.sum((spread - centre.mean(axis=0)) ** 2, axis=0) / (len(spread) - 1)
    assert np.mean(variance >= 0.2) == scored.data["au/proportion"]


def test_round_trip_of_the_name_table(single):
    case = single
    theirs = case.weights("param/")
    aliases = case.meta["parameter_aliases"]
    unused = case.meta["parameters_without_gradient"]
    ours = _foreign(case, case.params)
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[aliases.get(name, name)], err_msg=name)
    assert set(theirs) - set(ours) == set(unused)
    whole = theirs | {name: theirs[of] for name, of in aliases.items()}
    whole |= {name: np.zeros((1, 1)) for name in case.meta["non_parameter_state"]}
    again = case.read(whole)
    jax.tree.map(np.testing.assert_array_equal, again, case.params)
    assert {name for name in ours if name not in theirs} == {
        name for name, of in aliases.items() if of not in unused
    }


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda w: w.pop("encoder.pooling.1.attention_weights"), "missing: encoder.pooling.1"),
        (
            lambda w: w.update({"encoder.recog_network.0.weight": np.zeros((16, 41))}),
            r"recog_network.0.weight \(for .*\) has shape \(16, 41\); expected 40 columns",
        ),
        (
            lambda w: w.update({"decoder.wte.weight": np.zeros(3)}),
            "decoder.wte.weight must equal encoder.wte.weight",
        ),
        (
            lambda w: w.update({"decoder.mlp_bow.bias": np.zeros(3)}),
            r"no part of the model uses: decoder.mlp_bow.bias \(3,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(break_it, message):
    case = Case("uncond", "float32")
    weights = case.weights("param/")
    break_it(weights)
    with pytest.raises(WeightsError, match=message):
        case.read(weights)
