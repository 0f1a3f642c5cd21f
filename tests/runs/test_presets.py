"""The presets for real models, each from its prompts to its report: its architecture in small, with random weights.

What is real is what goes wrong first: the configuration's own fields, the chat template and the special tokens. The
templates are the models' own, as TRL ships them to know models by (`trl/chat_templates/`, whose README says whose).
"""

import importlib.resources
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from constitutional.base.records import Judgement, Preference, Revision, Rollout, Sample
from constitutional.engines.architecture import KNOWN, read_config
from constitutional.engines.base import Sampling
from constitutional.engines.chat import load_tokenizer
from constitutional.engines.model_files import recommended
from constitutional.runs.compose import compose, load
from constitutional.runs.folder import RunStore
from constitutional.training.preflight import preflight_folder
from scripts.sandbox_training.tokenizer import build_tokenizer


class Family(NamedTuple):
    """What a family's tokenizer has."""

    template: str
    special: tuple[str, ...]
    """Its special tokens, the first of them that of padding."""
    end_of_turn: str
    eos: str
    bos: str | None
    temperature: float
    """As the real model's `generation_config.json` recommends, with `top_p` and `top_k`, which nothing here reads."""
    top_p: float
    top_k: int | None
    heard: float = 2.2
    """How well the end of a turn is heard: every sixth token or so ends it."""


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FAMILIES = {
    # As it is published, it names no token for padding.
    "llama3_8b": Family(
        "llama3_1",
        (
            *("<|finetune_right_pad_id|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"),
            *("<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
        ),
        "<|eot_id|>",
        "<|eot_id|>",
        "<|begin_of_text|>",
        *(0.6, 0.9, None),
    ),
    "qwen3_4b": Family("qwen3_instruct_2507", CHATML, "<|im_end|>", "<|im_end|>", None, 0.7, 0.8, 20),
    "qwen3_32b": Family("qwen3", CHATML, "<|im_end|>", "<|im_end|>", None, 0.6, 0.95, 20),
    "gemma3_4b": Family(
        "gemma3",
        ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        "<eos>",
        "<bos>",
        *(1.0, 0.95, 64),
        3.5,
    ),
}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 16_384,
    "max_window_layers": 2,
    "sliding_window": 64,
}
PROMPTS = 12
LENGTHS = (
    *("critique_revise.rounds=1", "critique_revise.few_shot=0"),
    *(f"critique_revise.{text}_max_tokens=32" for text in ("draft", "critique", "revision")),
    *(
        "sample_pairs.max_tokens=32",
        "sample_pairs.samples=3",
        "evaluate.max_tokens=12",
        "evaluate.critique_max_tokens=8",
    ),
    *("evaluate.prompts=4", "evaluate.judged=2", "evaluate.critiqued=1", "evaluate.compared=2"),
    *("algorithm.gradient_accumulation=1", "sft.gradient_accumulation=1", "reward.gradient_accumulation=1"),
    *("sft.helpful_share=0", "sft.log_every=5", "algorithm.checkpoint_every=5", "sft.checkpoint_every=5"),
    # Labels of a model with random weights say nothing, and are wanted all the same.
    *("label.max_canary_failures=1", "mix.margin=0", "mix.held_out_share=0.3", "reward.reference_samples=8"),
    *("sft.learning_rate=0.00005", "reward.learning_rate=0.001", "algorithm.learning_rate=0.001"),
)


def small_model(preset: str, path: str, folder: Path) -> Path:
    """The architecture of a preset's model in small, with random weights, and a tokenizer that speaks as its own."""
    import torch
    import transformers

    torch.set_num_threads(1)
    family = FAMILIES[preset]
    tokenizer: Any = build_tokenizer(["One text is enough."], count=50)
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)})
    tokenizer.eos_token, tokenizer.bos_token = family.eos, family.bos
    tokenizer.pad_token = None if preset == "llama3_8b" else family.special[0]
    template = importlib.resources.files("trl") / "chat_templates" / f"{family.template}.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    config = read_config(KNOWN / f"{path.replace('/', '--')}.json")
    text = config.get_text_config()
    for name, value in SMALL.items():
        if getattr(text, name, None) is not None:
            setattr(text, name, value)
    if kinds := getattr(text, "layer_types", None):
        text.layer_types = [kinds[0], "full_attention"]
    text.vocab_size = len(tokenizer)
    for part in {id(config): config, id(text): text}.values():
        part.bos_token_id, part.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
        part.eos_token_id = tokenizer.convert_tokens_to_ids([family.eos, family.end_of_turn])
    if hasattr(config, "vision_config"):
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        for name, value in sizes.items():
            setattr(config.vision_config, name, value)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():  # what the first dimension of the width says all the time, the end of a turn hears best
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[:, 0] = 1.0
        model.get_output_embeddings().weight[tokenizer.convert_tokens_to_ids(family.end_of_turn), 0] = family.heard
    model.generation_config = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=family.temperature,
        top_p=family.top_p,
        top_k=family.top_k,
        eos_token_id=config.eos_token_id,
    )
    target = folder / preset
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all runs, with prompts and a constitution."""
    folder = tmp_path_factory.mktemp("presets")
    texts = [f"What is {number} and one? Say it in words." for number in range(PROMPTS)]
    rows = [{"prompt": text, "split": "held_out" if number % 3 == 0 else "train"} for number, text in enumerate(texts)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "ours.yaml").write_text(
        "name: ours\nprinciples:\n  - id: brief\n    text: Keep it brief.\n  - id: kind\n    text: Be kind.\n"
    )
    return folder


def made(here: Path, preset: str) -> Path:
    """The small model of a preset, made once."""
    words = [f"labeler={preset}" if preset == "qwen3_32b" else f"model={preset}"]
    chosen: Any = compose(words).labeler if preset == "qwen3_32b" else compose(words).model
    path = here / "models" / preset
    return path if path.exists() else small_model(preset, chosen.path, here / "models")


def go(here: Path, preset: str, name: str, *words: str, experiment: str = "bai2022") -> RunStore:
    from constitutional.cli.main import main

    path = made(here, preset)
    common = (
        *(f"name={name}", f"folder={here}/runs", f"constitution.file={here}/ours.yaml", "constitution.only=null"),
        *("mix=schema", f"model={preset}", f"model.path={path}", f"prompts.path={here}/prompts.jsonl"),
        *("prompts.held_out=4", *LENGTHS),
    )
    assert main(["run", f"experiment={experiment}", *common, *words]) == 0
    return RunStore.load(here / "runs" / name)


@pytest.mark.parametrize("preset", ["llama3_8b", "qwen3_4b", "gemma3_4b", "qwen3_32b"])
def test_a_presets_settings_are_those_that_its_tokenizer_and_template_take(here: Path, preset: str) -> None:
    chosen: Any = (
        compose([f"model={preset}"]).model if preset != "qwen3_32b" else compose([f"labeler={preset}"]).labeler
    )
    folder = made(here, preset)
    # It refuses arguments that the template does not read, and a tokenizer that cannot be trained with.
    preflight_folder(folder, pad_token=chosen.pad_token, template=chosen.template or {})
    tokenizer = load_tokenizer(folder, pad_token=chosen.pad_token, template=chosen.template or {})
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Yes?"}], tokenize=False, add_generation_prompt=True
    )
    openings = {"llama3_8b": "assistant<|end_header_id|>\n\n", "gemma3_4b": "<start_of_turn>model\n"}
    thought = "<think>\n\n</think>\n\n" if preset == "qwen3_32b" else ""  # closed before it begins
    assert asked.endswith(openings.get(preset, f"<|im_start|>assistant\n{thought}"))
    assert recommended(str(folder)) == (FAMILIES[preset].temperature, FAMILIES[preset].top_p)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["llama3_8b", "qwen3_4b", "gemma3_4b"])
def test_a_preset_runs_from_its_prompts_to_its_report(here: Path, preset: str) -> None:
    import torch
    from safetensors.torch import load_file

    dpo = go(here, preset, f"{preset}_dpo")
    assert len(dpo.read("revisions", Revision)) == 8
    assert dpo.read("judgements", Judgement)
    assert dpo.read("preferences", Preference)
    assert len(dpo.read("samples", Sample)) == 4
    models = [load_file(dpo.artifact(name) / "model.safetensors") for name in ("sft_model", "policy")]
    assert any(not torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert (dpo.artifact("report")).exists()
    replies, family = load(dpo.folder).evaluate, FAMILIES[preset]
    drawn_at = Sampling.of(replies.temperature, replies.top_p, replies.max_tokens)
    assert (drawn_at.temperature, drawn_at.top_p) == (family.temperature, family.top_p)  # as the model recommends
    lengths = ("algorithm.episodes=16", "algorithm.max_tokens=12", "algorithm.max_prompt_tokens=200")
    ppo = go(here, preset, f"{preset}_ppo", "algorithm=ppo_adapter", *lengths)
    assert ppo.read("rollouts", Rollout)
    assert ppo.stages["reward"].fingerprint == dpo.stages["reward"].fingerprint  # what is before it is used again


@pytest.mark.slow
def test_another_model_is_the_labeler(here: Path) -> None:
    labeler = made(here, "qwen3_32b")
    # Whoever reasons at random never comes to "Better: A".
    words = (f"labeler.path={labeler}", "label.method=logprobs")
    # At the sampling that Qwen's makers recommend these weights always end a turn at once.
    plain = [f"{stage}.{name}=1" for stage in ("critique_revise", "evaluate") for name in ("temperature", "top_p")]
    store = go(here, "qwen3_4b", "lee", *words, *plain, experiment="lee2023")
    judgements = store.read("judgements", Judgement)
    assert judgements
    assert {row.principle for row in judgements} == {"brief", "kind"}  # all of them judge
    asked = store.stages["label"].calls
    assert asked.asked >= 2 * len(judgements)  # in both orders
    assert store.read("preferences", Preference)
    assert store.artifact("policy").exists()
