"""`constitutional import`: what it prints, what it writes, and what it refuses."""

import json
from pathlib import Path

import pytest

from constitutional.cli.main import main
from constitutional.constitution.file import load_constitution, read_constitution

DATA = Path(__file__).parent.parent / "data" / "constitutions"
TENETS = """\
import json

def answer(request):
    part = request.messages[0].content
    quote = "Ada should never state what she believes to be false."
    good = {"text": "Be honest, Ada.", "quote": quote, "why": "Trust."}
    made_up = {"text": "Be loud.", "quote": "Ada should be loud."}
    return json.dumps({"tenets": [good, made_up] if "Being honest" in part else []})
"""


def test_a_file_is_written_as_ours_with_what_was_not_carried_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.yaml"
    assert main(["import", str(DATA / "model_spec.md"), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "OpenAI Model Spec: 5 principles" in printed
    assert "model_spec.md:46: the example 'only good'" in printed
    content = out.read_text(encoding="utf-8")
    assert "# model_spec.md:46: the example 'only good'" in content
    assert "overrides: [legal]" in content
    assert load_constitution(out) == load_constitution(DATA / "model_spec.md")
    assert main(["lint", str(out)]) == 0


def test_without_a_place_to_write_the_yaml_is_printed_and_the_rest_goes_to_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(DATA / "salmon_weight.json")]) == 0
    printed = capsys.readouterr()
    (tmp_path / "mine.yaml").write_text(printed.out)
    assert load_constitution(tmp_path / "mine.yaml").principles[0].weight == 10
    assert "its weight is 0" in printed.err


def test_a_file_is_not_replaced_unless_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.yaml"
    out.write_text("name: precious\n")
    assert main(["import", str(DATA / "list.txt"), "-o", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_text() == "name: precious\n"
    assert main(["import", str(DATA / "list.txt"), "-o", str(out), "--force"]) == 0
    assert len(load_constitution(out).principles) == 2
    assert main(["import", str(DATA / "list.txt"), "-o", str(tmp_path / "mine.json")]) == 2
    assert "mine.yaml" in capsys.readouterr().err


def test_our_own_yaml_keeps_its_comments_and_its_order(tmp_path: Path) -> None:
    ours = tmp_path / "ours.yaml"
    ours.write_text("# Why we wrote it.\nprinciples:  # in this order\n  - Be kind.\n  - {text: Be brief., id: b}\n")
    assert main(["import", str(ours), "-o", str(tmp_path / "copy.yaml")]) == 0
    assert (tmp_path / "copy.yaml").read_text() == ours.read_text()


def test_what_a_file_was_read_as_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = '{"name": "N", "principles": [{"id": "a", "text": "Be brief.", "measure": "fewer words"}]}'
    listed = "- {id: a, text: Be brief., measure: fewer words}\n"
    for name, content, what in (
        ("a.json", ours, "our own schema"),
        ("b.yaml", listed, "a list in our own schema"),
        ("c.md", "```\nprinciples:\n```\n\n- Be brief.\n", "Markdown"),
    ):
        (tmp_path / name).write_text(content)
        assert main(["import", str(tmp_path / name), "-o", str(tmp_path / "mine.yaml"), "--force"]) == 0
        assert f"read as {what}: 1 principle" in capsys.readouterr().out
        assert load_constitution(tmp_path / "mine.yaml").principles == load_constitution(tmp_path / name).principles


def test_every_mistake_of_a_file_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.json"
    path.write_text('[{"trait": "A."},\n{"trait": 1},\n{"trait": ""}]')
    assert main(["import", str(path), "-o", str(tmp_path / "mine.yaml")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [f"bad.json:{line}:" in error for line, error in zip((2, 3), errors, strict=True)] == [True, True]
    assert not (tmp_path / "mine.yaml").exists()
    assert main(["import", str(tmp_path / "nowhere.json")]) == 2


def test_a_model_splits_prose_and_what_it_made_up_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(TENETS)
    words = ["--with-model", "critic=scripted", "critic.function=mine.py:answer"]
    assert main(["import", str(DATA / "charter.txt"), "-o", "mine.yaml", *words]) == 0
    printed = capsys.readouterr().out
    assert "is refused" in printed
    assert "Ada should be loud." in printed
    (principle,) = load_constitution(tmp_path / "mine.yaml").principles
    assert (principle.text, principle.why) == ("Be honest, Ada.", "Trust.")
    assert principle.source
    assert (principle.source.section, principle.source.line) == ("Being honest", 13)
    assert principle.source.quote == "Ada should never state what she believes to be false."
    assert "# charter.txt:" in (tmp_path / "mine.yaml").read_text()


def test_a_model_is_not_asked_about_what_is_no_prose_or_without_being_wanted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["import", str(DATA / "handbook.json"), "--with-model"]) == 2
    assert "no prose" in capsys.readouterr().err
    assert main(["import", str(DATA / "charter.txt"), "critic=scripted"]) == 2
    assert "--with-model" in capsys.readouterr().err


def test_lint_and_diff_read_other_formats_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = DATA / "model_spec.md"
    assert main(["lint", str(spec)]) == 0
    assert f"{spec}:46: note:" in capsys.readouterr().out
    assert main(["import", str(spec), "-o", str(tmp_path / "mine.yaml")]) == 0
    capsys.readouterr()
    assert main(["diff", str(spec), str(tmp_path / "mine.yaml")]) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_a_large_import_is_written_whole_and_told_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"trait": f"I like {n}.", f"key{n}": "x"} for n in range(100)]
    (tmp_path / "many.json").write_text(json.dumps(rows))
    assert main(["import", str(tmp_path / "many.json"), "-o", str(tmp_path / "mine.yaml")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) < 50
    assert any("more lines" in line for line in printed)
    assert (tmp_path / "mine.yaml").read_text().count("# many.json:") == 100
    assert read_constitution(tmp_path / "mine.yaml").constitution == load_constitution(
        tmp_path / "many.json"
    ).model_copy(update={"name": "many"})
