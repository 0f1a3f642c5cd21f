import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts import bench_ppo, bench_ppo_trainer
from scripts.bench_ppo_trainer import Sizes

TINY = Sizes(
    hidden=16,
    layers=2,
    heads=2,
    key_value_heads=1,
    intermediate=32,
    vocabulary=64,
    prompts=(4, 9),
    response_length=8,
    micro_batch=2,
    micro_batches=2,
    rollout_batch=4,
    epochs=2,
    phases=2,
)


@pytest.mark.parametrize("reply_tokens", [None, 3])
def test_our_trainer_is_measured_phase_by_phase(tmp_path: Path, reply_tokens: int | None) -> None:
    import torch

    torch.set_num_threads(1)
    found = bench_ppo_trainer.train_ours(replace(TINY, reply_tokens=reply_tokens), str(tmp_path))
    if reply_tokens is None:
        assert found["tokens"] == [32, 32]  # four replies of 8 tokens, none of which ends
    else:
        assert max(found["tokens"]) < 32
    assert len(found["tokens_per_s"]) == 1  # the first phase is not counted
    seconds = {part: each[0] for part, each in found["parts"].items()}
    assert min(seconds.values()) > 0.02 * sum(seconds.values())
    assert found["tokens"][1] / sum(seconds.values()) == pytest.approx(found["tokens_per_s"][0])
    assert json.loads(json.dumps(found)) == found


def test_prompts_have_the_lengths_that_were_asked_for() -> None:
    tokenizer = bench_ppo_trainer.make_tokenizer(TINY)
    lengths = {
        len(tokenizer.apply_chat_template(each, add_generation_prompt=True)["input_ids"])
        for each in bench_ppo_trainer.conversations(replace(TINY, phases=20))
    }
    assert lengths == set(range(4, 10))


def test_speed_is_what_was_drawn_between_two_ends() -> None:
    # Phases end at 10, 12 and 20 s: 8 tokens in 2 s, 16 in 8 s.
    assert bench_ppo_trainer.rates([10.0, 12.0, 20.0], [100, 8, 16]) == [4.0, 2.0]


def test_operations_are_counted_by_weights_and_tokens() -> None:
    # A layer: query and output 2·16·16, key and value 2·16·8, three maps of 16·32; 2304 in all. The head: 16·64.
    found = bench_ppo_trainer.flops(TINY, prompt_tokens=10, reply_tokens=5)
    critic, policy = 2 * 2 * 2304 * 15, 2 * 2 * 2304 * 15 + 2 * 1024 * 5
    assert found == {"drawing": policy, "scoring": 2 * (policy + critic), "updating": 6 * (policy + critic)}


def measured(speeds: list[float], peak: float) -> dict[str, Any]:
    cpu = [speed / 2 for speed in speeds]
    return {"tokens_per_s": speeds, "tokens_per_cpu_s": cpu, "peak_mib": peak, "before_mib": 100.0}


def test_medians_and_ratios() -> None:
    runs = {
        "trl": [measured([1.0, 3.0], 500), measured([10.0], 600), measured([4.0], 700)],
        "ours": [measured([8.0], 350)],
    }
    found = bench_ppo.summary(runs)
    # Of 2, 10 and 4.
    assert found["trl"] == {"tokens_per_s": 4.0, "tokens_per_cpu_s": 2.0, "peak_mib": 600, "before_mib": 100.0}
    last = bench_ppo.table(found).splitlines()[-1].split()
    assert last == ["ours", "/", "trl", "2.00", "2.00", "0.58", "without:", "0.50"]  # 350/600, 250/500
    assert "/" not in bench_ppo.table({"ours": found["ours"]}).splitlines()[-1]


def test_sizes_are_changed_by_name_and_refused_where_they_do_not_fit() -> None:
    sizes = bench_ppo.changed(TINY, ["hidden=32", "prompts=[2,3]"])
    assert sizes == replace(TINY, hidden=32, prompts=(2, 3))
    with pytest.raises(SystemExit, match=r"'hiden=3': expected name=value with a name of hidden, layers"):
        bench_ppo.changed(TINY, ["hiden=3"])
    with pytest.raises(SystemExit, match="multiple of rollout_batch"):
        bench_ppo.changed(TINY, ["rollout_batch=3"])
