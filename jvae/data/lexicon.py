"""Words of the embedded corpus: who may look and dress how, what may be done with what and where.

A class is one entry of `PEOPLE` or `ACTIONS`. Every combination inside a class makes a sentence,
none across classes does unless both list the word. Shares are in percent; where none is given, the
words of a row are equally likely.
"""

from typing import NamedTuple

COUNT_PERCENT = {"one": 45, "two": 25, "three": 15, "several": 15}

LOOK_PERCENT = 40  # share of sentences with an adjective before the person
GARMENT_PERCENT = 50  # share with a coloured garment
MANNER_PERCENT = 36  # share with an adverb of manner
TIME_PERCENT = 75  # share with a time phrase, half of them before the subject

COLOURS = ("red", "blue", "green", "yellow", "orange", "white")
MANNERS = ("slowly", "happily", "carefully", "quietly")


class People(NamedTuple):
    """A class of persons. Nouns and garments are "singular plural"."""

    nouns: tuple[str, ...]
    looks: tuple[str, ...]
    garments: tuple[str, ...]


class Actions(NamedTuple):
    """A class of actions. Verbs are "base third past ing"; objects and places are whole phrases."""

    verbs: tuple[str, ...]
    objects: tuple[str, ...]
    places: tuple[str, ...]


class Tense(NamedTuple):
    """How a tense is formed, its share, and the time phrases it admits besides `ANY_TIMES`."""

    percent: int
    auxiliary: str  # "singular plural", empty when there is none
    form: str  # "singular plural", named as the columns of `Actions.verbs`
    times: tuple[str, ...]


ANY_TIMES = ("at dawn", "at sunset")

TENSES = {
    "present progressive": Tense(45, "is are", "ing ing", ("right now", "today")),
    "past progressive": Tense(25, "was were", "ing ing", ("yesterday", "last night")),
    "present simple": Tense(15, "", "third base", ("every day", "on sundays")),
    "past simple": Tense(15, "", "past past", ("yesterday", "last week")),
}

PEOPLE = (
    People(
        nouns=(
            "man men",
            "woman women",
            "tourist tourists",
            "artist artists",
            "neighbor neighbors",
        ),
        looks=("young", "old", "tall", "elegant"),
        garments=("coat coats", "hat hats", "scarf scarves", "suit suits"),
    ),
    People(
        nouns=("boy boys", "girl girls", "child children", "toddler toddlers", "pupil pupils"),
        looks=("little", "shy", "cheerful", "energetic"),
        garments=("shirt shirts", "sweater sweaters", "dress dresses", "cap caps"),
    ),
    People(
        nouns=(
            "farmer farmers",
            "nurse nurses",
            "chef chefs",
            "sailor sailors",
            "engineer engineers",
        ),
        looks=("tired", "strong", "skilled", "experienced"),
        garments=("apron aprons", "jacket jackets", "uniform uniforms", "vest vests"),
    ),
)

ACTIONS = (
    Actions(
        verbs=("eat eats ate eating", "cook cooks cooked cooking", "serve serves served serving"),
        objects=("noodles", "pizza", "soup", "pancakes"),
        places=("in a kitchen", "in a restaurant", "on a balcony", "in a garden"),
    ),
    Actions(
        verbs=("play plays played playing", "tune tunes tuned tuning", "hold holds held holding"),
        objects=("a guitar", "a violin", "a trumpet", "an accordion"),
        places=("on a stage", "in a theater", "at a concert", "in a park"),
    ),
    Actions(
        verbs=(
            "throw throws threw throwing",
            "catch catches caught catching",
            "chase chases chased chasing",
        ),
        objects=("a football", "a frisbee", "a baseball", "a balloon"),
        places=("on a playground", "on a beach", "in a gym", "in a park"),
    ),
    Actions(
        verbs=(
            "feed feeds fed feeding",
            "pet pets petted petting",
            "groom grooms groomed grooming",
        ),
        objects=("goats", "ponies", "lambs", "rabbits"),
        places=("on a farm", "at a zoo", "in a barn", "in a meadow"),
    ),
    Actions(
        verbs=(
            "wash washes washed washing",
            "repair repairs repaired repairing",
            "push pushes pushed pushing",
        ),
        objects=("a truck", "a tractor", "a scooter", "an ambulance"),
        places=("in a garage", "in a driveway", "on a street", "in an alley"),
    ),
    Actions(
        verbs=(
            "study studies studied studying",
            "borrow borrows borrowed borrowing",
            "discuss discusses discussed discussing",
        ),
        objects=("a map", "a novel", "a newspaper", "an atlas"),
        places=("in a library", "in a classroom", "in a bookstore", "on a train"),
    ),
    Actions(
        verbs=(
            "build builds built building",
            "paint paints painted painting",
            "carve carves carved carving",
        ),
        objects=("a chair", "a boat", "a statue", "a toy"),
        places=("in a workshop", "in a shed", "on a porch", "on a beach"),
    ),
    Actions(
        verbs=(
            "plant plants planted planting",
            "water waters watered watering",
            "pick picks picked picking",
        ),
        objects=("roses", "tulips", "tomatoes", "herbs"),
        places=("in a garden", "in a greenhouse", "on a rooftop", "in an orchard"),
    ),
    Actions(
        verbs=(
            "walk walks walked walking",
            "jog jogs jogged jogging",
            "wander wanders wandered wandering",
        ),
        objects=("with a dog", "with a friend", "with a camera", "with an umbrella"),
        places=("along a river", "through a forest", "over a bridge", "across a square"),
    ),
    Actions(
        verbs=(
            "paddle paddles paddled paddling",
            "steer steers steered steering",
            "row rows rowed rowing",
        ),
        objects=("a canoe", "a raft", "a kayak", "a dinghy"),
        places=("on a lake", "near an island", "in a harbor", "down a canal"),
    ),
)
