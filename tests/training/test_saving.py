from pathlib import Path

import pytest

from constitutional.base.errors import ModelError
from constitutional.base.files import digest_of
from constitutional.engines.local import load_model
from constitutional.training.saving import bit_sums, check_finite, check_moved, write_model
from tests.tiny import tiny_model


def test_the_least_change_of_a_weight_is_seen() -> None:
    import torch

    weights = [torch.randn(3, 5), torch.ones(2, 2, dtype=torch.bfloat16), torch.tensor(0.0)]
    before = bit_sums(weights)
    with pytest.raises(ModelError, match="sft: no weight moved in 7 steps"):
        check_moved(before, weights, "sft", 7)
    for index in range(3):
        moved = [weight.clone() for weight in weights]
        last = moved[index].view(-1)[-1:]
        last.copy_(torch.nextafter(last, torch.full_like(last, 9)))
        check_moved(before, moved, "sft", 7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    import torch

    weights = [torch.full((4,), 3e38), torch.zeros(3)]  # their sum is beyond 32 bits, and they are numbers
    check_finite(weights, "dpo", 3)
    weights[1][2] = value
    with pytest.raises(ModelError, match=r"dpo: the loss is nan after step 3.*lower learning_rate"):
        check_finite(weights, "dpo", 3)


@pytest.mark.parametrize("value", [float("nan"), 3e38])  # of which two are more than 32 bits hold
def test_a_model_that_computes_no_numbers_is_not_saved(tmp_path: Path, value: float) -> None:
    import torch

    model, tokenizer = load_model(tiny_model(tmp_path), device="cpu")
    weights = dict(model.named_parameters())
    with torch.no_grad():
        weights["lm_head.weight"].fill_(value)
    with pytest.raises(ModelError, match=r"nan.*lower learning_rate"):
        write_model(model, tokenizer, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_number_that_is_none_and_decides_nothing_does_not_differ_from_itself(tmp_path: Path) -> None:
    import torch

    model, tokenizer = load_model(tiny_model(tmp_path), device="cpu")
    weights = dict(model.named_parameters())
    with torch.no_grad():
        weights["model.embed_tokens.weight"][-1] = float("nan")  # a token that is never read
    write_model(model, tokenizer, tmp_path / "saved")
    saved = dict(load_model(tmp_path / "saved", device="cpu")[0].named_parameters())["model.embed_tokens.weight"]
    assert saved[-1].isnan().all()
    assert torch.equal(saved[:-1], weights["model.embed_tokens.weight"][:-1])


def test_a_model_takes_the_place_of_another_only_if_it_reads_back_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model, tokenizer = load_model(tiny_model(tmp_path), device="cpu")
    folder = tmp_path / "saved"
    write_model(model, tokenizer, folder)
    first = digest_of(folder)
    weight = next(model.parameters())
    right = weight.detach().clone()
    save = model.save_pretrained

    def save_something_else(path: Path) -> None:
        with torch.no_grad():
            weight[0, 0] += 1
            save(path)
            weight.copy_(right)

    with monkeypatch.context() as patch:
        patch.setattr(model, "save_pretrained", save_something_else)
        with pytest.raises(ModelError, match="differs from the trained model once it is read again"):
            write_model(model, tokenizer, folder)
    assert digest_of(folder) == first
    with torch.no_grad():
        weight[0, 0] += 1
    write_model(model, tokenizer, folder)
    assert digest_of(folder) != first
    read, _ = load_model(folder, device="cpu")
    assert torch.equal(next(read.parameters()), weight)
