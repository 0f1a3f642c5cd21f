"""The mix goes through columns; here it is held against a mix of whole rows, whatever their number and their form."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import pytest

from constitutional.base import shards
from constitutional.base.errors import ConfigurationError
from constitutional.base.records import Comparison, Judgement, Message, Preference, Prompt, Reading, Verdict
from constitutional.base.shards import RowStream, Shards, read_artifact, write_artifact
from constitutional.base.text import canonical
from constitutional.judging.labelling import combine, decisive
from constitutional.stages import mix
from constitutional.stages.mix import Settings, amounts_of, is_decided, is_held_out, mixed_rows, rank

PRINCIPLES = ("calm", "brief", "kind")
TEXTS = ("Yes.", "No.", "Yes. ", "It is é.", "It is e\u0301.", 'Say "no"\n', "中\U0001f600", "Well\u200b.")


class Case(NamedTuple):
    """What a run mixes."""

    comparisons: list[Comparison]
    judgements: list[Judgement]
    verdicts: list[Verdict]
    people: list[Preference]
    audit: frozenset[str]


def drawn(seed: int) -> Case:
    """A small run of everything that there may be; judgements stand in the order of the comparisons."""
    rng = random.Random(seed)
    case = Case([], [], [], [], frozenset())
    for number in range(rng.randrange(4, 16)):
        turns = [Message("user", f"Question {number}? é")]
        if rng.random() < 0.3:
            turns += [Message("assistant", "So?", extra='{"k": 1}'), Message("user", "Yes.")]
        split: Any = "held_out" if rng.random() < 0.1 else "train"
        prompt = Prompt(messages=tuple(turns), split=split, source="s", info={"kind": "x"} if number % 2 else {})
        for _ in range(rng.randrange(1, 4)):
            a, b = rng.choices(TEXTS, k=2)
            row = Comparison(prompt=prompt, a=f"{a} {rng.randrange(3)}", b=f"{b} {rng.randrange(3)}", model="m")
            if row not in case.comparisons:
                case.comparisons.append(row)
                case.judgements.extend(judged(row, rng))
                case.verdicts.extend(voted(row, rng))
    case.people.extend(of_a_file(number % 7, rng) for number in range(rng.randrange(12)))
    return case._replace(audit=frozenset(row.id for row in case.comparisons if rng.random() < 0.1))


def judged(row: Comparison, rng: random.Random) -> list[Judgement]:
    made = []
    for principle in PRINCIPLES[: rng.randrange(4)]:
        for judge in ("labeler", "second")[: rng.randrange(1, 3)]:
            first, second = (rng.choice((None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1 / 3)) for _ in range(2))
            p_a = None if first is None or second is None else (first + second) / 2
            above = ("brief",) if principle == "calm" and rng.random() < 0.7 else ()
            readings = (
                Reading(order="a_first", rationale="", p_a=first, problem="no" if first is None else None),
                Reading(order="b_first", rationale="", p_a=second, problem="no" if second is None else None),
            )
            made.append(
                Judgement(
                    comparison=row.id,
                    principle=principle,
                    principle_text=f"Be {principle}.",
                    labeler="l",
                    judge=judge,
                    readings=readings,
                    p_a=p_a,
                    conflict=p_a is not None and ((first or 0) - 0.5) * ((second or 0) - 0.5) < 0,
                    weight=rng.choice((0.0, 0.3, 1.0, 2.5)),
                    gives_way_to=above,
                )
            )
    return made


def voted(row: Comparison, rng: random.Random) -> list[Verdict]:
    if rng.random() < 0.6:
        return []
    return [
        Verdict(
            comparison=row.id,
            rater=rater,
            choice=rng.choice(("a", "a", "b", "tie", "both_bad", "skip")),
            strength=rng.randrange(1, 5),
            principle=rng.choice((None, None, "calm")),
            gold=rng.choice((None, None, None, None, None, "a")),
            withdrawn=rng.random() < 0.05,
        )
        for rater in ("ann", "ben", "cem")[: rng.randrange(1, 4)]
    ]


def of_a_file(number: int, rng: random.Random) -> Preference:
    a, b = rng.sample(("One.", "Two.", "One. "), 2)
    prompt = Prompt(messages=(Message("user", f"Elsewhere {number}?"),), source="file")
    return Preference(
        prompt=prompt,
        chosen=a,
        rejected=b,
        probability=rng.choice((0.5, 0.7, 1.0)),
        source=rng.choice(("human", "human", "ai")),
        principles=rng.choice(((), (), ("helpful",), ("safe",))),
        rests_on=(f"file:{number}",),
        comparison=f"{number:016x}",
        weight=rng.choice((1.0, 1.0, 0.5)),
    )


def usable(verdicts: Sequence[Verdict], counts: Counter[str]) -> dict[str, list[Verdict]]:
    votes: defaultdict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.gold is not None:
            counts["votes on gold items"] += 1
        elif not verdict.withdrawn and verdict.choice == "skip":
            counts["verdicts that skip"] += 1
        elif not verdict.withdrawn:
            votes[verdict.comparison].append(verdict)
    return votes


def whole_rows(case: Case, settings: Settings, seed: int) -> tuple[list[Preference], dict[str, int]]:
    """The same by objects, all of them in memory. Estimates of raters' errors are not in it."""
    counts: Counter[str] = Counter()
    votes = usable(case.verdicts, counts)
    judged_by: defaultdict[str, list[Judgement]] = defaultdict(list)
    for judgement in case.judgements:
        judged_by[judgement.comparison].append(judgement)
    ai, people = list[Preference](), list[Preference]()
    for row in case.comparisons:
        own = judged_by[row.id]
        if row.id in case.audit:
            continue
        if canonical(row.a) == canonical(row.b):
            counts["comparisons of equal texts"] += 1
        elif row.id in votes:
            counts["AI judgements overridden by a person"] += bool(own)
            people += by_people(row, votes[row.id], settings, counts)
        else:
            ai += by_ai(row, own, settings, counts)
    brought = mix._brought_together(case.people, counts, keep=settings.ties == "keep")
    people += [row for row in brought if row.source == "human"]
    ai += [row for row in brought if row.source == "ai"]
    counts["preferences on evaluation prompts"] += sum(row.prompt.split == "held_out" for row in ai + people)
    sides = [
        [
            sorted(
                (
                    row
                    for row in rows
                    if row.prompt.split == "train" and is_held_out(row.prompt.messages, settings, seed) == held
                ),
                key=lambda row: rank(row.source, row.comparison, seed),
            )
            for held in (False, True)
        ]
        for rows in (ai, people)
    ]
    amounts = amounts_of(len(sides[0][0]), len(sides[1][0]), settings)
    made = list[Preference]()
    kept = []
    for name, rows, (train, held_out), used in zip(("AI", "human"), (ai, people), sides, amounts, strict=True):
        kept.append(min(len(held_out), mix.MOST_HELD_OUT))
        counts[f"{name} preferences available"] = len(train) + len(held_out)
        counts[f"{name} preferences used"] = used
        counts[f"{name} preferences beyond the share or the total"] = len(train) - used
        counts[f"{name} preferences held out"] = kept[-1]
        counts[f"held-out {name} preferences beyond {mix.MOST_HELD_OUT}"] = len(held_out) - kept[-1]
        split: dict[int, Any] = {id(row): "train" for row in train[:used]}
        split |= {id(row): "held_out" for row in held_out[: kept[-1]]}
        made += [row.model_copy(update={"split": split[id(row)]}) for row in rows if id(row) in split]
    counts["preferences in train"] = sum(amounts)
    counts["preferences in held_out"] = sum(kept)
    return made, dict(counts)


def by_ai(row: Comparison, own: Sequence[Judgement], settings: Settings, counts: Counter[str]) -> list[Preference]:
    read, p_a = decisive(own), combine(own)
    unreadable = sum(judgement.p_a is None for judgement in own)
    counts["judgements unreadable"] += unreadable
    if p_a is None:
        counts[f"comparisons {'unreadable' if unreadable else 'not judged'}"] += 1
        return []
    if not is_decided(p_a, settings.margin):
        conflict = any(judgement.conflict for judgement in read)
        counts[f"comparisons undecided, {'position conflict' if conflict else 'near a half'}"] += 1
        return []
    counts["comparisons decided"] += 1
    return [preferred(row, p_a, "ai", [judgement.principle for judgement in read], [each.id for each in read])]


def by_people(row: Comparison, votes: Sequence[Verdict], settings: Settings, counts: Counter[str]) -> list[Preference]:
    opinions = [vote for vote in votes if vote.choice != "both_bad"]
    strengths = [settings.strengths[vote.strength - 1] for vote in opinions]
    values = [
        {"a": strength, "b": 1 - strength, "tie": 0.5}[vote.choice]
        for vote, strength in zip(opinions, strengths, strict=True)
    ]
    p_a = fmean(values or [0.5])
    if abs(p_a - 0.5) < 1e-9:
        choices = {vote.choice for vote in votes}
        why = next(iter(choices)) if len(choices) == 1 else "conflict"
        if settings.ties == "leave_out" or choices == {"both_bad"}:
            counts[f"verdicts without a preference: {why}"] += 1
            return []
        counts[f"verdicts that come out even, kept: {why}"] += 1
        p_a = 0.5
    counts["comparisons decided"] += 1
    counts["comparisons decided by Dawid and Skene's estimate"] += 0
    principles = [vote.principle for vote in opinions if vote.principle]
    return [preferred(row, p_a, "human", principles, [vote.id for vote in opinions])]


def preferred(
    row: Comparison, p_a: float, source: Literal["ai", "human"], principles: list[str], rests_on: list[str]
) -> Preference:
    chosen, rejected = (row.a, row.b) if p_a > 0.5 else (row.b, row.a)
    return Preference(
        prompt=row.prompt,
        chosen=chosen,
        rejected=rejected,
        probability=min(1.0, max(p_a, 1 - p_a)),
        source=source,
        principles=tuple(dict.fromkeys(principles)),
        rests_on=tuple(rests_on),
        comparison=row.id,
    )


def refused(case: Case, settings: Settings, seed: int) -> str:
    """Why there is too little of a source; empty where there is enough."""
    try:
        whole_rows(case, settings, seed)
    except ConfigurationError as error:
        return str(error)
    return ""


SETTINGS = [
    Settings(held_out_share=0),
    Settings(margin=0.1, held_out_share=0.3),
    Settings(ties="keep", held_out_share=0.5),
    Settings(human_ratio=0, total=3, held_out_share=0.2),
    Settings(human_ratio=0.4, held_out_share=0.2),
    Settings(human_ratio=1, held_out_share=0.1),
    Settings(human_ratio=0.3, mode="additive", ties="keep"),
]


@pytest.mark.parametrize("sharded", [False, True])
def test_the_columns_give_the_preferences_and_counts_of_whole_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, sharded: bool
) -> None:
    monkeypatch.setattr(mix, "MOST_HELD_OUT", 3)
    monkeypatch.setattr("os.fsync", lambda _: None)  # hundreds of files that nobody needs
    seen: Counter[str] = Counter()
    for seed in range(60):
        case, settings = drawn(seed), SETTINGS[seed % len(SETTINGS)]
        comparisons: RowStream[Comparison] = case.comparisons
        judgements: RowStream[Judgement] = case.judgements
        if sharded and len(case.comparisons) > 5 and len(case.judgements) > 5:
            monkeypatch.setattr(shards, "LARGE", 5)
            monkeypatch.setattr(shards, "AT_ONCE", 2)
            comparisons = Shards(write_artifact(tmp_path, f"comparisons{seed}", comparisons)[0], Comparison)
            judgements = Shards(write_artifact(tmp_path, f"judgements{seed}", judgements)[0], Judgement)
        refusal = refused(case, settings, seed)
        if refusal:
            with pytest.raises(ConfigurationError, match=re.escape(refusal)):
                mixed_rows(comparisons, judgements, case.verdicts, case.people, settings, seed, audit=case.audit)
            seen["refused"] += 1
            continue
        expected, counts = whole_rows(case, settings, seed)
        found = mixed_rows(comparisons, judgements, case.verdicts, case.people, settings, seed, audit=case.audit)
        assert list(found.counts.items()) == list(counts.items())
        name = f"preferences{seed}"
        path, count = write_artifact(tmp_path, name, found.preferences)
        rows = list(read_artifact(path, Preference))
        assert count == len(expected)
        assert rows == expected
        assert [row.id for row in rows] == [row.id for row in expected]
        # The file is the one that objects make, byte for byte.
        (tmp_path / "objects").mkdir(exist_ok=True)
        other, _ = write_artifact(tmp_path / "objects", name, expected)
        for file, same in zip(sorted([path, *path.glob("*")]), sorted([other, *other.glob("*")]), strict=True):
            assert file.is_dir() or file.read_bytes() == same.read_bytes()
        seen.update({why for why, count in counts.items() if count})
    # Everything that may happen did.
    assert {
        "refused",
        "AI judgements overridden by a person",
        "comparisons of equal texts",
        "comparisons not judged",
        "comparisons undecided, near a half",
        "comparisons undecided, position conflict",
        "comparisons unreadable",
        "held-out AI preferences beyond 3",
        "human comparisons judged by several principles",
        "human comparisons rated more than once",
        "preferences on evaluation prompts",
        "verdicts that come out even, kept: conflict",
        "verdicts that skip",
        "verdicts without a preference: tie",
        "votes on gold items",
    } <= seen.keys()


def test_a_preference_of_columns_is_written_as_by_hand(tmp_path: Path) -> None:
    prompt = Prompt(messages=(Message("user", "Why?"),), source="s")
    row = Comparison(prompt=prompt, a="A é", b='B "b"', model="m")
    reading = Reading(order="a_first", rationale="", p_a=0.25)
    judgement = Judgement(
        comparison=row.id, principle="calm", principle_text="Be.", labeler="l", readings=(reading,), p_a=0.25
    )
    found = mixed_rows([row], [judgement], [], [], Settings(held_out_share=0), 0)
    path, count = write_artifact(tmp_path, "preferences", found.preferences)
    assert count == 1
    line = path.read_text(encoding="utf-8")
    identity, _, fields = line.partition(", ")
    canonical_json = (
        f'{{"chosen":"B \\"b\\"","comparison":"{row.id}","principles":["calm"],"probability":0.75,'
        '"prompt":{"info":{},"messages":[{"content":"Why?","role":"user"}],"source":"s","split":"train"},'
        '"rejected":"A é",'
        f'"rests_on":["{judgement.id}"],"source":"ai","split":"train"}}'
    )
    assert identity == f'{{"id": "{sha256(canonical_json.encode()).hexdigest()[:16]}"'
    assert fields == (
        '"prompt": {"messages": [{"role": "user", "content": "Why?"}], "split": "train", "source": "s", "info": {}}, '
        '"chosen": "B \\"b\\"", "rejected": "A é", "probability": 0.75, "source": "ai", "principles": ["calm"], '
        f'"rests_on": ["{judgement.id}"], "comparison": "{row.id}", "split": "train"}}\n'
    )


def test_a_mix_of_shards_decides_hand_made_edges_as_one_of_json_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pair(number: int, b: str = "No.") -> Comparison:
        prompt = Prompt(messages=(Message("user", f"{number}?"),))
        return Comparison(prompt=prompt, a="Yes.", b=b, model="m")

    def said(row: Comparison, p_a: float | None, principle: str = "calm", **more: object) -> Judgement:
        readings = (Reading(order="a_first", rationale="", p_a=p_a, problem=None if p_a is not None else "no"),)
        words = {"comparison": row.id, "principle": principle, "principle_text": "Be.", "labeler": "l"}
        return Judgement.model_validate({**words, "readings": readings, "p_a": p_a, **more})

    rows = [pair(number) for number in range(9)] + [pair(9, " Yes. "), pair(10)]
    judgements = [
        said(rows[0], 0.5),  # a tie
        said(rows[1], 0.6),  # at the margin, which is enough
        said(rows[2], 0.59),  # within it
        said(rows[3], 0.9, conflict=True, weight=0.5),  # a judge and another, (0.45 + 0.2) / 1.5 = 0.4333
        said(rows[3], 0.2, judge="second"),
        said(rows[4], 0.9, gives_way_to=("kind",)),  # overridden: kind alone decides
        said(rows[4], 0.3, "kind"),
        said(rows[5], None),  # one cannot be read, the other decides
        said(rows[5], 0.2, "kind"),
        said(rows[6], None),  # unreadable
        said(rows[8], 0.8),  # a person says otherwise
        said(rows[9], 0.8),  # equal texts
        said(rows[10], 0.8, weight=0),  # counts for nothing, so not judged, as rows[7]
    ]
    votes = [Verdict(comparison=rows[8].id, rater="ann", choice="b", strength=2)]
    settings = Settings(margin=0.1, held_out_share=0)
    found = mixed_rows(rows, judgements, votes, [], settings, 0)
    path, _ = write_artifact(tmp_path, "small", found.preferences)
    made = list(read_artifact(path, Preference))
    assert [(row.comparison, row.chosen, row.principles) for row in made] == [
        (rows[1].id, "Yes.", ("calm",)),
        (rows[4].id, "No.", ("kind",)),
        (rows[5].id, "No.", ("kind",)),
        (rows[8].id, "No.", ()),
    ]
    assert [row.probability for row in made] == [0.6, 0.7, 0.8, 0.8]
    assert {why: count for why, count in found.counts.items() if count and "available" not in why} == {
        "comparisons undecided, near a half": 2,
        "comparisons undecided, position conflict": 1,
        "judgements unreadable": 2,
        "comparisons unreadable": 1,
        "comparisons not judged": 2,
        "comparisons decided": 4,
        "AI judgements overridden by a person": 1,
        "comparisons of equal texts": 1,
        "AI preferences used": 3,
        "human preferences used": 1,
        "preferences in train": 4,
    }
    monkeypatch.setattr(shards, "LARGE", 5)
    monkeypatch.setattr(shards, "AT_ONCE", 3)
    large: RowStream[Comparison] = Shards(write_artifact(tmp_path, "comparisons", rows)[0], Comparison)
    of_them: RowStream[Judgement] = Shards(write_artifact(tmp_path, "judgements", judgements)[0], Judgement)
    again = mixed_rows(large, of_them, votes, [], settings, 0)
    other, _ = write_artifact(tmp_path, "large", again.preferences)
    assert other.read_bytes() == path.read_bytes()
    assert list(again.counts.items()) == list(found.counts.items())
