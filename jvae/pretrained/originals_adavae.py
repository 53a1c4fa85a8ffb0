"""Names in the checkpoints of the original AdaVAE repository."""

from collections.abc import Sequence

import numpy as np

from jvae.pretrained import gpt2
from jvae.pretrained.names import NameRule, NameTable, Shape, Transform, flat, kernel_rows, linear

_SHARED = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


def _joined_rows() -> Transform:
    """(in, out) matrices, or vectors, that our leaf stacks before its last axis."""

    def read(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        part = (*shape[:-2], shape[-1])
        return np.stack([kernel_rows(1).read([a], part) for a in arrays], axis=-2)

    def write(leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf[..., i, :] for i in range(leaf.shape[-2])]

    return Transform(read, write)


def _by_layer() -> Transform:
    """One (layers * width, latent) matrix, split by layer into our (layers, latent, width)."""

    def read(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        layers, latent, width = shape
        by_layer = kernel_rows(2).read(arrays, (layers, width, latent))
        return by_layer.transpose(0, 2, 1)

    def write(leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf.transpose(0, 2, 1).reshape(-1, leaf.shape[1])]

    return Transform(read, write)


def _vocab_columns(vocab: int) -> Transform:
    """One (latent, vocab) matrix or (vocab,) vector; ours has the padded vocabulary first."""

    def read(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        real = np.moveaxis(arrays[0], -1, 0).reshape(vocab, *shape[1:])
        return np.pad(real, [(0, shape[0] - vocab)] + [(0, 0)] * (len(shape) - 1))

    return Transform(read, lambda leaf: [np.moveaxis(leaf[:vocab], 0, -1)])


def _dense(path: str, name: str, transform: Transform, bias: bool = True) -> list[NameRule]:
    rules = [NameRule(f"{path}/kernel", (f"{name}.weight",), transform)]
    return [*rules, NameRule(f"{path}/bias", (f"{name}.bias",), flat(1))] if bias else rules


def _adapter(ours: str, theirs: str, learned: bool) -> list[NameRule]:
    layer = f"{theirs}.h.{{i}}.adapter"
    rules = _dense(f"{ours}/adapter/down", f"{layer}.down_project", linear())
    rules += _dense(f"{ours}/adapter/up", f"{layer}.up_project", linear())
    if learned:
        rules.append(NameRule(f"{ours}/adapter/scale", (f"{layer}.scale",), flat(1)))
    return rules


def _prefix(ours: str, theirs: str) -> list[NameRule]:
    prompt = f"{theirs}.prompt_model"
    return [
        NameRule(f"{ours}/prefix/slot/table", (f"{prompt}.wte.weight",), flat(2)),
        *_dense(f"{ours}/prefix/down", f"{prompt}.control_trans.0", linear()),
        *_dense(f"{ours}/prefix/up", f"{prompt}.control_trans.2", linear()),
    ]


def adavae(
    *,
    vocab: int,
    encoder_layers: int,
    pool: str = "latent_attn",
    adapt_encoder: bool = True,
    adapt_decoder: bool = True,
    learned_scale: bool = False,
    psa: bool = True,
    memory: bool = False,
    embedding: bool = False,
    output: bool = False,
    adapters: bool = False,
    vary: bool = False,
    prefix: bool = False,
) -> NameTable:
    """The full state dict of AdaVAE, in which tensors shared by encoder and decoder appear twice.

    Args:
      vocab: number of real tokens.
      encoder_layers: number of layers that appear on both sides.
      The others are as in the model's config.
    """
    rules = _dense("posterior/pool", "encoder.LatentAttention.linear_trans", linear())
    if pool == "averaged_attn":
        averaged = ("encoder.averageSelfAttention.attention_weights",)
        rules = [NameRule("posterior/pool/kernel", averaged, flat(1))]
    elif pool != "latent_attn":
        rules = _dense("posterior/pool", "encoder.z_linear", linear())
    for leaf, name in (("kernel", "weight"), ("bias", "bias")):
        both = (f"encoder.mean.{name}", f"encoder.logvar.{name}")
        rules.append(NameRule(f"posterior/head/{leaf}", both, _joined_rows()))
    for ours, theirs, adapted in (
        ("encoder", "encoder", adapt_encoder),
        ("decoder", "transformer", adapt_decoder),
    ):
        rules += _adapter(ours, theirs, learned_scale) if adapted else []
        rules += _prefix(ours, theirs) if prefix else []
    layer = "transformer.h.{i}"
    if psa or memory or adapters:
        project = _by_layer() if vary else linear()
        rules.append(NameRule("decoder/project/kernel", ("transformer.attn_proj.weight",), project))
    if psa:
        rules += _dense("decoder/psa", f"{layer}.attn.c_z", kernel_rows(1))
    if memory:
        rules += _dense("decoder/memory", f"{layer}.attn.latent2mem", linear(), bias=False)
    if embedding:
        rules += _dense("decoder/offset", "transformer.input_proj", linear(), bias=False)
    if adapters:
        rules += _dense("decoder/adapter_latent", f"{layer}.z_proj", linear())
    if output:
        columns = _vocab_columns(vocab)
        rules.append(NameRule("decoder/output/table", ("lm_head_rep.weight",), columns))
        rules.append(NameRule("decoder/output/bias", ("lm_head_rep.bias",), columns))
    return NameTable(
        rules=(*gpt2.rules(vocab, "transformer.", "decoder"), *rules),
        ignored=(r"(encoder|transformer)\.h\.\d+\.attn\.(bias|masked_bias)",),
        tied=_tied(encoder_layers),
    )


def _tied(encoder_layers: int) -> tuple[tuple[str, str], ...]:
    names = ["wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"]
    for i in range(encoder_layers):
        for module in _SHARED:
            names += [f"h.{i}.{module}.weight", f"h.{i}.{module}.bias"]
    both = tuple((f"encoder.{name}", f"transformer.{name}") for name in names)
    return (*both, ("lm_head.weight", "transformer.wte.weight"))
