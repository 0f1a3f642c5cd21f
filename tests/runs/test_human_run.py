"""Comparisons made by people elsewhere, from their file through a whole run."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest

from constitutional.base.errors import ConfigurationError, WaitingError
from constitutional.base.progress import Progress
from constitutional.base.records import Comparison, Judgement, Message, Preference, Split, SpotCheck
from constitutional.cli import main as cli
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.engines.settings import EngineSettings
from constitutional.runs.collection import line_of
from constitutional.runs.compose import compose
from constitutional.runs.folder import RunStore
from constitutional.runs.pipeline import stages_of
from constitutional.runs.runner import run
from constitutional.runs.settings import RunConfig
from constitutional.runs.status import describe
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import MixSummary, RewardSummary
from tests.scripted_run import STAGES, SUMMARIES_OF

HH_RLHF = Path(__file__).resolve().parents[3] / "shared/data/hh-rlhf/harmless-base-pairs.jsonl.gz"


def transcripts(*turns: str, chosen: str, rejected: str) -> str:
    """A line of such a file: two whole conversations, the human's and the assistant's turns by turns."""
    speakers = ["Human" if number % 2 == 0 else "Assistant" for number in range(len(turns))]
    before = "".join(f"\n\n{speaker}: {said}" for speaker, said in zip(speakers, turns, strict=True))
    return json.dumps({"chosen": f"{before}\n\nAssistant: {chosen}", "rejected": f"{before}\n\nAssistant: {rejected}"})


PEOPLE = [
    transcripts("How do you do?", chosen="Well, thank you.", rejected="Go away."),
    transcripts("Hi", "Hello!", "Which is larger: 7 or 9?", chosen="9", rejected="Human: you\n\ntell me."),
    transcripts("a", "b", "c", "d", "e", chosen="f", rejected="g"),
    transcripts("Sing.", chosen="La.", rejected="Human:"),
    transcripts("Dance.", chosen="I cannot.", rejected="No!"),
    transcripts("Why blue?", chosen="Because.", rejected="Why not?"),
    transcripts("Same?", chosen="Same.", rejected="Same. "),  # of equal texts
    transcripts("A secret question", chosen="x", rejected="y"),  # about a prompt that is kept for evaluation
    transcripts("Which?", chosen="This one.", rejected="That one."),  # two people who
    transcripts("Which?", chosen="That one.", rejected="This one."),  # contradict each other
    json.dumps({"chosen": "\n\nHuman: 1\n\nAssistant: x", "rejected": "\n\nHuman: 2\n\nAssistant: y"}),
    transcripts("Hum.", chosen="Hm.", rejected=""),  # a reply that says nothing
]
"""Six that can be used, in lines 1 to 6, and six that cannot."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "people.jsonl").write_text("\n".join(PEOPLE), encoding="utf-8")
    prompts = [{"prompt": f"Question {number}", "split": "train"} for number in range(8)]
    prompts.append({"prompt": "A secret question", "split": "held_out"})
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), encoding="utf-8")
    (tmp_path / "ours.yaml").write_text("name: Ours\nprinciples:\n  - {id: calm, text: Stay calm.}\n")
    return tmp_path


def configured(folder: Path, *overrides: str) -> RunConfig:
    return compose(
        [
            *(f"folder={folder}/runs", f"constitution.file={folder}/ours.yaml"),
            *("prompts=file", f"prompts.path={folder}/prompts.jsonl", "prompts.held_out=1"),
            *(
                "critique_revise.rounds=1",
                "sample_pairs.samples=2",
                "label.method=logprobs",
                "mix.margin=0",
                "until=mix",
            ),
            *("label=schema", f"mix.human={folder}/people.jsonl", *overrides),
        ]
    )


class Asked(NamedTuple):
    store: RunStore
    said: str
    answered: int
    """Requests that a model answered."""

    @property
    def preferences(self) -> list[Preference]:
        return self.store.read("preferences", Preference)

    def sources(self, split: Split) -> Counter[str]:
        return Counter(preference.source for preference in self.preferences if preference.split == split)


def go(config: RunConfig) -> Asked:
    """The run with scripted models, in which SFT changes nothing. No two replies are alike, and no label is a tie."""

    def rule(request: Request) -> Completion | str:
        digest = hashlib.sha256(repr(request).encode()).hexdigest()[:8]
        if request.choices:
            others = [-2.5] * (len(request.choices) - 1)
            return Completion("", "choices", (-1.0 - int(digest, 16) / 2**32, *others))
        return f"Reply {digest}."

    def sft(_settings: object, context: StageContext) -> None:
        context.output("sft_model").mkdir()
        (context.output("sft_model") / "config.json").write_text("{}")
        context.write("sft_examples", ())
        context.summarise(SUMMARIES_OF["sft_model"])

    engine, stream = ScriptedEngine(rule), StringIO()

    def opener(_settings: EngineSettings) -> ScriptedEngine:
        return engine

    stages = [replace(stage, run=sft) if stage.name == "sft" else stage for stage in stages_of(config)]
    store = run(config, stages=stages, opener=opener, progress=Progress(stream))
    return Asked(store, stream.getvalue(), engine.count)


@pytest.mark.parametrize(
    ("overrides", "ai", "human"),
    [
        # There are eight of the AI's, one for each prompt to train on, and six of people's. By the seed, Question 6 and
        # people's lines 1, 4 and 6 are held out: seven and three are left.
        ([], 7, 3),
        (["mix.human_ratio=0"], 3, 0),  # three in all, as people's are, whatever the share
        (["mix.human_ratio=0.3"], 2, 1),
        (["mix.human_ratio=1"], 0, 3),
        (["mix.human_ratio=0", "mix.total=7"], 7, 0),
        (["mix.human_ratio=0.5", "mix.total=6"], 3, 3),
        (["mix.human_ratio=1", "mix.total=2"], 0, 2),
        (["mix.human_ratio=0.125", "mix.mode=additive"], 7, 1),  # 7 · 0.125 / 0.875 = 1 beside all of the AI's
        (["mix.human_ratio=0.5", "mix.mode=additive"], 7, 3),  # 7 are wanted, and there are 3
        (["mix=half_human", "mix.margin=0"], 1, 2),  # of three, 1.5 are rounded up
        (["mix=all_human", "mix.margin=0"], 0, 3),
    ],
)
def test_a_run_trains_on_as_many_of_peoples_preferences_as_it_is_told(
    folder: Path, overrides: Sequence[str], ai: int, human: int
) -> None:
    found = go(configured(folder, *overrides))
    assert found.sources("train") == Counter(ai=ai, human=human)
    assert found.sources("held_out") == Counter(ai=1, human=3)
    counts = found.store.summary("mix", MixSummary).counts
    assert (counts["AI preferences used"], counts["human preferences used"]) == (ai, human)
    assert (counts["AI preferences available"], counts["human preferences available"]) == (8, 6)
    assert (counts["AI preferences held out"], counts["human preferences held out"]) == (1, 3)
    assert (counts["preferences in train"], counts["preferences in held_out"]) == (ai + human, 4)
    assert counts["human rows with equal texts"] == 1
    assert counts["human rows on evaluation prompts"] == 1
    assert counts["human rows whose transcripts differ before the last reply"] == 1
    assert counts["human comparisons undecided"] == 1
    assert counts["human rows with an empty message"] == 1


def test_every_preference_says_whose_it_is_and_what_it_rests_on(folder: Path) -> None:
    found = go(configured(folder))
    judged = {judgement.comparison for judgement in found.store.read("judgements", Judgement)}
    ai = [preference for preference in found.preferences if preference.source == "ai"]
    human = [preference for preference in found.preferences if preference.source == "human"]
    assert {preference.principles for preference in ai} == {("calm",)}
    assert {preference.comparison for preference in ai} == judged
    assert all(0.5 < preference.probability < 1 for preference in ai)  # soft, as the labeler gave it
    assert {preference.principles for preference in human} == {()}  # nobody asked them by principle
    assert [preference.rests_on for preference in human] == [(f"people.jsonl:{line}",) for line in range(1, 7)]
    assert {preference.probability for preference in human} == {1.0}


def test_a_conversation_of_several_turns_reaches_the_preferences_as_it_was(folder: Path) -> None:
    by_line = {
        preference.rests_on[0]: preference
        for preference in go(configured(folder)).preferences
        if preference.source == "human"
    }
    second, third = by_line["people.jsonl:2"], by_line["people.jsonl:3"]
    assert second.prompt.messages == (
        Message("user", "Hi"),
        Message("assistant", "Hello!"),
        Message("user", "Which is larger: 7 or 9?"),
    )
    assert (second.chosen, second.rejected) == ("9", "Human: you\n\ntell me.")
    assert [(message.role, message.content) for message in third.prompt.messages] == [
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
        ("user", "e"),
    ]


def test_other_shares_in_one_folder_ask_no_model_again_and_hold_out_the_same(folder: Path) -> None:
    found = [
        go(configured(folder, f"name=share{share}", f"mix.human_ratio={share}", "mix.held_out_share=0.5"))
        for share in (0, 0.5, 1)
    ]
    # The principle; a draft, a critique and a revision of eight prompts; two responses to a prompt; their pair
    # in both orders.
    assert [each.answered for each in found] == [1 + 8 * 3 + 8 * 2 + 8 * 2, 0, 0]
    held_out = [[preference for preference in one.preferences if preference.split == "held_out"] for one in found]
    assert held_out[0] == held_out[1] == held_out[2]
    assert Counter(each.source for each in held_out[0]) == Counter(ai=3, human=3)  # Questions 0, 4 and 6
    # Three in all, as people's are to train on.
    assert [each.sources("train") for each in found] == [Counter(ai=3), Counter(ai=1, human=2), Counter(human=3)]


def test_a_run_ends_with_the_stage_that_it_is_told_and_goes_on_from_there(folder: Path) -> None:
    names = [stage.name for stage in STAGES]
    until_sft, until_mix = (names[: names.index(last) + 1] for last in ("sft", "mix"))
    first = go(configured(folder, "until=sft"))
    assert list(first.store.stages) == until_sft
    assert first.said.splitlines()[-1] == "run first is done until sft: 25 model calls asked, 0 reused from the journal"
    second = go(configured(folder))
    assert list(second.store.stages) == until_mix
    assert second.said.count("done before, used again") == len(until_sft)
    third = go(configured(folder, "until=prompts"))
    assert list(third.store.stages) == until_mix  # nothing is taken away


def test_a_last_stage_that_is_none_is_refused_with_those_there_are(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r'until is "rewards", but should be one of prompts, .*, reward, dpo'):
        go(configured(folder, "until=rewards"))
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("words", [["mix=half_human"], ["mix=all_human"], ["mix=bai2022"], ["mix.human_ratio=0.1"]])
def test_a_share_of_people_without_their_file_is_refused_before_anything_runs(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["config", *words]) == 2
    said = "constitutional: mix.human has no value yet; type mix.human=FILE, a file of pairs, "
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.slow
@pytest.mark.skipif(not HH_RLHF.is_file(), reason=f"there is no {HH_RLHF}")
def test_half_of_a_reward_models_preferences_are_published_human_ones_from_the_command_line(tmp_path: Path) -> None:
    people = tmp_path / HH_RLHF.name
    with gzip.open(HH_RLHF) as file, gzip.open(people, "wb") as some:
        some.writelines(islice(file, 100))
    words = [
        *("name=half", f"folder={tmp_path}", "mix=half_human", f"mix.human={people}", "until=reward"),
        *("prompts.train=40", "prompts.held_out=4", "critique_revise.rounds=1", "sft.epochs=1"),
        *("label.method=logprobs", "label.principles=one", "mix.held_out_share=0.5"),
        *("reward.epochs=1", "reward.max_length=256"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "constitutional", "run", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    store = RunStore.load(tmp_path / "half")
    preferences = store.read("preferences", Preference)
    sources = Counter((preference.source, preference.split) for preference in preferences)
    assert sources["ai", "train"] > 0
    assert abs(sources["ai", "train"] - sources["human", "train"]) <= 1  # half of an odd number is rounded
    assert all(preference.principles and preference.rests_on for preference in preferences if preference.source == "ai")
    assert all(
        preference.rests_on[0].startswith(HH_RLHF.name) for preference in preferences if preference.source == "human"
    )

    reward = store.summary("reward", RewardSummary)
    assert reward.quality is not None
    accuracy = reward.quality.accuracy
    held_out = Counter(preference.source for preference in preferences if preference.split == "held_out")
    measured = {source: share.n for source, share in accuracy.items()}
    assert measured == {"ai": held_out["ai"], "human": held_out["human"], "all": held_out.total()}
    assert all(0 <= share.low <= share.value <= share.high <= 1 for share in accuracy.values())
    train = len(preferences) - held_out.total()
    assert reward.pairs + reward.dropped["too_long"] + reward.dropped["by_trainer"] == train


def test_a_run_waits_for_people_and_goes_on_with_a_snapshot_of_their_votes(folder: Path) -> None:
    asked = ["mix.human=null", "mix.held_out_share=0", "spotcheck.budget=6", "spotcheck.audit_share=0.34"]
    asked += ["spotcheck.overlap=0"]
    with pytest.raises(WaitingError, match="6 comparisons wait for 6 votes") as error:
        go(configured(folder, *asked))
    assert error.value.exit_code == 3
    store = RunStore.load(folder / "runs" / "first")
    assert "label" in store.stages
    assert "spotcheck" not in store.stages
    assert line_of("first", store).state == "waits for people"
    (waiting,) = (line for line in describe(store) if line.stage == "spotcheck")
    assert waiting.state == "waits for people"
    assert waiting.message.startswith("a budget of 6 votes; constitutional review")
    # Without people: the audit set is kept out all the same.
    alone = go(configured(folder, *asked, "spotcheck.wait=false"))
    plan = alone.store.read("spotchecks", SpotCheck)
    audit = {row.comparison for row in plan if row.reason == "audit"}
    assert len(audit) == 2
    assert Counter(row.source for row in alone.preferences) == {"ai": 6}
    # With votes on all six: four of them are trained on, in the place of the AI's.
    votes = folder / "votes.jsonl"
    votes.write_text("".join(f'{{"comparison": "{row.comparison}", "rater": "x", "choice": "a"}}\n' for row in plan))
    found = go(configured(folder, *asked, f"spotcheck.verdicts={votes}", "mix.human_ratio=0.5"))
    assert Counter(row.source for row in found.preferences) == {"ai": 1, "human": 1}  # the AI has two left: two in all
    assert not audit & {row.comparison for row in found.preferences}
    # The same snapshot makes nothing anew; one with other votes does.
    assert "06 spotcheck: done before" in go(configured(folder, *asked, f"spotcheck.verdicts={votes}")).said
    later = folder / "later.jsonl"
    later.write_text(votes.read_text().replace('"a"}', '"b"}'))
    changed = go(configured(folder, *asked, f"spotcheck.verdicts={later}"))
    assert "06 spotcheck: running" in changed.said
    chosen = {row.comparison: row.chosen for row in changed.preferences if row.source == "human"}
    pairs = {row.id: row.b for row in changed.store.read("comparisons", Comparison)}
    assert len(chosen) == 4
    assert all(pairs[name] == text for name, text in chosen.items())
