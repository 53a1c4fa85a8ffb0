"""Real sentences with real vocabularies; skipped where they are not at hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae import config as configs
from jvae.cli.main import main
from jvae.data.dataset import RowSpec, eval_batches
from jvae.latent.elbo import measure
from jvae.runs import build

SHARED = Path(__file__).parents[3] / "shared"
pytestmark = pytest.mark.skipif(
    not (SHARED / "data/ptb").is_dir(), reason="no Penn Treebank in shared/"
)


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """Flags for a few real sentences, BERT's and GPT-2's vocabularies, and a narrow model."""
    folder = tmp_path_factory.mktemp("ptb")
    lines = (SHARED / "data/ptb/valid.txt").read_text().splitlines()
    flags = []
    for split, part in (("train", lines[:60]), ("valid", lines[60:70]), ("test", lines[70:80])):
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in part))
        flags.append(f"--config.data.{split}={folder}/{split}.txt")
    for side, name in (("encoder", "bert-base-cased"), ("decoder", "gpt2")):
        flags.append(f"--config.data.{side}_tokenizer={SHARED}/tokenizers/{name}")
    return [*flags, "--config.mesh.data=1"]


def test_packed_losses_equal_unpacked_ones(words, tmp_path):
    narrow = [
        f"--config.model.{s}.{k}=16" for s in ("encoder", "decoder") for k in ("width", "mlp")
    ]
    config, _ = configs.from_argv(["--config=optimus:tiny", *words, *narrow])
    run = build.open_run(config, tmp_path / "run")
    params = run.model.init(jax.random.key(0))
    score = jax.jit(lambda batch: measure(run.model, params, batch, jax.random.key(1)))
    longest = {s: int(e.lengths.max()) for s, e in run.data["test"].sides.items()}
    alone = RowSpec(dec_row=longest["dec"], enc_row=longest["enc"], slots=1, batch_rows=10)
    assert run.rows.slots > 3

    def by_id(rows: RowSpec) -> dict[int, tuple[float, float]]:
        actual = {}
        for batch in eval_batches(run.data["test"], rows):
            terms = score(jax.tree.map(jnp.asarray, batch))
            kl_e = np.asarray(terms.kl_egz).sum((1, 2))
            for i, rec, kl in zip(batch.id_e, np.asarray(terms.nll_e), kl_e, strict=True):
                if i >= 0:
                    actual[int(i)] = (rec, kl)
        return actual

    packed, unpacked = by_id(run.rows), by_id(alone)
    assert packed.keys() == unpacked.keys() == set(range(10))
    for i in packed:
        np.testing.assert_allclose(packed[i], unpacked[i], rtol=1e-5)


@pytest.mark.slow
def test_base_takes_a_step(words, tmp_path):
    """The published size on CPU from random weights: one update, a checkpoint, an evaluation."""
    small = (
        "--config.data.batch_rows=2",
        "--config.train.steps=1",
        "--config.evals.samples=1",
        "--config.evals.sentences=2",
        "--config.evals.generate=2",
        "--config.evals.interpolations=1",
        "--config.decode.max_length=8",
        "--config.decode.batch=8",
    )
    folder = tmp_path / "run"
    assert main(["--config=optimus:base", *words, *small, f"--workdir={folder}"]) == 0
    assert (folder / "eval/test.json").is_file()
