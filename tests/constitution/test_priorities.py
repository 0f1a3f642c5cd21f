from pathlib import Path

import pytest
from pydantic import ValidationError

from constitutional.base.errors import InputError
from constitutional.base.shipped import shipped
from constitutional.constitution.constitution import Constitution, Example, Principle, Source
from constitutional.constitution.difference import difference
from constitutional.constitution.file import as_yaml, load_constitution, read_constitution
from constitutional.constitution.priorities import circle_in, overriding, within
from constitutional.judging.lint import lint_file

FULL = """\
name: Ours
principles:
  - id: safe
    text: Warn of danger.
    why: A life outweighs a pleasant answer.
    overrides: [brief]
    source: {section: "Safety > Warnings", line: 12, quote: It must warn.}
  - id: brief
    text: Be brief.
    overrides:
      - chatty
    examples:
      - {prompt: Hi, better: Hi., worse: "Hello, and welcome!", why: Three words suffice.}
  - id: chatty
    text: Tell a story.
"""


def write(folder: Path, content: str) -> Path:
    path = folder / "ours.yaml"
    path.write_text(content)
    return path


def test_reasons_priorities_and_sources_are_read_and_written_again(tmp_path: Path) -> None:
    read = load_constitution(write(tmp_path, FULL))
    safe, brief, chatty = read.principles
    assert safe.why == "A life outweighs a pleasant answer."
    assert (safe.overrides, brief.overrides, chatty.overrides) == (("brief",), ("chatty",), ())
    assert safe.source == Source(section="Safety > Warnings", line=12, quote="It must warn.")
    assert brief.examples[0].why == "Three words suffice."
    assert read.overridden_by == {"brief": ("safe",), "chatty": ("safe", "brief")}
    assert load_constitution(write(tmp_path, as_yaml(read))) == read


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("[brief]", "[breif]", 6, "'breif' is no principle of this file; did you mean 'brief'"),
        ("- chatty", "- safe", 6, "'safe' overrides 'brief', which overrides 'safe'"),
        ("[brief]", "[safe]", 6, "'safe' overrides 'safe'"),
        ("[brief]", "brief", 6, "a list of principles' ids"),
        ("[brief]", "[2]", 6, "must be a principle's id"),
        ("line: 12", "line: twelve", 7, "the number of a line"),
        ("line: 12, ", "", 7, "'line' is missing"),
        ("section:", "chapter:", 7, "unknown key 'chapter'"),
    ],
)
def test_what_is_wrong_with_them_is_told_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    path = write(tmp_path, FULL.replace(old, new, 1))
    problems = read_constitution(path).problems
    assert any(problem.line == line and words in problem.text for problem in problems), problems
    with pytest.raises(InputError):
        load_constitution(path)


def test_a_circle_through_several_principles_is_refused_in_python_too() -> None:
    rows = [Principle(id=name, text=name, overrides=(other,)) for name, other in ("ab", "bc", "ca")]
    with pytest.raises(ValidationError, match="'a' overrides 'b', which overrides 'c', which overrides 'a'"):
        Constitution(name="n", principles=tuple(rows))
    with pytest.raises(ValidationError, match="'z', which is no principle"):
        Constitution(name="n", principles=(Principle(id="a", text="a", overrides=("z",)),))


def test_priorities_are_transitive() -> None:
    order = {"a": ["b"], "b": ["c", "d"], "e": ["d"]}
    assert circle_in(order) == []
    assert overriding(order) == {"b": {"a"}, "c": {"a", "b"}, "d": {"a", "b", "e"}}
    # Without b, a still overrides what b overrode.
    assert within({**order, "c": [], "d": []}, {"a", "c", "d", "e"}) == {
        "a": ("c", "d"),
        "c": (),
        "d": (),
        "e": ("d",),
    }


def test_a_selection_keeps_the_priorities_that_lead_through_what_it_leaves_out(tmp_path: Path) -> None:
    read = load_constitution(write(tmp_path, FULL))
    chosen = read.select(without=["brief"])
    assert [row.overrides for row in chosen.principles] == [("chatty",), ()]
    assert chosen.overridden_by == {"chatty": ("safe",)}
    assert read.select(without=["safe"]).overridden_by == {"chatty": ("brief",)}
    assert read.select(only=["chatty"]).principles == read.principles[2:]


def test_models_read_the_reason_beside_the_principle_for_every_use() -> None:
    principle = Principle(id="safe", text="Warn.", comparison="Choose the warning one.", why="Lives matter.")
    assert principle.words("critique") == "Warn.\n\nReason: Lives matter."
    assert principle.words("comparison") == "Choose the warning one.\n\nReason: Lives matter."
    assert principle.written("critique") == "Warn."
    assert principle.model_copy(update={"given": {"critique": "Other."}}).words("critique") == "Other."
    # Another wording by configuration is another wish, of which nobody has said why.
    reworded = Constitution(name="n", principles=(principle,)).select(wordings={"safe": "Be loud."})
    assert reworded.principles[0].words("revision") == "Be loud."


def test_digests_follow_reasons_and_priorities_and_nothing_that_models_do_not_see() -> None:
    plain = Principle(id="a", text="A.", examples=(Example(prompt="p", better="b", worse="w"),))
    other = Principle(id="b", text="B.")

    def digests(**changed: object) -> tuple[str, str, str]:
        made = Constitution(name="n", principles=(plain.model_copy(update=changed), other))
        return made.digest, made.digest_for("comparison"), made.digest_for("revision")

    before = digests()
    with_reason, with_priority = digests(why="Because."), digests(overrides=("b",))
    assert all(was != now for was, now in zip(before, with_reason, strict=True))
    assert with_priority[0] != before[0]
    assert with_priority[1] != before[1]
    assert with_priority[2] == before[2]  # no draft is revised otherwise
    example = plain.examples[0].model_copy(update={"why": "Said so."})
    assert digests(examples=(example,)) == before
    assert digests(source=Source(section="S", line=3)) == before


@pytest.mark.parametrize(
    ("name", "whole", "comparison", "revision"),
    [
        ("sandbox_warm", "6f2cc930be8756ed", "f2a1b3037072cb02", "96d2653bd3074df7"),
        ("character", "96fbdfd694a1a780", "60e4508e97bbc724", "bcc5a04e0e6ccb76"),
        ("harmlessness", "cb2bb6bcaef7e107", "6f66bfcc50b76844", "1f764b94d23f202e"),
    ],
)
def test_a_constitution_without_the_new_fields_keeps_its_digests(
    name: str, whole: str, comparison: str, revision: str
) -> None:
    read = load_constitution(shipped("constitutions") / f"{name}.yaml")
    # As they were before principles had reasons and priorities: finished runs are found again by them.
    found = (read.digest[:16], read.digest_for("comparison")[:16], read.digest_for("revision")[:16])
    assert found == (whole, comparison, revision)
    assert not {"why", "overrides", "source"} & read.principles[0].model_dump(mode="json").keys()


def test_a_changed_reason_or_priority_is_a_difference(tmp_path: Path) -> None:
    before = load_constitution(write(tmp_path, FULL))
    after = load_constitution(write(tmp_path, FULL.replace("pleasant", "short").replace("[brief]", "[chatty, brief]")))
    assert [str(change).splitlines()[0] for change in difference(before, after)] == [
        "~ safe: why reworded",
        "~ safe: overrides, brief → chatty, brief",
    ]
    gone = load_constitution(write(tmp_path, FULL.replace("    overrides: [brief]\n", "")))
    assert "brief → nothing" in str(difference(before, gone)[0])


def test_lint_warns_of_reasons_that_add_nothing_and_of_priorities_that_never_decide(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "principles:\n"
        "- {id: a, text: Warn of danger., why: Because it warns., overrides: [b]}\n"
        "- {id: b, text: Make it short., uses: [revision]}\n"
        "- {id: c, text: Be kind to all., uses: [revision], overrides: [a], why: 'Kindness {{ costs }} little.'}\n",
    )
    found = {(finding.line, finding.rule) for finding in lint_file(path).findings}
    assert {(2, "empty-why"), (2, "idle-priority"), (4, "idle-priority"), (4, "template-syntax")} <= found
