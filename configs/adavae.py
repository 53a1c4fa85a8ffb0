"""AdaVAE. Source: Tu et al. 2022, arXiv 2205.05862, and the released code; values of `base` from
the released language-modelling script.

`base`: 22,000 steps, adapters, norms, pooling and ways for z around a frozen GPT-2; from step 0 the
encoder's, from a sixth of the run the decoder's. The frozen stack needs pretrained weights. Absent
are the mistakes of the released code, each of which is an option: the adapter on the input of every
layer (`model.placement_form=released`), a pooling temperature that depends on the batch
(`model.pool_scale=sqrt_batch`), ends that are never scored (`data.score_end=False` with
`objective.rec=token_mean_end`). Sentences are whole; the released code cuts them at 32 tokens.

`tiny`: the embedded corpus, everything trained from scratch at once; a frozen random stack would
prove nothing.
"""

from ml_collections import ConfigDict

from . import common

PRESETS = ("tiny", "base")
NORMS = "^decoder/layers/(attn|mlp)_norm/"


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a preset."""
    from jvae.config import preset

    name, _ = preset(arg, PRESETS)
    c = common.base()
    c.name = f"adavae-{name}"
    c.model = ConfigDict(
        dict(
            family="adavae",
            encoder_layers=8,
            latent=32,
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
            vary=False,
            prefix=0,
            prefix_middle=30,
            log_var_shift=0.0,
            decoder=common.transformer(positions=1024),
        )
    )
    if name == "tiny":
        _tiny(c)
    else:
        _published(c)
    return c


def _tiny(c: ConfigDict) -> None:
    c.model.decoder.update(
        dict(layers=2, width=128, heads=4, mlp=512, positions=64, dropout=0.0, unroll=2)
    )
    c.model.decoder.init_std = 0.06
    c.model.encoder_layers = 2
    c.model.adapter = 64
    c.model.identity_start = True
    c.model.use_embedding = True
    c.model.log_var_shift = -3.0
    c.data.row_tokens = 64
    c.data.batch_rows = 14
    c.optim.update(dict(lr=3e-3, schedule="cosine", warmup_steps=100))
    c.train.steps = 2_800
    c.train.check_every = 400
    # A frozen stack that was never trained would prove nothing: it becomes a language model first.
    language_model = dict(z="zero", beta=dict(kind="constant"))
    stack = ("^decoder/(embed|layers|norm)/", None, None, 0)
    c.phases = ConfigDict(
        dict(
            stage0=dict(share=0.3, objective=language_model, optim=dict(trainable=(stack,))),
            stage1=dict(share=0.7, optim=dict(trainable=_rules(c, "(project|psa|offset)"))),
        )
    )
    c.objective.beta.update(ratio_zero=0.3, ratio_increase=0.4, stop=0.8)


def _rules(c: ConfigDict, ways: str) -> tuple:
    """What trains around the frozen stack: the encoder's side from the start, the decoder's from a
    sixth of the phase.
    """
    encoder, decoder = 0, "1/6"
    return (
        ("^posterior/", None, None, 0),
        (f"^decoder/{ways}/", None, None, 0),
        ("^encoder/", None, None, encoder),
        (NORMS, 0, c.model.encoder_layers, encoder),
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
    c.objective.rec = "token_mean"
    c.objective.kl_floor = "mean_sum"
    c.objective.floor = 0.5
    # One step longer than the run, as released.
    c.objective.beta.update(n_cycle=4, ratio_zero=0.25, ratio_increase=0.25)
    c.objective.beta.n_iter = c.train.steps + 1
    c.optim.update(dict(lr=5e-5, warmup_steps=c.train.steps // 6, first_update=1))
    c.optim.update(dict(eps=1e-6, eps_first=True))
    c.optim.trainable = _rules(c, "(project|psa)")
