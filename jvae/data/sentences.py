"""Rule-based sentence splitting: needs no model or download and is the same on every machine.

In English and similar languages, a sentence ends at . ! ? or an ellipsis, plus any closing quotes
and brackets, if whitespace and a capital, a digit or an opening mark follow; abbreviations and
initials do not end a sentence. In a document without capitals, whitespace is enough. Chinese and
Japanese end marks need no whitespace. Trained splitters work better on noisy text; for such text,
provide a file with one sentence per line.
"""

import re

_CLOSING = "\"'”’»)\\]"
# A run of end marks is matched only from its beginning, so that time stays linear in its length.
_END = re.compile(rf"(?:(?<![.!?…])[.!?…]++[{_CLOSING}]*+(?=\s)|[。！？]++[」』”’）]*+)")
# Tokenised text has a space before the end mark and around closing quotes.
_LOOSE_CLOSING = re.compile(r"\s+(?:''|[”’»)\]]|\"(?=\s|$))(?=\s|$)")
_OPENING = re.compile(r"[\"'“‘«(\[`¿¡-]*+\s*+\w")
_BLANKS = re.compile(r"\s*")
_FOLLOWER = re.compile(r"\W*(\w{1,8})")
_WORD_CHARS = 32  # longer than any abbreviation with its opening marks


def _words(spelt: str) -> frozenset[str]:
    return frozenset(spelt.split())


_ABBREVIATIONS = _words(
    "mr mrs ms dr prof rev hon gen col capt lt sgt sen rep gov st sr jr messrs mme mlle "
    "vs etc cf al ca approx dept est fig figs eq no nos vol vols pp ed eds inc ltd co corp bros "
    "jan feb mar apr jun jul aug sep sept oct nov dec mt ft ave blvd rd "
    "e.g i.e a.m p.m u.s u.k u.n u.s.a d.c ph.d b.a m.a b.c a.d"
)
# A capital after these abbreviations is as likely to start a new sentence.
_MAY_END = _words("etc al inc ltd co corp jr sr a.m p.m u.s u.k u.n u.s.a d.c ph.d")
_STARTERS = _words("the a an this that these those it he she they we i you in on at but")


def split_sentences(text: str) -> list[str]:
    """Splits a text into sentences, stripped of surrounding whitespace but otherwise unchanged.

    Takes linear time in the length of the text.
    """
    cased = any(c.isupper() for c in text)
    sentences, start = [], 0
    for match in _END.finditer(text):
        end = match.end()
        if match.start() < start:
            continue
        if loose := _LOOSE_CLOSING.match(text, end):
            end = loose.end()
        if _ends(text, start, match, end, cased) and (sentence := text[start:end].strip()):
            sentences.append(sentence)
            start = end
    if rest := text[start:].strip():
        sentences.append(rest)
    return sentences


def _ends(text: str, start: int, match: re.Match[str], end: int, cased: bool) -> bool:
    if match[0][0] in "。！？":
        return True
    rest = _BLANKS.match(text, end).end()  # pyright: ignore[reportOptionalMemberAccess]
    opening = _OPENING.match(text, rest)
    if not opening:
        return rest == len(text)
    first = opening[0][-1]
    if cased and not (first.isupper() or first.isdigit() or not first.isalpha()):
        return first.lower() == first.upper()  # True for scripts without case
    if match[0] != ".":
        return True
    words = text[max(start, match.start() - _WORD_CHARS) : match.start()].split()
    word = words[-1].lstrip("(\"'“‘[").lower() if words and text[match.start() - 1] != " " else ""
    if word in _ABBREVIATIONS:
        follower = _FOLLOWER.match(text, rest)
        return word in _MAY_END and bool(follower and follower[1].lower() in _STARTERS)
    return not (len(word) == 1 and word.isalpha() and word != "i" and cased)
