"""AdaVAE against numbers that the original code produced, through the public name table.

Every file runs in float64, to 1e-8 where a float64 twin is stored and to the tolerances of the
fixtures' README elsewhere; some run in float32 too. The mistakes of the original are switched on by
their options. Compiling is the cost here, so each file is one compiled function: a scan over the
passes (two losses with gradients, one at the posterior mean, four updates) has one backward pass.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from jvae.api import Batch, Prompt, Side, per_example
from jvae.backbones import gpt2
from jvae.backbones.gpt2 import Gpt2Config
from jvae.decode import DecodeConfig, decode
from jvae.evals.compat import adavae as compat
from jvae.injections.ways import Ways
from jvae.latent import gaussian
from jvae.latent.elbo import measure
from jvae.models import adavae
from jvae.nn import transformer
from jvae.pretrained import names, originals
from jvae.training import freezing, optim
from jvae.training.objectives import Objective, batch_loss
from jvae.tree import named_leaves
from tests.tools import reference
from tests.tools.stacks import layer_output, recorded

VARIANTS = (
    *("psa", "atm", "psa_atm", "psa_vary", "input", "psa_input", "softmax", "psa_softmax"),
    *("psa_prefix", "psa_z2adapters", "psa_finetune", "psa_avgattn_seqattn"),
    *("psa_linear_seqffn", "psa_meanmax_parattn"),
)
CASES = [(v, "float64") for v in VARIANTS] + [(v, "float32") for v in ("psa_atm", "psa_prefix")]
PADDED_POOLS = ("linear", "mean_max_linear")
GRADIENTS = ("fb1_beta1_rate0", "fb3_beta0.7")  # the settings whose gradients are stored
PASSES = (*GRADIENTS, "fb1_mean", *["train"] * 4)
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
HIDDEN = dict(rtol=1e-4, atol=2e-5)
OPTIMIZER = ConfigDict(
    dict(lr=2e-3, schedule="linear", warmup_steps=2, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.0)
    | dict(no_decay=(), clip=1.0, first_update=1, eps_first=True)
)


def config_of(meta: dict, dtype: str) -> adavae.AdaVaeConfig:
    """The config that names what a file was made with."""
    o, size, adapter = meta["options"], meta["size"], meta["adapter_config"]
    stack = Gpt2Config(
        size["layers"],
        size["hidden"],
        size["heads"],
        4 * size["hidden"],
        size["vocab"],
        positions=64,
        dropout=0.0,
        dtype=dtype,
    )
    learned = o["adapter_scalar"] == "learnable_scalar"
    pool = o["latent_gen"]
    return adavae.AdaVaeConfig(
        decoder=stack,
        encoder_layers=size["enc_layers"],
        latent=adapter["latent_size"],
        read_end=pool in PADDED_POOLS,
        pool=pool,
        pool_scale="sqrt_batch" if pool == "latent_attn" else "one",
        pool_padding=pool in PADDED_POOLS,
        adapter=size["adapter"],
        adapter_scale=1.0 if learned else float(o["adapter_scalar"]),
        learn_scale=learned,
        adapt_encoder=not o["tune_enc"],
        adapt_decoder=not o["tune_dec"] and (o["add_attn"] or o["add_mem"]),
        placement=o["ffn_option"],
        placement_form="released",
        use_psa=o["add_attn"],
        use_memory=o["add_mem"],
        use_embedding=o["add_input"],
        use_output=o["add_softmax"],
        use_adapters=o["add_z2adapters"],
        layerwise_projection=o["attn_proj_vary"],
        prefix=5 if o["attn_mode"] == "prefix" else 0,
        prefix_middle=6,
    )


class Case:
    """One fixture file as our model, parameters and batch, in one dtype."""

    def __init__(self, variant: str, dtype: str):
        self.data = np.load(reference.path(f"adavae/{variant}_seed0.npz"))
        self.meta = json.loads(str(self.data["meta/config_json"]))
        self.dtype = dtype
        self.config = config_of(self.meta, dtype)
        self.model = adavae.build(self.config)
        self.table = originals.adavae(self.config)
        target = jax.eval_shape(self.model.init, jax.random.key(0))
        like = jax.tree.map(lambda a: np.zeros(a.shape, dtype), target)
        self.params = names.read(self.table, self.weights(), like)
        self.mask_bt = self.data["in/attention_mask"].astype(bool)
        self.batch = self._batch()
        self.plan = self._plan(target)

    def weights(self) -> dict[str, np.ndarray]:
        """The original's state dict, shared tensors under both names."""
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
        """The sentences, ends included; the pools that read padding get what the original saw."""
        ids = np.concatenate([self.data["in/input_ids"][:, :1], self.data["in/target_ids"]], axis=1)
        real = np.pad(self.mask_bt, ((0, 0), (1, 0)), constant_values=True).astype(np.int32)
        place = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        dec = Side(ids, real, place * real)
        enc = dec
        if self.config.pool_padding:
            enc = Side(self.data["in/input_ids"], self.mask_bt.astype(np.int32), place[:, :-1])
        next_bt = np.pad(real[:, 1:], ((0, 0), (0, 1)))
        scored = (dec.position_bt > 0) & (next_bt == real) & (real > 0)
        return jax.tree.map(jnp.asarray, Batch(enc, dec, None, scored, np.arange(len(ids))))

    def _plan(self, abstract) -> freezing.TrainablePlan:
        """Exactly the tensors that the original trains in the end; a tensor of ours is one rule."""
        trained = set(self.meta["trainable"]["after_decoder_unfreeze"])
        rules = []
        for rule in self.table.rules:
            count = named_leaves(abstract)[rule.path].shape[0] if rule.stacked else 1
            for i in range(count):
                if rule.sources[0].replace("{i}", str(i)) in trained:
                    layers = (i, i + 1) if rule.stacked else (None, None)
                    rules.append((f"^{rule.path}$", *layers, 0))
        return freezing.make_plan(rules, abstract, self.model.axes, 6)

    def tree(self, trained: np.ndarray, frozen: np.ndarray | None):
        """A parameter tree from the vectors of its trained and frozen part."""
        parts = freezing.split(self.plan, self.params)
        whole = [
            tree if vector is None else ravel_pytree(tree)[1](vector)
            for tree, vector in zip(parts, (trained, frozen), strict=True)
        ]
        return jax.tree.map(np.asarray, freezing.merge(self.plan, *whole))

    def setting(self, name: str) -> tuple[Objective, float]:
        """Objective and beta of a loss setting."""
        if name == "train":
            return Objective(
                rec_reduce="token_mean_end", free_bits="dim_masked", free_bits_nats=0.1
            ), 0.5
        setting = next(s for s in self.meta["settings"] if s["name"] == name)
        rate, latent = self.meta["kl_rates"][name], self.config.latent
        floor, nats = {
            1: ("mean_sum", rate / latent),  # stored as the floor of the sum
            2: ("dim_masked", rate),
            3: ("dim_max", rate),
            4: ("dim_masked_share", rate * latent),  # stored as the threshold itself
        }[setting["fb"]]
        objective = Objective(rec_reduce="token_mean_end", free_bits=floor, free_bits_nats=nats)
        return objective, setting["beta"]

    def model_with_noise(self, noise_egz, shift_egz, seen):
        """The model whose posterior draws with this noise, moves the draw, and can be seen."""

        def sample(params, post, key_ke):
            seen["post"] = post
            return gaussian.reparameterize(post, noise_egz[None]) + shift_egz[None]

        model = adavae.build(self.config)
        return model._replace(post=model.post._replace(sample=sample))

    def close(self, got, name: str, rtol: float, atol: float = 0.0, where=...):
        """Compares with a stored array at the README's tolerance; with its float64 twin at 1e-8."""
        want = self(name)
        if self.dtype == "float64" and f"f64/{name}" in self.data.files:
            rtol, atol = 1e-8, 1e-8 * np.max(np.abs(want))
        np.testing.assert_allclose(
            np.asarray(got)[where], want[where], rtol=rtol, atol=atol, err_msg=name
        )


def everything(case: Case, params, data):
    """All stored quantities in one function. `data` holds the arrays other than weights.

    Parameters and gradients travel as vectors: one array per pass compiles faster than sixty.
    """
    c, batch = case.config, case.batch
    names_ = [s["name"] for s in case.meta["settings"]]
    trained, frozen = freezing.split(case.plan, params)
    start, unravel = ravel_pytree(trained)
    tx = optim.build(OPTIMIZER, start, 6)

    def one_pass(carry, inputs):
        vector, opt_state = carry
        noise_ez, weight_of_s, updates_now = inputs
        seen = {}

        def loss(both, shift_egz):
            with pytest.MonkeyPatch.context() as patch, recorded(transformer) as decoder:
                whole = functools.partial(adavae.encoded, read=layer_output)
                patch.setattr(adavae, "encoded", _spy(whole, seen, "encoded"))
                score = _spy(transformer.token_log_prob, seen, "token_log_prob")
                patch.setattr(transformer, "token_log_prob", score)
                model = case.model_with_noise(noise_ez[:, None], shift_egz, seen)
                params = freezing.merge(case.plan, *both)
                terms = measure(model, params, batch, jax.random.key(0))
            totals = jnp.stack(
                [
                    batch_loss(objective, terms, beta)[0]
                    for objective, beta in map(case.setting, [*names_, "train"])
                ]
            )
            (_, stack_params, hidden_btd, *_), ce_bt = seen["token_log_prob"]
            pooled_egd, last_btd, blocks_lbtd = seen["encoded"][1]
            aux = {"losses": totals, "ce_bt": -ce_bt, "dec": decoder[-1].inputs_lbtd}
            aux |= {
                "terms": terms,
                "pooled": pooled_egd[:, 0],
                "last": last_btd,
                "enc": blocks_lbtd,
            }
            aux |= {
                "post": seen["post"],
                "logits": gpt2.stack(c.decoder).logits(stack_params, hidden_btd),
            }
            return totals @ weight_of_s, aux

        shift_egz = jnp.zeros((len(batch.id_e), 1, c.latent), case.dtype)
        (value, aux), (grads, grad_z) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            (unravel(vector), frozen), shift_egz
        )
        grad, of_frozen = ravel_pytree(grads[0])[0], ravel_pytree(grads[1])[0]
        updates, next_state = tx.update(grad, opt_state, vector)
        keep = lambda new, old: jnp.where(updates_now, new, old)  # noqa: E731
        carry = (keep(vector + updates, vector), jax.tree.map(keep, next_state, opt_state))
        return carry, aux | dict(value=value, grad=grad, of_frozen=of_frozen, grad_z=grad_z)

    noise_pez = jnp.stack([data["eps"], data["eps"], 0 * data["eps"], *data["train_eps"]])
    column = [*names_, "train"]
    weight_ps = jnp.asarray(np.eye(len(column))[[column.index(p) for p in PASSES]], case.dtype)
    train_p = jnp.asarray([p == "train" for p in PASSES])
    (end, _), out = jax.lax.scan(one_pass, (start, tx.init(start)), (noise_pez, weight_ps, train_p))
    out["final"] = end

    n = len(data["gen_z"])
    prompt = Prompt(jnp.full((n, 1), case.meta["eos_pad_bos"]), jnp.ones(n, jnp.int32))
    greedy = DecodeConfig(method="greedy", max_length=14)
    keys = jax.random.split(jax.random.key(0), n)
    out["greedy"] = decode(
        case.model.gen, params, data["gen_z"][:, None], prompt, keys, greedy, end_id=-1, pad_id=-1
    ).token_et
    if case.config.use_memory:
        out["forgetful"] = _forgetful(case, params, data["gen_z"][:, None], prompt)
    if "iw_eps" in data:
        ctx = case.model.gen.prepare(params, batch)
        post = jax.tree.map(lambda a: a[0], out["post"])

        def weights(z_egz):
            nats_bt = case.model.gen.log_lik(params, ctx, z_egz)
            log_prior_e = case.model.prior.log_prob(params, z_egz)
            log_q_e = case.model.post.log_prob(params, post, z_egz)
            return per_example(nats_bt, batch), log_prior_e, log_q_e, nats_bt

        textbook = gaussian.reparameterize(post, data["iw_eps"])
        published = compat.released_draw(
            post.mean_egz[None], post.log_var_egz[None], data["iw_eps"]
        )
        out["iw"] = jax.lax.map(weights, jnp.concatenate([textbook, published]))
    if case.config.pool_scale == "sqrt_batch" and case.config.ways == Ways(psa=True):
        two = jax.tree.map(lambda a: a[:2], batch)
        out["of_two"] = case.model.post.encode(params, two)
    return out


def _forgetful(case: Case, params, z_egz, prompt: Prompt):
    """The released cached loop with memory: a token sees slots and itself, at place 0, 2, 2 ..."""
    embed = transformer.embed

    def next_token(token_e, place):
        with pytest.MonkeyPatch.context() as patch:
            moved = lambda spec, params, token, at: embed(spec, params, token, at + place)  # noqa: E731
            patch.setattr(transformer, "embed", moved)
            alone = prompt._replace(token_et=token_e[:, None])
            logits_ev, _ = adavae.build(case.config).gen.start(params, z_egz, alone, 1)
        token_e = jnp.argmax(logits_ev, axis=-1).astype(token_e.dtype)
        return token_e, token_e

    places = jnp.where(jnp.arange(14) > 0, 2, 0)
    return jax.lax.scan(next_token, prompt.token_et[:, 0], places)[1].T


def _compile(lowered):
    """Compiled with little optimisation, four times faster, where XLA still has the switches."""
    try:
        return lowered.compile(compiler_options=QUICK)
    except jax.errors.JaxRuntimeError:
        return lowered.compile()


def _spy(function, seen, name):
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        seen[name] = (args, result)
        return result

    return call


# Both parts of these have a case of their own, or they repeat one in float32.
SLOW = (("psa_input", "float64"), ("psa_softmax", "float64"), ("psa_atm", "float32"))


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES],
    ids="-".join,
)
def done(request):
    """A case and all it computes."""
    variant, dtype = request.param
    with jax.enable_x64(dtype == "float64"):
        case = Case(variant, dtype)
        data = {
            "eps": case.array("in/eps"),
            "train_eps": case.array("train/eps"),
            "gen_z": case.array("gen/z"),
        }
        if "iw/eps" in case.data.files:
            noise = np.moveaxis(case.array("iw/eps"), 1, 2)
            noise = noise.reshape(-1, *noise.shape[2:])
            noise = np.concatenate([case.array("iw/eps_first")[None], noise])
            data["iw_eps"] = noise[:, :, None]
        lowered = jax.jit(lambda *args: everything(case, *args)).lower(case.params, data)
        out = _compile(lowered)(case.params, data)
        yield case, jax.device_get(out)


def test_encoder_and_posterior(done):
    case, out = done
    real = case.mask_bt
    for i in range(case.config.encoder_layers):
        got = out["enc"][0, i][:, : real.shape[1]]
        case.close(got, f"enc/block_out_{i}", **HIDDEN, where=real)
    case.close(out["last"][0][:, : real.shape[1]], "enc/last_hidden", **HIDDEN, where=real)
    case.close(out["pooled"][0], "enc/representation", **HIDDEN)
    case.close(out["post"].mean_egz[0][:, 0], "lat/mu", **HIDDEN)
    case.close(out["post"].log_var_egz[0][:, 0], "lat/logvar", **HIDDEN)
    if "of_two" in out:  # the published temperature: the same sentences in a smaller batch
        case.close(out["of_two"].mean_egz[:, 0], "enc_batch2/mu", **HIDDEN)
        case.close(out["of_two"].log_var_egz[:, 0], "enc_batch2/logvar", **HIDDEN)
        assert np.max(np.abs(out["of_two"].mean_egz - out["post"].mean_egz[0][:2])) > 1e-3
    kl_ez = out["terms"].kl_egz[0][:, 0]
    case.close(kl_ez, "lat/kl_per_dim", **HIDDEN)
    case.close(kl_ez.sum(axis=1), "lat/kl", **HIDDEN)


def test_decoder(done):
    case, out = done
    real = case.mask_bt
    for i in range(case.config.decoder.layers - 1):
        got, name = out["dec"][0, i + 1][:, :-1], f"dec/block_out_{i}"
        # Stored in float32 alone, and some of these sums of hundreds come out near zero.
        largest = np.max(np.abs(case(name)))
        case.close(got, name, rtol=1e-4, atol=2e-6 * largest, where=real)
    vocab = case.config.decoder.vocab
    case.close(out["logits"][0][:, :-1, :vocab], "dec/logits", **HIDDEN, where=real)
    assert np.all(np.isneginf(out["logits"][..., vocab:]))
    case.close(out["ce_bt"][0][:, 1:], "dec/ce_per_token", **HIDDEN)
    case.close(out["terms"].nll_e[0], "dec/ce_per_example", rtol=1e-5)


def test_losses(done):
    case, out = done
    for i, setting in enumerate(case.meta["settings"]):
        at = PASSES.index("fb1_mean") if setting.get("from_mean") else 0
        name = f"loss/{setting['name']}"
        case.close(out["losses"][at, i], f"{name}/total", rtol=1e-5)
        terms = jax.tree.map(lambda a, at=at: a[at], out["terms"])
        mean = terms.nll_e.sum() / (terms.scored_e + 1).sum()
        case.close(mean, f"{name}/ce_mean", rtol=1e-5)
    assert len(case.meta["settings"]) == 6


def test_gradients(done):
    case, out = done
    for at, name in enumerate(GRADIENTS):
        grads = case.tree(out["grad"][at], out["of_frozen"][at])
        norm = np.sqrt(sum(np.sum(np.square(g.astype(float))) for g in jax.tree.leaves(grads)))
        case.close(norm, f"grad/{name}/__global_norm__", rtol=1e-4)
        ours = names.write(case.table, grads) | {"z": out["grad_z"][at][:, 0]}
        stored = {k.rpartition("/")[2] for k in case.data.files if k.startswith(f"grad/{name}/")}
        assert len(stored) >= 7
        for key in stored - {"__global_norm__"}:
            largest = np.max(np.abs(case(f"grad/{name}/{key}")))
            case.close(ours[key], f"grad/{name}/{key}", rtol=1e-3, atol=1e-5 * largest)


def test_four_updates(done):
    case, out = done
    schedule = optim.learning_rate(OPTIMIZER, 6)
    np.testing.assert_allclose([schedule(i) for i in range(4)], case.data["train/lr"], rtol=1e-6)
    first = PASSES.index("train")
    np.testing.assert_allclose(out["value"][first:], case.data["train/loss"], rtol=2e-3)
    norms = np.linalg.norm(out["grad"][first:], axis=1)
    np.testing.assert_allclose(norms, case.data["train/grad_norm"], rtol=2e-3)
    ours = names.write(case.table, case.tree(out["final"], None))
    before = names.write(case.table, case.params)
    stored = [k for k in case.data.files if k.startswith("train/final/")]
    assert len(stored) >= 4
    for key in stored:
        name = key.removeprefix("train/final/")
        np.testing.assert_allclose(ours[name], case.data[key], rtol=2e-3, atol=1e-5, err_msg=key)
    moved = {k for k, v in ours.items() if not np.array_equal(v, before[k])}
    trained = set(case.meta["trainable"]["after_decoder_unfreeze"])
    aliases = case.meta["parameter_aliases"]
    assert moved <= trained | {a for a, b in aliases.items() if b in trained}
    counts = case.meta["trainable_counts"]
    real = sum(v.size for k, v in before.items() if k in trained and k not in aliases)
    assert real == counts["trainable"]


def test_greedy_ids(done):
    case, out = done
    np.testing.assert_array_equal(out["greedy"], case.data["gen/greedy_ids_nocache"][:, 1:])


def test_ids_of_the_released_cached_loop(done):
    """It agrees with full decoding, but for memory, which overwrites its cache."""
    case, out = done
    if "gen/greedy_ids_official" not in case.data.files:
        pytest.skip("the released loop does not run for this variant")
    got = out["forgetful"] if case.config.use_memory else out["greedy"]
    np.testing.assert_array_equal(got, case.data["gen/greedy_ids_official"][:, 1:])


def test_weighted_likelihood(done):
    """The textbook columns are ours; the published ones swap two signs and the spread."""
    case, out = done
    if "iw" not in out:
        pytest.skip("this file holds no weighted likelihood")
    half = len(out["iw"][0]) // 2
    # The first draw is not weighed; the last of a draw's entries is per token.
    textbook, published = (
        [a[1:half] for a in out["iw"][:3]],
        [a[half + 1 :] for a in out["iw"][:3]],
    )
    for actual, name in (
        (compat.textbook_log_likelihood(*textbook), "textbook_log_prob"),
        (compat.log_likelihood(*published), "official_log_prob"),
        (published[0].mean(axis=0), "official_log_gen_mean"),
    ):
        np.testing.assert_allclose(actual, case.data[f"iw/{name}"], rtol=1e-5, err_msg=name)


def test_round_trip_of_the_name_table(done):
    case, _ = done
    theirs = case.weights()
    ours = names.write(case.table, case.params)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor.astype(np.float32), theirs[name], err_msg=name)
