"""Names in the checkpoints of the original repositories."""

from collections.abc import Sequence

import numpy as np

from jvae.pretrained import bert, gpt2
from jvae.pretrained.names import Rule, Shape, Table, Transform, linear


def _memory_by_layer() -> Transform:
    """W_M (layers * width, latent), whose output is cut layer by layer into our (layers, latent,
    heads, head).
    """

    def read(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        layers, latent, heads, head = shape
        by_layer = arrays[0].reshape(layers, heads, head, latent)
        return by_layer.transpose(0, 3, 1, 2)

    def write(leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf.transpose(0, 2, 3, 1).reshape(-1, leaf.shape[1])]

    return Transform(read, write)


def optimus(encoder_vocab: int, decoder_vocab: int, memory: bool, embedding: bool) -> Table:
    """The full state dict of Optimus (`model_state_dict` of a released `training.bin`).

    The released code saves both injections whatever was trained; those the model does not use are
    ignored.
    """
    transformer = "decoder.transformer."
    used, ignored = [], [rf"{transformer}h\.\d+\.attn\.bias"]
    for wanted, path, name, transform in (
        (memory, "decoder/memory/kernel", f"{transformer}linear.weight", _memory_by_layer()),
        (embedding, "decoder/offset/kernel", f"{transformer}linear_emb.weight", linear()),
    ):
        if wanted:
            used.append(Rule(path, (name,), transform))
        else:
            ignored.append(name)
    return Table(
        rules=(
            *bert.rules(encoder_vocab, "encoder.", "encoder", "posterior/pooler"),
            *gpt2.rules(decoder_vocab, transformer, "decoder"),
            Rule("posterior/head/kernel", ("encoder.linear.weight",), linear()),
            *used,
        ),
        ignored=tuple(ignored),
        tied=(("decoder.lm_head.weight", f"{transformer}wte.weight"),),
    )
