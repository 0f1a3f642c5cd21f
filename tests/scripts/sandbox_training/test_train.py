from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from constitutional.sandbox import MODEL_FOLDER
from scripts.sandbox_training import train as training
from scripts.sandbox_training.corpus import FIRST, LAST, make_rows
from scripts.sandbox_training.network import Batch, Recipe, Sandbox, export, read_back, to_batch
from scripts.sandbox_training.train import load_checkpoint, rate_at, shares_at, train

TINY = Recipe(hidden=32, layers=2, heads=2, feed_forward=48, row_length=320, rows_per_step=2, steps=8, warmup_steps=2)


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    recipe = Recipe(steps=100, warmup_steps=10, decay=0.5)
    assert rate_at(0, recipe) == pytest.approx(0.1)  # the first of ten steps of warm-up
    assert rate_at(10, recipe) == 1.0
    assert rate_at(50, recipe) == 1.0
    assert rate_at(75, recipe) == pytest.approx(0.5)  # half of the second half is left
    assert rate_at(100, recipe) == 0.0


def test_the_loss_is_the_weighted_mean_of_each_tokens_surprise_after_its_parent() -> None:
    model = Sandbox(TINY)
    with torch.no_grad():
        model.embedding.zero_()  # every logit is 0, so each token costs log(4096) whatever came before
    ids = torch.tensor([[1, 7, 8, 9]])
    batch = Batch(
        ids,
        torch.tensor([[-1, 0, 1, 1]]),
        torch.tensor([[0, 1, 2, 2]]),
        torch.tensor([[0.0, 1.0, 0.0, 3.0]]),
        torch.zeros(1, 1, 4, 4),
    )
    assert model.loss(batch, torch.float32).item() == pytest.approx(8.3177662, abs=1e-4)  # ln 4096 = 12 ln 2


def test_a_token_is_learned_from_its_parent_and_not_from_its_neighbour() -> None:
    torch.manual_seed(1)
    model = Sandbox(TINY)
    rows = make_rows(1, 2, 320, MODEL_FOLDER)
    batch = to_batch(rows, slice(0, 2), torch.device("cpu"), torch.float32)
    hidden = model.hidden(batch.ids, batch.positions, batch.mask, torch.float32)
    row, at = (batch.weights > 0).nonzero(as_tuple=True)
    logprobs = (hidden @ model.embedding.T).log_softmax(-1)
    by_hand = -sum(
        (batch.weights[r, t] * logprobs[r, batch.parents[r, t], batch.ids[r, t]]).item()
        for r, t in zip(row.tolist(), at.tolist(), strict=True)
    )
    expected = by_hand / batch.weights.sum().item()
    assert model.loss(batch, torch.float32).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sharpness", [1.0, 1.5])
def test_the_exported_llama_gives_the_same_logits_times_its_sharpness(tmp_path: Path, sharpness: float) -> None:
    torch.manual_seed(2)
    model = Sandbox(TINY)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16().float())  # what the exported file can hold
    export(model, tmp_path, MODEL_FOLDER, sharpness=sharpness)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(7, 4096, (2, 40))
    causal = torch.full((40, 40), -30_000.0).triu(1)[None, None]
    with torch.no_grad():
        mine = model.hidden(ids, torch.arange(40).expand(2, -1), causal, torch.float32) @ model.embedding.T
        theirs = plain(input_ids=ids).logits
    torch.testing.assert_close(mine * sharpness, theirs, rtol=1e-4, atol=1e-4)


def test_an_exported_model_is_read_back_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = Sandbox(TINY)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16().float())
    export(model, tmp_path, MODEL_FOLDER, sharpness=2.0)  # a power of two loses nothing in bf16
    again = read_back(tmp_path, TINY, sharpness=2.0)
    assert set(again) == set(model.state_dict())
    for name, weight in model.state_dict().items():
        assert torch.equal(again[name], weight), name


def test_training_begins_with_the_weights_that_it_is_given(tmp_path: Path) -> None:
    torch.manual_seed(4)
    start = Sandbox(TINY).state_dict()
    still = replace(TINY, learning_rate=0.0)
    for name, weight in (
        train(still, MODEL_FOLDER, tmp_path, start=start, stop_at=1, compiled=False).state_dict().items()
    ):
        assert torch.equal(weight, start[name]), name


def test_the_last_part_of_training_draws_other_documents() -> None:
    recipe = Recipe(steps=1000, last=0.3)
    assert [shares_at(step, recipe) for step in (0, 699, 700, 950)] == [FIRST, FIRST, LAST, LAST]


@pytest.mark.parametrize("steps_per_chunk", [50, 4])  # stopped within the first chunk of rows, and within the second
def test_training_that_was_stopped_goes_on_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_per_chunk: int
) -> None:
    monkeypatch.setattr(training, "STEPS_PER_CHUNK", steps_per_chunk)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = train(TINY, MODEL_FOLDER, tmp_path / "whole", compiled=False)
    train(TINY, MODEL_FOLDER, tmp_path / "broken", stop_at=5, compiled=False)
    assert load_checkpoint(tmp_path / "broken" / "checkpoint.pt")[1]["step"] == 5
    resumed = train(TINY, MODEL_FOLDER, tmp_path / "broken", compiled=False)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    train(TINY, MODEL_FOLDER, tmp_path, stop_at=1, compiled=False)
    with pytest.raises(SystemExit, match="another recipe"):
        train(replace(TINY, seed=5), MODEL_FOLDER, tmp_path, compiled=False)
