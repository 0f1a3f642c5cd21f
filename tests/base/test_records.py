import json

import pytest
from pydantic import ValidationError

from constitutional.base.records import Message, Prompt, Revision, RevisionStep

PROMPT = Prompt(messages=(Message("user", "Hello"),))


def test_an_id_is_a_digest_of_the_content() -> None:
    assert PROMPT.id == Prompt(messages=(Message("user", "Hello"),)).id
    assert PROMPT.id != Prompt(messages=(Message("user", "Hello!"),)).id
    assert len(PROMPT.id) == 16
    assert int(PROMPT.id, 16) >= 0


def test_a_changed_copy_has_an_id_of_its_own() -> None:
    before = PROMPT.id
    copy = PROMPT.model_copy(update={"source": "file"})
    assert copy.id != before
    assert copy.id == Prompt(messages=PROMPT.messages, source="file").id
    assert PROMPT.id == before


def test_a_row_survives_json_and_refuses_unknown_fields() -> None:
    step = RevisionStep(principle="calm", principle_text="Be calm.", critique=None, found_nothing=False, revision="b")
    row = Revision(prompt=PROMPT, draft="a", steps=(step,))
    assert Revision.model_validate_json(row.model_dump_json()) == row
    assert row.final == "b"
    assert row.model_copy(update={"steps": ()}).final == "a"
    with pytest.raises(ValidationError, match="Extra inputs"):
        Prompt.model_validate(json.loads(PROMPT.model_dump_json()) | {"colour": "red"})


def test_a_revision_without_an_unusable_reply_is_written_and_known_as_if_there_were_no_such_field() -> None:
    row = Revision(prompt=PROMPT, draft="a", steps=())
    assert row.model_dump(mode="json").keys() == {"prompt", "draft", "steps", "problem"}
    assert row.id == "6d789471e95a5006"  # of runs that were recorded before the field came
    step = RevisionStep(principle="calm", principle_text="Be calm.", critique="It", found_nothing=False, revision="a")
    failed = row.model_copy(update={"unusable": step})
    assert failed.id != row.id
    assert Revision.model_validate_json(failed.model_dump_json()).unusable == step


def test_a_round_without_own_words_for_revising_is_written_as_if_there_were_no_such_field() -> None:
    step = RevisionStep(principle="calm", principle_text="Be calm.", critique="It", found_nothing=False, revision="a")
    own = step.model_copy(update={"revision_text": "Whisper."})
    rows = [Revision(prompt=PROMPT, draft="a", steps=(each,)) for each in (step, own)]
    assert "revision_text" not in rows[0].model_dump_json()
    assert rows[0].id == "0167d59bbcb213da"  # of runs that were recorded before the field came
    assert Revision.model_validate_json(rows[1].model_dump_json()).steps[0].revision_text == "Whisper."
    assert rows[1].id != rows[0].id


def test_any_text_has_an_id_lone_surrogates_included() -> None:
    assert Prompt(messages=(Message("user", "\ud800"),)).id
