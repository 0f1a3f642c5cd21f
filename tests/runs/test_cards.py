"""Cards beside models: what they say, when they are written, and that no stage depends on them."""

from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from constitutional.base.files import CARD, digest_of
from constitutional.cli.main import main
from constitutional.constitution.file import load_constitution
from constitutional.judging.people import PeoplesWork
from constitutional.runs.cards import TRAINED, model_card
from constitutional.runs.compose import load
from constitutional.runs.folder import USED, RunStore
from constitutional.runs.outputs import damage
from constitutional.stages.grpo import GrpoSettings
from constitutional.training.saving import copy_model
from tests.scripted_run import World, configured, constitution, go


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    folder = tmp_path_factory.mktemp("cards")
    constitution(folder)
    return go(configured(folder, "name=first"), World())[0]


def card_of(store: RunStore, model: str) -> str:
    return (store.artifact(model) / CARD).read_text()


@pytest.mark.parametrize("model", TRAINED)
def test_every_model_has_a_card_that_names_constitution_data_and_base(store: RunStore, model: str) -> None:
    card = card_of(store, model)
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["library_name"]) == ("unknown", "transformers")
    assert front["pipeline_tag"] == ("text-classification" if model == "reward_model" else "text-generation")
    assert load_constitution(store.folder / USED).digest in card
    assert "| `calm` | 1 | Stay calm. |" in card
    assert "sandbox" in card
    assert str(store.folder.parent) not in card  # where things lie is nobody's business


def test_a_policy_says_what_it_was_trained_on_and_how(store: RunStore) -> None:
    card, counts = card_of(store, "policy"), store.stages["mix"].summary["counts"]
    used, held_out = counts["AI preferences used"], counts["AI preferences held out"]
    assert used > 0
    assert f"| by AI | {used} | {held_out} |" in card
    assert "| by people | 0 | 0 |" in card
    assert "No person voted" in card
    assert '"kind": "dpo"' in card
    assert "8 revisions" in card_of(store, "sft_model")


def test_a_policy_that_learned_no_preference_does_not_claim_any(store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def short(completions, **_):\n    return [0.0] * len(completions)\n")
    own = {"kind": "python", "function": f"{tmp_path}/own.py:short"}
    config, used = load(store.folder), load_constitution(store.folder / USED)

    def card(*rewards: dict[str, str]) -> str:
        algorithm = TypeAdapter(GrpoSettings).validate_python({"rewards": rewards})
        return model_card(store, config.model_copy(update={"algorithm": algorithm}), used, "policy")

    direct = card({"kind": "constitution"}, own)
    assert "the labeler's scores for the principles, by a function that a user wrote" in direct
    assert "trained on preferences" not in direct
    assert "| preferences |" not in direct
    assert "AI labels" not in direct
    assert "The labeler is" in direct
    assert '"function": "own.py:short"' in direct
    assert str(tmp_path) not in direct
    assert "The labeler is" not in card(own)
    learned = card({"kind": "reward_model"})
    assert "by a reward model that learned preferences" in learned
    assert "| preferences |" in learned


@pytest.mark.parametrize(
    ("stage", "model", "changed", "said"),
    [
        ("sft", "sft_model", {"nothing_revised": True}, "is the base model"),
        ("reward", "reward_model", {"pairs": 0}, "has no member"),
        ("dpo", "policy", {"pairs": 0, "steps": 0}, "is the SFT model"),
    ],
)
def test_a_model_that_was_not_trained_says_so(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, stage: str, model: str, changed: dict[str, object], said: str
) -> None:
    for name, value in changed.items():
        monkeypatch.setitem(store.stages[stage].summary, name, value)
    card = model_card(store, load(store.folder), load_constitution(store.folder / USED), model)
    assert f"This model {said}" in card
    assert "it learned" not in card.partition("## Data")[0]


def test_figures_are_in_the_card_once_the_evaluation_is_done(tmp_path: Path) -> None:
    constitution(tmp_path)
    before, _ = go(configured(tmp_path, "name=first", "until=dpo"), World())
    assert "Not evaluated yet." in card_of(before, "policy")
    entries = {name: entry.fingerprint for name, entry in before.stages.items()}
    after, said = go(configured(tmp_path, "name=first"), World())
    assert "| Length | " in card_of(after, "policy")
    assert "Not evaluated yet." not in card_of(after, "policy")
    # The stages before are used again, as they were.
    assert {name: after.stages[name].fingerprint for name in entries} == entries
    assert sum("done before, used again" in line for line in said) == len(entries)


def test_a_new_model_has_no_figures_of_the_model_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constitution(tmp_path)
    go(configured(tmp_path, "name=first"), World())
    retrained, _ = go(configured(tmp_path, "name=first", "algorithm.beta=0.05", "until=dpo"), World(), learns=False)
    assert "scores" in retrained.artifacts()  # of the policy before
    assert "Not evaluated yet." in card_of(retrained, "policy")
    out = tmp_path / "hub"
    assert main(["export", str(retrained.folder), "--to", "model", "-o", str(out)]) == 0
    assert "not done" in capsys.readouterr().out
    assert "Not evaluated yet." in (out / CARD).read_text()
    whole, _ = go(configured(tmp_path, "name=first", "algorithm.beta=0.05"), World(), learns=False)
    assert "| Length | " in card_of(whole, "policy")


def test_a_card_makes_no_stage_anew(store: RunStore) -> None:
    folder = store.artifact("reward_model")
    digest = digest_of(folder)  # of a model that settings of another run name
    (folder / CARD).write_text("edited")
    assert digest_of(folder) == digest
    entry = store.stages["reward"]
    assert CARD not in entry.artifacts["reward_model"].parts
    assert damage(store.stage_folder("reward"), entry) is None
    (folder / "config.json").write_text("another")
    assert digest_of(folder) != digest


def test_a_policy_that_is_a_copy_of_the_sft_model_has_a_card_of_its_own(tmp_path: Path) -> None:
    constitution(tmp_path)
    config = configured(tmp_path, "name=first", "until=dpo")
    store, _ = go(config, World())
    copy = tmp_path / "copied"
    copy_model(store.artifact("sft_model"), copy)
    digest = digest_of(copy)
    (copy / CARD).write_text("of its own")
    assert digest_of(copy) == digest


def test_an_exported_model_is_whole_and_its_card_has_the_licence(
    store: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hub"
    words = ["export", str(store.folder), "--to", "model", "-o", str(out), "--license", "apache-2.0"]
    assert main(words) == 0
    assert digest_of(out) == digest_of(store.artifact("policy"))
    assert yaml.safe_load((out / CARD).read_text().split("---\n")[1])["license"] == "apache-2.0"
    assert main(words) == 2  # it is there
    assert main([*words, "--force"]) == 0
    (out / "model-00001-of-00002.safetensors").write_text("another model's")
    assert main([*words, "--force"]) == 2
    assert "model-00001-of-00002.safetensors" in capsys.readouterr().err
    assert (out / "model-00001-of-00002.safetensors").exists()


def test_a_model_that_is_not_trained_yet_is_no_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path, "name=first", "until=sft"), World())
    assert main(["export", str(store.folder), "--to", "model", "-o", str(tmp_path / "out")]) == 1
    assert "policy" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert (
        main(["export", str(store.folder), "--to", "model", "--model", "sft_model", "-o", str(tmp_path / "out")]) == 0
    )


def test_a_card_that_cannot_be_written_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from constitutional.base.errors import RunError
    from constitutional.runs import cards

    def refuse(path: Path, _content: bytes) -> None:
        raise RunError(f"{path}: cannot be written")

    monkeypatch.setattr(cards, "atomic_write", refuse)
    constitution(tmp_path)
    store, said = go(configured(tmp_path, "name=first", "until=sft"), World())
    assert "sft" in store.stages
    assert any("card is not written" in line for line in said)


def test_people_who_voted_are_told_of(tmp_path: Path) -> None:
    constitution(tmp_path)
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        f'{{"prompt": "Question {n}?", "chosen": "Yes {n}.", "rejected": "No.", "rater": "gpt-4"}}\n' for n in range(12)
    ]
    pairs.write_text("".join(rows))
    words = ["name=first", "until=dpo", f"mix.human={pairs}", "mix.held_out_share=0"]
    store, _ = go(configured(tmp_path, *words), World())
    card = model_card(store, load(store.folder), load_constitution(store.folder / USED), "policy")
    assert "| by people | 12 | 0 |" in card
    assert "12 preferences come from files of comparisons" in card
    assert "`pairs.jsonl` is labelled by gpt-4." in card
    work = PeoplesWork(raters=1, votes=2, skips=0, timed=2, seconds=1800.0, noted=0, exposures=0, simulated=0)
    store.stages["sft"].summary["work"] = work.model_dump()
    assert "1 person wrote 2 samples of `sft.helpful`, in 0.5 hours" in model_card(
        store, load(store.folder), load_constitution(store.folder / USED), "sft_model"
    )
    used = store.stages["mix"].summary["counts"]["AI preferences used"]
    assert f"People's share of the preferences that were trained on: {12 / (12 + used):.1%}." in card
