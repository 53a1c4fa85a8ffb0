"""Tasks of the five papers on a small budget: models trained from scratch on two cores.

`D` is the folder of a data set with train, valid and test files, plain or .gz.

Source -> text (DELLA's tasks): ten texts per source, scored against its own references, see
`evals.outputs`. Append DELLA's ablations to any of them: `tasks:paraphrase,data=D,ablate=shared`:

    paraphrase   --config=tasks:paraphrase,data=D    `label TAB text TAB text`, the duplicates (1)
                 --config=tasks:paraphrase,data=D,stack=bart    an encoder, and a decoder that
                 attends to it, as in the paper for paraphrases and summaries; or stack=t5
    hypothesis   --config=tasks:hypothesis,data=D    `label TAB premise TAB hypothesis`, entailments
    response     --config=tasks:response,data=D      JSON lines with lists `context` and `responses`
    fusion       --config=tasks:fusion,data=D        the same files, by SpaceFusion (Optimus)

Language understanding (Optimus, AdaVAE): an encoder trained on unlabelled sentences, then a GLUE
task with labels from files `label TAB sentence (TAB sentence)`; without --finetune.data, from TFDS:

    encoder      --config=tasks:encoder,data=D --workdir=runs/encoder    lines `label TAB sentence`
                 --workdir=runs/encoder --mode=finetune --task=sst2 --finetune.data=D
                 ... --finetune.per_class=10,100,1000 --finetune.draws=10    with few labels
                 ... --finetune.freeze=false --finetune.lr=1e-3              all parameters train
                 ... --task=rte|mrpc|wnli --finetune.data=D                  pairs of sentences

Few labels as in the SRI paper, lines `label TAB sentence`:

    few_labels   --config=tasks:few_labels,data=D --workdir=runs/few --sweep=seed=0,1,2
                 --workdir=runs/few/seed=0 --mode=probe --config.evals.protocol=sri
                 ... --config.evals.chains=10 --config.evals.sentences=300    of 200 chains and all
                     sentences of validation and test, which take hours

Ways to inject the latent into the decoder, and DELLA's ablations, on the embedded corpus:

    --config=optimus:tiny,inject=memory|embedding|softmax
    --config=della:tiny,ablate=no_product|independent|shared|lower|upper

Training and evaluation on one core, while the other was busy: hypothesis 14 minutes, paraphrase 18,
with BART's layers 19, fusion 19, encoder 21, response 28, few_labels 24 to 28 per seed and 20 for
its probe. For results, see the table Tasks in RESULTS.md.
"""

from ml_collections import ConfigDict

from jvae.config import choice, preset
from jvae.errors import ConfigError

from . import common, della, optimus, sri

SOURCE_TO_TEXT = ("paraphrase", "hypothesis", "response")
PRESETS = (*SOURCE_TO_TEXT, "fusion", "encoder", "few_labels")
STACKS = ("gpt2", "bart", "t5")
SIZES = ("layers", "width", "heads", "mlp", "dropout", "unroll")


def get_config(arg: str) -> ConfigDict:
    """The config of a preset."""
    name, options = preset(arg, PRESETS, data="", ablate="", stack="gpt2")
    stack = choice(options, "stack", STACKS)
    if name not in SOURCE_TO_TEXT and (options["ablate"] or stack != "gpt2"):
        raise ConfigError(
            f"tasks:{name}: ablate and stack apply only to {', '.join(SOURCE_TO_TEXT)}"
        )
    if name == "encoder":
        c = _encoder(options["data"])
    elif name == "few_labels":
        c = _few_labels(options["data"])
    elif name == "fusion":
        c = _fusion(options["data"])
    else:
        c = _source_to_text(name, options["data"], options["ablate"])
        if stack != "gpt2":
            _with_encoder(c, stack)
    words = ("tasks", name, options["ablate"], "" if stack == "gpt2" else stack)
    c.name = "-".join(filter(None, words))
    return c


def _with_encoder(c: ConfigDict, stack: str) -> None:
    """Replaces the decoder by one of the same size that attends to an encoder."""
    old = c.model.decoder
    small = {key: old[key] for key in SIZES}
    if stack == "bart":
        della.attend(c, common.bart(positions=old.positions, **small))
    else:
        della.attend(c, common.t5(head=old.width // old.heads, **small))


def _source_to_text(name: str, data: str, ablate: str) -> ConfigDict:
    c = della.get_config(f"tiny,ablate={ablate}" if ablate else "tiny")
    c.model.conditional = True
    c.model.decoder.update(positions=256)
    c.data.update(row_tokens=128, batch_rows=8, max_words=100, on_error="drop")
    c.train.update(steps=1_500, check_every=250)
    # Decode like the released code, with fewer beams.
    c.decode.update(method="beam", beam_width=4, repetition_penalty=1.2)
    c.evals.update(samples=20, sentences=200, generate=500, interpolations=10)
    if data:
        common.read(c, data, "jsonl" if name == "response" else "tsv")
        columns = dict(source="1", text="2", keep="0=1" if name == "paraphrase" else "0=entailment")
        if name == "response":
            columns = dict(source="context", text="responses")
            c.evals.metrics = ("dialogue",)
        c.data.update(vocab=4_000, **columns)
    return c


def _fusion(data: str) -> ConfigDict:
    c = optimus.get_config("tiny")
    optimus.fusion(c, layers=1)
    c.data.update(row_tokens=96, batch_rows=8, max_words=100, on_error="drop")
    c.train.update(steps=1_500, check_every=250)
    c.evals.update(samples=20, sentences=200, generate=500, interpolations=10)
    if data:
        common.read(c, data, "jsonl")
        columns = dict(source="context", text="responses", turns="__eou__", source_words=60)
        c.data.update(vocab=4_000, **columns)
    return c


def _encoder(data: str) -> ConfigDict:
    c = optimus.get_config("tiny")
    c.data.update(row_tokens=64, batch_rows=16, on_error="drop")
    c.train.update(steps=2_000, check_every=500)
    c.evals.update(samples=20, sentences=200, generate=500, interpolations=10)
    if data:
        common.read(c, data, "tsv")
        c.data.update(vocab=4_000, text="1", label="0")
    return c


def _few_labels(data: str) -> ConfigDict:
    c = sri.get_config("tiny")
    c.model.chain.update(steps=20, schedule="constant", step_size=0.4, temperature=0.0)
    c.data.update(on_error="drop")
    c.train.update(steps=1_000, check_every=1_000)  # validation takes minutes
    c.evals.update(samples=20, sentences=200, generate=200, interpolations=10, posteriors=500)
    if data:
        common.read(c, data, "tsv")
        c.data.update(vocab=4_000, text="1", label="0")
    return c
