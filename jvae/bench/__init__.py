"""Benchmarks, and the tables of BENCHMARKS.md. To add a case, add one file here and
one line in `CASES`.
"""

from jvae.bench import (
    data,
    decode,
    encode,
    iw_nll,
    langevin,
    prior_fit,
    prior_latents,
    prior_sample,
    startup,
    train_step,
)

CASES = {
    "train_step": train_step.CASE,
    "data": data.CASE,
    "encode": encode.CASE,
    "decode": decode.CASE,
    "langevin": langevin.LSTM,
    "langevin_transformer": langevin.TRANSFORMER,
    "iw_nll": iw_nll.CASE,
    "prior_sample": prior_sample.CASE,
    "prior_fit": prior_fit.CASE,
    "prior_latents": prior_latents.CASE,
    "startup": startup.CASE,
}
