"""Liger's kernels where there is no Liger: a stand-in puts them in as Liger does. `test_liger.py` has its own."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from constitutional.base.errors import ConfigurationError
from constitutional.engines.local import load_model
from constitutional.stages import dpo, sft
from constitutional.training.kernels import liger_kernels
from constitutional.training.reward_model import load_reward_model
from constitutional.training.rows import on_disk
from constitutional.training.trl import fit, load_policy
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models"))


def stand_in(monkeypatch: pytest.MonkeyPatch, apply: Callable[..., None]) -> None:
    """A Liger that knows Llama alone."""
    patch: Any = ModuleType("liger_kernel.transformers.monkey_patch")
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply}
    patch._apply_liger_kernel_to_instance = apply
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, patch.__name__, patch)


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, bool]]]:
    """To what Liger's kernels were given, and with what choices."""
    from transformers.models.llama import modeling_llama

    told: list[tuple[str, dict[str, bool]]] = []

    class LigerNorm(modeling_llama.LlamaRMSNorm):
        pass

    def apply(model: Any, **choices: bool) -> None:  # noqa: ANN401
        told.append((type(model).__name__, choices))
        vars(modeling_llama)["LlamaRMSNorm"] = LigerNorm

    stand_in(monkeypatch, apply)
    return told


def norm_of_a_later_one(model: Path) -> str:
    later: Any = load_model(model)[0]
    return type(later.model.norm).__name__


ONLY_LAYERS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def test_later_models_are_made_without_the_kernels(model: Path, applied: list[Any]) -> None:
    policy, _ = load_model(model)
    with liger_kernels(policy):
        assert norm_of_a_later_one(model) == "LigerNorm"
    assert norm_of_a_later_one(model) == "LlamaRMSNorm"
    with pytest.raises(KeyboardInterrupt), liger_kernels(policy):
        raise KeyboardInterrupt
    assert norm_of_a_later_one(model) == "LlamaRMSNorm"
    with liger_kernels(policy, on=False):
        assert norm_of_a_later_one(model) == "LlamaRMSNorm"
    # Below the head, as Liger knows no reward model of some architectures.
    scorer, _ = load_reward_model(model, new_head=True)
    with liger_kernels(scorer):
        pass
    assert applied == [*[("LlamaForCausalLM", ONLY_LAYERS)] * 2, ("LlamaModel", ONLY_LAYERS)]


@pytest.mark.parametrize("adapters", [None, {"rank": 2}])
def test_a_training_has_the_kernels_and_leaves_none_behind(
    model: Path, applied: list[Any], tmp_path: Path, adapters: dict[str, int] | None
) -> None:
    settings = sft.Settings.model_validate(
        {"epochs": 1, "learning_rate": 0.01, "use_liger_kernel": True, "lora": adapters}
    )
    policy, tokenizer = load_policy(model, settings)
    ask, tell = ([{"role": role, "content": "One text."}] for role in ("user", "assistant"))
    rows = on_disk([{"prompt": ask, "completion": tell}] * 2, tmp_path / "rows")
    trainer = sft.sft_trainer(policy, tokenizer, rows, settings, tmp_path, 0)
    assert not applied
    fit(trainer, log=tmp_path / "log.jsonl", label="sft")
    assert applied == [("LlamaForCausalLM", ONLY_LAYERS)]
    assert norm_of_a_later_one(model) == "LlamaRMSNorm"


def test_dpos_reference_computes_as_its_policy_does(model: Path, applied: list[Any], tmp_path: Path) -> None:
    settings = dpo.Settings(use_liger_kernel=True)
    policy, tokenizer = load_policy(model, settings)
    ask, good, bad = ([{"role": "user", "content": text}] for text in ("One?", "Good.", "Bad."))
    pair = {"prompt": ask, "chosen": good, "rejected": bad, "probability": 0.9, "weight": 1.0}
    dpo.soft_dpo_trainer(policy, tokenizer, on_disk([pair], tmp_path / "rows"), settings, tmp_path, 0)
    assert len(applied) == 1
    assert norm_of_a_later_one(model) == "LlamaRMSNorm"


def test_a_model_that_liger_does_not_know_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise TypeError("The model must be another.")

    stand_in(monkeypatch, refuse)
    policy: Any = load_model(model)[0]
    known = (
        r"^use_liger_kernel=true: Liger has no kernels for models of type llama, as a LlamaForCausalLM: The model must"
    )
    with pytest.raises(ConfigurationError, match=known), liger_kernels(policy):
        pass
    policy.config = SimpleNamespace(model_type="mamba")
    unknown = r"for models of type mamba; type sft\., reward\. or algorithm\.use_liger_kernel=false, whichever"
    with pytest.raises(ConfigurationError, match=unknown), liger_kernels(policy):
        pass
