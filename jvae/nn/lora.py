"""Low-rank additions to the kernels of a stack (LoRA); the kernels themselves may stay frozen.

    y = x . W + (alpha / rank) * (x . A) . B

Source: Hu et al. 2021, arXiv 2106.09685. B is initialised to zero, so training starts from the
pretrained function.

A pair {a, b} is stored next to its kernel under "lora", stacked over layers in the same way. A
kernel that fuses several projections has one pair per adapted projection, by name:
{q: {a, b}, v: {a, b}}. The pair is applied to x directly, since computing W + AB would need a
gradient of the size of W in each step.

`with_lora` wraps the functions of any stack whose layers use `jvae.nn.layers.Projection`.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jvae.api import Params
from jvae.errors import ConfigError
from jvae.fields import setting
from jvae.nn.points import UNTOUCHED, Points
from jvae.tree import map_named

NAME = "lora"
# Projections in fused kernels, in order along the axis after the input.
FUSED = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "both": ("gate", "up")}
_INIT, _DROP = 0x10_7A, 0x10_7B  # separate streams, so that LoRA does not change other draws
_A, _B = (re.compile(rf"(^|/){NAME}/(\w+/)?{leaf}$") for leaf in "ab")


@dataclass(frozen=True)
class Lora:
    """The low-rank additions of one stack; rank 0 turns them off."""

    rank: int = setting(0, low=0, high=2**14, help="Rank of each addition; 0: none.")
    alpha: float = setting(16.0, above=0.0, high=1e6, help="Additions are scaled by alpha / rank.")
    dropout: float = setting(
        0.0, low=0.0, below=1.0, help="Dropout rate of each addition's inputs."
    )
    targets: str = setting(
        ".",
        pattern=True,
        help="Pattern of adapted projections: attn/q, k, v, out, mlp/gate, up, down, cross/q ...",
    )


def addend(pairs: Params, x: Array, inputs: int, name: str | None) -> Array:
    """The low-rank addition to a kernel's output; b already includes the scale.

    Args:
      pairs: the pair, or one pair per adapted part of a fused kernel.
      inputs: number of axes of x that the kernel contracts.
      name: name of the kernel's module.
    """

    def product(pair: Any) -> Array:
        a, b = (pair[leaf].astype(x.dtype) for leaf in "ab")
        return jnp.tensordot(jnp.tensordot(x, a, axes=inputs), b, axes=1)

    if "a" in pairs:
        return product(pairs)
    parts = {part: product(pair) for part, pair in pairs.items()}
    nothing = jnp.zeros_like(next(iter(parts.values())))
    products = [parts.get(part, nothing) for part in FUSED[name or ""]]
    return jnp.stack(products, axis=x.ndim - inputs)


def with_lora(stack: Any, lora: Lora, where: str) -> Any:
    """Adds low-rank additions to the layers of a stack (`jvae.nn.backbone.Stack`).

    Args:
      where: config key of the stack, for messages.
    """

    def adding(init: Callable[..., Any]) -> Callable[..., Any]:
        def make(key: Key[Array, ""], *args: Any, **options: Any) -> Any:
            params = init(key, *args, **options)
            layers = _with_pairs(params["layers"], lora, jax.random.fold_in(key, _INIT), where)
            return params | {"layers": layers}

        return make

    def acting(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, *args, **options: function(_ready(params, lora), *args, **options)

    def rows(
        params: Params, x: Any, mask: Any, points: Points = UNTOUCHED, drop: Any = None, **read: Any
    ) -> Any:
        return stack.rows(_ready(params, lora, drop), x, mask, points, drop, **read)

    return stack._replace(
        init=adding(stack.init),
        init_body=adding(stack.init_body),
        rows=rows,
        **{name: acting(getattr(stack, name)) for name in ("prefill", "step", "cross")},
    )


def merged(params: Params, lora: Lora) -> Any:
    """Parameters of a stack with the additions merged into the kernels, in float32 or wider."""
    return params | {"layers": _merged(params["layers"], lora.alpha / max(lora.rank, 1), "")}


def _merged(tree: Mapping[str, Any], scale: float, name: str) -> dict[str, Any]:
    rest = {
        key: _merged(node, scale, key) if isinstance(node, Mapping) else node
        for key, node in tree.items()
        if key != NAME
    }
    if NAME not in tree:
        return rest
    kernel = jnp.asarray(rest["kernel"])
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))

    def product(pair: Any) -> Array:
        a, b = (jnp.asarray(pair[leaf], kernel.dtype) for leaf in "ab")
        return scale * jax.vmap(lambda a, b: jnp.tensordot(a, b, axes=1))(a, b)

    if "a" in tree[NAME]:
        return rest | {"kernel": kernel + product(tree[NAME])}
    for part, pair in tree[NAME].items():
        kernel = kernel.at[:, :, FUSED[name].index(part)].add(product(pair))
    return rest | {"kernel": kernel}


def _ready(params: Params, lora: Lora, drop: Key[Array, ""] | None = None) -> Any:
    """Parameters with the scale, and dropout in training, applied to the pairs.

    Deviation: the dropout mask is drawn per layer and step, not per token, so that the layers need
    no key.
    """
    count = iter(range(2**31))

    def leaf(path: str, value: Array) -> Array:
        if _B.search(path):
            return value * (lora.alpha / lora.rank)
        if drop is None or not lora.dropout or not _A.search(path):
            return value
        key = jax.random.fold_in(jax.random.fold_in(drop, _DROP), next(count))
        keep = jax.random.bernoulli(key, 1.0 - lora.dropout, (*value.shape[:-1], 1))
        return jnp.where(keep, value / (1.0 - lora.dropout), jnp.zeros_like(value))

    return params | {"layers": map_named(leaf, params["layers"])}


def _with_pairs(layers: Any, lora: Lora, key: Key[Array, ""], where: str) -> Any:
    """Boxed layers with a boxed pair next to each matching projection.

    Raises: ConfigError if none matches.
    """
    projections: list[str] = []
    shapes: list[tuple[int, ...]] = []  # shape of `a` in each pair
    added: list[dict[str, Any]] = []

    def pair(kernel: nn.LogicallyPartitioned, inputs: int, fused: bool) -> dict[str, Any]:
        """Boxed {a, b} of one projection of a kernel (L, *in, *out), or (L, in, parts, *out)."""
        names, shape = tuple(kernel.names)[1:], kernel.value.shape
        shapes.append((*shape[: 1 + inputs], lora.rank))
        b = jnp.zeros((shape[0], lora.rank, *shape[1 + inputs + fused :]), jnp.float32)
        names_b = ("layers", None, *names[inputs + fused :])
        added.append(
            {"a": ("layers", *names[:inputs], None), "b": nn.LogicallyPartitioned(b, names_b)}
        )
        return added[-1]

    def walk(tree: Mapping[str, Any], path: str) -> dict[str, Any]:
        out = {
            name: walk(node, f"{path}/{name}".lstrip("/")) if isinstance(node, Mapping) else node
            for name, node in tree.items()
        }
        inputs = _inputs(tree.get("kernel"))
        if inputs == 0:
            return out
        above, _, name = path.rpartition("/")
        fused = FUSED.get(name, ())
        pairs = {}
        for part in fused or (name,):
            projections.append(f"{above}/{part}".lstrip("/"))
            if re.search(lora.targets, projections[-1]):
                pairs[part] = pair(tree["kernel"], inputs, bool(fused))
        if pairs:
            out[NAME] = pairs if fused else pairs[name]
        return out

    out = walk(layers, "")
    if not added:
        raise ConfigError(
            f"{where}.{NAME}.targets: {lora.targets!r} matches no projection of its layers "
            f"({', '.join(projections) or 'it has none'})"
        )
    # One draw for all pairs: separate draws take seconds each to compile on a CPU.
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    uniform = jax.random.uniform(key, (ends[-1],), jnp.float32, -1.0, 1.0)
    for entry, shape, end in zip(added, shapes, ends, strict=True):
        edge = math.prod(shape[1:-1]) ** -0.5  # from the input size, as in the released code
        a = edge * uniform[end - math.prod(shape) : end].reshape(shape)
        entry["a"] = nn.LogicallyPartitioned(a, entry["a"])
    return out


def _inputs(kernel: Any) -> int:
    """Number of input axes of a stacked kernel; 0 if it does not touch the residual stream."""
    if not isinstance(kernel, nn.LogicallyPartitioned) or "embed" not in kernel.names:
        return 0
    names = tuple(kernel.names)[1:]
    return len(names) - 1 if names[-1] == "embed" else int(names[0] == "embed")
