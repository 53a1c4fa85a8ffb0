"""Names of BERT's tensors (Hugging Face layout; the originals use the same)."""

from jvae.pretrained.names import Rule, flat, joined_bias, joined_linear, linear, vocab_rows


def rules(vocab: int, prefix: str, path: str, pooler: str | None) -> tuple[Rule, ...]:
    """Rules of a BERT encoder.

    Args:
      vocab: real tokens of the embedding.
      prefix: foreign prefix, such as "bert.".
      path: our path of the encoder. pooler: our path of the pooler, or None where the model has
      none.
    """
    layer = f"{prefix}encoder.layer.{{i}}."
    qkv = ("query", "key", "value")
    norms = {
        f"{path}/layers/attn_norm": f"{layer}attention.output.LayerNorm",
        f"{path}/layers/mlp_norm": f"{layer}output.LayerNorm",
        f"{path}/embed/norm": f"{prefix}embeddings.LayerNorm",
    }
    projections = {
        f"{path}/layers/attn/out": (f"{layer}attention.output.dense", 2),
        f"{path}/layers/mlp/up": (f"{layer}intermediate.dense", 1),
        f"{path}/layers/mlp/down": (f"{layer}output.dense", 1),
    }
    if pooler is not None:
        projections[pooler] = (f"{prefix}pooler.dense", 1)
    weights = tuple(f"{layer}attention.self.{name}.weight" for name in qkv)
    biases = tuple(f"{layer}attention.self.{name}.bias" for name in qkv)
    embeddings = f"{prefix}embeddings."
    return (
        Rule(
            f"{path}/embed/token/table", (f"{embeddings}word_embeddings.weight",), vocab_rows(vocab)
        ),
        Rule(f"{path}/embed/position/table", (f"{embeddings}position_embeddings.weight",), flat(2)),
        Rule(f"{path}/embed/type/table", (f"{embeddings}token_type_embeddings.weight",), flat(2)),
        Rule(f"{path}/layers/attn/qkv/kernel", weights, joined_linear(3)),
        Rule(f"{path}/layers/attn/qkv/bias", biases, joined_bias(3)),
        *(Rule(f"{ours}/scale", (f"{theirs}.weight",), flat(1)) for ours, theirs in norms.items()),
        *(Rule(f"{ours}/bias", (f"{theirs}.bias",), flat(1)) for ours, theirs in norms.items()),
        *(
            Rule(f"{ours}/kernel", (f"{theirs}.weight",), linear(n_in))
            for ours, (theirs, n_in) in projections.items()
        ),
        *(
            Rule(f"{ours}/bias", (f"{theirs}.bias",), flat(1))
            for ours, (theirs, _) in projections.items()
        ),
    )
