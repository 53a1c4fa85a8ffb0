"""T5-VAE: a Gaussian latent from the pooled states of a T5 encoder, which the decoder reads as one
additional key and value of self-attention in every layer.

Source: Park & Lee 2021, arXiv 2108.02446, and the released code. Presets:

    tiny        (default) from scratch on the embedded corpus, 2 + 2 layers of width 128
    base        the paper: t5-small, latent 32, maximum pooling, input noise 0.15; phase 1 trains
                only the encoder, without KL; phase 2 everything, with free bits 0.5 and a slow ramp

    python -m jvae.main --config=configs/t5_vae.py
    python -m jvae.main --config=configs/t5_vae.py:base \\
      --config.init.decoder=t5-small --config.data.train=...

`init.decoder` fills both stacks; `model.decoder` has the sizes of both. With t5-small, 131,072
parameters are new. Values of the paper's own tables: not measured here.

Mistakes of the released code, numbered B1 to B7, and whether the presets have them:

    B1   memory slots distributed over the sentences of a batch: absent
         --config.model.memory_layout=released
    B2   ids and mask swapped by the input noise: absent, no option
    B3   padding pooled, so that results depend on the row length: absent
         --config.model.pool_padding=True --config.data.packing=bucket --config.data.enc_row=256
    B4   wrong sign of the KL in the reported bound: absent, no option
    B5   reconstruction averaged over 256 positions, so that beta is effectively 256 times larger:
         `base` has it, as its free bits and ramp are of that scale; --config.objective.rec_length=0
    B6   a ramp of 100 epochs in a run of ten, so that the weight ends at 0.1: `base` has it
         --config.objective.beta.stop=1.0
    B7   phase 1 freezes a memory projection that was never trained, and, since they are shared, the
         embeddings of both stacks: `base` has it; `tiny` trains that projection in phase 1

Further deviations of `base`: bfloat16, packed rows of about 256 tokens instead of one sentence per
row, sentences never truncated, phase 1 passes on its last parameters instead of its best.

`tiny` begins with a stage 0, in which everything trains as a denoising autoencoder. Its other
deviations from the paper, all for training from scratch at this size: `log_var_shift` -3, so that
the latent starts nearly deterministic; a wide initialisation of the relative bias (`bias_std`), the
only source of position information; KL per sentence and not per 256 tokens, ending at 0.8; learning
rate 3e-3 with warm-up and cosine decay in each stage, no dropout. Their effects: not measured.
"""

from ml_collections import ConfigDict

from jvae.config import preset

from . import common

PRESETS = ("tiny", "base")
ENCODER = (("^encoder/", None, None, 0), ("^posterior/", None, None, 0))
MEMORY = ("^decoder/memory/", None, None, 0)
AUTOENCODER = dict(free_bits="none", beta=dict(kind="constant", stop=0.0))


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a preset."""

    name, _ = preset(arg, PRESETS)
    c = common.base()
    c.name = f"t5_vae-{name}"
    c.model = ConfigDict(
        dict(
            family="t5_vae",
            **common.latent(32),
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
    c.model.decoder.bias_std = 2.0
    c.model.log_var_shift = -3.0
    c.data.row_tokens = 64
    c.data.batch_rows = 14
    c.objective.update(dict(free_bits="dim_max", free_bits_nats=0.5))
    c.objective.beta.update(ratio_zero=0.0, ratio_increase=0.6, stop=0.8)
    # Freezing a decoder that was never trained would prove nothing: it first learns to denoise.
    c.phases = ConfigDict(
        dict(
            stage0=dict(share=0.35, objective=AUTOENCODER, noise=dict(enc_delete=0.15)),
            stage1=dict(share=0.1, objective=AUTOENCODER, optim=dict(trainable=(*ENCODER, MEMORY))),
            stage2=dict(share=0.55),
        )
    )
    c.optim.update(dict(lr=3e-3, schedule="cosine", warmup_steps=100))
    c.train.steps = 2_000
    c.train.check_every = 500


def _published(c: ConfigDict) -> None:
    c.data.encoder_tokenizer = "t5-small"
    c.data.decoder_tokenizer = "t5-small"
    c.model.decoder.dtype = "bfloat16"
    # 15 epochs of 100,000 sentences, 128 per step, then ten more.
    c.train.steps = 19_550
    c.noise.enc_delete = 0.15
    c.objective.update(dict(free_bits="dim_max", free_bits_nats=0.5, rec_length=256))
    c.objective.beta.update(dict(kind="linear", stop=0.1))
    c.optim.update(dict(lr=1e-4, schedule="constant", weight_decay=0.01, no_decay=(), clip=None))
    c.phases = ConfigDict(
        dict(
            stage1=dict(share=0.6, objective=AUTOENCODER, optim=dict(trainable=ENCODER)),
            stage2=dict(share=0.4),
        )
    )
