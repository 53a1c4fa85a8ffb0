"""Prior `flow`: standard normal noise transformed by coupling layers, learned with the model.

It is initialised to N(0, I). Its density is exact; the KL to it is estimated from the draw.
"""

from dataclasses import dataclass

from jaxtyping import Array, Float, Key

from jvae.api import Cond, Params, Prior
from jvae.fields import setting
from jvae.latent.coupling import Coupling
from jvae.latent.gaussian import noise
from jvae.latent.priors import PRIORS, PriorKind, PriorParts


@dataclass(frozen=True)
class FlowOptions:
    """Options of the prior `flow`."""

    layers: int = setting(4, low=1, high=1_000, help="Coupling layers.")
    width: int = setting(128, low=1, high=2**16, help="Width of each layer's network.")
    bins: int = setting(8, low=2, high=1_000, help="Bins per spline.")


def build(options: FlowOptions, shape: tuple[int, int]) -> PriorParts:
    """Builds the prior; its parameters are those of a `Coupling` over the flattened latent."""
    size = shape[0] * shape[1]
    coupling = Coupling(options.layers, options.width, options.bins, size)

    def sample(params: Params, key_e: Key[Array, "e"], cond: Cond = None) -> Float[Array, "e g z"]:
        del cond
        return coupling.outward(params["prior"], noise(key_e, (size,))).reshape(-1, *shape)

    def log_prob(params: Params, z_egz: Array, cond: Cond = None) -> Float[Array, "e"]:
        del cond
        return coupling.log_prob(params["prior"], z_egz.reshape(-1, size))

    return PriorParts(Prior(sample, log_prob), coupling.init)


PRIORS.register("flow")(PriorKind(FlowOptions, build))
