"""The command for each `--mode`."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from jvae import extras
from jvae.api import Params, has_latent
from jvae.cli import aot, option_flags, prior_flags, text_tools, training
from jvae.cli import fit_batch as fit_batches
from jvae.cli import sweep as sweeps
from jvae.data.corpus import Corpus
from jvae.errors import CheckpointError, ConfigError, DataError, JvaeError
from jvae.evals import control as label_control
from jvae.evals import evaluation, nlu, nlu_tasks, prior_fit, probing, sri_probe
from jvae.evals.collect import to_host
from jvae.evals.control import ControlRequest
from jvae.evals.split_latents import split_latents
from jvae.parallel import mesh as meshes
from jvae.parallel import processes
from jvae.runs import build, identity, loading, priors, workdir
from jvae.runs import data as run_data
from jvae.runs import trim as trimming
from jvae.training import init_params
from jvae.training.preemption import Stop
from jvae.validation.validate import validate

log = logging.getLogger(__name__)


def train(config: ConfigDict, folder: Path) -> None:
    """Trains or resumes a run, then evaluates the best checkpoint on the test split.

    Raises: Stopped after SIGTERM or SIGINT, once the state is saved.
    """
    outcome = training.run(config, folder, Stop())
    if outcome.before:
        print(f"{folder} is finished; --mode=eval measures it again\n\n{outcome.table}", end="")
    else:
        _show(outcome.table, folder)


def sweep(
    config: ConfigDict, spec: list[str], axes: list[str], folder: Path, dry_run: bool
) -> None:
    """Trains a run for every combination of values, or prints the commands to do so."""
    plan = sweeps.points(config, axes)
    if dry_run:
        print("\n".join(sweeps.launch_lines(spec, plan, folder)))
        return
    extras.require("figures", "--sweep")
    print(f"\n{sweeps.run(config, plan, folder, train)}\n\nFiles: {folder}")


def evaluate(
    config: ConfigDict,
    folder: Path,
    prior: str = "",
    label: str = "",
    of_prior: Mapping[str, str] | None = None,
) -> None:
    """Evaluates the best checkpoint of a run on its test split, optionally under a fitted prior.
    Raises: Stopped.
    """
    with Stop():
        run, mesh, params, step = _trained(config, folder)
        fitted = None
        if prior:
            read = priors.read(folder, prior, priors.weights_digest(to_host(params)))
            fitted = prior_flags.using(read, of_prior or {})
        report = evaluation.evaluate(run, mesh, params, step, fitted=fitted, label=label or None)
        _show(report.table(), folder)


def fit_prior(
    config: ConfigDict, folder: Path, of_prior: Mapping[str, str], name: str, seed: int
) -> None:
    """Fits a prior to the latents of a run's training split. Raises: ConfigError; Stopped."""
    request, options = prior_flags.request(of_prior, name)
    with Stop():
        table = prior_fit.fit_prior(*_trained(config, folder), request, options, seed)
    print(f"\n{table}\n\nFiles: {folder}/{priors.FOLDER}, {folder}/eval")


def control(
    config: ConfigDict,
    folder: Path,
    prior: str,
    of_prior: Mapping[str, str],
    options: Mapping[str, str],
) -> None:
    """Measures generation and transfer by label, under the named priors or all conditional ones.

    Args:
      prior: comma-separated names; empty: all priors fitted with labels.
    Raises: ConfigError; DataError; Stopped.
    """
    extras.require("probes", "--mode=control")
    request = ControlRequest(**option_flags.parsed(ControlRequest, options, "control"))
    names = [name for name in prior.split(",") if name] or priors.labelled(folder)
    if not names:
        priors.only_labelled(folder)  # raises an error that names what is missing
    if of_prior and len(names) > 1:
        raise ConfigError("--prior.KEY applies to one prior: name it with --prior=NAME")
    with Stop():
        run, mesh, params, step = _trained(config, folder)
        weights = priors.weights_digest(to_host(params))
        fitted = [prior_flags.using(priors.read(folder, n, weights), of_prior) for n in names]
        name = "-".join(["control", *names]) if prior else "control"
        table = label_control.control(run, mesh, params, step, fitted, request, name)
    print(f"\n{table}\n\nFiles: {folder}/eval/{name}.*, {folder}/samples/{name}*.txt")


def encode_split(config: ConfigDict, folder: Path, split: str, options: text_tools.Options) -> None:
    """Writes posterior draws of a split, with their statistics. Raises: ConfigError; DataError."""
    if options.text or options.input:
        raise ConfigError("--split and sentences are both given; choose one")
    if not options.samples:
        raise ConfigError("--split needs --samples=K, the posterior draws of each sentence")
    kind = text_tools.format_of(options)
    run, mesh, params, _ = _trained(config, folder)
    if not has_latent(run.model):
        raise ConfigError(f"encode needs a latent, which the model of {folder} does not have")
    weights = priors.weights_digest(params)
    z_nkgz = split_latents(
        run, mesh, params, split, options.samples, weights=weights, seed=options.seed
    )
    texts = [str(text) for text in run.data[split].texts]
    text_tools.write(text_tools.drawn(texts, z_nkgz), kind, options.out)


def probe(config: ConfigDict, folder: Path) -> None:
    """Measures what the latent of a run's best checkpoint encodes about the test labels.

    Raises: Stopped.
    """
    extras.require("probes", "--mode=probe")
    with Stop():
        measure = sri_probe.probe if config.evals.protocol == "sri" else probing.probe
        _show(measure(*_trained(config, folder)).table(), folder)


def finetune(
    config: ConfigDict, folder: Path, task: str, options: Mapping[str, str], seed: int
) -> None:
    """Trains a run's encoder on a language-understanding task and scores it. Raises: ConfigError;
    Stopped.
    """
    extras.require("probes", "--mode=finetune")
    nlu_tasks.named(task)
    request = nlu.Request(**option_flags.parsed(nlu.Request, options, "finetune"))
    with Stop():
        run, mesh, params, step = _trained(config, folder)
        start = _pretrained(run, mesh)
        _show(nlu.finetune(run, mesh, params, step, task, request, start, seed).table(), folder)


def _pretrained(run: build.Run, mesh: Mesh) -> Params | None:
    """The pretrained parameters a run was started from; None if there are none or they are gone."""
    if not init_params.pretrained(run.config):
        return None
    _, where = build.param_shardings(run.model, mesh)
    try:
        return init_params.initial_params(run, where, build.seeds(run.config.seed)["init"])
    except JvaeError as error:
        log.warning("skipping the comparison with the pretrained backbone alone: %s", error)
        return None


def compile_ahead(config: ConfigDict, folder: Path, topology: str, out: str) -> None:
    """Estimates the requirements of a config's programs on slices that are not available.

    Args:
      out: file to append the rows to as JSON lines; empty: none.
    """
    rows = aot.show(aot.compile_for(config, folder, topology), lambda s: print(s, flush=True))
    if out:
        try:
            with Path(out).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        except OSError as error:
            raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None


def trim(config: ConfigDict, out: str) -> None:
    """Writes the pretrained decoder of a config with only the tokens of its training text.

    Raises: ConfigError; DataError; WeightsError.
    """
    if not out:
        raise ConfigError("trim writes a folder: add --out=FOLDER")
    for key, value in (("init.decoder", config.init.decoder), ("data.train", config.data.train)):
        if not value:
            raise ConfigError(f"trim reads {key}, which is empty; set it with --config.{key}=...")
    train = run_data.read_splits(config)[0]["train"]
    texts = train.texts() if isinstance(train, Corpus) else train.text
    sizes = trimming.trim(config.init.decoder, out, texts)
    print(f"{sizes.before:,} -> {sizes.after:,} tokens; use it with --config.init.decoder={out}")


def fit_batch(config: ConfigDict, folder: Path, topology: str | None) -> None:
    """Finds the largest batch that fits, by compilation."""
    for line in fit_batches.fit(config, folder, topology):
        print(line, flush=True)


def _trained(config: ConfigDict, folder: Path) -> tuple[build.Run, Mesh, Params, int]:
    """A run with its best parameters and the step they come from."""
    if not (folder / workdir.CONFIG).is_file():
        raise CheckpointError(f"{folder}: no run here; train it first, or give its --workdir")
    saved = identity.saved(folder)
    if saved is None:
        raise CheckpointError(
            f"{folder}: it has no checkpoint yet; run --mode=train until it saves one"
        )
    workdir.check(folder, config, saved.configs, bool(saved.records))
    validate(config, saved=workdir.saved_config(folder), training=False)
    run = build.open_run(config, folder, saved)
    if processes.first():
        # Not written to the run: its config stays the same when it is measured with other sizes.
        workdir.move(folder, config)
    mesh = meshes.make_mesh_for(run.config.mesh, run.rows.batch_rows)
    return run, mesh, *loading.load_params(run.model, mesh, folder)


def report(config: ConfigDict, folder: Path) -> None:
    """Writes figures of a trained run and one HTML page with all of them, in `report/`."""
    extras.require("figures", "--mode=report")
    from jvae.report.write import write  # matplotlib takes a second to import

    validate(config, saved=workdir.saved_config(folder), training=False)
    print(write(config, folder))


def _show(table: str, folder: Path) -> None:
    if processes.first():
        print(f"\n{table}\n\nFiles: {folder}/eval, {folder}/samples, {folder}/metrics.jsonl")
