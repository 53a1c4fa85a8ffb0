"""Checkpoints of the original repositories: tensor names and files.

Torch files are opened only with torch's weights-only loader, which requires torch to be installed;
arbitrary pickles are never executed.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvae.errors import WeightsError
from jvae.pretrained import bert, files, gpt2, originals_adavae, originals_della, t5
from jvae.pretrained.files import Tensor, Tensors
from jvae.pretrained.names import NameRule, NameTable, Shape, Transform, joined_linear, linear

_TORCH = (".bin", ".pt", ".pth", ".ckpt")
_WRAPPERS = ("model_state_dict", "state_dict", "model")  # keys that training code nests tensors in


def _memory_by_layer() -> Transform:
    """W_M (layers * width, latent), whose output is split by layer.

    Our kernel is (layers, latent, heads, head).
    """

    def read(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        layers, latent, heads, head = shape
        by_layer = arrays[0].reshape(layers, heads, head, latent)
        return by_layer.transpose(0, 3, 1, 2)

    def write(leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf.transpose(0, 2, 3, 1).reshape(-1, leaf.shape[1])]

    return Transform(read, write)


def optimus(c: Any) -> NameTable:
    """The full state dict of Optimus (`model_state_dict` of a released `training.bin`).

    The released code always saves both injections; those that the model does not use are ignored.
    """
    transformer = "decoder.transformer."
    used, ignored = [], [rf"{transformer}h\.\d+\.attn\.bias"]
    for enabled, path, name, transform in (
        (c.use_memory, "decoder/memory/kernel", f"{transformer}linear.weight", _memory_by_layer()),
        (c.use_embedding, "decoder/offset/kernel", f"{transformer}linear_emb.weight", linear()),
    ):
        if enabled:
            used.append(NameRule(path, (name,), transform))
        else:
            ignored.append(name)
    return NameTable(
        rules=(
            *bert.rules(c.encoder.vocab, "encoder.", "encoder", "posterior/pooler"),
            *gpt2.rules(c.decoder.vocab, transformer, "decoder"),
            NameRule("posterior/head/kernel", ("encoder.linear.weight",), linear()),
            *used,
        ),
        ignored=tuple(ignored),
        tied=(("decoder.lm_head.weight", f"{transformer}wte.weight"),),
    )


def t5_vae(c: Any) -> NameTable:
    """The full state dict of T5-VAE, except cross-attention, which is neither trained nor used.

    Raises: WeightsError for a config with injections of z that the original does not have.
    """
    if c.cross_slots or not c.use_memory:
        raise WeightsError(
            "an original T5-VAE injects z into self-attention only: set use_memory and "
            "cross_slots=0"
        )
    dec = c.decoder
    base = t5.table(dec.vocab, gated=dec.gated, tied=dec.tied, cross=False, prefix="t5.")
    heads = ("t5.mu.weight", "t5.logvar.weight")
    rules = (
        NameRule("posterior/head/kernel", heads, joined_linear(2)),
        NameRule("decoder/memory/kernel", ("t5.memory_projection.weight",), _memory_by_layer()),
    )
    return NameTable((*base.rules, *rules), base.ignored, base.tied)


def adavae(c: Any) -> NameTable:
    """The full state dict of AdaVAE."""
    return originals_adavae.adavae(
        vocab=c.decoder.vocab,
        encoder_layers=c.encoder_layers,
        pool=c.pool,
        adapt_encoder=c.adapt_encoder,
        adapt_decoder=c.adapt_decoder,
        learned_scale=c.learn_scale,
        psa=c.use_psa,
        memory=c.use_memory,
        embedding=c.use_embedding,
        output=c.use_output,
        adapters=c.use_adapters,
        vary=c.layerwise_projection,
        prefix=c.prefix > 0,
    )


def della(c: Any) -> NameTable:
    """The full state dict of DELLA."""
    return originals_della.della(
        vocab=c.decoder.vocab,
        layers=c.decoder.layers,
        width=c.decoder.width,
        latent=c.latent,
        rank=c.rank,
        first=c.begin_layer,
        last=c.last_layer,
        conditional=c.conditional,
        bow=c.use_bow,
    )


def open_original(path: Path) -> Tensors:
    """Opens the tensors of an original checkpoint, by the names of its state dict.

    Args:
      path: .safetensors, .npz, or a torch file.
    Raises: WeightsError.
    """
    tensors = _torch(path) if path.suffix in _TORCH else files.read_file(path)
    if tensors and all(name.startswith("module.") for name in tensors):  # saved by a parallel run
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _torch(path: Path) -> Tensors:
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        import torch  # pyright: ignore[reportMissingImports]  not a dependency of jvae
    except ImportError:
        raise WeightsError(
            f"{path}: is a torch file, which only torch can read without executing what is in it, "
            "and torch is not installed. Install it, or convert the file where it is: "
            'safetensors.torch.save_file(torch.load(path, weights_only=True), "x.safetensors")'
        ) from None
    try:
        # Training scripts save their parsed flags with the weights; those are plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler may raise any exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{path}: torch's weights-only loader refuses it ({reason}). If you trust the file, "
            "save its state dict alone, as .safetensors"
        ) from error
    while isinstance(tree, Mapping) and (inner := [w for w in _WRAPPERS if w in tree]):
        tree = tree[inner[0]]
    if not isinstance(tree, Mapping):
        raise WeightsError(f"{path}: holds {type(tree).__name__}, expected tensors by name")
    if odd := [str(name) for name, value in tree.items() if not hasattr(value, "detach")]:
        raise WeightsError(f"{path}: {', '.join(odd[:5])} are not tensors; expected a state dict")
    return {str(name): _from_torch(value) for name, value in tree.items()}


def _from_torch(value: Any) -> Tensor:
    dtype = jnp.dtype(str(value.dtype).removeprefix("torch."))

    def read() -> np.ndarray:
        plain = value.detach()
        # NumPy does not support torch's bfloat16; float32 represents it exactly.
        return (plain.float() if dtype == jnp.bfloat16 else plain).numpy()

    return Tensor(tuple(value.shape), dtype, read)
