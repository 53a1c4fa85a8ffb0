"""PyTorch programs that do the same work as ours, for comparison: `--peer=torch`.

Optimus trains in two ways. `torch_original`: like the released code, with eager attention, float32,
sentences in random order, padded to the longest of their batch. `torch_best`: an expert PyTorch
setup, with SDPA, torch.compile, fused AdamW, sentences sorted by length before batching, bfloat16
on a GPU. Both use the sentences of our batches and make as many updates. With low-rank additions,
both train the same parameters as ours.

Decoding is Hugging Face's `generate` with its own cache, greedy, on a GPT-2 of the decoder's size;
the latent is its first key and value. The Langevin loop runs on `torch.nn.LSTM`, or on that GPT-2.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jvae import extras
from jvae.api import Batch
from jvae.backbones.gpt2 import Gpt2Config
from jvae.bench import cases, flops
from jvae.bench.cases import Setting
from jvae.bench.harness import Work
from jvae.errors import ConfigError
from jvae.latent.short_run import initial_sizes
from jvae.nn.backbone import name_of
from jvae.nn.lstm import LstmConfig
from jvae.runs import build

PEERS = ("torch",)
MULTIPLE = {"cpu": 1, "cuda": 8}  # multiple of tokens that `torch_best` pads to


def require(peer: str) -> None:
    """Raises: ConfigError for a peer that is unknown or not installed."""
    if peer not in PEERS:
        raise ConfigError(f"--peer={peer}: expected {', '.join(PEERS)}")
    extras.require("peer", f"--peer={peer}")


class _Sentences(NamedTuple):
    """Token ids of sentences on both sides."""

    enc: list[np.ndarray]
    dec: list[np.ndarray]

    def take(self, index: np.ndarray) -> "_Sentences":
        return _Sentences([self.enc[i] for i in index], [self.dec[i] for i in index])


def _sentences(batches: Sequence[Batch]) -> _Sentences:
    """The sentences of packed batches."""
    texts: dict[str, list[np.ndarray]] = {"enc": [], "dec": []}
    for batch in batches:
        valid_bs = np.asarray(batch.valid_e).reshape(-1, batch.slots)
        for name, side in cases.sides(batch).items():
            token_bt, segment_bt = np.asarray(side.token_bt), np.asarray(side.segment_bt)
            for row, slot in np.argwhere(valid_bs):
                texts[name].append(token_bt[row][segment_bt[row] == slot + 1])
    return _Sentences(**texts)


def _padded(sentences: list[np.ndarray], multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask (sentences, longest)."""
    longest = -(-max(len(sentence) for sentence in sentences) // multiple) * multiple
    token_et = np.zeros((len(sentences), longest), np.int64)
    mask_et = np.zeros_like(token_et)
    for i, sentence in enumerate(sentences):
        token_et[i, : len(sentence)], mask_et[i, : len(sentence)] = sentence, 1
    return token_et, mask_et


def _rows(sentences: _Sentences, device: str, multiple: int = 1) -> Any:
    """One sentence per row. Every token after the first is scored."""
    from jvae.bench import torch_models
    from jvae.bench.torch_models import torch

    enc_et, enc_mask_et = _padded(sentences.enc or sentences.dec, multiple)
    dec_et, dec_mask_et = _padded(sentences.dec, multiple)
    target_et = np.full_like(dec_et, torch_models.IGNORE)
    target_et[:, :-1] = np.where(dec_mask_et[:, 1:] > 0, dec_et[:, 1:], torch_models.IGNORE)
    arrays = (enc_et, enc_mask_et, dec_et, dec_mask_et, target_et)
    return torch_models.Rows(*(torch.from_numpy(a).to(device) for a in arrays))


def _device(setting: Setting) -> str:
    return {"cpu": "cpu", "gpu": "cuda"}.get(setting.preset.platform, "cpu")


def _waited(call: Callable[[], Any], device: str) -> Callable[[], Any]:
    """Makes a call wait for the device, because the harness does not wait for PyTorch."""
    from jvae.bench.torch_models import torch

    if device == "cpu":
        return call

    def waited() -> None:
        call()
        torch.cuda.synchronize()

    return waited


def _updates(loss: Callable[..., Any], parameters: Any, **optimizer: Any) -> Callable[..., None]:
    """Returns update(*loss arguments): clips gradients, then AdamW, as in our configs."""
    from jvae.bench.torch_models import torch

    parameters = [one for one in parameters if one.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, **optimizer)

    def update(*arguments: Any) -> None:
        adam.zero_grad(set_to_none=True)
        loss(*arguments).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()

    return update


def training(setting: Setting, batches: Sequence[Batch], beside: str) -> list[Work]:
    """Programs that train Optimus in both ways."""
    sentences, cost = _sentences(batches), flops.training(setting, cases.lengths(batches))
    order = np.random.default_rng(0).permutation(len(sentences.dec))
    by_length = np.argsort([len(sentence) for sentence in sentences.dec], kind="stable")
    programs = []
    for name, index, best in (
        ("torch_original", order, False),
        ("torch_best", by_length, True),
    ):
        parts = [sentences.take(part.tolist()) for part in np.array_split(index, len(batches))]
        multiple = MULTIPLE[_device(setting)] if best else 1
        rows = [_rows(part, _device(setting), multiple) for part in parts]
        work = Work(
            name=name,
            call=_training(setting, rows, best),
            sentences=len(sentences.dec),
            tokens=cases.useful_tokens(*batches),
            shapes=dict(rows=len(parts[0].dec), dec_row=[row.dec_et.shape[1] for row in rows]),
            fill=_fill(rows),
            flops=cost,
            extra=dict(peer="torch", beside=beside, updates=len(batches)),
        )
        programs.append(work)
    return programs


def _fill(rows: Sequence[Any]) -> dict[str, float]:
    shares = {}
    for side in ("enc", "dec"):
        masks = [getattr(row, f"{side}_mask_et") for row in rows]
        shares[side] = sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
    return shares


def _training(setting: Setting, rows: Sequence[Any], best: bool) -> Callable[[], Any]:
    from jvae.bench import torch_models
    from jvae.bench.torch_models import torch

    device, config = _device(setting), build.model_config(setting.run.config)
    torch.manual_seed(0)
    model = torch_models.Optimus(config, "sdpa" if best else "eager").to(device).train()
    loss = torch.compile(model, dynamic=False) if best else model
    half = best and device == "cuda"
    update = _updates(loss, model.parameters(), **(dict(fused=True) if best else {}))

    def call() -> None:
        for row in rows:
            noise_ez = torch.randn(len(row.dec_et), config.latent, device=device)
            with torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext():
                update(row, noise_ez)

    return _waited(call, device)


def _require_gpt2(decoder: Any) -> None:
    """Raises: ConfigError for a decoder on which only training has a PyTorch program."""
    if not isinstance(decoder, Gpt2Config) or decoder.lora.rank:
        raise ConfigError(
            "--peer=torch decodes and runs chains only with GPT-2 without low-rank additions; the "
            f"decoder is {name_of(decoder)}"
        )


def generation(setting: Setting, examples: int, tokens: int, beside: str) -> Work:
    """A program that calls `generate` for `examples` latents, `tokens` tokens per sentence."""
    from jvae.bench import torch_models
    from jvae.bench.torch_models import torch, transformers

    device, config = _device(setting), build.model_config(setting.run.config)
    _require_gpt2(config.decoder)
    torch.manual_seed(0)
    sizes = torch_models.gpt2_sizes(config.decoder, "sdpa")
    model = transformers.GPT2LMHeadModel(sizes).to(device).eval()
    memory = torch_models.Memory(config.decoder, config.latent).to(device)
    if device == "cuda":
        model, memory = model.bfloat16(), memory.bfloat16()
    z_ez = torch.randn(examples, config.latent, device=device, dtype=model.dtype)
    # The first token is at the latent's position; since its key and value are given, it is unused.
    prompt_et = torch.zeros(examples, 2, dtype=torch.long, device=device)

    @torch.inference_mode()
    def call() -> None:
        model.generate(
            prompt_et,
            attention_mask=torch.ones_like(prompt_et),
            **{torch_models.cache_name(model): memory(z_ez)},
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )

    return Work(
        name="torch_generate",
        call=_waited(call, device),
        sentences=examples,
        tokens=examples * tokens,
        shapes=dict(latents=examples, tokens=tokens),
        compiles=False,
        extra=dict(peer="torch", beside=beside),
    )


def chain(setting: Setting, config: Any, batch: Batch, steps: int, beside: str) -> Work:
    """A chain of `steps` steps, and an update of the generator at its end.

    Args:
      config: config of a model with a chain, `SriConfig` or `SriTransformerConfig`.
    Raises: ConfigError for a decoder or an injection that has no PyTorch program.
    """
    from jvae.bench import torch_models
    from jvae.bench.torch_models import torch

    device, sentences = _device(setting), _sentences([jax.device_get(batch)])
    rows = _rows(sentences, device)
    torch.manual_seed(0)
    if isinstance(config.decoder, LstmConfig):
        decoder = torch_models.LstmDecoder(config.decoder, config.latent)
    else:
        _require_gpt2(config.decoder)
        if config.use_softmax or config.tokens or config.vectors > 1:
            raise ConfigError("--peer=torch injects one vector, as memory and offset, in chains")
        ways = dict(memory=config.use_memory, offset=config.use_embedding)
        decoder = torch_models.Decoder(config.decoder, config.latent, "sdpa", **ways)
    decoder = decoder.to(device).train()
    sizes = initial_sizes(dataclasses.replace(config.chain, steps=steps)).tolist()
    update = _updates(lambda z_ez: decoder(z_ez, rows).mean(), decoder.parameters(), fused=True)

    def call() -> None:
        z_ez = torch.randn(len(sentences.dec), config.latent, device=device)
        update(torch_models.langevin(decoder, z_ez, rows, sizes, config.chain.temperature))

    return Work(
        name="torch_loop",
        call=_waited(call, device),
        sentences=len(sentences.dec),
        tokens=cases.useful_tokens(batch),
        shapes=dict(rows=len(sentences.dec), dec_row=rows.dec_et.shape[1]),
        fill={"dec": _fill([rows])["dec"]},
        compiles=False,
        extra=dict(peer="torch", beside=beside, k=steps),
    )
