"""The command `export`, on a run that was made up: what is in the files, and what is said of what is not."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from constitutional.base.errors import InputError
from constitutional.base.records import Comparison, Judgement, Message, Preference, Prompt, Verdict
from constitutional.cli.main import main
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.constitution.file import as_yaml
from constitutional.data.comparisons import read_comparisons
from constitutional.data.export.formats import traits
from constitutional.data.export.rows import trl
from constitutional.data.reading import read_data
from constitutional.data.sources import DataFile
from constitutional.data.votes.formats import FORMATS as VOTES
from constitutional.data.votes.reading import read_file
from constitutional.runs.compose import compose, dump
from constitutional.runs.folder import USED, RunStore
from constitutional.stages.mix import Settings as MixSettings
from constitutional.stages.mix import mix
from constitutional.stages.summaries import MixSummary, SpotCheckSummary
from tests.scripted_run import STAGES, finish

OURS = Constitution(
    name="Ours: a <b>test</b>",
    principles=(Principle(id="calm", text="Stay calm."), Principle(id="brief", text="Be | brief.")),
)
SYSTEM = Prompt(
    messages=(Message("system", "You are terse."), Message("user", "Why is the sky blue?")), source="mine.jsonl"
)
DIALOGUE = Prompt(
    messages=(Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Bread?\u2028 \n\n{% x %}")),
    info={"kind": "plain"},
)


def preference(prompt: Prompt, chosen: str, rejected: str, **more: Any) -> Preference:  # noqa: ANN401
    comparison = Comparison(prompt=prompt, a=chosen, b=rejected)
    fields: dict[str, Any] = {"probability": 0.9, "source": "ai", "comparison": comparison.id}
    return Preference(prompt=prompt, chosen=chosen, rejected=rejected, **{**fields, **more})


PREFERENCES = [
    preference(Prompt.of("Why?"), " Because. ", "“No”", principles=("calm", "brief"), rests_on=("j1", "j2")),
    preference(SYSTEM, "Scattering.", "It is blue because …", principles=("brief",), rests_on=("j3",)),
    preference(DIALOGUE, "Knead it.", "Buy it.", probability=0.75, principles=("calm",)),
    preference(Prompt.of("Tea?"), "Yes.", "No.", source="human", probability=1.0, rests_on=("v1", "v2")),
    preference(Prompt.of("Even?"), "One.", "Two.", probability=0.5, principles=("calm",)),
    preference(Prompt.of("Held?"), "Out.", "In.", probability=0.8, split="held_out", principles=("calm",)),
]
TRAIN = [row for row in PREFERENCES if row.split == "train"]
DECIDED = [row for row in TRAIN if row.probability > 0.5]
COMPARISONS = [Comparison(prompt=row.prompt, a=row.rejected, b=row.chosen) for row in PREFERENCES]
MIXED = MixSummary(
    comparisons=6,
    decided=5,
    conflicts=0,
    near_a_half=0,
    train=5,
    held_out=1,
    counts={
        "AI preferences used": 3,
        "human preferences used": 1,
        "AI preferences held out": 1,
        "human preferences available": 1,
    },
)
ENDINGS = {"verl": ".parquet", "label_studio": ".json", "argilla": ".json", "parquet": ""}
OF_ROWS = ("trl", "openrlhf", "verl", "nemo-rl", "llamafactory", "axolotl", "openai", "label_studio", "argilla")


@cache
def configuration(*overrides: str) -> str:
    return dump(compose(list(overrides)), {})


def run_folder(folder: Path, preferences: Sequence[Preference] | None = PREFERENCES, **more: list[Any]) -> Path:
    names, path = [stage.name for stage in STAGES], folder / "first"
    with RunStore.open(path, configuration(*more.pop("overrides", []))) as store:
        (path / USED).write_text(as_yaml(OURS))
        finish(
            store, names.index("sample_pairs"), "sample_pairs", {"comparisons": more.get("comparisons", COMPARISONS)}
        )
        finish(store, names.index("label"), "label", {"judgements": more.get("judgements", [])})
        if preferences is not None:
            finish(store, names.index("mix"), "mix", {"preferences": preferences}, summary=MIXED)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(run: Path, form: str, *more: str) -> int:
    return main(["export", str(run), "--to", form, *more])


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.rstrip("\n").split("\n")]


# The inverse of every format.


def record(about: dict[str, Any], messages: list[dict[str, str]], chosen: str, rejected: str) -> Preference:
    """A preference from the columns that tell where it comes from, and from its texts."""
    names = ("source", "probability", "principles", "rests_on", "comparison", "split")
    prompt = Prompt(messages=tuple(Message(**row) for row in messages), source=about["prompt_source"])  # type: ignore[arg-type]
    return Preference(prompt=prompt, chosen=chosen, rejected=rejected, **{name: about[name] for name in names})


def content(messages: list[dict[str, str]]) -> str:
    (message,) = messages
    assert message["role"] == "assistant"
    return message["content"]


def of_nemo(row: dict[str, Any]) -> Preference:
    assert "task_name" not in row  # NeMo-RL adds this column, and fails where there is one
    better, worse = sorted(row["completions"], key=lambda completion: completion["rank"])
    return record(row, row["context"], content(better["completion"]), content(worse["completion"]))


def of_llamafactory(row: dict[str, Any]) -> Preference:
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    messages = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
    return record(row, messages, row["chosen"]["value"], row["rejected"]["value"])


BACK: dict[str, Callable[[dict[str, Any]], Preference]] = {
    "trl": lambda row: record(row, row["prompt"], content(row["chosen"]), content(row["rejected"])),
    "openrlhf": lambda row: record(row, row["prompt"], content(row["chosen"]), content(row["rejected"])),
    "verl": lambda row: record(row, row["prompt"], row["chosen"], row["rejected"]),
    "nemo-rl": of_nemo,
    "llamafactory": of_llamafactory,
    "axolotl": lambda row: record(row, row["messages"], content([row["chosen"]]), content([row["rejected"]])),
}


def without_notes(row: Preference) -> Preference:
    return row.model_copy(update={"prompt": row.prompt.model_copy(update={"info": {}})})


@pytest.mark.parametrize("form", BACK)
def test_the_same_records_come_back(here: Path, form: str) -> None:
    assert export(run_folder(here), form) == 0
    (file,) = here.glob(f"first-{form}.jsonl") if form != "verl" else here.glob("first-verl.parquet")
    rows = read(file)
    assert [BACK[form](row) for row in rows] == [without_notes(row) for row in DECIDED]
    assert {row["constitution"] for row in rows} == {OURS.digest}


def back(path: Path) -> list[Preference]:
    """What a run reads of the file as `mix.human`."""
    return read_comparisons([DataFile(path=path)]).preferences


def facts(rows: Sequence[Preference]) -> list[tuple[Any, ...]]:
    """Which reply of a tie is called chosen says nothing."""
    replies = [(row.chosen, row.rejected) if row.probability > 0.5 else {row.chosen, row.rejected} for row in rows]
    return [
        (row.prompt.messages, pair, row.probability, row.source, row.principles)
        for row, pair in zip(rows, replies, strict=True)
    ]


WITH_TIES = ("parquet", "label_studio", "argilla")
AMBIGUOUS = preference(
    Prompt(messages=(Message("user", "What comes next?\n\nAssistant: Hello.\n\nUser: Hi"),)), "Bye.", "Hey."
)


@pytest.mark.parametrize("form", [*OF_ROWS, "trl.parquet", "parquet"])
def test_the_general_reader_reads_what_was_written(here: Path, form: str) -> None:
    rows = [*PREFERENCES, AMBIGUOUS]
    file = here / ("made.parquet" if form == "trl.parquet" else f"made{ENDINGS.get(form, '.jsonl')}")
    form = form.removesuffix(".parquet")
    assert export(run_folder(here, rows), form, "-o", str(file)) == 0
    expected = [row for row in rows if row.split == "train" and (row.probability > 0.5 or form in WITH_TIES)]
    if form == "openai":  # which has no place for either
        plain = {"probability": 1.0, "source": "human", "principles": ()}
        expected = [row.model_copy(update=plain) for row in expected]
    assert facts(back(file)) == facts(expected)
    reading = read_data(DataFile(path=file))
    assert reading.kind == "preferences"
    assert reading.classes.get("preference") == sum(row.probability > 0.5 for row in expected)
    assert reading.warnings == ()
    ours = here / "ours.jsonl"
    read_data(DataFile(path=file), ours)
    assert facts(back(ours)) == facts(expected)


HELPS, SAFE = (
    {"source": "human", "probability": 1.0, "weight": 0.5, "principles": (name,)} for name in ("help", "safe")
)
PKU = [preference(Prompt.of("Safe?"), "Sure.", "Never.", **HELPS)]
PKU += [preference(Prompt.of("Safe?"), "Never.", "Sure.", **SAFE, comparison=PKU[0].comparison)]
"""Two verdicts that disagree, as of PKU-SafeRLHF."""
SHARED = [
    preference(Prompt.of("Ranks?"), "First.", "Third.", source="human", probability=1.0, weight=1 / 3),
    preference(Prompt.of("Ranks?"), "First.", "Second.", source="human", probability=1.0, weight=1 / 3),
    preference(Prompt.of("Ranks?"), "Third.", "Second.", source="ai", probability=0.5, weight=1 / 3),
]


@pytest.mark.parametrize("form", [*OF_ROWS, "trl.parquet", "parquet"])
def test_a_run_that_takes_exported_files_has_the_same_preferences(here: Path, form: str) -> None:
    rows = [*PREFERENCES, AMBIGUOUS, *SHARED, *(PKU if form != "openai" else ())]  # without principles, a conflict
    file = here / ("made.parquet" if form == "trl.parquet" else f"made{ENDINGS.get(form, '.jsonl')}")
    form = form.removesuffix(".parquet")
    assert export(run_folder(here, rows), form, "-o", str(file)) == 0
    expected = [row for row in rows if row.split == "train" and (row.probability > 0.5 or form in WITH_TIES)]
    if form == "openai":
        plain = {"probability": 1.0, "source": "human", "weight": 1.0, "principles": ()}
        expected = [row.model_copy(update=plain) for row in expected]
    ours = here / "ours.jsonl.gz"
    assert main(["data", str(file), "--to", str(ours)]) == 0
    for path in (file, ours):
        settings = MixSettings.model_validate({"human": [path], "held_out_share": 0, "ties": "keep"})
        made = mix([], [], [], read_comparisons(settings.human or ()).preferences, settings, 0).preferences
        # The AI's come first in a run.
        expected.sort(key=lambda row: row.source)
        assert facts(made) == facts(expected)
        assert [row.weight for row in made] == [row.weight for row in expected]


def test_annotated_pairs_are_read_back_with_the_label_and_who_gives_it(here: Path) -> None:
    rows = [row for row in [*PREFERENCES, AMBIGUOUS] if row.source == "ai" and row.probability > 0.5]
    comparisons = [Comparison(prompt=row.prompt, a=row.chosen, b=row.rejected) for row in rows]
    judgements = [
        judgement(comparison, "calm", row.probability) for comparison, row in zip(comparisons, rows, strict=True)
    ]
    run = run_folder(here, [*rows, PREFERENCES[3]], comparisons=comparisons, judgements=judgements)
    assert export(run, "annotated_pairs", "-o", "pairs.json") == 0
    read = back(here / "pairs.json")
    assert any(row.principles for row in rows)
    assert facts(read) == facts([*rows, PREFERENCES[3]])
    assert [row.chosen for row in read if row.source == "human"] == ["Yes."]


def test_a_models_labels_do_not_count_as_peoples(here: Path) -> None:
    assert export(run_folder(here), "trl", "-o", "made.jsonl") == 0
    counts = mix([], [], [], back(here / "made.jsonl"), MixSettings(held_out_share=0.0), 0).counts
    assert counts["human preferences available"] == 1
    assert counts["AI preferences available"] == len(DECIDED) - 1


def test_people_count_before_a_model_on_the_same_pair(here: Path) -> None:
    ai, human = ({"prompt": "Tea?", "probability": 0.9, "source": source} for source in ("ai", "human"))
    lines = [{**ai, "chosen": "Yes.", "rejected": "No."}, {**human, "chosen": "No.", "rejected": "Yes."}]
    (here / "both.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    mixed = mix([], [], [], back(here / "both.jsonl"), MixSettings(held_out_share=0.0), 0)
    assert [(row.chosen, row.source) for row in mixed.preferences] == [("No.", "human")]


def test_a_row_whose_source_is_unknown_is_refused_with_its_line(here: Path) -> None:
    row = {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No.", "probability": 0.9}
    lines = [{**row, "source": "ai"}, {**row, "source": "robot"}]
    (here / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"rows\.jsonl:2.*source"):
        back(here / "rows.jsonl")


def test_turns_stay_turns_where_people_voted_on_one_text(here: Path) -> None:
    assert export(run_folder(here), "label_studio", "-o", "tasks.json") == 0
    tasks = read(here / "tasks.json")
    for task in tasks:
        del task["meta"]
        task["annotations"] = [{"completed_by": "ada", "result": task.pop("predictions")[0]["result"]}]
    (here / "tasks.json").write_text(json.dumps(tasks))
    votes = back(here / "tasks.json")
    assert [(row.prompt.messages, row.source) for row in votes] == [(row.prompt.messages, "human") for row in TRAIN]


TOOLS = preference(
    Prompt(
        messages=(
            Message("user", "How warm is it?"),
            Message("assistant", "", '{"tool_calls": [{"function": {"arguments": "{}", "name": "weather"}}]}'),
            Message("tool", "21 degrees", '{"name": "weather", "tool_call_id": "c1"}'),
            Message("user", "And now?"),
        )
    ),
    "Still 21 degrees.",
    "I do not know.",
)


@pytest.mark.parametrize("form", ["trl", "openrlhf", "nemo-rl", "openai"])
def test_turns_of_tools_are_kept_where_the_format_can(
    here: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run_folder(here, [TOOLS]), form, "-o", "made.jsonl") == 0
    assert "left out" not in capsys.readouterr().out
    (row,) = back(here / "made.jsonl")
    assert row.prompt.messages == TOOLS.prompt.messages
    assert '"tool_calls"' in (here / "made.jsonl").read_text()


@pytest.mark.parametrize(
    "form", ["verl", "llamafactory", "axolotl", "label_studio", "argilla", "parquet", "trl.parquet"]
)
def test_turns_of_tools_are_left_out_with_counts_elsewhere(
    here: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("-o", "made.parquet") if form == "trl.parquet" else ()
    assert export(run_folder(here, [TOOLS, TRAIN[0]]), form.removesuffix(".parquet"), *more) == 0
    out = capsys.readouterr().out
    assert re.search(r"  1 conversation with .*: left out", out)
    assert ": 1 preference\n" in out


def test_trl_as_parquet_holds_the_same_rows_as_json_lines(here: Path) -> None:
    run = run_folder(here)
    assert export(run, "trl", "-o", "a.parquet", "--split", "all") == 0
    assert export(run, "trl", "-o", "a.jsonl", "--split", "all") == 0
    rows = read(here / "a.parquet")
    assert rows == read(here / "a.jsonl")
    assert [row["split"] for row in rows] == ["train"] * 4 + ["held_out"]


def test_openai_gets_its_own_keys_and_no_others(here: Path) -> None:
    assert export(run_folder(here), "openai") == 0
    assert read(here / "first-openai.jsonl")[1] == {
        "input": {
            "messages": [
                {"role": "system", "content": "You are terse."},
                {"role": "user", "content": "Why is the sky blue?"},
            ]
        },
        "preferred_output": [{"role": "assistant", "content": "Scattering."}],
        "non_preferred_output": [{"role": "assistant", "content": "It is blue because …"}],
    }


def test_a_folder_of_parquet_loads_with_its_splits_and_says_what_it_is(here: Path) -> None:
    from datasets import load_dataset  # type: ignore[import-untyped]

    assert export(run_folder(here), "parquet", "-o", "data set", "--license", "cc-by-4.0") == 0
    loaded = load_dataset(str(here / "data set"), cache_dir=str(here / "cache"))
    held_out = [row for row in PREFERENCES if row.split == "held_out"]
    # Ties are in it: a probability of one half is read as such.
    for split, rows in (("train", TRAIN), ("held_out", held_out)):
        assert [BACK["trl"](row) for row in loaded[split]] == list(map(without_notes, rows))
    card = (here / "data set" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "cc-by-4.0"
    assert [part["split"] for part in front["configs"][0]["data_files"]] == ["train", "held_out"]
    assert OURS.digest in card
    assert "| train | 4 | 1 | 5 |" in card
    columns = set(read(here / "data set" / "data" / "train.parquet")[0])
    described = {name for line in card.splitlines() if line.startswith("- `") for name in re.findall(r"`(\w+)`", line)}
    assert columns <= described
    assert "Be \\| brief." in card
    assert "<b>" not in card


def test_where_nobody_says_it_the_licence_is_unknown(here: Path) -> None:
    assert export(run_folder(here), "parquet") == 0
    card = (here / "first-parquet" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "unknown"
    assert "Nobody has said." in card


@pytest.mark.parametrize("form", ["label_studio", "argilla"])
def test_the_label_goes_to_an_annotation_tool_as_a_suggestion(here: Path, form: str) -> None:
    assert export(run_folder(here), form) == 0
    rows = read(here / f"first-{form}.json")
    assert len(rows) == len(TRAIN)
    sides = Counter[str]()
    for row, expected in zip(rows, TRAIN, strict=True):
        shown, about = (row["data"], row["meta"]) if form == "label_studio" else (row["fields"], row["metadata"])
        if form == "label_studio":
            (prediction,) = row["predictions"]
            (result,) = prediction["result"]
            assert result["to_name"] in ("left", "conversation")  # an object that the control names: others are refused
            score, who = prediction["score"], prediction["model_version"]
            side = result["value"].get("selected") or result["value"]["choices"][0]
        else:
            suggestion = row["suggestions"]["better"]
            score, side, who = suggestion["score"], suggestion["value"], suggestion["agent"]
        assert (score, who) == (expected.probability, expected.source)
        assert about["principles"] == list(expected.principles)
        assert about["constitution"] == OURS.digest
        sides[side] += 1
        if expected.probability == 0.5:
            assert side == "tie"
        else:
            other = {"left": "right", "right": "left"}[side]
            assert (shown[side], shown[other]) == (expected.chosen, expected.rejected)
    assert sides["left"] + sides["right"] == len(DECIDED)


def test_a_suggestion_that_a_person_accepts_comes_back_as_a_vote(here: Path) -> None:
    assert export(run_folder(here), "label_studio") == 0
    file = here / "first-label_studio.json"
    tasks = read(file)
    for task in tasks:
        task["annotations"] = [{"completed_by": "ada", "result": task.pop("predictions")[0]["result"]}]
    file.write_text(json.dumps(tasks))
    comparisons = {row.comparison: Comparison(prompt=row.prompt, a=row.rejected, b=row.chosen) for row in TRAIN}
    votes = VOTES["label_studio"].verdicts(read_file(file), comparisons, ())
    assert votes.refused == []
    assert {vote.comparison: vote.choice for vote in votes.verdicts} == {
        row.comparison: "tie" if row.probability == 0.5 else "b" for row in TRAIN
    }


def judgement(comparison: Comparison, principle: str, p_a: float | None) -> Judgement:
    text = OURS.principle(principle).text
    more: dict[str, Any] = {"principle_text": text, "labeler": "m", "readings": ()}
    return Judgement(comparison=comparison.id, principle=principle, p_a=p_a, **more)


def test_annotated_pairs_describe_a_principle_by_the_authors_words_and_not_by_those_the_judge_was_given(
    here: Path,
) -> None:
    first, second, *_ = COMPARISONS
    given = judgement(first, "calm", 0.1).model_copy(update={"principle_text": "Avoid alarm."})
    run = run_folder(here, judgements=[given, judgement(second, "brief", 0.8)])
    assert export(run, "annotated_pairs") == 0
    made = json.loads((here / "first-annotated_pairs.json").read_text())
    found = {who["name"]: who for who in made["annotators"].values() if who["type"] == "principle"}
    assert found["calm"] == {"name": "calm", "description": "Stay calm.", "type": "principle", "given": "Avoid alarm."}
    assert found["brief"] == {"name": "brief", "description": "Be | brief.", "type": "principle"}


def test_annotated_pairs_say_that_held_out_rows_are_in_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = Comparison(prompt=Prompt.of("Late?").model_copy(update={"split": "held_out"}), a="No.", b="Yes.")
    judged = [judgement(COMPARISONS[0], "calm", 0.1), judgement(held, "calm", 0.2)]
    run = run_folder(here, judgements=judged, comparisons=[*COMPARISONS, held])
    for split in ("train", "held_out"):
        assert export(run, "annotated_pairs", "--split", split) == 2
        assert "with those of held-out prompts" in capsys.readouterr().err
    assert export(run, "annotated_pairs", "--split", "all") == 0
    # The one that is judged, and of the pairs from elsewhere that of "Held?".
    assert "2 comparisons of held-out prompts: written, too" in capsys.readouterr().out
    assert held.id in {
        row["id"] for row in json.loads((here / "first-annotated_pairs.json").read_text())["comparisons"]
    }


def test_annotated_pairs_have_principles_the_labeler_and_people(here: Path) -> None:
    first, second, third, *_ = COMPARISONS
    judgements = [judgement(first, "calm", 0.1), judgement(first, "brief", 0.8), judgement(second, "brief", None)]
    verdicts = here / "verdicts.jsonl"
    verdicts.write_text(Verdict(comparison=third.id, rater="ada", choice="b", strength=3).model_dump_json() + "\n")
    (elsewhere,) = (row for row in PREFERENCES if row.source == "human")
    own = [row for row in COMPARISONS if row.prompt != elsewhere.prompt]
    run = run_folder(here, [elsewhere], judgements=judgements, comparisons=own, overrides=[f"mix.verdicts={verdicts}"])
    assert export(run, "annotated_pairs") == 0
    made = json.loads((here / "first-annotated_pairs.json").read_text())
    assert made["metadata"]["version"] == "2.0"
    assert made["metadata"]["constitution_digest"] == OURS.digest
    kinds = {name: (who["type"], who["description"]) for name, who in made["annotators"].items()}
    default = made["metadata"]["default_annotator"]
    assert sorted(kind for kind, _ in kinds.values()) == ["human", "human", "principle", "principle", "unknown"]
    by_id = {row["id"]: row for row in made["comparisons"]}
    assert by_id.keys() == {first.id, second.id, third.id, elsewhere.comparison}

    def says(comparison: str, kind: str) -> dict[str, Any]:
        return {
            kinds[name][1]: vote for name, vote in by_id[comparison]["annotations"].items() if kinds[name][0] == kind
        }

    assert says(first.id, "principle") == {
        "Stay calm.": {"pref": "b", "probability": 0.9},
        "Be | brief.": {"pref": "a", "probability": 0.8},
    }
    # The mean of 0.1 and 0.8 is 0.45: b with 0.55.
    label = by_id[first.id]["annotations"][default]
    assert (label["pref"], round(label["probability"], 9)) == ("b", 0.55)
    assert says(second.id, "principle")["Be | brief."]["pref"] is None
    assert says(third.id, "human") == {"ada": {"pref": "b", "strength": 3}}
    (vote,) = says(elsewhere.comparison, "human").values()
    row = by_id[elsewhere.comparison]
    assert row[f"response_{vote['pref']}"]["text"] == elsewhere.chosen
    assert vote["probability"] == 1.0


def test_annotated_pairs_hold_every_verdict_from_elsewhere(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*PKU, *SHARED]
    assert export(run_folder(here, rows, comparisons=[]), "annotated_pairs", "-o", "pairs.json") == 0
    assert "4 comparisons by 0 principles, the labeler, 1 model of files and 3 human" in capsys.readouterr().out
    made = json.loads((here / "pairs.json").read_text())
    kinds = {who["name"]: who["type"] for who in made["annotators"].values()}
    assert kinds == {
        "label": "unknown",
        "people of a file, by help": "human",
        "people of a file, by safe": "human",
        "people of a file": "human",
        "a model of a file": "unknown",
    }
    (safe,) = (row for row in made["comparisons"] if row["id"] == PKU[0].comparison)
    says = {made["annotators"][name]["principle"]: vote for name, vote in safe["annotations"].items()}
    assert [safe[f"response_{says[by]['pref']}"]["text"] for by in ("help", "safe")] == ["Sure.", "Never."]
    read = back(here / "pairs.json")
    assert facts(read) == facts(rows)
    assert [row.weight for row in read] == [row.weight for row in rows]


# What a format has no place for.


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (
            "trl",
            ["3 labels are less than certain", "column probability", "3 labels name principles", "1 tie: left out"],
        ),
        ("openrlhf", ["3 labels are less than certain", "OpenRLHF", "1 tie: left out"]),
        ("verl", ["1 system prompt: written as one text", "1 conversation of several turns: written as one text"]),
        ("nemo-rl", ["1 tie: left out", "1 label brings several votes together"]),
        (
            "openai",
            ["3 labels are less than certain: the file has no place", "3 labels name principles: the file has no"],
        ),
        ("label_studio", ["1 system prompt: written as one text"]),
        ("argilla", ["1 conversation of several turns: written as one text"]),
        ("llamafactory", ["1 tie: left out"]),
        ("axolotl", ["1 tie: left out"]),
    ],
)
def test_what_is_not_carried_is_said_with_counts(
    here: Path, form: str, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run_folder(here), form) == 0
    out = capsys.readouterr().out
    assert not [words for words in [*said, "1 preference of the split held_out: left out"] if words not in out]
    assert (
        f"{len(TRAIN) if form in ('label_studio', 'argilla') else len(DECIDED)} preferences, 1 of them by people" in out
    )


def test_turns_of_tools_and_turns_that_do_not_alternate_are_told_apart() -> None:
    def of(*roles: str) -> set[str]:
        messages = tuple(Message(role, "Yes?") for role in roles)  # type: ignore[arg-type]
        prompt = Prompt.model_construct(messages=messages, split="train", source="", info={})
        own: set[str] = set(traits(PREFERENCES[0].model_copy(update={"prompt": prompt})))
        return own & {"tool", "irregular"}

    assert of("user", "assistant", "tool", "assistant", "user") == {"tool"}
    assert of("user", "user") == {"irregular"}
    assert of("assistant", "user") == {"irregular"}
    assert of("user", "system") == {"irregular"}
    assert of("system", "user", "assistant", "user") == set()


def test_what_every_row_has_in_common_is_in_the_files_metadata(here: Path) -> None:
    import pyarrow.parquet as pq

    assert export(run_folder(here), "verl") == 0
    assert pq.read_schema(here / "first-verl.parquet").metadata[b"constitution"].decode() == OURS.digest


# Beside the file.


def test_llamafactory_has_an_entry_in_the_list_of_data_sets(here: Path) -> None:
    (here / "dataset_info.json").write_text('{"other": {"file_name": "other.json"}}')
    assert export(run_folder(here), "llamafactory", "-o", "mine.jsonl") == 0
    info = json.loads((here / "dataset_info.json").read_text())
    assert info["other"] == {"file_name": "other.json"}
    assert info["mine"]["file_name"] == "mine.jsonl"
    assert info["mine"]["ranking"] is True
    (here / "dataset_info.json").write_text("{")
    assert export(here / "first", "llamafactory", "-o", "mine.jsonl", "--force") == 2


def test_axolotl_has_a_configuration_that_names_the_constitution(here: Path) -> None:
    assert export(run_folder(here), "axolotl") == 0
    text = (here / "first-axolotl.config.yaml").read_text()
    (data,) = yaml.safe_load(text)["datasets"]
    assert (data["path"], data["type"]) == ("first-axolotl.jsonl", "chat_template.default")
    assert OURS.digest in text


# Refusals, and runs that are going.


@pytest.mark.parametrize("form", [*OF_ROWS, "annotated_pairs", "parquet"])
def test_a_file_that_is_there_is_replaced_by_force_alone(
    here: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(here)
    assert export(run, form) == 0
    (there,) = (path for path in here.glob(f"first-{form}*") if not re.search(r"\.(config|settings)\.", path.name))
    before = {path: path.read_bytes() for path in here.rglob(f"first-{form}*") if path.is_file()}
    assert export(run, form) == 2
    assert "--force" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert export(run, form, "--force") == 0
    assert there.exists()


def test_an_ending_that_the_format_has_not_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(run_folder(here), "verl", "-o", "a.jsonl") == 2
    assert "-o a.parquet" in capsys.readouterr().err
    assert not (here / "a.jsonl").exists()


def test_a_run_without_preferences_says_which_stage_makes_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(run_folder(here, None), "trl") == 1
    error = capsys.readouterr().err
    assert "until=mix" in error
    assert "'label'" in error
    assert not list(here.glob("first-*"))


def test_a_run_that_is_going_can_be_exported(here: Path) -> None:
    run = run_folder(here)
    with RunStore.open(run, configuration()):  # as a run that holds its lock
        assert export(run, "trl") == 0
    assert len(read(here / "first-trl.jsonl")) == len(DECIDED)


def test_a_split_that_nothing_is_of_leaves_no_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(run_folder(here, TRAIN), "trl", "--split", "held_out") == 1
    assert "held_out" in capsys.readouterr().err
    assert not list(here.glob("first-*"))
    assert export(here / "first", "parquet") == 0
    assert [path.name for path in (here / "first-parquet" / "data").iterdir()] == ["train.parquet"]


def test_a_damaged_row_is_named_and_leaves_no_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(here)
    (file,) = run.glob("*_mix/preferences.jsonl")
    file.write_text(file.read_text()[:-30])
    assert export(run, "trl") == 1
    assert re.search(r"preferences\.jsonl:6", capsys.readouterr().err)
    assert not list(here.glob("*first-trl*"))


def test_rows_are_written_one_by_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    written: list[int] = []

    def counting(row: Preference, digest: str) -> dict[str, Any]:
        made.append(len(written))
        return trl(row, digest)

    from constitutional.data.export import files, formats

    plain = files._json

    def counted(row: dict[str, Any]) -> bytes:
        written.append(0)
        return plain(row)

    monkeypatch.setattr(files, "_json", counted)
    changed = {**formats.FORMATS, "trl": formats.FORMATS["trl"]._replace(row=counting)}
    monkeypatch.setattr(formats, "FORMATS", changed)
    assert export(run_folder(here), "trl") == 0
    assert made == [0, 1, 2, 3]  # when a row is made, those before it are written


def test_trl_trains_on_the_exported_file(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]

    from tests.tiny import tiny_model

    assert export(run_folder(here), "trl") == 0
    rows = load_dataset("json", data_files=str(here / "first-trl.jsonl"), cache_dir=str(here / "cache"))["train"]
    folder = tiny_model(tmp_path_factory.mktemp("models"), "qwen3")
    arguments = DPOConfig(
        output_dir=str(here / "dpo"),
        max_steps=1,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    trainer = DPOTrainer(
        model, args=arguments, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(folder)
    )
    trainer.train()
    (step,) = (row for row in trainer.state.log_history if "loss" in row)
    assert step["loss"] == pytest.approx(0.6931, abs=1e-3)  # log 2: nothing is learned before the first step
    assert "rewards/accuracies" in step


@pytest.mark.parametrize(
    ("simulated", "said"), [(False, "2 people gave 7 votes"), (True, "7 votes of spot-checks are sim")]
)
def test_a_card_says_who_voted(here: Path, simulated: bool, said: str) -> None:
    run = run_folder(here)
    counts = {"comparisons": 6, "audit": 1, "votes_wanted": 8, "votes": 7, "raters": 2, "answered": 6}
    names = [stage.name for stage in STAGES]
    with RunStore.open(run, configuration()) as store:
        made = SpotCheckSummary(**counts, simulated=simulated)
        finish(store, names.index("label") + 10, "spotcheck", {"spotchecks": [], "verdicts": []}, summary=made)
    assert export(run, "parquet") == 0
    card = (here / "first-parquet" / "README.md").read_text()
    assert said in card
    assert "No person voted" not in card


@pytest.mark.parametrize(("probability", "told"), [(0.99997, []), (0.9949, ["soft"]), (0.5, ["tie"]), (1.0, [])])
def test_a_label_that_is_certain_but_for_rounding_is_not_called_less_than_certain(
    probability: float, told: list[str]
) -> None:
    preference = PREFERENCES[0].model_copy(update={"probability": probability, "principles": (), "rests_on": ()})
    plain = preference.model_copy(update={"prompt": Prompt.of("Why?")})
    assert list(traits(plain)) == told
