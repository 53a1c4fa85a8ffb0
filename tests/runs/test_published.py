"""Published models, opened as they are to measure texts."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jvae.errors import WeightsError
from jvae.evals import outside
from jvae.runs import loading, published

WEIGHTS = Path(os.environ.get("JVAE_REAL_WEIGHTS", "")).expanduser()
real = pytest.mark.skipif(
    not (WEIGHTS / "minilm").is_dir(),
    reason="JVAE_REAL_WEIGHTS names no folder with the two published models",
)


def test_models_of_jvae_are_not_published_ones(tmp_path):
    assert not published.is_published("optimus-tiny")
    (tmp_path / "config.json").write_text('{"model": {"family": "lm"}}')
    assert not published.is_published(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert published.is_published(str(tmp_path))


def test_a_name_without_a_slash_can_be_on_the_hub(tmp_path, monkeypatch):
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "gpt2"}')
    monkeypatch.setattr("jvae.hub.file", lambda *_: config)
    assert published.is_published("gpt2")
    assert not published.is_published("optimus-tiny")  # ships with jvae


def test_a_decoder_in_hugging_faces_layout_judges_lines_independently(tmp_path):
    loading.export_backbone("optimus-tiny", tmp_path / "decoder")
    judge = outside.judge(str(tmp_path / "decoder"))
    lines = ["the boy sees a dog .", "a girl runs ."]
    tokens = [len(ids) - 1 for ids in judge.decoder.encode_batch(lines)]
    alone = [np.log(outside.judged(judge, [line]).ppl) for line in lines]
    together = np.log(outside.judged(judge, [*lines, " "]).ppl)
    np.testing.assert_allclose(together, np.average(alone, weights=tokens), rtol=1e-5)
    assert together > 0


POOLING = {"pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    "last, pooling, message",
    [
        ("Dense", POOLING, r"modules.json lists sentence_transformers.models.Dense; only Transf"),
        ("Normalize", {"pooling_mode_weightedmean_tokens": True}, "its pooling is weightedmean;"),
        ("Normalize", {**POOLING, "pooling_mode_max_tokens": True}, "is not stated, or a combin"),
        ("Normalize", POOLING, "has no config.json"),
    ],
)
def test_a_sentence_encoder_with_more_than_a_pooling_is_refused(tmp_path, last, pooling, message):
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": path}
        for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"), (last, f"2_{last}"))
    ]
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(pooling))
    with pytest.raises(WeightsError, match=message):
        published.sentence_encoder(str(tmp_path))


@real
@pytest.mark.slow
def test_a_judge_prefers_english():
    judge = outside.judge(str(WEIGHTS / "smollm2-135m"))
    good = outside.judged(judge, ["A man is playing a guitar on the street."]).ppl
    bad = outside.judged(judge, ["Guitar a the street man on playing is a."]).ppl
    assert 5 < good < bad / 4


@real
@pytest.mark.slow
def test_vectors_of_a_sentence_encoder_compare_meanings():
    embed = published.sentence_encoder(str(WEIGHTS / "minilm"))
    texts = ["A man plays a guitar.", "Someone is playing music.", "The train is late today."]
    a_ed = embed(texts)
    assert a_ed.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(a_ed, axis=1), 1.0, rtol=1e-5)
    near, far = a_ed[0] @ a_ed[1], a_ed[0] @ a_ed[2]
    assert near > 0.4 > 0.2 > far
    np.testing.assert_allclose(embed(texts[::-1])[::-1], a_ed, atol=1e-5)
