"""Files of numbers that the original DELLA code produced, as our model, parameters and batch."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Batch, Side
from jvae.backbones.gpt2 import Gpt2Config
from jvae.latent import layerwise
from jvae.models import della
from jvae.pretrained import names, originals
from jvae.training.objectives import Objective
from tests.tools import reference

VARIANTS = ("uncond", "uncond_bow_threshold", "uncond_layers1to2", "cond")
UNCONDITIONAL = VARIANTS[:3]
TOLERANCES = dict(  # for float32, from the README of the files
    hidden=dict(rtol=1e-4, atol=5e-5), density=dict(rtol=2e-4), loss=dict(rtol=1e-5)
)
BOW_WEIGHT = 0.2


class Case:
    """One fixture file as our model, parameters and batch, in one dtype."""

    def __init__(self, variant: str, dtype: str):
        self.data = np.load(reference.path(f"della/{variant}_seed0.npz"))
        self.meta = json.loads(str(self.data["meta/config_json"]))
        self.dtype = dtype
        size, options = self.meta["size"], self.meta["options"]
        self.config = della.DellaConfig(
            decoder=Gpt2Config(
                size["layers"],
                size["hidden"],
                size["heads"],
                4 * size["hidden"],
                size["vocab"] + 2,
                64,
                dropout=0.0,
                dtype=dtype,
                # The vocabulary in chunks in one dtype, whole in the other.
                xent_chunk=48 if dtype == "float64" else 8192,
            ),
            latent=size["latent"],
            rank=size["rank"],
            conditional=options.get("is_cvae", False),
            begin_layer=options.get("begin_layer", 0),
            pool="attn_unmasked",
            use_bow=options.get("use_bow", False),
        )
        self.objective = Objective(
            free_bits="group_max",
            free_bits_nats=options.get("kl_threshold", 0.0),
            kl_reduce="group_mean",
            aux_weight={"bow": BOW_WEIGHT},
        )
        self.model = della.build(self.config)
        self.chain = della.chain(self.config)
        self.table = originals.della(self.config)
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

    def foreign(self, tree) -> dict[str, np.ndarray]:
        """A tree like the parameters by the original's names."""
        return names.write(self.table, jax.tree.map(np.asarray, tree))

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
        """True at tokens other than padding."""
        return np.asarray(self.batch.dec.segment_bt > 0)

    def model_with_noise(self, noise_egz):
        """The model whose posterior draws once, with this noise."""

        def sample(params, post, key_ke):
            pick = layerwise.reparameterized
            walked = layerwise.walk(self.chain, params, pick, noise_egz, text_egcz=post.text_egcz)
            return walked.z_egz[None]

        return self.model._replace(post=self.model.post._replace(sample=sample))

    def close(self, got, name: str, kind: str = "", where=..., **tolerance: float):
        """Compares with a stored array at the README's tolerance for its kind, or another; with its
        float64 twin at 1e-8.
        """
        want, twin = self.data[name], f"f64/{name}"
        tolerance = TOLERANCES[kind] if kind else tolerance
        if self.dtype == "float64" and twin in self.data.files:
            want = self.data[twin]
            tolerance = dict(rtol=1e-8, atol=1e-8 * np.max(np.abs(want)))
        got = np.asarray(got)
        assert got.shape == want.shape, name
        np.testing.assert_allclose(got[where], want[where], err_msg=name, **tolerance)


def _case(variant: str, dtype: str) -> Any:
    """Every variant in float64; float32, whose numbers that repeats, in the slow suite."""
    again = dtype == "float32"
    return pytest.param((variant, dtype), marks=[pytest.mark.slow] * again)


@pytest.fixture(
    scope="module",
    params=[_case(v, d) for v in VARIANTS for d in ("float32", "float64")],
    ids="-".join,
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
