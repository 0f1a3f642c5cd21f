"""Cards: what a data set or a model of a run is, as the `README.md` that the Hugging Face hub shows.

A card lies beside the weights of every model that a run trains. It is written when the training is done, and again with
figures when the evaluation is. No digest depends on it (`base.files.CARD`), so it makes no stage anew.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from constitutional.base.errors import RunError
from constitutional.base.files import CARD, atomic_write
from constitutional.base.progress import counted
from constitutional.base.text import printable
from constitutional.constitution.constitution import Constitution
from constitutional.engines.settings import SANDBOX, EngineSettings, role_settings
from constitutional.judging.people import PeoplesWork
from constitutional.judging.scores import Score
from constitutional.runs.folder import RunStore
from constitutional.runs.settings import RunConfig
from constitutional.stages import online
from constitutional.stages.report.data import FEW, MODELS, TOO_FEW
from constitutional.stages.report.figures import interval
from constitutional.stages.report.verdicts import words
from constitutional.stages.summaries import (
    AdoptedSummary,
    DpoSummary,
    MixSummary,
    OnlineSummary,
    RewardSummary,
    SftSummary,
    SpotCheckSummary,
)
from constitutional.training.rewards import OnlineSettings

TRAINED: Final = ("sft_model", "reward_model", "policy")
"""The models of a run that have a card."""
SOURCES: Final[Mapping[str, str]] = {"ai": "AI", "human": "people"}
UNKNOWN: Final = "unknown"
"""The licence that the hub knows for what nobody has said."""
_ABOUT: Final[Mapping[str, str]] = {
    "sft_model": "learned revisions that a critic made of a model's drafts (supervised fine-tuning)",
    "reward_model": "scores replies; it learned which of two replies is better. Every member of it has a folder, and "
    "`normalisation.json` says how its scores are normalised",
    "policy": "was trained on preferences",
}
_UNTRAINED: Final[Mapping[str, str]] = {
    "sft_model": "is the base model: no draft was revised, so nothing was trained",
    "reward_model": "has no member: there was no preference to learn from, so nothing was trained",
    "policy": "is the SFT model: there was no preference to learn from, so nothing was trained",
}
_REWARDED: Final[Mapping[str, str]] = {
    "reward_model": "by a reward model that learned preferences",
    "constitution": "by the labeler's scores for the principles",
    "length": "by their length",
    "refusal": "by whether they refuse",
    "questions": "by how many questions they ask",
    "python": "by a function that a user wrote",
}
_ELSEWHERE: Final = (
    "was **not trained by `constitutional`**: it was adopted from a folder, and what it was trained on, and how, is "
    "not recorded here"
)
_HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_COLUMNS: Final[Mapping[str, str]] = {
    "prompt": "the conversation, as messages",
    "chosen, rejected": "the better and the worse reply, as messages",
    "source": "`ai` for the labeler, or for a model that labelled a file; `human` for people",
    "probability": "that chosen is better, 0.5 to 1",
    "principles": "ids of the principles that the label rests on",
    "weight": "how much the pair counts, 1 or less: the pairs of several replies to one prompt share the weight of one",
    "constitution": "the constitution's digest",
    "comparison, rests_on": "ids of the comparison, and of the judgements or votes behind the label",
    "split": "`train`, or `held_out` for what the reward model was measured on",
    "prompt_source": "where the prompt comes from",
}


def dataset_card(
    store: RunStore,
    config: RunConfig,
    constitution: Constitution,
    counts: Mapping[str, Mapping[str, int]],
    licence: str | None,
) -> str:
    """The card of a folder of preferences, with a file `data/SPLIT.parquet` for each split.

    Args:
        store: the run that they come from.
        config: its configuration.
        constitution: what they were labelled by.
        counts: preferences by split and source (`ai`, `human`).
        licence: an identifier of the hub's, such as `cc-by-4.0`; None where nobody has said.
    """
    from huggingface_hub import DatasetCardData

    total = sum(count for by_source in counts.values() for count in by_source.values())
    files = [{"split": split, "path": f"data/{split}.parquet"} for split in counts]
    front = DatasetCardData(
        license=licence or UNKNOWN,
        pretty_name=f"Preferences by {_line(constitution.name)}",
        tags=["preference", "constitutional-ai", "rlaif", "trl"],
        task_categories=["text-generation"],
        size_categories=[_size(total)],
        configs=[{"config_name": "default", "data_files": files}],
    )
    rows = [
        (split, *(f"{by_source.get(source, 0):,}" for source in SOURCES), f"{sum(by_source.values()):,}")
        for split, by_source in counts.items()
    ]
    sections = [
        f"# Preferences by {_line(constitution.name)}",
        f"{counted(total, 'preference')} of the run `{store.folder.resolve().name}`, made with `constitutional`.",
        "## Data\n",
        _table([("split", *(f"by {name}" for name in SOURCES.values()), "in all"), *rows]),
        _labels(config),
        *_people(store),
        "\n".join(f"- `{name.replace(', ', '`, `')}`: {meaning}" for name, meaning in _COLUMNS.items()),
        *_constitution(constitution),
        *_licence(licence),
    ]
    return _card(front.to_yaml(), sections)


def model_card(
    store: RunStore, config: RunConfig, constitution: Constitution, model: str, licence: str | None = None
) -> str:
    """The card of a model of a run, with figures where the evaluation is done.

    Args:
        store: the run.
        config: its configuration.
        constitution: what it was trained by.
        model: one of `TRAINED`.
        licence: an identifier of the hub's; None where nobody has said.
    """
    from huggingface_hub import ModelCardData

    base = config.model.path
    kind = config.algorithm.kind
    method = {"sft_model": "sft", "reward_model": "reward-model", "policy": kind}[model]
    elsewhere = method == "adopted"
    front = ModelCardData(
        license=licence or UNKNOWN,
        base_model=base if _on_hub(base) else None,
        library_name="transformers",
        pipeline_tag="text-classification" if model == "reward_model" else "text-generation",
        tags=["constitutional-ai", *([] if elsewhere else [method, "trl"])],
    )
    title = {"sft_model": "SFT model", "reward_model": "Reward model", "policy": f"Policy ({kind.upper()})"}[model]
    about = _ELSEWHERE if elsewhere else _about(store, config, model)
    made = "evaluated it beside" if elsewhere else "made it from"
    title = "Policy, trained elsewhere," if elsewhere else title
    origin, run = _name_of(config.model), store.folder.resolve().name
    if config.model.revision:
        origin += f" at revision `{config.model.revision}`"
    settings = {"sft_model": config.sft, "reward_model": config.reward, "policy": config.algorithm}[model]
    sections = [
        f"# {title} of {_line(constitution.name)}",
        f"This model {about}. The run `{run}` of `constitutional` {made} {origin}.",
        "## Data\n",
        *_training_data(store, config, model),
        *_constitution(constitution),
        f"## Training\n\n{_training(store, model)}\n\n```json\n{_settings(settings)}\n```",
        *_figures(store, model),
        *_licence(licence),
    ]
    return _card(front.to_yaml(), sections)


def _about(store: RunStore, config: RunConfig, model: str) -> str:
    """What a model that the run made is, and what it learned from."""
    if not _was_trained(store, model):
        return _UNTRAINED[model]
    if model != "policy" or not isinstance(config.algorithm, OnlineSettings):
        return _ABOUT[model]
    rewarded = [_REWARDED[reward.kind] for reward in config.algorithm.rewards]
    return f"was trained on replies of its own, which were rewarded {', '.join(dict.fromkeys(rewarded))}"


def _was_trained(store: RunStore, model: str) -> bool:
    stage = _stage_of(store, model)
    if stage in OnlineSummary.stages:
        return store.summary(stage, OnlineSummary).steps > 0
    if stage in DpoSummary.stages:
        return store.summary(stage, DpoSummary).pairs > 0
    if stage in RewardSummary.stages:
        return store.summary(stage, RewardSummary).pairs > 0
    return not store.summary(stage, SftSummary).nothing_revised


def _stage_of(store: RunStore, model: str) -> str:
    return next(name for name, entry in store.stages.items() if model in entry.artifacts)


def write_cards(store: RunStore, config: RunConfig, constitution: Constitution, models: Sequence[str]) -> Iterator[str]:
    """Write the cards of those of the models that are there; yields a line for a card that cannot be written."""
    for model in models:
        if model in TRAINED and model in store.artifacts():
            path = store.artifact(model) / CARD
            try:
                atomic_write(path, model_card(store, config, constitution, model).encode())
            except RunError as error:  # a folder that others made, say: the model is good without its card
                yield f"warning: the model's card is not written: {error}"


def is_evaluated(store: RunStore) -> bool:
    """Whether the evaluation is of the models that the run has now.

    Of a run that was stopped after a training, or is at one, the evaluation may be left of the models before.
    """
    evaluation, made = store.stages.get("evaluate"), store.artifacts()
    return evaluation is not None and all(
        evaluation.needs.get(model) == made[model].sha256 for model in ("sft_model", "policy") if model in made
    )


def _card(front: str, sections: Sequence[str]) -> str:
    return f"---\n{front}\n---\n\n" + "\n\n".join(section.strip("\n") for section in sections) + "\n"


def _constitution(constitution: Constitution) -> Iterator[str]:
    name = _line(constitution.name) + (f", version {_line(constitution.version)}" if constitution.version else "")
    yield f"## Constitution\n\n{name}. SHA-256 of its principles: `{constitution.digest}`."
    rows = [(f"`{row.id}`", f"{row.weight:g}", _line(row.text)) for row in constitution.principles]
    yield _table([("principle", "weight", "text"), *rows])


def _training_data(store: RunStore, config: RunConfig, model: str) -> Iterator[str]:
    if model == "sft_model":
        sft = store.summary("sft", SftSummary)
        if sft.nothing_revised:
            yield "The critic changed no draft, so nothing was trained: the model is the base model."
        else:
            samples = f"{counted(sft.revision, 'revision')} and {counted(sft.helpful, 'helpful sample')}"
            yield f"{samples}, of which {sft.trained_on:,} were trained on."
        if sft.work:
            hours = f", in {sft.work.seconds / 3600:.1f} hours" if sft.work.timed else ""
            samples = counted(sft.work.votes, "sample")
            yield f"People's work: {_persons(sft.work.raters)} wrote {samples} of `sft.helpful`{hours}."
        return
    if model == "policy" and "adopted" in store.stages:
        yield "Not known here. These are the preferences of the run, which its reward model learned:"
    elif model == "policy" and not _learns_preferences(config.algorithm):
        asked = online.asks_labeler(config.algorithm)
        labeler = f" The labeler is {_name_of(role_settings(config.labeler, config.model))}." if asked else ""
        yield f"Replies to prompts alone: no preference was learned from.{labeler}"
        return
    if "mix" in store.stages:
        counts = store.summary("mix", MixSummary).counts
        rows = [
            (
                f"by {name}",
                *(f"{counts.get(f'{key} preferences {use}', 0):,}" for use in ("used", "held out")),
            )
            for key, name in (("AI", "AI"), ("human", "people"))
        ]
        yield _table([("preferences", "trained on", "held out"), *rows])
        used = [counts.get(f"{key} preferences used", 0) for key in ("AI", "human")]
        if sum(used):
            yield f"People's share of the preferences that were trained on: {used[1] / sum(used):.1%}."
        yield _labels(config)
    yield from _people(store)


def _learns_preferences(algorithm: object) -> bool:
    """Whether an algorithm learns from preferences, or from a reward model that did."""
    return not isinstance(algorithm, OnlineSettings) or "reward_model" in online.needs(algorithm)


def _labels(config: RunConfig) -> str:
    """Who the AI is that judged, and how it was asked."""
    names = [_name_of(role_settings(role, config.model)) for role in (config.labeler, *config.panel.values())]
    return f"AI labels: by {' and '.join(names)}, asked with `label.method={config.label.method}`."


def _name_of(engine: EngineSettings) -> str:
    """A model's name; of a folder the last part alone."""
    name = str(getattr(engine, "path", "") or getattr(engine, "model", "") or "a function")
    if name == SANDBOX:
        return "the sandbox's small model, a test-bed"
    return f"`{name if _on_hub(name) else Path(name).name}`"


def _on_hub(name: str) -> bool:
    return name != SANDBOX and not Path(name).exists() and _HUB_NAME.fullmatch(name) is not None


def _people(store: RunStore) -> Iterator[str]:
    """Who voted; a sentence too where nobody did."""
    said = []
    if "spotcheck" in store.stages:
        checks = store.summary("spotcheck", SpotCheckSummary)
        if checks.simulated:
            said.append(f"{counted(checks.votes, 'vote')} of spot-checks are simulated: no person gave them.")
        elif checks.votes:
            said.append(f"{_persons(checks.raters)} gave {counted(checks.votes, 'vote')} in spot-checks.")
    mixed = store.summary("mix", MixSummary) if "mix" in store.stages else None
    if mixed and mixed.work:
        said += _work(mixed.work)
    from_people = mixed.counts.get("human preferences available", 0) if mixed else 0
    if from_people and not said:
        preferences = counted(from_people, "preference")
        said.append(f"{preferences} come from files of comparisons (`mix.human`); who made them is not recorded.")
    if mixed and not said:
        said.append("No person voted on these comparisons.")
    said += [f"`{_line(name)}` {_line(by)}." for name, by in (mixed.labelled.items() if mixed else ())]
    if said:
        yield "People's work: " + " ".join(said)


def _persons(count: int) -> str:
    return "1 person" if count == 1 else f"{count:,} people"


def _work(work: PeoplesWork) -> Iterator[str]:
    if work.votes:
        hours = f", in {work.seconds / 3600:.1f} hours" if work.timed else ""
        yield f"{_persons(work.raters)} gave {counted(work.votes, 'vote')} in files of verdicts{hours}."
    if work.simulated:
        yield f"{counted(work.simulated, 'vote')} in files of verdicts are simulated: no person gave them."


def _training(store: RunStore, model: str) -> str:
    stage = _stage_of(store, model)
    entry = store.stages[stage]
    packages = ", ".join(
        f"{name} {entry.versions[name]}" for name in ("torch", "transformers", "trl") if name in entry.versions
    )
    if stage in AdoptedSummary.stages:
        adopted = store.summary(stage, AdoptedSummary)
        folder = f"a folder `{_line(adopted.folder)}`"
        return f"Stage `{stage}` took it from {folder}, whose files have the SHA-256 `{adopted.digest}`."
    sentences = [f"Stage `{stage}`" + (f", with {packages}." if packages else ".")]
    if stage in OnlineSummary.stages:
        online = store.summary(stage, OnlineSummary)
        sentences.append(f"{online.replies:,} replies to {counted(online.prompts, 'prompt')} were drawn and scored.")
    return " ".join(sentences)


def _settings(settings: BaseModel) -> str:
    """The settings as JSON; of a path the last part alone, since folders on a machine are nobody's business."""

    def plain(value: Any) -> Any:  # noqa: ANN401 - settings of any shape
        if isinstance(value, Path):
            return value.name
        if isinstance(value, Mapping):
            # Of a user's function the file's path is in a text.
            return {str(key): plain(Path(part) if key == "function" else part) for key, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, list | tuple) else value

    return json.dumps(plain(settings.model_dump()), indent=2, ensure_ascii=False)


def _figures(store: RunStore, model: str) -> Iterator[str]:
    if model == "reward_model":
        quality = store.summary("reward", RewardSummary).quality
        if quality is not None and quality.accuracy:
            rows = [
                (
                    {"all": "all", **SOURCES}.get(source, source),
                    f"{share.value:.0%} ({share.low:.0%}–{share.high:.0%})",
                    f"{share.n:,}",
                )
                for source, share in quality.accuracy.items()
            ]
            measured = "How often the chosen reply scores higher, on preferences that were held out"
            yield f"## Figures\n\n{measured} (95% intervals)."
            yield _table([("preferences by", "accuracy", "n"), *rows])
        return
    scores = [row for row in store.read("scores", Score) if row.n] if is_evaluated(store) else []
    if not scores:
        yield "## Figures\n\nNot evaluated yet."
        return
    by_measure: dict[str, dict[str, Score]] = {}
    for score in scores:
        by_measure.setdefault(score.measure, {})[score.model] = score
    yield (
        "## Figures\n\nOn prompts that were held out, with 95% intervals. Base is the model before training, SL after "
        f"supervised learning, RL the policy. A number from fewer than {FEW} observations is marked with * ({TOO_FEW})."
    )
    body = [
        (words(measure), *(_figure(by_model.get(name)) for name in MODELS)) for measure, by_model in by_measure.items()
    ]
    yield _table([("measure", *MODELS.values()), *body])


def _figure(score: Score | None) -> str:
    if score is None:
        return "–"
    return interval(score) + (" \\*" if score.n < FEW else "")


def _licence(licence: str | None) -> Iterator[str]:
    if licence is None:
        others = "The base model, the prompts and people's comparisons may have terms of their own."
        yield f"## Licence\n\nNobody has said. {others}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first row its head."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _line(text: str) -> str:
    """A text on one line, without what would be HTML."""
    return printable(" ".join(text.split())).replace("<", "&lt;")


def _size(count: int) -> str:
    """The hub's category of size."""
    edges = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
    return next((name for edge, name in edges.items() if count < edge), "1M<n<10M")
