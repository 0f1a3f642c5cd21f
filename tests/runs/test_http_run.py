"""A run whose labeler is behind a server."""

from io import StringIO
from pathlib import Path

import pytest

from constitutional.base.errors import ConfigurationError
from constitutional.base.progress import Progress
from constitutional.base.templates import load_prompts
from constitutional.engines.base import Engine
from constitutional.engines.models import Models, engine_of
from constitutional.engines.settings import EngineSettings, HttpSettings
from constitutional.runs.context import RunContext
from constitutional.runs.forecast import forecast
from constitutional.runs.runner import check_budgets, ready, run
from tests.engines.faulty_server import Answer, FaultyServer, Json, chat, error, serving, tops
from tests.engines.test_http import able
from tests.runs.test_budget import by_http
from tests.scripted_run import World, configured, constitution, stages

KEY = "sk-marked-4711"


def rule(body: Json, number: int) -> Answer:
    """Repeats the key wherever a server can."""
    if number % 7 == 3:
        return error(500, f"Authorization: Bearer {KEY}")
    if number % 7 == 5:
        return error(400, f"Authorization: Bearer {KEY}")
    logprobs = tops({" A": -0.2, " B": -1.8, KEY: -4.0}) if body.get("logprobs") else None
    return chat(f"You sent {KEY}.", logprobs=logprobs)


def configuration(tmp_path: Path, server: FaultyServer) -> list[str]:
    constitution(tmp_path)
    labeler = {"url": server.url, "model": "mock", "api_key_env": "SOME_KEY", "logprobs": "yes", "prefill": "yes"}
    settings = [f"labeler.{name}={value}" for name, value in labeler.items()]
    return ["until=label", "engine@labeler=http", "labeler.structured=no", *settings]


def test_the_key_is_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    world, output = World(), StringIO()

    def opener(settings: EngineSettings) -> Engine:
        if isinstance(settings, HttpSettings):
            return engine_of(settings, Models(), progress.say)
        return world.open(settings)

    with serving(rule) as server:
        config = configured(tmp_path, *configuration(tmp_path, server))
        progress = Progress(output)
        store = run(config, stages=stages(config), opener=opener, progress=progress)
    assert server.good > 10
    assert all(f"Bearer {KEY}" in head for head in server.headers)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert any(b"SOME_KEY" in path.read_bytes() for path in files)
    assert any(b"[key]" in path.read_bytes() for path in files)
    assert KEY not in output.getvalue() + "".join(capfd.readouterr())
    assert "label" in store.stages


def test_a_missing_key_is_told_before_a_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with serving(rule) as server:
        config = configured(tmp_path, *configuration(tmp_path, server))
        with pytest.raises(ConfigurationError, match="SOME_KEY"):
            run(config, stages=stages(config), progress=Progress(StringIO()))
    assert server.asked == []
    assert not config.run_folder.exists()


def test_a_finished_run_needs_no_key_and_contacts_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    with serving(able) as server:
        config = configured(tmp_path, *configuration(tmp_path, server), "labeler.prefill=auto", "until=prompts")
        run(config, progress=Progress(StringIO()))
        assert len(server.asked) > 0
    monkeypatch.delenv("SOME_KEY")
    output = StringIO()
    run(config, progress=Progress(output))
    assert "done before" in output.getvalue()


def test_a_forecast_tells_a_missing_key_before_it_asks_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with serving(rule) as server:
        config = configured(tmp_path, *configuration(tmp_path, server))
        with pytest.raises(ConfigurationError, match="SOME_KEY"):
            forecast(config, progress=Progress(output := StringIO()))
    assert server.asked == []
    assert "measuring" not in output.getvalue()


def test_budgets_are_checked_without_a_server(tmp_path: Path) -> None:
    constitution(tmp_path)
    config = configured(tmp_path, *by_http("labeler"), "budget.max_tokens=10")
    templates = load_prompts(config.templates)
    with RunContext(config, ready(config).constitution, templates, Progress(StringIO())) as run_context:
        check_budgets(run_context)  # the server's host does not exist
