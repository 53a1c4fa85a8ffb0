"""Every test sees eight virtual CPU devices, no network, no axes gained by accident, and checks of
shapes at function boundaries (`tests.tools.shapes`).
"""

import os
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = os.environ.get("JVAE_TEST_PLATFORM", "cpu")
_FLAGS = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
if version("jaxlib").startswith("0.10."):  # one that XLA does not know ends the process
    # A training step of one tiny layer compiles in 2 seconds, not in 8.
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join(_FLAGS).strip()
os.environ["HF_HUB_OFFLINE"] = "1"
# Tests compile far more than they run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Many runs of one small config, in this process and in others, compile the same programs.
_COMPILED = Path(__file__).parent.parent / ".pytest_cache" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax  # noqa: E402  the variables above must be set before
import pytest  # noqa: E402

import tests.tools.shapes  # noqa: E402, F401  before jvae is imported

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`fast_on`: a parameter's value or the whole id is one of the names, or the test is slow."""
    for item in items:
        if fast := item.get_closest_marker("fast_on"):
            case = item.callspec  # pyright: ignore[reportAttributeAccessIssue]
            if not {case.id, *map(str, case.params.values())} & set(fast.args):
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def _programs_of_equal_phases_are_one() -> None:
    """Runs of one config in this process, resumed ones too, share what they compile."""
    from jvae.training import program

    compile_phase, kept = program.compile_phase, {}

    def once(run, phase, mesh, begin):
        sections = (run.config.model, phase.objective, phase.optim, phase.noise)
        sections += (run.config.phases,)  # what no phase trains
        train = run.config.train
        key = (
            *(id(run.model), mesh, begin, phase.name, phase.steps, phase.patience, phase.final),
            *(section.to_json() for section in sections),
            *(train.accumulate, train.steps_per_call, *phase.notes),
            run.config.init.frozen_dtype,
            *(run.encoder.fingerprint, run.decoder.fingerprint),
        )
        if key not in kept:
            # The model too, so that its id stays its own.
            kept[key] = (run.model, compile_phase(run, phase, mesh, begin))
        return kept[key][1]

    program.compile_phase = once


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test writes prepared data into the user's cache."""
    os.environ["JVAE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
