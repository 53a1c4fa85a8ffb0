"""Names in the checkpoints of the original DELLA repository."""

from collections.abc import Sequence

import numpy as np

from jvae.pretrained import gpt2
from jvae.pretrained.names import (
    Columns,
    NameRule,
    NameTable,
    Shape,
    Transform,
    flat,
    joined_bias,
    linear,
    vocab_rows,
)

_BLOCK = (
    *("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"),
    *("attn.lmf.text_factor.{j}", "attn.lmf.latent_factor.{j}"),
)


def _rank_maps() -> Transform:
    """One (out, in) matrix per rank, which our kernel (in, rank, heads, head) stacks on axis 1."""

    def read(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        width, rank, heads, head = shape
        stacked = np.stack([a.T for a in arrays], axis=1)
        return linear().read([stacked.reshape(width, -1).T], (width, rank, heads, head))

    def write(leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf[:, j].reshape(leaf.shape[0], -1).T for j in range(leaf.shape[1])]

    return Transform(read, write)


def _rank_constants() -> Transform:
    """The last column of those matrices; our leaf is (rank, heads, head)."""

    def read(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        return np.stack([a.reshape(shape[1:]) for a in arrays])

    return Transform(read, lambda leaf: [matrix.reshape(-1, 1) for matrix in leaf])


def _fusion(name: str, ours: str, width: int, rank: int, first: int) -> tuple[NameRule, ...]:
    sources = [f"encoder.h.{{i}}.attn.lmf.{name}.{j}" for j in range(rank)]
    weights = tuple(f"{source}.weight" for source in sources)
    biases = tuple(f"{source}.bias" for source in sources)
    path = f"decoder/fusion/{ours}"
    body, constant = Columns(0, width, width + 1), Columns(width, width + 1, width + 1)
    return (
        NameRule(f"{path}/kernel", weights, _rank_maps(), body, first),
        NameRule(f"{path}/constant", weights, _rank_constants(), constant, first),
        NameRule(f"{path}/bias", biases, joined_bias(rank), None, first),
    )


def _heads(width: int, latent: int, conditional: bool, first: int) -> tuple[NameRule, ...]:
    """Rules for the heads of the chain.

    The released posterior reads [text; chain], the prior [chain; source].
    """
    posterior, prior = "encoder.recog_network.{i}", "encoder.prior_network.{i}"
    both = width + latent
    rules = [
        NameRule(
            "posterior/head/text/kernel",
            (f"{posterior}.weight",),
            linear(),
            Columns(0, width, both),
            first,
        ),
        NameRule(
            "posterior/head/chain/kernel",
            (f"{posterior}.weight",),
            linear(),
            Columns(width, both, both),
            first,
        ),
        NameRule(
            "prior/head/chain/kernel",
            (f"{prior}.weight",),
            linear(),
            Columns(0, latent, both if conditional else latent),
            first,
        ),
        NameRule("posterior/head/chain/bias", (f"{posterior}.bias",), flat(1), None, first),
        NameRule("prior/head/chain/bias", (f"{prior}.bias",), flat(1), None, first),
    ]
    if conditional:
        source = Columns(latent, both, both)
        path = "prior/head/source/kernel"
        rules.append(NameRule(path, (f"{prior}.weight",), linear(), source, first))
    for ours, theirs in (("state", "hh"), ("latent", "ih")):
        cell = f"encoder.reccurnt_cell_weight_{theirs}.{{i}}"  # misspelled in the original
        path = f"latent/chain/{ours}"
        rules.append(NameRule(f"{path}/kernel", (f"{cell}.weight",), linear(), None, first))
        rules.append(NameRule(f"{path}/bias", (f"{cell}.bias",), flat(1), None, first))
    return tuple(rules)


def della(
    *,
    vocab: int,
    layers: int,
    width: int,
    latent: int,
    rank: int,
    first: int = 0,
    last: int | None = None,
    conditional: bool = False,
    bow: bool = False,
) -> NameTable:
    """The full state dict of DELLA.

    The released code creates the networks of a latent for every layer; those of layers without a
    latent are ignored. Its decoder shares every tensor except the output head with its encoder.

    Args:
      vocab: number of real tokens.
      first, last: first and last layer with a latent; by default all layers.
      conditional, bow: whether the model has a source and a bag-of-words head.
    """
    last = layers - 1 if last is None else last
    unused = [i for i in range(layers) if not first <= i <= last]
    networks = r"(recog_network|prior_network|reccurnt_cell_weight_hh|reccurnt_cell_weight_ih)"
    ignored = [r"(encoder|decoder)\.h\.\d+\.attn\.(bias|masked_bias)"]
    for i in unused:
        ignored.append(rf"(encoder|decoder)\.h\.{i}\.attn\.lmf\..*")
        ignored.append(rf"encoder\.{networks}\.{i}\.(weight|bias)")
        ignored.append(rf"encoder\.pooling\.{i}\.attention_weights")
    used = [NameRule("decoder/head/table", ("decoder.lm_head.weight",), vocab_rows(vocab))]
    if bow:
        used.append(NameRule("decoder/bow/kernel", ("decoder.mlp_bow.weight",), linear()))
        used.append(NameRule("decoder/bow/bias", ("decoder.mlp_bow.bias",), flat(1)))
    pooling = ("encoder.pooling.{i}.attention_weights",)
    return NameTable(
        rules=(
            *gpt2.rules(vocab, "encoder.", "decoder"),
            *_fusion("text_factor", "value", width, rank, first),
            *_fusion("latent_factor", "latent", latent, rank, first),
            *_heads(width, latent, conditional, first),
            NameRule("posterior/pool/kernel", pooling, flat(1), None, first),
            *used,
        ),
        ignored=tuple(ignored),
        tied=_tied(layers, rank, unused),
    )


def _tied(layers: int, rank: int, unused: Sequence[int]) -> tuple[tuple[str, str], ...]:
    names = ["wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"]
    for i in range(layers):
        for module in _BLOCK:
            if "{j}" in module and i in unused:
                continue
            ranks = range(rank) if "{j}" in module else (0,)
            for j in ranks:
                name = f"h.{i}.{module.replace('{j}', str(j))}"
                names += [f"{name}.weight", f"{name}.bias"]
    return tuple((f"decoder.{name}", f"encoder.{name}") for name in names)
