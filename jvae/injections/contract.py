"""The contract of an injection: what z gives a decoder, and where it acts.

    z --reach--> slots, tokens, offset, features, states, per-layer vectors --points--> a stack

An injection owns some parameters, which lie beside those of the decoder's stack, in one dict `own`.
It runs once per latent (`reach`); what it gives is kept while decoding, slots and tokens aside,
which then lie in the caches of keys and values.
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

Lay = Callable[[Array], Array]  # (E, ...) to (B, T, ...): each token gets its own example's value


class Reach(NamedTuple):
    """What one latent per example gives a decoder; None for what it does not.

    In front stand rows where `slots` and `cross` are meant for packed rows, else examples.
    """

    slots: LatentKv | None = None
    token_emd: Float[Array, "e m d"] | None = None  # vectors in front of the text, read as tokens
    offset_ed: Float[Array, "e d"] | None = None  # added to every input embedding
    feature_ec: Float[Array, "e c"] | None = None  # joins the states that are scored
    layer_le: Any = None  # leaves (L, E, ...)
    cross: CrossKv | None = None

    def kept(self) -> "Reach":
        """What a step of decoding still reads."""
        return self._replace(slots=None, token_emd=None)


# The axis of examples of offset, feature, layer and cross, which are kept.
_EXAMPLES: Any = (0, 0, 1, 1)
EXAMPLE_AXES = Reach(None, None, *_EXAMPLES)


def by_vector(spec: str, z_egz: Float[Array, "e g z"], kernel: Array) -> Array:
    """einsum(spec, z_ez, rows) of each vector of a latent and Z rows of its own, of the kernel's
    G * Z; vectors stand behind examples.

    Args:
      spec: such as "ez,zd->ed", with these letters for examples and dimensions.
    """
    _, rows, out = spec.replace("->", ",").split(",")
    parts = jnp.split(kernel, z_egz.shape[1], axis=rows.index("z"))
    every = [jnp.einsum(spec, z_egz[:, g], part) for g, part in enumerate(parts)]
    return jnp.stack(every, axis=out.index("e") + 1)


def nothing(params: Any, reach: Reach, lay: Lay) -> Points:
    """Points of an injection that acts through `Reach` alone."""
    del params, reach, lay
    return Points()


@runtime_checkable
class GiveReach(Protocol):
    """What a latent gives. rows: those that the examples lie in; as many as examples while
    decoding. once: what `Injection.once` gave.
    """

    def __call__(
        self,
        own: Params,
        z_egz: Float[Array, "e g z"],
        rows: int,
        once: Any = None,
        /,
        *,
        decoding: bool = False,
    ) -> Reach: ...


class Injection(NamedTuple):
    """One way, or several at once (`together`).

    needs: abilities of the decoder's stack; see `jvae.nn.backbone.ABILITIES`.
    init(key) -> its parameters, boxed.
    points(own, reach, lay) -> Points with `value` and `tap`.
    once(own, drop) -> what does not depend on z; None for nothing.
    table(own) -> (V, C), the scores that a feature adds; None without features.
    owners(slots) -> the segment that sees each latent slot, for a row of `slots` examples.
    cross_owners(slots) -> the same for the states of cross-attention.
    slots: latent slots of one example. tokens: vectors in front of its text. lead: positions that
      its slots take, so that tokens begin behind them.
    """

    needs: frozenset[str]
    init: Callable[[Key[Array, ""]], Any]
    reach: GiveReach
    points: Callable[[Any, Reach, Lay], Points] = nothing
    once: Callable[[Params, Key[Array, ""] | None], Any] | None = None
    table: Callable[[Params], Float[Array, "v c"]] | None = None
    owners: Callable[[int], Int[np.ndarray, "m"]] = owners
    cross_owners: Callable[[int], Int[np.ndarray, "s"]] = owners
    slots: int = 0
    tokens: int = 0
    lead: int = 0


def together(injections: Sequence[Injection]) -> Injection:
    """Several injections of one latent, each with parameters of its own name.

    Slots stand side by side, offsets add up. Raises: ValueError for two that act on one place of
    the layers, on the scores or on cross-attention.
    """
    if len(injections) == 1:
        return injections[0]
    for what, count in (
        ("the layers", sum(one.points is not nothing for one in injections)),
        ("the scores", sum(one.table is not None for one in injections)),
        ("cross-attention", sum("cross" in one.needs for one in injections)),
    ):
        if count > 1:
            raise ValueError(f"{count} injections act on {what}; one can")
    prepared = any(one.once is not None for one in injections)
    slotted = [one for one in injections if one.slots]
    acting = [one for one in injections if one.points is not nothing]
    scored = [one for one in injections if one.table is not None]
    crossing = [one for one in injections if "cross" in one.needs]

    def init(key: Key[Array, ""]) -> Any:
        params: dict[str, Any] = {}
        for i, one in enumerate(injections):
            params |= one.init(jax.random.fold_in(key, i))
        return params

    def once(own: Any, drop: Any) -> Any:
        return [None if one.once is None else one.once(own, drop) for one in injections]

    def reach(own: Any, z_egz: Array, rows: int, once: Any = None, **how: Any) -> Reach:
        parts = [
            one.reach(own, z_egz, rows, None if once is None else once[i], **how)
            for i, one in enumerate(injections)
        ]

        def every(field: str) -> list[Any]:
            return [found for part in parts if (found := getattr(part, field)) is not None]

        def only(field: str) -> Any:
            return next(iter(every(field)), None)

        tokens, offsets = every("token_emd"), every("offset_ed")
        return Reach(
            slots=side_by_side(every("slots")),
            token_emd=jnp.concatenate(tokens, axis=1) if tokens else None,
            offset_ed=functools.reduce(jnp.add, offsets) if offsets else None,
            feature_ec=only("feature_ec"),
            layer_le=only("layer_le"),
            cross=only("cross"),
        )

    return Injection(
        needs=frozenset().union(*(one.needs for one in injections)),
        init=init,
        reach=reach,
        points=acting[0].points if acting else nothing,
        once=once if prepared else None,
        table=scored[0].table if scored else None,
        owners=lambda slots: np.concatenate([one.owners(slots) for one in slotted]),
        cross_owners=crossing[0].cross_owners if crossing else owners,
        slots=sum(one.slots for one in injections),
        tokens=sum(one.tokens for one in injections),
        lead=max(one.lead for one in injections),
    )


def side_by_side(parts: Sequence[LatentKv]) -> LatentKv | None:
    """All slots of a row."""
    if not parts:
        return None
    if len(parts) == 1:
        return parts[0]
    return LatentKv(*(jnp.concatenate(arrays, axis=2) for arrays in zip(*parts, strict=True)))
