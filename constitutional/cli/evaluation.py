"""The command `eval`: a model, or a labeler, on a public evaluation set from the user's file."""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constitutional.base.errors import UsageError
from constitutional.base.progress import Progress, counted
from constitutional.base.text import printable, table

if TYPE_CHECKING:
    from constitutional.data.evaluation import EvaluationSet
    from constitutional.judging.evaluation import Evaluated
    from constitutional.judging.evaluation_scores import MetricValue


def add_parser(commands: Any) -> None:  # noqa: ANN401 - argparse keeps the type of its sub-parsers to itself
    """Add the command to those of `constitutional`."""
    parser = commands.add_parser(
        "eval",
        help="a model on HHH, RewardBench 2, JudgeBench, TruthfulQA, SycophancyEval, XSTest, StrongREJECT, BBQ, …",
        description="Score a model on a public evaluation set as the set's paper does. The set is recognised by its "
        "columns, or named before the file. HHH, JudgeBench and RewardBench 2 try the labeler; all other sets the "
        "model of model.path, or that of generator=http and the like, and the labeler judges replies in words. Answers "
        "are kept in the journal: the same command goes on where it was stopped.",
    )
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="WORD",
        help="the set's name, if you like; one or more files (JSON lines, JSON, CSV, Parquet, Arrow, hf://…); and "
        "settings such as model.path=FOLDER label.method=logprobs constitution.file=helpful_honest_harmless",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many rows, drawn at random by the seed")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the tables")
    parser.set_defaults(run=_eval)


def _words(words: list[str]) -> tuple[str | None, list[Path | str], list[str]]:
    """The set's name, the files, and the settings."""
    from constitutional.data.evaluation import SETS

    # Unlike Path's own, this takes a text of any length.
    settings = [word for word in words if "=" in word and not os.path.exists(word)]  # noqa: PTH110
    others = [word for word in words if word not in settings]
    name = others.pop(0).replace("-", "_") if others and others[0].replace("-", "_") in SETS else None
    if not others:
        raise UsageError(f"no file to evaluate on; name a file of one of {', '.join(SETS)}")
    return name, [word if word.startswith("hf://") else Path(word) for word in others], settings


def _eval(arguments: argparse.Namespace) -> None:
    from constitutional.base.templates import load_prompts
    from constitutional.cli.run_command import refuse_name
    from constitutional.data.evaluation import draw, load_evaluation
    from constitutional.engines.settings import SANDBOX
    from constitutional.judging.evaluation import JUDGED, LABELER_SETS, Subject, evaluate, steps
    from constitutional.judging.labeler import answering, unfit
    from constitutional.runs.compose import compose, freeze
    from constitutional.runs.context import RunContext, as_models_read, selected

    name, files, settings = _words(arguments.overrides)
    if arguments.limit is not None and arguments.limit < 1:
        raise UsageError(f"--limit {arguments.limit}: at least 1 row")
    refuse_name(settings, "model.path=runs/NAME/08_dpo/policy evaluates the model of a run")
    config = freeze(compose(settings))
    evaluation = draw(load_evaluation(files, name), arguments.limit, config.seed)
    templates, progress = load_prompts(config.templates), Progress()
    constitution = as_models_read(config, selected(config), progress.say).used_for("comparison")

    tries_labeler = evaluation.name in LABELER_SETS
    with RunContext(config, constitution, templates, progress) as context:
        judge = context.journalled(context.given("labeler"))
        same = context.given("labeler") == context.given("generator")
        if evaluation.name in JUDGED and not same and getattr(context.given("labeler"), "path", None) == SANDBOX:
            raise UsageError(
                "the labeler judges the replies, and it is the sandbox's model, which knows the words of its own small "
                "world alone; type engine=http engine.url=… engine.model=… for a server as both, or for another judge "
                "labeler.path=FOLDER or labeler=http"
            )
        model = judge if tries_labeler or same else context.journalled(context.given("generator"))
        subject = Subject(
            model,
            judge,
            constitution,
            templates,
            config.label,
            config.seed,
            config.evaluate.max_tokens,
            classes=not same,
            refusal_phrases=config.evaluate.refusal_phrases,
        )
        if tries_labeler:
            method = "score" if evaluation.name == "reward_bench_2" else config.label.method
            progress.say(f"labeler: {answering(method, judge.abilities)}, by '{constitution.name}'")
        elif evaluation.name in JUDGED and same:
            how = "phrases tell its refusals" if evaluation.name == "xstest" else "it judges its own replies"
            progress.say(f"the labeler is the model itself: {how}; type labeler=… for another judge")
        asked = context.given("labeler" if tries_labeler else "generator")
        if tries_labeler and method != "score" and (warning := unfit(config.label.method, asked)):
            progress.say(f"warning: {warning}")
        if getattr(asked, "path", None) == SANDBOX:
            progress.say(
                "warning: this is the sandbox's model, which knows the words of its own small world alone, so that a "
                "score on a public set says next to nothing; type model.path=FOLDER, or engine=http for a server"
            )
        with progress.task(f"eval {evaluation.name}", steps(evaluation, subject), "answers") as task:
            evaluated = evaluate(
                evaluation, subject, lambda done: task.update(done, f"{model.asked + model.reused:,} model calls")
            )
        engines = [model] if model is judge else [model, judge]
        counts = (
            f"{sum(engine.asked for engine in engines):,} asked, {sum(engine.reused for engine in engines):,} reused"
        )
        progress.say(f"model calls: {counts}; the answers are kept in {model.journal.path}")
        called = getattr(asked, "path", None) or getattr(asked, "model", None) or getattr(asked, "function", "")
        about: dict[str, object] = {"model": called, "weights": model.weights}
        if tries_labeler:
            about["constitution"] = constitution.name
        elif evaluation.name in JUDGED:
            about["judge"] = judge.weights if subject.classes or evaluation.name != "xstest" else "phrases"
    write = _json if arguments.json else _text
    write(evaluation, files, evaluated, about, config.seed)


def _json(
    evaluation: "EvaluationSet",
    files: list[Path | str],
    evaluated: "Evaluated",
    about: dict[str, object],
    seed: int,
) -> None:
    from constitutional.judging.evaluation_scores import baselines, estimate

    rows = ((metric, estimate(metric, seed)) for metric in evaluated.metrics)
    value = {
        "set": evaluation.name,
        "files": list(map(str, files)),
        **about,
        "rows": len(evaluation.rows),
        "rows_in_files": evaluation.total,
        "seed": seed,
        "metrics": [
            {"metric": metric.name, **({"part": metric.part} if metric.part else {}), **_object(number)}
            for metric, number in rows
            if number
        ],
        "baselines": {name: _object(number) for name, number in baselines(evaluation.name, evaluation.rows, seed)},
        "problems": evaluated.problems,
    }
    json.dump(value, sys.stdout, ensure_ascii=False, indent=2)
    print()


def _object(number: "MetricValue") -> dict[str, object]:
    low, high = (end if math.isfinite(end) else None for end in (number.low, number.high))
    return {"value": number.value, "low": low, "high": high, "n": number.n}


def _text(
    evaluation: "EvaluationSet",
    files: list[Path | str],
    evaluated: "Evaluated",
    about: dict[str, object],
    seed: int,
) -> None:
    from constitutional.judging.evaluation_scores import MEANINGS, baselines, estimate

    of = f" of {evaluation.total:,}" if evaluation.total > len(evaluation.rows) else ""
    names = ", ".join(map(str, files))
    print(printable(f"{evaluation.name}: {counted(len(evaluation.rows), 'row')}{of} from {names}"))
    print(*(printable(f"{key}: {value}") for key, value in about.items()), sep="\n")
    lines: list[tuple[str, ...]] = [("", "value", "95% interval", "n", "")]
    for metric in evaluated.metrics:
        part = f": {metric.part}" if metric.part else ""
        if number := estimate(metric, seed):
            lines.append(_line(f"{MEANINGS[metric.name].words}{part}", number, percent=metric.unit != "score"))
    blind = [_line(name, number) for name, number in baselines(evaluation.name, evaluation.rows, seed)]
    print(f"\n{table(lines, numbers_from=1)}")
    if blind:
        print(f"\nWhat choosing without reading would get:\n{table(blind, numbers_from=1)}")
    for problem, count in evaluated.problems.items():
        print(printable(f"{problem}: {count:,}"))


def _line(name: str, number: "MetricValue", *, percent: bool = True) -> tuple[str, ...]:
    value = f"{number.value:.2%}" if percent else f"{number.value:.2f}"
    low, high = (f"{end:.1%}" if percent else f"{end:.2f}" for end in (number.low, number.high))
    return (name, value, f"{low} to {high}" if math.isfinite(number.high) else "–", f"{number.n:,}", "")
