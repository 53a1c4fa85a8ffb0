"""K-step Langevin inference inside a training step, compared with a training step of the same
decoder with z given.

If a forward pass costs 2 units, its backward pass in activations 2 and in parameters 2 more, then a
chain step costs 4 and the update 6, so the ratio is at least (4K + 6) / 6. Sizes are those of the
config; the text is the embedded corpus, the vocabulary size as published.
"""

from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from jvae.api import Batch
from jvae.bench import cases, peers
from jvae.bench.cases import Case, Setting, Subject
from jvae.bench.harness import Work
from jvae.errors import ConfigError
from jvae.parallel.flops import matmul_flops
from jvae.runs import build, schedules
from jvae.training import optim, program, step

PUBLISHED = 20
_LONG = (1, 5, 10, PUBLISHED, 40)
STEPS = {"cpu": (1, 5, PUBLISHED), "gpu": _LONG, "tpu": _LONG}
VOCAB = 10_000  # entries, like Penn Treebank


def floor(k: int) -> float:
    """The smallest possible cost ratio of a training step with K chain steps to one without."""
    return (4 * k + 6) / 6


def inputs(setting: Setting) -> tuple[ConfigDict, Batch]:
    """The config with the benchmark's vocabulary size, and the batch."""
    config = ConfigDict(setting.run.config.to_dict())
    if "chain" not in config.model:
        raise ConfigError(f"langevin: {config.model.family} has no chain; give --config=sri:ptb")
    config.model.decoder.vocab = max(VOCAB, config.model.decoder.vocab)
    return config, setting.fullest()


def works(setting: Setting) -> list[Work]:
    """A plain training step, and one for every K."""
    config, batch = inputs(setting)
    programs = []
    for k in (0, *STEPS[setting.preset.platform]):
        config.model.chain.steps = k
        config.model.annealing.epoch_steps = 0
        train_step, state = _step(config, k)
        arguments = (state, batch, jax.random.key(0))
        work = Work(
            name=f"chain_{k}" if k else "plain",
            call=partial(train_step, *arguments),
            sentences=cases.sentences(batch),
            tokens=cases.useful_tokens(batch),
            shapes=cases.shapes(batch),
            fill=cases.fill(batch),
            program_flops=matmul_flops(train_step.trace(*arguments).jaxpr),
            extra={"k": k} if k else {},
        )
        programs.append(work)
    return programs


def _step(config: ConfigDict, k: int) -> tuple[Any, step.TrainState]:
    objective = ConfigDict(config.objective.to_dict())
    objective.z = "posterior" if k else "zero"
    model = build.build_model(config)
    sampler = model.post.sampler
    params = jax.jit(model.init)(jax.random.key(1))
    tx = optim.build(config.optim.to_dict(), params, config.train.steps)
    train_step = step.make_train_step(
        model,
        program.build_objective(objective),
        schedules.build(objective.beta, config.train.steps),
        tx,
        measure_at=sampler.measure if sampler and k else None,
    )
    return jax.jit(train_step), step.init_state(params, tx)


def compare(records: list[dict[str, Any]]) -> None:
    """Adds the ratio to the plain step, its lower bound, and the ratio of the two."""
    plain = next(record["call_ms"] for record in records if record["program"] == "plain")
    for record in records:
        if "k" in record and "peer" not in record:
            record["ratio"] = record["call_ms"] / plain
            record["ratio_floor"] = floor(record["k"])
            record["over_floor"] = record["ratio"] / record["ratio_floor"]


def beside(setting: Setting) -> list[Work]:
    """The longest published chain, on PyTorch modules."""
    config, batch = inputs(setting)
    return [
        peers.chain(setting, build.model_config(config), batch, PUBLISHED, f"chain_{PUBLISHED}")
    ]


def _case(preset: str) -> Case:
    subject = (Subject(f"sri:{preset}"),)
    return Case({name: subject for name in ("cpu", "gpu", "tpu")}, works, compare, beside)


LSTM = _case("ptb")
TRANSFORMER = _case("transformer")
