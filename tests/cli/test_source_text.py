"""A small model from source to text, from training to scores against references."""

import json
import logging

import numpy as np
import pytest

import jvae
from jvae.backbones import LAYOUTS
from jvae.cli.main import main
from jvae.data import grammar
from jvae.pretrained import backbones, files

pytest.importorskip("rouge_score")
SMALL = (
    *("data.batch_rows=4", "data.row_tokens=64", "data.vocab=300", "train.steps=6"),
    *("train.log_every=3", "train.check_every=3", "train.tensorboard=false", "mesh.data=1"),
    *("model.decoder.layers=2", "model.decoder.width=16", "model.decoder.mlp=16"),
    *("model.decoder.unroll=1", "model.decoder.heads=2", "model.latent=4", "evals.samples=3"),
    *("evals.sentences=6", "evals.generate=12", "evals.outputs=3", "evals.interpolations=2"),
    *("decode.method=sample", "decode.repetition_penalty=1.0", "evals.metrics=dialogue"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ablate", ["", ",ablate=no_product", ",ablate=shared", ",stack=bart", ",stack=t5"]
)
def test_pairs_of_one_label(tmp_path, ablate, caplog):
    caplog.set_level(logging.INFO)
    sentences = grammar.corpus("train", 600)
    for split, first, last in (("train", 0, 400), ("valid", 400, 500), ("test", 500, 599)):
        rows = [
            f"{i % 2}\t{sentences[i].text}\t{sentences[i + 1].text}\n" for i in range(first, last)
        ]
        (tmp_path / f"{split}.tsv").write_text("".join(rows))
    words = [f"--config=tasks:paraphrase,data={tmp_path}{ablate}", f"--workdir={tmp_path}/run"]
    values = [
        *SMALL,
        *(value.replace("decoder", "encoder") for value in SMALL if "model.decoder" in value),
    ]
    if "t5" in ablate:
        values += ["model.decoder.head=8", "model.encoder.head=8"]
    values = values if "stack" in ablate else SMALL
    assert main([*words, *(f"--config.{value}" for value in values)]) == 0
    assert "data.keep=0=1 keeps 200 of 400 lines" in caplog.text
    report = json.loads((tmp_path / "run/eval/test.json").read_text())
    rows = report["metrics"]
    assert {"reference_bleu", "reference_bleu_best", "source_self_bleu"} <= set(rows)
    assert {"latent_jaccard", "latent_share", "latent_ignored", "dialogue_bleu_f1"} <= set(rows)
    assert {"reference_rouge_l", "kl", "au_0.01", "self_bleu_5", "bleu_test_5"} <= set(rows)
    assert all(report["definitions"][name] for name in rows)
    assert rows["reference_bleu"]["note"] == "4 sources, one reference, 3 texts each"
    # Every source has its own prior, so KL less MI means nothing; it was shown, and negative.
    assert rows["marginal_gap"]["value"] is None and "from the source" in rows["mi"]["note"]
    outputs = (tmp_path / "run/samples/outputs.txt").read_text().split("\n")
    assert len(outputs) == 12 + 1
    blocks = (tmp_path / "run/samples/outputs_by_source.txt").read_text().split("\n\n")
    targets = {sentences[i].text: sentences[i + 1].text for i in range(501, 599, 2)}
    for block in filter(str.strip, blocks):
        source, reference, *texts = block.strip("\n").split("\n")
        assert reference == f"= {targets[source]}" and len(texts) == 3
    if "stack" in ablate:
        jvae.export_backbone(tmp_path / "run", tmp_path / "out")
        checkpoint = files.open_checkpoint(tmp_path / "out")
        layout = LAYOUTS[ablate.removeprefix(",stack=")].files
        assert backbones.sizes(layout, checkpoint)["width"] == 16
        start = jvae.load(tmp_path / "run").decoder.start_id
        assert checkpoint.config["decoder_start_token_id"] == start
        names = (name.removeprefix("model.") for name in checkpoint.tensors)
        assert {name.split(".")[0] for name in names} == {"shared", "encoder", "decoder"}


@pytest.mark.slow
def test_responses_to_a_dialogue(tmp_path):
    """SpaceFusion from JSON lines of turns and references to ten responses of each context; then an
    Optimus run as its start.
    """
    sentences = [sentence.text for sentence in grammar.corpus("train", 600)]
    for split, first, last in (("train", 0, 400), ("valid", 400, 500), ("test", 500, 590)):
        rows = [
            dict(context=sentences[i : i + 3], responses=sentences[i + 3 : i + 5])
            for i in range(first, last, 4)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = [f"--config=tasks:fusion,data={tmp_path}", f"--workdir={tmp_path}/run"]
    values = [value for value in SMALL if "unroll" not in value and "metrics" not in value]
    sizes = [f"model.encoder.{value}" for value in ("layers=2", "width=16", "mlp=16", "heads=2")]
    flags = [f"--config.{value}" for value in (*values, *sizes)]
    assert main([*words, *flags]) == 0
    rows = json.loads((tmp_path / "run/eval/test.json").read_text())["metrics"]
    assert {"dialogue_bleu_recall", "dialogue_bleu_f1", "kl", "reference_bleu"} <= set(rows)
    assert rows["reference_bleu"]["note"] == "4 sources, 2 references, 3 texts each"
    curves = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    last = next(line for line in reversed(curves) if "train/aux/fuse" in line)
    want = last["train/rec"] + last["train/aux/context"] + last["train/aux/between"]
    np.testing.assert_allclose(last["train/loss"], want + 6 * last["train/aux/fuse"], rtol=1e-5)
    again = [f"--config.init.model={tmp_path}/run", f"--workdir={tmp_path}/again"]
    assert main([words[0], *again, *flags, "--mode=train"]) == 0
