"""DELLA. Source: Hu et al. 2022, arXiv 2207.06130. The values of `base` come from its appendix A
and, where that gives none, from the released code.

    tiny         (default) the embedded corpus, 2 layers of width 128, two latents of 16
    tiny_plain   `tiny` with beta 1 from the first step and the budget of `optimus:tiny_plain`, for
                 comparison with it: the paper claims that DELLA needs no annealing
    base         the paper
    story        conditional, source and target up to 700 words
    paraphrase   conditional, short pairs
    quora        `paraphrase` on `label TAB question TAB question`, duplicates (label 1) only
    bart         conditional, as in the paper for paraphrases and summaries: BART-base encodes the
                 source, its decoder attends to it; data as for `quora`
    t5           the same with T5-base
    smollm2      a frozen SmolLM2-135M encodes and decodes; its low-rank additions and the
                 components specific to DELLA train

    python -m jvae.main --config=configs/della.py
    python -m jvae.main --config=configs/della.py:paraphrase --config.data.train=pairs.tsv \\
      --config.data.source=1 --config.data.text=2
    python -m jvae.main --config=della:quora,data=quora    a folder with train, valid, test.tsv

Ablations of the paper's Table 4, appended to any preset, such as `della:tiny,ablate=independent`:

    no_product   z of a layer is added to its input; the paper does not say what it used instead
    independent  latents are not conditioned on those of lower layers
    shared       one latent for all layers: no layer-wise inference
    lower, upper   latents only in the lower or upper half of the layers (its Fig. 2)

Measured values of the `tiny` presets: the table in RESULTS.md, with hardware and time. The tests
build the others and run one training step; their published scores: not measured.

Where code and paper differ (our value first, then the others):
    objective.kl_reduce    sum: the bound, and the paper's eq. 6. group_mean: the code, whose beta
                           of 1 is an ELBO with a twelfth of the KL; the tables seem to use it.
    model.pool             attn_masked: the code's attention pooling with padding masked, so that a
                           latent does not depend on the batch. attn_unmasked: the code
                           (data.packing must be bucket). first_token: the paper.
    model.learn_prior1     true: the code. false: the paper's N(0, I) for the first latent.
    model.tie_lm_head      false: the code; the paper's parameter count, 193,353,984 with its
                           vocabulary of 50,259, needs it. GPT-2 itself ties.
    model.product_order    sum_then_product: both; its rank only changes the scale.
                           product_then_sum: a product of that rank.
    model.cvae_posterior   concat_text: the code, `enc` holds source and target. xc: the paper's eq.
                           12, `enc` holds the target.
    objective.beta         a cycle is two epochs: set n_cycle to half the epochs of train.steps.
                           kind=constant is the paper's row without annealing.
    likelihoods            sums over layers; the code averages. Only predicted tokens count.

`story` and `paraphrase` are the conditional GPT-2 model, which the paper uses for stories; for
paraphrases and summaries it uses BART (`bart`), whose code was not released. There the encoder
reads source and target separately, the posterior is conditioned on both (xc), the latent of a layer
multiplies the values of its self-attention in the decoder, and cross-attention is unchanged. Texts
begin with <s>; in BART's own training </s> comes before it.

    python -m jvae.main --config=della:bart,data=quora --config.init.decoder=facebook/bart-base
    python -m jvae.main --config=della:t5 --config.init.decoder=t5-base \\
      --config.data.train=articles.jsonl --config.data.source=article --config.data.text=summary \\
      --config.data.max_words=1000 --config.data.row_tokens=1024

Deviations of `tiny`: sizes, dropout off, a tied output head, learning rate 3e-3 with 100 steps of
warm-up and cosine decay, and clipping of the gradient. `smollm2` multiplies a latent only into the
values of the last ten layers: a product that starts near zero destroys what a frozen layer has
learned. The tests run training steps on real text; its scores: not measured.
"""

from typing import Any

from ml_collections import ConfigDict

from jvae.config import choice, preset

from . import common

PRESETS = ("tiny", "tiny_plain", "base", "story", "paraphrase", "quora", "bart", "t5", "smollm2")
# Stacks and tokenizers of the presets whose decoder attends to an encoder.
SEQ2SEQ = dict(bart=(common.bart, "facebook/bart-base"), t5=(common.t5_base, "t5-base"))
ABLATIONS = ("no_product", "independent", "shared", "lower", "upper")


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a preset."""

    name, options = preset(arg, PRESETS, data="", ablate="")
    c = common.base()
    c.name = "-".join(filter(None, ("della", name, options["ablate"])))
    c.model = ConfigDict(
        dict(
            family="della",
            latent=32,
            rank=4,
            conditional=False,
            begin_layer=0,
            end_layer=-1,
            pool="attn_masked",
            product_order="sum_then_product",
            tie_lm_head=False,
            use_bow=False,
            learn_prior1=True,
            cvae_posterior="concat_text",
            clip=5.0,
            decoder=common.transformer(positions=1024),
        )
    )
    c.objective.kl_reduce = "sum"
    c.objective.aux_weight = ConfigDict(dict(bow=0.2))  # read with model.use_bow
    c.objective.beta.update(start=1e-5)
    if name in ("tiny", "tiny_plain"):
        _tiny(c)
    elif name == "smollm2":
        _smollm2(c)
    else:
        _published(c)
    if name == "tiny_plain":
        c.objective.beta.update(kind="constant", stop=1.0)
        c.train.steps = 2_000
    if name in ("story", "paraphrase", "quora"):
        c.model.conditional = True
    if name in SEQ2SEQ:
        stack, tokenizer = SEQ2SEQ[name]
        attend(c, stack())
        for role in ("encoder", "decoder"):
            c.model[role].dtype = "bfloat16"
            c.data[f"{role}_tokenizer"] = tokenizer
    if name == "story":
        c.data.max_words = 700  # source plus target, as released
        c.data.row_tokens = 700
        c.data.batch_rows = 32
    if name in ("paraphrase", "quora", *SEQ2SEQ):
        c.data.row_tokens = 128
    if options["ablate"]:
        _ablate(c, choice(options, "ablate", ABLATIONS))
    if options["data"]:
        common.read(c, options["data"], "tsv")
        if name in ("quora", *SEQ2SEQ):
            c.data.update(source="1", text="2", keep="0=1")
    return c


def attend(c: ConfigDict, stack: dict[str, Any]) -> None:
    """Turns a config into a conditional one whose decoder attends to an encoder; both are such
    stacks.
    """
    c.model.encoder, c.model.decoder = ConfigDict(stack), ConfigDict(stack)
    c.model.update(
        conditional=True,
        source="cross",
        cvae_posterior="xc",
        share_embedding=True,
        tie_lm_head=True,
    )


def _ablate(c: ConfigDict, ablation: str) -> None:
    half = c.model.decoder.layers // 2
    if ablation == "no_product":
        c.model.fuse = "offset"
    elif ablation in ("independent", "shared"):
        c.model.layer_latents = ablation
    elif ablation == "lower":
        c.model.end_layer = half - 1
    else:
        c.model.begin_layer = half


def _tiny(c: ConfigDict) -> None:
    small = dict(layers=2, width=128, heads=4, mlp=512, positions=64, dropout=0.0, unroll=2)
    c.model.decoder.update(small)
    c.model.latent = 16  # 32 in total, like Optimus-tiny
    c.model.tie_lm_head = True
    c.data.row_tokens = 64
    c.data.batch_rows = 14
    c.optim.lr = 3e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 100
    c.train.steps = 3_500
    c.train.check_every = 500


def _published(c: ConfigDict) -> None:
    c.data.encoder_tokenizer = "gpt2"
    c.data.decoder_tokenizer = "gpt2"
    c.model.decoder.dtype = "bfloat16"
    # The released optimizer: AdamW with only the rate set, no schedule, no clipping.
    c.optim.lr = 5e-5
    c.optim.schedule = "constant"
    c.optim.eps = 1e-6
    c.optim.clip = None
    c.decode.method = "beam"
    c.decode.beam_width = 10
    c.decode.repetition_penalty = 1.2
    c.decode.min_length = 3


def _smollm2(c: ConfigDict) -> None:
    c.model.decoder = ConfigDict(common.llama())
    c.model.begin_layer = 20
    c.model.tie_lm_head = True
    around = r"^(latent|prior|posterior)/|^decoder/(fusion|layer_offset)/"
    common.pretrained(c, (around,), decoder=common.SMOLLM2)
