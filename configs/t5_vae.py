"""T5-VAE.

(header below)
"""

from ml_collections import ConfigDict

from . import common

PRESETS = ("tiny", "base")


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a preset."""
    from jvae.config import preset

    name, _ = preset(arg, PRESETS)
    c = common.base()
    c.name = f"t5_vae-{name}"
    c.model = ConfigDict(
        dict(
            family="t5_vae",
            latent=32,
            pool="max",
            pool_padding=False,
            use_memory=True,
            memory_layout="own",
            cross_slots=0,
            log_var_shift=0.0,
            decoder=common.t5(),
        )
    )
    c.objective.rec_length = 0
    if name == "tiny":
        _tiny(c)
    else:
        _published(c)
    return c


def _tiny(c: ConfigDict) -> None:
    c.model.decoder.update(
        dict(layers=2, width=128, heads=4, head=32, mlp=512, dropout=0.0, unroll=2)
    )
    c.model.log_var_shift = -3.0
    c.data.row_tokens = 64
    c.data.batch_rows = 14
    c.objective.beta.update(ratio_zero=0.2, ratio_increase=0.4, stop=0.8)
    c.optim.update(dict(lr=3e-3, schedule="cosine", warmup_steps=100))
    c.train.steps = 2_000
    c.train.check_every = 500


def _published(c: ConfigDict) -> None:
    c.data.encoder_tokenizer = "t5-small"
    c.data.decoder_tokenizer = "t5-small"
    c.model.decoder.dtype = "bfloat16"
    # Ten epochs of 100,000 sentences, 128 at a time; the weight of the KL is on its way to 1.
    c.train.steps = 7_820
    c.objective.update(dict(kl_floor="dim_max", floor=0.5, rec_length=256))
    c.objective.beta.update(dict(kind="linear", stop=0.1))
    c.optim.update(dict(lr=1e-4, schedule="constant", weight_decay=0.01, no_decay=(), clip=None))
