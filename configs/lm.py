"""Language models: the baseline row of every table. Without a latent, NLL is exact for every K.

    tiny         (default) the decoder of `optimus:tiny`: same layers, tokens, updates and optimizer
    lstm         the decoder of `sri:tiny`, without the parts that read z
    pretrained   the decoder of `optimus:smollm2`, a frozen SmolLM2-135M with trained low-rank
                 additions; choose another one with --config.init.decoder=FOLDER or a hub name
    gpt2         the same with GPT-2

    python -m jvae.main --config=configs/lm.py
    python -m jvae.main --config=lm:lstm --workdir=runs/lm-lstm
    python -m jvae.main --config=lm:pretrained --config.data.train=...

The first two use the embedded corpus. Measured values of `tiny`: the table in RESULTS.md, with
hardware and time; of `lstm`: SNLI and PTB there; of `pretrained`: budget `laptop` there; of `gpt2`:
not measured.

`tiny` has the settings of `optimus:tiny` that do not concern the latent: learning rate 3e-3 with
100 steps of warm-up and cosine decay, no dropout, initial standard deviation 0.06 (0.02 is meant
for width 768), 2,000 updates of 14 rows.

`pretrained` has the rate, warm-up and rows of `optimus:smollm2`, for one pass over a corpus like
SNLI's 37,741 lines. Loss of training, same batches of 27 sentences, mean of updates 41 to 60, by
the command of the row "SmolLM2 LM" in RESULTS.md with --config.train.log_every=20 and these values:

    rate 1.5e-3 after 50 updates of warm-up, lora.alpha 16, as here     39.8
    the same with lora.alpha 8                                          40.4
    rate 5e-4 after the same warm-up, lora.alpha 16                     42.6
"""

from ml_collections import ConfigDict

from jvae.config import preset

from . import common

PRESETS = ("tiny", "lstm", "pretrained", "gpt2")


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a preset."""

    name, _ = preset(arg, PRESETS)
    c = common.base()
    c.name = f"lm-{name}"
    c.objective.beta.kind = "constant"  # there is no KL to weigh
    c.optim.update(lr=3e-3, schedule="cosine", warmup_steps=100)
    c.train.update(steps=3_500, check_every=500)
    if name in ("pretrained", "gpt2"):
        smollm2 = name == "pretrained"
        decoder = common.llama() if smollm2 else common.transformer(positions=1024)
        c.model = ConfigDict(dict(family="lm", decoder=decoder))
        common.pretrained(c, (), decoder=common.SMOLLM2 if smollm2 else common.GPT2)
        if smollm2:
            c.optim.update(lr=1.5e-3, warmup_steps=50)
            c.data.update(row_tokens=64, batch_rows=4)
            c.train.update(steps=1_500, check_every=375)
    elif name == "tiny":
        small = dict(layers=2, width=128, heads=4, mlp=512, positions=256, dropout=0.0, unroll=2)
        c.model = ConfigDict(dict(family="lm", decoder=common.transformer(init_std=0.06, **small)))
        c.data.update(row_tokens=64, batch_rows=14)
        c.train.steps = 2_000
    else:
        small = dict(width=64, hidden=128, dropout=0.2)
        c.model = ConfigDict(dict(family="lstm_lm", decoder=common.lstm(**small)))
        c.data.update(packing="bucket", tokenizer_kind="word", vocab=0, batch_rows=64)
        c.optim.clip = 5.0
    return c
