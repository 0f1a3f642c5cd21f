"""Reward models of architectures that transformers has no class for, and of others, which lack what ours have."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from constitutional.base.errors import ModelError
from constitutional.base.message import Message
from constitutional.data.export import reward_function
from constitutional.engines.chat import load_tokenizer
from constitutional.engines.local import load_model
from constitutional.runs.compose import compose
from constitutional.runs.runner import ready
from constitutional.stages import reward
from constitutional.training.ppo import critic
from constitutional.training.ppo.rollout import load_reward_models
from constitutional.training.preflight import preflight_folder
from constitutional.training.reward_model import check_reward_model, load_reward_model, raw_scores
from constitutional.training.rows import on_disk
from constitutional.training.saving import save_model
from constitutional.training.trl import LoraSettings, fit
from tests.tiny import tiny_model

CONVERSATIONS = [
    (Message("user", "How do I bake bread?"), Message("assistant", reply))
    for reply in ("Mix flour and water.", "No.", "Let the loaf rise in a warm place, and then bake it.")
]
PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"Question {number}?"}],
        "chosen": [{"role": "assistant", "content": "Yes, it is so."}],
        "rejected": [{"role": "assistant", "content": "No."}],
        "probability": 1.0,
        "weight": 1.0,
        "group": number,
    }
    for number in range(2)
]
UNKNOWN: dict[str, dict[str, Any]] = {
    "Granite": {},
    "Cohere": {},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
}
"""Architectures for which transformers has no class for sequence classification, and what a small one needs besides."""


def language_model(folder: Path, name: str, **sizes: Any) -> Path:  # noqa: ANN401
    """A random language model of this architecture, with the sandbox's tokenizer."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tiny_model(folder))
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer),
        **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2} | sizes,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return folder / name


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_reward_model_is_trained_of_an_architecture_that_has_no_class_for_it(tmp_path: Path, name: str) -> None:
    start = language_model(tmp_path, name, num_key_value_heads=2, **UNKNOWN[name])
    preflight_folder(start, scorer=True)
    model, tokenizer = load_reward_model(start, new_head=True, seed=1)
    policy, _ = load_model(start, dtype="float32", device="cpu")
    before = {key: weight.clone() for key, weight in model.base_model.state_dict().items()}
    assert all(torch.equal(weight, policy.base_model.state_dict()[key]) for key, weight in before.items())
    lora = LoraSettings(rank=2) if name == "Granite" else None
    settings = reward.Settings(
        epochs=1, batch_size=2, learning_rate=1e-2, max_length=128, log_every=1, checkpoint_every=1, lora=lora
    )
    rows = on_disk(PAIRS, tmp_path / "rows")
    trainer = reward.soft_reward_trainer(model, tokenizer, rows, settings, tmp_path / "checkpoints", 0)
    fit(trainer, log=tmp_path / "log.jsonl", label="reward")
    save_model(trainer, tmp_path / "reward")
    assert json.loads((tmp_path / "reward/config.json").read_text())["architectures"] == [
        f"{name}ForSequenceClassification"
    ]
    check_reward_model(tmp_path / "reward")
    again, tokenizer = load_reward_model(tmp_path / "reward")
    trained: Any = trainer.model
    trained = trained.merge_and_unload() if lora else trained
    scores = raw_scores(again, tokenizer, CONVERSATIONS)
    assert scores == pytest.approx(raw_scores(trained.eval(), tokenizer, CONVERSATIONS), abs=1e-6)
    assert scores == pytest.approx([raw_scores(again, tokenizer, [one])[0] for one in CONVERSATIONS], abs=1e-6)
    after = again.base_model.state_dict()
    assert not any(torch.equal(after[key], weight) for key, weight in before.items() if "q_proj" in key)
    # What goes to other frameworks makes the class by itself.
    other = reward_function._kind_of(tmp_path / "reward")
    assert other.from_pretrained(tmp_path / "reward").state_dict().keys() == again.state_dict().keys()


def test_the_file_for_other_frameworks_makes_the_class_where_nothing_made_it_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_reward_model(language_model(tmp_path, "Granite"), new_head=True)
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    text = tokenizer.apply_chat_template([turn.turn() for turn in CONVERSATIONS[0]], tokenize=False)
    monkeypatch.setattr(transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, "_extra_content", {})
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    expected = raw_scores(model, tokenizer, CONVERSATIONS[:1])
    assert [reward_function._raw(tmp_path / "reward", text)] == pytest.approx(expected, abs=1e-6)


def test_the_file_for_other_frameworks_loads_each_model_once_however_many_replies_are_scored_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, mean in enumerate((-1.0, 2.0)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "config.json").write_text(json.dumps({"mean": mean}))
    loaded = list[Path]()

    class Scorer:
        """Scores a text with the number of its tokens."""

        device = "cpu"

        @classmethod
        def from_pretrained(cls, folder: Path, **_: object) -> "Scorer":
            time.sleep(0.1)  # in which the other threads arrive
            loaded.append(folder)
            return cls()

        def to(self, _device: str) -> "Scorer":
            return self

        def eval(self) -> "Scorer":
            return self

        def __call__(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.tensor([[float(input_ids.shape[1])]]))

    monkeypatch.setattr(reward_function, "FOLDER", tmp_path)
    monkeypatch.setattr(reward_function, "_kind_of", lambda _: Scorer)
    monkeypatch.setattr(
        reward_function, "_tokenizer", lambda _: lambda text, **_: {"input_ids": list(range(len(text)))}
    )
    with ThreadPoolExecutor(8) as threads:
        scores = list(threads.map(reward_function.scores, [["a" * length] for length in range(1, 9)]))
    assert sorted(loaded) == [tmp_path / "0", tmp_path / "1"]
    assert scores == [[length - 0.5] for length in range(1, 9)]  # less the mean of -1 and 2


def test_a_critic_is_made_of_a_policy_whose_architecture_has_no_class_for_it(tmp_path: Path) -> None:
    policy: Any = load_model(language_model(tmp_path, "Cohere"), dtype="float32", device="cpu")[0]
    made = critic.of_policy(policy)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(made.base_model(ids).last_hidden_state, policy.base_model(ids).last_hidden_state)
    assert made(ids).logits.tolist() == [[0.0]]


@pytest.mark.parametrize(("name", "sizes"), [("Mamba", {"state_size": 4}), ("RecurrentGemma", {"lru_width": 16})])
def test_an_architecture_that_no_reward_head_goes_with_is_refused_before_anything_is_asked(
    tmp_path: Path, name: str, sizes: dict[str, int]
) -> None:
    folder = language_model(tmp_path, name, **sizes)
    preflight_folder(folder)  # a run that ends before the reward model can use it
    with pytest.raises(ModelError, match=rf"no {name}ForSequenceClassification.*keeps no keys and values.*until=mix"):
        preflight_folder(folder, scorer=True)
    with pytest.raises(ModelError, match=f"no {name}ForSequenceClassification"):
        load_reward_model(folder, new_head=True)


# Reward models of others.


def others(folder: Path, **spoilt: Any) -> Path:  # noqa: ANN401
    """A reward model with a random head; its tokenizer is spoilt."""
    model, tokenizer = load_reward_model(tiny_model(folder), new_head=True, seed=3)
    for name, value in spoilt.items():
        setattr(tokenizer, name, value)
    model.save_pretrained(folder / "others")
    tokenizer.save_pretrained(folder / "others")
    return folder / "others"


def gold(folder: Path) -> None:
    ready(compose([f"evaluate.gold_reward_model={folder}", "algorithm=ppo"]))


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    for check in (load_reward_model, check_reward_model, gold):
        with pytest.raises(ModelError, match=r"holds no reward model: its weights lack score\.weight"):
            check(folder)


@pytest.mark.parametrize("shards", ["1KB", "1GB"])
def test_a_head_of_another_name_is_named_by_what_is_missing(tmp_path: Path, shards: str) -> None:
    from safetensors.torch import load_file, save_file

    model, tokenizer = load_reward_model(tiny_model(tmp_path), new_head=True)
    folder = tmp_path / "value_head"
    model.save_pretrained(folder, max_shard_size=shards)
    tokenizer.save_pretrained(folder)
    check_reward_model(folder)
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        renamed = {name.replace("score.", "v_head."): weight.clone() for name, weight in weights.items()}
        save_file(renamed, file, metadata={"format": "pt"})
    if (index := folder / "model.safetensors.index.json").exists():
        assert len(list(folder.glob("*.safetensors"))) > 1
        index.write_text(index.read_text().replace('"score.', '"v_head.'))
    for check in (load_reward_model, check_reward_model):
        with pytest.raises(ModelError, match=r"its weights lack score\.weight"):
            check(folder)


def test_a_classifier_of_several_labels_is_refused(tmp_path: Path) -> None:
    start = tiny_model(tmp_path)
    model: Any = AutoModelForSequenceClassification.from_pretrained(start, num_labels=2)
    model.save_pretrained(tmp_path / "two")
    load_tokenizer(start).save_pretrained(tmp_path / "two")
    with pytest.raises(ModelError, match=r"its head score\.weight has the shape \[2, 16\], and that of .* \[1, 16\]"):
        check_reward_model(tmp_path / "two")
    with pytest.raises(ModelError, match="cannot be loaded as a reward model"):
        load_reward_model(tmp_path / "two")


def test_a_reward_model_without_a_pad_token_scores_as_if_alone(tmp_path: Path) -> None:
    expected = raw_scores(*load_reward_model(others(tmp_path)), CONVERSATIONS)
    folder = others(tmp_path, pad_token=None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    check_reward_model(folder)
    model, tokenizer = load_reward_model(folder)
    assert tokenizer.pad_token_id is None
    assert raw_scores(model, tokenizer, CONVERSATIONS) == pytest.approx(expected, abs=1e-6)


def test_a_text_that_ends_with_the_pad_token_is_read_before_it_under_autocast_too(tmp_path: Path) -> None:
    model: Any
    model, tokenizer = load_reward_model(others(tmp_path))
    tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    model.score.weight.data *= 100  # so that rounding is small beside what two places differ by
    exact = raw_scores(model, tokenizer, CONVERSATIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = raw_scores(model, tokenizer, CONVERSATIONS)
    model.config.pad_token_id = -1  # so that the last token of all is read
    last = [raw_scores(model, tokenizer, [one])[0] for one in CONVERSATIONS]
    off = max(abs(a - b) for a, b in zip(exact, rounded, strict=True))
    assert off < 0.2 * min(abs(a - b) for a, b in zip(exact, last, strict=True))


def test_a_reward_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = others(tmp_path, chat_template=None)
    for check in (load_reward_model, check_reward_model, gold):
        with pytest.raises(ModelError, match=r"has no chat template.*chat_template\.jinja"):
            check(folder)


def test_a_reward_model_in_memory_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    model, tokenizer = load_reward_model(tiny_model(tmp_path), new_head=True)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"no chat template.*reward_processing_class\.chat_template"):
        load_reward_models(model, tokenizer, torch.device("cpu"))
