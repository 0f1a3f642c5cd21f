import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub.utils._paths import filter_repo_objects
from pydantic import ValidationError

from constitutional.base.errors import ConfigurationError, InputError, ModelError
from constitutional.base.records import Message
from constitutional.engines.base import Completion, Request
from constitutional.engines.model_files import folder_digest, model_folder
from constitutional.engines.models import LazyEngine, Models, user_engine
from constitutional.engines.settings import LocalSettings, ModelSettings, ScriptedSettings, VllmSettings
from constitutional.sandbox import MODEL_FOLDER


def model_files(folder: Path) -> Path:
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("A model.")
    return folder


def test_the_digest_covers_what_decides_an_answer_and_not_where_it_lies(tmp_path: Path) -> None:
    one = model_files(tmp_path / "one")
    two = shutil.copytree(one, tmp_path / "two")
    (two / "README.md").write_text("The same model.")
    for stray in ("scores.json", "notes.txt", "other.safetensors", "trainer_state.json", "more.model/part.json"):
        (two / stray).parent.mkdir(exist_ok=True)
        (two / stray).write_text("stray")
    assert folder_digest(one) == folder_digest(two)
    for name in ("config.json", "model.safetensors", "additional_chat_templates/tool.jinja"):
        other = shutil.copytree(one, tmp_path / name.replace("/", "_"))
        (other / name).write_text("changed")
        assert folder_digest(other) != folder_digest(one)


def test_divided_weights_are_those_that_the_index_lists(tmp_path: Path) -> None:
    one = model_files(tmp_path / "one")
    (one / "model.safetensors").rename(one / "model-00001-of-00002.safetensors")
    (one / "model-00002-of-00002.safetensors").write_bytes(b"more weights")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (one / "model.safetensors.index.json").write_text(json.dumps(index))
    before = folder_digest(one)
    (one / "model-00002-of-00002.safetensors").write_bytes(b"other weights")
    assert folder_digest(one) != before
    (one / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors: cannot be read"):
        folder_digest(one)
    (one / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match="is no list of a model's weights"):
        folder_digest(one)


def test_weights_are_the_same_on_every_machine_and_answers_are_not(tmp_path: Path) -> None:
    path = str(model_files(tmp_path / "one"))
    on_cpu, on_gpu = (LazyEngine(ModelSettings(path=path, device=device), Models()) for device in ("cpu", "cuda:0"))
    assert on_cpu.weights == on_gpu.weights
    assert on_cpu.identity != on_gpu.identity


def test_a_users_function_answers_in_place_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text("REPLY = 'calm'\n")
    source = tmp_path / "mine.py"
    source.write_text("import words\ndef answer(request):\n    return words.REPLY\n")
    settings = ScriptedSettings(function=f"{source}:answer")
    engine = user_engine(settings)
    question = Request((Message("user", "Hi"),))
    assert engine.complete([question]) == [Completion("calm", "stop")]
    assert not engine.abilities.choices
    with pytest.raises(InputError, match=r"mine\.py:2: .*'answer' returned 'calm', and should return a Completion"):
        engine.complete([question._replace(choices=(" A", " B"))])
    assert user_engine(settings).weights == engine.weights
    # What it answers depends on its helper too.
    (tmp_path / "words.py").write_text("REPLY = 'loud'\n")
    assert user_engine(settings).weights != engine.weights


def test_an_identity_is_known_without_loading_and_depends_on_number_format_and_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(model_files(tmp_path / "one"))  # nothing that could be loaded

    def identity(**settings: object) -> str:
        return LazyEngine(ModelSettings.model_validate({"path": path, **settings}), Models()).identity

    on_cpu, on_gpu = identity(device="cpu", dtype="float32"), identity(device="cuda:0", dtype="bfloat16")
    assert on_cpu == identity(device="cpu", batch_size=3)
    assert on_gpu == identity(device="cuda:1")
    assert (
        len({on_cpu, on_gpu, identity(device="cpu", dtype="bfloat16"), identity(device="cuda", dtype="float16")}) == 4
    )
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    for there_is_one, expected in ((False, on_cpu), (True, on_gpu)):
        monkeypatch.setattr("torch.cuda.is_available", lambda found=there_is_one: found)
        assert identity() == expected


def test_a_role_says_only_what_differs_from_the_model_that_is_trained(tmp_path: Path) -> None:
    model = ModelSettings(path="some/model", batch_size=8)
    assert LocalSettings().over(model) == model
    other = LocalSettings(path=str(tmp_path), dtype="float16").over(model)
    assert other == ModelSettings(path=str(tmp_path), dtype="float16", batch_size=8)


def test_the_sandbox_and_folders_are_found(tmp_path: Path) -> None:
    assert model_folder("sandbox") == MODEL_FOLDER
    assert model_folder(str(model_files(tmp_path / "one"))) == tmp_path / "one"


@pytest.mark.parametrize("path", ["/no/such/folder", "sandbux", "a/b/c"])
def test_a_path_that_is_neither_is_refused_without_asking_the_hub(path: str) -> None:
    with pytest.raises(ConfigurationError, match=f"model path '{path}' is neither"):
        model_folder(path)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has no config.json; name a folder that transformers can load"):
        model_folder(str(tmp_path))


def test_weights_that_a_models_identity_does_not_cover_are_refused(tmp_path: Path) -> None:
    one = model_files(tmp_path / "one")
    (one / "model.safetensors").rename(one / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"one: has no weights in model\.safetensors or .* write it with save_pretrained"
    ):
        LazyEngine(ModelSettings(path=str(one)), Models())
    adapter = model_files(tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')
    with pytest.raises(ModelError, match=r"adapter: holds an adapter, whose base model is elsewhere; merge it"):
        model_folder(str(adapter))


def test_what_the_settings_add_to_the_tokenizer_is_in_the_identity(tmp_path: Path) -> None:
    path = str(model_files(tmp_path / "one"))
    thinking: dict[str, bool] = {"enable_thinking": True}
    added: list[dict[str, object]] = [
        {},
        {"pad_token": "<|pad|>"},
        {"template": thinking},
        {"template": {"enable_thinking": False}},
    ]
    settings = [ModelSettings.model_validate({"path": path, **each}) for each in added]
    assert len({LazyEngine(each, Models()).identity for each in settings}) == len(set(settings)) == 4
    again = ModelSettings.model_validate({"path": path, "template": thinking})
    assert (again, hash(again)) == (settings[2], hash(settings[2]))


def test_what_is_said_of_a_tokenizer_is_not_for_a_model_of_another_path() -> None:
    pad, other_pad = "<|pad|>", "<pad>"
    model = ModelSettings(path="some/model", pad_token=pad, template={"enable_thinking": False})
    assert LocalSettings(batch_size=1).over(model) == model.model_copy(update={"batch_size": 1})
    assert LocalSettings(path="other/model").over(model) == ModelSettings(path="other/model")
    other = LocalSettings(path="other/model", template={"style": "brief"}).over(model)
    assert (other.pad_token, other.template) == (None, {"style": "brief"})
    assert LocalSettings(pad_token=other_pad).over(model).pad_token == other_pad


@pytest.mark.parametrize("name", ["enable-thinking", "", "a = 1 %}{{ x"])
def test_an_argument_of_the_template_has_a_plain_name(name: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        ModelSettings.model_validate({"template": {name: True}})


def test_a_revision_pins_what_is_downloaded_and_a_model_of_another_path_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        there = ["model.safetensors", "config.json", "consolidated.safetensors", "original/model.safetensors", "a.bin"]
        taken = filter_repo_objects(there, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        assert list(taken) == there[:2]
        asked.append((name, revision))
        return str(model_files(tmp_path / str(revision)))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    LazyEngine(ModelSettings(path="some/model", revision="abc123"), Models())
    LazyEngine(ModelSettings(path="some/model"), Models())
    assert asked == [("some/model", "abc123"), ("some/model", None)]
    pinned = ModelSettings(path="some/model", revision="abc123")
    assert LocalSettings().over(pinned).revision == "abc123"
    assert LocalSettings(path="other/model").over(pinned).revision is None


@pytest.mark.parametrize(("memory", "left"), [(0.3, ["a", "b", "c"]), (0.45, ["b", "c"]), (0.9, ["c"])])
def test_models_of_vllm_make_room_for_each_other_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, memory: float, left: list[str]
) -> None:
    running = []

    class Server:
        busy, failure = False, ""

        def __init__(self, settings: VllmSettings) -> None:
            self.path = settings.path
            running.append(self.path)

        def close(self) -> None:
            running.remove(self.path)

    monkeypatch.setattr("constitutional.engines.vllm.VllmServer", Server)
    monkeypatch.setattr("constitutional.engines.local.placed", lambda *_: ("cuda:0", None))
    models = Models(most=3)
    for path in "abc":
        models.server(VllmSettings(path=path, memory=memory))
    assert running == left
