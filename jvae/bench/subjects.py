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
    for preset in (*_ORDER, *(one for one in _PRESETS if one not in _ORDER))
    if preset in _PRESETS
)
OPTIMUS = Subject("optimus")
# 21 M parameters, a vocabulary like Penn Treebank's: matrix products dominate.
MEDIUM = Subject(
    "optimus",
    (
        "name=optimus-20m",
        *(
            f"model.{side}.{key}={value}"
            for side in ("encoder", "decoder")
            for key, value in dict(layers=6, width=320, heads=5, mlp=1280, vocab=10_000).items()
        ),
    ),
)
# Published sizes on the embedded corpus: vocabularies of published size with tokenizers trained
# here, as nothing is downloaded. Short rows, since attention costs the square of their length, and
# 16 k tokens a side, which fit into 80 GB; optimus:base also needs to recompute all but products.
_ROWS = ("data.row_tokens=64", "data.batch_rows=256")
_DOTS = ("model.encoder.remat=dots", "model.decoder.remat=dots", "train.dropout_rng=rbg")
_TOKENIZERS = ("data.encoder_tokenizer=", "data.decoder_tokenizer=")
_BERT, _GPT2 = "model.encoder.vocab=28996", "model.decoder.vocab=50257"
OPTIMUS_BASE = Subject("optimus:base", (*_TOKENIZERS, _BERT, _GPT2, *_ROWS, *_DOTS))
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


def every(cpu: tuple[Subject, ...] = TINY, other: tuple[Subject, ...] = LARGE) -> dict:
    """Subjects by preset."""
    return {"cpu": cpu, "gpu": other, "tpu": other}
