import json
import re
from collections import defaultdict
from itertools import zip_longest
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from constitutional.base.errors import ConfigurationError, ConstitutionalError, InputError, UsageError
from constitutional.base.shipped import shipped
from constitutional.constitution.file import load_constitution
from constitutional.engines.model_files import recommended
from constitutional.engines.settings import HttpSettings, LocalSettings, ScriptedSettings, role_settings
from constitutional.runs.compose import compose, dump, freeze, load, sweep, unchecked
from constitutional.runs.runner import sampling_in_words
from constitutional.runs.settings import GROUPS, ConstitutionSettings, RunConfig
from constitutional.runs.sweeps import jobs_of
from constitutional.stages import adopted, dpo, label, ppo, reward
from constitutional.stages.prompts import FilePrompts, SandboxPrompts

CONF = shipped("conf")
PRESETS = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.glob("*/*.yaml"))


def composed(*overrides: str) -> RunConfig:
    """With a file for every setting that has no value: the message says which."""
    for _ in range(5):
        try:
            return compose(overrides)
        except ConfigurationError as error:
            missing = re.match(r"(.+) has no value yet; type \1=(FILE|VALUE)", str(error))
            if missing is None:
                raise
            value = "some/file.jsonl" if missing[2] == "FILE" else "some/file.py:name"
            value = "http://127.0.0.1:8000/v1" if missing[1].endswith(".url") else value
            overrides = (*overrides, f"{missing[1]}={value}")
    raise AssertionError(overrides)


def test_every_preset_composes_and_says_what_its_file_says() -> None:
    groups = defaultdict(list)
    for preset in PRESETS:
        if preset.parent.name not in {"base", "experiment", "sweep"}:
            groups[preset.parent.name].append(preset.name)
    assert groups.keys() < GROUPS.keys()
    # One of each group at a time, which takes fewer compositions than one by one.
    for chosen in zip_longest(*([(group, name) for name in names] for group, names in groups.items())):
        options = [each for each in chosen if each]
        typed = [("engine@labeler" if group == "engine" else group, name) for group, name in options]
        config = composed("mix.margin=0", *(f"{group}={name}" for group, name in typed))  # whatever label.clamp is
        for group, name in options:
            said = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
            said.pop("defaults", None)
            if group == "prompts" and "path" in said:  # a shipped set becomes its file
                said["path"] = str(shipped("prompts") / "sets" / f"{said['path']}.txt")
            found = getattr(config, {"engine": "labeler"}.get(group, group)).model_dump(mode="json")
            for key, value in said.items():
                if isinstance(value, dict):
                    assert found[key].items() >= value.items()
                elif value != "???":
                    assert found[key] == value


@pytest.mark.parametrize("experiment", ["sandbox", "bai2022", "lee2023", "real", "smollm2"])
def test_every_experiment_composes_and_names_a_constitution_that_is_there(experiment: str) -> None:
    assert {path.stem for path in (CONF / "experiment").iterdir()} == {
        "sandbox",
        "bai2022",
        "lee2023",
        "real",
        "smollm2",
    }
    config = composed(f"experiment={experiment}")
    assert load_constitution(config.constitution.file).principles
    if experiment != "sandbox":
        assert config.name == experiment


SWEEPS = {"ratios": ["mix.human=people.jsonl"], "weights": ["sweep.principle=brief"], "wordings": None, "optuna": None}
"""What the presets of sweeps need typed as well; None where that depends on a file or makes no list of jobs."""


@pytest.mark.parametrize("preset", [preset.name for preset in PRESETS if preset.parent.name == "sweep"])
def test_every_job_of_every_sweep_is_valid(preset: str) -> None:
    if (words := SWEEPS.get(preset, [])) is not None:
        jobs = jobs_of([f"sweep={preset}", *words], multirun=False)
        configs = [composed(*job.overrides) for job in jobs]
        assert len({config.model_dump_json() for config in configs}) == len(configs) > 1


def test_the_papers_values_are_what_the_experiments_say() -> None:
    bai = composed("experiment=bai2022")
    assert (bai.critique_revise.rounds, bai.critique_revise.temperature, bai.sft.rounds) == (4, 1.0, "all")
    assert bai.sft.batch_size * bai.sft.gradient_accumulation == 1024
    assert bai.mix.human_ratio == pytest.approx(135_296 / (135_296 + 182_831), abs=0.001)
    assert bai.sft.helpful_share == pytest.approx(2 * 135_296 / (2 * 135_296 + 4 * 182_831), abs=0.001)
    lee = composed("experiment=lee2023")
    assert isinstance(lee.algorithm, dpo.Settings)
    assert (lee.algorithm.beta, lee.sample_pairs.temperature, lee.label.max_tokens) == (0.05, 0.9, 512)
    assert role_settings(lee.labeler, lee.model).path == "Qwen/Qwen3-32B"  # type: ignore[union-attr] # a local one
    assert role_settings(lee.critic, lee.model) == lee.model


def test_without_presets_every_default_is_the_settings_own() -> None:
    config = compose()
    assert compose(["label=schema"]).label == label.Settings()
    assert config.reward == reward.Settings()
    assert config.constitution == ConstitutionSettings()
    assert config.prompts == SandboxPrompts()
    assert {name for name in RunConfig.model_fields if name not in GROUPS} == {
        *("name", "folder", "until", "seed", "templates", "understanding", "generator", "critic", "labeler", "panel"),
        "report_to",
    }


def test_the_algorithm_is_chosen_as_a_group_with_settings_of_its_own() -> None:
    assert compose(["algorithm=dpo"]).algorithm == dpo.Settings()
    chosen = compose(["algorithm=ppo", "algorithm.kl_coef=0.5"]).algorithm
    assert isinstance(chosen, ppo.Settings)
    assert chosen.kl_coef == 0.5


def test_a_setting_that_implies_its_option_chooses_it() -> None:
    assert compose(["prompts.path=p"]).prompts == FilePrompts(path=Path("p"))
    assert compose(["algorithm.kind=ppo"]).algorithm == ppo.Settings()
    assert compose(["labeler=qwen3_32b"]).labeler == compose(["engine@labeler=qwen3_32b"]).labeler
    rank = compose(["sft.lora.rank=8"]).sft.lora
    assert rank is not None
    assert rank.rank == 8
    with pytest.raises(ConfigurationError, match=r"prompts\.path.*prompts\.kind=sandbox is chosen"):
        compose(["prompts=sandbox", "prompts.path=p"])


@pytest.mark.parametrize("mix", ["half_human", "all_human", "bai2022"])
def test_a_preset_keeps_what_it_does_not_name_of_the_experiment(mix: str) -> None:
    before, after = compose().mix, compose([f"mix={mix}", "mix.human=people.jsonl"]).mix
    assert before.margin == after.margin == 0.2
    assert compose(["critique_revise=direct"]).critique_revise.rounds == compose().critique_revise.rounds == 4
    assert compose([f"mix={mix}", "mix.human=p", "mix.margin=0.1"]).mix.margin == 0.1  # what is typed wins


def test_a_preset_of_ones_own_wins_over_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf" / "mix").mkdir(parents=True)
    (tmp_path / "conf" / "mix" / "mine.yaml").write_text("margin: 0.05\n")
    (tmp_path / "conf" / "mix" / "whole.yaml").write_text("defaults: [schema]\ntotal: 3\nhuman_ratio: 0.0\n")
    monkeypatch.chdir(tmp_path)
    assert compose(["mix=mine"]).mix.margin == 0.05
    assert compose(["mix=whole"]).mix.margin == 0  # it says that it starts from the defaults


@pytest.mark.parametrize("path", ["礼貌.jsonl", "my file.jsonl", "Übung 1.jsonl", "a/ñ.txt"])
def test_a_file_name_is_typed_as_it_is(path: str) -> None:
    assert compose([f"prompts.path={path}"]).prompts == FilePrompts(path=Path(path))


def test_roles_that_name_one_model_by_other_paths_inherit_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "sandbox").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["model.path=./m", "model.pad_token=PAD", "model.template={thinking: false}"]
    config = freeze(compose([*words, "labeler.path=m/", f"critic.path={tmp_path / 'm'}"]))
    for role in (config.labeler, config.critic):
        assert isinstance(role, LocalSettings)
        assert role.over(config.model) == config.model
        assert (role.path, config.model.pad_token) == (str(tmp_path / "m"), "PAD")
    # The shipped model keeps its name, whatever folders there are; so does one on the hub.
    config = freeze(compose(["labeler.path=Qwen/Qwen3-32B"]))
    assert isinstance(config.labeler, LocalSettings)
    assert (config.model.path, config.labeler.path) == ("sandbox", "Qwen/Qwen3-32B")


def test_a_sweep_is_a_run_for_each_combination() -> None:
    jobs = sweep(["name=x", "seed=1,2", "label.votes=3,5"], multirun=True)
    assert [job.swept for job in jobs] == [
        ("seed=1", "label.votes=3"),
        ("seed=1", "label.votes=5"),
        ("seed=2", "label.votes=3"),
        ("seed=2", "label.votes=5"),
    ]
    assert {job.overrides[0] for job in jobs} == {"name=x"}
    assert sweep(["seed=1"], multirun=True) == sweep(["seed=1"], multirun=False) == [(("seed=1",), ())]
    assert [job.swept for job in sweep(["sweep=seeds"], multirun=False)] == [("seed=0",), ("seed=1",), ("seed=2",)]
    assert [job.swept for job in sweep(["sweep=seeds", "seed=7,8"], multirun=True)] == [("seed=7",), ("seed=8",)]


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_a_seed_is_what_numpy_and_torch_take(seed: int) -> None:
    assert compose([f"seed={seed}"]).seed == seed


def test_overrides_need_no_plus_not_even_for_weights() -> None:
    config = compose(
        [
            "constitution.weights.calm=2",
            "constitution.only=[calm,brief]",
            "sft.lora={rank: 8}",
            "prompts=file",
            "prompts.path=p",
        ]
    )
    assert config.constitution.weights == {"calm": 2.0}
    assert config.constitution.only == ("calm", "brief")
    assert config.sft.lora is not None
    assert config.sft.lora.rank == 8
    assert config.prompts == FilePrompts(path=Path("p"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["label=bai2022_cot", "mix.margin=0"],
        ["label=bai2022_cot", "mix.margin=0.1"],  # 0.6 is just so far from 0.5
        ["label.clamp=[0.4,1.0]"],
        ["label=bai2022_cot", "mix.human_ratio=1", "mix.human=people.jsonl"],  # no label is wanted
    ],
)
def test_labels_that_are_clamped_wider_than_the_margin_are_allowed(overrides: list[str]) -> None:
    assert compose(overrides).label.clamp is not None


def test_a_folder_conf_where_the_command_is_typed_goes_before_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf" / "label").mkdir(parents=True)
    (tmp_path / "conf" / "label" / "mine.yaml").write_text("defaults: [schema]\nvotes: 9\n")
    (tmp_path / "conf" / "label" / "votes.yaml").write_text("defaults: [schema]\nvotes: 3\n")
    monkeypatch.chdir(tmp_path)
    assert compose(["label=mine"]).label.votes == 9
    assert compose(["label=votes"]).label == label.Settings(votes=3)  # ours would set the method


def test_a_frozen_configuration_means_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    config = freeze(composed("prompts=file", "prompts.path=p.jsonl", "constitution.file=ours.yaml", "templates=t"))
    assert isinstance(config.prompts, FilePrompts)
    assert config.prompts.path == tmp_path / "p.jsonl"
    assert config.constitution.file == str(tmp_path / "ours.yaml")
    assert config.templates == tmp_path / "t"
    assert config.run_folder == tmp_path / "runs" / "first"
    assert config.journal_file == tmp_path / "runs" / "journal.sqlite"
    assert freeze(compose()).constitution.file == "sandbox_careful"  # a shipped one is known by its name

    monkeypatch.chdir("/")
    (tmp_path / "config.json").write_text(dump(config, {"constitution": "abc"}))
    assert load(tmp_path) == load(tmp_path / "config.json") == config
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["digests"] == {"constitution": "abc"}
    assert written["versions"]["trl"].startswith("1.16")


def test_a_role_may_be_played_by_a_function_of_the_users(tmp_path: Path) -> None:
    config = compose(["labeler=scripted", f"labeler.function={tmp_path}/mine.py:answer", "label.method=votes"])
    assert config.labeler == ScriptedSettings(function=f"{tmp_path}/mine.py:answer")
    assert config.critic == LocalSettings()
    with pytest.raises(ConfigurationError, match=r"labeler\.function"):
        compose(["labeler=scripted"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is not the configuration of a run"),
        ("[]", "is not the configuration of a run"),
        ('{"config": 3}', "is not the configuration of a run"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=problem):
        load(tmp_path)


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file or directory; name a run folder such as runs/first"):
        load(tmp_path / "nothing")


def test_a_setting_of_the_engine_is_one_of_all_roles_without_their_own() -> None:
    words = ["engine=http", "engine.url=http://127.0.0.1:1/v1", "engine.model=m", "critic.model=c", "labeler=local"]
    config = compose([*words, "engine.extra={model: other}"])
    assert isinstance(config.generator, HttpSettings)
    assert isinstance(config.critic, HttpSettings)
    assert (config.generator.url, config.critic.url) == ("http://127.0.0.1:1/v1",) * 2
    assert (config.generator.model, config.critic.model, config.labeler.kind) == ("m", "c", "local")
    assert config.critic.extra == {"model": "other"}
    # One role alone has an engine with such a setting.
    one = compose(["labeler=http", "engine.url=http://127.0.0.1:1/v1", "engine.model=m", "label.method=votes"])
    assert isinstance(one.labeler, HttpSettings)
    assert (one.labeler.model, one.generator.kind) == ("m", "local")


def test_every_setting_says_what_it_is() -> None:
    def undocumented(model: type[BaseModel], prefix: str) -> list[str]:
        return [f"{prefix}.{name}" for name, field in model.model_fields.items() if not field.description]

    # What is a group is documented by its own docstring; `kind` by the class that it chooses.
    models = [(group, model) for group, options in GROUPS.items() for model in options.values()]
    missing = [name for group, model in models for name in undocumented(model, group)]
    assert [name for name in missing if not name.endswith(".kind")] == []


def test_a_judge_of_the_panel_takes_an_engines_preset_or_settings_alone(tmp_path: Path) -> None:
    config = compose(
        [
            "panel.big=qwen3_32b",
            *("+engine@panel.far=http", "panel.far.url=http://127.0.0.1:8000/v1", "panel.far.model=m"),
            f"panel.own.path={tmp_path}",
            *("engine@panel.mine=scripted", "panel.mine.function=os:getcwd"),
            "label.weights.big=2",
        ]
    )
    assert {name: judge.kind for name, judge in config.panel.items()} == {
        "big": "local",
        "far": "http",
        "own": "local",
        "mine": "scripted",
    }
    assert role_settings(config.panel["big"], config.model).path == "Qwen/Qwen3-32B"  # type: ignore[union-attr]
    assert config.label.weights == {"big": 2.0}
    assert sorted(config.judges.values()) == ["labeler", "panel.big", "panel.far", "panel.mine", "panel.own"]
    assert next(iter(config.judges)) == "labeler"
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["panel.second=http"], ["panel.second.url has no value", "panel.second.url=VALUE"]),
        (["panel.second=htp"], ["no preset 'htp'", "http"]),
        (["panel.second.pth=x"], ["panel.second.pth", "panel.second.path"]),
        (["panel.second.url=http://x/v1"], ["panel.second=http"]),
        (["panel=http"], ["names no judge", "panel.second=PRESET"]),
        (["panel.a-b=local"], ["names no judge", "panel.second=PRESET"]),
        (["panel.second.weight=2"], ["panel.second.weight", "label.weights.second=2"]),
        (["panel.labeler=local"], ["panel.labeler", "panel.second"]),
        (["label.weights.other=2"], ["label.weights.other", "panel.other=PRESET"]),
        (["panel.second=local", "label.weights.second=0"], ["label.weights.second", "greater than 0"]),
    ],
)
def test_a_mistake_in_the_panel_says_what_to_type(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConstitutionalError) as caught:
        compose(overrides)
    message = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert all(word in message for word in words), message


def test_another_model_takes_what_suits_a_real_one_unless_an_experiment_is_named() -> None:
    for word in ("model.path=somewhere/else", "model=qwen3_4b"):
        config = composed(word)
        assert (config.label.method, config.constitution.file) == ("contrast", "plain_and_careful")
        assert config.sft.lora is not None
        assert isinstance(config.prompts, FilePrompts)
    for words in (["model.path=sandbox"], ["model=sandbox"], ["model.path=somewhere/else", "experiment=sandbox"]):
        assert composed(*words).constitution.file == "sandbox_careful"
    own = composed("model.path=somewhere/else", "prompts.path=mine.txt", "label=votes")
    assert isinstance(own.prompts, FilePrompts)
    assert (own.prompts.path, own.label.method) == (Path("mine.txt"), "votes")


def model_with(folder: Path, generation: dict[str, object] | str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    text = generation if isinstance(generation, str) else json.dumps(generation)
    (folder / "generation_config.json").write_text(text)
    return folder


@pytest.mark.parametrize("algorithm", ["dpo", "ppo", "grpo", "rloo"])
def test_a_real_model_is_trained_by_adapters_whatever_the_algorithm(algorithm: str) -> None:
    config = compose(["experiment=real", "model.path=some-model", f"algorithm={algorithm}"])
    chosen = config.algorithm
    assert not isinstance(chosen, adopted.Settings)
    assert (chosen.kind, chosen.lora and chosen.lora.rank) == (algorithm, 16)
    assert (chosen.learning_rate, chosen.batch_size, chosen.gradient_accumulation) == (5e-5, 4, 4)
    assert (
        type(chosen).model_fields.keys() == unchecked(["experiment=real", f"algorithm={algorithm}"])["algorithm"].keys()
    )


def test_a_preset_for_adapters_keeps_its_own_values_on_a_real_model() -> None:
    chosen = compose(["experiment=real", "model.path=some-model", "algorithm=dpo_adapter"]).algorithm
    assert isinstance(chosen, dpo.Settings)
    assert (chosen.lora and chosen.lora.rank, chosen.learning_rate, chosen.gradient_accumulation) == (64, 5e-6, 16)


def test_what_nobody_says_of_sampling_is_as_the_model_recommends(tmp_path: Path) -> None:
    model = model_with(tmp_path / "m", {"do_sample": True, "temperature": 0.2, "top_p": 0.9, "top_k": 20})
    drafting = model_with(tmp_path / "d", {"do_sample": True, "temperature": 0.6})
    words = [f"model.path={model}", f"generator.path={drafting}", "sample_pairs.temperature=0.8"]
    config = freeze(composed(*words))
    assert (config.critique_revise.temperature, config.critique_revise.top_p) == (0.6, None)
    assert (config.sample_pairs.temperature, config.sample_pairs.top_p) == (0.8, 0.9)
    assert (config.evaluate.temperature, config.evaluate.top_p) == (0.2, 0.9)
    assert freeze(config) == config
    # A real model's pairs are sampled warmer, so that their responses differ.
    real = freeze(compose([f"model.path={model}"]))
    assert (real.sample_pairs.temperature, real.sample_pairs.top_p, real.evaluate.temperature) == (0.9, 0.9, 0.2)
    (run := tmp_path / "first").mkdir()
    (run / "config.json").write_text(dump(config, {}))
    new = [f"from={run}", "name=new"]
    assert freeze(compose(new)).evaluate == config.evaluate
    other = freeze(compose([*new, f"model.path={drafting}"]))
    assert (other.sample_pairs.temperature, other.sample_pairs.top_p) == (0.8, 0.9)  # as it was typed
    assert (other.evaluate.temperature, other.evaluate.top_p) == (0.6, None)
    served = freeze(composed(f"model.path={model}", "generator=http", "generator.url=http://h/v1", "generator.model=m"))
    assert (served.critique_revise.temperature, served.evaluate.temperature) == (None, 0.2)


def test_a_generator_from_the_hub_recommends_at_its_own_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = model_with(tmp_path / "t", {"do_sample": True, "temperature": 0.2})
    old = model_with(tmp_path / "old", {"do_sample": True, "temperature": 0.6})
    main = model_with(tmp_path / "main", {"do_sample": True, "temperature": 0.9})
    cache = {("a/trained", "v1"): trained, ("a/drafting", "v2"): old, ("a/drafting", None): main}

    def cached(name: str, file: str, revision: str | None = None) -> str | None:
        path = cache.get((name, revision), tmp_path) / file
        return str(path) if path.is_file() else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    words = ["model.path=a/trained", "model.revision=v1"]
    drafting = [*words, "generator.path=a/drafting"]
    for typed, expected in (
        ([*drafting, "generator.revision=v2"], 0.6),
        (drafting, 0.9),  # the trained model's revision is none of another model
        ([*drafting, "generator=vllm", "generator.revision=v2"], 0.6),
        (words, 0.2),
    ):
        config = freeze(composed(*typed))
        assert (config.critique_revise.temperature, config.evaluate.temperature) == (expected, 0.2), typed
    (trained / "generation_config.json").unlink()  # as where `plan` has fetched the config alone
    assert recommended("a/trained", "v1") is None


def test_a_preset_beside_an_experiment_for_a_real_model_keeps_what_it_names() -> None:
    alone = composed("experiment=smollm2")
    assert isinstance(alone.algorithm, dpo.Settings)
    assert (alone.algorithm.learning_rate, alone.reward.learning_rate) == (1e-4, 2e-4)
    assert (alone.critique_revise.critique, alone.critique_revise.rounds) == (False, 1)
    ppo_chosen = composed("experiment=smollm2", "algorithm=ppo_smollm2", "reward=adapter")
    assert isinstance(ppo_chosen.algorithm, ppo.Settings)
    assert (ppo_chosen.algorithm.learning_rate, ppo_chosen.reward.learning_rate) == (5e-5, 1e-5)
    paper = composed("experiment=smollm2", "critique_revise=bai2022")
    assert (paper.critique_revise.critique, paper.critique_revise.rounds) == (True, 4)


def test_the_run_says_how_replies_are_sampled_where_the_model_recommends_it(tmp_path: Path) -> None:
    model = model_with(tmp_path / "m", {"do_sample": True, "temperature": 0.2})
    config = freeze(composed(f"model.path={model}"))
    said = sampling_in_words(config)
    assert "temperature 0.2 and top_p 1" in said
    # In a real model's run the pairs have a sampling of their own.
    assert "recommends, in critique_revise, evaluate; critique_revise.temperature=… sets another" in said
    assert "not taken" not in said
    assert sampling_in_words(freeze(compose())) == ""


def test_the_run_says_what_of_a_models_recommendation_it_does_not_take(tmp_path: Path) -> None:
    both: dict[str, object] = {
        "do_sample": True,
        "temperature": 0.2,
        "top_k": 20,
        "min_p": 0.0,
        "repetition_penalty": 1.05,
    }
    model = model_with(tmp_path / "m", both)
    said = sampling_in_words(freeze(composed(f"model.path={model}")))
    assert "temperature 0.2 and top_p 1" in said
    assert said.endswith("; its top_k 20, repetition_penalty 1.05 is not taken")
    model = model_with(tmp_path / "n", {"do_sample": True, "top_k": 64})
    assert "top_k 64" in sampling_in_words(freeze(composed(f"model.path={model}")))


def test_a_chat_server_does_not_tell_how_likely_whole_responses_are() -> None:
    words = ["labeler=http", "labeler.url=http://h/v1", "labeler.model=m", "label=contrast"]
    with pytest.raises(ConfigurationError, match=r"label\.method=rationale, or labeler\.endpoint=completions"):
        compose(words)
    assert compose([*words, "labeler.endpoint=completions", "labeler.tokenizer=here"]).label.method == "contrast"


@pytest.mark.parametrize(
    "generation",
    [{"temperature": 0.2}, {"do_sample": True, "temperature": 0}, {"do_sample": True, "top_p": 2}, "[1]", "no JSON"],
)
def test_a_model_that_does_not_say_how_it_is_sampled_changes_nothing(
    tmp_path: Path, generation: dict[str, object] | str
) -> None:
    config = freeze(composed(f"model.path={model_with(tmp_path / 'm', generation)}"))
    assert (config.evaluate.temperature, config.evaluate.top_p) == (None, None)
    assert freeze(compose()).evaluate.temperature is None  # the sandbox's says 1, which is what null stands for


def test_a_home_that_nobody_has_and_a_long_text_are_names_that_are_not_there() -> None:
    words = ["prompts.path=~no_such_user/x.txt", "model.path=~no_such_user/m", f"constitution.file={'x' * 300}"]
    config = freeze(compose(words))
    assert isinstance(config.prompts, FilePrompts)
    assert config.prompts.path == Path.cwd() / "~no_such_user" / "x.txt"
    assert (config.model.path, config.constitution.file) == ("~no_such_user/m", "x" * 300)
    with pytest.raises(UsageError, match="no run"):
        compose(["from=~no_such_user/first", "name=x"])


def test_who_types_a_comma_is_told_how_it_is_part_of_a_text() -> None:
    with pytest.raises(UsageError, match=r"\"prompts\.path='"):
        compose(["prompts.path=a,b.txt"])
    config = compose(["prompts.path='a,b.txt'"])
    assert isinstance(config.prompts, FilePrompts)
    assert config.prompts.path == Path("a,b.txt")
