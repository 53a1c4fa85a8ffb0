"""A linear map of each layer's latent, added to the residual stream at the start of the layer.

Source: Randeng-DELLA (Fengshenbang-LM), which uses it instead of the tensor product of
`jvae.injections.fusion`. Deviation: it is added in parallel to the layer's attention, which does
not read it; everything after that does.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.api import Params
from jvae.injections.contract import Injection, Lay, Once, Reach
from jvae.nn.backbone import Stack
from jvae.nn.layers import Projection
from jvae.nn.points import Points
from jvae.nn.stack import init_stack

NAME = "layer_offset"


def layer_offset(stack: Stack, first: int, groups: int, latent: int) -> Injection:
    """The injection of latents (E, G, Z) into layers first..first+groups-1."""
    c = stack.config
    start = nn.initializers.normal(c.init_std)
    project = Projection((c.width,), ("latent",), ("embed",), kernel_init=start)

    def init(key: Key[Array, ""]) -> Params:
        z = jnp.zeros((1, latent))
        return {NAME: init_stack(lambda k: project.init(k, z)["params"], key, groups)}

    def reach(
        params: Params, z_egz: Array, rows: int, once: Once = None, *, decoding: bool = False
    ) -> Reach:
        del rows, once, decoding
        kernel_gzd, bias_gd = (params[NAME][part].astype(c.dtype) for part in ("kernel", "bias"))
        offset_ged = jnp.einsum("egz,gzd->ged", z_egz.astype(c.dtype), kernel_gzd)
        offset_ged = offset_ged + bias_gd[:, None]
        return Reach(layer_le=jnp.pad(offset_ged, ((first, c.layers - first - groups), *_NONE)))

    def points(params: Params, reach: Reach, lay: Lay) -> Points:
        del params

        def tap(name: str, state: Array, offset_ed: Float[Array, "e d"]) -> Array | None:
            return lay(offset_ed) if name == "input" else None

        return Points(tap=tap, tap_l=reach.layer_le)

    return Injection(frozenset({"decode", "taps"}), init, reach, points)


_NONE = ((0, 0), (0, 0))
