import pytest

from constitutional.base.shipped import MODEL_FOLDER
from constitutional.stages.critique_revise import Settings
from scripts import bench_engines


def test_the_plain_loops_do_the_same_work(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from constitutional.engines.base import Sampling
    from constitutional.engines.local import LocalEngine, load_model

    torch.set_num_threads(1)
    engine = LocalEngine(*load_model(MODEL_FOLDER), batch_size=4)
    verdicts = bench_engines.verdict_requests(3)
    scores = [score for answer in engine.complete(verdicts) for score in answer.choice_logprobs]
    assert bench_engines.plain_scores(engine, verdicts) == pytest.approx(scores, abs=1e-3)

    few = [request._replace(sampling=Sampling(max_tokens=4)) for request in bench_engines.mixed_requests(6)]
    assert 6 < bench_engines.plain_replies(engine, few) <= 24

    monkeypatch.setattr(bench_engines, "mixed_requests", lambda _: few)
    settings = Settings(
        rounds=1, when_nothing_found="revise", draft_max_tokens=3, critique_max_tokens=3, revision_max_tokens=3
    )
    monkeypatch.setattr(bench_engines, "Settings", lambda **_: settings)
    assert bench_engines.main(["local", "--requests", "2", "--repeats", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == [
        "replies",
        "choices",
        "critique and revision",
        "labelling of pairs",
    ]
    assert all("times" in line for line in lines[1:])
