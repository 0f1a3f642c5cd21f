import random

import numpy as np
import pytest
import torch

from constitutional.base.templates import load_prompts
from constitutional.sandbox import MODEL_FOLDER, principles
from constitutional.sandbox.world import Response, Sentence, text_of
from scripts.sandbox_training.corpus import (
    WEIGHTS,
    Corpus,
    draw_pair,
    make_rows,
    revising,
)
from scripts.sandbox_training.network import Recipe, Sandbox, to_batch
from scripts.sandbox_training.packing import MAX_SEGMENTS, Turn, pack, plant, token_weights
from scripts.sandbox_training.tokenizer import Encoder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(MODEL_FOLDER)


def test_conversations_that_begin_alike_share_their_beginning(encoder: Encoder) -> None:
    start = Turn("user", "Hello!")
    trees = plant([(start, Turn("assistant", "Yes.", 1.0)), (start, Turn("assistant", "No.", 1.0))], encoder, 100)
    hello, yes, no = (list(encoder.encode(text)[0]) for text in ("Hello!", "Yes.", "No."))
    shared = [encoder.bos, encoder.role["user"], *hello, encoder.eos, encoder.role["assistant"]]
    assert trees.ids == [*shared, *yes, encoder.eos, *no, encoder.eos]
    fork = len(shared) - 1
    second = len(shared) + len(yes) + 1
    assert trees.parents[second] == fork  # the second answer follows the shared beginning, not the first answer
    assert trees.positions[second] == trees.positions[fork] + 1
    assert trees.segments == [0] * len(shared) + [1] * (len(yes) + 1) + [2] * (len(no) + 1)
    assert trees.ancestors == [0b001, 0b011, 0b101]


def test_a_conversation_that_does_not_fit_is_left_out_whole(encoder: Encoder) -> None:
    short, long = (Turn("user", "Hello!"),), (Turn("user", "Hello! " * 50),)
    tree = plant([long, short], encoder, 20)
    assert tree.ids == [encoder.bos, encoder.role["user"], *encoder.encode("Hello!")[0], encoder.eos]


def test_only_an_assistants_words_are_learned_and_the_telling_one_most(encoder: Encoder) -> None:
    ids, weights = token_weights(encoder, Turn("assistant", "So it violates the principle.", 2.0, (("violates", 5.0),)))
    telling = encoder.encode(" violates")[0]
    assert [weight for token, weight in zip(ids, weights, strict=True) if token in telling] == [5.0] * len(telling)
    assert weights[0] == 0.0  # the role is given, not learned
    assert set(weights[1:]) == {2.0, 5.0}
    assert set(token_weights(encoder, Turn("user", "Hello!"))[1]) == {0.0}


def test_requests_are_the_projects_own_templates() -> None:
    prompts = load_prompts()
    document = Corpus(prompts).labeler(random.Random(4))
    head = prompts.render("label", conversation=[], a="", b="", principle="")[:50]
    assert all(conversation[0].content.startswith(head) for conversation in document)
    criticised = next(c for c in Corpus(prompts).critic(random.Random(4)) if len(c) > 3 and "Judge" in c[-2].content)
    assert criticised[-2].content.startswith(prompts.render("critique", principle=""))


def test_a_branch_sees_exactly_what_it_would_see_alone(encoder: Encoder) -> None:
    torch.manual_seed(0)
    model = Sandbox(Recipe(hidden=32, layers=2, heads=2, feed_forward=48)).eval()
    corpus = Corpus()
    rng = random.Random(9)
    rows = pack(corpus.documents(rng), iter(lambda: corpus.restater(rng), []), encoder, 1, 1200)
    batch = to_batch(rows, slice(0, 1), torch.device("cpu"), torch.float32)
    with torch.no_grad():
        packed = model.hidden(batch.ids, batch.positions, batch.mask, torch.float32)[0]
        checked = 0
        for leaf in np.flatnonzero(rows.ids[0] == encoder.eos):
            path = [int(leaf)]
            while rows.parents[0, path[-1]] >= 0:
                path.append(int(rows.parents[0, path[-1]]))
            path.reverse()
            ids = torch.tensor(rows.ids[0, path].astype("int64"))[None]
            length = ids.shape[1]
            causal = torch.full((length, length), -30_000.0).triu(1)[None, None]
            alone = model.hidden(ids, torch.arange(length)[None], causal, torch.float32)[0]
            torch.testing.assert_close(packed[path], alone, rtol=1e-4, atol=1e-5)
            checked += 1
    assert checked > 20


def _response(*texts: str) -> Response:
    return tuple(Sentence("content", text) for text in texts)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # Three tokens where a sentence begins, the rest of it, and the end; "Stop it now!" has four, "Do you?" three.
        (("Stop it now!", "Do you?"), ("Stop it now!", "Do you?"), [3, 3, 3, 2, 3, 3, 3, 3]),  # nothing is changed
        (("Stop it now!", "Do you?"), ("Do you?",), [5, 5, 5, 3]),  # the first is left out, so another one begins
        (("Stop it now!", "Do you?"), ("Stop it now!",), [3, 3, 3, 2, 5]),  # the last is left out, so it ends early
        (("Do you?",), ("Stop it now!", "Do you?"), [5, 5, 5, 2, 5, 5, 5, 3]),  # one is put in
    ],
)
def test_where_a_revision_departs_from_the_response_it_weighs_most(
    before: tuple[str, ...], after: tuple[str, ...], expected: list[int]
) -> None:
    ids, weights = token_weights(Encoder(MODEL_FOLDER), revising(_response(*before), _response(*after)))
    assert weights[1:] == expected, ids


def test_rows_are_full_weighted_and_the_same_for_the_same_seed() -> None:
    rows, again = make_rows(3, 20, 640, MODEL_FOLDER), make_rows(3, 20, 640, MODEL_FOLDER)
    for first, second in zip(rows, again, strict=True):
        np.testing.assert_array_equal(first, second)
    used = rows.segments != MAX_SEGMENTS
    assert used.mean() > 0.9
    assert not rows.weights[~used].any()
    assert set(np.unique(rows.weights)) == {0.0, *(np.float16(weight) for weight in WEIGHTS)}


def test_the_two_responses_of_a_pair_always_differ() -> None:
    rng = random.Random(11)
    for _ in range(300):
        _, (a, b) = draw_pair(rng)
        assert text_of(a) != text_of(b)


def test_no_document_holds_a_free_wording() -> None:
    free = {entry["text"].lower() for entry in principles.free_principles()}
    corpus, rng = Corpus(), random.Random(12)
    documents = corpus.documents(rng)
    for _ in range(300):
        text = "\n".join(turn.content for conversation in next(documents) for turn in conversation).lower()
        assert not [wording for wording in free if wording in text]
