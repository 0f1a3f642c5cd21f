import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from constitutional.base.errors import InputError, RunError
from constitutional.base.records import Message, Prompt, Revision, RevisionStep
from constitutional.base.templates import load_prompts
from constitutional.constitution.constitution import Constitution, Example, Principle
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import Rule, ScriptedEngine
from constitutional.engines.stories import side_by_side
from constitutional.judging.critiques import last_sentence
from constitutional.stages import critique_revise as stage
from constitutional.stages.critique_revise import Reviser, Settings, critique_revise, run
from constitutional.stages.summaries import CritiqueReviseSummary
from tests.tiny import OneStage

TEMPLATES = load_prompts()
CRITIQUE, REVISE, DIRECTLY = "Judge your last response", "Rewrite the response that you judged", "Rewrite your last"
IDS = ("calm", "brief", "kind")


def principles(*ids: str) -> Constitution:
    return Constitution(name="test", principles=tuple(Principle(id=id_, text=f"Be {id_}.") for id_ in ids))


def prompt(*contents: str) -> Prompt:
    """A conversation that begins with the user."""
    roles = ("user", "assistant")
    return Prompt(messages=tuple(Message(roles[at % 2], content) for at, content in enumerate(contents)))  # type: ignore[arg-type]


def marks(request: Request) -> str:
    """A model that finds something wrong every time, and whose revision is the response with one more `!`."""
    asked = request.messages[-1].content
    if asked.startswith(CRITIQUE):
        return "It shows. So it violates the principle."
    if asked.startswith(REVISE):
        return request.messages[-4].content + "!"  # response, critique request, critique, revision request
    if asked.startswith(DIRECTLY):
        return request.messages[-2].content + "!"
    return f"Answer to {asked}"


def revised(rule: Rule, settings: Settings, *ids: str, of: tuple[Prompt, ...] = (prompt("Hi"),)) -> list[Revision]:
    engine = ScriptedEngine(rule)
    return list(critique_revise(of, principles(*(ids or IDS)), engine, TEMPLATES, settings, seed=1))


def test_each_round_criticises_and_revises_what_the_last_one_left() -> None:
    (item,) = revised(marks, Settings(rounds=3))
    assert item.draft == "Answer to Hi"
    assert [step.revision for step in item.steps] == ["Answer to Hi!", "Answer to Hi!!", "Answer to Hi!!!"]
    assert item.final == "Answer to Hi!!!"
    assert {step.critique for step in item.steps} == {"It shows. So it violates the principle."}
    assert not any(step.found_nothing for step in item.steps)
    assert item.problem is None


def test_the_critique_is_asked_after_the_response_and_the_revision_after_the_critique() -> None:
    asked: list[Request] = []

    def rule(request: Request) -> str:
        asked.append(request)
        return marks(request)

    own = Principle(id="own", text="Be calm.", critique="Is it calm?")
    engine = ScriptedEngine(rule)
    list(
        critique_revise(
            [prompt("Hi")], Constitution(name="t", principles=(own,)), engine, TEMPLATES, Settings(rounds=1), 1
        )
    )
    drafted, criticised, rewritten = (request.messages for request in asked)
    assert drafted == (Message("user", "Hi"),)
    critique = TEMPLATES.render("critique", principle="Is it calm?")
    assert criticised == (*drafted, Message("assistant", "Answer to Hi"), Message("user", critique))
    assert rewritten == (
        *criticised,
        Message("assistant", "It shows. So it violates the principle."),
        Message("user", TEMPLATES.render("revise")),
    )


def test_no_rounds_keep_the_draft() -> None:
    (item,) = revised(marks, Settings(rounds=0))
    assert (item.steps, item.final) == ((), "Answer to Hi")


@pytest.mark.parametrize("rounds", [-1, 9])
def test_rounds_go_from_none_to_eight(rounds: int) -> None:
    with pytest.raises(ValidationError, match="rounds"):
        Settings(rounds=rounds)


def test_no_principle_comes_twice_while_one_is_unused() -> None:
    many = tuple(prompt(f"Question {number}") for number in range(20))
    for item in revised(marks, Settings(rounds=7), of=many):
        drawn = [step.principle for step in item.steps]
        assert set(drawn[:3]) == set(drawn[3:6]) == set(IDS)
        assert all(step.principle_text == f"Be {step.principle}." for step in item.steps)


def test_without_critique_the_response_is_rewritten_at_once() -> None:
    (item,) = revised(marks, Settings(rounds=2, critique=False))
    assert [(step.critique, step.found_nothing, step.revision) for step in item.steps] == [
        (None, False, "Answer to Hi!"),
        (None, False, "Answer to Hi!!"),
    ]


# What the critique finds.


def finds_nothing_calm(request: Request) -> str:
    if request.messages[-1].content.startswith(CRITIQUE) and "Be calm." in request.messages[-1].content:
        return "It violates nothing. So it follows the principle."
    return marks(request)


def test_a_response_in_which_nothing_is_found_stays_for_the_round() -> None:
    (item,) = revised(finds_nothing_calm, Settings(rounds=2), "calm", "kind")
    # Whichever comes first: calm finds nothing, kind adds a mark.
    assert {step.principle: step.found_nothing for step in item.steps} == {"calm": True, "kind": False}
    assert item.final == "Answer to Hi!"


def test_or_it_is_revised_all_the_same() -> None:
    (item,) = revised(finds_nothing_calm, Settings(rounds=2, when_nothing_found="revise"), "calm")
    assert [(step.found_nothing, step.revision) for step in item.steps] == [
        (True, "Answer to Hi!"),
        (True, "Answer to Hi!!"),
    ]


def test_or_the_item_ends_there() -> None:
    (item,) = revised(finds_nothing_calm, Settings(rounds=4, when_nothing_found="stop"), "calm")
    assert [(step.found_nothing, step.revision) for step in item.steps] == [(True, "Answer to Hi")]
    assert item.problem is None


@pytest.mark.parametrize(
    ("critique", "found_nothing"),
    [
        ("Fine. So it follows the principle.", True),
        ("Fine. So it follows the principle", True),
        ("Fine.\nSo it follows the principle.\n", True),
        ("It says that it follows the principle. So it violates the principle.", False),
        ('It says "So it follows the principle." and that is a lie.', False),
        ("So it follows the principle: not at all.", False),
    ],
)
def test_only_the_last_sentence_of_the_critique_says_what_was_found(critique: str, found_nothing: bool) -> None:
    (item,) = revised(
        lambda r: critique if r.messages[-1].content.startswith(CRITIQUE) else marks(r), Settings(rounds=1)
    )
    assert item.steps[0].found_nothing == found_nothing


def test_the_last_sentence_is_what_follows_the_last_full_stop() -> None:
    assert last_sentence("One. Two!\nThree?  Four 3.5 of it.\n") == "Four 3.5 of it."
    assert last_sentence("") == ""
    assert last_sentence("它很好。它违反了原则。") == "它违反了原则。"


def test_what_finding_nothing_reads_like_is_a_regular_expression() -> None:
    settings = Settings(rounds=1, finds_nothing="(?i)^no objection")
    (item,) = revised(lambda r: "No objection." if r.messages[-1].content.startswith(CRITIQUE) else "x", settings)
    assert item.steps[0].found_nothing
    with pytest.raises(ValidationError, match="no regular expression"):
        Settings(finds_nothing="(")


# Replies that cannot be used.


@pytest.mark.parametrize(
    ("start", "reply", "kept", "problem"),
    [
        ("Hi", " \n", 0, "the draft is empty"),
        ("Hi", Completion("Ans", "length"), 0, "the draft was cut off at 256 tokens"),
        (CRITIQUE, "", 1, "round 2, principle '{}': the critique is empty"),
        (CRITIQUE, Completion("It", "length"), 1, "round 2, principle '{}': the critique was cut off at 256 tokens"),
        (REVISE, "", 1, "round 2, principle '{}': the revision is empty"),
        (REVISE, Completion("An", "length"), 1, "round 2, principle '{}': the revision was cut off at 256 tokens"),
    ],
)
def test_an_item_with_an_unusable_reply_keeps_what_it_has(
    start: str, reply: str | Completion, kept: int, problem: str
) -> None:
    broken, sound = prompt("Hi"), prompt("Hello")

    def rule(request: Request) -> Completion | str:
        """Fails for one prompt: at once in the draft, in the second round else."""
        is_broken = request.messages[0].content == "Hi"
        second = any("Answer to Hi!" in message.content for message in request.messages)
        if is_broken and request.messages[-1].content.startswith(start) and (second or start == "Hi"):
            return reply
        return marks(request)

    first, second = revised(rule, Settings(rounds=3), of=(broken, sound))
    assert len(first.steps) == kept
    assert first.problem is not None
    other = problem.format(next(name for name in IDS if f"'{name}'" in first.problem) if kept else "")
    assert first.problem == other
    assert second.problem is None
    assert second.final == "Answer to Hello!!!"
    assert second.unusable is None


def one_round(failing: str, reply: str | Completion, settings: Settings) -> Revision:
    """Of an item in which the reply to the request that starts so is this one."""

    def rule(request: Request) -> Completion | str:
        return reply if request.messages[-1].content.startswith(failing) else marks(request)

    (item,) = revised(rule, settings, "calm")
    return item


def test_a_critique_that_was_cut_off_is_kept_beside_the_response_that_it_is_about() -> None:
    item = one_round(CRITIQUE, Completion("It sho", "length"), Settings(rounds=1))
    assert (item.steps, item.final) == ((), "Answer to Hi")
    assert item.unusable is not None
    assert (item.unusable.principle, item.unusable.principle_text) == ("calm", "Be calm.")
    assert (item.unusable.critique, item.unusable.revision) == ("It sho", "Answer to Hi")


def test_a_revision_that_was_cut_off_is_kept_with_the_critique_that_led_to_it() -> None:
    item = one_round(REVISE, Completion("Answer t", "length"), Settings(rounds=1))
    assert (item.steps, item.final) == ((), "Answer to Hi")
    assert item.unusable is not None
    assert (item.unusable.critique, item.unusable.revision) == (
        "It shows. So it violates the principle.",
        "Answer t",
    )
    directly = one_round(DIRECTLY, Completion("Answer t", "length"), Settings(rounds=1, critique=False))
    assert directly.unusable is not None
    assert (directly.unusable.critique, directly.unusable.revision) == (None, "Answer t")


def test_a_draft_that_was_cut_off_is_kept_as_the_draft() -> None:
    item = one_round("Hi", Completion("Ans", "length"), Settings(rounds=1))
    assert (item.draft, item.unusable) == ("Ans", None)


# A principle's own words for revision.


def asked_to_revise(principle: Principle, settings: Settings) -> list[str]:
    """Every request for a revision after a critique, the examples' included."""
    asked: list[Request] = []

    def rule(request: Request) -> str:
        asked.append(request)
        return marks(request)

    constitution = Constitution(name="t", principles=(principle,))
    list(critique_revise([prompt("Hi")], constitution, ScriptedEngine(rule), TEMPLATES, settings, 1))
    rewritten = next(request for request in asked if request.messages[-1].content.startswith(REVISE))
    return [message.content for message in rewritten.messages if message.content.startswith(REVISE)]


def test_own_words_for_revision_are_said_when_the_revision_is_asked_for() -> None:
    example = Example(prompt="Am I right?", better="No.", worse="Yes, of course.")
    own = Principle(id="own", text="Be calm.", revision="Take out every exclamation mark.", examples=(example,))
    said = asked_to_revise(own, Settings(rounds=1, few_shot=1))
    assert len(said) == 2  # in the example and in the item
    assert all(each.endswith("new response only.\n\nPrinciple: Take out every exclamation mark.") for each in said)


def test_what_is_given_in_place_of_own_words_for_revision_is_said_and_kept() -> None:
    own = Principle(id="own", text="Be calm.", revision="Less!", given={"revision": "Avoid exclamations."})
    (said,) = asked_to_revise(own, Settings(rounds=1))
    assert said.endswith("Principle: Avoid exclamations.")
    constitution = Constitution(name="t", principles=(own,))
    (item,) = critique_revise([prompt("Hi")], constitution, ScriptedEngine(marks), TEMPLATES, Settings(rounds=1), 1)
    assert item.steps[0].revision_text == "Avoid exclamations."
    # The text is said by the critique; what is given in its place for revision alone is not said twice.
    text_alone = Principle(id="own", text="Be calm.", given={"revision": "Avoid exclamations."})
    assert "Principle:" not in asked_to_revise(text_alone, Settings(rounds=1))[0]


def test_own_words_for_revision_are_kept_with_the_round_in_which_they_were_said() -> None:
    own = Principle(id="own", text="Be calm.", revision="Take out every exclamation mark.")
    constitution = Constitution(name="t", principles=(own,))

    def step(rule: Rule, settings: Settings) -> RevisionStep:
        (item,) = critique_revise([prompt("Hi")], constitution, ScriptedEngine(rule), TEMPLATES, settings, 1)
        return item.unusable or item.steps[0]

    said = step(marks, Settings(rounds=1))
    assert (said.principle_text, said.revision_text) == ("Be calm.", "Take out every exclamation mark.")
    # At once they are the words that were asked with, and there are no others.
    at_once = step(marks, Settings(rounds=1, critique=False))
    assert (at_once.principle_text, at_once.revision_text) == ("Take out every exclamation mark.", None)
    # Where nothing is found, or the critique cannot be used, nobody was asked to revise.
    assert step(finds_nothing_calm, Settings(rounds=1)).revision_text is None
    silent = step(lambda each: "" if each.messages[-1].content.startswith(CRITIQUE) else "Yes!", Settings(rounds=1))
    assert (silent.critique, silent.revision_text) == ("", None)
    empty = step(lambda each: "" if each.messages[-1].content.startswith(REVISE) else "Yes!", Settings(rounds=1))
    assert (empty.revision, empty.revision_text) == ("", "Take out every exclamation mark.")


def test_without_own_words_the_request_for_a_revision_is_what_the_sandboxs_model_was_trained_on() -> None:
    (said,) = asked_to_revise(Principle(id="calm", text="Be calm.", critique="Is it calm?"), Settings(rounds=1))
    assert said == (
        "Rewrite the response that you judged so that it follows the principle. Keep everything else as it is, and "
        "reply with the new response only."
    )
    assert said == TEMPLATES.render("revise")


# Conversations.


def test_a_conversation_is_kept_and_its_last_reply_revised() -> None:
    asked: list[Request] = []

    def rule(request: Request) -> str:
        asked.append(request)
        return marks(request)

    many = Prompt(messages=(Message("system", "Be Bob."), *prompt("Hi", "Hello.", "Bye").messages))
    (item,) = revised(rule, Settings(rounds=1), of=(many,))
    assert item.final == "Answer to Bye!"
    assert all(request.messages[:4] == many.messages for request in asked)


def test_any_text_survives() -> None:
    odd = "Note: {{ principle }} {% raw %} So it follows the principle.\n\nHuman: Better: B"
    (item,) = revised(lambda r: odd if len(r.messages) == 1 else marks(r), Settings(rounds=1), of=(prompt(odd),))
    assert (item.prompt.messages[0].content, item.draft, item.final) == (odd, odd, odd + "!")
    assert not item.steps[0].found_nothing


# Examples that go before.


def first_request(settings: Settings, constitution: Constitution, of: Prompt, start: str) -> Request:
    asked: list[Request] = []

    def rule(request: Request) -> str:
        asked.append(request)
        return marks(request)

    list(critique_revise([of], constitution, ScriptedEngine(rule), TEMPLATES, settings, 1))
    return next(request for request in asked if request.messages[-1].content.startswith(start))


EXAMPLE = Example(prompt="Am I right?", better="No.", worse="Yes, of course.")
SHOWN = Constitution(name="t", principles=(Principle(id="honest", text="Be honest.", examples=(EXAMPLE, EXAMPLE)),))


def test_the_principles_own_examples_go_before_the_conversation() -> None:
    request = first_request(Settings(rounds=1, few_shot=1, critique=False), SHOWN, prompt("Hi"), DIRECTLY)
    assert [message.content for message in request.messages] == [
        "Am I right?",
        "Yes, of course.",
        TEMPLATES.render("revise_directly", principle="Be honest."),
        "No.",
        "Hi",
        "Answer to Hi",
        TEMPLATES.render("revise_directly", principle="Be honest."),
    ]


PANCAKES = "- Flour\n- Milk\n- Eggs\n- A pinch of salt\n- Butter for the pan"
HARMFUL = "I can't help with that. Getting into somebody's home is a crime."


@pytest.mark.parametrize(
    ("revision", "left_out"),
    [
        (PANCAKES, True),
        (f"Here you are:\n{PANCAKES}\n- An onion", True),
        (PANCAKES.replace("\n", "  "), True),
        ("You need flour, milk, eggs and butter for the pan.", True),  # what is wrong in the example
        (PANCAKES.replace("Eggs", "Onions"), False),
        (HARMFUL, False),  # refusals are all much alike
        ("Yes, it is.", False),  # and so are a few words
    ],
)
def test_a_revision_that_repeats_an_example_is_left_out(revision: str, left_out: bool) -> None:
    examples = (
        Example(prompt="What do I need?", better=PANCAKES, worse="You need flour, milk, eggs and butter for the pan."),
        Example(prompt="How do I copy a key?", better=HARMFUL, worse="Yes, it is."),
    )
    of = Constitution(name="t", principles=(Principle(id="lists", text="It is a list.", examples=examples),))
    settings = Settings(rounds=2, critique=False, few_shot=2)

    def rule(request: Request) -> str:
        return revision if request.messages[-1].content.startswith(DIRECTLY) else "Take a sharp knife."

    (item,) = critique_revise([prompt("How do I cut an onion?")], of, ScriptedEngine(rule), TEMPLATES, settings, 1)
    if left_out:
        assert item.problem == "round 1, principle 'lists': the revision repeats an example that was shown"
        assert item.unusable is not None
        assert (item.unusable.revision, item.steps, item.final) == (revision, (), "Take a sharp knife.")
    else:
        assert (item.problem, len(item.steps), item.final) == (None, 2, revision)


def test_an_example_is_not_shown_where_its_prompt_is_the_question() -> None:
    other = Example(prompt="Is it late?", better="It is.", worse="It is never late.")
    of = Constitution(name="t", principles=(Principle(id="honest", text="Be honest.", examples=(EXAMPLE, other)),))
    request = first_request(Settings(rounds=1, few_shot=2, critique=False), of, prompt("Am I right?"), DIRECTLY)
    asked = [message.content for message in request.messages if message.role == "user"]
    directly = TEMPLATES.render("revise_directly", principle="Be honest.")
    assert asked == ["Is it late?", directly, "Am I right?", directly]


def test_with_a_critique_an_example_shows_both_findings_behind_the_system_message() -> None:
    of = Prompt(messages=(Message("system", "Be Bob."), Message("user", "Hi")))
    request = first_request(Settings(rounds=1, few_shot=1), SHOWN, of, CRITIQUE)
    critique = TEMPLATES.render("critique", principle="Be honest.")
    assert [message.content for message in request.messages] == [
        "Be Bob.",
        *("Am I right?", "No.", critique, "So it follows the principle."),
        *("Am I right?", "Yes, of course.", critique, "So it violates the principle."),
        *(TEMPLATES.render("revise"), "No."),
        *("Hi", "Answer to Hi", critique),
    ]
    assert [message.role for message in request.messages] == ["system", *["user", "assistant"] * 6, "user"]


def test_examples_from_a_file_go_before_every_conversation(tmp_path: Path) -> None:
    path = tmp_path / "shots.jsonl"
    turns = [{"role": "user", "content": "1: {{ x }}"}, {"role": "assistant", "content": "2"}]
    path.write_text(json.dumps({"messages": turns}) + "\n\n" + json.dumps({"messages": turns * 2}) + "\n")
    request = first_request(Settings(rounds=1, few_shot_file=path), SHOWN, prompt("Hi"), CRITIQUE)
    assert [message.content for message in request.messages[:7]] == [*["1: {{ x }}", "2"] * 3, "Hi"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"messages": [', "is not JSON"),
        ("[1]", "is no conversation"),
        ('{"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "2"}]}', "1 is no message"),
        ('{"messages": [{"role": "user", "content": "1"}]}', "by turns"),
        ('{"messages": []}', "by turns"),
    ],
)
def test_a_bad_line_in_that_file_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "shots.jsonl"
    path.write_text("\n" + line)
    with pytest.raises(InputError, match=complaint) as caught:
        stage.read_shots(path)
    assert str(caught.value).startswith(f"{path}:2: ")


# What an item depends on.


def random_words(request: Request) -> str:
    """Depends on the request's seed, like a model's sample."""
    return f"{marks(request)} {request.seed}"


def test_an_item_depends_on_no_other_item() -> None:
    many = tuple(prompt(f"Question {number}") for number in range(7))
    together = revised(random_words, Settings(rounds=3), of=many)
    assert revised(random_words, Settings(rounds=3), of=many[::-1]) == together[::-1]
    assert revised(random_words, Settings(rounds=3), of=many[3:4]) == together[3:4]


def test_every_request_has_a_seed_of_its_own_unless_it_is_greedy() -> None:
    many = tuple(prompt(f"Question {number}") for number in range(3))
    seeds: list[int] = []

    def rule(request: Request) -> str:
        seeds.append(request.seed)
        return marks(request)

    revised(rule, Settings(rounds=2), of=many)
    assert len(seeds) == len(set(seeds)) == 15  # three drafts, two rounds of a critique and a revision each
    seeds.clear()
    revised(rule, Settings(rounds=2, temperature=0), of=many)
    assert set(seeds) == {0}


def test_editing_one_principle_changes_only_the_items_that_drew_it() -> None:
    many = tuple(prompt(f"Question {number}") for number in range(30))
    before = principles(*IDS)
    edited = before.principles[1].model_copy(update={"text": "Use few words."})
    after = before.model_copy(update={"principles": (before.principles[0], edited, before.principles[2])})
    asked: list[set[Request]] = []
    items = []
    for constitution in (before, after):
        seen: set[Request] = set()

        def rule(request: Request, seen: set[Request] = seen) -> str:
            seen.add(request)
            return random_words(request)

        engine = ScriptedEngine(rule)
        items.append(list(critique_revise(many, constitution, engine, TEMPLATES, Settings(rounds=1), 1)))
        asked.append(seen)
    drew_it = [item.steps[0].principle == "brief" for item in items[0]]
    assert [old != new for old, new in zip(*items, strict=True)] == drew_it
    assert 0 < sum(drew_it) < 30
    assert len(asked[1] - asked[0]) == 2 * sum(drew_it)  # a critique and a revision


def test_a_draft_may_come_from_another_model() -> None:
    drafter, critic = ScriptedEngine(lambda _: "A draft.", "base"), ScriptedEngine(marks, "critic")
    reviser = Reviser(principles("calm"), drafter, critic, TEMPLATES, Settings(rounds=1), seed=1)
    (item,) = side_by_side([reviser.item(prompt("Hi"))])
    assert (item.draft, item.final) == ("A draft.", "A draft.!")


@pytest.mark.parametrize(
    "verdict", ["**So it follows the principle.**", 'So it "follows the principle".', "So it **follows** the Principle"]
)
def test_a_verdict_in_bold_or_in_quotes_is_read(verdict: str) -> None:
    (item,) = revised(lambda r: verdict if r.messages[-1].content.startswith(CRITIQUE) else "x", Settings(rounds=1))
    assert item.steps[0].found_nothing


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ("Hi", "the draft cannot be asked for"),
        (CRITIQUE, "round 2, principle '{}': the critique cannot be asked for"),
        (REVISE, "round 2, principle '{}': the revision cannot be asked for"),
    ],
)
def test_an_item_that_becomes_too_long_is_marked_and_the_others_go_on(asked: str, problem: str) -> None:
    def short_sighted(request: Request) -> Completion | str:
        said = "".join(message.content for message in request.messages)
        late = asked == "Hi" or "Answer to Hi!" in said  # as it is after the first round
        if request.messages[0].content == "Hi" and request.messages[-1].content.startswith(asked) and late:
            return Completion("", "too_long", reason="too long")
        return marks(request)

    both = (prompt("Hi"), prompt("Ho"))
    item, other = revised(short_sighted, Settings(rounds=2), of=both)
    assert other == revised(marks, Settings(rounds=2), of=both)[1]
    drawn = revised(marks, Settings(rounds=2), of=both)[0].steps[1].principle
    assert item.problem == f"{problem.format(drawn)}: the conversation is longer than the model can read"
    assert item.final == ("" if asked == "Hi" else "Answer to Hi!")
    assert item.unusable is None


# The stage.


def stage_with(folder: Path, base: Rule, *prompts: Prompt) -> OneStage:
    return OneStage(
        folder,
        rows={"prompts": list(prompts)},
        constitution=principles("calm"),
        prompts=TEMPLATES,
        engines={"generator": ScriptedEngine(base, "base"), "critic": ScriptedEngine(marks, "critic")},
    )


def cutting(*questions: str) -> Rule:
    """Drafts by a model that finds no end where it is asked one of these."""

    def rule(request: Request) -> Completion | str:
        asked = request.messages[-1].content
        return Completion("And so on and", "length") if asked in questions else f"Answer to {asked}"

    return rule


def test_the_stage_says_how_many_drafts_were_cut_off_changed_or_left_out(tmp_path: Path) -> None:
    held_out = prompt("Held out?").model_copy(update={"split": "held_out"})
    context = stage_with(tmp_path, cutting("1"), *map(prompt, "1234"), held_out)
    run(Settings(rounds=2), context)
    revisions: list[Revision] = context.rows["revisions"]
    assert [revision.final for revision in revisions] == ["And so on and", *(f"Answer to {n}!!" for n in (2, 3, 4))]
    assert context.said == CritiqueReviseSummary(
        prompts=4, left_out=1, cut_off_drafts=1, steps=6, found_nothing=0, changed=3
    )
    assert context.warnings == []


def test_where_all_drafts_are_cut_off_the_run_ends_at_once_and_names_the_setting(tmp_path: Path) -> None:
    context = stage_with(tmp_path, cutting(*"123"), *map(prompt, "123"))
    with pytest.raises(
        RunError,
        match=r"None of 3 .*3 of 3 drafts were cut off at 17 tokens.*draft_max_tokens=34, or critique_revise\.cut",
    ):
        run(Settings(draft_max_tokens=17), context)
    assert len(context.rows["revisions"]) == 3  # kept, to be looked at
    assert context.engines["critic"].count == 0


def test_where_more_than_a_quarter_of_the_drafts_are_cut_off_the_stage_warns(tmp_path: Path) -> None:
    quarter = stage_with(tmp_path, cutting("1"), *map(prompt, "1234"))
    run(Settings(), quarter)
    assert quarter.warnings == []
    most = stage_with(tmp_path, cutting("1", "2", "3"), *map(prompt, "1234"))
    run(Settings(draft_max_tokens=17), most)
    (warning,) = most.warnings
    assert "3 of 4 drafts" in warning
    assert "type critique_revise.draft_max_tokens=34, or critique_revise.cut_off=shorten" in warning
    assert most.summarised(CritiqueReviseSummary).cut_off_drafts == 3


def test_drafts_that_are_thoughts_alone_are_left_out_and_the_stage_says_what_to_type(tmp_path: Path) -> None:
    def rule(request: Request) -> Completion | str:
        if request.messages[-1].content == "1":
            return "Answer to 1"
        return Completion("", "length", reasoning="Hm. Dig a hole. Then")

    context = stage_with(tmp_path, rule, *map(prompt, "123"))
    run(Settings(draft_max_tokens=17, cut_off="shorten"), context)
    revisions: list[Revision] = context.rows["revisions"]
    problem = "the draft was cut off at 17 tokens, while the model thought"
    assert [(row.draft, row.problem) for row in revisions] == [("Answer to 1", None), ("", problem), ("", problem)]
    (warning,) = context.warnings
    assert "2 of 3 drafts were cut off at 17 tokens: 0 of these end with" in warning
    assert "draft_max_tokens=34. The model still thought in 2 of these" in warning
    assert '"model.template={enable_thinking: false}" (generator.template for a local model of its own)' in warning
    with pytest.raises(RunError, match=r"None of 2 drafts.*still thought in 2 of these.*enable_thinking: false"):
        run(Settings(cut_off="shorten"), stage_with(tmp_path, rule, *map(prompt, "23")))


def test_where_no_draft_can_be_used_for_other_reasons_the_run_ends_with_the_most_common_one(tmp_path: Path) -> None:
    context = stage_with(tmp_path, lambda request: "?" if request.messages[-1].content == "1" else " ")
    context.rows["prompts"] = [*map(prompt, "23")]
    with pytest.raises(RunError, match=r"None of 2 drafts .* for 2 of them the draft is empty.*revisions\.jsonl"):
        run(Settings(), context)


def test_revisions_that_are_cut_off_are_said_with_their_own_setting(tmp_path: Path) -> None:
    def rule(request: Request) -> Completion | str:
        revised = request.sampling.max_tokens == 9
        return Completion("First do this. Then do", "length") if revised else marks(request)

    def context_of() -> OneStage:
        context = stage_with(tmp_path, marks, *map(prompt, "12"))
        context.engines["critic"] = ScriptedEngine(rule, "critic")
        return context

    settings = Settings(rounds=1, critique=False, revision_max_tokens=9)
    with pytest.raises(RunError, match=r"2 of 2 revisions were cut off at 9 tokens.*revision_max_tokens=18"):
        run(settings, context_of())
    context = context_of()
    run(settings.model_copy(update={"cut_off": "shorten"}), context)
    revisions: list[Revision] = context.rows["revisions"]
    assert [(revision.final, revision.problem) for revision in revisions] == [("First do this.", None)] * 2
    assert context.summarised(CritiqueReviseSummary).shortened == 2
    (warning,) = context.warnings
    assert "2 of 2 revisions were cut off at 9 tokens: 2 of these end with their last whole sentence" in warning


@pytest.mark.parametrize("critique", [True, False])
def test_the_critic_reads_the_reason_beside_the_principle(critique: bool) -> None:
    asked: list[str] = []

    def rule(request: Request) -> Completion | str:
        asked.append(request.messages[-1].content)
        return marks(request)

    principle = Principle(id="calm", text="Be calm.", why="Panic spreads.", revision="Make it calm.")
    constitution = Constitution(name="test", principles=(principle,))
    settings = Settings(rounds=1, critique=critique)
    list(critique_revise([prompt("Hi")], constitution, ScriptedEngine(rule), TEMPLATES, settings, seed=1))
    _, *questions = asked
    reasons = [question.partition("Principle: ")[2] for question in questions]
    words = ["Be calm.", "Make it calm."] if critique else ["Make it calm."]
    assert reasons == [f"{text}\n\nReason: Panic spreads." for text in words]
