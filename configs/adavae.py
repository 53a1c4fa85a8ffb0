"""AdaVAE. Source: Tu et al. 2022, arXiv 2205.05862, and the released code. The values of `base`
come from the released language-modelling script.

`base`: 22,000 steps. Adapters, norms, pooling and the injection of z train around a frozen GPT-2:
those of the encoder from step 0, those of the decoder from a sixth of the run. The frozen stack
needs pretrained weights. The mistakes of the released code are absent, but each is available as an
option: the adapter on the input of every layer (`model.placement_form=released`), a pooling
temperature that depends on the batch (`model.pool_scale=sqrt_batch`), ends that are never scored
(`data.score_end=False` with `objective.rec_reduce=token_mean_end`). Sentences are not truncated;
the released code cuts them at 32 tokens.

`tiny`: the embedded corpus. Since freezing a random stack would prove nothing, stage0 of the same
run trains it: the whole model as an autoencoder whose decoder sees 30 % of its tokens as unknown.
stage1 freezes the stack and trains the parts around it, with the free bits of the paper (0.4 nats
per dimension, of the batch mean). A stack trained as a language model only
(`phases.stage0.objective.z=zero`) retains too little word information for an encoder: with it the
reconstruction stayed at 8 nats per sentence after 1,000 steps at beta 0.02, with 2 or 4 layers,
adapters of 128 or 512, and either pooling; exact match 0.5 %. Sizes, rates and the other ways to
inject z are ours.

`adavae:tiny,prior=gmm` has a prior with parameters (gmm, flow, vamp), which train together with
those around the stack, and no free bits.

`smollm2`: the same parameters as in `base` train, around a frozen SmolLM2-135M; the encoder uses
two thirds of its layers. Results on SNLI, with hardware and time: RESULTS.md, budget `laptop`.
"""

from ml_collections import ConfigDict

from jvae.config import preset

from . import common

PRESETS = ("tiny", "base", "smollm2")
NORMS = "^decoder/layers/(attn|mlp)_norm/"


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a preset."""

    name, options = preset(arg, PRESETS, prior="standard_normal")
    c = common.base()
    c.name = f"adavae-{name}"
    c.model = ConfigDict(
        dict(
            family="adavae",
            encoder_layers=8,
            **common.latent(32),
            read_end=False,
            pool="latent_attn",
            pool_scale="one",
            pool_padding=False,
            adapter=128,
            adapter_scale=1.0,
            learn_scale=False,
            identity_start=False,
            adapt_encoder=True,
            adapt_decoder=True,
            placement="parallel_ffn",
            placement_form="intended",
            use_psa=True,
            use_memory=False,
            use_embedding=False,
            use_output=False,
            use_adapters=False,
            layerwise_projection=False,
            prefix=0,
            prefix_middle=30,
            log_var_shift=0.0,
            decoder=common.transformer(positions=1024),
        )
    )
    dict(tiny=_tiny, base=_published, smollm2=_smollm2)[name](c)
    if options["prior"] != "standard_normal":
        _learned_prior(c, options["prior"])
    return c


def _learned_prior(c: ConfigDict, kind: str) -> None:
    """Parameters of the prior must train around the frozen stack. Free bits are off, because a KL
    estimated by draws is not available per dimension.
    """
    c.model.prior.kind = kind
    where = c.phases.stage1 if "stage1" in c.phases else c
    where.optim.trainable = (*where.optim.trainable, ("^prior/", None, None, 0))
    c.objective.update(free_bits="none", free_bits_nats=0.0)


def _tiny(c: ConfigDict) -> None:
    c.model.decoder.update(
        dict(layers=2, width=128, heads=4, mlp=512, positions=64, dropout=0.0, unroll=2)
    )
    c.model.decoder.init_std = 0.06
    c.model.encoder_layers = 2
    c.model.adapter = 128
    c.model.identity_start = True
    c.model.use_embedding = c.model.use_memory = c.model.use_adapters = True
    c.model.log_var_shift = -3.0
    c.data.row_tokens = 64
    c.data.batch_rows = 14
    c.optim.update(dict(lr=5e-3, schedule="cosine", warmup_steps=100))
    c.train.steps = 2_000
    c.train.check_every = 400
    denoiser = dict(beta=dict(kind="constant", stop=0.02), free_bits="none")
    ways = "(project|psa|memory|offset|adapter_latent)"
    c.phases = ConfigDict(
        dict(
            stage0=dict(share=0.3, objective=denoiser, noise=dict(word_dropout=0.3)),
            stage1=dict(share=0.7, optim=dict(trainable=_rules(ways))),
        )
    )
    c.objective.update(dict(free_bits="mean_sum", free_bits_nats=0.4))
    c.objective.beta.update(start=0.02, ratio_zero=0.3, ratio_increase=0.4, stop=1.0)


def _rules(ways: str) -> tuple:
    """Rules for what trains around the frozen stack: the encoder's side from the start, the
    decoder's from a sixth of the phase.
    """
    encoder, decoder = 0, "1/6"
    return (
        ("^posterior/", None, None, 0),
        (f"^decoder/{ways}/", None, None, 0),
        ("^encoder/", None, None, encoder),
        (NORMS, 0, "encoder_layers", encoder),
        ("^decoder/norm/", None, None, encoder),
        ("^decoder/adapter/", None, None, decoder),
        (NORMS, None, None, decoder),
    )


def _published(c: ConfigDict) -> None:
    c.data.encoder_tokenizer = "gpt2"
    c.data.decoder_tokenizer = "gpt2"
    c.data.max_words = 100
    c.model.decoder.dtype = "bfloat16"
    c.train.steps = 22_000
    c.objective.rec_reduce = "token_mean"
    c.objective.free_bits = "mean_sum"
    c.objective.free_bits_nats = 0.5
    # One step longer than the run, as released.
    c.objective.beta.update(n_cycle=4, ratio_zero=0.25, ratio_increase=0.25)
    c.objective.beta.n_iter = c.train.steps + 1
    c.optim.update(dict(lr=5e-5, warmup_steps=c.train.steps // 6, first_update=1))
    c.optim.update(dict(eps=1e-6, eps_first=True))
    c.optim.trainable = _rules("(project|psa)")


def _smollm2(c: ConfigDict) -> None:
    c.model.decoder = ConfigDict(common.llama())
    c.model.encoder_layers = 20
    # The family has adapters of its own; a rank would add low-rank additions to them.
    common.pretrained(c, (), rank=0, decoder=common.SMOLLM2)
    c.optim.trainable = _rules("(project|psa)")
    c.objective.update(free_bits="mean_sum", free_bits_nats=0.5)
