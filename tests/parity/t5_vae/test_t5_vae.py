"""T5-VAE against numbers that the original code produced, through the public importer.

Float32 within the tolerances of the fixtures' README. Float64 within 1e-8: with the original's two
float32 places put in (see conftest.py) where they take part.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from jvae.api import Batch, Prompt, Side, per_example
from jvae.decode import DecodeConfig, decode
from jvae.errors import WeightsError
from jvae.evals.latent import gaussian_entropy, unit_covariance
from jvae.latent import gaussian
from jvae.latent.elbo import measure
from jvae.models import t5vae
from jvae.nn import norms, t5, t5_layer
from jvae.pretrained import files, names, originals
from jvae.runs import schedules
from jvae.runs.exports import import_original
from jvae.training import optim
from jvae.training.objectives import Objective, batch_loss, per_sentence
from jvae.tree import named_leaves
from tests.tools import reference
from tests.tools.stacks import layer_input, recorded

CASES = [("max", "float32"), ("max", "float64"), ("mean", "float64")]
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
HIDDEN = dict(rtol=1e-4, atol=2e-5)
FLOORS = (None, 0.2, 0.5)
SETTINGS = [(floor, beta) for floor in FLOORS for beta in (1.0, 0.25)] + [(0.3, 0.5)]
GRADIENTS = ((None, 1.0), (0.5, 0.25))  # the settings whose gradients are stored
PASSES = (*GRADIENTS, *[SETTINGS[-1]] * 4)  # four optimizer updates
OPTIMIZER = ConfigDict(
    dict(lr=1e-4, schedule="constant", warmup_steps=0, b1=0.9, b2=0.999, eps=1e-8)
    | dict(weight_decay=0.01, no_decay=(), clip=None)
)


class Case:
    """One fixture file as our model, parameters and batch, in one dtype."""

    def __init__(self, pool: str, dtype: str, folder: Path):
        self.path = reference.path(f"t5_vae/{pool}_seed0.npz")
        self.data = np.load(self.path)
        self.meta = json.loads(str(self.data["meta/config_json"]))
        self.dtype = dtype
        size = self.meta["size"]
        self.stack = t5_layer.T5Config(
            layers=size["dec_layers"],
            width=size["hidden"],
            heads=size["heads"],
            head=size["hidden"] // size["heads"],
            mlp=size["ff"],
            vocab=size["vocab"],
            buckets=size["buckets"],
            max_distance=self.meta["relative_attention_max_distance"],
            gated=self.meta["feed_forward_proj"] != "relu",
            tied=self.meta["tie_word_embeddings"],
            norm_eps=self.meta["layer_norm_eps"],
            dropout=0.0,
            dtype=dtype,
            xent_chunk=48,
        )
        self.own = t5vae.T5VaeConfig(
            self.stack, latent=size["latent"], pool=self.meta["pooling"], pool_padding=True
        )
        self.released = dataclasses.replace(self.own, memory_layout="released")
        file = folder / f"{pool}_{dtype}.safetensors"
        files.write_safetensors(file, self.weights(), {})
        loaded = import_original(file, "t5_vae", self.own)
        self.params = jax.tree.map(lambda a: np.asarray(a, dtype), loaded)
        self.batch = self._batch()

    def weights(self) -> dict[str, np.ndarray]:
        """The original's state dict, tied tensors under all their names."""
        actual = {
            k.removeprefix("param/"): self.data[k] for k in self.data.files if "param/" in k[:6]
        }
        return actual | {a: actual[b] for a, b in self.meta["parameter_aliases"].items()}

    def __call__(self, name: str) -> np.ndarray:
        """The stored array, its float64 twin when the case is float64."""
        twin = f"f64/{name}"
        wide = self.dtype == "float64" and twin in self.data.files
        return self.data[twin if wide else name]

    def array(self, name: str) -> np.ndarray:
        return np.asarray(self(name), self.dtype)

    def _batch(self) -> Batch:
        ids, mask = self.data["in/encoder_ids"], self.data["in/encoder_mask"]
        place = np.broadcast_to(
            np.arange(ids.shape[1] + 1, dtype=np.int32), (len(ids), ids.shape[1] + 1)
        )
        enc = Side(ids, mask, place[:, :-1] * mask)
        start = np.full((len(ids), 1), self.meta["decoder_start"], ids.dtype)
        real = np.pad(mask, ((0, 0), (1, 0)), constant_values=1)
        dec = Side(np.concatenate([start, self.data["in/labels"]], 1), real, place * real)
        return Batch(enc, dec, None, dec.position_bt > 0, np.arange(len(ids), dtype=np.int32))

    def objective(self, floor: float | None) -> Objective:
        form = dict(free_bits="dim_max", free_bits_nats=floor) if floor else {}
        return Objective(**form, rec_length=self.batch.enc.token_bt.shape[1])

    def close(self, got, name: str, rtol: float, atol: float = 0.0, where: Any = ...):
        """Compares with a stored array at the README's tolerance; with its float64 twin at 1e-8."""
        want = self(name)
        if self.dtype == "float64" and f"f64/{name}" in self.data.files:
            rtol, atol = 1e-8, 1e-8 * np.max(np.abs(want))
        np.testing.assert_allclose(
            np.asarray(got)[where], want[where], rtol=rtol, atol=atol, err_msg=name
        )


def _forward(model, params, batch: Batch, eps_ez, seen: dict):
    """Terms, posterior and latent of a pass with this noise."""

    def sample(params, post, key_ke):
        seen["post"] = post
        seen["z"] = gaussian.reparameterize(post, eps_ez[:, None]) + seen.get("shift", 0.0)
        return seen["z"][None]

    noisy = model._replace(post=model.post._replace(sample=sample))
    return measure(noisy, params, batch, jax.random.key(0))


def _decoded(case: Case, config: t5vae.T5VaeConfig, params, post):
    """States, logits and cross-entropies of the decoder for the stored noise."""
    with recorded(t5) as passes:
        gen = t5vae.build(config).gen
        ctx = gen.prepare(params, case.batch)
        nats_bt = gen.log_lik(params, ctx, gaussian.reparameterize(post, case.eps))
    (only,) = passes
    return {
        "hidden": [*only.inputs_lbtd, only.hidden_btd],
        "memory": jnp.moveaxis(only.points.slots.key_lbmgh, 2, 3),
        "logits": t5.logits(config.decoder, only.params, only.hidden_btd),
        "ce_per_token": -nats_bt[:, 1:],
        "ce_per_example": -per_example(nats_bt, case.batch),
    }


def everything(case: Case, params):
    """All stored quantities but losses and gradients."""
    model = t5vae.build(case.released)
    case.eps = jnp.asarray(case.array("in/eps"))[:, None]
    post = model.post.encode(params, case.batch)
    pooled_egd, last_btd, inputs_lbtd = t5vae.pooled(
        case.own, params, case.batch.enc, slots=1, read=layer_input
    )
    out: dict[str, Any] = {"enc/hidden": [*inputs_lbtd, last_btd], "enc/pooled": pooled_egd[:, 0]}
    out |= {"post": post, "lat/z": gaussian.reparameterize(post, case.eps)[:, 0]}
    out["lat/kl_per_dim"] = gaussian.kl_standard(post)[:, 0]
    out["dec"] = _decoded(case, case.released, params, post)
    out["single"] = _decoded(case, case.own, params, post)

    n = len(case.data["gen/z"])
    prompt = Prompt(jnp.full((n, 1), case.meta["decoder_start"]), jnp.ones(n, jnp.int32))
    greedy = DecodeConfig(method="greedy", max_length=case.data["gen/greedy_ids"].shape[1] - 1)
    out["greedy"] = decode(
        model.gen,
        params,
        jnp.asarray(case.array("gen/z"))[:, None],
        prompt,
        jax.random.split(jax.random.key(0), n),
        greedy,
        end_id=-1,
        pad_id=-1,
    ).token_et

    def half(batch, noise_ez):
        seen: dict = {}
        terms = _forward(model, params, batch, noise_ez, seen)
        return terms.nll_e, terms.kl_egz, seen["post"], seen["z"]

    halves = (case.batch, case.array("metrics/eps"))
    halves = jax.tree.map(lambda a: jnp.asarray(a).reshape(2, n // 2, *a.shape[1:]), halves)
    out["halves"] = jax.vmap(half)(*halves)
    return out


def passes(case: Case, params):
    """Losses of every setting, stored gradients and four updates: one compiled pass, scanned."""
    model = t5vae.build(case.released)
    start, unravel = ravel_pytree(params)
    tx = optim.build(OPTIMIZER, params, 4)

    def one_pass(carry, inputs):
        params, opt_state = carry
        eps_ez, weight_of_s, updates_now = inputs
        seen: dict = {}

        def loss(params, shift_egz):
            seen["shift"] = shift_egz
            terms = _forward(model, params, case.batch, eps_ez, seen)
            totals = [batch_loss(case.objective(f), terms, beta)[0] for f, beta in SETTINGS]
            silent = terms._replace(nll_e=jnp.zeros_like(terms.nll_e))
            kl_fe = [per_sentence(case.objective(f), silent, 1.0).total_e for f in FLOORS]
            rec = batch_loss(case.objective(None), terms, 0.0)[0]
            plain_e = per_sentence(case.objective(0.5), terms, 1.0).kl_e
            return jnp.stack(totals) @ weight_of_s, (jnp.stack(totals), kl_fe, rec, plain_e)

        shift_egz = jnp.zeros((eps_ez.shape[0], 1, eps_ez.shape[1]), eps_ez.dtype)
        (value, aux), (grads, grad_z) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            params, shift_egz
        )
        updates, next_state = tx.update(grads, opt_state, params)
        keep = lambda new, old: jnp.where(updates_now, new, old)  # noqa: E731
        params_now = jax.tree.map(lambda p, u: keep(p + u, p), params, updates)
        opt_state = jax.tree.map(keep, next_state, opt_state)
        return (params_now, opt_state), (value, aux, ravel_pytree(grads)[0], grad_z[:, 0])

    eps = [case.array("in/eps")] * len(GRADIENTS) + list(case.array("train/eps"))
    weight_ps = np.eye(len(SETTINGS), dtype=case.dtype)[[SETTINGS.index(p) for p in PASSES]]
    updates_p = np.array([p not in GRADIENTS for p in PASSES])
    inputs = (jnp.asarray(np.stack(eps)), jnp.asarray(weight_ps), jnp.asarray(updates_p))
    (end, _), out = jax.lax.scan(one_pass, (params, tx.init(params)), inputs)
    return out, end


def _run(function, case: Case):
    lowered = jax.jit(lambda params: function(case, params)).lower(case.params)
    try:
        compiled = lowered.compile(compiler_options=QUICK)
    except jax.errors.JaxRuntimeError:  # an XLA without these switches
        compiled = lowered.compile()
    return jax.device_get(compiled(case.params))


@pytest.fixture(
    scope="module",
    params=[pytest.param(c, marks=[pytest.mark.slow] * (c[1] == "float32")) for c in CASES],
    ids="-".join,
)
def done(request, tmp_path_factory, float32_places):
    """A case, its outputs and its passes."""
    pool, dtype = request.param
    with jax.enable_x64(dtype == "float64"), pytest.MonkeyPatch.context() as patch:
        case = Case(pool, dtype, tmp_path_factory.mktemp("original"))
        if dtype == "float64":
            patch.setattr(norms, "inverse_rms", float32_places[0])
            patch.setattr(jax.nn, "softmax", float32_places[1])
        yield case, _run(everything, case), _run(passes, case)


def test_encoder_states_and_posterior(done):
    case, out, _ = done
    for i, state in enumerate(out["enc/hidden"]):
        case.close(state, f"enc/hidden_{i}", **HIDDEN)
    case.close(out["enc/hidden"][-1], "enc/last_hidden", **HIDDEN)
    case.close(out["post"].mean_egz[:, 0], "lat/mu", **HIDDEN)
    case.close(out["post"].log_var_egz[:, 0], "lat/logvar", **HIDDEN)
    for name in ("enc/pooled", "lat/z", "lat/kl_per_dim"):
        case.close(out[name], name, **HIDDEN)


@pytest.mark.parametrize("layout", ["dec", "single"])
def test_decoder(done, layout):
    case, out, _ = done
    got = out[layout]
    real = case.batch.dec.segment_bt[:, :-1] > 0  # their inputs are one shorter than ours
    vocab = case.stack.vocab
    case.close(got["logits"][:, :-1, :vocab], f"{layout}/logits", **HIDDEN, where=real)
    assert np.all(np.isneginf(got["logits"][..., vocab:]))
    case.close(got["ce_per_token"], f"{layout}/ce_per_token", **HIDDEN)
    if layout == "dec":
        case.close(got["ce_per_example"], "dec/ce_per_example", rtol=1e-5)
        case.close(got["memory"], "lat/memory", **HIDDEN)
        for i, state in enumerate(got["hidden"]):
            case.close(state[:, :-1], f"dec/hidden_{i}", **HIDDEN, where=real)


def test_losses(done):
    case, _, ((_, (totals, kl_fe, rec, plain_e), _, _), _) = done
    for (floor, beta), total in zip(SETTINGS[:-1], totals[0], strict=False):
        case.close(total, f"loss/minz{floor}/total_w{beta}", rtol=1e-5)
    for floor, kl_e in zip(FLOORS, kl_fe, strict=True):
        name = f"loss/minz{floor}"
        case.close(kl_e[0], f"{name}/kl_train", rtol=1e-5, atol=1e-6)
        case.close(np.mean(kl_e[0]), f"{name}/kl_mean_train", rtol=1e-5)
        case.close(plain_e[0], f"{name}/kl_eval", rtol=1e-5, atol=1e-6)
        case.close(rec[0], f"{name}/recon_mean", rtol=1e-5)


def _foreign(case: Case, params) -> dict[str, np.ndarray]:
    return names.write(originals.t5_vae(case.own), params)


def test_gradients(done):
    case, _, ((_, _, grads, grad_z), _) = done
    unravel = ravel_pytree(case.params)[1]
    for i, (floor, beta) in enumerate(GRADIENTS):
        name = f"grad/minz{floor}_w{beta}"
        case.close(np.linalg.norm(grads[i].astype(np.float64)), f"{name}/__global_norm__", 1e-3)
        ours = _foreign(case, jax.device_get(unravel(grads[i]))) | {"z": grad_z[i]}
        stored = [k for k in case.data.files if k.startswith(name) and "__" not in k]
        assert len(stored) == 9
        for key in stored:
            largest = np.max(np.abs(case(key)))
            case.close(ours[key.split("/")[-1]], key, rtol=1e-3, atol=1e-5 * largest)


def test_four_optimizer_updates(done):
    case, _, ((value, _, grads, _), end) = done
    np.testing.assert_allclose(value[2:], case.data["train/loss"], rtol=1e-5)
    norms = np.linalg.norm(grads[2:].astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, case.data["train/grad_norm"], rtol=1e-3)
    assert np.all(case.data["train/lr"] == OPTIMIZER.lr)
    ours = _foreign(case, end)
    stored = [k for k in case.data.files if k.startswith("train/final/")]
    assert len(stored) == 4
    for key in stored:
        want, name = case.data[key], key.removeprefix("train/final/")
        # Where a gradient is nearly zero (one entry in 3,520), rounding decides on its first step.
        np.testing.assert_allclose(ours[name], want, rtol=1e-3, atol=3e-5, err_msg=key)
        assert np.mean(np.abs(ours[name] - want) > 2e-6 + 1e-3 * np.abs(want)) < 1e-3
        # Four steps of 1e-4: the start itself is far outside these tolerances.
        assert np.mean(np.abs(case.weights()[name] - want) > 1e-4) > 0.5


def test_greedy_ids(done):
    case, out, _ = done
    want = case.data["gen/greedy_ids"][:, 1:]
    for got_t, want_t, stop in zip(out["greedy"], want, case.data["gen/stop_ids"], strict=True):
        ends = np.flatnonzero(got_t == stop)
        length = ends[0] + 1 if len(ends) else len(got_t)
        np.testing.assert_array_equal(got_t[:length], want_t[:length])
        assert np.all(want_t[length:] == -1)


def _mutual_information(case, post, z_egz) -> float:
    """Values of the sentences of one batch, with that batch as aggregate."""
    density = jax.jit(lambda z: gaussian.log_density(post, jnp.broadcast_to(z, z_egz.shape)))
    log_q_ij = np.stack([density(z) for z in z_egz])
    aggregate_i = np.log(np.mean(np.exp(log_q_ij), axis=1))
    entropy_e = gaussian_entropy(t5vae.build(case.released).post, post)
    return float(np.mean(-entropy_e) - np.mean(aggregate_i))


def test_metrics(done):
    case, out, _ = done
    nll, kl, post, z = out["halves"]
    rec, kl = np.mean(nll), np.sum(kl) / nll.size
    pieces = case.data["in/encoder_mask"].sum() - nll.size  # ends are not counted
    mean_egz = out["post"].mean_egz
    halves = [gaussian.Gaussian(*(a[i] for a in post)) for i in range(2)]
    mi = [_mutual_information(case, half, z[i]) for i, half in enumerate(halves)]
    got = dict(rec=rec, kl=kl, nll=rec + kl, mi=np.mean(mi))
    got["elbo"] = kl - rec  # as released, which is not a bound
    got["ppl"] = np.exp((rec + kl) * nll.size / pieces)
    variance_z = unit_covariance(mean_egz)[0]
    got["au"] = np.sum(variance_z >= 0.01)
    for name, value in got.items():
        case.close(value, f"metrics/calc_all_{name}", rtol=1e-3)
        if name not in ("mi", "au"):
            case.close(value, f"metrics/calc_ppl_{name}", rtol=1e-3)
    whole = gaussian.reparameterize(out["post"], case.array("metrics/eps_mi")[:, None])
    case.close(_mutual_information(case, out["post"], whole), "metrics/calc_batch_mi", rtol=1e-3)
    biased_z = variance_z * (nll.size - 1) / nll.size
    case.close(biased_z, "metrics/calc_au_var", rtol=1e-3)
    assert np.sum(biased_z >= 0.01) == case.data["metrics/calc_au_count"]


def test_kl_weight():
    data = np.load(reference.path("t5_vae/max_seed0.npz"))
    period = 100 * json.loads(str(data["meta/config_json"]))["schedule_iterations_per_epoch"]
    schedule = schedules.build(
        dict(kind="cyclic_linear", n_iter=2 * period, n_cycle=2, start=0.0, stop=1.0)
        | dict(ratio_increase=1.0),
        1,
    )
    np.testing.assert_allclose(schedule(data["schedule/steps"]), data["schedule/kld_weight"], 1e-6)


def test_layouts_of_the_memory(done):
    """As released, most sentences read slots of another; alone in a batch, each reads its own."""
    case, out, _ = done
    z_ez = out["lat/z"]
    kernel = case.weights()["t5.memory_projection.weight"].astype(case.dtype)
    layers, heads, head = case.stack.layers, case.stack.heads, case.stack.head
    chunk_cnh = (z_ez @ kernel.T).reshape(-1, heads, 1, head)
    for layer in range(layers):
        for b in range(len(z_ez)):
            got = out["dec"]["memory"][layer, b]
            np.testing.assert_allclose(got, chunk_cnh[layer * len(z_ez) + b], rtol=1e-4, atol=1e-6)
            got = out["single"]["memory"][layer, b]
            np.testing.assert_allclose(got, chunk_cnh[b * layers + layer], rtol=1e-4, atol=1e-6)


def test_round_trip_and_misfits(tmp_path):
    case = Case("max", "float32", tmp_path)
    theirs = case.weights()
    ours = _foreign(case, case.params)
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)
    assert all("EncDecAttention" in n or ".layer.1.layer_norm" in n for n in theirs.keys() - ours)
    assert len(theirs) - len(ours) == len(case.meta["parameters_without_gradient"])
    file = tmp_path / "cut.safetensors"
    files.write_safetensors(file, {k: v for k, v in theirs.items() if "logvar" not in k}, {})
    with pytest.raises(WeightsError, match="missing: t5.logvar.weight"):
        import_original(file, "t5_vae", case.own)
    with pytest.raises(WeightsError, match="cross_slots=0"):
        import_original(file, "t5_vae", dataclasses.replace(case.own, cross_slots=2))
    assert sorted(named_leaves(case.params))[-1] == "posterior/head/kernel"
