"""The language of the embedded corpus: agreement, selection, one derivation per string."""

import itertools
import math
import re
from collections import deque

import pytest

from jvae.data import grammar, lexicon


def labels(text: str) -> dict[str, str]:
    factors = grammar.parse(text)
    assert factors is not None, text
    return {f.name: f.values[i] for f, i in zip(grammar.FACTORS, factors, strict=True)}


# --------------------------------------------------------------------------------------------------
# The language.

POSITIVES = {
    "at dawn two young women in red coats are slowly feeding goats on a farm": {
        "count": "two",
        "who": "woman",
        "look": "young",
        "garment": "coat",
        "colour": "red",
        "tense": "present progressive",
        "manner": "slowly",
        "action": "feed",
        "object": "goats",
        "place": "on a farm",
        "time": "at dawn",
        "order": "time first",
    },
    "a man ate pizza in a kitchen": {
        "count": "one",
        "who": "man",
        "look": "none",
        "garment": "none",
        "colour": "none",
        "tense": "past simple",
        "manner": "none",
        "action": "eat",
        "object": "pizza",
        "place": "in a kitchen",
        "time": "none",
        "order": "none",
    },
    "an energetic child in an orange cap was quietly rowing a canoe near an island last night": {
        "who": "child",
        "look": "energetic",
        "garment": "cap",
        "colour": "orange",
        "tense": "past progressive",
        "manner": "quietly",
        "time": "last night",
        "order": "time last",
    },
    "on sundays several farmers wander with a dog through a forest": {
        "count": "several",
        "tense": "present simple",
        "action": "wander",
        "place": "through a forest",
    },
    "an engineer in a yellow vest happily waters herbs in an orchard every day": {
        "count": "one",
        "action": "water",
        "time": "every day",
    },
}


@pytest.mark.parametrize("text", POSITIVES)
def test_positive(text: str) -> None:
    values = labels(text)
    assert {name: values[name] for name in POSITIVES[text]} == POSITIVES[text]
    assert math.isfinite(grammar.log_prob(text))


# Every sentence is one change away from a sentence of the language, in the second column.
NEGATIVES = {
    # article
    "a artist ate soup in a kitchen": "an artist ate soup in a kitchen",
    "an young man ate soup in a kitchen": "a young man ate soup in a kitchen",
    "a man in a orange coat ate soup in a kitchen": "a man in an orange coat ate soup in a kitchen",
    # number of the noun
    "two man are eating soup in a kitchen": "two men are eating soup in a kitchen",
    "a children was eating soup in a kitchen": "a child was eating soup in a kitchen",
    # number of the verb
    "a man are eating soup in a kitchen": "a man is eating soup in a kitchen",
    "several women was eating soup in a kitchen": "several women were eating soup in a kitchen",
    "two men eats soup in a kitchen": "two men eat soup in a kitchen",
    "a chef serve soup in a kitchen": "a chef serves soup in a kitchen",
    # number of the garment
    "two men in red coat ate soup in a kitchen": "two men in red coats ate soup in a kitchen",
    "a man in a red coats ate soup in a kitchen": "a man in a red coat ate soup in a kitchen",
    "two men in a red coat ate soup in a kitchen": "two men in red coats ate soup in a kitchen",
    # form of the verb
    "a man is ate soup in a kitchen": "a man is eating soup in a kitchen",
    "a man eating soup in a kitchen": "a man is eating soup in a kitchen",
    # tense and time
    "two men are eating soup in a kitchen yesterday": (
        "two men were eating soup in a kitchen yesterday"
    ),
    "every day a man ate soup in a kitchen": "every day a man eats soup in a kitchen",
    "right now a man was eating soup in a kitchen": "right now a man is eating soup in a kitchen",
    # selection
    "a man is eating a guitar in a kitchen": "a man is eating soup in a kitchen",
    "a man is eating soup on a lake": "a man is eating soup in a restaurant",
    "an old boy ate soup in a kitchen": "a little boy ate soup in a kitchen",
    "two elegant toddlers ate soup in a kitchen": "two little toddlers ate soup in a kitchen",
    "a nurse in a red dress ate soup in a kitchen": "a nurse in a red apron ate soup in a kitchen",
    # order and number of the phrases
    "at dawn a man ate soup in a kitchen yesterday": "at dawn a man ate soup in a kitchen",
    "a man slowly is eating soup in a kitchen": "a man is slowly eating soup in a kitchen",
    "a man ate soup": "a man ate soup in a kitchen",
    "a man ate in a kitchen soup": "a man ate soup in a kitchen",
}


@pytest.mark.parametrize("text", NEGATIVES)
def test_negative(text: str) -> None:
    assert set(text.split()) <= set(grammar.vocabulary())
    assert grammar.parse(text) is None
    assert grammar.log_prob(text) == -math.inf
    assert grammar.parse(NEGATIVES[text]) is not None


@pytest.mark.parametrize(
    "text",
    ["", " ", "A man ate soup in a kitchen", "a man ate soup  in a kitchen", "soup soup soup"],
)
def test_strings_outside_the_language(text: str) -> None:
    assert grammar.parse(text) is None


@pytest.mark.parametrize("edge", [" ", "\n", ".", " a"])
def test_nothing_may_precede_or_follow(edge: str) -> None:
    text = "a man ate soup in a kitchen"
    assert grammar.parse(text) is not None
    assert grammar.parse(text + edge) is None
    assert grammar.parse(edge + text) is None


def test_one_foreign_word_is_never_accepted() -> None:
    """Replacing a word by any other either changes the factors or leaves the language."""
    text = "two young men in red coats are slowly eating soup in a kitchen today"
    words, factors = text.split(), grammar.parse(text)
    accepted = 0
    for i, word in itertools.product(range(len(words)), grammar.vocabulary()):
        other = " ".join([*words[:i], word, *words[i + 1 :]])
        parsed = grammar.parse(other)
        if parsed is not None:
            accepted += 1
            assert grammar.realise(parsed) == other
            assert (parsed == factors) == (other == text)
    assert accepted > len(words)


# --------------------------------------------------------------------------------------------------
# One derivation per string.


def test_parse_gives_back_the_factors() -> None:
    for sentence in grammar.corpus("train", 20_000, seed=3):
        assert grammar.parse(sentence.text) == sentence.factors
        assert grammar.log_prob(sentence.text) == sentence.log_prob


def slots() -> list[list[tuple[str, ...]]]:
    """The phrases of each slot, blind to agreement and selection: more than the language."""
    nouns = [word for group in lexicon.PEOPLE for noun in group.nouns for word in noun.split()]
    garments = {
        f"in {article}{colour} {word}"
        for group in lexicon.PEOPLE
        for garment in group.garments
        for word in garment.split()
        for colour in lexicon.COLOURS
        for article in ("", "a ", "an ")
    }
    looks = {look for group in lexicon.PEOPLE for look in group.looks}
    verbs = [word for group in lexicon.ACTIONS for verb in group.verbs for word in verb.split()]
    objects = {phrase for group in lexicon.ACTIONS for phrase in group.objects}
    places = {phrase for group in lexicon.ACTIONS for phrase in group.places}
    times = {
        *lexicon.ANY_TIMES,
        *(time for tense in lexicon.TENSES.values() for time in tense.times),
    }
    table = [
        {"", *times},
        {"a", "an", "two", "three", "several"},
        {"", *looks},
        nouns,
        {"", *garments},
        ["", "is", "are", "was", "were"],
        ["", *lexicon.MANNERS],
        verbs,
        objects,
        places,
        {"", *times},
    ]
    return [sorted({tuple(phrase.split()) for phrase in phrases}) for phrases in table]


def ambiguous(table: list[list[tuple[str, ...]]]) -> bool:
    """Whether two ways through the slots spell one string: the automaton times itself.

    A state is (slot reached, words of its phrase still to come). Two ways differ when some word of
    the string comes from different slots or phrases.
    """

    def steps(state: tuple[int, tuple[str, ...]]):
        slot, rest = state
        if rest:
            yield rest[0], (slot, rest[1:]), None
            return
        for later in range(slot + 1, len(table)):
            for phrase in table[later]:
                if phrase:
                    yield phrase[0], (later, phrase[1:]), (later, phrase)
            if () not in table[later]:
                return

    def final(state: tuple[int, tuple[str, ...]]) -> bool:
        return not state[1] and all(() in phrases for phrases in table[state[0] + 1 :])

    start = ((-1, ()), (-1, ()), False)
    todo, visited = deque([start]), {start}
    while todo:
        left, right, differ = todo.popleft()
        if differ and final(left) and final(right):
            return True
        by_word: dict[str, list] = {}
        for word, state, choice in steps(right):
            by_word.setdefault(word, []).append((state, choice))
        for word, state, choice in steps(left):
            for next_word, other_choice in by_word.get(word, ()):
                pair = (state, next_word, differ or choice != other_choice)
                if pair not in visited:
                    visited.add(pair)
                    todo.append(pair)
    return False


def test_no_string_has_two_derivations() -> None:
    """A proof over the whole language: words determine the phrases, and phrases the values."""
    assert not ambiguous(slots())
    # Auxiliary and verb form determine tense and action. The past simple is alike in both
    # numbers, which the noun distinguishes.
    forms = [
        (tense.auxiliary.split()[plural] if tense.auxiliary else "", word)
        for plural, tense, verb in itertools.product(
            (0, 1),
            lexicon.TENSES.values(),
            (verb.split() for group in lexicon.ACTIONS for verb in group.verbs),
        )
        for word in [verb[("base", "third", "past", "ing").index(tense.form.split()[plural])]]
    ]
    past = sum(len(group.verbs) for group in lexicon.ACTIONS)
    assert len(set(forms)) == len(forms) - past
    nouns = [word for group in lexicon.PEOPLE for noun in group.nouns for word in noun.split()]
    garments = [word for group in lexicon.PEOPLE for g in group.garments for word in g.split()]
    assert len(set(nouns)) == len(nouns)
    assert len(set(garments)) == len(garments)


def test_the_ambiguity_check_finds_an_ambiguity() -> None:
    assert ambiguous([[("a",), ("a", "b")], [("c",), ("b", "c")]])
    assert ambiguous([[(), ("a",)], [(), ("a",)]])
    assert not ambiguous([[("a",), ("a", "b")], [("c",), ("d", "c")]])


def test_articles_inside_phrases_fit_the_next_word() -> None:
    phrases = [p for group in lexicon.ACTIONS for p in (*group.objects, *group.places)]
    for article, letter in re.findall(r"\b(an?) (\w)", " ; ".join(phrases)):
        assert (article == "an") == (letter in "aeiou")
