"""The reporting card for measurements of a run."""

import json
from pathlib import Path

from jvae import config as configs
from jvae.evals import text as texts
from jvae.evals.card import Card
from jvae.evals.settings import EvalConfig
from jvae.runs import build
from jvae.runs.provenance import commit


def table(folder: Path, step: int, split: str = "test") -> str | None:
    """The table that `evaluate` wrote for the parameters of a step; None if there is none."""
    try:
        report = json.loads((folder / "eval" / f"{split}.json").read_text(encoding="utf-8"))
        if report["card"]["weights"] == _weights(step):
            return (folder / "eval" / f"{split}.txt").read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError):  # missing or incomplete file
        pass
    return None


def _weights(step: int) -> str:
    return f"step {step}"


def card_of(run: build.Run, evals: EvalConfig, step: int, split: str) -> Card:
    """The card for measurements of one split."""
    cfg, data = run.config, run.data[split]
    return Card(
        commit=commit(),
        config=configs.flatten(cfg),
        weights=_weights(step),
        data=[{"name": f.path, "sha256": f.sha256, "lines": f.lines} for f in data.lines.files],
        tokenizers={"encoder": run.encoder.fingerprint, "decoder": run.decoder.fingerprint},
        preset=evals.label,
        seen_in_train_pct=texts.seen_share(data.texts, run.data["train"].texts),
        seeds={"config": cfg.seed, "evals": evals.seed},
        dropped={"sentences": sum(data.lines.dropped.values()), "reasons": data.lines.dropped},
        special_tokens={"start": run.decoder.start_id, "end": run.decoder.end_id},
        decode=dict(cfg.decode),
        dtype=build.model_config(cfg).decoder.dtype,
    )
