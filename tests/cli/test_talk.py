import io
import json
import sys
from pathlib import Path

import pytest

from constitutional.base.errors import UsageError
from constitutional.base.records import Message
from constitutional.cli import main as cli
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.engines.settings import EngineSettings
from constitutional.runs.compose import compose
from constitutional.runs.replies import named, repliers
from tests.scripted_run import World, configured, constitution, go


class Talkers:
    """Models that say who they are and what they were asked, in the place of those of a run."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Request]] = []
        self.stop_at = 0
        self.completion: Completion | None = None

    def open(self, settings: EngineSettings, _: object = None) -> ScriptedEngine:
        path = str(getattr(settings, "path", ""))
        name = Path(path).name
        return ScriptedEngine(lambda request: self.answer(name, request), name)

    def answer(self, name: str, request: Request) -> Completion | str:
        self.asked.append((name, request))
        if self.stop_at and len(self.asked) >= self.stop_at:
            raise KeyboardInterrupt
        return self.completion or f"{name} heard {request.messages[-1].content} at {request.seed}"

    def of(self, name: str) -> list[Request]:
        return [request for model, request in self.asked if model == name]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talk")
    constitution(folder)
    store, _ = go(configured(folder, "until=dpo", "evaluate.temperature=0.7", "evaluate.max_tokens=33"), World())
    return store.folder


@pytest.fixture
def talkers(monkeypatch: pytest.MonkeyPatch) -> Talkers:
    talkers = Talkers()
    monkeypatch.setattr("constitutional.runs.replies.engine_of", talkers.open)
    return talkers


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_every_model_of_a_run_replies_below_its_name_in_a_conversation_of_its_own(
    run: Path, talkers: Talkers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "Hi", "And now?")
    assert cli.main(["chat", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in ("Base", "SL", "RL")] == ["Base", "SL", "RL"] * 2
    assert "> And now?" in lines
    assert lines[lines.index("SL") + 1].startswith("  sft_model heard Hi")
    first, second = talkers.of("policy")
    assert first.messages == (Message("user", "Hi"),)
    said = f"policy heard Hi at {first.seed}"
    assert second.messages == (Message("user", "Hi"), Message("assistant", said), Message("user", "And now?"))
    assert (first.sampling.temperature, first.sampling.max_tokens) == (0.7, 33)
    assert first.seed == talkers.of("sandbox")[0].seed != second.seed


def test_commands_change_who_replies_and_how(
    run: Path, talkers: Talkers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "/models base,RL", "Hi", "/seed 5", "/system Be brief.", "Ho", "/reset", "Hu", "/quit", "Lost")
    assert cli.main(["chat", str(run)]) == 0
    assert talkers.of("sft_model") == []
    hi, ho, hu = talkers.of("policy")
    assert ho.messages == (Message("system", "Be brief."), Message("user", "Ho"))
    assert hu.messages == (Message("system", "Be brief."), Message("user", "Hu"))
    assert hi.seed != ho.seed == hu.seed
    assert "Lost" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "told"),
    [("/models nope", "policy"), ("/seed x", "whole number"), ("/nope", "/help"), ("/seed", "/seed 1")],
)
def test_a_wrong_command_is_told_and_the_chat_goes_on(
    run: Path,
    talkers: Talkers,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    told: str,
) -> None:
    type_in(monkeypatch, line, "Hi")
    assert cli.main(["chat", str(run)]) == 0
    assert told in capsys.readouterr().out
    assert len(talkers.asked) == 3


def test_a_reply_that_failed_is_told_and_is_no_part_of_the_conversation(
    run: Path, talkers: Talkers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talkers.completion = Completion("", "too_long")
    type_in(monkeypatch, "Hi", "Ho")
    assert cli.main(["chat", str(run), "--models", "SL"]) == 0
    assert "/reset" in capsys.readouterr().out
    assert talkers.of("sft_model")[1].messages == (Message("user", "Ho"),)


def test_control_characters_of_a_reply_do_not_reach_the_terminal(
    run: Path, talkers: Talkers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talkers.completion = Completion("\x1b[31mred", "length")
    type_in(monkeypatch, "Hi")
    assert cli.main(["chat", str(run)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "cut off" in out


def test_ctrl_c_ends_a_chat_without_a_traceback(run: Path, talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    talkers.stop_at = 2
    type_in(monkeypatch, "Hi", "Ho")
    assert cli.main(["chat", str(run)]) == 130

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def interrupt(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", interrupt)
    assert cli.main(["chat", str(run)]) == 0


@pytest.mark.usefixtures("talkers")
def test_a_model_alone_and_what_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(repliers("sandbox").engines) == ["sandbox"]
    assert cli.main(["chat", str(tmp_path)]) == 2
    assert "manifest.json" in capsys.readouterr().err
    with pytest.raises(UsageError, match="policy"):
        named("base,nope", ["base", "policy"])
    assert named("RL base", ["base", "policy"]) == ["base", "policy"]


def prompts(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text(
        '"Hi"\n{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Ho"}]}\n"Hi"\n'
    )
    return path


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("talkers")
def test_samples_name_the_prompt_the_model_and_the_seed(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    words = ["sample", str(run), "--prompts", str(prompts(tmp_path)), "--n", "2", "--models", "base,policy"]
    assert cli.main([*words, "--out", str(out), "--seed", "3"]) == 0
    rows = rows_of(out)
    assert [(row["line"], row["model"], row["sample"]) for row in rows] == [
        *((1, "base", 0), (1, "base", 1), (1, "policy", 0), (1, "policy", 1)),
        *((2, "base", 0), (2, "base", 1), (2, "policy", 0), (2, "policy", 1)),
    ]
    assert rows[0]["prompt"] == "Hi"
    assert rows[4]["prompt"] == [{"role": "system", "content": "S"}, {"role": "user", "content": "Ho"}]
    assert {row["seed"] for row in rows} == {3}
    assert {row["temperature"] for row in rows} == {0.7}
    assert str(rows[2]["reply"]).startswith("policy heard Hi")
    assert rows[0]["reply"] != rows[1]["reply"]  # drawn with seeds of their own
    assert len({row["weights"] for row in rows}) == 2


def test_sampling_goes_on_where_it_was_stopped(run: Path, tmp_path: Path, talkers: Talkers) -> None:
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    words = ["sample", str(run), "--prompts", str(prompts(tmp_path))]
    assert cli.main([*words, "--out", str(whole)]) == 0
    asked = len(talkers.asked)
    talkers.asked.clear()
    talkers.stop_at = 4
    assert cli.main([*words, "--out", str(out)]) == 130
    kept = rows_of(out)
    assert 0 < len(kept) < asked
    with out.open("a") as file:
        file.write('{"prompt": "Hi", "mo')  # a kill within a line
    talkers.asked.clear()
    talkers.stop_at = 0
    assert cli.main([*words, "--out", str(out)]) == 0
    assert len(talkers.asked) == asked - len(kept)
    assert out.read_bytes() == whole.read_bytes()
    talkers.asked.clear()
    assert cli.main([*words, "--out", str(out), "--seed", "1"]) == 0
    assert len(talkers.asked) == asked
    assert len(rows_of(out)) == 2 * asked


def test_a_runs_system_message_and_its_top_p_are_as_in_its_evaluation(
    tmp_path: Path, talkers: Talkers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    constitution(tmp_path)
    (tmp_path / "own.txt").write_text("One?\nTwo?\nThree?\nFour?\n")
    words = [f"folder={tmp_path}/runs", f"constitution.file={tmp_path}/ours.yaml", f"prompts.path={tmp_path}/own.txt"]
    words += ["prompts.system='Be brief.'", "prompts.held_out=2", "evaluate.top_p=0.9", "until=prompts"]
    store, _ = go(compose(words), World())
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    sampled = ["sample", str(store.folder), "--prompts", str(prompts(tmp_path)), "--n", "2"]
    assert cli.main([*sampled, "--out", str(whole)]) == 0
    assert "Be brief." in capsys.readouterr().err
    hi, ho = Message("user", "Hi"), Message("user", "Ho")
    assert {request.messages for request in talkers.of("sandbox")} == {
        (Message("system", "Be brief."), hi),
        (Message("system", "S"), ho),  # which has one of its own
    }
    assert [(row["line"], row["top_p"]) for row in rows_of(whole)] == [(1, 0.9), (1, 0.9), (2, 0.9), (2, 0.9)]
    out.write_text("".join(whole.read_text().splitlines(keepends=True)[:3]))
    talkers.asked.clear()
    assert cli.main([*sampled, "--out", str(out)]) == 0
    assert len(talkers.asked) == 1
    assert out.read_bytes() == whole.read_bytes()
    talkers.asked.clear()
    type_in(monkeypatch, "Hi", "/system", "Hi")
    assert cli.main(["chat", str(store.folder)]) == 0
    assert "Be brief." in capsys.readouterr().err
    assert [request.messages for request in talkers.of("sandbox")] == [(Message("system", "Be brief."), hi), (hi,)]


def test_models_of_a_conversation_know_of_each_other(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def opened(settings: EngineSettings, models: object) -> ScriptedEngine:
        seen.append(models)
        return ScriptedEngine(lambda _: "Hi", str(settings))

    monkeypatch.setattr("constitutional.runs.replies.engine_of", opened)
    assert len(repliers(str(run)).engines) == len(seen) == 3
    assert len(set(map(id, seen))) == 1  # so that one on a GPU's whole memory makes room for another


def test_prompts_that_are_all_held_out_are_sampled(run: Path, tmp_path: Path, talkers: Talkers) -> None:
    path = tmp_path / "held_out.jsonl"
    path.write_text('{"prompt": "Hi", "split": "held_out"}\n')
    assert cli.main(["sample", str(run), "--prompts", str(path), "--models", "policy"]) == 0
    assert len(talkers.asked) == 1


@pytest.mark.usefixtures("talkers")
def test_without_a_file_the_lines_are_printed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", str(run), "--prompts", str(prompts(tmp_path)), "--models", "policy"]) == 0
    streams = capsys.readouterr()
    assert next(json.loads(line)["prompt"] for line in streams.out.splitlines()) == "Hi"
    assert "2 prompts" in streams.err


def test_a_file_that_sample_did_not_write_is_left_as_it_is(
    run: Path, tmp_path: Path, talkers: Talkers, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(run), "--prompts", str(prompts(tmp_path)), "--out"]
    for content in ('{"a": 1}\n', "my notes", "my notes\n", '{"prompt": "x"}\n'):
        out = tmp_path / "mine.txt"
        out.write_text(content)
        assert cli.main([*words, str(out)]) == 2
        assert f"{out}:1: " in capsys.readouterr().err
        assert out.read_text() == content
    assert cli.main([*words, str(tmp_path / "none" / "out.jsonl")]) == 1
    assert talkers.asked == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--n", "0"], "--n"),
        (["--n", "2", "--temperature", "0"], "temperature"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--temperature", "nan"], "--temperature"),
        (["--models", "nope"], "nope"),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Path, tmp_path: Path, talkers: Talkers, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert cli.main(["sample", str(run), "--prompts", str(prompts(tmp_path)), *words]) == 2
    assert told in capsys.readouterr().err
    assert talkers.asked == []


@pytest.mark.usefixtures("talkers")
def test_a_bad_line_among_the_prompts_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('"Hi"\n7\n')
    assert cli.main(["sample", str(run), "--prompts", str(path)]) == 2
    assert f"{path}:2: " in capsys.readouterr().err
