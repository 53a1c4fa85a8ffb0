"""Sections and values shared by all configs; each config file changes what its system needs."""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """All sections except `model`, for the embedded corpus."""
    c = ConfigDict()
    c.seed = 0
    c.data = ConfigDict(
        dict(
            # Files, globs ("yelp/*.tsv") and public sets ("tfds:snli:train", "hf:NAME:SPLIT"), in
            # this order: .txt (one example per line), .csv, .tsv, .jsonl, .json (an array) and
            # .parquet, plain or .gz. Without train files: the embedded corpus. Without valid or
            # test files, lines are held out of train.
            train=(),
            valid=(),
            test=(),
            # auto: by suffix; or text, csv, tsv, jsonl, json, parquet for any file name.
            format="auto",
            # The field to read: a table column by number from 0 (-1: the last) or by name; a JSON
            # key; a TFDS feature. Empty: the text is the whole line, the column or key "text", or
            # the last column of a table without names; no source (of source -> text pairs) and no
            # label is read.
            text="",
            source="",
            label="",
            # Separator between the turns of a dialogue source, such as __eou__: a JSON list is
            # joined by it, and the model reads a turn as `start a end b end`.
            turns="",
            source_words=0,  # read only this many words from the end of a source; 0: all
            # Keep only lines with a given value in a column: 0=1, or label=duplicate; separate
            # several by commas (for the same column: any of them). Empty: keep every line.
            keep="",
            header="auto",  # whether the first line of a .csv or .tsv names columns: true, false
            quotes=True,  # False: quotes in a .csv or .tsv are ordinary characters
            sentences=False,  # lines are documents, to be split into sentences
            tfds_dir="",  # location of TFDS data sets; empty: TFDS's own default
            # Cache of tokenised files, by content; empty: $JVAE_CACHE or ~/.cache/jvae.
            cache="",
            workers=0,  # processes that prepare batches; 0: a thread
            # Folder or Hugging Face hub name; empty: one is trained on the train split. A folder in
            # `init` has its own.
            encoder_tokenizer="",
            decoder_tokenizer="",
            # A tokenizer trained on text files: its kind, bpe or word, and its number of entries
            # (0, only for word: every word).
            tokenizer_kind="bpe",
            vocab=8_000,
            on_error="raise",  # or drop: bad lines are counted and skipped
            max_words=256,  # longer lines are bad lines
            max_chars=1_000_000,  # likewise, for text without spaces; bounds the memory per line
            # Tokens per row for each side, and examples per row; 0: derived from the lengths.
            enc_row=0,
            dec_row=0,
            cond_row=0,
            slots=0,
            row_tokens=256,  # approximate length of derived rows
            batch_rows=16,
            packing="pack",  # or bucket: one sentence per row, batched by similar length
            score_end=True,  # False: training does not score the end, so it is never learned
        )
    )
    c.init = ConfigDict(
        dict(
            # Pretrained backbones for step 0: a folder or hub name in Hugging Face's layout. Their
            # sizes and tokenizers replace those of the config.
            encoder="",
            decoder="",
            # A trained model for step 0: the folder of a run, or an export by folder or hub name.
            model="",
            part="",  # pattern of the parameters to load from it; empty: all, and all must fit
            optimizer=False,  # whether to load the moments of its optimizer too
            # Number type of the parameters that no phase trains: float32, bfloat16, float16.
            frozen_dtype="float32",
        )
    )
    c.objective = ConfigDict(
        dict(
            z="posterior",  # or zero: the decoder trains as a language model
            rec_reduce="sum",
            free_bits="none",
            free_bits_nats=0.0,
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
    c.noise = ConfigDict(  # in training only; scored tokens are never corrupted
        dict(
            # Delete up to this share of the tokens that the encoder reads in each sentence, half of
            # it on average (T5-VAE's denoising).
            enc_delete=0.0,
            word_dropout=0.0,  # share of decoder input tokens replaced by the unknown token
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
            eps_first=False,  # True: eps before the bias correction, as in transformers' old AdamW
            weight_decay=0.0,
            no_decay=(r".*bias", r".*norm/scale"),
            clip=1.0,
            first_update=0,  # 1: the first update does not have rate 0
            trainable=(),  # rules of jvae.training.freezing; empty: everything trains
        )
    )
    c.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    c.train = ConfigDict(
        dict(
            steps=10_000,
            log_every=100,
            check_every=1_000,  # steps between checks: validate, keep the best, save
            keep=2,  # newest checkpoints to keep, in addition to the best
            tensorboard=True,
            wandb="",  # Weights & Biases project to log to; empty: none
            steps_per_call=1,  # updates per compiled call; for steps shorter than a launch
            accumulate=1,  # parts into which a batch is split, processed one after another
            # Generator of dropout masks. rbg needs fewer operations on accelerators; its masks
            # depend on the kind of device and on the mesh.
            dropout_rng="threefry2x32",
            patience=0,  # checks without a better validation -ELBO before stopping; 0: never
            # Overfitting alarm if validation Rec exceeds training Rec by more, nats per token.
            overfit_gap=0.5,
        )
    )
    c.phases = ConfigDict()  # see jvae.runs.phases
    c.evals = ConfigDict(
        dict(
            preset="quick",  # or comparison, full: sizes of jvae/evals/settings.py
            seed=0,
            # Values that override the preset; 0: keep the preset's value.
            samples=0,  # K of NLL_K
            sentences=0,  # limit, drawn with the seed, for metrics that decode
            generate=0,  # sentences drawn from the prior
            posteriors=0,  # limit for KL, MI and active units
            # Models with a source side: texts per source, scored against the source's references;
            # `generate` texts in total. bertscore: model for BERTScore, such as roberta-large;
            # empty: not measured.
            outputs=10,
            bertscore="",
            vectors="",  # file of word vectors in GloVe format, for evals.metrics=dialogue
            interpolations=0,  # pairs of test sentences
            interpolation_steps=11,
            chunk=1,  # posterior samples decoded together
            # Published estimators to report next to ours: optimus, t5vae, della, adavae, sri,
            # lagging, textae.
            compat=(),
            metrics=(),  # names of additional metrics, registered in jvae.evals.metric
            prior_samples=0,  # K of the bound from prior draws only; 0: not measured
            # The bound after Langevin steps of this size from the posterior; 0: not measured.
            refine_steps=0,
            refine_size=0.3,
            # Optional: MAUVE from an .npz file with arrays `samples` (of samples/prior.txt) and
            # `references`; perplexity of the samples under a language model (a run, an export, or a
            # published decoder by folder or hub name); cosine of sentences and reconstructions
            # under a published sentence encoder.
            features="",
            external="",
            similarity="",
            # --mode=probe: numbers of training sentences per label, probed in turn.
            per_label=(10, 50, 100, 500, 1_000),
            # Protocol of --mode=probe: own, or sri (few labels, as in the SRI paper).
            protocol="own",
            chains=200,  # with protocol sri: chains per sentence, whose mean is a feature
            # --mode=probe: factor of the embedded corpus used for few labels and clusters.
            factor="action",
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
            max_length=0,  # new tokens; 0: length of the longest training sentence
            beam_width=4,
            length_penalty=1.0,
            batch=256,  # latents decoded together
        )
    )
    return c


# Published models on the Hugging Face hub.
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M"
GPT2 = "gpt2"


def pretrained(c: ConfigDict, around: tuple[str, ...], rank: int = 16, **start: str) -> None:
    """Starts from published models, frozen in bfloat16, with low-rank additions that train.

    Args:
      around: patterns of further parameters that train. rank: of the additions; 0 for none.
      start: folder or hub name by key of `init`; a flag of that key replaces it.
    """
    c.init.update(frozen_dtype="bfloat16", **start)
    for role in start:
        c.model[role].update(dtype="bfloat16", dropout=0.0)
        c.model[role].lora.rank = rank
        c.data[f"{role}_tokenizer"] = start[role]
    if "encoder" not in start:
        c.data.encoder_tokenizer = c.data.decoder_tokenizer
    patterns = (*(["/lora/"] if rank else []), *around)
    c.optim.trainable = tuple((pattern, None, None, 0) for pattern in patterns)
    c.optim.update(lr=5e-4, schedule="cosine", warmup_steps=500)
    c.data.update(max_words=100, batch_rows=32)
    c.train.steps = 20_000


def lora(**changes) -> dict:
    """Low-rank additions to a stack, off by default. If on, `optim.trainable` must list what else
    trains.
    """
    section = dict(
        rank=0,  # rank of each addition; 0: off
        alpha=16.0,  # additions are scaled by alpha / rank
        dropout=0.0,  # dropout rate on the inputs of each addition
        # Pattern of the kernels to adapt, among attn/q, attn/k, attn/v, attn/out, mlp/gate, mlp/up,
        # mlp/down and, in T5, cross/q ...; by default all of them.
        targets=".",
    )
    return section | changes


def read(c: ConfigDict, folder: str, suffix: str = "txt") -> None:
    """Reads train, valid and test from a folder, plain or .gz; quotes are ordinary characters."""
    c.data.quotes = False
    for split in ("train", "valid", "test"):
        c.data[split] = (f"{folder}/{split}.{suffix}*",)


def latent(width: int = 32) -> dict:
    """The latent of a family with an encoder: prior and posterior by the name of a registered
    member. Options of a member follow its name: --config.model.prior.kind=gmm with
    --config.model.prior.components=50.
    """
    return dict(
        latent=width,
        vectors=1,  # per text, each of that width; above 1 with pool="queries"
        prior=dict(kind="standard_normal"),  # or gmm, flow, vamp; uniform_sphere
        posterior=dict(kind="gaussian"),  # or bn; vmf
    )


def lstm(**changes) -> dict:
    """One LSTM; `vocab` is set from the tokenizer if it is 0."""
    stack = dict(
        backbone="lstm",
        width=256,
        hidden=256,
        vocab=0,
        dropout=0.5,
        init_scale=0.1,
        dtype="float32",
        vocab_multiple=1,
        xent_chunk=16384,
        lora=lora(),
    )
    return stack | changes


def transformer(**changes) -> dict:
    """A GPT-2 or BERT stack; `vocab` is set from the tokenizer if it is 0."""
    stack = dict(
        backbone="gpt2",
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
        # Or triton (GPU), cudnn (GPU), splash (TPU): fused kernels; of these only triton supports
        # dropout of attention weights.
        attention="xla",
        remat="none",
        unroll=1,
        vocab_multiple=128,
        xent_chunk=8192,
        lora=lora(),
    )
    return stack | changes


def minilm(**changes) -> dict:
    """The BERT stack of all-MiniLM-L6-v2."""
    small = dict(layers=6, width=384, mlp=1536, norm_eps=1e-12)
    return transformer(backbone="bert", **small) | changes


def llama(**changes) -> dict:
    """A Llama stack, sizes of SmolLM2-135M; `vocab` is set from the tokenizer if it is 0."""
    stack = dict(
        backbone="llama",
        layers=30,
        width=576,
        heads=9,
        kv_heads=3,
        head=64,
        mlp=1536,
        vocab=0,
        positions=8192,
        theta=100_000.0,
        scaling="none",
        factor=1.0,
        low_factor=1.0,
        high_factor=4.0,
        original_positions=8192,
        tied=True,
        dropout=0.0,
        norm_eps=1e-5,
        init_std=0.02,
        dtype="float32",
        attention="xla",
        remat="none",
        unroll=1,
        vocab_multiple=128,
        xent_chunk=8192,
        lora=lora(),
    )
    return stack | changes


def t5(**changes) -> dict:
    """Both stacks of a T5, sizes of t5-small; `vocab` is set from the tokenizer if it is 0."""
    stack = dict(
        backbone="t5",
        layers=6,
        width=512,
        heads=8,
        head=64,
        mlp=2048,
        vocab=0,
        buckets=32,
        max_distance=128,
        gated=False,
        tied=True,
        bias_std=0.0,
        dropout=0.1,
        norm_eps=1e-6,
        dtype="float32",
        remat="none",
        unroll=1,
        vocab_multiple=128,
        xent_chunk=8192,
        lora=lora(),
    )
    return stack | changes


def t5_base(**changes) -> dict:
    """The same with the sizes of t5-base."""
    return t5(layers=12, width=768, heads=12, mlp=3072) | changes


def bart(**changes) -> dict:
    """A BART stack with the sizes of bart-base; `vocab` is set from the tokenizer if it is 0."""
    sizes = dict(backbone="bart", layers=6, positions=1024, scaled=False)
    return transformer(**sizes) | changes
