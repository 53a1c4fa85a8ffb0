"""The choices of AdaVAE."""

from dataclasses import dataclass

from jvae.latent.choice import Choice
from jvae.latent.densities import GAUSSIAN
from jvae.latent.priors import STANDARD_NORMAL
from jvae.nn.condition import Ways
from jvae.nn.config import TransformerConfig

POOLS = ("latent_attn", "averaged_attn", "linear", "mean_max_linear")
POOL_SCALES = ("one", "sqrt_batch")
PLACEMENTS = {  # places of `jvae.nn.adapter`
    "parallel_ffn": frozenset({"hidden"}),
    "parallel_attn": frozenset({"attn"}),
    "sequential_attn": frozenset({"input"}),
    "sequential_ffn": frozenset({"mlp"}),
}
FORMS = ("intended", "released")


@dataclass(frozen=True)
class AdaVaeConfig:
    """Sizes and choices of one AdaVAE; `decoder` is the shared stack.

    encoder_layers: layers that encode. read_end: whether the encoder sees the end token (the
    released code hides it). pool: see `pooled`; pool_scale: "sqrt_batch" divides the logits of
    "latent_attn" by the root of the number of sentences in the batch (released code);
    pool_padding: padding is read and pooled by "linear" and "mean_max_linear" as released, one
    sentence per row. adapter: width of the bottleneck; adapt_encoder, adapt_decoder: whether a side
    has adapters at all; placement, placement_form: where, "released" applies each to the input of
    its layer too. identity_start: adapters start as the identity. use_*: ways for z, see
    `jvae.nn.condition`. prefix: learned slots per layer and side, prefix_middle: width of their
    MLP. log_var_shift: added to the head's log-variance; 0 as published.
    prior, posterior: names of registered members, with their options.
    """

    decoder: TransformerConfig
    encoder_layers: int = 8
    latent: int = 32
    read_end: bool = True
    pool: str = "latent_attn"
    pool_scale: str = "one"
    pool_padding: bool = False
    adapter: int = 128
    adapter_scale: float = 1.0
    learn_scale: bool = False
    identity_start: bool = False
    adapt_encoder: bool = True
    adapt_decoder: bool = True
    placement: str = "parallel_ffn"
    placement_form: str = "intended"
    use_psa: bool = True
    use_memory: bool = False
    use_embedding: bool = False
    use_output: bool = False
    use_adapters: bool = False
    vary: bool = False
    prefix: int = 0
    prefix_middle: int = 30
    log_var_shift: float = 0.0
    prior: Choice = STANDARD_NORMAL
    posterior: Choice = GAUSSIAN

    def __post_init__(self) -> None:
        for name, known in (
            ("pool", POOLS),
            ("pool_scale", POOL_SCALES),
            ("placement", PLACEMENTS),
            ("placement_form", FORMS),
        ):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
        if not 1 <= self.encoder_layers <= self.decoder.layers:
            raise ValueError(
                f"encoder_layers is {self.encoder_layers}; the stack has 1 to {self.decoder.layers}"
            )
        if self.latent < 1 or self.adapter < 1 or self.prefix < 0 or self.prefix_middle < 1:
            raise ValueError(
                f"latent {self.latent}, adapter {self.adapter}, prefix {self.prefix}, "
                f"prefix_middle {self.prefix_middle}; expected at least 1, 1, 0 and 1"
            )
        if not self.ways.open:
            raise ValueError("every use_* is off: z would never reach the decoder")
        if self.use_adapters and not self.adapt_decoder:
            raise ValueError("use_adapters needs adapters in the decoder: set adapt_decoder")
        if self.vary and not self.ways.projected:
            raise ValueError("vary is on, but no projection of z: set use_psa or use_memory")
        if self.pool_padding and self.pool not in ("linear", "mean_max_linear"):
            raise ValueError(f"pool_padding is on; the pool {self.pool} never reads padding")

    @property
    def ways(self) -> Ways:
        """The ways for z into the decoder."""
        return Ways(
            psa=self.use_psa,
            memory=self.use_memory,
            embedding=self.use_embedding,
            output=self.use_output,
            adapters=self.use_adapters,
            vary=self.vary,
        )

    @property
    def slots(self) -> int:
        """Slots in front of the tokens of one decoded example."""
        return int(self.use_psa) + int(self.use_memory) + self.prefix

    def places(self, decoder: bool) -> frozenset[str]:
        """Where the adapters of a side are used."""
        places = PLACEMENTS[self.placement]
        if self.placement_form == "released":
            places = places | {"input"}
            if decoder and self.placement == "sequential_attn":
                places = places | {"mlp"}
        return places
