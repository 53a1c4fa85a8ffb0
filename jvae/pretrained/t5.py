"""Names of T5's tensors, v1.0 and v1.1 (Hugging Face layout, as in the original checkpoints)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jvae.pretrained.backbones import HEADS, Backbone, count, expect, flag, number
from jvae.pretrained.names import (
    NameRule,
    NameTable,
    Vocab,
    flat,
    joined_linear,
    linear,
    vocab_rows,
)

_CROSS = r"decoder\.block\.\d+\.layer\.1\.(EncDecAttention\..*|layer_norm\.weight)"
_FEED_FORWARD = {"relu": False, "gated-gelu": True}


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = config.get("feed_forward_proj", "relu")
    if kind not in _FEED_FORWARD:
        raise ValueError(f"feed_forward_proj is {kind!r}; expected relu or gated-gelu")
    gated = _FEED_FORWARD[kind]
    layers = count(config, "num_layers")
    expect(config, num_decoder_layers=layers, dense_act_fn="gelu_new" if gated else "relu")
    # Only an output that is tied to the embedding is scaled. transformers 5 writes
    # tie_word_embeddings=true for all, and says with the other key whether the output is scaled.
    tied = flag(config, "tie_word_embeddings", True)
    scaled = flag(config, "scale_decoder_outputs", tied)
    if scaled and not tied:
        raise ValueError("scale_decoder_outputs is true, but tie_word_embeddings is false")
    return dict(
        layers=layers,
        width=count(config, "d_model"),
        heads=count(config, "num_heads"),
        head=count(config, "d_kv"),
        mlp=count(config, "d_ff"),
        vocab=count(config, "vocab_size"),
        buckets=count(config, "relative_attention_num_buckets", 32),
        max_distance=count(config, "relative_attention_max_distance", 128),
        gated=gated,
        tied=scaled,
        norm_eps=number(config, "layer_norm_epsilon", 1e-6),
    )


def _describe(ours: Mapping[str, Any]) -> dict[str, Any]:
    if not ours["cross"]:
        raise ValueError(
            "a T5 decoder without cross-attention cannot be loaded as a T5 model; "
            "export the whole model instead"
        )
    return dict(
        architectures=["T5ForConditionalGeneration"],
        model_type="t5",
        num_layers=ours["layers"],
        num_decoder_layers=ours["layers"],
        d_model=ours["width"],
        num_heads=ours["heads"],
        d_kv=ours["head"],
        d_ff=ours["mlp"],
        vocab_size=ours["vocab"],
        relative_attention_num_buckets=ours["buckets"],
        relative_attention_max_distance=ours["max_distance"],
        feed_forward_proj="gated-gelu" if ours["gated"] else "relu",
        tie_word_embeddings=ours["tied"],
        layer_norm_epsilon=ours["norm_eps"],
        dropout_rate=ours["dropout"],
        is_encoder_decoder=True,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


BACKBONE = Backbone(
    name="t5",
    prefix="",
    renamed=(),
    # Old files have a bias table for cross-attention that was never used.
    ignored=(
        *HEADS,
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    ),
    sizes=_sizes,
    describe=_describe,
)


def table(
    vocab: int | Vocab, *, gated: bool, tied: bool, cross: bool, prefix: str = ""
) -> NameTable:
    """The table for a whole T5 in the layout of `jvae.nn.t5`: {embed, encoder, decoder}.

    Args:
      cross: whether our decoder has cross-attention; otherwise that of the files is ignored.
      prefix: prefix of the foreign names, such as "t5." in T5-VAE.
    """
    rules = [
        NameRule("embed/token/table", (f"{prefix}shared.weight",), vocab_rows(vocab)),
        *_stack("encoder", prefix, gated, cross=False),
        *_stack("decoder", prefix, gated, cross),
    ]
    same = [(f"{prefix}{stack}.embed_tokens.weight", f"{prefix}shared.weight") for stack in STACKS]
    if tied:
        same.append((f"{prefix}lm_head.weight", f"{prefix}shared.weight"))
    else:
        head = (f"{prefix}lm_head.weight",)
        rules.append(NameRule("decoder/head/table", head, vocab_rows(vocab)))
    start = prefix.replace(".", r"\.")
    ignored = BACKBONE.ignored if cross else (*BACKBONE.ignored, _CROSS)
    return NameTable(tuple(rules), tuple(start + pattern for pattern in ignored), tuple(same))


STACKS = ("encoder", "decoder")


def stack_table(
    vocab: int | Vocab, path: str, role: str, *, gated: bool, tied: bool, cross: bool
) -> NameTable:
    """The table for one stack of a T5 with its embedding; the other stack is ignored.

    Args:
      path: our path of the stack.
      role: its role in the files, "encoder" or "decoder".
      cross: as in `table`.
    """
    other_stack = STACKS[1 - STACKS.index(role)]
    decodes = role == "decoder"
    stack_rules = [
        replace(rule, path=path + rule.path.removeprefix(role))
        for rule in _stack(role, "", gated, cross and decodes)
    ]
    rules = [
        NameRule(f"{path}/embed/token/table", ("shared.weight",), vocab_rows(vocab)),
        *stack_rules,
    ]
    ignored = [*BACKBONE.ignored, rf"{other_stack}\..*"]
    same = [(f"{role}.embed_tokens.weight", "shared.weight")]
    if decodes and not tied:
        rules.append(NameRule(f"{path}/head/table", ("lm_head.weight",), vocab_rows(vocab)))
    elif decodes:
        same.append(("lm_head.weight", "shared.weight"))
    else:
        ignored.append(r"lm_head\.weight")
    if not (cross and decodes):
        ignored.append(_CROSS)
    return NameTable(tuple(rules), tuple(ignored), tuple(same))


def _stack(stack: str, prefix: str, gated: bool, cross: bool) -> list[NameRule]:
    block = f"{prefix}{stack}.block.{{i}}.layer."
    bias = f"{prefix}{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    ours = f"{stack}/layers"
    last = 2 if stack == "decoder" else 1
    feed = f"{block}{last}.DenseReluDense."

    def kernels(path: str, names: tuple[str, ...], n_in: int = 1) -> NameRule:
        transform = linear(n_in) if len(names) == 1 else joined_linear(len(names))
        return NameRule(
            f"{ours}/{path}/kernel", tuple(f"{name}.weight" for name in names), transform
        )

    def scale(path: str, name: str) -> NameRule:
        return NameRule(path, (f"{name}.weight",), flat(1))

    attention = f"{block}0.SelfAttention."
    rules = [
        NameRule(f"{stack}/bias/table", (bias,), flat(2)),
        scale(f"{stack}/norm/scale", f"{prefix}{stack}.final_layer_norm"),
        scale(f"{ours}/attn_norm/scale", f"{block}0.layer_norm"),
        scale(f"{ours}/mlp_norm/scale", f"{block}{last}.layer_norm"),
        kernels("attn/qkv", tuple(attention + part for part in "qkv")),
        kernels("attn/out", (f"{attention}o",), 2),
        kernels("mlp/up", (f"{feed}wi_1" if gated else f"{feed}wi",)),
        kernels("mlp/down", (f"{feed}wo",)),
    ]
    if gated:
        rules.append(kernels("mlp/gate", (f"{feed}wi_0",)))
    if cross:
        attention = f"{block}1.EncDecAttention."
        rules += [
            scale(f"{ours}/cross_norm/scale", f"{block}1.layer_norm"),
            kernels("cross/q", (f"{attention}q",)),
            kernels("cross/kv", (f"{attention}k", f"{attention}v")),
            kernels("cross/out", (f"{attention}o",), 2),
        ]
    return rules
