"""Optimus. Source: Li et al. 2020, arXiv 2004.04092; values of `base` from sections 4.3, 5.1 and
the released scripts.
"""

from ml_collections import ConfigDict

from . import common

PRESETS = ("tiny", "tiny_cls", "base", "latent768")


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a preset."""
    from jvae.config import preset

    name, _ = preset(arg, PRESETS)
    c = common.base()
    c.name = f"optimus-{name}"
    c.model = ConfigDict(
        dict(
            family="optimus",
            latent=32,
            use_memory=True,
            use_embedding=True,
            pool="cls",
            log_var="learned",
            log_var_shift=0.0,
            encoder=common.transformer(norm_eps=1e-12),
            decoder=common.transformer(positions=1024),
        )
    )
    if name in ("tiny", "tiny_cls"):
        _tiny(c)
        if name == "tiny":
            _from_scratch(c)
    else:
        _published(c)
        if name == "latent768":
            c.model.latent = 768
            c.objective.floor = 5.0
            c.objective.length_weighted = True
    return c


def _tiny(c: ConfigDict) -> None:
    small = dict(layers=2, width=128, heads=4, mlp=512, positions=256, dropout=0.0, unroll=2)
    c.model.encoder.update(small)
    c.model.decoder.update(small)
    c.data.row_tokens = 64
    c.data.batch_rows = 14
    c.optim.lr = 3e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 100
    c.train.steps = 3_500
    c.train.check_every = 500
    c.objective.kl_floor = "dim_masked"
    c.objective.floor = 0.5


def _from_scratch(c: ConfigDict) -> None:
    c.model.pool = "mean"
    c.model.log_var_shift = -3.0
    c.objective.kl_floor = "none"
    c.objective.floor = 0.0
    c.objective.beta.update(ratio_zero=0.2, ratio_increase=0.4, stop=0.8)


def _published(c: ConfigDict) -> None:
    c.data.encoder_tokenizer = "bert-base-cased"
    c.data.decoder_tokenizer = "gpt2"
    c.data.max_words = 100
    c.model.encoder.dtype = "bfloat16"
    c.model.decoder.dtype = "bfloat16"
    c.objective.kl_floor = "dim_masked"
    c.objective.floor = 0.5
