"""The config of AdaVAE."""

from dataclasses import dataclass
from typing import Any

from jvae.fields import Needs, setting
from jvae.injections.ways import Ways
from jvae.latent.choice import Choice
from jvae.latent.densities import GAUSSIAN
from jvae.latent.priors import STANDARD_NORMAL
from jvae.models.amortized import QUERIES, check_vectors
from jvae.nn import config as sizes
from jvae.nn.backbone import StackConfig

POOLS = ("latent_attn", "averaged_attn", "linear", "mean_max_linear", QUERIES)
POOL_SCALES = ("one", "sqrt_batch")
PLACEMENTS = {  # names of taps in `jvae.nn.block`
    "parallel_ffn": frozenset({"hidden"}),
    "parallel_attn": frozenset({"attn"}),
    "sequential_attn": frozenset({"input"}),
    "sequential_ffn": frozenset({"mlp"}),
}
FORMS = ("intended", "released")
_ADAPTERS = Needs(
    lambda c: c.adapt_encoder or c.adapt_decoder, "adapt_encoder and adapt_decoder are both off"
)


@dataclass(frozen=True)
class AdaVaeConfig:
    """Sizes and choices of one AdaVAE.

    `decoder` is the shared stack. Its first `encoder_layers` layers also encode, unless a separate
    `encoder` is set. For `pool` see `pooled`; for the injections, `use_*`, see
    `jvae.injections.ways`.
    """

    decoder: StackConfig
    encoder: StackConfig | None = None
    encoder_layers: int = setting(8, low=1, high=4_096, help="Layers of the encoder.")
    latent: int = setting(32, **sizes.LATENT)
    vectors: int = setting(1, **sizes.VECTORS)
    read_end: bool = setting(
        True, help="Whether the encoder sees the end token; as released, it does not."
    )
    pool: str = setting("latent_attn", choices=POOLS, help="Pooling of the encoder's states.")
    pool_scale: str = setting(
        "one",
        choices=POOL_SCALES,
        help="sqrt_batch: divide the logits by the root of the batch size (released).",
        needs=Needs(lambda c: c.pool == "latent_attn", "pool is not latent_attn"),
    )
    pool_padding: bool = setting(
        False, help="Read and pool padding, as released; needs one sentence per row."
    )
    adapter: int = setting(128, low=1, high=2**17, help="Width of the bottleneck.", needs=_ADAPTERS)
    adapter_scale: float = setting(
        1.0, low=-1e3, high=1e3, help="Scale of the adapters' output.", needs=_ADAPTERS
    )
    learn_scale: bool = setting(False, help="Whether adapter_scale is learned.", needs=_ADAPTERS)
    identity_start: bool = setting(
        False, help="Whether adapters start as the identity.", needs=_ADAPTERS
    )
    adapt_encoder: bool = setting(True, help="Whether the encoder has adapters.")
    adapt_decoder: bool = setting(True, help="Whether the decoder has adapters.")
    placement: str = setting(
        "parallel_ffn",
        choices=tuple(PLACEMENTS),
        help="Position of the adapters in a layer.",
        needs=_ADAPTERS,
    )
    placement_form: str = setting(
        "intended",
        choices=FORMS,
        help="released: one more adapter at the input of each layer.",
        needs=_ADAPTERS,
    )
    use_psa: bool = setting(
        True, help="Inject each vector of z as a slot with separate key and value."
    )
    use_memory: bool = setting(False, help="Inject each vector of z as a slot with key = value.")
    use_embedding: bool = setting(False, help="Add z to every input embedding.")
    use_output: bool = setting(False, help="Add z to the output scores.")
    use_adapters: bool = setting(False, help="Add z inside every decoder adapter.")
    layerwise_projection: bool = setting(
        False, help="Project z separately for each layer instead of once for all."
    )
    prefix: int = setting(
        0, low=0, high=2**16, help="Learned prefix slots per layer, in encoder and decoder each."
    )
    prefix_middle: int = setting(
        30,
        low=1,
        high=2**17,
        help="Width of the MLP that computes the prefix.",
        needs=Needs(lambda c: c.prefix > 0, "prefix is 0"),
    )
    log_var_shift: float = setting(0.0, **sizes.LOG_VAR_SHIFT)
    prior: Choice = STANDARD_NORMAL
    posterior: Choice = GAUSSIAN

    def __post_init__(self) -> None:
        check_vectors(self.vectors, self.pool)
        layers = self.encoding.layers
        if not 1 <= self.encoder_layers <= layers:
            raise ValueError(
                f"encoder_layers is {self.encoder_layers}; expected 1 to {layers}, the layers of "
                "the stack"
            )
        if not self.ways.open:
            raise ValueError("every use_* is off: z would never reach the decoder")
        if self.use_adapters and not self.adapt_decoder:
            raise ValueError("use_adapters needs adapters in the decoder: set adapt_decoder")
        if self.layerwise_projection and not self.ways.projected:
            raise ValueError(
                "layerwise_projection is on, but nothing uses a projection of z: set use_psa or "
                "use_memory"
            )
        if self.pool_padding and self.pool not in ("linear", "mean_max_linear"):
            raise ValueError(f"pool_padding is on; the pool {self.pool} never reads padding")

    @property
    def encoding(self) -> Any:
        """The config of the stack that encodes."""
        return self.decoder if self.encoder is None else self.encoder

    @property
    def ways(self) -> Ways:
        """The injections of z into the decoder."""
        return Ways(
            psa=self.use_psa,
            memory=self.use_memory,
            embedding=self.use_embedding,
            output=self.use_output,
            adapters=self.use_adapters,
            layerwise_projection=self.layerwise_projection,
        )

    def places(self, decoder: bool) -> frozenset[str]:
        """The taps at which the adapters of a side are used."""
        places = PLACEMENTS[self.placement]
        if self.placement_form == "released":
            places = places | {"input"}
            if decoder and self.placement == "sequential_attn":
                places = places | {"mlp"}
        return places
