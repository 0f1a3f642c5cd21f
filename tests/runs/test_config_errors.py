import math
import re
import shlex
from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from constitutional.base.errors import ConfigurationError, UsageError
from constitutional.runs.compose import compose
from constitutional.runs.config_errors import unknown_option_line
from constitutional.runs.settings import GROUPS

WRONG = {
    "name=3": "name is 3, but should be a text; type \"name='3'\", with both kinds of quotes",
    "folder=null": "folder is null, but should be a path; type folder=runs",
    "fresh=maybe": 'fresh is "maybe", but should be true or false; type fresh=true or fresh=false',
    "seed=1.5": "seed is 1.5, but should be a whole number; type seed=0",
    "constitution.only=calm": 'constitution.only is "calm", but should be a list; type constitution.only=[calm]',
    "constitution.without=[true,a]": (
        "constitution.without.0 is true, but should be a text; "
        "type \"constitution.without=['true']\", with both kinds of quotes"
    ),
    "constitution.weights={calm: many, kind: 0}": (
        'constitution.weights.calm is "many", but should be a number; type constitution.weights.calm=NUMBER'
    ),
    "model.path=null": "model.path is null, but should be a text; type model.path=sandbox",
    "model.template={thinking: [1]}": (
        "model.template.thinking is [1], but should be true or false, a whole number, a number or a text; "
        "type model.template.thinking=VALUE"
    ),
    "prompts.train=0": "prompts.train is 0, but should be at least 1; type prompts.train=300",
    "journal.path=[3]": "journal.path is [3], but should be a path; type journal.path=FILE",
    "critique_revise.rounds=9": "critique_revise.rounds is 9, but should be at most 8; type critique_revise.rounds=2",
    "sft.lora=8": 'sft.lora is 8, but should be settings by name; type "sft.lora={rank: 16}", in quotes',
    "sft.epochs=many": 'sft.epochs is "many", but should be a number; type sft.epochs=3',
    "label.clamp=[0.4]": "label.clamp is [0.4], which is too short; type label.clamp=[0.4,VALUE]",
    "algorithm.beta=low": 'algorithm.beta is "low", but should be a number; type algorithm.beta=0.1',
}
"""Wrong overrides, and what is said of each."""


def said(*overrides: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        compose(overrides)
    return [str(caught.value), *getattr(caught.value, "__notes__", [])]


def test_every_wrong_type_says_what_was_found_what_was_expected_and_what_to_type() -> None:
    lines = list(WRONG.values())
    # The second weight is a mistake of its own.
    weight = "constitution.weights.kind is 0, but should be more than 0; type constitution.weights.kind=VALUE"
    lines.insert(7, weight)
    assert said(*WRONG) == lines


@pytest.mark.parametrize(
    ("overrides", "line", "filled_in"),
    [
        (["sft.epochs=inf"], "sft.epochs is Infinity, but should be a finite number; type sft.epochs=3", ""),
        (
            ["algorithm=ppo", "algorithm.kl_coef=nan"],
            "algorithm.kl_coef is NaN, but should be a finite number; type algorithm.kl_coef=0.05",
            "",
        ),
        # Not `sft.lora.rank=16`, which is refused where sft.lora is null.
        (
            ["sft.lora={rank: 0}"],
            'sft.lora.rank is 0, but should be at least 1; type "sft.lora={rank: 16}", in quotes',
            "",
        ),
        (
            ["algorithm.lora={rank: true}"],
            'algorithm.lora.rank is true, but should be a whole number; type "algorithm.lora={rank: 16}", in quotes',
            "",
        ),
        (
            ["critic.template={thinking: [1]}"],
            (
                "critic.template.thinking is [1], but should be true or false, a whole number, a number or a text; "
                'type "critic.template={thinking: VALUE}", in quotes'
            ),
            "false",
        ),
        (
            ["mix.margin=0", "label.clamp=0.4"],
            "label.clamp is 0.4, but should be a list; type label.clamp=[0.4,VALUE]",
            "0.6",
        ),
        (
            ["model.template={limit: inf}"],
            (
                "model.template.limit is Infinity, but should be true or false, a finite number or a text; "
                "type model.template.limit=VALUE"
            ),
            "3",
        ),
        (["label.clamp=low"], 'label.clamp is "low", but should be a list; type label.clamp=[VALUE,VALUE]', None),
        (
            ["mix.strengths=[0.6,0.7]"],  # said once, though two are missing
            "mix.strengths is [0.6, 0.7], which is too short; type mix.strengths=[0.6,0.7,VALUE,VALUE]",
            None,
        ),
        (
            ["mix.strengths=[0.6,0.7,0.8]"],
            "mix.strengths is [0.6, 0.7, 0.8], which is too short; type mix.strengths=[0.6,0.7,0.8,VALUE]",
            "0.9",
        ),
        (
            ["constitution.only=calm"],
            'constitution.only is "calm", but should be a list; type constitution.only=[calm]',
            "",
        ),
        (
            ["constitution.only=3"],  # not [3], which is no text
            "constitution.only is 3, but should be a list; type constitution.only=[VALUE,…]",
            None,
        ),
        (
            ["sft.epochs=${nope}"],
            (
                "sft.epochs is \"${nope}\", which stands for nothing (Interpolation key 'nope' not found); "
                "type sft.epochs=3"
            ),
            "",
        ),
        (
            ["constitution.without=[a,'${nope}']"],
            (
                "constitution.without.1 is \"${nope}\", which stands for nothing (Interpolation key 'nope' not found); "
                "type constitution.without=[VALUE,…]"
            ),
            None,
        ),
        (
            ["algorithm.kind=ppo"],
            'algorithm.kind is "ppo", but the settings beside it are those of algorithm=dpo; type algorithm=ppo',
            "",
        ),
        (
            ["algorithm={kind:grpo}"],  # which has all settings of DPO, and would take their values for its own
            'algorithm.kind is "grpo", but the settings beside it are those of algorithm=dpo; type algorithm=grpo',
            "",
        ),
        (
            ["algorithm=ppo_adapter", "algorithm.kind=rloo"],
            'algorithm.kind is "rloo", but the settings beside it are those of algorithm=ppo; type algorithm=rloo',
            "",
        ),
    ],
)
def test_what_is_advised_is_taken(overrides: list[str], line: str, filled_in: str | None) -> None:
    """Where there is a word for the reader to fill in, with a value that suits; None where no value alone would."""
    assert said(*overrides) == [line]
    if filled_in is not None:
        advised = line.partition("; type ")[2].removesuffix(", in quotes").replace("VALUE", filled_in)
        compose([*overrides[:-1], *shlex.split(advised)])


def models_of(annotation: object) -> Iterator[type[BaseModel]]:
    """The settings models in a type, and those in their fields."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_of(field.annotation)
    for part in get_args(annotation):
        yield from models_of(part)


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


def test_what_is_wrong_within_a_list_says_how_the_list_is_typed() -> None:
    chosen = "algorithm.rewards=[{kind: length, limit: a}, {limit: 3}, 3, {kind: x}]"
    kinds = "'reward_model', 'constitution', 'length', 'refusal', 'questions' or 'python'"
    assert said("algorithm=grpo", chosen, "label.clamp=[0.4,0.5,0.6]") == [
        "label.clamp is [0.4, 0.5, 0.6], but should be a list of at most 2; type label.clamp=[0.4,0.5]",
        (
            'algorithm.rewards.0.limit is "a", but should be a whole number; '
            'type "algorithm.rewards=[{limit: NUMBER, …}]", in quotes'
        ),
        'algorithm.rewards.1 is {"limit": 3}, but has no kind; type "algorithm.rewards=[{kind: NAME}]", in quotes',
        'algorithm.rewards.2 is 3, but should be settings by name; type "algorithm.rewards=[{NAME: VALUE}]", in quotes',
        (
            f'algorithm.rewards.3.kind is "x", but should be {kinds}; '
            'type "algorithm.rewards=[{kind: reward_model}]", in quotes'
        ),
    ]


def test_a_truth_value_is_no_number() -> None:
    assert said("seed=true", "constitution.weights.calm=true", "fresh=true") == [
        "seed is true, but should be a whole number; type seed=0",
        "constitution.weights.calm is true, but should be a number; type constitution.weights.calm=NUMBER",
    ]
    kept = compose(["model.template={thinking: true}", "sft.epochs='2'"])  # a setting that may be either; a text
    assert kept.model.template == {"thinking": True}
    assert kept.sft.epochs == 2


@pytest.mark.parametrize(
    ("word", "value", "line"),
    [
        ("--multirn", "", "there is no option '--multirn'; did you mean --multirun?"),
        ("--until", "label", "there is no option '--until', but a setting: type until=label"),
        ("--seed=3", "", "there is no option '--seed', but a setting: type seed=3"),
        ("--prompts.trian", "", "there is no option '--prompts.trian', but a setting: type prompts.train=VALUE"),
        (
            "--foo",
            "3",
            (
                "there is no option '--foo'; settings are typed KEY=VALUE, "
                "and `constitutional config --help` lists all else"
            ),
        ),
    ],
)
def test_an_option_that_there_is_not_is_answered_with_what_was_meant(word: str, value: str, line: str) -> None:
    assert unknown_option_line(word, value, ["--info", "--multirun"], "config") == line


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            ["label.method=vote", "reward.members=0"],
            [
                (
                    "label.method is \"vote\", but should be 'logprobs', 'rationale', 'score' or 'votes'; "
                    "type label.method=logprobs"
                ),
                "reward.members is 0, but should be at least 1; type reward.members=1",
            ],
        ),
        (
            ["name=a/b"],
            [
                (
                    'name is "a/b", but should be made of other characters '
                    "(it must match ^[A-Za-z0-9_][A-Za-z0-9_.,=+-]*$); type name=first"
                )
            ],
        ),
        (
            ["label.clamp=[0.6,0.7]"],
            [
                (
                    "label.clamp is [0.6, 0.7]; it must be a range around 0.5 within 0 and 1, such as [0.4, 0.6]; "
                    "type label.clamp=VALUE"
                )
            ],
        ),
        (
            ["label=bai2022_cot"],
            [
                (
                    "label.clamp keeps every probability from 0.4 to 0.6, and mix.margin=0.2 leaves out what is less "
                    "than 0.2 from 0.5: no label could become a preference; type mix.margin=0"
                )
            ],
        ),
        (
            ["prompts=file"],
            [
                (
                    "prompts.path has no value yet; type prompts.path=FILE. One prompt a line: text (.txt), or JSON "
                    '(.jsonl) that is a text, {"prompt": …} or {"messages": […]}'
                )
            ],
        ),
        (
            ["mix.human_share=0.5"],
            [
                (
                    "mix.human has no value yet; type mix.human=FILE, a file of pairs, JSON lines, plain or .gz: "
                    '{"prompt": "…", "chosen": "…", "rejected": "…"}, or as in hh-rlhf '
                    '{"chosen": …, "rejected": …} with whole transcripts'
                )
            ],
        ),
        (["prompts.kind=x"], ["prompts.kind is \"x\", but should be 'sandbox' or 'file'; type prompts=sandbox"]),
        (
            ["labeler=qwen3_32b"],
            ['labeler is "qwen3_32b", but should be settings by name; type engine@labeler=qwen3_32b'],
        ),
        (
            ["sft.checkpoint_every=7"],
            ["sft: checkpoint_every is 7, no multiple of log_every, which is 5; try checkpoint_every=5"],
        ),
    ],
)
def test_wrong_values_are_a_line_each_with_what_to_type(overrides: list[str], lines: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        compose(overrides)
    assert [str(caught.value), *getattr(caught.value, "__notes__", [])] == lines


def test_a_setting_that_a_swapped_option_left_behind_is_named() -> None:
    with pytest.raises(ConfigurationError) as caught:
        compose(["prompts=file", "prompts.path=p", "+prompts.train=3"])
    notes = [str(caught.value), *getattr(caught.value, "__notes__", [])]
    assert notes == [
        "prompts.train: there is no such setting; take it out, or see `constitutional config` for what there is"
    ]


def test_a_kind_of_another_option_is_all_that_is_said_of_it() -> None:
    line = 'prompts.kind is "file", but the settings beside it are those of prompts=sandbox; type prompts=file'
    assert said("prompts.kind=file") == said("prompts.kind=file", "+prompts.path=p") == [line]
    assert compose(["algorithm=ppo", "algorithm.kind=ppo"]).algorithm.kind == "ppo"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "~sft",
            (
                "sft has no settings; leave ~sft out, or type sft=OPTION in its place; "
                "the options are bai2022, lee2023, sandbox"
            ),
        ),
        ("~report", "report has no settings; leave ~report out"),
        (
            "~algorithm.kind",
            "algorithm has no kind; leave ~algorithm.kind out, and choose an option, such as algorithm=dpo",
        ),
    ],
)
def test_what_was_taken_out_says_how_it_comes_back(override: str, line: str) -> None:
    assert said(override) == [line]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("label.methd=votes", "there is no setting 'label.methd'; did you mean label.method?"),
        (
            "sft.lora.rank=8",
            'sft.lora is null, so rank in it cannot be set alone; type "sft.lora={rank: 8}", in quotes',
        ),
        ("sft.lora.rnk=8", "there is no setting 'sft.lora.rnk'; did you mean sft.lora.rank?"),
        (
            "prompts.path=p",
            "prompts.path is a setting of another option than the chosen one; type prompts=file as well",
        ),
        (
            "algorithm.cliprange_value=1",
            "algorithm.cliprange_value is a setting of another option than the chosen one; type algorithm=ppo as well",
        ),
        ("algorithm.lam_da=1", "there is no setting 'algorithm.lam_da'; did you mean algorithm.lam?"),
        ("algorithm.lora.rnk=8", "there is no setting 'algorithm.lora.rnk'; did you mean algorithm.lora.rank?"),
        ("zzz=1", "there is no setting 'zzz'; `constitutional config` shows every setting"),
        ("label=nope", "there is no 'label/nope'; the options are bai2022, bai2022_cot, direct_rlaif, lee2023, votes"),
        (
            "constitution=mine.yaml",
            (
                "there is no 'constitution/mine.yaml'; the options are character, harmlessness, "
                "helpful_honest_harmless, sandbox; a file, or the name of a shipped one, goes into "
                "constitution.file=mine.yaml"
            ),
        ),
    ],
)
def test_what_hydra_refuses_is_one_line_with_a_way_out(override: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        compose([override])
    assert str(caught.value) == message


def test_what_cannot_be_parsed_is_one_line() -> None:
    with pytest.raises(UsageError) as caught:
        compose(["seed==1"])
    assert str(caught.value).startswith("seed==1: cannot be read; type KEY=VALUE")
    assert "\n" not in str(caught.value)
