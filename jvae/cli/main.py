"""Command line: `python -m jvae.main --config=configs/optimus.py`. Only parses flags and modes."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.cli import allocator
from jvae.errors import ConfigError, JvaeError
from jvae.runs.console import safe_streams
from jvae.training.preemption import CODE, Stopped

log = logging.getLogger(__name__)

INTERRUPTED = 130  # the shell convention: 128 + SIGINT
TEXT_MODES = (
    "sample",
    "reconstruct",
    "transfer",
    "interpolate",
    "analogy",
    "traverse",
    "neighbors",
    "encode",
    "decode",
    "nll",
)
MODES = (
    *("train", "eval", "probe", "finetune", "prior", "control", "report", "compile", "fit-batch"),
    "trim",
    *TEXT_MODES,
)
# Modes that use --prior=NAME.
UNDER_A_PRIOR = ("sample", "transfer", "interpolate", "nll", "eval", "control")
PRIOR = "prior."  # prefix of the flags of a fitted prior
FINETUNE = "finetune."  # prefix of the flags of --mode=finetune
CONTROL = "control."  # prefix of the flags of --mode=control

USAGE = """\
python -m jvae.main --config=CONFIG[:PRESET] [--config.KEY=VALUE ...] [--workdir=DIR] [--mode=MODE]

  --config=optimus:base          a shipped config; configs/optimus.py:base is the same by path
  --config.data.train=my.txt     any value of the config; --config=optimus --help lists them
  --mode=train                   train, evaluate, sample; the same command resumes
  --sweep=objective.beta.stop=0.1,0.5,1  a run for every value, one table; --dry_run prints them
  --mode=compile --topology=v5e-8  memory, FLOPs and collectives on a slice you need not have
  --mode=fit-batch               the largest data.batch_rows that fits this device
  --mode=trim --out=DIR          init.decoder with only the tokens of data.train: faster on a CPU
  --mode=eval|probe|report --workdir=DIR     measure a trained run; probe its latent; draw a report
  --mode=finetune --task=rte --finetune.data=DIR  classify with its encoder; add .freeze=false

On a trained run, with --workdir=DIR; sentences from --text, --input=FILE or standard input:

  --mode=sample --n=10                     sentences from the prior; --workdir=optimus-tiny is
                                           a small model that ships with jvae
  --mode=reconstruct                       each sentence encoded and decoded
  --mode=interpolate --text=A --text=B     between two sentences; --steps, --how=slerp
  --mode=analogy --text=A --text=B --text=C      what is to C as B is to A
  --mode=traverse --text=A --dims=0,3      one latent dimension moved at a time; without --dims
                                           the ten most active, with --dims=all all of them
  --mode=neighbors --corpus=FILE --n=5     nearest sentences of a file
  --mode=encode --out=z.npz                latents; decode reads them, from a file or a pipe
  --mode=encode --samples=4 --split=train --out=z.npz  posterior draws and their statistics
  --mode=nll --k=100                       nats of each sentence
  --mode=prior --prior.kind=KIND           fits a prior to the run's latents: gaussian, gmm, flow,
                                           diffusion, gan, ctrl_gen; --prior.label: one per label
  --temperature=0.7 --top_p=0.9            for every mode that writes sentences; also --top_k,
                                           --method=greedy|sample|beam, --beam_width, --max_length
  --prior=NAME --label=LABEL               sample, interpolate, nll and eval under a fitted prior
  --mode=transfer --label=LABEL            each sentence with another label; --strength=2: further
  --mode=control                           accuracy, BLEU, diversity by label, for all such priors

On a CPU a command starts itself again with an allocator that keeps its memory (Linux, glibc); the
environment variable JVAE_ALLOCATOR=system keeps the allocator as it is.
"""


def _flags() -> flags.FlagValues:
    """All flags except those of the config, at their defaults."""
    values = flags.FlagValues()
    text = "A sentence for a text mode; repeat the flag for several."
    out = "File of the result: .txt, .json (one object per line) or .npz; standard output if empty."
    dims = "Latent dimensions for traverse: 0,3,5 or all; the ten most active if empty."
    workdir = "Folder of the run; runs/<name of the config> by default."
    flags.DEFINE_string("workdir", None, workdir, flag_values=values)
    flags.DEFINE_enum(
        "mode", "train", MODES, "What to do; train also evaluates at the end.", flag_values=values
    )
    sweep = "KEY=VALUE,VALUE,...: one run per value; repeat the flag for all combinations."
    dry = "With --sweep: only print the command of every run."
    flags.DEFINE_multi_string("sweep", [], sweep, flag_values=values)
    flags.DEFINE_bool("dry_run", False, dry, flag_values=values)
    coordinator = "host:port of process 0, if JAX cannot detect the processes of a run."
    flags.DEFINE_string("coordinator", None, coordinator, flag_values=values)
    flags.DEFINE_integer("processes", None, "Number of processes.", 1, flag_values=values)
    flags.DEFINE_integer("process", None, "Index of this process, from 0.", 0, flag_values=values)
    topology = (
        "With --mode=compile: slices such as v5e-8,v5e-256; h100-8 for GPUs, cpu-8 for virtual "
        "devices. With --mode=fit-batch: a slice to use in place of the local devices."
    )
    flags.DEFINE_string("topology", "v5e-8", topology, flag_values=values)
    flags.DEFINE_multi_string("text", [], text, flag_values=values)
    flags.DEFINE_string("input", "", "File of sentences, plain or .gz.", flag_values=values)
    flags.DEFINE_string("out", "", out, flag_values=values)
    formats = ("", "text", "json", "npz", "safetensors")
    flags.DEFINE_enum(
        "format", "", formats, "Format of --out; by default from its suffix.", flag_values=values
    )
    flags.DEFINE_integer(
        "n",
        10,
        "Number of sentences to sample, or of neighbors per sentence.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "steps", 11, "Number of points of an interpolation.", lower_bound=2, flag_values=values
    )
    flags.DEFINE_enum(
        "how",
        "linear",
        ("linear", "slerp"),
        "Whether to interpolate along a line or an arc.",
        flag_values=values,
    )
    task = "Task of --mode=finetune: sst2, rte, mrpc, wnli or another GLUE task."
    flags.DEFINE_string("task", "", task, flag_values=values)
    flags.DEFINE_list("dims", [], dims, flag_values=values)
    flags.DEFINE_string(
        "corpus", "", "File of sentences in which to search for neighbors.", flag_values=values
    )
    flags.DEFINE_integer(
        "k",
        100,
        "Number of posterior draws per sentence for nll.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Seed of the text modes and of a prior.",
        lower_bound=0,
        upper_bound=2**32 - 1,
        flag_values=values,
    )
    prior = "Name of a fitted prior to use; empty: the model's own."
    flags.DEFINE_string("prior", "", prior, flag_values=values)
    label = "Label to condition a fitted prior on, or to transfer sentences to."
    flags.DEFINE_string("label", "", label, flag_values=values)
    strength = "Step of a transfer, as a multiple of the usual one."
    flags.DEFINE_float("strength", 1.0, strength, flag_values=values)
    _decoding_flags(values)
    samples = "Posterior draws per sentence for encode; 0: the mean."
    flags.DEFINE_integer("samples", 0, samples, lower_bound=0, flag_values=values)
    split = "Split that encode reads instead of sentences; needs --samples."
    splits = ("", "train", "valid", "test")
    flags.DEFINE_enum("split", "", splits, split, flag_values=values)
    return values


def _decoding_flags(values: flags.FlagValues) -> None:
    """Decoding flags for modes that write sentences; unset unless given on the command line."""
    methods = ("greedy", "sample", "beam")
    method = "How sentences are written: sample in --mode=sample, greedy elsewhere."
    flags.DEFINE_enum("method", None, methods, method, flag_values=values)
    for name, least, text in (
        (
            "temperature",
            0.0,
            "Sampling: below 1 safer, above 1 more surprising. 1 by default.",
        ),
        ("top_p", 0.0, "Sample from the fewest tokens with this total probability; 1: all."),
        ("repetition_penalty", 0.0, "Above 1: repeated tokens are less likely."),
        ("length_penalty", None, "Beam search: above 0 favours longer sentences."),
    ):
        flags.DEFINE_float(name, None, text, least, flag_values=values)
    for name, text in (
        ("top_k", "Sample from the k most likely tokens; 0: all."),
        ("beam_width", "Beam search: hypotheses per sentence, 4 by default."),
        ("min_length", "Minimum new tokens of a sentence."),
        ("max_length", "Maximum new tokens of a sentence; by default that of the config."),
    ):
        flags.DEFINE_integer(name, None, text, 0, flag_values=values)


DECODING = (
    *("method", "temperature", "top_k", "top_p", "repetition_penalty"),
    *("beam_width", "length_penalty", "min_length", "max_length"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0: done. 2: an error, printed as one message. 75 (`jvae.training.preemption.CODE`): stopped by a
    signal with the state saved; the same command resumes. 130: interrupted at the keyboard where
    there is no state.
    """
    with safe_streams():
        logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
        for noisy in ("absl", "orbax", "jax"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        try:
            words = list(sys.argv[1:] if argv is None else argv)
            config, rest = configs.from_argv(words, _saved, _configured)
            return _run(config, rest, words)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return CODE
        except JvaeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except flags.Error as error:
            print(f"error: {error}\n\n{USAGE}", file=sys.stderr)
            return 2


def _saved(rest: list[str]) -> ConfigDict:
    """The config of the run that the flags name, for `--config.KEY` flags without `--config`."""
    parsed = _flags()
    parsed(["jvae", *_plain(rest)])
    if parsed.workdir is None:
        raise ConfigError(
            "config values without a config: add --config=NAME, or the --workdir of a run"
        )
    from jvae.runs import workdir

    return workdir.saved_config(_folder(parsed))


def _folder(parsed: flags.FlagValues) -> Path:
    """The folder in --workdir; for text modes it may be the name of any model."""
    if parsed.mode not in TEXT_MODES or (parsed.mode == "encode" and parsed.split):
        return Path(parsed.workdir)
    from jvae.runs import model_names

    return model_names.folder_of(parsed.workdir)


def _configured(config: ConfigDict, overrides: list[str], rest: list[str]) -> ConfigDict:
    """A config with flags applied and, if it starts from pretrained weights, their sizes and
    tokenizers.
    """
    named = any(".init." in flag for flag in overrides)
    named = named or any(config.get("init", {}).get(role) for role in ("encoder", "decoder"))
    if not named and config.name != "auto":
        return configs.apply_overrides(config, overrides)
    parsed = _flags()
    parsed(["jvae", *_plain(rest)], known_only=True)
    from jvae.runs import start  # imports backbones, which takes a while

    folder = Path(parsed.workdir) if parsed.workdir is not None else Path("runs") / config.name
    return start.configure(config, overrides, folder)


def _values_of(start: str, words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Removes every `--prior.KEY=VALUE` (or another prefix `start`) from a command line; returns
    values by key, and the remaining words.

    A key without a value is `true`.
    """
    values: dict[str, str] = {}
    rest = []
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name.startswith(start):
            values[name.removeprefix(start)] = value if equals else "true"
        else:
            rest.append(word)
    return values, rest


def _plain(words: Sequence[str]) -> list[str]:
    """A command line without the flags that `_values_of` parses."""
    rest = list(words)
    for start in (PRIOR, FINETUNE, CONTROL):
        _, rest = _values_of(start, rest)
    return rest


def _run(config: ConfigDict | None, rest: Sequence[str], argv: Sequence[str]) -> int:
    parsed = _flags()
    of_prior, rest = _values_of(PRIOR, rest)
    of_task, rest = _values_of(FINETUNE, rest)
    of_control, rest = _values_of(CONTROL, rest)
    if "--help" in rest or "-h" in rest:
        print(USAGE + "\n" + parsed.get_help())
        if config is not None:
            from jvae.validation.reference import describe

            print(f"\nKeys of the config, with their values:\n\n{describe(config)}")
        return 0
    words = parsed(["jvae", *rest])[1:]
    if words:
        raise ConfigError(f"unexpected argument {words[0]!r}; flags are written --name=value")
    if config is None and parsed.workdir is None:
        raise ConfigError(f"no config: add --config=optimus, or the --workdir of a run\n\n{USAGE}")

    if parsed.mode == "finetune" and not parsed.task:
        raise ConfigError("which task? Add --task=sst2, rte, mrpc, wnli or another GLUE task")
    if parsed.mode != "finetune" and (parsed.task or of_task):
        raise ConfigError("--task and --finetune.KEY apply only to --mode=finetune")
    if parsed.mode != "control" and of_control:
        raise ConfigError("--control.KEY applies only to --mode=control")
    if parsed.mode == "control" and parsed.label:
        raise ConfigError("--mode=control measures all labels; leave --label out")
    if parsed.mode != "prior":
        name = of_prior.pop("name", parsed.prior)
        if of_prior and not name and not parsed.label:
            raise ConfigError("--prior.KEY needs a fitted prior: add --prior=NAME")
        if (name or parsed.label) and parsed.mode not in UNDER_A_PRIOR:
            flag = f"--prior={name}" if name else f"--label={parsed.label}"
            raise ConfigError(
                f"{flag} has no effect in --mode={parsed.mode}; it applies to "
                f"{', '.join(UNDER_A_PRIOR)}"
            )
        parsed.prior = name
    if (decoding := _decoding(parsed)) and parsed.mode not in TEXT_MODES:
        name = next(iter(decoding))
        raise ConfigError(
            f"--{name} applies to --mode=sample and other text modes; for the samples of an "
            f"evaluation, set --config.decode.{name}"
        )
    # After the flags, so that a wrong one is reported at once.
    from jvae.cli import commands, compile_cache
    from jvae.parallel import processes
    from jvae.runs import priors, workdir

    if parsed.mode in ("train", "eval") and not parsed.dry_run:
        processes.join(parsed.coordinator, parsed.processes, parsed.process)
        if not processes.first():
            logging.getLogger().setLevel(logging.WARNING)
        log.info("allocator: %s", allocator.name())
    if parsed.mode != "compile" and not parsed["topology"].present:
        compile_cache.keep()  # JAX could not load programs for devices that are not here
    if parsed.workdir is not None:
        folder = _folder(parsed)
    else:
        assert config is not None
        folder = Path("runs") / config.name
    if config is None:
        config = workdir.saved_config(folder)
    if parsed.label and not parsed.prior and parsed.mode != "prior":
        parsed.prior = priors.only_labelled(folder)
    if parsed.sweep or parsed.dry_run:
        if parsed.mode != "train" or not parsed.sweep:
            raise ConfigError("--dry_run needs --sweep, and --sweep only trains: drop --mode")
        config_flags = [word for word in argv if word not in rest]
        commands.sweep(config, config_flags, parsed.sweep, folder, parsed.dry_run)
    elif parsed.mode == "train":
        commands.train(config, folder)
    elif parsed.mode == "eval":
        commands.evaluate(config, folder, parsed.prior, parsed.label, of_prior)
    elif parsed.mode == "prior":
        commands.fit_prior(config, folder, of_prior, parsed.prior, parsed.seed)
    elif parsed.mode == "control":
        commands.control(config, folder, parsed.prior, of_prior, of_control)
    elif parsed.mode == "encode" and parsed.split:
        commands.encode_split(config, folder, parsed.split, _options(parsed, of_prior))
    elif parsed.mode == "report":
        commands.report(config, folder)
    elif parsed.mode == "probe":
        commands.probe(config, folder)
    elif parsed.mode == "finetune":
        commands.finetune(config, folder, parsed.task, of_task, parsed.seed)
    elif parsed.mode == "compile":
        commands.compile_ahead(config, folder, parsed.topology, parsed.out)
    elif parsed.mode == "trim":
        commands.trim(config, parsed.out)
    elif parsed.mode == "fit-batch":
        commands.fit_batch(config, folder, parsed.topology if parsed["topology"].present else None)
    else:
        from jvae.cli import text_tools

        text_tools.run(parsed.mode, config, folder, _options(parsed, of_prior))
    return 0


def _options(parsed: flags.FlagValues, of_prior: dict[str, str]) -> Any:
    """The flags of the text modes."""
    from jvae.cli.text_tools import Options

    all_dims = parsed.dims == ["all"]
    if not all_dims and not all(dim.strip().isdigit() for dim in parsed.dims):
        raise ConfigError(
            f"--dims={','.join(parsed.dims)}: expected numbers from 0, such as 0,3,5, or all"
        )
    values = {
        name: getattr(parsed, name)
        for name in Options._fields
        if name not in ("text", "dims", "of_prior", "decode")
    }
    text = tuple(map(_utf8, parsed.text))
    dims = None if all_dims else tuple(int(dim) for dim in parsed.dims)
    return Options(text=text, dims=dims, of_prior=of_prior, decode=_decoding(parsed), **values)


def _decoding(parsed: flags.FlagValues) -> dict[str, object]:
    return {name: value for name in DECODING if (value := parsed[name].value) is not None}


def _utf8(word: str) -> str:
    """A word of the command line; a locale without UTF-8 represents its bytes as surrogates."""
    try:
        return word.encode("ascii", "surrogateescape").decode()
    except UnicodeError:  # already decoded, or not valid UTF-8
        return word


if __name__ == "__main__":
    sys.exit(main())
