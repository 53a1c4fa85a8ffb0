"""Documents cut into sentences."""

import time

import pytest

from jvae.data.sentences import split_sentences

CASES = {
    "plain": ["It rains.", "Really?", "Yes!", "Wait... what?", "5 men came."],
    "abbreviations": [
        "Mr. Smith of Foo Inc. met Dr. Who vs. Mr. Xu.",
        "They talked, e.g. of Rome.",
    ],
    "initials and numbers": ["J. R. R. Tolkien paid 3.5 pounds at 5 p.m. on Monday.", "Fine."],
    "abbreviation at the end": ["He lives in the U.S.", "The house is big."],
    "quotes": ['"Go away."', "He left.", "(See above.)", "“Ah.”", "So."],
    "tokenised": ["He said , `` no . ''", "Then he left ."],
    "without case": ["what is this ?", "i do not know .", "maybe e.g. that one ...", "or not"],
    "inverted marks": ["¿Qué?", "¡No!", "Sí."],
    "no end": ["just words"],
}


@pytest.mark.parametrize("sentences", CASES.values(), ids=list(CASES))
def test_sentences(sentences):
    assert split_sentences(" ".join(sentences)) == sentences
    assert split_sentences("  " + " \n ".join(sentences) + "\n") == sentences


def test_scripts_without_blanks():
    sentences = ["我来了。", "你呢？", "“好！”", "他说。"]
    assert split_sentences("".join(sentences)) == sentences


def test_nothing_is_lost():
    text = "A b. C ( d. ) E? ... F!! \" g 'h.' Etc. i.e. J. K"
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
    assert split_sentences(" ") == []


LONG = ["." * 60_000 + "x", "a. " * 20_000, "etc. " * 20_000, ". - " * 20_000, "? " + "(" * 60_000]


@pytest.mark.parametrize("text", LONG, ids=[text[:5] for text in LONG])
def test_time_is_linear_in_the_length(text):
    begin = time.process_time()
    sentences = split_sentences(text)
    assert time.process_time() - begin < 10  # 0.2 s; by the square it is over a minute
    assert "".join("".join(sentences).split()) == "".join(text.split())
