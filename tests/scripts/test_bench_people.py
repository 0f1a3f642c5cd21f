import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from constitutional.base.records import Preference, Prompt, Sample
from constitutional.data.comparisons import read_comparisons
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import MANIFEST
from constitutional.stages.summaries import RewardSummary
from scripts import bench_people
from scripts.bench_people import (
    Likely,
    conversations,
    divided,
    log_probabilities,
    main,
    mean_of,
    people_judge,
    per_reply,
    per_word,
    replies_scored,
    reward_part,
    scored,
    share_of,
    shares_part,
)
from tests.tiny import tiny_model, tiny_tokenizer


def written(folder: Path, count: int) -> Path:
    """Preferences, of which the first is on the prompt of the last, and the second goes on from it."""
    rows: list[dict[str, object]] = [
        {"prompt": f"{number or count - 1}?", "chosen": f"good {number}", "rejected": f"bad {number}"}
        for number in range(count)
    ]
    turns = [f"{count - 1}?", "good enough", "And then?"]
    roles = ("user", "assistant", "user")
    rows[1]["prompt"] = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_last_pairs_are_held_out_and_no_conversation_of_theirs_is_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, held_out, most = divided(written(tmp_path, 305), tmp_path / "runs")
    assert [row.chosen for row in held_out] == [f"good {number}" for number in range(5, 305)]
    kept = read_comparisons(file).preferences
    assert [(row.prompt.messages[0].content, row.chosen, row.rejected) for row in kept] == [
        (f"{number}?", f"good {number}", f"bad {number}") for number in (2, 3, 4)
    ]
    assert most == 3
    assert "305 preferences, and 0 rows that hold none: 300 to measure on, 3 to train on, 2 left out" in (
        capsys.readouterr().out
    )


def test_too_few_pairs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(written(tmp_path, 300)), "--folder", str(tmp_path / "runs")]) == 2
    assert "holds 300 preferences; expected more than 300" in capsys.readouterr().err


def test_shares_and_means_have_intervals() -> None:
    assert share_of([True, True, False, True]) == ("75.0%", "30.1% to 95.4% of 4")
    value, interval = mean_of([1.0, 1.0, 1.0])
    assert (value, interval) == ("+1.000", "+1.000 to +1.000")


ROW = Preference(
    prompt=Prompt.of("Why?"),
    chosen="Be brief.",
    rejected="No, and why?",
    probability=1.0,
    source="human",
    comparison="c",
)


def test_log_probabilities_are_those_of_the_two_replies(tmp_path: Path) -> None:
    turned = ROW.model_copy(update={"chosen": ROW.rejected, "rejected": ROW.chosen})
    there, back, again = log_probabilities(tiny_model(tmp_path), [ROW, turned, ROW])
    assert there.chosen == pytest.approx(back.rejected, abs=1e-4)
    assert there.rejected == pytest.approx(back.chosen, abs=1e-4)
    assert there == pytest.approx(again, abs=1e-4)
    assert max(there) < 0
    preferred, other = conversations(ROW)
    assert [message.content for message in preferred] == ["Why?", "Be brief."]
    assert [message.content for message in other] == ["Why?", "No, and why?"]


def test_a_lead_is_of_the_whole_reply_or_of_its_mean_word() -> None:
    likely = Likely(-6.0, -12.0)
    assert per_reply(likely, ROW) == 6.0
    assert per_word(likely, ROW) == pytest.approx(-6 / 2 + 12 / 3)


def test_a_policy_is_compared_with_the_model_that_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    likely = {"sft_model": [Likely(-6.0, -12.0)] * 4, "policy": [*[Likely(-3.0, -12.0)] * 3, Likely(-6.0, -3.0)]}
    monkeypatch.setattr(bench_people, "run", lambda _: SimpleNamespace(artifact=lambda name: name))
    monkeypatch.setattr(bench_people, "log_probabilities", lambda folder, _: likely[folder])
    rows = list(shares_part(tmp_path / "pairs.jsonl", [ROW] * 4, 9, tmp_path, ["model.path=models/none"]))
    assert rows[0][:3] == ("the preferred reply is the shorter", "-", "100.0%")
    of_none = [(what, figure) for what, share, figure, _ in rows if share == "0%"]
    assert of_none == [
        ("the policy has come to like the preferred reply better", "75.0%"),
        ("by so many nats", f"{(3 * 3 - 9) / 4:+.3f}"),
        ("the policy has come to like the preferred reply better, a word", "75.0%"),
        ("by so many nats, a word", f"{(3 * 1.5 - 3) / 4:+.3f}"),
    ]
    assert [share for _, share, _, _ in rows[1::4]] == ["0%", "50%", "100%", "100%, 9 pairs"]


# A reward model whose scores are worked out by hand.

LONGEST = 64
"""Tokens that it can read."""


def liking_waves(folder: Path, sign: float = 1.0) -> Path:
    """A run's reward model, whose score grows with the part of the tokens that are `~`, or falls where the sign is −1.

    Attention is the same on all tokens, and takes the part that are `~` from where their embeddings say so.
    """
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    (wave,) = tokenizer("~", add_special_tokens=False)["input_ids"]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=LONGEST,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)  # type: ignore[no-untyped-call]
    layer: Any = model.model.layers[0]
    attention = layer.self_attn
    linear = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, layer.mlp.down_proj, model.score)
    with torch.no_grad():
        for weights in (*linear, model.model.embed_tokens):
            weights.weight.zero_()
        model.model.embed_tokens.weight[:, 2] = 1.0
        model.model.embed_tokens.weight[wave, 0] = 1.0
        attention.v_proj.weight[0, 0] = 1.0
        attention.o_proj.weight[1, 0] = 1.0
        model.score.weight[0, 1] = sign
    model.save_pretrained(folder / "0")
    tokenizer.save_pretrained(folder / "0")
    (folder / "normalisation.json").write_text(json.dumps({"members": [{"mean": 0.5, "deviation": 2.0}]}))
    return folder


def score_of(waves: int, tokens: int) -> float:
    """What it gives a conversation: RMS norms over 16 numbers, before attention and before the head."""
    seen = math.sqrt(16 / 2) * waves / tokens
    return (seen / math.sqrt((1 + seen * seen) / 16) - 0.5) / 2.0


def pair(chosen: str, rejected: str) -> Preference:
    return ROW.model_copy(update={"chosen": chosen, "rejected": rejected})


def test_a_pair_is_right_where_the_preferred_reply_scores_higher(tmp_path: Path) -> None:
    folder = liking_waves(tmp_path)
    better, worse, same = pair("~~ No.", "~ No."), pair("No.", "~ No."), pair("No.", "No.")
    assert scored(folder, [better, worse, same, better]) == [True, False, False, True]
    too_long = pair("~ No.", "~" * LONGEST)
    assert scored(folder, [too_long, better]) == [True]  # which it cannot read is left out


def test_replies_are_scored_by_model_in_deviations(tmp_path: Path) -> None:
    folder, tokenizer = liking_waves(tmp_path), tiny_tokenizer()
    replies = {"sft_model": ("No.", "~ No."), "policy": ("~~~~", "~ No.")}
    samples = [
        Sample(prompt=Prompt.of("Why?"), replies={model: texts[number] for model, texts in replies.items()})
        for number in range(2)
    ]
    marks = replies_scored(folder, samples)
    assert list(marks) == ["sft_model", "policy"]
    for model, texts in replies.items():
        for text, mark in zip(texts, marks[model], strict=True):
            turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]
            tokens = len(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"])
            assert mark == pytest.approx(score_of(text.count("~"), tokens), abs=1e-4)
    assert marks["sft_model"][0] == pytest.approx(-0.25)  # of nothing that it likes: (0 − 0.5) / 2


def test_reward_models_stand_beside_always_the_longer_and_always_the_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"people_sandbox": tmp_path / "likes", "people": tmp_path / "dislikes"}
    liking_waves(folders["people_sandbox"])
    liking_waves(folders["people"], sign=-1.0)
    configs = {}

    def run(config: Any) -> SimpleNamespace:  # noqa: ANN401
        configs[config.name] = config
        summary = RewardSummary(pairs=7, dropped={}, quality=None)
        return SimpleNamespace(artifact=lambda _: folders[config.name], summary=lambda *_: summary)

    monkeypatch.setattr(bench_people, "run", run)
    held_out = [pair("~~ No, no.", "~ No."), pair("No.", "~ No."), pair("~ No.", "No."), pair("~ No.", "Oh no.")]
    file = tmp_path / "pairs.jsonl"
    rows = list(reward_part(file, held_out, 7, tmp_path / "runs", ["reward.epochs=1"]))
    assert [(what, of, figure) for what, of, figure, _ in rows] == [
        ("the preferred reply is the longer", "-", "50.0%"),
        ("the preferred reply is the shorter", "-", "25.0%"),
        ("the preferred reply scores higher (trained on 7)", "sandbox", "75.0%"),
        ("the preferred reply scores higher (trained on 7)", "smollm2", "25.0%"),
    ]
    for name, config in configs.items():
        assert (config.until, config.reward.epochs, config.folder) == ("reward", 1, tmp_path / "runs"), name
        assert [data.path for data in config.mix.human] == [file]
        assert (config.mix.human_ratio, config.mix.total) == (1, 7)
        assert config.mix.held_out_share == 0


def test_the_part_reward_judges_only_once_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert people_judge(tmp_path) is None
    (tmp_path / "people").mkdir()
    assert people_judge(tmp_path) is None
    (tmp_path / "people" / MANIFEST).touch()
    made: dict[str, object] = {}
    store = SimpleNamespace(artifacts=lambda: made, artifact=lambda name: tmp_path / name)
    monkeypatch.setattr(RunStore, "load", lambda _: store)
    assert people_judge(tmp_path) is None  # it was interrupted
    made["reward_model"] = None
    assert people_judge(tmp_path) == tmp_path / "reward_model"
