"""Random models of a few thousand weights, with the chat templates of real ones, and a run that holds one stage."""

import importlib.resources
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from constitutional.base.progress import Progress, Task
from constitutional.base.records import Record
from constitutional.base.shards import PlainRow, Row, one_by_one
from constitutional.engines.settings import ModelSettings
from constitutional.stages.summaries import Summary
from constitutional.training.tracking import TrackedStage, TrackerName, Tracking
from scripts.sandbox_training.tokenizer import build_tokenizer

R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=Summary)
T = TypeVar("T")


class Family(NamedTuple):
    """An architecture, and the special tokens and template that its chat models have."""

    config: str
    template: str
    special: tuple[str, ...]
    end: str
    """Ends a turn; a reply is generated up to it."""
    eos: str


FAMILIES = {
    "llama": Family(
        "LlamaConfig",
        "llama3",
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        "<|eot_id|>",
        "<|eot_id|>",
    ),
    "qwen3": Family("Qwen3Config", "qwen3", ("<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_end|>"),
    # Its tokenizer's end of text never occurs in a conversation; the generation settings name the end of a turn too.
    "gemma": Family("GemmaConfig", "gemma", ("<bos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", "<eos>"),
}


def tiny_tokenizer(family: str = "") -> Any:  # noqa: ANN401
    """The sandbox's own tokenizer, or one that speaks as a family's does."""
    tokenizer = build_tokenizer(["One text is enough."], count=50)
    if family:
        kind = FAMILIES[family]
        tokenizer.add_special_tokens({"additional_special_tokens": [*kind.special, kind.eos]})
        tokenizer.eos_token = kind.eos
        tokenizer.bos_token = kind.special[0] if family != "qwen3" else None
        tokenizer.chat_template = chat_template(kind.template)
    return tokenizer


def chat_template(name: str) -> str:
    """A real model's, as TRL ships it."""
    return (importlib.resources.files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def _saved(family: str, parent: Path) -> Path:
    import torch
    import transformers

    tokenizer = tiny_tokenizer(family)
    kind = FAMILIES.get(family)
    torch.manual_seed(0)
    config = getattr(transformers, kind.config if kind else "LlamaConfig")(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    if kind:
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(kind.end)]
    folder = parent / (family or "sandbox")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_model(parent: Path, family: str = "") -> Path:
    """A folder with a random model, two layers of width 16, and its tokenizer; made once for each parent."""
    import torch

    torch.set_num_threads(1)  # threads would only wait for each other on so little work
    return _saved(family, parent)


@dataclass
class OneStage:
    """What a stage is handed, in memory and a folder."""

    folder: Path
    models: dict[str, Path] = field(default_factory=dict)
    rows: dict[str, list[Any]] = field(default_factory=dict)
    seed: int = 0
    said: Summary | None = None
    warnings: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    engines: dict[str, Any] = field(default_factory=dict)
    name: str = "one"
    constitution: Any = None
    prompts: Any = None
    pad_token: str | None = None
    report_to: tuple[TrackerName, ...] = ()
    tracked_as: str = "stage"

    def read(self, artifact: str, kind: type[R]) -> list[R]:
        assert all(isinstance(row, kind) for row in self.rows[artifact])
        return self.rows[artifact]

    stream = read

    def write(self, artifact: str, rows: Iterable[Row]) -> int:
        self.rows[artifact] = [row.record() if isinstance(row, PlainRow) else row for row in one_by_one(rows)]
        return len(self.rows[artifact])

    def has(self, artifact: str) -> bool:
        return artifact in self.rows or artifact in self.models

    def summary(self, kind: type[S]) -> S | None:
        raise AssertionError(kind)

    def records(self) -> dict[str, Any]:
        raise AssertionError("a stage reads the records of others")

    def configuration(self) -> dict[str, Any]:
        raise AssertionError("a stage reads the whole configuration")

    def digests(self) -> dict[str, str]:
        raise AssertionError("a stage reads the digests of others")

    def model(self, artifact: str) -> Path:
        return self.models[artifact]

    @property
    def base(self) -> ModelSettings:
        return self.settings("base")

    @property
    def judges(self) -> dict[str, str]:
        return {"labeler": "labeler"} | {role.removeprefix("panel."): role for role in self.engines if "panel." in role}

    def settings(self, role: str) -> ModelSettings:
        return ModelSettings(path=str(self.models.get(role, role)), pad_token=self.pad_token)

    def output(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def engine(self, role: str) -> Any:  # noqa: ANN401
        return self.engines[role]

    def task(self, label: str, total: int = 0, unit: str = "rows") -> Task:
        return Progress(StringIO()).task(label, total, unit)

    def progress(self, items: Iterable[T], total: int, label: str, unit: str = "rows") -> Iterator[T]:  # noqa: ARG002
        count = 0
        for count, item in enumerate(items, start=1):  # noqa: B007 - it is read after the last item
            yield item
        assert count == total, label

    def tracking(self, settings: BaseModel, part: str = "") -> Tracking:
        stage = TrackedStage(self.name, f"{self.tracked_as}{part}", settings.model_dump(mode="json"), self.folder)
        return Tracking(self.report_to, stage, self.output(f"checkpoints/trackers{part}.json"))

    def summarise(self, summary: Summary) -> None:
        assert self.said is None, "a stage has one summary"
        self.said = summary

    def summarised(self, kind: type[S]) -> S:
        """The summary that the stage kept."""
        assert isinstance(self.said, kind)
        return self.said

    def release(self) -> None:
        pass

    def say(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def without_padding(parent: Path) -> Path:
    """The tiny Llama, with a tokenizer that names no token for padding, as that of Llama 3.1 does not."""
    folder = parent / "without_padding"
    shutil.copytree(tiny_model(parent, "llama"), folder)
    tokenizer = tiny_tokenizer("llama")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return folder
