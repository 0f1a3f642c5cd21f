"""A run's configuration: every stage's settings in one model, composed by Hydra, checked by pydantic, frozen to JSON.

Defaults, bounds and documentation stand in the `Settings` beside the code that uses them. YAML holds choices only: each
model's defaults are given to Hydra as the option `schema` of its group, and a preset says what it changes. After
`freeze` nothing reads YAML again.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticUndefined, to_jsonable_python

from constitutional.engines.opening import LocalSettings, ModelSettings
from constitutional.errors import ConfigurationError, InputError, UsageError
from constitutional.shipped import shipped
from constitutional.stages import (
    critique_revise,
    dpo,
    evaluate,
    grpo,
    label,
    mix,
    ppo,
    report,
    reward,
    sample_pairs,
    sft,
)
from constitutional.store import versions

if TYPE_CHECKING:
    from omegaconf import DictConfig

_FROZEN = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ConstitutionSettings(BaseModel):
    """Which principles, and how heavy each is."""

    model_config = _FROZEN

    file: str = "sandbox_careful"
    """A file of principles (YAML or Markdown), or the name of a shipped one."""
    only: tuple[str, ...] | None = None
    """Ids of the principles to keep; null keeps all."""
    without: tuple[str, ...] = ()
    """Ids of principles to leave out."""
    weights: dict[str, Weight] = Field(default_factory=dict)
    """Weights by principle's id, instead of those in the file."""


class SandboxPrompts(BaseModel):
    """Prompts made up in the small test-bed's world."""

    model_config = _FROZEN

    kind: Literal["sandbox"] = "sandbox"
    train: Annotated[int, Field(ge=1)] = 300
    """How many to train on."""
    held_out: Annotated[int, Field(ge=1)] = 100
    """How many more to evaluate on; half of them about topics that training never sees."""


class FilePrompts(BaseModel):
    """Prompts from a file."""

    model_config = _FROZEN

    kind: Literal["file"] = "file"
    path: Path
    """One prompt a line: text (.txt), or JSON (.jsonl) that is a text, {"prompt": …} or {"messages": […]}."""
    held_out: Annotated[int, Field(ge=0)] = 200
    """How many to set aside for evaluation at least, with those whose line says "split": "held_out"."""


class JournalSettings(BaseModel):
    """Where every answer of a model is kept, so that none is asked for twice."""

    model_config = _FROZEN

    path: Path | None = None
    """An SQLite file, which many runs may share; null is `journal.sqlite` beside the run folders."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Requests that are asked and committed together: the most that a kill can lose."""


class DpoSettings(dpo.Settings):
    """Direct preference optimisation."""

    kind: Literal["dpo"] = "dpo"


class PpoSettings(ppo.Settings):
    """Proximal policy optimisation against the reward model."""

    kind: Literal["ppo"] = "ppo"


class RunConfig(BaseModel):
    """Everything that a run depends on, apart from the files that it names."""

    model_config = _FROZEN

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,=+-]*$", max_length=120)] = "first"
    """The run's folder in `folder`; letters, digits and _ . , = + - only."""
    folder: Path = Path("runs")
    """Where run folders are."""
    fresh: bool = False
    """Delete what a run folder of that name holds, and begin anew."""
    until: str | None = None
    """The last stage to run, such as reward; null runs them all. The same command without it goes on from there."""
    seed: int = 0
    """All randomness comes from it."""
    templates: Path | None = None
    """A folder of prompt templates that go before the shipped ones of the same name."""
    constitution: ConstitutionSettings = ConstitutionSettings()
    model: ModelSettings = ModelSettings()
    critic: LocalSettings = LocalSettings()
    """The model that critiques and revises."""
    labeler: LocalSettings = LocalSettings()
    """The model that compares responses."""
    prompts: Annotated[SandboxPrompts | FilePrompts, Field(discriminator="kind")] = SandboxPrompts()
    journal: JournalSettings = JournalSettings()
    critique_revise: critique_revise.Settings
    sft: sft.Settings
    sample_pairs: sample_pairs.Settings
    label: label.Settings
    mix: mix.Settings
    reward: reward.Settings
    algorithm: Annotated[DpoSettings | PpoSettings | grpo.GrpoSettings | grpo.RlooSettings, Field(discriminator="kind")]
    """What makes the policy; `pipeline.ALGORITHMS` has a stage for each kind."""
    evaluate: evaluate.Settings
    report: report.Settings

    @model_validator(mode="after")
    def _people_are_named(self) -> Self:
        # Now, and not when the stage comes to it, which may be hours later.
        if self.mix.human_share and self.mix.human is None and self.mix.verdicts is None:
            raise ValueError("mix.human has no value yet; type mix.human=VALUE")
        return self

    @model_validator(mode="after")
    def _a_judgement_can_decide(self) -> Self:
        clamp, margin = self.label.clamp, self.mix.margin
        if clamp and all(mix.within_margin(end, margin) for end in clamp) and self.mix.human_share != 1:
            low, high = clamp
            raise ValueError(
                f"label.clamp keeps every probability from {low:g} to {high:g}, and mix.margin={margin:g} leaves out "
                f"what is less than {margin:g} from 0.5: no label could become a preference; type mix.margin=0"
            )
        return self

    @property
    def run_folder(self) -> Path:
        """Where this run's artifacts are."""
        return self.folder / self.name

    @property
    def journal_file(self) -> Path:
        """The journal, shared by the runs of a folder unless it says otherwise."""
        return self.journal.path or self.folder / "journal.sqlite"

    def identity(self) -> dict[str, object]:
        """What a run folder is bound to: every setting that its results depend on, by its dotted name.

        Without people's verdicts: they are on the run's own comparisons, so they can only come later. And without the
        constitution's file: what it says is in the fingerprint of every stage that reads it, so a run goes on with an
        edited copy as it does with the edited file.
        """
        apart = dict.fromkeys(("name", "folder", "fresh", "until", "journal", "report"), True)
        parts = {"mix": {"verdicts": True}, "constitution": {"file": True}}
        return dict(_flat(self.model_dump(mode="json", exclude={**apart, **parts})))


# The order of this table is that of the defaults list in conf/run.yaml.
_GROUPS: Final[Mapping[str, Mapping[str, type[BaseModel]]]] = {
    "constitution": {"schema": ConstitutionSettings},
    "model": {"schema": ModelSettings},
    "engine": {"schema": LocalSettings},
    "prompts": {"schema_sandbox": SandboxPrompts, "schema_file": FilePrompts},
    "journal": {"schema": JournalSettings},
    "critique_revise": {"schema": critique_revise.Settings},
    "sft": {"schema": sft.Settings},
    "sample_pairs": {"schema": sample_pairs.Settings},
    "label": {"schema": label.Settings},
    "mix": {"schema": mix.Settings},
    "reward": {"schema": reward.Settings},
    "algorithm": {
        "schema_dpo": DpoSettings,
        "schema_ppo": PpoSettings,
        "schema_grpo": grpo.GrpoSettings,
        "schema_rloo": grpo.RlooSettings,
    },
    "evaluate": {"schema": evaluate.Settings},
    "report": {"schema": report.Settings},
}
_TOP = ("name", "folder", "fresh", "until", "seed", "templates")


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that `constitutional run` would have with these overrides, such as `label.method=votes`.

    Raises:
        UsageError: an override names no setting or no option, or cannot be read.
        ConfigurationError: a value is not allowed.
    """
    import hydra

    register()
    with hydra_errors(overrides), hydra.initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        composed = hydra.compose("run", overrides=list(overrides))
    return validated(composed)


def register() -> None:
    """Give Hydra the defaults of every settings model, and the user's own `conf/` folder before ours."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    store = ConfigStore.instance()
    store.store(name="schema", node=_open({name: _default(RunConfig, name) for name in _TOP}))
    for group, options in _GROUPS.items():
        for option, model in options.items():
            defaults = {name: _default(model, name) for name in model.model_fields}
            store.store(group=group, name=option, node=_open(defaults))
    Plugins.instance().register(_own_conf_plugin())


def _default(model: type[BaseModel], name: str) -> object:
    field = model.model_fields[name]
    default = field.get_default(call_default_factory=True, validated_data={})
    return "???" if default is PydanticUndefined else to_jsonable_python(default)


def _open(defaults: Mapping[str, object]) -> "DictConfig":
    """The node for these defaults, in which an empty dictionary takes any key: `constitution.weights.calm=2`."""
    from omegaconf import DictConfig, OmegaConf

    node = OmegaConf.create(dict(defaults))
    for name, default in defaults.items():
        if default == {}:
            node[name] = DictConfig({}, flags={"struct": False})
    return node


def _own_conf_plugin() -> type:
    from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class OwnConf(SearchPathPlugin):
        """Lets ./conf/label/mine.yaml be chosen by label=mine, and win over a shipped one of that name."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            own = Path.cwd() / "conf"
            if own.is_dir() and own.resolve() != shipped("conf").resolve():
                search_path.prepend("own", f"file://{own}", anchor=SearchPathQuery(provider="main"))

    return OwnConf


def validated(composed: "DictConfig") -> RunConfig:
    """What Hydra composed, checked.

    Raises:
        ConfigurationError: says every wrong value with its key and what to type; the second and later ones as notes.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigurationError(f"{error.full_key} has no value yet; type {error.full_key}=VALUE") from error
    except OmegaConfBaseException as error:  # ${…} that leads nowhere
        raise ConfigurationError(_hydra_line(error)) from error
    assert isinstance(values, dict)
    return _checked({str(name): value for name, value in values.items()})


def unchecked(composed: "DictConfig") -> dict[str, object]:
    """What Hydra composed, as it is: `???` stands for what has no value yet."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(composed)
    assert isinstance(values, dict)
    return {name: values[name] for name in RunConfig.model_fields if name in values}


def _checked(values: dict[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [_line(detail, values) for detail in error.errors(include_url=False)]
        problem = ConfigurationError(lines[0])
        for line in lines[1:]:
            problem.add_note(line)
        raise problem from error


def _line(detail: ErrorDetails, values: Mapping[str, Any]) -> str:
    """`label.method is "vote", but should be 'logprobs', … or 'votes'; type label.method=logprobs`."""
    key = _dotted(detail["loc"], values)
    listed = re.split(r"[.][0-9]+", key)[0]  # a list is typed whole
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "extra_forbidden":
        return f"{key}: there is no such setting; take it out, or see `constitutional config` for what there is"
    if detail["type"] == "missing":
        return f"{key} has no value yet; type {key}=VALUE"
    if detail["type"] == "union_tag_invalid":
        kinds = [each.strip(" '") for each in detail["ctx"]["expected_tags"].split(",")]
        first, last = ", ".join(f"'{each}'" for each in kinds[:-1]), kinds[-1]
        chosen = f"{key}={kinds[0]}" if key == listed else f"{listed}=[{{kind: {kinds[0]}}}]"
        return f"{key}.kind is \"{detail['ctx']['tag']}\", but should be {first} or '{last}'; type {chosen}"
    if isinstance(detail["input"], dict) or not key:  # a rule across settings says itself what to do
        return f"{key}: {message}" if key else message
    if detail["type"] == "string_pattern_mismatch":
        message = f"made of other characters (it must match {detail['ctx']['pattern']})"
    if detail["type"] == "value_error":  # a rule of ours, which says what it found
        return f"{key} {message}; type {listed}=VALUE"
    message = re.sub(r"^a valid dictionary( or instance of \w+)?", "settings by name", message)
    message = "a list" if message == "a valid tuple" else message
    typed = _typed(listed, detail)
    quoting = " and quote it, as \"'yes'\", so that it stays a text" if detail["type"] == "string_type" else ""
    found = json.dumps(to_jsonable_python(detail["input"], fallback=str), ensure_ascii=False)
    return f"{key} is {found}, but should be {message}; type {typed}{quoting}"


def _typed(key: str, detail: ErrorDetails) -> str:
    """What would be right to type for a setting that is wrong, as far as one can know."""
    found, kind = detail["input"], detail["type"]
    if key in ("critic", "labeler") and isinstance(found, str):
        return f"engine@{key}={found}"  # both choose among the options of one group
    if kind == "tuple_type" and isinstance(found, str | int | float):
        return f"{key}=[{found}]"
    if kind in ("dict_type", "model_type"):
        return f'"{key}={{NAME: VALUE}}", in quotes'
    choice = re.match(r"Input should be '([^']+)'", detail["msg"]) if kind == "literal_error" else None
    return f"{key}={choice[1] if choice else 'VALUE'}"


def _dotted(location: tuple[int | str, ...], values: Any) -> str:  # noqa: ANN401 - JSON of any shape
    """The key as it is typed: without the tag that pydantic adds to say which member of a union it tried."""
    parts = []
    for part in location:
        if isinstance(values, dict) and part not in values and values.get("kind") == part:
            continue
        parts.append(str(part))
        known = isinstance(values, dict) and part in values
        in_list = isinstance(values, list) and isinstance(part, int) and part < len(values)
        values = values[part] if known or in_list else None
    return ".".join(parts)


@contextmanager
def hydra_errors(overrides: Sequence[str]) -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise about overrides and presets into one line of ours."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_hydra_line(error)) from error
    except ValueError as error:
        if not str(error).startswith("Config group override"):
            raise
        raise UsageError(_no_name(overrides)) from error


def _no_name(overrides: Sequence[str]) -> str:
    """What to say of `model=3` and `=3`: Hydra takes only names for the options of a group, and names no culprit."""
    for word in overrides:
        key, equals, value = word.partition("=")
        group = key.lstrip("+~").partition("@")[0]
        if equals and not group:
            return f"{word}: names no setting; type KEY=VALUE, such as seed=1"
        folder = shipped("conf") / group
        if equals and folder.is_dir() and re.fullmatch(r"[-+.\w]+", value):
            options = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
            return f"{word}: {value} is no option of '{group}'; the options are {options}"
        if equals and group in _GROUPS:
            return f"{word}: '{group}' has no options; type one of its settings, as in {group}.{_first(group)}=VALUE"
    return f"{' '.join(overrides)}: an option must be a name, such as label=votes"


def _first(group: str) -> str:
    return next(name for model in _GROUPS[group].values() for name in model.model_fields)


def _hydra_line(error: Exception) -> str:
    from hydra.errors import OverrideParseException

    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; type KEY=VALUE, and quote what is no plain word: \"KEY='a {{b'\""
    message = str(error).split("\nConfig search path:")[0]
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if unknown := re.match(r"Could not override '(.+)'\.?$", lines[0]):
        key, known = unknown[1], _every_key()
        above, _, name = key.rpartition(".")
        if options := _options_with(above, name):
            typed = " or ".join(f"{above}={option}" for option in options)
            return f"{key} is a setting of another option than the chosen one; type {typed} as well"
        if key in known:  # settings that there are none of by default
            value = re.search(rf"use [+]{re.escape(key)}=(.*)", message)
            typed = f"{above}={{{name}: {value[1] if value else 'VALUE'}}}"
            return f'{above} is null, so {name} in it cannot be set alone; type "{typed}", in quotes'
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        meant = f"did you mean {near[0]}?" if near else "`constitutional config` shows every setting"
        return f"there is no setting '{key}'; {meant}"
    if "Available options in" in message:
        found = re.sub(r"^In '.*?': Could not find", "there is no", lines[0])
        found = re.sub(r"there is no '(.+)/'$", r"\1= names no option", found)
        start = next(number for number, line in enumerate(lines) if line.startswith("Available options in"))
        options = [option for option in lines[start + 1 :] if not option.startswith("schema")]
        own = re.search(r"'constitution/(.+)'", found)
        hint = f"; a file, or the name of a shipped one, goes into constitution.file={own[1]}" if own else ""
        return f"{found}; the options are {', '.join(options)}{hint}"
    kept = [line for line in lines if not line.startswith(("See https", "To append", "full_key", "object_type"))]
    return "; ".join(kept)


def _options_with(group: str, name: str) -> list[str]:
    """The options of a group of several kinds that have a setting of that name."""
    kinds = _GROUPS.get(group, {})
    return [
        option.removeprefix("schema_")
        for option, model in kinds.items()
        if option != "schema" and name in model.model_fields
    ]


def _every_key() -> list[str]:
    keys = list(_TOP)
    for field, info in RunConfig.model_fields.items():
        for model in _models_in(info.annotation):
            for name, inner in model.model_fields.items():
                keys += [
                    f"{field}.{name}",
                    *(
                        f"{field}.{name}.{each}"
                        for within in _models_in(inner.annotation)
                        for each in within.model_fields
                    ),
                ]
    return list(dict.fromkeys(keys))


def _models_in(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - whatever a field may be annotated with
    """The settings models that a field may hold: one, or the members of a union."""
    return [each for each in (annotation, *get_args(annotation)) if hasattr(each, "model_fields")]


def freeze(config: RunConfig) -> RunConfig:
    """The same with absolute paths, so that it means the same wherever it is read."""
    values = _absolute(config.model_dump())
    for owner, key in ((values["constitution"], "file"), (values["model"], "path")):
        if owner[key] and Path(owner[key]).expanduser().exists():  # an empty one is no name of the working folder
            owner[key] = str(Path(owner[key]).expanduser().resolve())
    return RunConfig.model_validate(values)


def _absolute(value: Any) -> Any:  # noqa: ANN401 - settings of any shape
    if isinstance(value, Path):
        return value.expanduser().resolve()
    if isinstance(value, dict):
        return {name: _absolute(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_absolute(each) for each in value)
    return value


def dump(config: RunConfig, digests: Mapping[str, str]) -> str:
    """`config.json`: the frozen configuration, digests of what it names, and the versions that it last ran on.

    The versions that made each stage stand in the manifest.
    """
    written = {"config": config.model_dump(mode="json"), "digests": dict(digests), "versions": dict(versions())}
    return json.dumps(written, indent=2, ensure_ascii=False) + "\n"


def load(path: Path) -> RunConfig:
    """The configuration in a run folder's `config.json` (or in that folder).

    Raises:
        InputError: the file is not one that `dump` wrote.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        return RunConfig.model_validate(json.loads(file.read_text(encoding="utf-8"))["config"])
    except OSError as error:
        raise InputError(file, f"cannot be read: {error.strerror}; name a run folder such as runs/first") from error
    except (ValueError, KeyError, TypeError) as error:
        problem = " ".join(str(error).split())
        raise InputError(file, f"is not the configuration of a run of this version: {problem}") from error


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
