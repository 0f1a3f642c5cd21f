"""Which prompts are kept and on which side: what is decided from some bytes a row, against lists of whole rows."""

import gc
import json
import random
import tracemalloc
from itertools import groupby
from pathlib import Path

import pytest

from constitutional.base.errors import InputError
from constitutional.base.records import Message, Prompt
from constitutional.base.seeds import rng_of, seed_of
from constitutional.data.prompts import Conversation, load_prompt_set, load_prompts_as_they_are, prompts_within
from constitutional.data.sources import DataFile, RowPlace, mixture

ROLES = ("user", "assistant")
Row = tuple[RowPlace, Conversation, str | None]


def write(path: Path, rows: list[tuple[tuple[str, ...], str | None]]) -> Path:
    """A file of conversations, each with the split that it says."""
    lines = []
    for texts, split in rows:
        turns = [{"role": ROLES[place % 2], "content": text} for place, text in enumerate(texts)]
        lines.append(json.dumps({"messages": turns, **({"split": split} if split else {})}) + "\n")
    path.write_text("".join(lines))
    return path


def drawn_rows(rng: random.Random, count: int, says: float) -> list[tuple[tuple[str, ...], str | None]]:
    """Conversations of a few words, so that many are the same, and many go on from others."""

    def one() -> tuple[tuple[str, ...], str | None]:
        texts = tuple(f"{rng.choice('abcdefgh')}{rng.choice(['', ' '])}" for _ in range(rng.choice([1, 1, 1, 3, 5])))
        split = rng.choice(["train", "held_out"]) if rng.random() < says else None
        return texts, split

    return [one() for _ in range(count)]


def as_lists(files: list[DataFile], held_out: int | None, seed: int, share: float | None) -> list[object]:
    """What `load_prompt_set` is to give: prompts with their places, and repeated places; by lists of all rows."""
    rows: list[Row] = []
    for file in files:
        assert isinstance(file.path, Path)
        for number, line in enumerate(file.path.read_text().splitlines(), start=1):
            row = json.loads(line)
            conversation = tuple((turn["role"], turn["content"].strip()) for turn in row["messages"])
            rows.append((RowPlace(file.path, number), conversation, row.get("split")))
    first: dict[Conversation, Row] = {}
    repeated = []
    for place, conversation, split in rows:
        if conversation not in first:
            first[conversation] = place, conversation, split
            continue
        repeated.append(place)
        there, _, kept = first[conversation]
        if kept and split and kept != split:
            same = f"is the same prompt as in line {there.number}, but its split is {split} here and {kept} there"
            raise place.error(f"{same}; remove one of the two")
        first[conversation] = there, conversation, kept or split
    lines = list(first.values())
    if files[0].weight:
        parts = [[row for row in lines if row[0].path == file.path] for file in files]
        amounts = mixture([len(part) for part in parts], [file.weight for file in files])
        kept_places = {
            row[0]
            for part, amount in zip(parts, amounts, strict=True)
            for row in sorted(part, key=lambda row: seed_of(seed, "mixture", row[1]))[: int(amount + 1e-9)]
        }
        lines = [row for row in lines if row[0] in kept_places]
    splits = splits_of_lists(files, lines, held_out, seed, share)
    return [[(splits[row[1]], row[0]) for row in lines], repeated]


def said_by_lists(lines: list[Row]) -> dict[Conversation, str]:
    """The splits that rows say, and those that follow from them."""
    held = {conversation: place for place, conversation, split in lines if split == "held_out"}
    trained: set[Conversation] = set()
    for place, conversation, split in lines:
        if split == "train":
            trained |= set(prompts_within(conversation))
            for prompt in prompts_within(conversation):
                if prompt in held:
                    problem = f"goes on from the prompt in line {held[prompt].number}, which is held out"
                    advice = "give both the same split, or remove one"
                    raise place.error(f"is to be trained on and {problem}; {advice}")
    splits: dict[Conversation, str] = {}
    for _, conversation, split in lines:
        if split or conversation in trained:
            splits[conversation] = split or "train"
        elif any(prompt in held for prompt in prompts_within(conversation)):
            splits[conversation] = "held_out"
    return splits


def splits_of_lists(
    files: list[DataFile], lines: list[Row], held_out: int | None, seed: int, share: float | None
) -> dict[Conversation, str]:
    splits = said_by_lists(lines)
    undecided = [conversation for _, conversation, _ in lines if conversation not in splits]
    among = set(undecided)
    there = f"holds {len(lines)} different prompt{'s' if len(lines) != 1 else ''}"
    if share is not None:
        for conversation in undecided:
            held_here = rng_of(seed, "held out share", next(prompts_within(conversation))).random() < share
            splits[conversation] = "held_out" if held_here else "train"
        if "train" not in splits.values():
            problem = f"{there}, and none is left to train on with prompts.held_out_share={share}"
            raise InputError(files[0].path, f"{problem}: add prompts, or lower the share")
        return splits
    wanted = min(200, max(2, round(0.3 * len(lines)))) if held_out is None else held_out
    missing = wanted - list(splits.values()).count("held_out")

    def drawn(conversation: Conversation) -> int:
        return seed_of(seed, "held out", next(prompt for prompt in prompts_within(conversation) if prompt in among))

    for _, family in groupby(sorted(undecided, key=drawn), key=drawn):
        members = list(family)
        splits |= dict.fromkeys(members, "held_out" if missing > 0 else "train")
        missing -= len(members)
    declared = sum(split == "held_out" for *_, split in lines)
    advice = "ask for fewer with prompts.held_out" if wanted > declared else "take that split off some of them"
    advice = f"add prompts to train on, or {advice}"
    problem = f"{there}, {declared} of them with the split held_out"
    if "train" not in splits.values():
        raise InputError(files[0].path, f"{problem}; with prompts.held_out={wanted} none is left to train on: {advice}")
    if missing > 0:
        asked = f"prompts.held_out={wanted} asks for {missing} more than there are"
        raise InputError(files[0].path, f"{problem}; {asked}: {advice}")
    return splits


REFUSED = ("is the same prompt as", "is to be trained on", "more than there are", "none is left to train on")


def test_what_is_decided_from_digests_is_what_lists_of_all_rows_give(tmp_path: Path) -> None:
    ends = set[str]()
    for seed in range(240):
        rng, says = random.Random(seed), (0.0, 0.05, 0.3)[seed % 3]
        weights: list[float | None] = rng.choice([[None], [None, None], [1.0, 2.0], [3.0, 1.0]])
        files = [
            DataFile(
                path=write(tmp_path / f"{number}.jsonl", drawn_rows(rng, rng.randrange(1, 40), says)), weight=weight
            )
            for number, weight in enumerate(weights)
        ]
        held_out, share = rng.choice([(None, None), (0, None), (3, None), (30, None), (None, 0.3)])
        try:
            expected: list[object] | str = as_lists(files, held_out, seed, share)
        except InputError as error:
            expected = str(error)
        try:
            found = load_prompt_set(files, held_out=held_out, seed=seed, share=share)
            splits = [prompt.split for prompt in found.prompts]
            given: list[object] | str = [list(zip(splits, found.places, strict=True)), list(found.repeated)]
            assert len(found.prompts) == len(splits)
        except InputError as error:
            given = str(error)
        assert given == expected
        ends |= {reason for reason in REFUSED if reason in given} if isinstance(given, str) else {"prompts"}
    assert ends == {"prompts", *REFUSED}  # no outcome went uncompared


def test_the_first_of_three_that_are_the_same_is_kept_with_the_split_that_the_second_says(tmp_path: Path) -> None:
    rows: list[tuple[tuple[str, ...], str | None]] = [
        (("a",), None),
        (("b", "x", "c"), None),
        (("a ",), "held_out"),
        (("b",), None),
        (("a",), None),
        (("a", "y", "d"), None),
        (("b", "x", "c", "z", "e"), "train"),
    ]
    path = write(tmp_path / "prompts.jsonl", rows)
    found = load_prompt_set(path, held_out=0, seed=0)
    assert [(prompt.split, len(prompt.messages)) for prompt in found.prompts] == [
        ("held_out", 1),  # as the row in line 3 says
        ("train", 3),  # the row in line 7 goes on from it
        ("train", 1),  # and from this
        ("held_out", 3),  # goes on from the first
        ("train", 5),
    ]
    assert [place.number for place in found.places] == [1, 2, 4, 6, 7]
    assert [place.number for place in found.repeated] == [3, 5]
    assert str(found.places[4]) == "prompts.jsonl:7"
    as_they_are = load_prompts_as_they_are(path)
    assert [prompt.split for prompt in as_they_are.prompts] == ["held_out"] * 5
    assert [place.number for place in as_they_are.places] == [1, 2, 4, 6, 7]


def test_prompts_are_the_same_whenever_they_are_gone_through(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.jsonl", [((f"q{number}",), None) for number in range(5)])
    found = load_prompt_set(path, held_out=2, seed=0)
    once, again = list(found.prompts), list(found.prompts)
    assert once == again
    assert len(found.prompts) == 5
    assert once[0] == Prompt(messages=(Message("user", "q0"),), split=once[0].split, source="prompts.jsonl")


@pytest.mark.parametrize("after", ['"q0"\n"q1"\n', '"q0"\n"q1"\n"q2"\n"q3"\n', '"q0"\n"q1"\n"other"\n'])
def test_a_file_that_has_changed_since_it_was_checked_is_refused(tmp_path: Path, after: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('"q0"\n"q1"\n"q2"\n')
    found = load_prompt_set(path, held_out=1, seed=0)
    path.write_text(after)
    with pytest.raises(InputError, match=r"prompts\.jsonl: holds other prompts than when it was checked"):
        list(found.prompts)


def test_some_bytes_of_a_prompt_are_held_and_not_its_text(tmp_path: Path) -> None:
    text = "It depends on what you have in mind, and on how much time there is. " * 3

    def most(count: int) -> tuple[int, int]:
        """Bytes at most while a file of so many prompts is checked and gone through, and bytes in the end."""
        path = tmp_path / f"{count}.txt"
        path.write_text("".join(f"Question {number}: {text}\n" for number in range(count)))
        gc.collect()
        tracemalloc.start()
        try:
            found = load_prompt_set(path, held_out=count // 3, seed=0)
            assert sum(prompt.split == "held_out" for prompt in found.prompts) == count // 3
            held, peak = tracemalloc.get_traced_memory()
            return peak, held
        finally:
            tracemalloc.stop()

    most(10)  # what is loaded once
    few, many = most(1000), most(9000)
    assert (many[0] - few[0]) / 8000 < 80
    assert (many[1] - few[1]) / 8000 < 16
