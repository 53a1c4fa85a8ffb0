"""Our models rebuilt on PyTorch and Hugging Face modules, as peers for comparison.

Import only if PyTorch is installed (`peers.require`). Optimus is BERT and GPT-2 or Llama, with the
latent as one key and value before the tokens of every layer, as an offset of the embeddings and in
the output scores, as the config says; with low-rank additions, everything else in the two stacks is
frozen. The generator of SRI is an LSTM that reads z with every token, or that GPT-2. Sizes come
from our configs.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

from jvae.backbones import llama
from jvae.backbones.bert import BertConfig
from jvae.backbones.gpt2 import Gpt2Config
from jvae.backbones.llama import LlamaConfig
from jvae.errors import ConfigError
from jvae.models.optimus import OptimusConfig
from jvae.nn.backbone import name_of
from jvae.nn.config import TransformerConfig
from jvae.nn.lora import Lora
from jvae.nn.lstm import LstmConfig

# Optional packages; untyped, as they may be missing.
torch: Any = importlib.import_module("torch")
transformers: Any = importlib.import_module("transformers")

IGNORE = -100  # marks targets that are not scored


class Rows(NamedTuple):
    """One sentence per row, padded at the end; tensors."""

    enc_et: Any
    enc_mask_et: Any  # 1 at tokens
    dec_et: Any
    dec_mask_et: Any
    target_et: Any  # the next token at every position, IGNORE if not scored


def bert(config: TransformerConfig, attention: str, pooler: bool) -> Any:
    """Hugging Face's BERT with our sizes."""
    sizes = transformers.BertConfig(
        vocab_size=config.vocab,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp,
        max_position_embeddings=config.positions,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        layer_norm_eps=config.norm_eps,
        attn_implementation=attention,
    )
    return transformers.BertModel(sizes, add_pooling_layer=pooler)


def gpt2_sizes(config: TransformerConfig, attention: str) -> Any:
    """Hugging Face's config of a GPT-2 with our sizes. Its special ids are all set to token 0."""
    return transformers.GPT2Config(
        vocab_size=config.vocab,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        n_inner=config.mlp,
        n_positions=config.positions,
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        layer_norm_epsilon=config.norm_eps,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )


def llama_model(config: LlamaConfig, attention: str) -> Any:
    """Hugging Face's Llama with our sizes. Raises: ConfigError for one with a table of its own."""
    if not config.tied:
        raise ConfigError("--peer=torch supports only a Llama that scores with its embedding")
    fields = llama.describe(dataclasses.asdict(config))
    special = dict(bos_token_id=0, eos_token_id=0)
    sizes = transformers.LlamaConfig(**fields, **special, attn_implementation=attention)
    return transformers.LlamaModel(sizes)


class Adapted(torch.nn.Module):
    """A frozen linear layer with a low-rank addition that trains."""

    def __init__(self, linear: Any, lora: Lora):
        super().__init__()
        self.linear, self.scale = linear, lora.alpha / lora.rank
        self.a = torch.nn.Linear(linear.in_features, lora.rank, bias=False)
        self.b = torch.nn.Linear(lora.rank, linear.out_features, bias=False)
        torch.nn.init.zeros_(self.b.weight)

    def forward(self, x: Any) -> Any:
        """The output of both."""
        return self.linear(x) + self.scale * self.b(self.a(x))


def adapt(stack: Any, lora: Lora) -> None:
    """Freezes a stack and adapts its linear layers, if additions are on.

    Raises: ConfigError for additions to some layers only, or with dropout.
    """
    if not lora.rank:
        return
    if lora.targets != "." or lora.dropout:
        raise ConfigError("--peer=torch adapts every layer, without dropout")
    stack.requires_grad_(False)
    for module in list(stack.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Linear) and not isinstance(module, Adapted):
                setattr(module, name, Adapted(child, lora))


def cache_name(model: Any) -> str:
    """The argument of a model's cache: its name changed within transformers 5."""
    names = inspect.signature(model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


class Memory(torch.nn.Module):
    """The latent as a key and value of every layer."""

    def __init__(self, config: TransformerConfig | LlamaConfig, latent: int):
        super().__init__()
        self.layers, self.heads, self.head = config.layers, config.kv_heads, config.head
        width = self.heads * self.head
        self.project = torch.nn.Linear(latent, config.layers * width, bias=False)

    def forward(self, z_ez: Any) -> Any:
        """A cache with one position."""
        slot = self.project(z_ez).view(z_ez.shape[0], self.layers, self.heads, 1, self.head)
        cache = transformers.DynamicCache()
        for layer in range(self.layers):
            cache.update(slot[:, layer], slot[:, layer], layer)
        return cache


class Decoder(torch.nn.Module):
    """-log p(x | z) of a GPT-2 or Llama that reads z like Optimus.

    Raises: ConfigError for another stack.
    """

    def __init__(
        self,
        config: Any,
        latent: int,
        attention: str,
        memory: bool,
        offset: bool,
        scores: bool = False,
    ):
        super().__init__()
        if isinstance(config, LlamaConfig):
            self.body = llama_model(config, attention)
        elif isinstance(config, Gpt2Config) and not config.lora.rank:
            self.body = transformers.GPT2Model(gpt2_sizes(config, attention))
        else:
            raise ConfigError(
                "--peer=torch decodes with Llama, or with GPT-2 without low-rank additions, not "
                f"with {name_of(config)}"
            )
        adapt(self.body, config.lora)
        self.cache_name = cache_name(self.body)  # not while `forward` is compiled
        self.memory = Memory(config, latent) if memory else None
        self.offset = torch.nn.Linear(latent, config.width, bias=False) if offset else None
        self.scores = torch.nn.Linear(latent, config.vocab, bias=False) if scores else None

    def forward(self, z_ez: Any, rows: Rows) -> Any:
        """Nats of each sentence."""
        table = self.body.get_input_embeddings()
        x_etd = table(rows.dec_et)
        if self.offset is not None:
            x_etd = x_etd + self.offset(z_ez)[:, None]
        cache, mask_et = None, rows.dec_mask_et
        if self.memory is not None:
            cache = self.memory(z_ez)
            mask_et = torch.nn.functional.pad(mask_et, (1, 0), value=1)
        cached = {self.cache_name: cache}
        out = self.body(inputs_embeds=x_etd, attention_mask=mask_et, **cached)
        scores_etv = out.last_hidden_state @ table.weight.T
        if self.scores is not None:
            scores_etv = scores_etv + self.scores(z_ez)[:, None]
        return nats(scores_etv, rows.target_et)


def nats(scores_etv: Any, target_et: Any) -> Any:
    """-log p of the scored tokens of each sentence, in float32."""
    flat = torch.nn.functional.cross_entropy(
        scores_etv.float().flatten(0, 1),
        target_et.flatten(),
        ignore_index=IGNORE,
        reduction="none",
    )
    return flat.view(target_et.shape).sum(dim=1)


class Optimus(torch.nn.Module):
    """The loss of Optimus: reconstruction and unmodified KL, averaged over sentences, in nats.

    The posterior is a Gaussian, also where ours is `bn`, which encodes the texts a second time in
    each update for its running statistics.

    Raises: ConfigError for an encoder other than BERT, a decoder that `Decoder` refuses, or z in
      another way.
    """

    def __init__(self, config: OptimusConfig, attention: str):
        super().__init__()
        encoder, decoder = config.encoder, config.decoder
        if not isinstance(encoder, BertConfig):
            raise ConfigError(f"--peer=torch encodes with BERT, not with {name_of(encoder)}")
        if config.tokens or config.vectors > 1:
            raise ConfigError("--peer=torch supports one vector and no prefix tokens")
        if config.pool not in ("cls", "mean"):
            raise ConfigError(f"--peer=torch pools by cls or mean, not by {config.pool}")
        self.pool, self.log_var_shift = config.pool, config.log_var_shift
        self.bert = bert(encoder, attention, pooler=config.pool == "cls")
        for part in (self.bert.embeddings, self.bert.encoder):  # our pooler is part of the head
            adapt(part, encoder.lora)
        self.head = torch.nn.Linear(encoder.width, 2 * config.latent, bias=False)
        ways = config.use_memory, config.use_embedding, config.use_softmax
        self.decoder = Decoder(decoder, config.latent, attention, *ways)

    def posterior(self, rows: Rows) -> tuple[Any, Any]:
        """Mean and log-variance."""
        out = self.bert(input_ids=rows.enc_et, attention_mask=rows.enc_mask_et)
        if self.pool == "cls":
            state_ed = out.pooler_output
        else:
            mask_et1 = rows.enc_mask_et[:, :, None]
            state_ed = (out.last_hidden_state * mask_et1).sum(dim=1) / mask_et1.sum(dim=1)
        mean_ez, log_var_ez = self.head(state_ed).float().chunk(2, dim=1)
        return mean_ez, log_var_ez + self.log_var_shift

    def forward(self, rows: Rows, noise_ez: Any) -> Any:
        """The loss, with the noise of the latent given."""
        mean_ez, log_var_ez = self.posterior(rows)
        z_ez = mean_ez + torch.exp(0.5 * log_var_ez) * noise_ez
        kl_ez = 0.5 * (mean_ez**2 + torch.exp(log_var_ez) - 1 - log_var_ez)
        return (self.decoder(z_ez, rows) + kl_ez.sum(dim=1)).mean()


class LstmDecoder(torch.nn.Module):
    """-log p(x | z) of an LSTM that reads z with every token and starts from it."""

    def __init__(self, config: LstmConfig, latent: int):
        super().__init__()
        self.embed = torch.nn.Embedding(config.vocab, config.width)
        self.lstm = torch.nn.LSTM(config.width + latent, config.hidden, batch_first=True)
        self.first = torch.nn.Linear(latent, config.hidden)
        self.output = torch.nn.Linear(config.hidden, config.vocab)
        self.drop = torch.nn.Dropout(config.dropout)

    def forward(self, z_ez: Any, rows: Rows) -> Any:
        """Nats of each sentence."""
        x_etd = self.drop(self.embed(rows.dec_et))
        z_etz = z_ez[:, None].expand(-1, x_etd.shape[1], -1)
        first_1ef = self.first(z_ez)[None]
        state = (first_1ef, torch.zeros_like(first_1ef))
        hidden_etf, _ = self.lstm(torch.cat([x_etd, z_etz], dim=2), state)
        return nats(self.output(self.drop(hidden_etf)), rows.target_et)


def langevin(decoder: Any, z_ez: Any, rows: Rows, sizes: Sequence[float], heat: float) -> Any:
    """The end of a chain from z, one step per size; only z gets gradients."""
    for size in sizes:
        z_ez = z_ez.detach().requires_grad_()
        joint = -decoder(z_ez, rows).sum() - 0.5 * (z_ez**2).sum()
        (score_ez,) = torch.autograd.grad(joint, z_ez)
        noise_ez = torch.randn_like(z_ez)
        z_ez = z_ez + 0.5 * size**2 * score_ez + heat * size * noise_ez
    return z_ez.detach()
