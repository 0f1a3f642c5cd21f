"""What models take: counted by hand, and held against passes of real models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from constitutional.base.errors import ConfigurationError, ModelError
from constitutional.engines.architecture import KNOWN, config_file, read_config
from constitutional.runs.compose import compose
from constitutional.training.footprint import Footprint, Pass
from tests.tiny import tiny_model

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
ROWS = Pass(3, 40)


def written(folder: Path, kind: str = "llama", **changes: Any) -> Path:  # noqa: ANN401
    """The config.json of a small architecture of six layers."""
    config = {"model_type": kind, "vocab_size": 100, "num_hidden_layers": 6, "head_dim": 16, **SIZES, **changes}
    file = folder / f"{kind}.json"
    file.write_text(json.dumps(config))
    return file


def made(file: Path, **options: Any) -> Any:  # noqa: ANN401
    torch.set_num_threads(1)
    return transformers.AutoModelForCausalLM.from_config(read_config(file), **options)  # type: ignore[no-untyped-call]


def kept_by_autograd(model: Any, rows: Pass) -> int:  # noqa: ANN401
    """Bytes that a real forward pass keeps for the backward pass, weights left out."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other gets its place
        return tensor

    ids = torch.zeros(rows.rows, rows.length, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=rows.autocast),
    ):
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return sum(storage.nbytes() for storage in kept.values()) + int(hidden.nbytes)


@pytest.mark.parametrize(
    ("preset", "billions"), [("llama3_8b", 8.03), ("qwen3_4b", 4.02), ("gemma3_4b", 4.30), ("smollm2", 0.1345)]
)
def test_the_presets_models_have_as_many_weights_as_was_published(preset: str, billions: float) -> None:
    path = "models/smollm2-135m" if preset == "smollm2" else compose([f"model={preset}"]).model.path
    assert Footprint(config_file(path)).weights / 1e9 == pytest.approx(billions, rel=2e-3)


def test_the_labelers_preset_has_as_many_weights_as_was_published() -> None:
    labeler: Any = compose(["labeler=qwen3_32b"]).labeler
    assert Footprint(config_file(labeler.path)).weights / 1e9 == pytest.approx(32.76, rel=1e-3)


def test_weights_and_cache_are_those_that_one_counts_by_hand(tmp_path: Path) -> None:
    model = Footprint(written(tmp_path))
    attention, mlp, norms = 64 * (64 + 32 + 32 + 64), 3 * 64 * 128, 2 * 64
    body = 6 * (attention + mlp + norms) + 64
    assert model.weights == body + 2 * 100 * 64
    assert model.scorer_weights == body + 100 * 64 + 64
    assert model.cache(2) == 2 * 6 * 2 * 16 * 2
    tied = Footprint(written(tmp_path, "qwen3", tie_word_embeddings=True))
    assert tied.tied
    assert tied.scorer_weights == tied.weights + 64


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_adapters_have_as_many_weights_as_peft_gives_them(tmp_path: Path, kind: str) -> None:
    from peft import LoraConfig, get_peft_model

    file = written(tmp_path, kind)
    adapted = get_peft_model(made(file), LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear"))
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert Footprint(file).adapter_weights(3) == trained > 0


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize(
    ("work", "rank"),
    [(ROWS, None), (ROWS, 4), (ROWS._replace(autocast=True), None), (Pass(3, 40, "bfloat16", autocast=True), 4)],
    ids=["all weights", "adapters", "all weights as on a GPU", "adapters as on a GPU"],
)
def test_what_a_training_pass_keeps_is_what_autograd_keeps_of_a_real_one(
    tmp_path: Path, kind: str, work: Pass, rank: int | None
) -> None:
    from peft import LoraConfig, get_peft_model

    file = written(tmp_path, kind)
    planned = Footprint(file).training(work, rank=rank, checkpointing=False)
    model = made(file, dtype=getattr(torch, work.dtype)).train()
    if rank is not None:
        lora = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear")
        model = get_peft_model(model, lora).get_base_model()
    assert planned.kept == pytest.approx(kept_by_autograd(model, work), rel=0.03)
    assert planned.most > planned.kept


def test_what_is_not_needed_is_not_planned(tmp_path: Path) -> None:
    model = Footprint(written(tmp_path))
    whole = model.training(ROWS, rank=None, checkpointing=False).most
    again = model.training(ROWS, rank=None, checkpointing=True)
    assert again.kept < again.most < whole / 2
    adapted = model.training(ROWS, rank=2, checkpointing=False).most
    assert adapted < whole
    assert model.training(Pass(6, 40), rank=None, checkpointing=False).most == pytest.approx(2 * whole, rel=0.1)
    longer = model.reading(Pass(3, 40), cached=True)
    assert longer - model.reading(Pass(3, 40)) == pytest.approx(3 * 40 * model.cache(4), rel=0.05)
    assert model.reading(Pass(3, 40, "bfloat16")) < 0.7 * model.reading(Pass(3, 40))


def test_six_layers_are_planned_from_fewer_as_if_all_had_been_run(tmp_path: Path) -> None:
    model = Footprint(written(tmp_path))
    for work, checkpointing in ((ROWS, False), (ROWS, True), (Pass(3, 40, autocast=True), False)):
        planned = model.training(work, rank=None, checkpointing=checkpointing)
        run = model._trained(6, work, None, checkpointing=checkpointing)
        assert planned.kept == pytest.approx(run.kept, rel=0.01)
        assert planned.most == pytest.approx(run.most, rel=0.01)


def test_a_head_on_a_gpu_holds_a_tile_and_on_a_cpu_copies_of_it(tmp_path: Path) -> None:
    model = Footprint(written(tmp_path, vocab_size=40_000))
    on_gpu = model.head(1000, trained=False, autocast=True, gpu=True)
    assert on_gpu == 1000 * 32_768 * 2 + 8 * 1000 * 64
    trained = model.head(1000, trained=True, autocast=True, gpu=True)
    assert trained - on_gpu == 4 * 40_000 * 64
    on_cpu = model.head(1000, trained=False, autocast=False, gpu=False)
    assert 5 * 1000 * 32_768 * 4 < on_cpu < 10 * 1000 * 32_768 * 4


def test_a_configuration_is_found_in_a_folder_among_the_presets_or_not_at_all(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    assert config_file(str(folder)) == folder / "config.json"
    assert config_file("sandbox").is_file()
    assert config_file("Qwen/Qwen3-32B") == KNOWN / "Qwen--Qwen3-32B.json"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigurationError, match=r"has no config\.json"):
        config_file(str(empty))
    with pytest.raises(ConfigurationError, match="neither 'sandbox', nor a folder"):
        config_file("no/such/model")
    (empty / "config.json").write_text('{"model_type": "abacus"}')
    with pytest.raises(ModelError, match="is no configuration of a model that transformers knows"):
        read_config(empty / "config.json")


def test_a_model_without_attention_has_no_keys_and_values(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "mamba", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 6}))
    model = Footprint(file)
    assert (model.cache(2), model.heads) == (0, 1)
    assert model.reading(Pass(1, 8, masked=False), cached=True) > 0
