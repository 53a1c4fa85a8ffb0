"""Decoding for any `jvae.api.Generator`: greedy, sampling and beam search in compiled loops."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from jvae.api import Cond, Generator, Params, Prompt
from jvae.decode.beam import Beams, beam_search, best
from jvae.decode.loop import Generated, expand_leading, generate, reorder_leading
from jvae.decode.sampling import DecodeConfig
from jvae.parallel.mesh import by_rows

__all__ = [
    "Beams",
    "DecodeConfig",
    "Generated",
    "beam_search",
    "best",
    "decode",
    "decode_in_batches",
    "expand_leading",
    "generate",
    "reorder_leading",
]


def decode(
    gen: Generator,
    params: Params,
    z_egz: Float[Array, "e g z"],
    prompt: Prompt,
    key_e: Key[Array, "e"] | None,
    cfg: DecodeConfig,
    *,
    end_id: int,
    pad_id: int,
    cond: Cond | None = None,
) -> Generated:
    """Continues every prompt with the method of `cfg`; beam search returns its best hypothesis.

    If compiled for a mesh (`jvae.parallel.mesh.under`), every device decodes its own examples.

    Args:
      key_e: one key per example, required for method "sample"; other methods ignore it.
    Raises: ValueError without keys for method "sample".
    """
    ends: Any = dict(end_id=end_id, pad_id=pad_id)

    def decode_part(params: Params, inputs: tuple[Any, ...]) -> Generated:
        z_egz, prompt, key_e, cond = inputs
        if cfg.method == "beam":
            return best(beam_search(gen, params, z_egz, prompt, cfg, cond=cond, **ends))
        return generate(gen, params, z_egz, prompt, key_e, cfg, cond=cond, **ends)

    return by_rows(decode_part, params, (z_egz, prompt, key_e, cond))


def decode_in_batches(
    gen: Generator,
    params: Params,
    z_egz: Float[Array | np.ndarray, "e g z"],
    prompt: Prompt,
    key_e: Key[Array, "e"] | None,
    cfg: DecodeConfig,
    *,
    end_id: int,
    pad_id: int,
    batch_size: int,
    cond: Cond | None = None,
) -> Generated:
    """Runs `decode` for any number of examples in batches of one compiled size.

    The last batch is padded with copies of the last example, which are dropped. Batches are
    dispatched without waiting and fetched at the end. Inputs may be NumPy or JAX arrays; the fields
    of the result are NumPy arrays.

    Raises: ValueError if there are no examples or `batch_size` is below 1.
    """
    total = z_egz.shape[0]
    if total < 1 or batch_size < 1:
        raise ValueError(
            f"need at least one example and a batch_size of 1, got {total} and {batch_size}"
        )
    outputs = []
    for first in range(0, total, batch_size):
        index = np.minimum(np.arange(first, first + batch_size), total - 1)
        z, prompts, key, conds = _rows((z_egz, prompt, key_e, cond), index)
        outputs.append(
            decode(gen, params, z, prompts, key, cfg, end_id=end_id, pad_id=pad_id, cond=conds)
        )
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *jax.device_get(outputs))


@jax.jit
def _take(leaf: Array, index: Array) -> Array:
    return leaf[index]


def _rows(tree, index: np.ndarray):
    """Rows of every leaf, on the device; only explicit transfers, so transfer guards may be on."""
    on_device = jax.device_put(index)
    return jax.tree.map(
        lambda leaf: (
            jax.device_put(leaf[index]) if isinstance(leaf, np.ndarray) else _take(leaf, on_device)
        ),
        tree,
    )
