"""Benchmarks, and the tables of README.md. A case is one file here and one line in `CASES`."""

from jvae.bench import iw_nll, langevin

CASES = {
    "iw_nll": iw_nll.CASE,
    "langevin": langevin.LSTM,
    "langevin_transformer": langevin.TRANSFORMER,
}
