"""Prior `gmm`: a mixture of diagonal Gaussians over the whole latent, learned with the model.

At initialisation every dimension has variance 1, half of it between the components. The KL of a
Gaussian posterior to it has no closed form, so it is estimated from the draw.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Key

from jvae.api import Cond, Params, Prior, draw_keys
from jvae.fields import setting
from jvae.latent.gaussian import LOG_2PI
from jvae.latent.priors import PRIORS, PriorKind, PriorParts


@dataclass(frozen=True)
class GmmOptions:
    """Options of the prior `gmm`."""

    components: int = setting(20, low=1, high=100_000, help="Gaussians of the mixture.")


def build(options: GmmOptions, shape: tuple[int, int]) -> PriorParts:
    """Builds the prior; its parameters are logit_k (mixture weights), mean_kgz and log_var_kgz."""
    parts = (options.components, *shape)

    def init(key: Key[Array, ""]) -> dict[str, Array]:
        return {
            "logit": jnp.zeros(options.components),
            "mean": jax.random.normal(key, parts) * 0.5**0.5,
            "log_var": jnp.full(parts, jnp.log(0.5)),
        }

    def sample(params: Params, key_e: Key[Array, "e"], cond: Cond = None) -> Float[Array, "e g z"]:
        del cond
        p = params["prior"]

        def draw(key_2: Array) -> Array:
            component_key, noise_key = key_2
            k = jax.random.categorical(component_key, p["logit"])
            noise_gz = jax.random.normal(noise_key, shape, p["mean"].dtype)
            return p["mean"][k] + jnp.exp(0.5 * p["log_var"][k]) * noise_gz

        return jax.vmap(draw)(draw_keys(key_e))

    def log_prob(params: Params, z_egz: Array, cond: Cond = None) -> Float[Array, "e"]:
        del cond
        p = params["prior"]
        left_ekgz = z_egz[:, None] - p["mean"][None]
        log_var_ekgz = p["log_var"][None]
        each_ekgz = jnp.square(left_ekgz) * jnp.exp(-log_var_ekgz) + log_var_ekgz + LOG_2PI
        each_ek = -0.5 * jnp.sum(each_ekgz, axis=(2, 3))
        return logsumexp(each_ek + jax.nn.log_softmax(p["logit"])[None], axis=1)

    return PriorParts(Prior(sample, log_prob), init)


PRIORS.register("gmm")(PriorKind(GmmOptions, build))
