"""Prior `vamp`: an equal mixture of the posteriors of learned inputs.

The inputs replace embedded tokens, all have the same length, and pass through the model's own
encoder without dropout. Source: Tomczak & Welling 2018, arXiv 1705.07120. Each call of the density
costs one encoder pass over the inputs, regardless of the number of latents.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Key

from jvae.api import Cond, Params, Post, Prior, draw_keys
from jvae.fields import setting
from jvae.latent.priors import PRIORS, InputPosterior, PriorKind, PriorParts


@dataclass(frozen=True)
class VampOptions:
    """Options of the prior `vamp`."""

    components: int = setting(20, low=1, high=100_000, help="Number of learned inputs.")
    length: int = setting(16, low=1, high=2**20, help="Tokens per learned input.")


def build(options: VampOptions, shape: tuple[int, int], inputs: InputPosterior) -> PriorParts:
    """Builds the prior; its parameters are input_ktd, the inputs of the encoder's layer 0.

    Raises: ValueError if the inputs exceed the encoder's maximum length.
    """
    del shape
    count, length = options.components, options.length
    if length > inputs.longest:
        raise ValueError(f"length is {length}; the encoder reads at most {inputs.longest} tokens")

    def posteriors(params: Params) -> Any:
        return inputs.encode(params, params["prior"]["input"])

    def sample(params: Params, key_e: Key[Array, "e"], cond: Cond = None) -> Float[Array, "e g z"]:
        del cond
        key_e2 = draw_keys(key_e)
        k_e = jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(key_e2[:, 0])
        post_e = jax.tree.map(lambda leaf: leaf[k_e], posteriors(params))
        return inputs.sample(params, post_e, key_e2[None, :, 1])[0]

    def log_prob(params: Params, z_egz: Array, cond: Cond = None) -> Float[Array, "e"]:
        del cond

        def of(post: Post) -> Float[Array, "e"]:
            shared = jax.tree.map(
                lambda leaf: jnp.broadcast_to(leaf, (len(z_egz), *leaf.shape)), post
            )
            return inputs.log_prob(params, shared, z_egz)

        each_ke = jax.vmap(of)(posteriors(params))
        return logsumexp(each_ke, axis=0) - jnp.log(count).astype(each_ke.dtype)

    return PriorParts(
        Prior(sample, log_prob, support=inputs.support),
        lambda key: {"input": inputs.start(key, (count, length))},
    )


PRIORS.register("vamp")(PriorKind(VampOptions, build_from=build))
