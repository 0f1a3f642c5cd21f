import math
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from constitutional.base.errors import ConfigurationError, UsageError
from constitutional.runs.compose import compose
from constitutional.runs.config_errors import _OF_TRL, secret
from constitutional.runs.settings import GROUPS, every_key

GRPO = "algorithm=grpo"
WRONG = {
    "name=3": ("name", "3", "text"),
    "name=a/b": ("name", '"a/b"', "letters and digits"),
    "folder=null": ("folder", "null", "path"),
    "sft.gradient_checkpointing=maybe": ("sft.gradient_checkpointing", '"maybe"', "true or false"),
    "seed=1.5": ("seed", "1.5", "whole number"),
    "seed==1": ("seed", '"=1"', "whole number"),
    "seed=-1": ("seed", "-1", "0"),
    "seed=1764300000000000000": ("seed", "1764300000000000000", "4294967295"),
    "seed=true": ("seed", "true", "number"),
    "until=lable": ("until", '"lable"', "prompts, .*label, .*report"),
    "constitution.only=calm": ("constitution.only", '"calm"', "list"),
    "constitution.only=3": ("constitution.only", "3", "list"),
    "constitution.without=[true,a]": ("constitution.without.0", "true", "text"),
    "constitution.weights.calm=many": ("constitution.weights.calm", '"many"', "number"),
    "constitution.weights.calm=true": ("constitution.weights.calm", "true", "number"),
    "constitution.weights={kind: 0}": ("constitution.weights.kind", "0", "greater than 0"),
    "model.path=null": ("model.path", "null", "text"),
    "model.template={thinking: [1]}": ("model.template.thinking", "[1]", "true or false.*number.*text"),
    "critic.template={limit: inf}": ("critic.template.limit", "Infinity", "finite"),
    "prompts.train=0": ("prompts.train", "0", "1"),
    "journal.path=[3]": ("journal.path", "[3]", "path"),
    "journal.path='postgresql://me@host/db'": ("journal.path", '"postgresql://me@host/db"', "SQLite file"),
    "critique_revise.rounds=9": ("critique_revise.rounds", "9", "8"),
    "sft.epochs=many": ("sft.epochs", '"many"', "number"),
    "sft.epochs=inf": ("sft.epochs", "Infinity", "finite"),
    "sft.lora=8": ("sft.lora", "8", "settings by name"),
    "sft.lora.rank=0": ("sft.lora.rank", "0", "1"),
    "algorithm.lora={rank: true}": ("algorithm.lora.rank", "true", "number"),
    "label.method=vote": ("label.method", '"vote"', "'logprobs', 'rationale', 'contrast', 'score' or 'votes'"),
    "label.clamp=[0.4]": ("label.clamp", "[0.4]", "short"),
    "label.clamp=[0.2,0.8,0.9]": ("label.clamp", "[0.2, 0.8, 0.9]", "at most 2"),
    "label.clamp=low": ("label.clamp", '"low"', "list"),
    "label.clamp=[0.6,0.7]": ("label.clamp", "[0.6, 0.7]", "around 0.5"),
    "mix.strengths=[0.6,0.7]": ("mix.strengths", "[0.6, 0.7]", "short"),
    "reward.members=0": ("reward.members", "0", "1"),
    "algorithm.beta=low": ("algorithm.beta", '"low"', "number"),
    f"{GRPO} algorithm.rewards=[{{kind: length, limit: a}}]": ("algorithm.rewards.0.limit", '"a"', "whole number"),
    f"{GRPO} algorithm.rewards=[{{limit: 3}}]": ("algorithm.rewards.0", '{"limit": 3}', "kind"),
    f"{GRPO} algorithm.rewards=[3]": ("algorithm.rewards.0", "3", "settings by name"),
    f"{GRPO} algorithm.rewards=[{{kind: lenght}}]": ("algorithm.rewards.0", "lenght", "'reward_model'.*'python'"),
}
"""Wrong overrides; the setting, its value and what was expected, all of which the line has to name."""


def lines_of(*overrides: str, kind: type[Exception] = ConfigurationError) -> list[str]:
    with pytest.raises(kind) as caught:
        compose(overrides)
    return [str(caught.value), *getattr(caught.value, "__notes__", [])]


def advised(line: str) -> list[str]:
    """The overrides that a line tells to type, read as a shell reads them."""
    return shlex.split(line.partition("; type ")[2].partition(", or ")[0])


def words_of(text: str) -> list[str]:
    return [text] if not text.startswith(GRPO) else [GRPO, text.removeprefix(f"{GRPO} ")]


@pytest.mark.parametrize(("text", "named"), WRONG.items())
def test_a_wrong_value_is_a_line_with_its_key_and_value_and_advice_that_composes(
    text: str, named: tuple[str, str, str]
) -> None:
    (line,) = lines_of(*words_of(text))
    key, value, expected = named
    assert line.startswith(f"{key} ")
    assert value in line
    assert re.search(expected, line.partition(value)[2])
    assert "\n" not in line
    (typed,) = advised(line)
    assert typed.partition("=")[0] == re.sub(r"[.][0-9]+.*", "", key)
    compose([*words_of(text)[:-1], typed])


def test_every_wrong_value_has_a_line() -> None:
    texts = [text for text in WRONG if not text.startswith((GRPO, "until"))]
    once = {text.partition("=")[0]: text for text in texts if "{" not in text and "lora" not in text}
    # `true` is a number to pydantic, so it is looked for where nothing else is wrong.
    chosen = [text for text in once.values() if not text.endswith("=true")]
    assert len(lines_of(*chosen)) == len(chosen) >= 15


@pytest.mark.parametrize(
    ("overrides", "named", "typed"),
    [
        (["label=bai2022_cot"], "label.clamp.*mix.margin=0.2", ["mix.margin=0"]),
        (["sft.checkpoint_every=7"], "sft.*checkpoint_every is 7.*log_every", ["sft.checkpoint_every=5"]),
        ([GRPO, "prompts.train=3"], "prompts.train=3 .*2 prompts.* step has 8", ["prompts.train=17"]),
        ([GRPO, "algorithm.max_tokens=2000"], "max_tokens=2000.*max_length=1024", ["algorithm.max_length=3024"]),
        ([GRPO, "algorithm.num_generations=7"], "num_generations.*7", ["algorithm.batch_size=112"]),
    ],
)
def test_values_that_do_not_go_together_are_refused_before_anything_runs(
    overrides: list[str], named: str, typed: list[str]
) -> None:
    (line,) = lines_of(*overrides)
    assert re.search(named, line)
    assert advised(line) == typed
    compose([*overrides, *typed])


@pytest.mark.parametrize(
    ("override", "key", "filled_in"),
    [("prompts=file", "prompts.path", "FILE"), ("mix.human_ratio=0.5", "mix.human", "FILE,")],
)
def test_what_has_no_value_says_how_it_is_given(override: str, key: str, filled_in: str) -> None:
    (line,) = lines_of(override)
    assert line.startswith(f"{key} has no value yet; type {key}={filled_in}")
    compose([override, f"{key}=some/file.jsonl"])


def models_of(annotation: object) -> Iterator[type[BaseModel]]:
    """The settings models in a type, and those in their fields."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_of(field.annotation)
    for part in get_args(annotation):
        yield from models_of(part)


@pytest.mark.parametrize(
    "words", [["prompts.train=1"], ["prompts.train=8"], ["prompts.train=8", "algorithm.epochs=0.05"]]
)
@pytest.mark.parametrize("preset", ["algorithm=grpo_direct", GRPO])
def test_what_is_advised_for_a_small_trial_composes_too(preset: str, words: list[str]) -> None:
    (line,) = lines_of(preset, *words)
    trial = line.partition("small trial ")[2].split()
    config = compose([preset, *words, *trial])
    assert getattr(config.algorithm, "prompts_per_step", 0) <= 8
    assert not any(word.startswith("prompts.") for word in trial)


@pytest.mark.parametrize(
    ("overrides", "typed"),
    [
        ([GRPO, "algorithm.max_steps=2"], "algorithm.epochs=VALUE"),
        (["algorithm=ppo", "algorithm.max_steps=2"], "algorithm.episodes=VALUE"),
        (["sft.max_steps=2"], "sft.epochs=VALUE"),
        (["max_steps=2"], "algorithm.epochs=VALUE"),
        (["algorithm=grpo_direct", "algorithm.episodes=64"], "algorithm.epochs=VALUE"),
        (["algorithm.num_train_epochs=3"], "algorithm.epochs=3"),
        (["reward.num_train_epochs=3"], "reward.epochs=3"),
        (["algorithm=ppo", "algorithm.num_train_epochs=3"], "algorithm.episodes=VALUE"),
        (["algorithm=ppo", "algorithm.num_ppo_epochs=3"], "algorithm.epochs=3"),
        (["algorithm=ppo", "algorithm.total_episodes=64"], "algorithm.episodes=64"),
        (["algorithm=rloo", "algorithm.total_episodes=64"], "algorithm.epochs=VALUE"),
        (["algorithm.per_device_train_batch_size=4"], "algorithm.batch_size=4"),
        ([GRPO, "algorithm.max_completion_length=100"], "algorithm.max_tokens=100"),
        ([GRPO, "algorithm.max_prompt_length=100"], "algorithm.max_length=VALUE"),
        (["sft.lr_scheduler_type=cosine"], "sft.schedule=cosine"),
        ([GRPO, "algorithm.use_vllm=true"], "algorithm.sampler=VALUE"),
    ],
)
def test_a_name_of_trls_is_answered_with_what_does_it_here(overrides: list[str], typed: str) -> None:
    (line,) = lines_of(*overrides)
    assert f"type {typed} in its place" in line
    key, _, value = typed.partition("=")
    others = [word for word in overrides if word.startswith("algorithm=")]
    if value != "VALUE":
        compose([*others, typed])
    else:  # the setting is there, and only the value is left to choose
        assert lines_of(*others, f"{key}=[x]")[0].startswith(f"{key} is ")


def test_every_setting_that_stands_for_a_name_of_trls_is_one() -> None:
    keys = {key.rpartition(".")[2] for key in every_key()}
    assert {meant for meanings in _OF_TRL.values() for meant in meanings} <= keys
    assert not (_OF_TRL.keys() - {"episodes"}) & keys


@pytest.mark.parametrize(
    ("overrides", "role"),
    [
        ("labeler.api_key=SECRET", "labeler"),
        ("+labeler.api_key=SECRET", "labeler"),
        ("critic.token=SECRET", "critic"),
        ("panel.second.key=SECRET", "panel.second"),
        ("labeler.OPENAI_API_KEY=SECRET", "labeler"),
        ("labeler.api_key_evn=SECRET", "labeler"),
        ("api_key=SECRET", "labeler"),
        ("algorithm.api_key={a:SECRET}", "labeler"),
        ("generator.apiKey=SECRET,b", "generator"),
        ("labeler.password=SECRET{", "labeler"),
        ("labeler=http labeler.url=http://a/v1 labeler.model=m labeler.api_key_env=[SECRET]", "labeler"),
        ("labeler=http labeler.url=http://a/v1 labeler.model=m labeler.api_key_env=SECRET-1", "labeler"),
        ("labeler={api_key:SECRET}", "labeler"),
    ],
)
def test_a_key_is_not_shown_and_is_told_its_place(overrides: str, role: str) -> None:
    with pytest.raises((ConfigurationError, UsageError)) as caught:
        compose(overrides.split())
    line = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "SECRET" not in line
    assert "export NAME=" in line
    assert line.endswith(f"{role}.api_key_env=NAME")


def test_a_setting_or_a_name_of_ones_own_is_not_taken_for_a_key() -> None:
    assert [key for key in every_key() if secret(key)] == []
    compose(["panel.key=local", "label.weights.key=2", "constitution.weights.secret=2", "labeler.pad_token=x"])
    assert "max_tokens" in lines_of("label.max_token=3")[0]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_setting_takes_a_number_that_is_not_finite(value: float) -> None:
    def refuses(model: type[BaseModel], name: str) -> bool:
        for given in (value, [value] * 2, [value] * 4, {"a": value}):  # one of them is as the setting is made
            try:
                model.model_validate({name: given})
            except ValidationError as error:
                if any(each["loc"][:1] == (name,) and each["type"] == "finite_number" for each in error.errors()):
                    return True
        return False

    models = {each for options in GROUPS.values() for option in options.values() for each in models_of(option)}
    fields = [
        (model, name)
        for model in models
        for name, field in model.model_fields.items()
        if re.search(r"\bfloat\b", str(field.annotation)) and not any(models_of(field.annotation))
    ]
    assert len(fields) > 50  # all are looked at
    assert [f"{model.__qualname__}.{name}" for model, name in fields if not refuses(model, name)] == []


@pytest.mark.parametrize(
    ("override", "typed"),
    [
        ("label.methd=votes", "label.method=votes"),
        ("sft.lora.rnk=8", "sft.lora.rank=8"),
        ("lable=votes", "label=votes"),
        ("+prompt.train=8", "prompts.train=8"),
    ],
)
def test_a_mistyped_setting_is_answered_with_the_nearest(override: str, typed: str) -> None:
    (line,) = lines_of(override)
    assert line.endswith(f"Type {typed}")
    compose([typed])


def test_a_setting_that_nothing_is_like_is_named() -> None:
    assert "'zzz'" in lines_of("zzz=1")[0]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["algorithm.cliprange_value=1"], "algorithm.cliprange_value.*algorithm=ppo.*algorithm.kind=dpo is chosen"),
        (["algorithm=ppo", "algorithm.beta=0.2"], "algorithm.beta.*algorithm=dpo.*algorithm.kind=ppo is chosen"),
        (
            ["prompts=file", "prompts.path=p", "prompts.train=3"],
            "prompts.train.*prompts=sandbox.*prompts.kind=file is chosen",
        ),
    ],
)
def test_a_setting_of_another_option_names_both_options(overrides: list[str], named: str) -> None:
    (line,) = lines_of(*overrides)
    assert re.search(named, line)


def test_a_setting_of_all_engines_that_no_role_has_or_takes_is_refused() -> None:
    lines = lines_of("engine=http", "engine.model=m", "engine.urll=http://127.0.0.1:1/v1")
    assert any("did you mean labeler.url" in line for line in lines)
    with pytest.raises(UsageError, match=r"^engine\.url=\S+ is a setting of engine=http; type that as well$"):
        compose(["engine.url=http://127.0.0.1:1/v1"])
    own = [f"{role}.batch_size=2" for role in ("generator", "critic", "labeler")]
    for words in (own, ["engine=http"], ["generator=http", "critic=vllm", "labeler=scripted"]):
        with pytest.raises(UsageError, match=r"^engine\.batch_size=3: every role has a batch_size of its own"):
            compose([*words, "engine.batch_size=3"])


def test_prompts_of_a_file_are_not_thrown_away_for_those_of_the_sandbox() -> None:
    (line,) = lines_of("prompts.files=[p.jsonl]", "prompts.train=20")
    assert "prompts=sandbox as well" not in line
    assert "prompts.held_out=N" in line
    assert "fewer prompts" in line


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("label=nope", "'nope'.*bai2022, bai2022_cot, contrast, direct_rlaif, lee2023, votes"),
        ("label=vote", "did you mean votes"),
        ("constitution=mine.yaml", "constitution.file=mine.yaml"),
        ("model=./folder", "model.path=./folder"),
        ("labeler=nope", "local, qwen3_32b"),
        ("model=3", "gemma3_4b.*llama3_8b.*qwen3_4b.*sandbox"),
        ("algorithm={kind:grpo}", "algorithm=dpo .*algorithm=grpo "),
        ("journal=3", "journal.path="),
        ("prompts.kind=x", "file, sandbox"),
        ("label=", "bai2022, .*votes"),
        ("=3", "KEY=VALUE"),
        ("~sft", "~sft.*sft=VALUE"),
        ("seed=1,2", "-m"),
        ("hydra.run.dir=x", "leave it out"),
        ("hydra=null", "leave it out"),
        ("model={", "KEY=VALUE"),
        ("label.=3", "KEY=VALUE"),
        ("engine@labler=local", "engine@labeler"),
    ],
)
def test_a_word_that_cannot_stand_is_one_line_with_a_way_out(override: str, named: str) -> None:
    (line,) = lines_of(override, kind=UsageError)
    assert re.search(named, line)
    assert "\n" not in line


def test_every_word_that_cannot_be_read_has_a_line() -> None:
    assert len(lines_of("model={", "seed", kind=UsageError)) == 2


def test_a_reference_to_nothing_names_the_setting() -> None:
    (line,) = lines_of("sft.epochs=${nope}")
    assert line.startswith("sft.epochs")
    assert "nope" in line


@pytest.mark.parametrize("preset", ["algorithm=ppo", "algorithm=ppo_adapter"])
def test_a_kind_that_contradicts_the_preset_is_all_that_is_said(preset: str) -> None:
    (line,) = lines_of(preset, "algorithm.kind=rloo", kind=UsageError)
    assert preset in line
    assert compose([preset, "algorithm.kind=ppo"]).algorithm.kind == "ppo"


@pytest.mark.parametrize("overrides", ["label.method=votes", {"label.method": "votes"}, 3])
def test_overrides_that_are_no_list_say_what_is_taken(overrides: Sequence[str]) -> None:
    with pytest.raises(UsageError, match=r"compose.*list of overrides"):
        compose(overrides)
