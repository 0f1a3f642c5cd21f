import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from constitutional.sandbox import principles, reader
from constitutional.sandbox.teacher import FAMILIES, MEANINGS
from scripts import build_reader
from scripts.build_reader import Case, Example, Read
from tests.sandbox.test_principles import held_out, near_pairs


def test_an_epoch_holds_all_opposed_wordings_some_plain_ones_and_texts_of_two_principles() -> None:
    made = build_reader.examples(random.Random(1))
    texts = {example.text for example in made if len(example.families) == 1}
    opposed = {text for family in MEANINGS for text in principles.opposed_wordings(*family)}
    assert 0.65 < len(texts & opposed) / len(opposed) < 0.8  # the others are typed with slips, or in haste
    plain = {text for family in MEANINGS for text in principles.plain_wordings(*family)}
    assert 0.65 * build_reader.PLAIN < len(texts & plain) / len(plain) < 0.8 * build_reader.PLAIN
    two = [example for example in made if len(example.families) == 2]
    assert len(two) / build_reader.JOINED == pytest.approx(0.6, abs=0.05)
    assert all(first[0] != second[0] for first, second in (example.families for example in two))
    assert near_pairs([example.text for example in made], held_out()) == []
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
    logits = torch.zeros(1, len(MEANINGS) + 1)
    logits[0, 0] = math.log(3)  # 3 of 23
    logits[0, -1] = math.log(4)  # two wishes with 4 of 5
    smooth = 0.03
    share = 1 / len(MEANINGS)
    odds = [3.0, *[1.0] * 20]
    target = [(1 - smooth) * (0.5 * (index in (0, 3))) + smooth * share for index in range(21)]
    meanings = -sum(t * math.log(o / 23) for t, o in zip(target, odds, strict=True))
    loss = build_reader.loss_of(logits, [Example("x", first, second)])
    assert float(loss) == pytest.approx(meanings - 0.5 * math.log(4 / 5), abs=1e-5)


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


def made_up(*, right: bool, own: float) -> Case:
    """A text that the encoder reads as the first meaning with odds of e, and the model as it with odds of e^own."""
    logits = torch.full((1, len(MEANINGS) + 1), -200.0)
    logits[0, 0], logits[0, 1] = 1.0, 0.0
    return Case(
        "Spare me the sermon.",
        MEANINGS[0] if right else MEANINGS[1],
        logits,
        [own, 0.0, *[-200.0] * (len(MEANINGS) - 2)],
    )


def test_calibration_is_the_sharpness_under_which_the_truth_is_most_probable(monkeypatch: pytest.MonkeyPatch) -> None:
    # 3 of 4 are right: the odds should be 3, so the sharpness is log 3, in steps of 0.1 and 0.05
    found = [made_up(right=True, own=1.0)] * 3 + [made_up(right=False, own=1.0)]
    monkeypatch.setattr(build_reader, "cases", lambda *_: found)
    rule = build_reader.calibrate()
    assert rule.sharpness + rule.own_share == pytest.approx(math.log(3), abs=0.05)
    assert rule.sure_from == pytest.approx(0.75, abs=0.01)  # a warning for one of them would be for all
    assert rule.sharpness_alone == pytest.approx(math.log(3), abs=0.03)
    assert rule.sure_from_alone == pytest.approx(0.75, abs=0.01)


def test_the_model_s_own_reading_counts_where_it_tells_right_from_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [made_up(right=True, own=4.0)] * 3 + [made_up(right=False, own=-4.0)]
    monkeypatch.setattr(build_reader, "cases", lambda *_: found)
    assert build_reader.calibrate().own_share == pytest.approx(0.3)  # as much as there may be
    assert MEANINGS[0] in FAMILIES


def read(right: bool, *probabilities: float, two: bool = False) -> list[Read]:
    return [Read(right, probability, two) for probability in probabilities]


def test_no_more_right_readings_are_flagged_than_the_allowed_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_reader, "RIGHT_FLAGGED", 0.2)  # 2 of 10
    made = [*read(True, 0.6, 0.91, 0.9239, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99), *read(False, 0.55, 0.93)]
    assert build_reader.sure_from([*made, *read(True, 0.99)]) == 0.923  # 0.6 and 0.91 are below
    assert build_reader.sure_from([*made, *read(True, 0.99, two=True)]) == 0.91  # one is flagged already
