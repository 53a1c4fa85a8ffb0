"""Names of GPT-2's tensors (Hugging Face layout; the originals use the same). Kernels are stored
(in, out).
"""

from jvae.pretrained.names import Rule, flat, kernel_rows, vocab_rows


def rules(vocab: int, prefix: str, path: str) -> tuple[Rule, ...]:
    """Rules of a GPT-2 decoder.

    Args:
      vocab: real tokens of the embedding. prefix: foreign prefix, such as "transformer.". path: our
      path of the decoder.
    """
    layer = f"{prefix}h.{{i}}."
    norms = {
        f"{path}/layers/attn_norm": f"{layer}ln_1",
        f"{path}/layers/mlp_norm": f"{layer}ln_2",
        f"{path}/norm": f"{prefix}ln_f",
    }
    projections = {
        f"{path}/layers/attn/qkv": (f"{layer}attn.c_attn", 1),
        f"{path}/layers/attn/out": (f"{layer}attn.c_proj", 2),
        f"{path}/layers/mlp/up": (f"{layer}mlp.c_fc", 1),
        f"{path}/layers/mlp/down": (f"{layer}mlp.c_proj", 1),
    }
    return (
        Rule(f"{path}/embed/token/table", (f"{prefix}wte.weight",), vocab_rows(vocab)),
        Rule(f"{path}/embed/position/table", (f"{prefix}wpe.weight",), flat(2)),
        *(Rule(f"{ours}/scale", (f"{theirs}.weight",), flat(1)) for ours, theirs in norms.items()),
        *(Rule(f"{ours}/bias", (f"{theirs}.bias",), flat(1)) for ours, theirs in norms.items()),
        *(
            Rule(f"{ours}/kernel", (f"{theirs}.weight",), kernel_rows(n_in))
            for ours, (theirs, n_in) in projections.items()
        ),
        *(
            Rule(f"{ours}/bias", (f"{theirs}.bias",), flat(1))
            for ours, (theirs, _) in projections.items()
        ),
    )
