"""SRI, short-run inference. Source: Pang et al. 2021, arXiv 2106.02513. The values of `ptb` come
from the released `train_sri.py`, those of `yelp_short` from `semi_sup_classification.py`.

    tiny          python -m jvae.main --config=sri:tiny --workdir=runs/sri-tiny
                  the embedded corpus; a smaller generator and 10 steps, to fit 2 cores
    ptb           ... --config=sri:ptb --config.data.train=ptb/train.txt
                  --config.data.valid=ptb/valid.txt --config.data.test=ptb/test.txt
                  K = 20, the published step sizes; 60 epochs of 1,315 updates
    yelp_short    ... --config=sri:yelp_short --config.data.train=yelp_short/train.txt, valid and
                  test likewise; K = 40 steps of 0.4 without noise; 12 epochs of 3,125 updates
    transformer   the inference of `ptb` with a Transformer decoder that reads z as in Optimus;
                  sizes are ours, as the publication has no such model
    smollm2       the same with a frozen SmolLM2-135M; its low-rank additions and the layers that
                  inject z train

Deviations of `ptb` and `yelp_short`: one dropout mask per chain (released:
chain.fresh_dropout=True); the decoder is trained at the end points only (released:
annealing.param_grad=trajectory with objective.aux_weight.trajectory=1); sentences of similar but
not equal length share a batch. Measured values of `tiny`: the table in RESULTS.md, with hardware
and time; of the others: not measured.
"""

from ml_collections import ConfigDict

from jvae.config import preset

from . import common

PRESETS = ("tiny", "ptb", "yelp_short", "transformer", "smollm2")


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a preset."""

    name, _ = preset(arg, PRESETS)
    c = common.base()
    c.name = f"sri-{name}"
    c.model = ConfigDict(
        dict(
            family="sri",
            latent=32,
            prior=dict(kind="standard_normal"),
            decoder=common.lstm(),
            chain=dict(
                steps=20,
                schedule="fixed_official",
                step_size=0.4,
                temperature=0.2,
                fresh_dropout=False,
                chains=32,
                chunk=8,
            ),
            annealing=dict(
                epoch_steps=0,
                temperature_start=0.05,
                temperature_hold=15,
                temperature_rise=0.05,
                prior_start=1.0,
                prior_epochs=0,
                param_grad="final",
            ),
        )
    )
    c.objective.aux_weight = ConfigDict(dict(trajectory=1.0))
    c.objective.beta.kind = "constant"  # the chain has no KL to weigh
    c.data.packing = "bucket"
    c.data.tokenizer_kind = "word"
    c.data.vocab = 0
    c.data.batch_rows = 32
    c.optim.update(lr=1e-3, schedule="constant", clip=5.0)
    presets = dict(tiny=_tiny, ptb=_ptb, yelp_short=_yelp_short)
    (presets | dict(transformer=_transformer, smollm2=_smollm2))[name](c)
    return c


def _tiny(c: ConfigDict) -> None:
    c.model.decoder.update(width=64, hidden=128, dropout=0.2)
    c.model.chain.update(steps=10)
    c.data.batch_rows = 64
    c.optim.update(lr=3e-3, schedule="cosine", warmup_steps=50)
    c.train.update(steps=1_200, check_every=300)


def _ptb(c: ConfigDict) -> None:
    c.model.annealing.epoch_steps = 1_315
    c.train.update(steps=60 * 1_315, check_every=1_315)


def _yelp_short(c: ConfigDict) -> None:
    c.model.decoder.update(width=128, hidden=512)
    c.model.chain.update(steps=40, schedule="constant", step_size=0.4, temperature=0.0)
    c.model.annealing.update(epoch_steps=3_125, prior_start=0.1, prior_epochs=6)
    c.train.update(steps=12 * 3_125, check_every=3_125)


def _transformer(c: ConfigDict) -> None:
    c.model.family = "sri_transformer"
    c.model.use_memory = c.model.use_embedding = True
    c.model.tokens = 0
    c.model.vectors = 1
    small = dict(layers=4, width=256, heads=4, mlp=1024, positions=256, dropout=0.1)
    c.model.decoder = ConfigDict(common.transformer(**small))
    c.model.annealing.epoch_steps = 1_315
    c.optim.update(schedule="cosine", warmup_steps=1_000)
    c.train.update(steps=60 * 1_315, check_every=1_315)


def _smollm2(c: ConfigDict) -> None:
    c.model.family = "sri_transformer"
    c.model.use_memory = c.model.use_embedding = True
    c.model.tokens = 0
    c.model.decoder = ConfigDict(common.llama())
    common.pretrained(c, ("^decoder/(memory|offset|tokens|scores)/",), decoder=common.SMOLLM2)
