from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import ModelError
from constitutional.base.files import digest_of
from constitutional.engines.local import load_model
from constitutional.training.saving import bit_sums, check_finite, check_moved, merged, share_kept, write_model
from tests.tiny import tiny_model


def test_the_least_change_of_a_weight_is_seen() -> None:
    import torch

    weights = [torch.randn(3, 5), torch.ones(2, 2, dtype=torch.bfloat16), torch.tensor(0.0)]
    before = bit_sums(weights)
    with pytest.raises(ModelError, match="sft: no weight moved in 7 steps"):
        check_moved(before, bit_sums(weights), "sft", 7)
    for index in range(3):
        moved = [weight.clone() for weight in weights]
        last = moved[index].view(-1)[-1:]
        last.copy_(torch.nextafter(last, torch.full_like(last, 9)))
        check_moved(before, bit_sums(moved), "sft", 7)


@pytest.mark.parametrize(
    ("weights", "change", "share"),
    [
        # From 1 to 2 a step of bfloat16 is 2^-7: half of it is the least that shows.
        ([1.0, 1.0], 0.001, 0.0),
        ([1.0, 1.0], 2**-7, 1.0),
        ([1.0, 1.0], 2**-7 * 0.75, 4 / 3),  # rounded up
        ([1.0, 0.0], 2**-10, 0.5),  # around 0 steps are small
        ([1.0, 0.0], 0.0, 1.0),
    ],
)
def test_the_share_of_an_adapter_that_16_bits_hold(weights: list[float], change: float, share: float) -> None:
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    for dtype, expected in ((torch.bfloat16, share), (torch.float32, 1.0)):
        model: Any = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False, dtype=dtype))
        adapted: Any = inject_adapter_in_model(LoraConfig(r=1, lora_alpha=2, target_modules=["0"]), model)
        layer = adapted[0]
        layer.get_base_layer().weight.data = torch.tensor(weights, dtype=dtype)[:, None]
        layer.lora_A["default"].weight.data = torch.tensor([[0.5]])  # and alpha / rank is 2
        layer.lora_B["default"].weight.data = torch.tensor([[change], [change]])
        assert share_kept(adapted) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("dtype", "warned"), [("bfloat16", True), ("float32", False)])
def test_what_rounds_away_as_adapters_are_merged_is_told(tmp_path: Path, dtype: str, warned: bool) -> None:
    from peft import LoraConfig, get_peft_model

    model, _ = load_model(tiny_model(tmp_path), device="cpu", dtype=dtype)
    before = bit_sums(model.parameters())
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(1e-6)
    said: list[str] = []
    whole = merged(adapted, said.append)
    assert len(said) == warned
    assert all("learning_rate" in line for line in said)
    assert bit_sums(whole.parameters()) != before  # weights close to 0 have small steps


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
