"""Sections and values that every config shares; a config file changes what its system needs."""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """All sections but `model`, for the embedded corpus."""
    c = ConfigDict()
    c.seed = 0
    c.data = ConfigDict(
        dict(
            # Text files, one sentence per line, plain or .gz. No train file: the embedded corpus.
            # Without valid or test files, sentences are held out of train.
            train=(),
            valid=(),
            test=(),
            # Folder or Hugging Face hub name; empty: one is trained on the train split.
            encoder_tokenizer="",
            decoder_tokenizer="",
            # A tokenizer trained on text files: its kind, bpe or word, and how many entries it has
            # (0, for words alone: every word).
            tokenizer_kind="bpe",
            vocab=8_000,
            on_error="raise",  # or drop: bad lines are counted and left out
            max_words=256,  # longer lines are bad lines
            # Tokens of a row per side and examples of a row; 0: proposed from the lengths.
            enc_row=0,
            dec_row=0,
            slots=0,
            row_tokens=256,  # about the row length to propose
            batch_rows=16,
            packing="pack",  # or bucket: one sentence per row, like lengths together
            score_end=True,  # False: the model never learns where to end; the bound is of less text
        )
    )
    # Pretrained backbones for step 0: a folder or hub name in Hugging Face's layout; empty: none.
    c.init = ConfigDict(dict(encoder="", decoder=""))
    c.objective = ConfigDict(
        dict(
            rec="sum",
            kl_floor="none",
            floor=0.0,
            length_weighted=False,
            beta=dict(
                kind="cyclic_zero_linear",
                start=0.0,
                stop=1.0,
                n_cycle=1,
                ratio_zero=0.5,
                ratio_increase=0.25,
            ),
        )
    )
    c.optim = ConfigDict(
        dict(
            lr=5e-5,
            schedule="linear",
            warmup_steps=0,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            eps_first=False,  # True: eps before the bias correction, as transformers' old AdamW
            weight_decay=0.0,
            no_decay=(r".*bias", r".*norm/scale"),
            clip=1.0,
            first_update=0,  # 1: the first update is not one of rate 0
            trainable=(),  # rules of jvae.trainable; none: everything trains
        )
    )
    c.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    c.train = ConfigDict(
        dict(
            steps=10_000,
            log_every=100,
            check_every=1_000,  # validate, keep the best, save
            keep=2,  # newest checkpoints kept beside the best
            tensorboard=True,
            collapse_kl=0.1,  # nats; a validation KL below it raises the alarm
        )
    )
    c.evals = ConfigDict(
        dict(
            preset="quick",  # or headline: sizes of jvae/evals/settings.py
            seed=0,
            # On top of the preset; 0: its own.
            samples=0,  # K of NLL_K
            sentences=0,  # at most so many, a seeded draw, for all that decodes
            generate=0,  # sentences drawn from the prior
            interpolations=0,  # pairs of test sentences
            interpolation_steps=11,
            chunk=1,  # posterior samples decoded together
            # Published estimators beside ours: optimus, t5vae, della, adavae, lagging, textae.
            compat=(),
            # For --mode=probe: the factor of the embedded corpus that few labels and clusters are
            # about; for other text, files with one label per line of the training and test file.
            factor="action",
            train_labels="",
            test_labels="",
        )
    )
    c.decode = ConfigDict(
        dict(
            method="sample",
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            min_length=0,
            max_length=0,  # new tokens; 0: as long as the longest training sentence
            beam_width=4,
            length_penalty=1.0,
            batch=256,  # latents decoded together
        )
    )
    return c


def lstm(**changes) -> dict:
    """One LSTM; `vocab` is set from the tokenizer when it is 0."""
    stack = dict(
        width=256,
        hidden=256,
        vocab=0,
        dropout=0.5,
        init_scale=0.1,
        dtype="float32",
        vocab_multiple=1,
        xent_chunk=16384,
    )
    return stack | changes


def transformer(**changes) -> dict:
    """One stack; `vocab` is set from the tokenizer when it is 0."""
    stack = dict(
        layers=12,
        width=768,
        heads=12,
        mlp=3072,
        vocab=0,
        positions=512,
        dropout=0.1,
        norm_eps=1e-5,
        init_std=0.02,
        dtype="float32",
        remat="none",
        unroll=1,
        vocab_multiple=128,
        xent_chunk=8192,
    )
    return stack | changes
