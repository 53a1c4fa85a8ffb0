"""Language models: the baseline of every table, NLL exact for every K, no latent.

    tiny    the decoder of `optimus:tiny`
    lstm    the decoder of `sri:tiny`, without what reads z

    python -m jvae.main --config=lm:tiny --workdir=runs/lm-tiny

Both on the embedded corpus. Wall times and metrics: not measured.
"""

from ml_collections import ConfigDict

from . import common

PRESETS = ("tiny", "lstm")


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a preset."""
    from jvae.config import preset

    name, _ = preset(arg, PRESETS)
    c = common.base()
    c.name = f"lm-{name}"
    c.objective.beta.kind = "constant"  # there is no KL to weigh
    c.optim.update(lr=3e-3, schedule="cosine", warmup_steps=100)
    c.train.update(steps=3_500, check_every=500)
    if name == "tiny":
        small = dict(layers=2, width=128, heads=4, mlp=512, positions=256, dropout=0.0, unroll=2)
        c.model = ConfigDict(dict(family="lm", decoder=common.transformer(**small)))
        c.data.update(row_tokens=64, batch_rows=14)
    else:
        small = dict(width=64, hidden=128, dropout=0.2)
        c.model = ConfigDict(dict(family="lstm_lm", decoder=common.lstm(**small)))
        c.data.update(packing="bucket", tokenizer_kind="word", vocab=0, batch_rows=64)
        c.optim.clip = 5.0
    return c
