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
from jvae.training.objectives import KL_FLOORS, LATENTS, RECONSTRUCTIONS, REDUCTIONS
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
    "valid": Field(**TEXTS, help="Likewise; empty: held out of train."),
    "test": Field(**TEXTS, help="Likewise; empty: held out of train."),
    "format": Field(str, "Of files; auto goes by the suffix.", choices=READERS.names("auto")),
    "header": Field(
        str, "Whether the first line of a .csv or .tsv names its columns.", choices=HEADERS
    ),
    "quotes": Field(bool, "Fields of a .csv or .tsv may stand in quotes."),
    "text": Field(
        str,
        "TSV column, by number from 0 (-1: the last) or name, JSON key or TFDS feature. Empty: the "
        "whole line, the last column, or text.",
    ),
    "source": Field(str, "Likewise of the source of source -> text pairs; empty: none."),
    "label": Field(str, "Likewise of the label, for --mode=probe; empty: none."),
    "turns": Field(str, "Stands between the turns of a source; empty: it has none."),
    "source_words": Field(
        int, "Words kept from the end of a source; 0 keeps all.", low=0, high=MOST
    ),
    "keep": Field(
        str, "Only lines with COLUMN=VALUE, several by comma, such as 0=1; empty: every line."
    ),
    "sentences": Field(bool, "Lines are documents, to be cut into sentences."),
    "tfds_dir": Field(str, "Where TFDS sets are; empty: TFDS's own default."),
    "cache": Field(str, "Of tokenised files; empty: $JVAE_CACHE or ~/.cache/jvae."),
    "workers": Field(int, "Processes that make batches; 0: a thread.", low=0, high=1_024),
    "encoder_tokenizer": Field(str, "Folder or hub name; empty: trained on the train split."),
    "decoder_tokenizer": Field(str, "Folder or hub name; empty: trained on the train split."),
    "tokenizer_kind": Field(str, "Of one trained on files.", choices=("bpe", "word")),
    "vocab": Field(
        int, "Entries of one trained on files; 0, for words alone: every word.", low=0, high=2**21
    ),
    "on_error": Field(str, "What a bad line does.", choices=("raise", "drop")),
    "max_words": Field(
        int, "Longer lines are bad lines; none: no limit.", low=1, high=MOST, optional=True
    ),
    "max_chars": Field(int, "The same in characters.", low=1, high=MOST),
    "enc_row": Field(
        int,
        "Tokens of an encoder's row; 0: proposed.",
        low=0,
        high=MOST_TOKENS,
    ),
    "dec_row": Field(int, "Likewise of the decoder.", low=0, high=MOST_TOKENS),
    "cond_row": Field(int, "Likewise of source texts.", low=0, high=MOST_TOKENS),
    "slots": Field(int, "Most texts of a row; 0: proposed.", low=0, high=MOST_ROWS),
    "row_tokens": Field(int, "About the row length to propose.", low=1, high=MOST_TOKENS),
    "batch_rows": Field(int, "Rows of a batch.", low=1, high=MOST_ROWS),
    "packing": Field(
        str,
        "pack: several texts per row; bucket: one, like lengths together.",
        choices=("pack", "bucket"),
    ),
    "score_end": Field(bool, "False: where to end is never learned; a bound of less text."),
}
INIT = {
    "encoder": Field(
        str,
        "Pretrained backbone for step 0, whose sizes and tokenizer are taken: folder or hub name; "
        "empty: none.",
    ),
    "decoder": Field(str, "Likewise."),
    "model": Field(str, "Trained model for step 0: folder of a run, or an export by its name."),
    "part": Field(str, "Parameters to take from it; empty: all, and all must fit.", pattern=True),
    "optimizer": Field(bool, "Take the moments of its optimizer too."),
    "frozen_dtype": Field(str, "Of the parameters that no phase trains.", choices=DTYPES),
}
BETA = {
    "kind": Field(str, "Schedule of the KL's weight.", choices=tuple(KINDS)),
    "start": Field(float, "Weight at the start of a cycle.", low=0.0, high=1e6),
    "stop": Field(float, "Weight at its end, and of validation.", low=0.0, high=1e6),
    "n_cycle": Field(int, "Cycles of the run or phase.", low=1, high=100_000),
    "ratio_zero": Field(float, "Share of a cycle at start.", low=0.0, high=1.0),
    "ratio_increase": Field(float, "Share of a cycle that rises.", above=0.0, high=1e3),
    "n_iter": Field(
        int,
        "Steps of all cycles; none: all of the phase.",
        low=1,
        high=MOST,
        optional=True,
    ),
}
OBJECTIVE = {
    "z": Field(str, "zero: the decoder trains as a language model.", choices=LATENTS),
    "rec": Field(
        str,
        "sum over the tokens of a text, as the bound has it; token_mean over those of the batch; "
        "token_mean_end counts each end too.",
        choices=RECONSTRUCTIONS,
    ),
    "rec_length": Field(
        int,
        "The reconstruction is divided by so many tokens; 0: not at all.",
        low=0,
        high=MOST_TOKENS,
        absent=0,
    ),
    "length_weighted": Field(bool, "It is divided by the tokens of the text."),
    "kl_floor": Field(str, "Free bits, see jvae.training.objectives.", choices=KL_FLOORS),
    "floor": Field(float, "Their threshold, nats.", low=0.0, high=1e6),
    "kl_reduce": Field(
        str, "Over groups; sum is the bound.", choices=tuple(REDUCTIONS), absent="sum"
    ),
    "aux_weight.*": Field(float, "Weight of an auxiliary term.", low=0.0, high=1e6),
    **{f"beta.{name}": field for name, field in BETA.items()},
}
NOISE = {
    "enc_delete": Field(
        float,
        "The encoder reads a text without up to this share of its tokens, on average half of it.",
        low=0.0,
        high=1.0,
    ),
    "word_dropout": Field(
        float, "Share of the tokens that the decoder reads as unknown.", low=0.0, high=1.0
    ),
}
OPTIM = {
    "lr": Field(float, "Peak learning rate of AdamW.", above=0.0, high=10.0),
    "schedule": Field(str, "Of the rate, after the warm-up.", choices=SCHEDULES),
    "warmup_steps": Field(
        int, "Linear warm-up from 0; clipped to the steps of a shorter phase.", low=0, high=MOST
    ),
    "b1": Field(float, "Decay rate of the first moment.", low=0.0, below=1.0),
    "b2": Field(float, "Decay rate of the second moment.", low=0.0, below=1.0),
    "eps": Field(float, "Added outside the root.", above=0.0, high=1.0),
    "eps_first": Field(bool, "Before the bias correction, as transformers' old AdamW."),
    "weight_decay": Field(float, "Decoupled, scaled by the rate.", low=0.0, high=100.0),
    "no_decay": Field(
        str, "Parameters whose path matches one are not decayed.", many=True, pattern=True
    ),
    "clip": Field(
        float, "Largest global norm of the gradient; none: any.", above=0.0, high=1e9, optional=True
    ),
    "first_update": Field(
        int, "1: the first update is not one of rate 0.", low=0, high=1, absent=0
    ),
    "trainable": Field(None, "Rules of what trains; empty: everything.", many=True),
}
MESH = {
    axis: Field(int, f"Devices {what}; -1: all that remain.", low=1, high=2**20, also=(-1,))
    for axis, what in (
        ("data", "over which rows are cut"),
        ("fsdp", "over which rows and parameters are cut"),
        ("tensor", "over which heads, feed-forwards and the vocabulary are cut"),
    )
}
TRAIN = {
    "steps": Field(int, "Updates.", low=1, high=MOST),
    "log_every": Field(int, "Steps between lines of metrics.", low=1, high=MOST),
    "check_every": Field(
        int, "Steps between checks: validate, keep the best, save.", low=1, high=MOST
    ),
    "keep": Field(int, "Newest checkpoints kept beside the best.", low=1, high=10_000),
    "tensorboard": Field(bool, "Write event files too."),
    "wandb": Field(str, "Project of Weights & Biases that gets the same; empty: none."),
    "steps_per_call": Field(
        int,
        "Updates in one compiled call, where steps are shorter than launches.",
        low=1,
        high=10_000,
    ),
    "accumulate": Field(
        int, "Parts that a batch is measured in, one after another.", low=1, high=MOST_ROWS
    ),
    "patience": Field(
        int,
        "Checks without a better validation loss that end training; 0: never.",
        low=0,
        high=MOST,
    ),
    "overfit_gap": Field(
        float,
        "Nats per token by which Rec of validation exceeds that of training before a warning.",
        above=0.0,
        high=1e6,
    ),
}
PHASE = {
    "share": Field(float, "Of train.steps; all shares add up to 1.", above=0.0, high=1.0),
    "patience": Field(int, "As train.patience, for this phase.", low=0, high=MOST),
    **{
        f"{section}.{name}": field
        for section, fields in (("objective", OBJECTIVE), ("optim", OPTIM), ("noise", NOISE))
        for name, field in fields.items()
    },
}
SIZE: dict[str, Any] = dict(kind=int, low=0, high=10_000_000)
EVALS = {
    "preset": Field(str, "Sizes of jvae/evals/settings.py.", choices=tuple(PRESETS)),
    "seed": Field(int, "Of draws and choices.", low=0, high=MOST),
    "samples": Field(**SIZE, help="K of NLL_K; 0: the preset's."),
    "sentences": Field(**SIZE, help="Most texts for all that decodes; 0: the preset's."),
    "generate": Field(**SIZE, help="Texts drawn from the prior; 0: the preset's."),
    "outputs": Field(int, "Texts of each source, of models that read one.", low=1, high=1_000),
    "bertscore": Field(
        str, "Model of their BERTScore, by hub name or folder; empty: not measured."
    ),
    "vectors": Field(str, "File of word vectors for metric dialogue; empty: none."),
    "interpolations": Field(**SIZE, help="Pairs of test texts; 0: the preset's."),
    "interpolation_steps": Field(int, "Points of each line.", low=2, high=10_000),
    "chunk": Field(int, "Posterior samples decoded together.", low=1, high=100_000),
    "compat": Field(
        str, "Published estimators to print beside ours.", many=True, choices=tuple(MODES)
    ),
    "metrics": Field(str, "Further metrics.", many=True, choices=METRICS.names()),
    "prior_samples": Field(**SIZE, help="K of a bound by draws from the prior; 0: none."),
    "refine_steps": Field(
        int, "Langevin steps from the posterior before another bound; 0: none.", low=0, high=100_000
    ),
    "refine_size": Field(float, "Their size.", above=0.0, high=1e6),
    "features": Field(str, "File .npz with arrays samples and references, for MAUVE."),
    "external": Field(
        str, "Language model that scores the samples: a run, an export, or a published decoder."
    ),
    "similarity": Field(str, "Published sentence encoder that compares reconstructions."),
    "per_label": Field(
        int,
        "Training sentences of each label that --mode=probe sees, in turn.",
        many=True,
        empty=False,
        low=1,
        high=MOST,
    ),
    "protocol": Field(
        str, "Of --mode=probe; sri: few labels as its paper has it.", choices=("own", "sri")
    ),
    "factor": Field(str, "Factor of the embedded corpus that few labels are about."),
}
DECODE = {
    "method": Field(str, "How prior samples are decoded.", choices=METHODS),
    "temperature": Field(float, "Divides the logits of sampling.", above=0.0, high=1e6),
    "top_k": Field(int, "Sampling keeps the k best tokens; 0: all.", low=0, high=MOST),
    "top_p": Field(float, "Sampling keeps the best tokens of this mass.", above=0.0, high=1.0),
    "repetition_penalty": Field(
        float, "Above 1, tokens so far are less likely.", above=0.0, high=1e6
    ),
    "min_length": Field(int, "Tokens before an end may come.", low=0, high=MOST_TOKENS),
    "max_length": Field(
        int, "Most new tokens; 0: as the longest training text.", low=0, high=LONGEST
    ),
    "beam_width": Field(int, "Hypotheses of method beam.", low=1, high=WIDEST),
    "length_penalty": Field(float, "Of beam: sum log p / length ** this.", low=-100.0, high=100.0),
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
    "name": Field(str, "Of the config; names the default working directory."),
    "seed": Field(int, "Of parameters, noise and the order of the data.", low=-MOST, high=MOST),
    "phases": Field(None, "Sections of phases, see jvae.runs.phases; empty: one phase."),
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
