"""One stack that reads both sides needs one tokenizer."""

import pytest

from jvae import config
from jvae.data import grammar
from jvae.data.tokenizers import train_word_level
from jvae.errors import ConfigError
from jvae.runs import build


def test_two_tokenizers_for_one_stack_are_refused(tmp_path):
    texts = [s.text for s in grammar.corpus("train", 60)]
    (tmp_path / "text.txt").write_text("".join(f"{text}\n" for text in texts))
    for name, size in (("one", 30), ("two", 40)):
        train_word_level(texts, size).save(tmp_path / name)
    cfg = config.apply_overrides(
        config.load("adavae:tiny"),
        [
            f"data.train={tmp_path}/text.txt",
            f"data.encoder_tokenizer={tmp_path}/one",
            f"data.decoder_tokenizer={tmp_path}/two",
        ],
    )
    with pytest.raises(ConfigError, match="adavae reads both sides with one embedding"):
        build.open_run(cfg, tmp_path / "run")
    same = config.apply_overrides(cfg, [f"data.encoder_tokenizer={tmp_path}/two"])
    assert build.open_run(same, tmp_path / "run").config.model.decoder.vocab == 40
