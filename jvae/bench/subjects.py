"""The configs to benchmark: the smallest of every system, and larger ones."""

from jvae.bench.cases import Subject
from jvae.models import FAMILIES

# The order of the tables; other families follow.
_ORDER = (
    *("optimus", "t5_vae", "adavae", "della", "sri", "sri:transformer"),
    *("lstm_vae", "lm", "lm:lstm"),
)
_PRESETS = [family.preset for _, family in FAMILIES.items() if family.preset]
TINY = tuple(
    Subject(preset)
    for preset in (*_ORDER, *(name for name in _PRESETS if name not in _ORDER))
    if preset in _PRESETS
)
OPTIMUS = Subject("optimus")


def _both(**values: str | int) -> tuple[str, ...]:
    return tuple(
        f"model.{side}.{key}={value}"
        for side in ("encoder", "decoder")
        for key, value in values.items()
    )


# 21 M parameters, a vocabulary like Penn Treebank's: matrix products dominate. All layers are
# unrolled and the vocabulary is one chunk, as in the tiny presets.
MEDIUM = Subject(
    "optimus",
    (
        "name=optimus-20m",
        *_both(layers=6, width=320, heads=5, mlp=1280, vocab=10_000, unroll=6, xent_chunk=10_240),
    ),
)
# The sizes of MiniLM and of SmolLM2-135M, trimmed to the tokens of SNLI, frozen, with low-rank
# additions. Weights do not affect speed, so they are random.
SMOLLM2 = Subject(
    "optimus:smollm2",
    (
        *("init.encoder=", "init.decoder=", "init.frozen_dtype=float32"),
        *("data.encoder_tokenizer=", "data.decoder_tokenizer="),
        *("model.encoder.vocab=30522", "model.decoder.vocab=12037"),
    ),
)
# Published sizes on the embedded corpus: vocabularies of published size with tokenizers trained
# here, as nothing is downloaded. Short rows, since attention costs the square of their length, and
# 16 k tokens per side, which fit into 80 GB.
_ROWS = ("data.row_tokens=64", "data.batch_rows=256")
_TOKENIZERS = ("data.encoder_tokenizer=", "data.decoder_tokenizer=")
_BERT, _GPT2 = "model.encoder.vocab=28996", "model.decoder.vocab=50257"
_BASE = (*_TOKENIZERS, _BERT, _GPT2, *_ROWS, "train.dropout_rng=rbg")


OPTIMUS_BASE = Subject("optimus:base", (*_BASE, *_both(remat="dots")))
# What was fastest on an H100: see docs/performance.md. A chunk is half of the vocabulary.
ON_GPU = (
    *_both(attention="triton", unroll=12),
    *("model.decoder.xent_chunk=25216", "train.dropout_rng=rbg"),
)
OPTIMUS_BASE_GPU = Subject("optimus:base", (*_BASE, *ON_GPU))
LARGE = (
    OPTIMUS_BASE,
    Subject("t5_vae:base", (*_TOKENIZERS, "model.decoder.vocab=32128", *_ROWS)),
    Subject("adavae:base", (*_TOKENIZERS, _GPT2, *_ROWS)),
    Subject("della:base", (*_TOKENIZERS, _GPT2, *_ROWS)),
    Subject("sri:ptb", ("model.decoder.vocab=10000",)),
    Subject("sri:transformer", ("model.decoder.vocab=10000",)),
    Subject("lstm_vae"),
    Subject("lm"),
    Subject("lm:lstm"),
)


def by_preset(cpu: tuple[Subject, ...] = TINY, accelerator: tuple[Subject, ...] = LARGE) -> dict:
    """Subjects by preset."""
    gpu = tuple(OPTIMUS_BASE_GPU if subject is OPTIMUS_BASE else subject for subject in accelerator)
    return {"cpu": cpu, "gpu": gpu, "tpu": accelerator}
