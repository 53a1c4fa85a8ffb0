"""A trained model as a step of a scikit-learn pipeline: texts in, latents out. Needs scikit-learn,
which the extra `probes` installs.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, TransformerMixin

from jvae.errors import InputError
from jvae.inference.text_vae import LoadedVAE
from jvae.runs import loading


class LatentTransformer(TransformerMixin, BaseEstimator):
    """Transforms texts to posterior means, one row each, and back.

        pipe = make_pipeline(jvae.LatentTransformer("optimus-tiny"), LogisticRegression())
        pipe.fit(texts, labels)

    Attributes:
      model: a name as for `jvae.load`, or a loaded model. A pipeline with a name can be pickled.
      truncate, batch_size: as in `LoadedVAE.encode`.
    """

    def __init__(
        self,
        model: str | LoadedVAE = "optimus-tiny",
        *,
        truncate: bool = True,
        batch_size: int | None = None,
    ):
        self.model = model
        self.truncate = truncate
        self.batch_size = batch_size

    def fit(self, X: Sequence[str], y: object = None) -> "LatentTransformer":
        """Loads the model; there is nothing to fit."""
        del X, y
        self._loaded()
        return self

    def transform(self, X: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Posterior means, with the groups of a latent concatenated."""
        z_egz = self._loaded().encode(X, truncate=self.truncate, batch_size=self.batch_size)
        return z_egz.reshape(len(z_egz), self._size())

    def inverse_transform(self, X: Float[np.ndarray, "n d"]) -> list[str]:
        """Decodes each latent greedily.

        Raises: InputError for latents of another size.
        """
        z_nd, size = np.asarray(X), self._size()
        if z_nd.ndim != 2 or z_nd.shape[1] != size:
            raise InputError(f"expected latents of shape (n, {size}), got {z_nd.shape}")
        vae = self._loaded()
        return vae.decode(z_nd.reshape(-1, *vae.model.latent_shape))

    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:
        """z0, z1, ..."""
        del input_features
        return np.array([f"z{i}" for i in range(self._size())], object)

    def _size(self) -> int:
        return math.prod(self._loaded().model.latent_shape)

    def _loaded(self) -> LoadedVAE:
        if isinstance(self.model, LoadedVAE):
            return self.model
        if getattr(self, "_name", None) != self.model:
            self._vae, self._name = loading.load(self.model), self.model
        return self._vae

    def __getstate__(self) -> dict[str, object]:
        state: dict[str, object] = super().__getstate__()  # pyright: ignore[reportAssignmentType]
        return {key: value for key, value in state.items() if key not in ("_vae", "_name")}

    def __sklearn_clone__(self) -> "LatentTransformer":
        # scikit-learn copies parameters, but a loaded model cannot be copied.
        return type(self)(self.model, truncate=self.truncate, batch_size=self.batch_size)

    def __sklearn_is_fitted__(self) -> bool:
        return True
