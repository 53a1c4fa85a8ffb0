"""Writes `tests/reference/hf_backbones/bart`: a tiny BART of random weights, and what the class of
transformers makes of random ids, in float64.

Not part of the test suite, as it needs PyTorch:

    pip install "transformers==5.24.0" "torch==2.13.0" safetensors
    python tests/tools/make_bart.py

Arrays of io.npz (B 3 rows; S 12 and T 10 tokens, right-padded; values at padding mean nothing):
  source_ids, source_mask (B, S); target_ids, target_mask (B, T); no start or end tokens
  f64.encoder_hidden, f64.decoder_hidden (layers + 1, B, ...): [0] is what layer 0 reads
  f64.logits (B, T, vocab); f64.loss: mean of -log p(next id) over real targets
  f64.grad.NAME: gradients of the loss
  greedy_ids (B, 8): ids that follow each row's target; greedy_lead: least lead over the second
"""

import json
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers
from safetensors.torch import save_file  # pyright: ignore[reportMissingImports]
from torch.utils._python_dispatch import TorchDispatchMode  # pyright: ignore

from tests.tools.take_reference import write

OUT = Path(__file__).parents[1] / "reference/hf_backbones/bart"
VOCAB, NEW = 96, 8
SOURCES, TARGETS = (12, 9, 5), (10, 4, 7)
GRADIENTS = (
    "model.shared.weight",
    "model.encoder.embed_positions.weight",
    "model.encoder.layernorm_embedding.bias",
    "model.encoder.layers.0.self_attn.k_proj.weight",
    "model.encoder.layers.1.final_layer_norm.weight",
    "model.decoder.embed_positions.weight",
    "model.decoder.layers.0.self_attn.v_proj.weight",
    "model.decoder.layers.0.encoder_attn.k_proj.weight",
    "model.decoder.layers.1.encoder_attn.q_proj.bias",
    "model.decoder.layers.1.encoder_attn.v_proj.bias",
    "model.decoder.layers.0.encoder_attn_layer_norm.weight",
    "model.decoder.layers.1.fc1.weight",
)


class NoSingles(TorchDispatchMode):
    """Fails when an operation gives a float32 tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor) and x.dtype is torch.float32:
                raise AssertionError(f"{func} gave float32")
        return out


def padded(lengths, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, VOCAB, size=(len(lengths), max(lengths)))
    mask = np.arange(max(lengths))[None] < np.asarray(lengths)[:, None]
    return np.where(mask, ids, 1).astype(np.int32), mask.astype(np.int32)


def model_of(seed):
    config = transformers.BartConfig(
        vocab_size=VOCAB,
        max_position_embeddings=30,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=40,
        decoder_ffn_dim=40,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
    config._attn_implementation = "eager"
    torch.set_default_dtype(torch.float32)
    model = transformers.BartForConditionalGeneration(config).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = rng.normal(size=tuple(p.shape)).astype(np.float32)
            # A larger table of a tied head would say the last token again and again.
            std = 0.05 if "shared" in name else 0.15 if p.ndim > 1 else 0.2
            p += std * torch.from_numpy(noise)
    return config, model


def numbers(model):
    """All arrays of io.npz."""
    (source, source_mask), (target, target_mask) = padded(SOURCES, 7), padded(TARGETS, 8)
    double = model.double()
    torch.set_default_dtype(torch.float64)
    ids = dict(
        input_ids=torch.from_numpy(source).long(),
        attention_mask=torch.from_numpy(source_mask).long(),
        decoder_input_ids=torch.from_numpy(target).long(),
        decoder_attention_mask=torch.from_numpy(target_mask).long(),
    )
    caught = {}

    def catch(key, state):
        caught.setdefault(key, state[0] if isinstance(state, tuple) else state)

    def before(side, i):
        return lambda _, args, kwargs: catch((side, i), args or kwargs["hidden_states"])

    def after(side, i):
        return lambda _, __, out: catch((side, i, "out"), out)

    for side in ("encoder", "decoder"):
        for i, layer in enumerate(getattr(double.model, side).layers):
            layer.register_forward_pre_hook(before(side, i), with_kwargs=True)
            layer.register_forward_hook(after(side, i + 1))
    with NoSingles():
        logits = double(**ids, use_cache=False).logits
        logp = logits.log_softmax(-1)[:, :-1].gather(-1, ids["decoder_input_ids"][:, 1:, None])
        real = ids["decoder_attention_mask"][:, 1:].double()
        loss = -(logp[..., 0] * real).sum() / real.sum()
        loss.backward()
    arrays = dict(
        source_ids=source, source_mask=source_mask, target_ids=target, target_mask=target_mask
    )
    for side in ("encoder", "decoder"):
        states = [caught[side, 0], *(caught[side, i, "out"] for i in (1, 2))]
        arrays[f"f64.{side}_hidden"] = torch.stack(states).detach().numpy()
    arrays["f64.logits"], arrays["f64.loss"] = logits.detach().numpy(), loss.detach().numpy()
    parameters = dict(double.named_parameters())
    arrays |= {f"f64.grad.{name}": parameters[name].grad.numpy() for name in GRADIENTS}
    greedy, lead = [], np.inf
    for row, (n, m) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        text = ids["decoder_input_ids"][row : row + 1, :m]
        for _ in range(NEW):
            with torch.no_grad(), NoSingles():
                last = double(
                    input_ids=ids["input_ids"][row : row + 1, :n],
                    decoder_input_ids=text,
                    use_cache=False,
                ).logits[0, -1]
            top = last.topk(2)
            lead = min(lead, float(top.values[0] - top.values[1]))
            text = torch.cat([text, top.indices[None, :1]], dim=1)
        greedy.append(text[0, m:].numpy())
    return arrays | dict(greedy_ids=np.array(greedy, np.int32), greedy_lead=np.array(lead))


def main() -> None:
    torch.set_num_threads(1)
    for seed in range(200):
        config, model = model_of(seed)
        weights = {
            name: tensor.clone()
            for name, tensor in model.state_dict().items()
            if "embed_tokens" not in name and name not in ("lm_head.weight", "final_logits_bias")
        }
        arrays = numbers(model)
        distinct = min(len(set(row)) for row in arrays["greedy_ids"].tolist())
        print(seed, float(arrays["greedy_lead"]), distinct, flush=True)
        if arrays["greedy_lead"] > 0.005 and distinct > 2:
            break
    else:
        raise SystemExit("no seed gives varied ids with a clear lead")
    write(OUT / "io.npz", arrays)
    stated = config.to_dict() | dict(architectures=["BartForConditionalGeneration"])
    text = json.dumps(stated, indent=2, sort_keys=True) + "\n"
    (OUT / "config.json").write_text(text)
    save_file(weights, OUT / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
