"""LSTM-VAE baselines on the embedded corpus: the generator of `sri:tiny` with an LSTM encoder.

    tiny           beta = 1 from the first step. Source: Bowman et al. 2016, without annealing
    annealed       beta rises linearly from 0 to 1 over the first half. Source: the same
    ae_free_bits   starts as an autoencoder (beta = 0), then anneals with a floor of 0.25 nats per
                   dimension. Source: Li et al. 2019; 8 nats over 32 dimensions. Deviation: the
                   decoder is kept; the publication reinitialises it

    python -m jvae.main --config=lstm_vae:annealed --workdir=runs/lstm-annealed

Sizes, optimizer and batches are those of `sri:tiny`, but with more steps, as each costs less.
Measured values of `tiny` and `annealed`: the table in RESULTS.md; of `ae_free_bits`: SNLI and PTB
there.
"""

from ml_collections import ConfigDict

from jvae.config import preset

from . import common

PRESETS = ("tiny", "annealed", "ae_free_bits")


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a preset."""

    name, _ = preset(arg, PRESETS)
    c = common.base()
    c.name = f"lstm_vae-{name}"
    small = dict(width=64, hidden=128, dropout=0.2)
    c.model = ConfigDict(
        dict(
            family="lstm_vae",
            **common.latent(32),
            pool="last",
            log_var_shift=0.0,
            encoder=common.lstm(**small | dict(dropout=0.0)),
            decoder=common.lstm(**small),
        )
    )
    c.data.packing = "bucket"
    c.data.tokenizer_kind = "word"
    c.data.vocab = 0
    c.data.batch_rows = 64
    c.optim.update(lr=3e-3, schedule="cosine", warmup_steps=50, clip=5.0)
    c.train.update(steps=6_000, check_every=1_000)
    beta = c.objective.beta
    if name == "tiny":
        beta.kind = "constant"
    elif name == "annealed":
        beta.update(ratio_zero=0.0, ratio_increase=0.5)
    else:
        c.objective.update(free_bits="dim_max", free_bits_nats=0.25)
        beta.update(ratio_zero=0.3, ratio_increase=0.3)
    return c
