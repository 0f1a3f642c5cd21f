import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from constitutional.sandbox import principles, reader, understand
from constitutional.sandbox.reader import READ, Scores
from constitutional.sandbox.teacher import FAMILIES, MEANINGS, NOTHING
from scripts import build_reader
from scripts.build_reader import Case, Example, Read
from scripts.sandbox_training.corpus import Family
from tests.sandbox.test_principles import near_pairs


def test_an_epoch_holds_all_opposed_wordings_some_plain_ones_and_texts_of_two_principles() -> None:
    made = build_reader.examples(random.Random(1))
    texts = {example.text for example in made if len(example.families) == 1}
    opposed = {text for family in READ for text in principles.opposed_wordings(*family)}
    terse = {text for family in FAMILIES for text in principles.terse_wordings(*family)}
    nothing = set(principles.plain_wordings(*NOTHING))
    for whole in (opposed, terse, nothing):
        assert 0.65 < len(texts & whole) / len(whole) < 0.8  # the others are typed with slips, or in haste
    plain = {text for family in FAMILIES for text in principles.plain_wordings(*family)}
    assert 0.65 * build_reader.PLAIN < len(texts & plain) / len(plain) < 0.8 * build_reader.PLAIN
    several = [example.families for example in made if len(example.families) > 1]
    assert len(several) / build_reader.JOINED == pytest.approx(0.6, abs=0.05)
    three = [families for families in several if len(families) == 3]
    assert len(three) / build_reader.JOINED == pytest.approx(0.6 * build_reader.LISTED / 3, abs=0.03)
    assert all(len({trait for trait, _ in families}) == len(families) for families in several)
    assert near_pairs([example.text for example in made], principles.held_out_wordings()) == []
    again = build_reader.examples(random.Random(1))
    assert [example.text for example in again] == [example.text for example in made]


def test_slips_change_a_few_letters_within_words() -> None:
    rng = random.Random(2)
    text = "Never praise the person."
    slipped = {build_reader.with_slips(rng, text, 3) for _ in range(200)}
    assert len(slipped) > 50
    assert all(abs(len(made) - len(text)) <= 3 for made in slipped)
    assert all(made.startswith("N") and made.endswith(".") for made in slipped)
    assert build_reader.with_slips(rng, "I a b.", 3) == "I a b."


def test_three_in_ten_texts_are_typed_with_slips_and_half_of_these_in_haste() -> None:
    rng = random.Random(5)
    text = "Don't praise Bob or his question."
    typed = [build_reader.typed(rng, text) for _ in range(1000)]
    assert typed.count(text) == pytest.approx(700, abs=50)
    hasty = [made for made in typed if made.islower()]
    assert len(hasty) == pytest.approx(150, abs=40)
    assert "dont praise bob or his question." in hasty  # without a slip
    assert all("'" not in made for made in hasty)


def test_two_wishes_share_the_target() -> None:
    first, second = MEANINGS[0], MEANINGS[3]
    logits = torch.zeros(1, len(READ) + 1)
    logits[0, 0] = math.log(3)  # 3 of 27
    logits[0, -1] = math.log(4)  # two wishes with 4 of 5
    smooth = 0.03
    share = 1 / len(READ)
    odds = [3.0, *[1.0] * 24]
    target = [(1 - smooth) * (0.5 * (index in (0, 3))) + smooth * share for index in range(25)]
    meanings = -sum(t * math.log(o / 27) for t, o in zip(target, odds, strict=True))
    loss = build_reader.loss_of(logits, [Example("x", first, second)])
    assert float(loss) == pytest.approx(meanings - 0.5 * math.log(4 / 5), abs=1e-5)


def test_three_wishes_share_it_too_and_are_more_than_one() -> None:
    logits = torch.zeros(1, len(READ) + 1)
    logits[0, [0, 3, 5]] = math.log(6)  # 18 of 40
    logits[0, -1] = math.log(4)
    target = [(0.97 * (index in (0, 3, 5)) / 3) + 0.03 / 25 for index in range(25)]
    odds = [6.0 if index in (0, 3, 5) else 1.0 for index in range(25)]
    meanings = -sum(t * math.log(o / 40) for t, o in zip(target, odds, strict=True))
    loss = build_reader.loss_of(logits, [Example("x", MEANINGS[0], MEANINGS[3], MEANINGS[5])])
    assert float(loss) == pytest.approx(meanings - 0.5 * math.log(4 / 5), abs=1e-5)


def test_a_list_has_one_mark_between_all_its_texts() -> None:
    rng = random.Random(6)
    made = {build_reader.listed(rng, ["Be brief.", "No praise.", "Never lecture"]) for _ in range(300)}
    assert {"Be brief. No praise. Never lecture", "Be brief, no praise, never lecture."} < made
    assert "- Be brief\n- No praise\n- Never lecture" in made
    assert [build_reader.lowered(text) for text in ("Be brief", "I ask", "I'll ask", "GDPR: no leaks")] == [
        "be brief",
        "I ask",
        "I'll ask",
        "GDPR: no leaks",
    ]
    assert not any(", " in text and "; " in text for text in made)


class SmallNetwork(torch.nn.Module):
    """Stands in the place of the reader: what it makes of a text depends on its length."""

    def __init__(self, most: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = torch.nn.Linear(1, 4), torch.nn.Linear(4, len(READ) + 1)
        self.most = most

    def forward(self, texts: list[str]) -> torch.Tensor:
        """Until it has been asked too often."""
        self.most -= 1
        if self.most < 0:
            raise KeyboardInterrupt
        lengths = torch.tensor([[float(len(text))] for text in texts])
        logits: torch.Tensor = self.head(torch.nn.functional.dropout(self.encoder(lengths), 0.5))
        return logits


def test_a_training_that_is_stopped_goes_on_as_if_it_had_not_been(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def trained(most: int, name: str) -> dict[str, torch.Tensor]:
        network = SmallNetwork(most)
        build_reader.learn(network, 0, tmp_path / name)  # type: ignore[arg-type] # it needs as much as this has
        assert network.most == 0
        return network.state_dict()

    examples = [Example("x" * length, MEANINGS[length % 7]) for length in range(1, 41)]
    monkeypatch.setattr(build_reader, "examples", lambda _: examples)
    monkeypatch.setattr(build_reader, "BATCH", 4)  # 20 steps in two epochs
    monkeypatch.setattr(build_reader, "KEPT_EVERY", 6)
    whole = trained(20, "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(15, "stopped")
    again = trained(8, "stopped")  # from step 12 on
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())


def test_other_texts_meanings_or_settings_are_another_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    made = build_reader.examples(random.Random(0))
    monkeypatch.setattr(build_reader, "examples", lambda _: made)
    recipes = [build_reader.recipe(), build_reader.recipe()]
    monkeypatch.setattr(build_reader, "examples", lambda _: [Example(made[0].text, NOTHING, NOTHING), *made[1:]])
    recipes.append(build_reader.recipe())
    monkeypatch.setattr(build_reader, "RATE", 1e-3)
    recipes.append(build_reader.recipe())
    assert recipes[0] == recipes[1]
    assert len(set(recipes)) == 3


def test_batches_hold_every_text_once() -> None:
    made = [Example("x" * length, MEANINGS[0]) for length in range(100)]
    batched = list(build_reader.batches(random.Random(0), made))
    assert sorted(len(example.text) for batch in batched for example in batch) == list(range(100))
    assert [len(batch) for batch in batched].count(build_reader.BATCH) == 3


def test_what_is_written_is_read_as_it_was_trained(tmp_path: Path) -> None:
    assert reader.read(["Be brief."])  # what a process has read before is of use to a training, too
    torch.manual_seed(3)
    trained = build_reader.Reader(torch.float32).eval()
    for change in trained.changed.values():
        torch.nn.init.normal_(change.B, std=0.02)
    assert len(trained.changed) == 7 * (reader.LAYERS - reader.UNCHANGED)
    texts = ["Spare me the sermon.", "Keep it short and get to the point, will you?"]
    save_file(trained.changes(), tmp_path / "0.safetensors")
    file = reader.encoder_file()
    assert file is not None
    with torch.no_grad():
        written, before = reader.network(file, tmp_path / "0.safetensors")(texts), trained(texts)
        assert torch.allclose(written, before, atol=0.01)
        for change in trained.changed.values():
            change.B.zero_()
        assert not torch.allclose(written, trained(texts), atol=0.01)


def made_up(
    right: bool, text: str = "Spare me the sermon.", *, meaning: Family = MEANINGS[0], odds: float = 1.0
) -> Case:
    """A text that the encoder reads as a meaning, with odds of e to this power, and the model with odds of e."""
    other = MEANINGS[0] if meaning == MEANINGS[1] else MEANINGS[1]
    meanings = [{meaning: -0.1, other: -2.0}.get(each, -200.0) for each in READ]
    own = [{meaning: 1.0, other: 0.0}.get(each, -200.0) for each in MEANINGS]
    return Case(text, meaning if right else other, Scores(tuple(meanings), odds, 0.0), own)


def test_a_reading_is_as_probable_as_it_is_often_right(monkeypatch: pytest.MonkeyPatch) -> None:
    # of the short texts 3 of 4 are right, of the long ones 9 of 10
    short = [made_up(True)] * 3 + [made_up(False)]
    long = [made_up(True, "word " * 50)] * 9 + [made_up(False, "word " * 50)]
    found = 10 * short + 4 * long
    monkeypatch.setattr(build_reader, "cases", lambda *_: found)
    monkeypatch.setattr(build_reader, "RIDGE", 0.0)
    rule = build_reader.calibrate()
    for case, right in ((short[0], 0.75), (long[0], 0.9)):
        probable = understand.probabilities(case.text, case.own, case.scores, rule, case.parts)
        assert max(probable) == pytest.approx(right, abs=0.001)
    assert rule.sure_from == pytest.approx(0.75, abs=0.002)  # a warning for one of the short ones would be for all
    # all in all 66 of 80 are right: the odds should be 66/14, and the sharpness its logarithm, in steps of 0.05
    assert rule.sharpness_alone == pytest.approx(math.log(66 / 14), abs=0.03)
    assert rule.sure_from_alone == pytest.approx(66 / 80, abs=0.01)


def test_every_sign_has_a_weight_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    (seek,) = (meaning for meaning in MEANINGS if meaning == ("flattery", "seek"))
    # right ones of ten, by evidence of 1 and of 3, for a wish to seek and for nothing
    rates = {(MEANINGS[0], 1.0): 6, (MEANINGS[0], 3.0): 9, (seek, 1.0): 4, (NOTHING, 1.0): 8}
    found = [
        made_up(number < right, "word", meaning=meaning, odds=odds)
        for (meaning, odds), right in rates.items()
        for number in range(10)
    ]
    monkeypatch.setattr(build_reader, "RIDGE", 0.0)
    rule = reader.Calibration(build_reader.weights_of(found), 1.0, 0.5, 0.5, two_from=1.0, split_from=1.0)
    for case in found:
        rate = rates[case.scores.likeliest, case.scores.evidence] / 10
        assert understand.confidence(case.text, case.scores, case.parts, rule) == pytest.approx(rate, abs=0.002)


def test_what_parts_say_has_weights_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    (flatter,) = (meaning for meaning in MEANINGS if meaning == ("flattery", "avoid"))
    turned = ("flattery", "seek")
    # of texts in parts 9 of 10 are right where one confirms the reading, and 5 of 10 where one says the opposite, too
    says = {
        meaning: Scores(tuple(0.0 if each == meaning else -200.0 for each in READ), 1.0, 0.0)
        for meaning in (flatter, turned)
    }
    groups = {9: understand.Parts((says[flatter],) * 2), 5: understand.Parts((says[flatter], says[turned]))}
    found = [
        made_up(number < right, "word", meaning=flatter)._replace(parts=parts)
        for right, parts in groups.items()
        for number in range(10)
    ]
    monkeypatch.setattr(build_reader, "RIDGE", 0.0)
    rule = reader.Calibration(build_reader.weights_of(found), 1.0, 0.5, 0.5, two_from=1.0, split_from=1.0)
    for right, parts in groups.items():
        probable = understand.confidence("word", found[0].scores, parts, rule)
        assert probable == pytest.approx(right / 10, abs=0.002)


def test_texts_that_ask_for_nothing_known_are_no_matter_for_the_bound() -> None:
    about_nothing = made_up(True)._replace(family=NOTHING)
    unknown = made_up(True)._replace(family=("rudeness", "seek"))
    rule = reader.Calibration((0.0, 1.0, *[0.0] * 6), 1.0, 0.5, 0.5, two_from=1.0, split_from=1.0)
    made = build_reader.readings([about_nothing, unknown, made_up(True), made_up(False)], rule)
    assert [reading.right for reading in made] == [True, False]
    assert made[0].probability == pytest.approx(math.e / (1 + math.e))


def read(right: bool, *probabilities: float, two: bool = False) -> list[Read]:
    return [Read(right, probability, two) for probability in probabilities]


def test_no_more_right_readings_are_flagged_than_the_allowed_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_reader, "RIGHT_FLAGGED", 0.2)  # 2 of 10
    made = [*read(True, 0.6, 0.91, 0.9239, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99), *read(False, 0.55, 0.93)]
    assert build_reader.sure_from([*made, *read(True, 0.99)]) == 0.923  # 0.6 and 0.91 are below
    assert build_reader.sure_from([*made, *read(True, 0.99, two=True)]) == 0.91  # one is flagged already
