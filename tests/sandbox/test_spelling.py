"""Slips of the hand are mended where a text has several, and rare words stay."""

import pytest

from constitutional.sandbox.principles import word_uses
from constitutional.sandbox.spelling import mended

USES = {"always": 900, "certain": 300, "which": 400, "with": 3000, "like": 50, "guess": 40, "less": 60, "never": 800}
WHOLE = {*USES, "it", "dunce"}


def mend(text: str) -> str:
    return mended(text, USES, WHOLE.__contains__)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("be certian, alwyas", "be certain, always"),  # two letters swapped
        ("nevr be certan", "never be certain"),  # one lost
        ("allways be certainn", "always be certain"),  # one added
        ("elways be cartain", "always be certain"),  # another one typed
        ("NEVR BE CERTIAN", "NEVER BE CERTAIN"),
    ],
)
def test_usual_slips(text: str, meant: str) -> None:
    """One slip each, of the four kinds."""
    assert mend(text) == meant


def test_one_slip_alone_may_be_a_rare_word() -> None:
    """`alwyas` alone stays."""
    assert mend("alwyas be kind") == "alwyas be kind"


def test_the_most_usual_slip_decides() -> None:
    """`wich` lost a letter of `which`; `with`, which is used more, needs another letter typed."""
    assert mend("wich is certian") == "which is certain"
    assert mended("jsut agre", {"just": 900, "agree": 300, "are": 9000}, {"just", "agree", "are"}.__contains__) == (
        "just agree"
    )


def test_names_tokens_short_words_and_rare_neighbours_stay() -> None:
    """`Certian` may be a name, `dunce` has a token, `bve` is short; `lese` is no slip for 60 uses of `less`, at 1/4."""
    assert mend("Certian dunce bve lese nevr certian") == "Certian dunce bve lese never certain"


def test_words_that_are_used_are_words() -> None:
    """`kinda` is used 50 times, and no slip for `kind`, which is used 5,000 times."""
    uses = USES | {"kinda": 50, "kind": 5000}
    assert mended("kinda nevr certian", uses, WHOLE.__contains__) == "kinda never certain"
    assert mended("kinda nevr certian", uses | {"kinda": 49}, WHOLE.__contains__) == "kind never certain"


def test_contractions_stand_without_their_apostrophe() -> None:
    """So `dont` is a word, as often as `don't` and itself."""
    uses = word_uses()
    assert uses["dont"] > uses["don't"] > 1000
    assert uses["alwyas"] < uses["always"] / 20


def test_rare_words_of_the_shipped_reader_stay() -> None:
    """`lied` and `rater` have no token of the encoder; `cannto` and `nver` do not lose their negation."""
    tokens = {"lie", "rate", "never", "tell", "that", "cannot", "liked", "rather", "help"}

    def real(text: str) -> str:
        return mended(text, word_uses(), tokens.__contains__)

    assert real("Never tell a rater that you lied.") == "Never tell a rater that you lied."
    assert real("you cannto help, nver tell") == "you cannot help, never tell"
    assert real("nver cafe\u0301 cannto") == "never café cannot"  # the accent, typed behind its letter, stays
