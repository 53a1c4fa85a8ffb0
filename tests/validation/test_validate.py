"""The one check of a config: what is refused, what is taken, and that nothing is allocated."""

import dataclasses
import math
import re
import resource
import time
from collections.abc import Callable

import jax
import pytest
from ml_collections import ConfigDict

from jvae import config as configs
from jvae import models
from jvae.errors import ConfigError
from jvae.fields import MOST, Field, Needs, check_dataclass, check_effect, fields_of, setting
from jvae.models import Family
from jvae.nn.backbone import BACKBONES
from jvae.validation import schema
from jvae.validation.reference import describe, model_field, reference
from jvae.validation.validate import validate

PRESETS = {
    "adavae": ("tiny", "base", "smollm2"),
    "auto": ("tiny",),
    "della": (
        "tiny",
        "tiny_plain",
        "base",
        "story",
        "paraphrase",
        "quora",
        "bart",
        "t5",
        "smollm2",
    ),
    "lm": ("tiny", "lstm", "pretrained", "gpt2"),
    "lstm_vae": ("tiny", "annealed", "ae_free_bits"),
    "optimus": (
        "tiny",
        "tiny_cls",
        "tiny_plain",
        "base",
        "latent768",
        "large",
        "spacefusion",
        "smollm2",
        "llama1b",
        "llama8b",
    ),
    "sri": ("tiny", "ptb", "yelp_short", "transformer", "smollm2"),
    "t5_vae": ("tiny", "base"),
    "tasks": ("paraphrase", "hypothesis", "response", "fusion", "encoder", "few_labels"),
}
# A preset of every family: between them they hold every section that is shipped.
SHAPES = (
    "adavae:tiny",
    "della:tiny",
    "lm:tiny",
    "lm:lstm",
    "lstm_vae:tiny",
    "optimus:tiny",
    "sri:tiny",
    "sri:transformer",
    "t5_vae:tiny",
)
WRONG = (0, -1, math.nan, math.inf, 1e12, "text")


def of(name: str, *overrides: str) -> ConfigDict:
    return configs.apply_overrides(configs.load(name), overrides)


def with_values(name: str, values: dict) -> ConfigDict:
    """A config with values of any type at all."""
    tree = configs.load(name).to_dict()
    for key, value in values.items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[last] = value
    return ConfigDict(tree)


def message(config: ConfigDict, **options) -> str:
    with pytest.raises(ConfigError) as error:
        validate(config, **options)
    return str(error.value)


def field(config: ConfigDict, key: str) -> Field | None:
    if key.startswith("model."):
        return model_field(config, key)
    return schema.field_of(key)


def numbers(config: ConfigDict) -> list[str]:
    return [
        key
        for key, value in configs.flatten(config).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]


def test_the_list_of_presets_is_whole():
    folder = configs.shipped_dir()
    modules = {p.stem: p.read_text() for p in folder.glob("*.py")}
    named = {stem for stem, text in modules.items() if "def get_config" in text}
    assert named == PRESETS.keys()
    for stem, presets in PRESETS.items():
        with pytest.raises(ConfigError, match=f"presets: {', '.join(presets)}$"):
            configs.load(f"{stem}:no_such_preset")


@pytest.mark.parametrize(
    "name", [f"{stem}:{p}" for stem, presets in PRESETS.items() for p in presets]
)
def test_shipped_presets_pass_and_every_key_is_declared(name):
    config = configs.load(name)
    validate(config, platform="cpu")
    for key, value in configs.flatten(config).items():
        if value != {} and key != "model.family":
            declared = field(config, key)
            assert declared is not None and declared.help, key


def check_numbers(name: str, single: Callable[[str], bool]) -> None:
    """Every number of a config takes each wrong value: all at once, and by itself where it is one
    of `single` and in its range.
    """
    config = configs.load(name)
    validate(config, platform="cpu")  # what follows measures the check, not the first tracing
    keys = numbers(config)
    arrays, before = len(jax.live_arrays()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for value in WRONG:
        # All at once: each bad value has a line of its own.
        text = message(with_values(name, dict.fromkeys(keys, value)), platform="cpu")
        refused = [key for key in keys if any(f"{key}=" in line for line in text.splitlines())]
        if isinstance(value, str) or not math.isfinite(value) or value == 1e12:
            assert refused == keys, set(keys) - set(refused)
        for key in [key for key in keys if key not in refused]:
            declared = field(config, key)
            assert declared is not None and declared.problem(value) is None
            if single(key):
                begin = time.monotonic()
                try:
                    validate(with_values(name, {key: value}), platform="cpu")
                except ConfigError as error:  # one that excludes another value
                    assert key in str(error) or key.rpartition(".")[2] in str(error), (key, value)
                assert time.monotonic() - begin < 30, (key, value)
    assert len(jax.live_arrays()) == arrays
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


@pytest.mark.parametrize("name", SHAPES)
def test_every_number_is_in_its_range_or_refused_by_name(name):
    check_numbers(name, single=lambda key: False)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_every_number_in_its_range_passes_or_excludes_another(name):
    check_numbers(name, single=lambda key: True)


def test_numbers_of_the_shared_sections_pass_or_exclude_another():
    check_numbers("lm:lstm", single=lambda key: not key.startswith("model."))


FAULTS = {
    "train.check_every=0": "check_every=0: expected an integer of at least 1; try .*check_every=1",
    "train.log_every=0": "log_every=0: expected an integer of at least 1",
    "data.workers=-1": "data.workers=-1: expected an integer from 0 to 1024",
    "model.decoder.heads=0": "model.decoder.heads=0: expected an integer from 1",
    "model.decoder.heads=3": "model.decoder: width 128 does not divide into 3 heads",
    "model.encoder.layers=-1": "model.encoder.layers=-1: expected an integer from 1 to 4096",
    "model.encoder.width=0": "model.encoder.width=0",
    "model.decoder.vocab_multiple=0": "model.decoder.vocab_multiple=0",
    "model.decoder.dtype=float99": "dtype='float99': expected one of float32, .*dtype=float32",
    "model.encoder.remat=foo": "remat='foo': expected one of none, dots, full",
    "model.decoder.attention=cudnn": "attention cudnn needs dtype bfloat16 or float16",
    "optim.lr=-1": "optim.lr=-1.0: expected a number above 0 and at most 10",
    "optim.lr=0": "optim.lr=0.0: expected a number above 0",
    "optim.b1=1.5": "optim.b1=1.5: expected a number of at least 0 and below 1",
    "optim.weight_decay=-5": "optim.weight_decay=-5.0: .*try --config.optim.weight_decay=0",
    "model.decoder.dropout=1.5": "model.decoder.dropout=1.5: expected .* below 1",
    "model.decoder.norm_eps=-1": "model.decoder.norm_eps=-1.0: expected a number above 0",
    "model.decoder.xent_chunk=0": "model.decoder.xent_chunk=0",
    "optim.no_decay=(": r"optim.no_decay=\('\(',\): expected regular expressions; '\(' is none",
    "init.part=(": r"init.part='\(': expected a regular expression",
    "data.vocab=99999999999": "data.vocab=99999999999: expected .*data.vocab=2097152",
    "data.format=cvs": "data.format='cvs': expected one of auto, csv",
    "evals.preset=quik": "evals.preset='quik': .*try --config.evals.preset=quick",
    "evals.per_label=": r"evals.per_label=\(\): expected a tuple, .* one at least",
    "evals.per_label=0": "evals.per_label",
    "evals.compat=optimums": "evals.compat=.*some of optimus, .*try --config.evals.compat=optimus",
    "evals.metrics=mean_length": "some of .*similarity. A metric of your own must be imported firs",
    "evals.metrics=mauve,prior_bond": "some of .*try --config.evals.metrics=mauve,prior_bound",
    "data.format=zzz": "one of auto, .*tsv. A reader of your own must be imported first: name",
    "objective.beta.kind=cyclic": "objective.beta.kind='cyclic': .*cyclic_linear",
    "objective.beta.n_cycle=0": "objective.beta.n_cycle=0",
    "objective.beta.start=2": "start = 2.0 and stop = 0.8, expected start <= stop",
    "optim.schedule=cos": "optim.schedule='cos': .*try --config.optim.schedule=cosine",
    "optim.clip=0": "optim.clip=0.0: expected a number above 0 and at most .*, or none",
    "noise.enc_delete=1.5": "noise.enc_delete=1.5: expected a number from 0 to 1",
    "train.accumulate=0": "train.accumulate=0",
    "train.accumulate=3": "data.batch_rows is 14, which train.accumulate=3 does not divide",
    "train.steps_per_call=3": "train.steps_per_call is 3, but train.log_every is 100; use a mult",
    "data.valid=v.txt": "data.valid or data.test is set but data.train is not",
    "data.batch_rows=1048576 data.row_tokens=10000": "more than 2,147,483,647 tokens; lower one",
    "data.slots=50 data.dec_row=40": "data.slots=50 texts cannot fit in a row of 40 tokens",
    "data.train=t.txt data.vocab=100": "a vocabulary of kind bpe needs at least 260",
    "data.train=t.txt data.sentences=1 data.source=0": "pairs cannot be cut into sentences",
    "decode.min_length=9 decode.max_length=5": "decode.min_length=9 is above decode.max_length=5",
    "objective.rec_reduce=token_mean objective.length_weighted=1": "would divide twice",
    "model.encoder.layers=4096 model.encoder.width=131072": "parameters, .* are more than 1e.12",
}


@pytest.mark.parametrize("words", FAULTS)
def test_values_that_cannot_be_used_are_named(words):
    text = message(of("optimus:tiny", *words.split()))
    assert re.search(FAULTS[words], text, re.DOTALL), text


def test_fused_kernels_need_their_devices():
    config = of("optimus:base", "model.decoder.attention=cudnn")
    assert "attention='cudnn' runs on gpu or cuda, not on cpu; try" in message(config)
    assert (
        "does not support dropout of attention weights, but model.decoder.dropout is 0.1"
        in message(config)
    )
    config = of("optimus:base", "model.decoder.attention=cudnn", "model.decoder.dropout=0")
    validate(config, platform="gpu")


def test_all_that_is_wrong_comes_at_once():
    text = message(of("optimus:tiny", "optim.lr=-1", "train.steps=0", "model.encoder.width=130"))
    first, *rest = text.splitlines()
    assert first == "3 values of the config cannot be used:" and len(rest) == 3


IDLE = {
    "sri objective.free_bits=dim_max objective.free_bits_nats=3": "nats=3.0 has no effect: the "
    "posterior of model.family=sri is a sampler, whose loss has no KL; set it to 0",
    "sri objective.beta.stop=0.01": "objective.beta.stop=0.01 has no effect: .*; set it to 1",
    "sri evals.refine_steps=3": "has a sampler as its posterior",
    "lm objective.beta.stop=0.5": "model.family=lm has no latent",
    "lm evals.compat=della": "evals.compat=.* has no effect",
    "lm noise.enc_delete=0.1": "model.family=lm has no encoder; set it to 0",
    "optimus objective.free_bits_nats=1": "nats=1.0 has no effect: objective.free_bits is none",
    "optimus objective.free_bits=dim_max": "effect: objective.free_bits_nats is 0; set it to none",
    "optimus data.source=0 data.train=t.tsv": "model.family=optimus reads no source text",
    "optimus data.label=0": "data.label='0' has no effect: data.train is empty",
    "optimus data.vocab=500": "data.vocab=500 has no effect: data.train is empty",
    "optimus init.part=x": "init.part='x' has no effect: init.model is empty; leave it empty",
    "optimus decode.method=greedy decode.top_k=3": "decode.method is greedy, not sample",
    "optimus evals.refine_size=0.5": "evals.refine_steps is 0; set it to 0.3",
    "optimus optim.no_decay=bias": "optim.weight_decay is 0",
    "della model.cvae_posterior=xc": "model.cvae_posterior='xc' has no effect: conditional is fal",
    "optimus model.log_var=unit": "model.log_var_shift=-3.0 has no effect: log_var is unit",
    "sri:ptb model.chain.step_size=0.1": "model.chain.step_size=0.1 has no effect: the schedule",
    "adavae model.prefix_middle=9": "model.prefix_middle=9 has no effect: prefix is 0",
}


@pytest.mark.parametrize("words", IDLE)
def test_values_without_effect_are_errors(words):
    name, *overrides = words.split()
    text = message(of(name, *overrides))
    assert re.search(IDLE[words], text, re.DOTALL), text


def test_a_value_has_an_effect_where_one_phase_reads_it():
    validate(configs.load("t5_vae:tiny"))  # its first phases switch the floor off
    sections = {"phases.stage2.objective": ConfigDict(dict(free_bits="none"))}
    expected = (
        "objective.free_bits_nats=0.5 has no effect: objective.free_bits is none; set it to 0"
    )
    assert message(with_values("t5_vae:tiny", sections)) == expected


def test_phases_are_checked_before_the_first_begins():
    validate(of("t5_vae:tiny", "train.steps=50"))
    text = message(of("t5_vae:tiny", "train.steps=3"))
    assert text == "phases.stage1.share leaves it no step of train.steps = 3; raise one of them"
    text = message(with_values("t5_vae:tiny", {"phases.stage1.share": -1.0}))
    assert text == "phases.stage1.share=-1.0: expected a number above 0 and at most 1"
    wrong = ConfigDict(dict(lr=0.0, rate=1))
    text = message(with_values("t5_vae:tiny", {"phases.stage0.optim": wrong}))
    assert "phases.stage0.optim.lr=0.0: expected a number above 0" in text
    assert "phases.stage0.optim.rate: no such key" in text
    rules = ConfigDict(dict(trainable=(("^nowhere/", None, None, 0),)))
    text = message(with_values("t5_vae:tiny", {"phases.stage2.optim": rules}))
    assert text.startswith("phase stage2: ") and "'^nowhere/' matches no parameter" in text
    # The floor of one phase alone is of the mean over a batch.
    assert "train.accumulate=2 never sees whole" in message(of("adavae:tiny", "train.accumulate=2"))


def test_loaded_moments_would_move_parameters_that_start_late():
    loads = ("init.model=runs/before", "init.optimizer=true")
    rules = [("^decoder/", None, None, 0), ("^posterior/", None, None, "1/2")]
    late = of("optimus:tiny", *loads)
    late.optim.trainable = tuple(rules)
    assert "posterior/" in message(late) and "set init.optimizer=false" in message(late)
    late.init.optimizer = False
    validate(late)
    late.init.optimizer, late.optim.trainable = True, tuple(rules[:1])
    validate(late)


def test_unknown_and_missing_keys():
    tree = configs.load("optimus:tiny").to_dict()
    tree["optim"]["learning_rate"] = 1.0
    del tree["train"]["keep"], tree["name"]
    text = message(ConfigDict(tree))
    assert "optim.learning_rate: no such key" in text
    assert "train.keep: missing" in text and "name: missing" in text
    assert "did you mean 'optimus'" in message(of("optimus:tiny", "model.family=optimu"))
    tree = configs.load("optimus:tiny").to_dict()
    tree["model"]["widht"] = 3
    del tree["model"]["encoder"]["layers"]
    text = message(ConfigDict(tree))
    assert "model.widht: OptimusConfig has no such field" in text
    assert "model.encoder.layers: missing" in text


def test_what_a_run_was_trained_with_is_taken_where_it_does_no_harm():
    saved = of("sri:tiny", "objective.free_bits_nats=3")
    message(saved)
    validate(saved, saved=saved)
    validate(saved, saved=saved, training=False)
    assert "objective.free_bits_nats=4.0" in message(
        of("sri:tiny", "objective.free_bits_nats=4"), saved=saved
    )
    # Training alone reads the rate: evaluation continues, training does not.
    saved = of("optimus:tiny", "optim.lr=-1")
    validate(saved, saved=saved, training=False)
    message(saved, saved=saved)
    saved = of("optimus:tiny", "evals.chunk=0")
    message(saved, saved=saved, training=False)


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = setting(low=1, high=64, help="Width.")
    plain: float = 1.0


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    kind: str = setting("a", choices=("a", "b"), help="Kind.")
    only_b: int = setting(0, low=0, help="For b.", needs=Needs(lambda c: c.kind == "b", "kind: a"))
    names: tuple[str, ...] = setting((), pattern=True, help="Patterns.")
    most: int | None = setting(None, low=1, high=MOST, help="Most.")


def test_a_family_from_outside_is_checked_by_its_dataclass_alone(monkeypatch):
    section = dict(inner=dict(width=0, plain=math.nan), kind="c", names=("(",), most=0, more=1)
    texts = [problem.text for problem in check_dataclass(Outer, section, "model")]
    assert [text.partition("=")[0].partition(":")[0] for text in texts] == [
        "model.inner.width",
        "model.inner.plain",
        "model.kind",
        "model.names",
        "model.most",
        "model.more",
    ]
    assert not check_dataclass(Outer, dict(inner=dict(width=64), most=None), "model")
    assert [problem.idle for problem in check_effect(Outer(Inner(2), only_b=1), "model")] == [True]
    assert not check_effect(Outer(Inner(2), kind="b", only_b=1), "model")
    assert set(fields_of(Outer)) == {"inner", "kind", "only_b", "names", "most"}
    family = Family(Outer, lambda config: pytest.fail("built from a wrong config"), dict, dict)
    monkeypatch.setitem(models.FAMILIES._members, "outer", family)
    tree = configs.load("lm:tiny").to_dict() | {"model": dict(family="outer", inner=dict(width=0))}
    text = message(ConfigDict(tree))
    assert text.startswith("model.inner.width=0: expected an integer from 1 to 64")


@pytest.mark.parametrize("value", [True, "3", 2.0, None, (1,)])
def test_types_are_not_guessed(value):
    assert Field(int).problem(value) == "an integer"
    assert Field(float).problem(3) is None and Field(float).problem(True) == "a number"


def test_help_and_reference_hold_every_key():
    config = configs.load("sri:transformer")
    text = describe(config)
    for key in configs.flatten(config):
        assert f"--config.{key}=" in text
    assert "--config.optim.lr=0.001\n      a number above 0 and at most 10\n" in text
    page = reference()
    for key in configs.flatten(configs.base()):
        assert f"| `{key}` |" in page
    stacks = tuple(kind.config.__name__ for _, kind in BACKBONES.items())
    for cls in (*stacks, "ChainConfig", "Annealing"):
        assert page.count(f"## `{cls}`") == 1
    assert "| `latent` | `32` | an integer from 1 to 1,048,576 | Width of z. |" in page


@pytest.mark.parametrize("value", ["decode.beam_width=257", "decode.max_length=65537"])
def test_decoding_is_refused_before_training_where_it_would_be_after(value):
    with pytest.raises(ConfigError, match=value):
        validate(of("optimus:tiny", value))


def test_free_bits_of_a_kl_without_dimensions_are_refused_before_data_is_read():
    learned = ("model.prior.kind=gmm", "model.prior.components=2")
    validate(of("optimus:tiny", *learned))
    text = message(
        of("optimus:tiny", *learned, "objective.free_bits=dim_max", "objective.free_bits_nats=1")
    )
    assert "free_bits=dim_max" in text and "per latent dimension" in text
    assert "model.prior.components=0: expected an integer from 1" in message(
        of("optimus:tiny", "model.prior.kind=gmm", "model.prior.components=0")
    )
    # The one preset that names what trains has a form for priors with parameters.
    for preset in ("tiny", "base"):
        validate(of(f"adavae:{preset},prior=flow"))
