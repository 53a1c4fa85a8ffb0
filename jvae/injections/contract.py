"""The interface of an injection of z into a decoder.

    z --reach--> slots, tokens, offset, features, states, per-layer vectors --points--> a stack

The parameters of an injection are stored next to those of the decoder's stack, in one dict.
It runs once per latent (`reach`), and its result is kept while decoding, except for slots and
tokens, which are then in the key-value caches.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jvae.api import Params
from jvae.nn.attention import owners
from jvae.nn.points import CrossKv, LatentKv, Points

Once = Any  # opaque pytree: values of an injection that do not depend on z
Lay = Callable[[Array], Array]  # broadcasts (E, ...) to (B, T, ...), from examples to tokens


class Reach(NamedTuple):
    """Results of an injection for one latent per example; unused fields are None.

    The leading axis is examples, except that `slots` and `cross` for packed rows have rows.
    """

    slots: LatentKv | None = None
    token_emd: Float[Array, "e m d"] | None = None  # vectors in front of the text, read as tokens
    offset_ed: Float[Array, "e d"] | None = None  # added to every input embedding
    feature_ec: Float[Array, "e c"] | None = None  # concatenated to the states that are scored
    layer_le: Any = None  # leaves (L, E, ...)
    cross: CrossKv | None = None

    def kept(self) -> "Reach":
        """The fields that decoding steps still read."""
        return self._replace(slots=None, token_emd=None)


# Example axes of offset, feature, layer and cross, which are kept.
_EXAMPLES: Any = (0, 0, 1, 1)
EXAMPLE_AXES = Reach(None, None, *_EXAMPLES)


def by_vector(spec: str, z_egz: Float[Array, "e g z"], kernel: Array) -> Array:
    """Applies einsum(spec, z_ez, rows) to each vector of a latent with its own Z rows of a kernel.

    The kernel has G * Z rows. The vector axis of the result comes after the example axis.

    Args:
      spec: such as "ez,zd->ed", with these letters for examples and latent dimensions.
    """
    _, rows, out = spec.replace("->", ",").split(",")
    parts = jnp.split(kernel, z_egz.shape[1], axis=rows.index("z"))
    vectors = [jnp.einsum(spec, z_egz[:, g], part) for g, part in enumerate(parts)]
    return jnp.stack(vectors, axis=out.index("e") + 1)


def nothing(params: Params, reach: Reach, lay: Lay) -> Points:
    """Empty points, for an injection that acts only through `Reach`."""
    del params, reach, lay
    return Points()


@runtime_checkable
class GiveReach(Protocol):
    """Computes the `Reach` of latents.

    rows: number of rows that hold the examples; while decoding, the number of examples.
    once: the result of `Injection.once`.
    """

    def __call__(
        self,
        params: Params,
        z_egz: Float[Array, "e g z"],
        rows: int,
        once: Once = None,
        /,
        *,
        decoding: bool = False,
    ) -> Reach: ...


class Injection(NamedTuple):
    """One injection, or several combined (`together`).

    needs: required abilities of the decoder's stack; see `jvae.nn.backbone.ABILITIES`.
    init(key) -> its boxed parameters.
    points(params, reach, lay) -> Points with `value` and `tap`.
    once(params, drop) -> z-independent values; None if there are none.
    table(params) -> (V, C), the output table for features; None without features.
    owners(slots) -> the segment that each latent slot is visible to, for a row of `slots` examples.
    cross_owners(slots) -> the same for the states of cross-attention.
    slots: latent slots per example.
    tokens: vectors in front of each example's text.
    lead: positions that the slots take up; tokens begin after them.
    """

    needs: frozenset[str]
    init: Callable[[Key[Array, ""]], Params]
    reach: GiveReach
    points: Callable[[Params, Reach, Lay], Points] = nothing
    once: Callable[[Params, Key[Array, ""] | None], Once] | None = None
    table: Callable[[Params], Float[Array, "v c"]] | None = None
    owners: Callable[[int], Int[np.ndarray, "m"]] = owners
    cross_owners: Callable[[int], Int[np.ndarray, "s"]] = owners
    slots: int = 0
    tokens: int = 0
    lead: int = 0


def together(injections: Sequence[Injection]) -> Injection:
    """Combines several injections of one latent, whose parameters must have different names.

    Slots are concatenated, offsets are added.

    Raises: ValueError for two injections that both act on layers, on scores or on cross-attention.
    """
    if len(injections) == 1:
        return injections[0]
    for place, count in (
        ("the layers", sum(injection.points is not nothing for injection in injections)),
        ("the scores", sum(injection.table is not None for injection in injections)),
        ("cross-attention", sum("cross" in injection.needs for injection in injections)),
    ):
        if count > 1:
            raise ValueError(f"{count} injections act on {place}; at most one may")
    prepared = any(injection.once is not None for injection in injections)
    slotted = [injection for injection in injections if injection.slots]
    acting = [injection for injection in injections if injection.points is not nothing]
    scored = [injection for injection in injections if injection.table is not None]
    crossing = [injection for injection in injections if "cross" in injection.needs]

    def init(key: Key[Array, ""]) -> Params:
        params: dict[str, Params] = {}
        for i, injection in enumerate(injections):
            params |= injection.init(jax.random.fold_in(key, i))
        return params

    def once(params: Params, drop: Key[Array, ""] | None) -> Once:
        return [
            None if injection.once is None else injection.once(params, drop)
            for injection in injections
        ]

    def reach(
        params: Params, z_egz: Array, rows: int, once: Once = None, *, decoding: bool = False
    ) -> Reach:
        parts = [
            injection.reach(
                params, z_egz, rows, None if once is None else once[i], decoding=decoding
            )
            for i, injection in enumerate(injections)
        ]

        def values_of(field: str) -> list[Any]:
            return [value for part in parts if (value := getattr(part, field)) is not None]

        def value_of(field: str) -> Any:
            return next(iter(values_of(field)), None)

        tokens, offsets = values_of("token_emd"), values_of("offset_ed")
        return Reach(
            slots=side_by_side(values_of("slots")),
            token_emd=jnp.concatenate(tokens, axis=1) if tokens else None,
            offset_ed=functools.reduce(jnp.add, offsets) if offsets else None,
            feature_ec=value_of("feature_ec"),
            layer_le=value_of("layer_le"),
            cross=value_of("cross"),
        )

    return Injection(
        needs=frozenset().union(*(injection.needs for injection in injections)),
        init=init,
        reach=reach,
        points=acting[0].points if acting else nothing,
        once=once if prepared else None,
        table=scored[0].table if scored else None,
        owners=lambda slots: np.concatenate([injection.owners(slots) for injection in slotted]),
        cross_owners=crossing[0].cross_owners if crossing else owners,
        slots=sum(injection.slots for injection in injections),
        tokens=sum(injection.tokens for injection in injections),
        lead=max(injection.lead for injection in injections),
    )


def side_by_side(parts: Sequence[LatentKv]) -> LatentKv | None:
    """Concatenates the slots that several injections give a row."""
    if not parts:
        return None
    if len(parts) == 1:
        return parts[0]
    return LatentKv(*(jnp.concatenate(arrays, axis=2) for arrays in zip(*parts, strict=True)))
