"""A run compiles what it needs once: nothing new after the first steps, checks and saves."""

import jax
import pytest

from jvae import config as configs
from jvae.data import grammar
from jvae.runs import metrics
from jvae.training import loop

COMPILED = "/jax/core/compile/backend_compile_duration"
NARROW = ("layers=1", "unroll=1", "width=8", "heads=2", "mlp=8", "positions=32")
SMALL = {
    "optimus": [
        *(f"model.{side}.{value}" for side in ("encoder", "decoder") for value in NARROW),
        *("data.row_tokens=32", "data.tokenizer_kind=word"),
    ],
    # Rows of several lengths are as many programs, so one epoch has to show them all.
    "sri": ["model.decoder.width=4", "model.decoder.hidden=8", "model.chain.steps=2"],
}
CHECK = {"optimus": 8, "sri": 20}  # steps between checks: more than an epoch


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALL)
def test_nothing_compiles_after_the_first_check(family, tmp_path, monkeypatch):
    """Epochs end, validation's last batch is not full, logs and checkpoints come at odd steps."""
    text = tmp_path / "mine.txt"
    text.write_text("".join(f"{sentence.text}\n" for sentence in grammar.corpus("train", 200)))
    check = CHECK[family]
    config = configs.apply_overrides(
        configs.load(family),
        [
            *(*SMALL[family], "data.batch_rows=16", "model.latent=2", "mesh.data=1"),
            "data.workers=0",
            *(f"data.train={text}", f"data.cache={tmp_path / 'cache'}", "optim.warmup_steps=1"),
            *(f"train.steps={3 * check}", f"train.check_every={check}", "train.log_every=3"),
            "train.tensorboard=false",
        ],
    )
    events, at_step = [], {}
    progress = metrics.Writer.progress

    def watched(self, step):
        at_step[step] = len(events)
        progress(self, step)

    def heard(name, *_, **__):
        if name == COMPILED:
            events.append(name)

    monkeypatch.setattr(metrics.Writer, "progress", watched)
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        loop.train(config, tmp_path / "run")
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert list(at_step) == list(range(1, 3 * check + 1)) and at_step[1] > 0
    assert at_step[check + 1] == at_step[3 * check], "something compiled after the first check"
    if family == "optimus":
        assert at_step[2] == at_step[check - 1], "something compiled before the first check"
