"""Parameters that no phase trains: two bytes each in a step, and once in a run's folder."""

import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvae
from jvae import config as configs
from jvae.api import Batch, Side
from jvae.cli.main import main
from jvae.data import grammar
from jvae.parallel import mesh as meshes
from jvae.runs import build, phases
from jvae.runs.checkpoint import Checkpoints
from jvae.runs.workdir import saved_config
from jvae.training import loop, program
from jvae.training.preemption import Stop, Stopped
from jvae.tree import named_leaves

AROUND = (("/lora/", None, None, 0), ("^posterior/", None, None, 0), ("/(memory|offset)/",))
STACK = ("layers=2", "width=16", "heads=2", "mlp=16", "positions=64", "lora.rank=2")
SMALL = (
    *("model.latent=4", "mesh.data=1", "optim.warmup_steps=1", "init.frozen_dtype=bfloat16"),
    *("train.steps=6", "train.check_every=2", "train.log_every=1", "train.tensorboard=false"),
    *("data.row_tokens=32", "data.batch_rows=4", "data.tokenizer_kind=word", "data.vocab=0"),
    *("evals.samples=1", "evals.sentences=4", "evals.generate=4", "evals.interpolations=0"),
)


def config_of(spec: str = "optimus", *more: str, trainable=AROUND):
    config = configs.load(spec)
    sides = [side for side in ("encoder", "decoder") if side in config.model]
    stacks = [f"model.{side}.{value}" for side in sides for value in STACK]
    config = configs.apply_overrides(config, [*SMALL, *stacks, *more]).unlock()
    config.optim.trainable = trainable
    return config


def program_of(config, index: int = 0) -> program.Program:
    """The steps of a phase, with nothing read and nothing compiled."""
    for side in ("encoder", "decoder"):
        if side in config.model:
            config.model[side].vocab = 40
    reader = types.SimpleNamespace(fingerprint="any", unk_id=0, pad_id=0)
    model = build.build_model(config)
    run = build.Run(config, Path(), reader, reader, {}, None, model, {}, [])  # type: ignore[arg-type]
    mesh = meshes.make_mesh(config.mesh, jax.local_devices()[:1])
    return program.compile_phase(run, phases.resolve(config)[index], mesh, 0)


def nbytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def counted(current: program.Program) -> tuple[int, int]:
    """Frozen and trained parameters."""
    sizes = {path: leaf.size for path, leaf in named_leaves(current.abstract.params).items()}
    frozen = sum(size for path, size in sizes.items() if path in current.frozen)
    return frozen, sum(sizes.values()) - frozen


COUNTERS = 4 * 4  # bytes of the steps of state and optimizer


def test_a_state_has_two_bytes_of_what_is_frozen_and_twelve_of_what_trains():
    current = program_of(config_of())
    frozen, trained = counted(current)
    assert frozen > 5 * trained > 0
    assert nbytes(current.abstract) <= 2 * frozen + 12 * trained + COUNTERS
    moments = [path for path in named_leaves(current.abstract.opt_state) if "/mu/" in path]
    paths = named_leaves(current.abstract.params)
    assert {path.partition("/mu/")[2] for path in moments} == paths.keys() - current.frozen


def side(rows: int, length: int) -> Side:
    return Side(*[jax.ShapeDtypeStruct((rows, length), jnp.int32)] * 3)


@pytest.mark.slow
def test_so_does_a_compiled_step():
    current = program_of(config_of())
    rows, slots = 4, 3
    scored = jax.ShapeDtypeStruct((rows, 8), jnp.bool_)
    ids = jax.ShapeDtypeStruct((rows * slots,), jnp.int32)
    batch = Batch(side(rows, 8), side(rows, 8), None, scored, ids)  # type: ignore[arg-type]
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = current.train_step.lower(current.abstract, batch, key).compile()
    frozen, trained = counted(current)
    most = 2 * frozen + 12 * trained + COUNTERS + nbytes(batch) + 8
    assert most - 64 < compiled.memory_analysis().argument_size_in_bytes <= most
    assert nbytes(compiled.out_info[0]) == nbytes(current.abstract)


def test_what_a_later_phase_trains_is_not_frozen():
    config = config_of("adavae", trainable=())
    names = {part.path for part in program_of(config, 1).plan.parts if part.from_step is None}
    for index in (0, 1):  # the first trains everything
        current = program_of(config, index)
        assert current.frozen == frozenset() and names
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(current.abstract.params))


def test_step_sizes_that_are_learned_between_updates_are_not_frozen():
    rules = (("^decoder/offset/", None, None, 0),)
    config = config_of("sri:transformer", "model.chain.schedule=learned", trainable=rules)
    frozen = program_of(config).frozen
    assert frozen and "posterior/size" not in frozen


def test_a_float32_run_keeps_its_number_types():
    current = program_of(config_of("optimus", "init.frozen_dtype=float32"))
    assert current.frozen
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(current.abstract.params))


class StopAfter(Stop):
    """Stops a training after a number of steps."""

    def __init__(self, steps: int):
        super().__init__()
        self._steps = steps

    def asked(self, done: int) -> str | None:
        return "SIGTERM" if done == self._steps else None


KILLED = """
import os, signal, sys
from jvae import config as configs
from jvae.runs import metrics
from jvae.training import loop
plain = metrics.Writer.progress
def progress(self, step):
    plain(self, step)
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
metrics.Writer.progress = progress
from pathlib import Path
config = configs.from_json(Path(sys.argv[1]).read_text())
loop.train(config, Path(sys.argv[2]))
"""


def state(folder: Path) -> dict[str, bytes]:
    with Checkpoints(folder, read_only=True) as ckpts:
        arrays, meta = ckpts.arrays()
    return {path: array.tobytes() for path, array in arrays.items()} | {
        "position": str(meta["position"]).encode()
    }


@pytest.mark.slow
def test_a_run_on_frozen_stacks_from_its_start_to_its_export(tmp_path):
    text = tmp_path / "mine.txt"
    lines = [sentence.text for sentence in grammar.corpus("train", 200)]
    text.write_text("".join(f"{line}\n" for line in lines))
    config = config_of("optimus", f"data.train={text}", f"data.cache={tmp_path / 'cache'}")
    loop.train(config, tmp_path / "whole")
    once = next((tmp_path / "whole/ckpt/frozen").iterdir())
    assert once.name == "0"
    frozen_dtype = saved_config(tmp_path / "whole").init.frozen_dtype
    assert frozen_dtype == "bfloat16"

    # Stopped, moved and resumed; killed and resumed: bit for bit the unbroken run.
    with pytest.raises(Stopped):
        loop.train(config, tmp_path / "first", StopAfter(3))
    shutil.move(tmp_path / "first", tmp_path / "moved")
    loop.train(config, tmp_path / "moved")
    assert state(tmp_path / "moved") == state(tmp_path / "whole")
    (tmp_path / "config.json").write_text(configs.to_json(config))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "config.json"), str(tmp_path / "dead")]
    assert subprocess.run(command, env=dict(os.environ)).returncode == -signal.SIGKILL
    loop.train(config, tmp_path / "dead")
    assert state(tmp_path / "dead") == state(tmp_path / "whole")

    # Measured, sampled, and started from.
    assert main([f"--workdir={tmp_path / 'moved'}", "--mode=eval"]) == 0
    vae = jvae.load(tmp_path / "moved")
    narrow = {path for path, leaf in named_leaves(vae.params).items() if leaf.dtype == jnp.bfloat16}
    assert "decoder/embed/token/table" in narrow and not any("/lora/" in path for path in narrow)
    fine = config_of("optimus", f"data.train={text}", f"init.model={tmp_path / 'moved'}")
    done = loop.train(fine, tmp_path / "fine")
    assert named_leaves(done.params)["decoder/layers/mlp/up/kernel"].dtype == jnp.bfloat16

    # Exported with its additions in the kernels: another tree, the same function.
    jvae.export(tmp_path / "moved", tmp_path / "export")
    merged = jvae.load(tmp_path / "export")
    assert not any("/lora/" in path for path in named_leaves(merged.params))
    np.testing.assert_allclose(merged.encode(lines[:8]), vae.encode(lines[:8]), atol=2e-5)
    z = vae.encode(lines[:8])
    np.testing.assert_allclose(merged.nll(lines[:8], k=2), vae.nll(lines[:8], k=2), rtol=1e-4)
    assert merged.decode(z) == vae.decode(z)
