"""Classifiers and regressions on an encoder: on its frozen features, or trained together with it.

Frozen: an L2-regularised logistic or ridge regression on standardised features, which has a single
optimum and needs no learning rate. Deviation from Li et al. 2020, who train the layer for three
epochs. Trained: Adam updates a linear layer on the features and all or some parameters below it,
with a learning rate that decays to 0.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jvae.api import DROPOUT_STREAM, Batch, Params, TextVAE, example_keys
from jvae.data.rows import Encoded, pack_rows
from jvae.tree import map_named

FEATURES = ("pooled", "mean")
CLIP = 1.0  # global norm at which the gradient is clipped


class Examples(NamedTuple):
    """Tokenised sentences or sentence pairs, one packed example per row."""

    side: Encoded
    row: int  # tokens per row
    pad: int
    name: str  # side the posterior reads: enc, or dec for a sampler

    def batch(self, ids_b: Int[np.ndarray, "b"]) -> Batch:
        """A batch of some examples; id -1 gives an empty row."""
        names = {"dec", self.name}  # every batch has `dec`; an encoder never reads it
        batch = pack_rows(
            ids_b.astype(np.int32)[:, None],
            dict.fromkeys(names, self.side),
            dict.fromkeys(names, self.row),
            dict.fromkeys(names, self.pad),
        )
        return batch


class Settings(NamedTuple):
    """Settings of training a head together with the encoder."""

    epochs: int
    lr: float
    batch: int


class Extract(Protocol):
    """Features of each example. Only samplers without an encoder use `key`."""

    def __call__(
        self,
        params: Params,
        batch: Batch,
        key: Key[Array, ""],
        drop: Key[Array, ""] | None = None,
        /,
    ) -> Float[Array, "e d"]: ...


def extractor(model: TextVAE, kind: str) -> Extract:
    """Features from the encoder's pooled state, or for "mean" the concatenated posterior means."""

    def mean(
        params: Params, batch: Batch, key: Key[Array, ""], drop: Key[Array, ""] | None = None
    ) -> Array:
        post = model.metric_post
        key_e = example_keys(key, batch.id_e)
        mean_egz = post.mean(params, post.encode(params, batch, drop, cond=None, key_e=key_e))
        return mean_egz.reshape(mean_egz.shape[0], -1)

    def pooled(
        params: Params, batch: Batch, key: Key[Array, ""], drop: Key[Array, ""] | None = None
    ) -> Array:
        del key
        assert model.post.features is not None
        return model.post.features(params, batch, drop)

    return mean if kind == "mean" else pooled


def frozen_features(
    extract: Extract, params: Params, examples: Examples, batch: int, seed: int
) -> Float[np.ndarray, "e d"]:
    """Features of every example, in order."""
    run, key = jax.jit(extract), jax.random.key(seed)
    parts = [
        np.asarray(run(params, examples.batch(ids_b), key), np.float64)[ids_b >= 0]
        for ids_b in _batches(np.arange(len(examples.side.lengths)), batch)
    ]
    return np.concatenate(parts)


def fit_frozen(
    feature_ed: Float[np.ndarray, "e d"], label_e: np.ndarray, classes: int
) -> Callable[[Float[np.ndarray, "n d"]], np.ndarray]:
    """Fits a linear head to features and returns its prediction function.

    Args:
      classes: 0 for a regression.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if classes and len(np.unique(label_e)) < 2:
        return lambda other_nd: np.full(len(other_nd), label_e[0])
    head = LogisticRegression(C=1.0, max_iter=300, tol=1e-3) if classes else Ridge(alpha=1.0)
    fit = make_pipeline(StandardScaler(), head)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that has not converged is still usable
        return fit.fit(feature_ed, label_e).predict


class Trainer:
    """Trains an encoder with a linear head. One object compiles once for all training draws.

    Args:
      trains: whether the parameter of a name trains; by default all do. Others have neither
        gradients nor moments.
    """

    def __init__(
        self,
        extract: Extract,
        classes: int,
        settings: Settings,
        trains: Callable[[str], bool] = lambda name: True,
    ) -> None:
        self._classes, self._settings, self._trains = classes, settings, trains
        adam = optax.chain(optax.clip_by_global_norm(CLIP), optax.scale_by_adam())

        def output(
            both: Params,
            fixed: Params,
            batch: Batch,
            key: Array,
            drop: Key[Array, ""] | None = None,
        ) -> Array:
            params = _joined(both["params"], fixed)
            h_ed = extract(params, batch, key, drop).astype(jnp.float32)
            return h_ed @ both["head"]["kernel"] + both["head"]["bias"][None]

        def loss(both: Params, fixed: Params, batch: Batch, label_e: Array, key: Array) -> Array:
            out_ec = output(both, fixed, batch, key, jax.random.fold_in(key, DROPOUT_STREAM))
            if classes:
                loss_e = optax.softmax_cross_entropy_with_integer_labels(out_ec, label_e)
            else:
                loss_e = (out_ec[:, 0] - label_e) ** 2
            valid_e = batch.valid_e
            return jnp.sum(jnp.where(valid_e, loss_e, 0.0)) / jnp.maximum(jnp.sum(valid_e), 1)

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(
            both: Params,
            state: optax.OptState,
            fixed: Params,
            batch: Batch,
            label_e: Array,
            key: Array,
            rate: Array,
        ) -> tuple[Params, optax.OptState]:
            grads = jax.grad(loss)(both, fixed, batch, label_e, key)
            updates, state = adam.update(grads, state)
            both = jax.tree.map(lambda p, u: p - (rate * u).astype(p.dtype), both, updates)
            return both, state

        self._adam, self._step, self._output = adam, step, jax.jit(output)
        self._extract = extract

    def predict(
        self,
        params: Params,
        train: Examples,
        label_e: np.ndarray,
        ids: Int[np.ndarray, "n"],
        test: Examples,
        seed: int,
    ) -> np.ndarray:
        """Trains on some examples and returns predictions for the test examples.

        Args:
          params: initial parameters; they are not modified.
          ids: the training examples to use.
        """
        size, epochs = self._settings.batch, self._settings.epochs
        key, rng = jax.random.key(seed), np.random.default_rng(seed)
        moving = map_named(lambda name, leaf: leaf if self._trains(name) else None, params)
        fixed = map_named(lambda name, leaf: None if self._trains(name) else leaf, params)
        both = jax.tree.map(jnp.array, {"params": moving, "head": self._head(params, train)})
        state, steps = self._adam.init(both), epochs * -(-len(ids) // size)
        done = 0
        for _ in range(epochs):
            for ids_b in _batches(rng.permutation(ids), size):
                rate = self._settings.lr * (1 - done / steps)
                label_b = label_e[np.maximum(ids_b, 0)]
                batch, step_key = train.batch(ids_b), jax.random.fold_in(key, done)
                how = (fixed, batch, label_b, step_key, jnp.float32(rate))
                both, state = self._step(both, state, *how)
                done += 1
        batches = _batches(np.arange(len(test.side.lengths)), size)
        out_ec = np.concatenate(
            [np.asarray(self._output(both, fixed, test.batch(b), key))[b >= 0] for b in batches]
        )
        return out_ec.argmax(axis=1) if self._classes else out_ec[:, 0]

    def _head(self, params: Params, examples: Examples) -> dict[str, Array]:
        batch, key = examples.batch(np.zeros(1, np.int64)), jax.random.key(0)
        width = jax.eval_shape(self._extract, params, batch, key).shape[1]
        outputs = self._classes or 1
        return {"kernel": jnp.zeros((width, outputs)), "bias": jnp.zeros((outputs,))}


def _joined(moving: Params, fixed: Params) -> Params:
    """The tree of both, each of which has None where the other has a leaf."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, moving, fixed, is_leaf=lambda leaf: leaf is None
    )


def _batches(ids: np.ndarray, size: int) -> list[np.ndarray]:
    """Batches of `size` ids; the last one is padded with -1."""
    full = np.append(ids, np.full(-len(ids) % size, -1, ids.dtype))
    return list(full.reshape(-1, size))
