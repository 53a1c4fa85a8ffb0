"""Every key of the sections shared by all configs: type, range or choices, and a line of help.

`model` is declared by the config dataclass of its family, see `jvae.fields`. Sizes have upper
limits that no real machine reaches, so that a typo is an error instead of a huge allocation.
"""

from typing import Any

from jvae.data.formats import HEADERS, READERS
from jvae.decode.sampling import LONGEST, METHODS, WIDEST
from jvae.evals import dialogue, extra_bounds, outside  # noqa: F401 they register metrics
from jvae.evals.compat import MODES
from jvae.evals.metric import METRICS
from jvae.evals.settings import PRESETS
from jvae.fields import MOST, Field
from jvae.nn.config import DTYPES
from jvae.runs.schedules import KINDS
from jvae.training.objectives import FREE_BITS, LATENTS, RECONSTRUCTIONS, REDUCTIONS
from jvae.training.optim import SCHEDULES

TEXTS: dict[str, Any] = dict(kind=str, many=True)
MOST_ROWS = 2**20
MOST_TOKENS = 2**24  # most tokens of a row, and of a text

DATA = {
    "train": Field(
        **TEXTS,
        help="Files, globs (yelp/*.tsv) and public sets (tfds:snli:train, hf:NAME:SPLIT); "
        "plain or .gz. Empty: the embedded corpus.",
    ),
    "valid": Field(**TEXTS, help="The same for validation; empty: held out from train."),
    "test": Field(**TEXTS, help="The same for testing; empty: held out from train."),
    "format": Field(str, "Format of the files; auto: by suffix.", choices=READERS.names("auto")),
    "header": Field(
        str, "Whether the first line of a .csv or .tsv names its columns.", choices=HEADERS
    ),
    "quotes": Field(bool, "Whether fields of a .csv or .tsv may be quoted."),
    "text": Field(
        str,
        "The text: a column by number (from 0; -1: last) or name, JSON key or feature. Empty: the "
        "whole line, the last column, or text.",
    ),
    "source": Field(str, "The same for the source of source -> text pairs; empty: none."),
    "label": Field(str, "The same for the label, for probes and priors by label; empty: none."),
    "turns": Field(str, "Separator between the turns of a source; empty: none."),
    "source_words": Field(int, "Words to keep from the end of a source; 0: all.", low=0, high=MOST),
    "keep": Field(
        str,
        "Read only lines with COLUMN=VALUE, such as 0=1; several separated by commas; empty: all "
        "lines.",
    ),
    "sentences": Field(bool, "Lines are documents; split them into sentences."),
    "tfds_dir": Field(str, "Folder of TFDS data sets; empty: the default of TFDS."),
    "cache": Field(str, "Folder of tokenized files; empty: $JVAE_CACHE or ~/.cache/jvae."),
    "workers": Field(int, "Processes that build batches; 0: one thread.", low=0, high=1_024),
    "encoder_tokenizer": Field(str, "Folder or hub name; empty: trained on the train split."),
    "decoder_tokenizer": Field(str, "Folder or hub name; empty: trained on the train split."),
    "tokenizer_kind": Field(
        str, "Kind of a tokenizer that is trained on the files.", choices=("bpe", "word")
    ),
    "vocab": Field(
        int,
        "Entries of a tokenizer that is trained on the files; 0 (word only): every word.",
        low=0,
        high=2**21,
    ),
    "on_error": Field(
        str,
        "Whether an unusable line is an error (raise) or is left out (drop).",
        choices=("raise", "drop"),
    ),
    "max_words": Field(
        int,
        "Maximum words of a line; longer lines are unusable; none: no limit.",
        low=1,
        high=MOST,
        optional=True,
    ),
    "max_chars": Field(
        int, "Maximum characters of a line; longer lines are unusable.", low=1, high=MOST
    ),
    "enc_row": Field(
        int,
        "Tokens per row of the encoder; 0: chosen for the corpus.",
        low=0,
        high=MOST_TOKENS,
    ),
    "dec_row": Field(int, "The same for the decoder.", low=0, high=MOST_TOKENS),
    "cond_row": Field(int, "The same for source texts.", low=0, high=MOST_TOKENS),
    "slots": Field(int, "Maximum texts per row; 0: chosen for the corpus.", low=0, high=MOST_ROWS),
    "row_tokens": Field(
        int, "Approximate row length to choose, in tokens.", low=1, high=MOST_TOKENS
    ),
    "batch_rows": Field(int, "Rows per batch.", low=1, high=MOST_ROWS),
    "packing": Field(
        str,
        "pack: several texts per row; bucket: one text per row, batches of similar length.",
        choices=("pack", "bucket"),
    ),
    "score_end": Field(
        bool, "Whether training scores the end of a text, without which it is never learned."
    ),
}
INIT = {
    "encoder": Field(
        str,
        "Folder or hub name of a pretrained backbone to start from, with its sizes and tokenizer; "
        "empty: none.",
    ),
    "decoder": Field(str, "The same for the decoder."),
    "model": Field(
        str, "Trained model to start from: folder of a run, or folder or name of an export."
    ),
    "part": Field(
        str, "Parameters to take from init.model; empty: all, and all must fit.", pattern=True
    ),
    "optimizer": Field(bool, "Also take the optimizer's moments from init.model."),
    "frozen_dtype": Field(str, "Number type of parameters that no phase trains.", choices=DTYPES),
}
BETA = {
    "kind": Field(str, "Schedule of the KL weight.", choices=tuple(KINDS)),
    "start": Field(float, "Weight at the start of a cycle.", low=0.0, high=1e6),
    "stop": Field(float, "Weight at the end of a cycle, and in validation.", low=0.0, high=1e6),
    "n_cycle": Field(int, "Number of cycles in the run or phase.", low=1, high=100_000),
    "ratio_zero": Field(float, "Share of a cycle at the weight `start`.", low=0.0, high=1.0),
    "ratio_increase": Field(
        float, "Share of a cycle in which the weight rises.", above=0.0, high=1e3
    ),
    "n_iter": Field(
        int,
        "Steps of all cycles together; none: the whole phase.",
        low=1,
        high=MOST,
        optional=True,
    ),
}
OBJECTIVE = {
    "z": Field(
        str,
        "posterior: z of the posterior; zero: the decoder trains as a language model.",
        choices=LATENTS,
    ),
    "rec_reduce": Field(
        str,
        "sum: over the tokens of a text, as in the bound; token_mean: mean over the batch; "
        "token_mean_end: the same, counting ends.",
        choices=RECONSTRUCTIONS,
    ),
    "rec_length": Field(
        int,
        "Divide the reconstruction loss by this number of tokens; 0: do not.",
        low=0,
        high=MOST_TOKENS,
        absent=0,
    ),
    "length_weighted": Field(bool, "Divide the reconstruction loss by the tokens of the text."),
    "free_bits": Field(
        str, "Free bits, a minimum of the KL: see docs/training.md.", choices=FREE_BITS
    ),
    "free_bits_nats": Field(float, "Threshold of free bits, in nats.", low=0.0, high=1e6),
    "kl_reduce": Field(
        str,
        "How the KL of several groups is combined; sum: the bound.",
        choices=tuple(REDUCTIONS),
        absent="sum",
    ),
    "aux_weight.*": Field(float, "Weight of an auxiliary term.", low=0.0, high=1e6),
    **{f"beta.{name}": field for name, field in BETA.items()},
}
NOISE = {
    "enc_delete": Field(
        float,
        "Maximum share of the encoder's input tokens to delete; on average, half of it is deleted.",
        low=0.0,
        high=1.0,
    ),
    "word_dropout": Field(
        float,
        "Share of the decoder's input tokens to replace by the unknown token.",
        low=0.0,
        high=1.0,
    ),
}
OPTIM = {
    "lr": Field(float, "Peak learning rate of AdamW.", above=0.0, high=10.0),
    "schedule": Field(str, "Learning-rate schedule after the warm-up.", choices=SCHEDULES),
    "warmup_steps": Field(
        int, "Steps of linear warm-up from 0; at most those of the phase.", low=0, high=MOST
    ),
    "b1": Field(float, "Decay rate of the first moment.", low=0.0, below=1.0),
    "b2": Field(float, "Decay rate of the second moment.", low=0.0, below=1.0),
    "eps": Field(float, "Added to the root of the second moment.", above=0.0, high=1.0),
    "eps_first": Field(
        bool, "Add eps before the bias correction, as in the old AdamW of transformers."
    ),
    "weight_decay": Field(
        float, "Decoupled weight decay, scaled by the learning rate.", low=0.0, high=100.0
    ),
    "no_decay": Field(
        str, "Patterns of parameter paths without weight decay.", many=True, pattern=True
    ),
    "clip": Field(
        float,
        "Maximum global norm of the gradient; none: no clipping.",
        above=0.0,
        high=1e9,
        optional=True,
    ),
    "first_update": Field(
        int,
        "1: start the warm-up after 0, so that the first update has an effect.",
        low=0,
        high=1,
        absent=0,
    ),
    "trainable": Field(
        None,
        "Rules that select the parameters to train, see jvae.training.freezing; empty: all.",
        many=True,
    ),
}
MESH = {
    axis: Field(
        int, f"Number of devices {what}; -1: all remaining devices.", low=1, high=2**20, also=(-1,)
    )
    for axis, what in (
        ("data", "that share the rows"),
        ("fsdp", "that share rows and parameters"),
        ("tensor", "that share heads, feed-forwards and vocabulary"),
    )
}
TRAIN = {
    "steps": Field(int, "Number of updates.", low=1, high=MOST),
    "log_every": Field(int, "Steps between lines of metrics.", low=1, high=MOST),
    "check_every": Field(
        int,
        "Steps between checks, which validate, save and keep the best checkpoint.",
        low=1,
        high=MOST,
    ),
    "keep": Field(
        int, "Number of newest checkpoints to keep, in addition to the best.", low=1, high=10_000
    ),
    "tensorboard": Field(bool, "Also write TensorBoard event files."),
    "wandb": Field(str, "Weights & Biases project to log to; empty: none."),
    "steps_per_call": Field(
        int,
        "Updates per compiled call; above 1 for steps that are shorter than their launch.",
        low=1,
        high=10_000,
    ),
    "accumulate": Field(
        int,
        "Number of parts in which a batch is computed, one after another.",
        low=1,
        high=MOST_ROWS,
    ),
    "dropout_rng": Field(
        str,
        "Generator of dropout masks; rbg draws them with fewer operations on accelerators.",
        choices=("threefry2x32", "rbg"),
        absent="threefry2x32",
    ),
    "patience": Field(
        int,
        "End training after this number of checks without a better validation loss; 0: never.",
        low=0,
        high=MOST,
    ),
    "overfit_gap": Field(
        float,
        "Warn if validation Rec exceeds training Rec by this, in nats per token.",
        above=0.0,
        high=1e6,
    ),
}
PHASE = {
    "share": Field(float, "Share of train.steps; all shares add up to 1.", above=0.0, high=1.0),
    "patience": Field(int, "The same as train.patience, for this phase.", low=0, high=MOST),
    **{
        f"{section}.{name}": field
        for section, fields in (("objective", OBJECTIVE), ("optim", OPTIM), ("noise", NOISE))
        for name, field in fields.items()
    },
}
SIZE: dict[str, Any] = dict(kind=int, low=0, high=10_000_000)
EVALS = {
    "preset": Field(
        str, "Sizes of the evaluation, see jvae/evals/settings.py.", choices=tuple(PRESETS)
    ),
    "seed": Field(int, "Seed of draws and choices.", low=0, high=MOST),
    "samples": Field(**SIZE, help="K of NLL_K; 0: the preset's."),
    "sentences": Field(**SIZE, help="Maximum texts for metrics that decode; 0: the preset's."),
    "generate": Field(**SIZE, help="Texts drawn from the prior; 0: the preset's."),
    "posteriors": Field(
        **SIZE,
        help="Maximum texts for KL, MI and active units, at least evals.sentences; 0: the "
        "preset's, all of the split.",
    ),
    "outputs": Field(int, "Texts written per source, by models that read one.", low=1, high=1_000),
    "bertscore": Field(
        str, "Model for BERTScore of these texts, hub name or folder; empty: not measured."
    ),
    "vectors": Field(str, "File of word vectors for the metric dialogue; empty: none."),
    "interpolations": Field(**SIZE, help="Pairs of test texts to interpolate; 0: the preset's."),
    "interpolation_steps": Field(int, "Points per interpolation.", low=2, high=10_000),
    "chunk": Field(int, "Posterior samples decoded together.", low=1, high=100_000),
    "compat": Field(
        str, "Published estimators to print next to ours.", many=True, choices=tuple(MODES)
    ),
    "metrics": Field(str, "Registered metrics to add.", many=True, choices=METRICS.names()),
    "prior_samples": Field(
        **SIZE, help="Number of prior draws for a bound that uses only these; 0: no such bound."
    ),
    "refine_steps": Field(
        int,
        "Langevin steps that refine the posterior for another bound; 0: none.",
        low=0,
        high=100_000,
    ),
    "refine_size": Field(float, "Step size of evals.refine_steps.", above=0.0, high=1e6),
    "features": Field(str, "File .npz with arrays samples and references, for MAUVE."),
    "external": Field(
        str, "Language model that scores the samples: a run, an export, or a published decoder."
    ),
    "similarity": Field(str, "Published sentence encoder that compares reconstructions."),
    "per_label": Field(
        int,
        "Training sentences per label in --mode=probe, one probe per value.",
        many=True,
        empty=False,
        low=1,
        high=MOST,
    ),
    "protocol": Field(
        str, "Protocol of --mode=probe; sri: few labels as in its paper.", choices=("own", "sri")
    ),
    "chains": Field(
        int, "Chains per sentence for evals.protocol=sri; published: 200.", low=1, high=MOST
    ),
    "factor": Field(str, "Factor of the embedded corpus for probes with few labels."),
}
DECODE = {
    "method": Field(str, "How prior samples are decoded.", choices=METHODS),
    "temperature": Field(float, "Temperature of sampling.", above=0.0, high=1e6),
    "top_k": Field(int, "Sample from the k most likely tokens; 0: all.", low=0, high=MOST),
    "top_p": Field(
        float,
        "Sample from the most likely tokens with this total probability.",
        above=0.0,
        high=1.0,
    ),
    "repetition_penalty": Field(
        float, "Above 1: repeated tokens are less likely.", above=0.0, high=1e6
    ),
    "min_length": Field(int, "Minimum new tokens before the end.", low=0, high=MOST_TOKENS),
    "max_length": Field(
        int, "Maximum new tokens; 0: those of the longest training text.", low=0, high=LONGEST
    ),
    "beam_width": Field(int, "Number of hypotheses in beam search.", low=1, high=WIDEST),
    "length_penalty": Field(
        float, "Hypotheses are ranked by log p / length ** length_penalty.", low=-100.0, high=100.0
    ),
    "batch": Field(int, "Latents decoded together.", low=1, high=MOST_ROWS),
}
SECTIONS: dict[str, dict[str, Field]] = {
    "data": DATA,
    "init": INIT,
    "objective": OBJECTIVE,
    "noise": NOISE,
    "optim": OPTIM,
    "mesh": MESH,
    "train": TRAIN,
    "evals": EVALS,
    "decode": DECODE,
}
TOP = {
    "name": Field(str, "Name of the config; names the default working directory."),
    "seed": Field(int, "Seed of parameters, noise and data order.", low=-MOST, high=MOST),
    "phases": Field(None, "One section per phase, see jvae.runs.phases; empty: a single phase."),
}


def field_of(key: str) -> Field | None:
    """The field of a dotted key outside `model`; None for an unknown key."""
    top, _, rest = key.partition(".")
    if not rest:
        return TOP.get(top)
    fields: dict[str, Field] = SECTIONS.get(top, {})
    if top == "phases":
        _, _, rest = rest.partition(".")
        fields = PHASE
    if rest in fields:
        return fields[rest]
    return fields.get(f"{rest.rpartition('.')[0]}.*")


def absent(key: str) -> Any:
    """The meaning of a config that lacks this key; None for keys that every config has."""
    field = field_of(key)
    return None if field is None else field.absent
