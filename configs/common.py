"""Sections and values that every config shares; a config file changes what its system needs."""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """All sections but `model`, for the embedded corpus."""
    c = ConfigDict()
    c.seed = 0
    c.data = ConfigDict(
        dict(
            # Files, globs ("yelp/*.tsv") and public sets ("tfds:snli:train", "hf:NAME:SPLIT"), in
            # this order: .txt (an example a line), .csv, .tsv, .jsonl, .json (an array) and
            # .parquet, plain or .gz. No train file: the embedded corpus. Without valid or test
            # files, lines are held out of train.
            train=(),
            valid=(),
            test=(),
            # By suffix; or text, csv, tsv, jsonl, json, parquet for files of any name.
            format="auto",
            # What to read: a column of a table by number from 0 (-1: the last) or by name; a JSON
            # key; a TFDS feature. Empty: the text is the whole line, the column or key "text", or
            # the last column of a table without names; no source (of source -> text pairs) and no
            # label is read.
            text="",
            source="",
            label="",
            # What stands between the turns of a source, such as __eou__, where it is a dialogue: a
            # JSON list is joined by it, and a turn is `start a end b end` to the model.
            turns="",
            source_words=0,  # the last so many words of a source are read; 0: all
            # Only lines that hold a value in such a column: 0=1, or label=duplicate, several by
            # comma (of one column: any of them). Empty: every line.
            keep="",
            header="auto",  # whether the first line of a .csv or .tsv names columns: true, false
            quotes=True,  # False: quotes in a .csv or .tsv are letters like any other
            sentences=False,  # lines are documents, to be cut into sentences
            tfds_dir="",  # where TFDS sets are; empty: TFDS's own default
            # Where files are kept tokenised, by content; empty: $JVAE_CACHE or ~/.cache/jvae.
            cache="",
            workers=0,  # processes that make batches; 0: a thread
            # Folder or Hugging Face hub name; empty: one is trained on the train split. A folder of
            # `init` brings its own.
            encoder_tokenizer="",
            decoder_tokenizer="",
            # A tokenizer trained on text files: its kind, bpe or word, and how many entries it has
            # (0, for words alone: every word).
            tokenizer_kind="bpe",
            vocab=8_000,
            on_error="raise",  # or drop: bad lines are counted and left out
            max_words=256,  # longer lines are bad lines
            max_chars=1_000_000,  # the same, for text without blanks; bounds the memory of a line
            # Tokens of a row per side and examples of a row; 0: proposed from the lengths.
            enc_row=0,
            dec_row=0,
            cond_row=0,
            slots=0,
            row_tokens=256,  # about the row length to propose
            batch_rows=16,
            packing="pack",  # or bucket: one sentence per row, like lengths together
            score_end=True,  # False: the model never learns where to end; the bound is of less text
        )
    )
    c.init = ConfigDict(
        dict(
            # Pretrained backbones for step 0: a folder or hub name in Hugging Face's layout. Sizes
            # and tokenizers of the config give way to theirs.
            encoder="",
            decoder="",
            # A trained model for step 0: the folder of a run, or an export by folder or hub name.
            model="",
            part="",  # pattern of the parameters to take from it; empty: all, and all must fit
            optimizer=False,  # whether to take the moments of its optimizer too
            # Number type of the parameters that no phase trains: float32, bfloat16, float16.
            frozen_dtype="float32",
        )
    )
    c.objective = ConfigDict(
        dict(
            z="posterior",  # or zero: the decoder trains as a language model
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
    c.noise = ConfigDict(  # in training alone; what is scored is whole
        dict(
            # The encoder reads each sentence without up to this share of its tokens, on average
            # half of it (T5-VAE's denoising).
            enc_delete=0.0,
            word_dropout=0.0,  # share of the tokens that the decoder reads as unknown
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
            trainable=(),  # rules of jvae.training.freezing; none: everything trains
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
            wandb="",  # project of Weights & Biases that gets the same; empty: none
            steps_per_call=1,  # updates in one compiled call, where steps are shorter than launches
            accumulate=1,  # parts that a batch is measured in, one after another
            patience=0,  # checks without a better validation -ELBO that end training; 0: never
            # Nats per token; Rec of validation above that of training by more raises the alarm.
            overfit_gap=0.5,
        )
    )
    c.phases = ConfigDict()  # see jvae.runs.phases
    c.evals = ConfigDict(
        dict(
            preset="quick",  # or comparison, headline: sizes of jvae/evals/settings.py
            seed=0,
            # On top of the preset; 0: its own.
            samples=0,  # K of NLL_K
            sentences=0,  # at most so many, a seeded draw, for all that decodes
            generate=0,  # sentences drawn from the prior
            # Of models that read a source: texts of each, scored against the source's references;
            # `generate` texts in all. BERTScore of them under this model, such as roberta-large;
            # empty: not measured.
            outputs=10,
            bertscore="",
            vectors="",  # file of word vectors as GloVe comes, for evals.metrics=dialogue
            interpolations=0,  # pairs of test sentences
            interpolation_steps=11,
            chunk=1,  # posterior samples decoded together
            # Published estimators beside ours: optimus, t5vae, della, adavae, sri, lagging, textae.
            compat=(),
            metrics=(),  # names of further metrics, registered in jvae.evals.metric
            prior_samples=0,  # K of a bound by draws from the prior alone; 0: not measured
            # The bound after Langevin steps of that size from the posterior; 0: not measured.
            refine_steps=0,
            refine_size=0.3,
            # Optional: MAUVE from an .npz file with arrays `samples` (of samples/prior.txt) and
            # `references`; perplexity of the samples under a language model, a run or an export.
            features="",
            external="",
            # Training sentences of each label that probes of --mode=probe see, in turn.
            per_label=(10, 50, 100, 500, 1_000),
            # How --mode=probe measures: own, or sri, few labels as the SRI paper does.
            protocol="own",
            # The factor of the embedded corpus that few labels and clusters of --mode=probe are
            # about.
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
            max_length=0,  # new tokens; 0: as long as the longest training sentence
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
    """Stacks of published models, frozen in bfloat16, and low-rank additions that train.

    Args:
      around: patterns of what trains beside the additions. rank: of these; 0 for none.
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
    """Low-rank additions to a stack, off; with them, `optim.trainable` says what else trains."""
    section = dict(
        rank=0,  # of each addition; 0: none
        alpha=16.0,  # additions are scaled by alpha / rank
        dropout=0.0,  # share of the inputs of each addition that a training step leaves out
        # Pattern of what is adapted, of attn/q, attn/k, attn/v, attn/out, mlp/gate, mlp/up,
        # mlp/down and, in T5, cross/q ...; all of it by default.
        targets=".",
    )
    return section | changes


def read(c: ConfigDict, folder: str, suffix: str = "txt") -> None:
    """Reads train, valid and test of a folder, plain or .gz, where quotes are letters."""
    c.data.quotes = False
    for split in ("train", "valid", "test"):
        c.data[split] = (f"{folder}/{split}.{suffix}*",)


def latent(width: int = 32) -> dict:
    """The latent of a family with an encoder, prior and posterior by name of a registered member.
    Options of a member stand beside its name: --config.model.prior.kind=gmm with
    --config.model.prior.components=50.
    """
    return dict(
        latent=width,
        vectors=1,  # of a text, each of that width; above 1 with pool="queries"
        prior=dict(kind="standard_normal"),  # or gmm, flow, vamp; uniform_sphere
        posterior=dict(kind="gaussian"),  # or bn; vmf
    )


def lstm(**changes) -> dict:
    """One LSTM; `vocab` is set from the tokenizer when it is 0."""
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
    """A GPT-2 or BERT stack; `vocab` is set from the tokenizer when it is 0."""
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
        attention="xla",  # or cudnn (GPU), splash (TPU): fused kernels, without dropout of weights
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
    """A Llama stack, sizes of SmolLM2-135M; `vocab` is set from the tokenizer when it is 0."""
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
        original=8192,
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
    """Both stacks of a T5, sizes of t5-small; `vocab` is set from the tokenizer when it is 0."""
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


def bart(**changes) -> dict:
    """A BART stack, sizes of bart-base; `vocab` is set from the tokenizer when it is 0."""
    sizes = dict(backbone="bart", layers=6, positions=1024, scaled=False)
    return transformer(**sizes) | changes
