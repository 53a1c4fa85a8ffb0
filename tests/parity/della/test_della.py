"""States, latents, losses, gradients and updates of DELLA against the original code, through the
public name table.

Float32 within the tolerances of the fixtures' README; float64 within 1e-8 wherever a float64 number
is stored, the stronger proof.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jvae.backbones import gpt2
from jvae.injections import fusion
from jvae.latent import layerwise
from jvae.latent.elbo import measure
from jvae.models import della
from jvae.models.generator import laid_out
from jvae.nn import pool
from jvae.nn.attention import MaskSpec
from jvae.nn.block import Layer
from jvae.nn.norms import LayerNorm
from jvae.nn.points import UNTOUCHED, Points
from jvae.training.objectives import batch_loss, per_sentence
from tests.tools.stacks import forced, layer_output

# These programs run once or a few times: what they cost is their compilation.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _grouped(x_egz):
    return jnp.moveaxis(x_egz, 1, 0)


def _encoder(case, params):
    """States of the encoder as released: padding has a place and sees the text."""
    side, dec, p = case.batch.enc, case.config.decoder, params["decoder"]
    rows, length = side.token_bt.shape
    place_bt = jnp.broadcast_to(jnp.arange(length)[None], (rows, length))
    real_bt = (side.segment_bt > 0).astype(jnp.int32)
    mask_spec = MaskSpec(jnp.ones_like(real_bt), real_bt, False, place_bt)
    stack = gpt2.stack(dec)
    x_btd = stack.embed(p, side.token_bt, place_bt)
    last, outputs = stack.rows(p, x_btd, mask_spec, UNTOUCHED, read=layer_output)
    query_gd = params["posterior"]["pool"]["kernel"]
    out = {f"enc/block_out_{i}": x for i, x in enumerate(outputs)}
    latent = outputs[case.config.begin_layer :]
    out["enc/pooled"] = jax.vmap(pool.attention_unmasked)(latent, query_gd)
    return out | {"enc/last_hidden": last}


def _decoder(case, params, z_egz):
    """States, values before and after fusion, and scores of the decoder."""
    c, dec, p, side = case.config, case.config.decoder, params["decoder"], case.batch.dec
    how = fusion.Fusion(dec, c.begin_layer, c.groups, c.product_order)
    factor_lernh = fusion.latent_factor(how, p["fusion"], z_egz)
    fuse_l = fusion.inputs(how, p["fusion"], factor_lernh)
    fuse = partial(fusion.fuse, lay=laid_out(side))
    stack = gpt2.stack(dec)
    x_btd = stack.embed(p, side.token_bt, side.position_bt)
    hidden, inputs = forced(stack, p, x_btd, side, Points(value=fuse, value_l=fuse_l))
    out = {f"dec/block_out_{i}": x for i, x in enumerate(inputs[1:])}
    for i in range(c.groups):
        layer = c.begin_layer + i
        one_layer, one_fuse = jax.tree.map(lambda a, i=layer: a[i], (p["layers"], fuse_l))
        value = lambda q, k, v, f=one_fuse: (v, (v, fuse(v, f)))  # noqa: E731
        _, (before, after) = Layer(gpt2.spec(dec)).apply(
            {"params": one_layer}, inputs[layer], value
        )
        out[f"dec/lmf_in_{i}"] = before.reshape(x_btd.shape)
        out[f"dec/lmf_out_{i}"] = after.reshape(x_btd.shape)
    # The stored last states come before the final norm.
    last = jnp.asarray(case.data[f"dec/block_out_{dec.layers - 1}"], case.dtype)
    normed = LayerNorm(dec.norm_eps).apply({"params": p["norm"]}, last)
    return out | {
        "last": (hidden, normed),
        "dec/logits": stack.logits(p, hidden)[..., : dec.vocab],
    }


def _everything(case, params):
    """All stored quantities of the forward pass but the losses."""
    model, batch, c = case.model, case.batch, case.config
    cond = model.gen.condition(params, batch)
    post = model.post.encode(params, batch, cond=cond)
    addends = dict(text_egcz=post.text_egcz, source_egcz=case.chain.source_of(cond))
    pick = layerwise.reparameterized
    walked = layerwise.walk(case.chain, params, pick, case.eps_egz, **addends)
    z_egz, out = walked.z_egz, {"lat/z": _grouped(walked.z_egz)}
    for name, stats in (("post", walked.posterior), ("prior", walked.prior)):
        out[f"lat/{name}_mu"] = _grouped(stats.mean_egz)
        out[f"lat/{name}_logvar"] = _grouped(stats.log_var_egz)
    out |= _encoder(case, params) | _decoder(case, params, z_egz)
    if c.conditional:
        out["cond/pooled"] = _grouped(della.pooled(c, params, batch.cond, batch.slots))
    out["lat/log_prior_layer_mean"] = model.prior.log_prob(params, z_egz, cond) / c.groups
    out["lat/log_post_layer_mean"] = model.post.log_prob(params, post, z_egz) / c.groups
    ctx = model.gen.prepare(params, batch, cond=cond)
    out["dec/ce_per_token"] = -model.gen.log_lik(params, ctx, z_egz)[:, 1:]
    if c.use_bow:
        bow = params["decoder"]["bow"]
        bow_ed = z_egz[:, -1] @ bow["kernel"] + bow["bias"][None]
        scores = gpt2.stack(c.decoder).logits(params["decoder"], bow_ed)
        out["dec/bow_logits"] = scores[..., : c.decoder.vocab]
    return out


@pytest.fixture(scope="module")
def outputs(case):
    return compiled(lambda params: _everything(case, params))(case.params)


@pytest.fixture(scope="module")
def gradients(case):
    """(params, noise_egz, beta) -> (loss, terms), and gradients for the first two arguments."""

    def loss(params, noise_egz, beta):
        model = case.model_with_noise(noise_egz)
        terms = measure(model, params, case.batch, jax.random.key(0))
        return batch_loss(case.objective, terms, beta)[0], terms

    return compiled(jax.value_and_grad(loss, (0, 1), has_aux=True))


@pytest.fixture(scope="module")
def measured(case, gradients):
    return {beta: gradients(case.params, case.eps_egz, beta) for beta in (1.0, 0.3)}


def test_encoder_states_and_pooled_vectors(case, outputs):
    for i in range(case.config.decoder.layers):
        case.close(outputs[f"enc/block_out_{i}"], f"enc/block_out_{i}", "hidden")
    case.close(outputs["enc/last_hidden"], "enc/last_hidden", "hidden")
    # Layers without a latent are not pooled here; the original pools them for nothing.
    unused = [np.asarray(case.data["enc/pooled"][: case.config.begin_layer])]
    if case.dtype == "float64":
        unused = [np.asarray(case.data["f64/enc/pooled"][: case.config.begin_layer])]
    case.close(np.concatenate([*unused, outputs["enc/pooled"]]), "enc/pooled", "hidden")
    if case.config.conditional:
        case.close(outputs["cond/pooled"], "cond/pooled", "hidden")


def test_latents(case, outputs):
    for name in ("prior_mu", "prior_logvar", "post_mu", "post_logvar", "z"):
        case.close(outputs[f"lat/{name}"], f"lat/{name}", "hidden")
    crossing = np.abs(np.asarray(outputs["lat/post_logvar"])) > case.config.clip
    crossing |= np.abs(np.asarray(outputs["lat/post_mu"])) > case.config.clip
    assert case.config.conditional or crossing.any()  # the clip takes part in these numbers


def test_divergences_and_densities(case, outputs, measured):
    (_, terms), _ = measured[1.0]
    kl_gez = np.moveaxis(np.asarray(terms.kl_egz), 1, 0)
    case.close(kl_gez, "lat/kl_per_dim", rtol=2e-4, atol=1e-5)
    case.close(kl_gez.sum(axis=2), "lat/kl_per_layer", "density")
    for name in ("lat/log_prior_layer_mean", "lat/log_post_layer_mean"):
        case.close(outputs[name], name, "density")
    only_kl = terms._replace(nll_e=jnp.zeros_like(terms.nll_e), aux={})
    loss = per_sentence(case.objective, only_kl, 1.0)
    case.close(loss.total_e, "lat/kl_thresholded_layer_mean", "density")
    case.close(np.mean(loss.total_e), "loss/kl", "density")
    np.testing.assert_allclose(loss.kl_e, kl_gez.sum(axis=(0, 2)), rtol=1e-5)  # never the mean


def test_decoder_states_fused_values_and_logits(case, outputs):
    for i in range(case.config.decoder.layers - 1):
        case.close(outputs[f"dec/block_out_{i}"], f"dec/block_out_{i}", "hidden", where=case.real)
    np.testing.assert_allclose(
        *(np.asarray(x)[case.real] for x in outputs["last"]), rtol=1e-4, atol=5e-5
    )
    for i in range(case.config.groups):
        for name in (f"dec/lmf_in_{i}", f"dec/lmf_out_{i}"):
            case.close(outputs[name], name, "hidden", where=case.real)
    case.close(outputs["dec/logits"], "dec/logits", "hidden", where=case.real)


def test_losses(case, outputs, measured):
    case.close(outputs["dec/ce_per_token"], "dec/ce_per_token", "hidden")
    for beta, ((total, terms), _) in measured.items():
        case.close(total, f"loss/total_beta{beta}", "loss")
        case.close(terms.nll_e, "dec/ce_per_example", "loss")
        case.close(np.mean(terms.nll_e), "loss/ce", "loss")
        if case.config.use_bow:
            case.close(np.mean(terms.aux["bow"]), "loss/bow", "loss")
    if case.config.use_bow:
        case.close(outputs["dec/bow_logits"], "dec/bow_logits", "hidden")


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_gradients(case, measured, beta):
    log_var = case.data["lat/post_logvar"]
    if case.dtype == "float64":
        log_var = case.data["f64/lat/post_logvar"]
    prefix = f"grad/beta{beta}/"
    _, (grads, grad_noise_egz) = measured[beta]
    # A latent is its mean + std * noise, and its own KL does not depend on the noise.
    std = np.exp(0.5 * np.clip(log_var, -5, 5))
    ours = case.foreign(grads) | {"z": np.moveaxis(np.asarray(grad_noise_egz), 1, 0) / std}
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
    def update(flat, state, grads):
        grad = ravel_pytree(grads)[0]
        updates, state = tx.update(grad, state, flat)
        return flat + updates, state, jnp.linalg.norm(grad)

    flat, unravel = ravel_pytree(case.params)
    state = tx.init(flat)
    for i, noise_egz in enumerate(case.latents("train/eps")):
        (value, _), (grads, _) = gradients(unravel(flat), noise_egz, 0.5)
        flat, state, norm = update(flat, state, grads)
        np.testing.assert_allclose(value, case.data["train/loss"][i], rtol=2e-3)
        np.testing.assert_allclose(norm, case.data["train/grad_norm"][i], rtol=2e-3)
    ours = case.foreign(unravel(flat))
    stored = case.weights("train/final/")
    assert len(stored) == 5
    for key, want in stored.items():
        np.testing.assert_allclose(ours[key], want, rtol=2e-3, atol=2e-6, err_msg=key)
        assert np.max(np.abs(want - case.data[f"param/{key}"])) > 2e-3  # it was trained
