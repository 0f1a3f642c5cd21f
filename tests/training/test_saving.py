from pathlib import Path

import pytest

from constitutional.base.errors import ModelError
from constitutional.base.files import digest_of
from constitutional.engines.local import load_model
from constitutional.training.saving import write_model
from tests.tiny import tiny_model


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
