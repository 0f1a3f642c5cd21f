import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import ConfigurationError, ModelError, UsageError
from constitutional.base.records import Message
from constitutional.engines.base import Sampling
from constitutional.engines.local import load_model
from constitutional.training.ppo.networks import make_networks, side_by_side
from constitutional.training.ppo.rollout import (
    Episode,
    Response,
    Rewards,
    TransformersSampler,
    load_reward_models,
    make_rollout,
)
from constitutional.training.ppo.settings import PPOConfig
from constitutional.training.ppo.trainer import PPOTrainer
from constitutional.training.reward_model import NORMALISATION, load_reward_model, raw_scores
from tests.tiny import tiny_model
from tests.told import in_place_of_wandb

ROWS = [{"prompt": [{"role": "user", "content": "Why" + "?" * number}]} for number in range(8)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models"))


def even(prompts: Any, completions: Any, completion_ids: Sequence[Sequence[int]]) -> list[float]:  # noqa: ANN401, ARG001
    """A toy reward: the share of tokens with an even id."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def config(folder: Path, **changes: Any) -> PPOConfig:  # noqa: ANN401
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "total_episodes": 8,
        "per_device_train_batch_size": 8,
        "num_ppo_epochs": 2,
        "response_length": 6,
        "learning_rate": 1e-3,
    }
    return PPOConfig(**settings | changes)


def trained(model: Any, folder: Path, *, resume: bool = False, changes: Any = None, **own: Any) -> PPOTrainer:  # noqa: ANN401
    arguments: dict[str, Any] = {"reward_funcs": [even], "train_dataset": ROWS, **own}
    trainer = PPOTrainer(model, args=config(folder, **changes or {}), **arguments)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer: PPOTrainer) -> dict[str, Any]:
    networks = trainer.networks
    return {f"policy.{name}": weight.detach().clone() for name, weight in networks.policy_weights.items()} | {
        f"critic.{name}": weight.detach().clone() for name, weight in networks.critic_weights.items()
    }


def adapters() -> Any:  # noqa: ANN401
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def test_the_ratio_is_1_until_the_first_step_and_the_sampler_draws_by_the_trainers_probabilities(
    model: Path, tmp_path: Path
) -> None:
    once = {"num_ppo_epochs": 1, "temperature": 0.7, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    first = trained(model, tmp_path / "first", changes=once).history[0]
    assert first["policy/clipfrac_avg"] == 0
    assert first["policy/approxkl_avg"] < 1e-9
    assert first["sampling/sampling_logp_difference/mean"] < 1e-5
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)  # the policy is still the reference
    assert first["policy/entropy_avg"] > 1
    often = trained(model, tmp_path / "often", changes={"num_ppo_epochs": 4, "learning_rate": 0.03}).history[0]
    assert often["policy/clipfrac_avg"] > 0
    assert often["policy/approxkl_avg"] > 1e-4


@pytest.mark.parametrize("how", ["token_mean", "seq_mean_token_sum", "seq_mean_token_mean"])
def test_neither_padding_nor_micro_batches_change_an_update(model: Path, tmp_path: Path, how: str) -> None:
    import torch

    # Prompts differ in length, so that eight rows at once are padded, and one alone never is.
    common = {
        "loss_aggregation": how,
        "num_mini_batches": 2,
        "total_episodes": 16,
        "entropy_coef": 0.01,
        "kl_loss_coef": 0.1,
        "whiten_rewards": True,
    }
    supervised = {**common, "ptx_coef": 0.5}
    ptx = [{**row, "completion": [{"role": "assistant", "content": "No" * n}]} for n, row in enumerate(ROWS, start=1)]
    together = trained(model, tmp_path / "together", changes=supervised, ptx_dataset=ptx)
    alone = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "local_rollout_forward_batch_size": 3}
    apart = trained(model, tmp_path / "apart", changes=supervised | alone, ptx_dataset=ptx)
    one, other = weights(together), weights(apart)
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-6
    start, _ = load_model(model, dtype="float32")
    moved = [name for name, each in start.named_parameters() if not torch.equal(each, one[f"policy.{name}"])]
    assert len(moved) == len(list(start.named_parameters()))
    for name, number in together.history[0].items():
        assert apart.history[0][name] == pytest.approx(number, abs=1e-5), name


def test_a_toy_reward_rises_and_less_so_where_leaving_the_reference_costs_more(model: Path, tmp_path: Path) -> None:
    changes = {
        "total_episodes": 15 * 32,
        "per_device_train_batch_size": 32,
        "learning_rate": 0.003,
        "critic_learning_rate_factor": 1.0,
    }

    def history(kl_coef: float) -> list[dict[str, Any]]:
        policy: Any
        policy, tokenizer = load_model(model, dtype="float32")
        policy.lm_head.weight.data *= 20  # as it is drawn, every token is about as likely as any other
        wanted = (policy.lm_head.weight[:, 0] > 0).tolist()  # a kind that a direction in the last layer can tell

        def share(completion_ids: Sequence[Sequence[int]], **_: object) -> list[float]:
            return [sum(wanted[token] for token in ids) / len(ids) for ids in completion_ids]

        return trained(
            policy,
            tmp_path / str(kl_coef),
            changes={**changes, "kl_coef": kl_coef},
            processing_class=tokenizer,
            reward_funcs=[share],
            gold_fn=share,
        ).history

    free, held = history(0.0), history(1.0)
    assert len(free) == 15
    assert free[-1]["reward"] > free[0]["reward"] + 0.2
    assert held[-1]["reward"] < free[-1]["reward"] - 0.1
    assert held[-1]["objective/kl"] < free[-1]["objective/kl"] / 3
    assert free[-1]["gold"] == pytest.approx(free[-1]["reward"])
    assert free[-1]["learning_rate"] == pytest.approx(0.003 / 15)


class Kill:
    """A callback that ends the training as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, line: Any) -> None:  # noqa: ANN401
        if line["step"] == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("lora", [False, True])
def test_a_training_that_was_stopped_goes_on_to_the_same_weights_bit_for_bit(
    model: Path, tmp_path: Path, lora: bool
) -> None:
    import torch

    def noisy(completion_ids: Sequence[Sequence[int]], **_: object) -> list[float]:
        return torch.rand(len(completion_ids)).tolist()  # so that the random state matters

    changes = {"total_episodes": 40, "save_steps": 2, "kl_target": 0.01, "sample_steps": 2, "num_mini_batches": 1}
    own: dict[str, Any] = {"reward_funcs": [even, noisy], "peft_config": adapters() if lora else None}
    unbroken = trained(model, tmp_path / "unbroken", changes=changes, **own)
    with pytest.raises(KeyboardInterrupt):
        trained(model, tmp_path / "stopped", changes=changes, callbacks=[Kill(4)], **own)
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-2"]
    torch.manual_seed(99)
    resumed = trained(model, tmp_path / "stopped", resume=True, changes=changes, **own)
    assert [line["step"] for line in resumed.history] == [3, 4, 5]
    one, other = weights(unbroken), weights(resumed)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    for name in ("training_log.jsonl", "samples.jsonl"):
        assert (tmp_path / "stopped" / name).read_text() == (tmp_path / "unbroken" / name).read_text()
    assert unbroken.kl.coefficient == resumed.kl.coefficient != unbroken.args.kl_coef


def test_a_kill_during_a_save_leaves_the_checkpoint_before(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    changes = {"total_episodes": 24, "save_steps": 1}
    unbroken = trained(model, tmp_path / "unbroken", changes=changes)
    save, saved = torch.save, []

    def cut_off(thing: object, path: Path) -> None:
        saved.append(path)
        if len(saved) == 6:  # the second file of the second checkpoint; there are four in each
            path.write_bytes(b"PK")
            raise KeyboardInterrupt
        save(thing, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", cut_off)
        with pytest.raises(KeyboardInterrupt):
            trained(model, tmp_path / "killed", changes=changes)
    assert sorted(path.name for path in (tmp_path / "killed").glob("*checkpoint*")) == [
        ".checkpoint-2.partial",
        "checkpoint-1",
    ]
    resumed = trained(model, tmp_path / "killed", resume=True, changes=changes)
    assert [line["step"] for line in resumed.history] == [2, 3]
    assert all(torch.equal(each, weights(resumed)[name]) for name, each in weights(unbroken).items())
    assert sorted(path.name for path in (tmp_path / "killed").glob("*checkpoint*")) == ["checkpoint-2", "checkpoint-3"]


def test_a_training_is_neither_begun_over_another_nor_continued_with_other_settings(
    model: Path, tmp_path: Path
) -> None:
    trained(model, tmp_path)
    with pytest.raises(ConfigurationError, match=r"checkpoint-1: there is a training in this folder already"):
        trained(model, tmp_path)
    with pytest.raises(
        ConfigurationError, match=r"another training: gamma was 1\.0, now 0\.9; give another output_dir"
    ):
        trained(model, tmp_path, resume=True, changes={"gamma": 0.9})


def test_a_training_is_not_continued_with_another_critic_or_other_supervised_examples(
    model: Path, tmp_path: Path
) -> None:
    def critic(offset: float) -> Any:  # noqa: ANN401
        made, _ = load_reward_model(model, new_head=True)
        made.config.value_offset = offset
        return made

    def examples(text: str) -> list[dict[str, Any]]:
        return [{**row, "completion": [{"role": "assistant", "content": text}]} for row in ROWS]

    changes = {"ptx_coef": 0.5}
    trained(model, tmp_path, changes=changes, value_model=critic(0.5), ptx_dataset=examples("Yes."))
    refused: Any
    for refused, own in (
        (r"value_offset was 0\.5, now 0\.25", {"value_model": critic(0.25), "ptx_dataset": examples("Yes.")}),
        (r"value_model given was True, now False", {"ptx_dataset": examples("Yes.")}),
        (r"ptx_dataset was '\w+', now '\w+'", {"value_model": critic(0.5), "ptx_dataset": examples("No.")}),
    ):
        with pytest.raises(ConfigurationError, match=f"another training: {refused}"):
            trained(model, tmp_path, resume=True, changes=changes, **own)
    same = {"value_model": critic(0.5), "ptx_dataset": examples("Yes.")}
    assert trained(model, tmp_path, resume=True, changes=changes, **same).history == []  # it was finished


def test_a_training_is_not_continued_with_rewards_that_are_added_in_another_way(model: Path, tmp_path: Path) -> None:
    def odd(prompts: Any, completions: Any, completion_ids: Any) -> Sequence[float | None]:  # noqa: ANN401
        return [1.0 - (mark or 0.0) for mark in even(prompts, completions, completion_ids)]

    ways = ("normalize_then_sum", "sum_then_normalize")
    for first, then in (ways, ways[::-1]):
        trained(model, tmp_path / first, reward_funcs=[even, odd], changes={"multi_objective_aggregation": first})
        with pytest.raises(ConfigurationError, match="another training: normalised rewards was"):
            trained(
                model,
                tmp_path / first,
                resume=True,
                reward_funcs=[even, odd],
                changes={"multi_objective_aggregation": then},
            )


def test_the_mean_of_gold_is_of_the_replies_that_have_one(model: Path, tmp_path: Path) -> None:
    def some(completions: Any, **_: Any) -> list[float | None]:  # noqa: ANN401
        return [None, *(3.0 for _ in completions[1:])]

    assert [line["gold"] for line in trained(model, tmp_path, gold_fn=some).history] == [3.0]


def test_rewards_are_weighted_and_logged_apart_and_none_is_left_out(model: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    def two(prompts: Any, completions: Any, completion_ids: Any, kind: list[str]) -> list[float | None]:  # noqa: ANN401
        seen.append((prompts[0], completions[0][0]["role"], len(completion_ids[0]), kind[0]))
        return [2.0] * 4 + [None] * 4

    def three(**columns: Any) -> list[float]:  # noqa: ANN401
        return [3.0] * len(columns["prompts"])

    rows = [{**row, "kind": "question"} for row in ROWS]
    own: dict[str, Any] = {"reward_funcs": [two, three], "train_dataset": rows}
    changes = {"reward_weights": [10.0, -1.0], "multi_objective_aggregation": "sum_then_normalize"}
    line = trained(model, tmp_path, changes=changes, **own).history[0]
    assert line["objective/scores"] == line["reward"]
    assert line["rewards/two/mean"] == 2
    assert line["rewards/three/mean"] == 3
    assert line["reward"] == 7  # half the rows 10·2 − 1·3 = 17, the others −3
    prompt, *rest = seen[0]
    assert prompt in [row["prompt"] for row in ROWS]
    assert rest == ["assistant", 6, "question"]


def test_several_rewards_are_normalised_each_over_a_phase(model: Path, tmp_path: Path) -> None:
    def rare(prompts: Any, **_: object) -> list[float]:  # noqa: ANN401
        return [8.0] + [0.0] * (len(prompts) - 1)

    def unlike(prompts: Any, **_: object) -> list[float | None]:  # noqa: ANN401
        return [None if place == 7 else 100.0 * (place % 2) for place in range(len(prompts))]

    import torch

    rewards = Rewards([], [rare, unlike], [1.0, 3.0], normalise=True)
    given = torch.tensor([rare(range(8)), [math.nan if n is None else n for n in unlike(range(8))]])
    # 8, 0, …: mean 1, deviation √((49 + 7) / 7) = √8; of 0, 100, 0, 100, 0, 100, 0 the mean is 300/7.
    deviation = (sum((number - 300 / 7) ** 2 for number in (0, 100, 0, 100, 0, 100, 0)) / 6) ** 0.5
    scores = [(7 if place == 0 else -1) / (8**0.5 + 1e-4) for place in range(8)]
    for place in range(7):
        scores[place] += 3 * (100 * (place % 2) - 300 / 7) / (deviation + 1e-4)
    assert rewards.scores(given).tolist() == pytest.approx(scores, abs=1e-5)
    assert rewards.total(given).tolist() == [8, 300, 0, 300, 0, 300, 0, 0]
    alone = Rewards([], [rare], None, normalise=True)
    assert alone.scores(given[:1]).tolist() == given[0].tolist()
    line = trained(model, tmp_path, reward_funcs=[rare, unlike]).history[0]
    assert line["objective/scores"] == pytest.approx(0, abs=1e-5)
    assert line["rewards/rare/std"] == pytest.approx(8**0.5)


def test_the_log_has_trls_names_and_they_agree_with_each_other(model: Path, tmp_path: Path) -> None:
    first, last = trained(model, tmp_path, changes={"kl_coef": 0.5, "total_episodes": 16}).history
    for line in (first, last):
        penalty = -0.5 * line["objective/kl"]
        assert line["objective/non_score_reward"] == pytest.approx(penalty)
        assert line["objective/rlhf_reward"] == pytest.approx(line["objective/scores"] + penalty)
        assert line["val/num_eos_tokens"] == round(8 * (1 - line["completions/clipped_ratio"]))
        assert line["objective/entropy"] > 0
        assert 0 <= line["val/clipfrac_avg"] <= 1
    assert first["val/ratio"] == pytest.approx(1, abs=0.2)
    names = {"loss/policy_avg", "loss/value_avg", "policy/clipfrac_avg", "policy/approxkl_avg", "policy/entropy_avg"}
    assert names <= first.keys()


@pytest.mark.parametrize("at", [None, 3])
def test_trackers_are_told_of_every_phase(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int | None
) -> None:
    told = in_place_of_wandb(monkeypatch)
    monkeypatch.setattr("constitutional.training.tracking.check_installed", lambda _: None)
    changes = {"report_to": "wandb", "project": "p", "run_name": "r", "save_steps": 1, "total_episodes": 32}
    if at is not None:
        with pytest.raises(KeyboardInterrupt):
            trained(model, tmp_path, changes=changes, callbacks=[Kill(at)])
        assert told[-1] == ("end", True)
        told.clear()
    made = trained(model, tmp_path, resume=at is not None, changes=changes)
    begun = at - 1 if at is not None else 0
    assert told[0] == ("begin", "p", "r", "key of r" if at is not None else None, begun)
    assert [line["step"] for line in made.history] == list(range(begun + 1, made.phases + 1))
    assert [step for step, _ in told[1:-1]] == [line["step"] for line in made.history]
    for (_, metrics), line in zip(told[1:-1], made.history, strict=True):
        assert metrics["objective/kl"] == line["objective/kl"]
    assert told[-1] == ("end", False)


def episode(row: int, tokens: int, members: list[float], *, ended: bool) -> Episode:
    zeros = [0.0] * tokens
    return Episode(row, Response([5] * tokens, zeros, ended, 0), "", zeros, zeros, zeros, zeros, members, [], None)


def test_an_async_reward_function_trains_the_same_as_one_that_is_not(model: Path, tmp_path: Path) -> None:
    async def awaited(prompts: Any, completions: Any, completion_ids: Any) -> Sequence[float | None]:  # noqa: ANN401
        return even(prompts, completions, completion_ids)

    def gold(completions: Any, **_: Any) -> list[float]:  # noqa: ANN401
        return [float(len(reply[0]["content"])) for reply in completions]

    async def awaited_gold(**columns: Any) -> list[float]:  # noqa: ANN401
        return gold(**columns)

    awaited.__name__ = even.__name__
    plain = trained(str(model), tmp_path / "plain", gold_fn=gold)
    other = trained(str(model), tmp_path / "async", reward_funcs=[awaited], gold_fn=awaited_gold)
    assert plain.history == other.history
    assert all((weight == weights(other)[name]).all() for name, weight in weights(plain).items())


def test_ensembles_and_penalties_reach_the_score_and_the_score_the_last_token(tmp_path: Path) -> None:
    rewards = Rewards([None] * 2, [], None)  # type: ignore[list-item]  # the members' scores are given
    args = config(
        tmp_path,
        ensemble_k=0.5,
        reward_clip=2.0,
        missing_eos_penalty=1.0,
        length_penalty=0.25,
        whiten_advantages=False,
        lam=1.0,
    )
    episodes = [episode(0, 2, [1.0, 3.0], ended=True), episode(1, 3, [4.0, 4.0], ended=False)]
    rollout = make_rollout([[1], [1]], episodes, rewards, args, 0.1)
    assert rollout.rewards.tolist() == [[1.5, 4.0]]  # means 2 and 4, deviations 1 and 0: 2 − 0.5·1, 4 − 0.5·0
    assert rollout.scores.tolist() == [1.0, 0.25]  # 1.5 − 0.25·2 tokens; 4 is cut to 2, − 1 − 0.25·3
    # With values of 0, γ = λ = 1 and no KL, every token gets what comes at the end.
    assert rollout.advantages.tolist() == [[1.0, 1.0, 0.0], [0.25, 0.25, 0.25]]


def reward_folder(model: Path, folder: Path) -> Path:
    for number in range(2):
        member, tokenizer = load_reward_model(model, new_head=True, seed=number)
        member.save_pretrained(folder / str(number))
        tokenizer.save_pretrained(folder / str(number))
    members = [{"mean": 0.5, "deviation": 2.0}, {"mean": -1.0, "deviation": 0.25}]
    (folder / NORMALISATION).write_text(json.dumps({"members": members}))
    return folder


def test_reward_models_score_normalised_and_the_first_is_where_the_critic_starts(model: Path, tmp_path: Path) -> None:
    import torch

    folder = reward_folder(model, tmp_path / "reward")
    conversation = (Message("user", "Why?"), Message("assistant", "Because."))
    row = {"prompt": [{"role": "user", "content": "Why?"}]}
    tokenizer: Any
    policy, tokenizer = load_model(model, dtype="float32")
    members = load_reward_models(folder, tokenizer, torch.device("cpu"))
    raw = [raw_scores(*load_reward_model(folder / str(number)), [conversation])[0] for number in range(2)]
    by_hand = [(raw[0] - 0.5) / 2, (raw[1] + 1) / 0.25]
    assert Rewards(members, [], None).members([row], ["Because."])[0] == pytest.approx(by_hand)

    networks = make_networks(policy, None, None, members[0], None)
    ids = tokenizer.apply_chat_template([*row["prompt"], {"role": "assistant", "content": "Because."}])["input_ids"]
    with torch.no_grad():
        values = networks.values(side_by_side([ids, ids[:3]], [[7], [7, 7]], tokenizer.pad_token_id, policy.device))
    assert float(values[0, 0]) == pytest.approx(by_hand[0], abs=1e-5)

    trainer = trained(model, tmp_path / "ppo", reward_model=folder, changes={"ensemble_k": 1.0})
    line = trainer.history[0]
    assert list(trainer.rewards.names) == ["reward_model", "even"]
    assert line["reward"] == pytest.approx(line["rewards/reward_model/mean"] + line["rewards/even/mean"])


def test_adapters_are_drawn_by_the_seed_though_a_reward_model_was_loaded(model: Path, tmp_path: Path) -> None:
    import torch

    folder = reward_folder(model, tmp_path / "reward")

    def drawn(seed: int) -> dict[str, Any]:
        args = config(tmp_path, seed=seed)
        return weights(PPOTrainer(model, None, folder, None, args, ROWS, peft_config=adapters()))

    first, same, other = drawn(1), drawn(1), drawn(2)
    assert [name for name in first if not torch.equal(first[name], same[name])] == []
    downs = [name for name in first if name.startswith("policy.") and "lora_A" in name]
    assert len(downs) == 2 * 7  # layers × linear maps of a layer
    assert [name for name in downs if torch.equal(first[name], other[name])] == []


def test_a_reply_depends_on_its_own_seed_and_not_on_who_is_drawn_with_it(model: Path) -> None:
    import torch

    policy, tokenizer = load_model(model, dtype="float32")
    prompts = [[1, 5, 9], [1, 5], [1, 8, 8, 8, 8], [1], [1, 7, 3]]
    ends = frozenset(range(0, len(tokenizer), 3))  # a third of all tokens, so that replies end at different times

    def draw(size: int) -> list[Response]:
        sampler = TransformersSampler(ends, tokenizer.pad_token_id, batch_size=size)
        sampler.sync(policy, 3)
        drawn = dict(sampler.sample(prompts, [11, 12, 13, 14, 15], Sampling(0.5, max_tokens=8)))
        return [drawn[place] for place in range(len(prompts))]

    together, alone = draw(5), draw(1)
    assert {reply.version for reply in together} == {3}
    assert [each.ids for each in together] == [each.ids for each in alone]
    assert len({len(each.ids) for each in together}) > 1
    for prompt, reply in zip(prompts, together, strict=True):
        assert reply.ended == (reply.ids[-1] in ends)
        assert not ends & set(reply.ids[:-1])
        with torch.no_grad():
            logits = policy(torch.tensor([[*prompt, *reply.ids]])).logits[0, len(prompt) - 1 : -1]
        by_hand = (logits / 0.5).log_softmax(-1).gather(-1, torch.tensor(reply.ids)[:, None])[:, 0]
        assert reply.logprobs == pytest.approx(by_hand.tolist(), abs=1e-5)
    assert draw(5)[0] == together[0]


class Watching(TransformersSampler):
    """Keeps when it was given weights and whether it was called under autocast; it may forget to take them over."""

    def __init__(self, ends: frozenset[int], pad: int, *, forgets: bool) -> None:
        super().__init__(ends, pad, batch_size=8)
        self.forgets = forgets
        self.told: list[tuple[str, object]] = []

    def sync(self, policy: Any, phase: int) -> None:  # noqa: ANN401
        self.told.append(("sync", phase))
        if not (self.forgets and phase):
            super().sync(policy, phase)

    def sample(self, prompts: Any, seeds: Any, sampling: Sampling) -> Iterator[tuple[int, Response]]:  # noqa: ANN401
        import torch

        self.told.append(("sample", torch.is_autocast_enabled("cpu")))
        assert sampling == Sampling(1.0, max_tokens=6)
        return super().sample(prompts, seeds, sampling)


@pytest.mark.parametrize("forgets", [False, True])
def test_a_sampler_takes_the_weights_over_before_every_phase_and_outside_autocast(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    import torch

    _, tokenizer = load_model(model, dtype="float32")
    sampler = Watching(frozenset([1]), tokenizer.pad_token_id, forgets=forgets)
    # Accelerate takes one number format for a whole process.
    monkeypatch.setattr("accelerate.Accelerator.autocast", lambda _: torch.autocast("cpu", torch.bfloat16))
    own: dict[str, Any] = {"sampler": sampler, "changes": {"total_episodes": 16, "logging_steps": 0}}
    if forgets:
        with pytest.raises(ModelError, match="Watching drew replies of phase 1 with the weights of phase 0"):
            trained(model, tmp_path, **own)
        return
    trained(model, tmp_path, **own)
    assert sampler.told == [("sync", 0), ("sample", False), ("sync", 1), ("sample", False)]


def test_adapters_train_policy_and_critic_on_one_backbone_which_stays_the_reference(
    model: Path, tmp_path: Path
) -> None:
    import torch

    changes = {"total_episodes": 24, "learning_rate": 0.01}
    trainer = trained(model, tmp_path / "ppo", changes=changes, peft_config=adapters())
    policy, critic = trainer.networks.policy_weights, trainer.networks.critic_weights
    assert not policy.keys() & critic.keys()
    ups = [weight for weights in (policy, critic) for name, weight in weights.items() if "lora_B" in name]
    assert len(ups) == 2 * 2 * 7  # adapters × layers × linear maps of a layer
    assert all(bool(each.any()) for each in ups)  # they start as 0
    assert trainer.history[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert abs(trainer.history[-1]["objective/kl"]) > 1e-3  # k1 on a few replies may be negative

    start, tokenizer = load_model(model, dtype="float32")
    ids = torch.tensor([[1, 5, 9, 12]])
    with torch.no_grad(), trainer.networks.acting("reference") as reference:
        assert torch.equal(reference(ids).logits, start(ids).logits)
    trainer.save_model(tmp_path / "policy")
    merged, _ = load_model(tmp_path / "policy", dtype="float32")
    with torch.no_grad(), trainer.networks.acting("policy") as acting:
        assert torch.allclose(merged(ids).logits, acting(ids).logits, atol=1e-5)
        assert not torch.allclose(merged(ids).logits, start(ids).logits, atol=1e-3)
    assert tokenizer.chat_template


def test_the_critic_warms_up_alone(model: Path, tmp_path: Path) -> None:
    import torch

    args = config(tmp_path, critic_warmup_steps=1, total_episodes=16)
    trainer = PPOTrainer(str(model), args=args, train_dataset=ROWS, reward_funcs=[even])
    trainer.begin(None)
    trainer.train_phase(0)
    start, _ = load_model(model, dtype="float32")
    policy, critic = trainer.networks.policy_weights, trainer.networks.critic_weights
    assert all(torch.equal(each, policy[name]) for name, each in start.named_parameters())
    assert bool(critic["score.weight"].any())  # it starts as 0
    assert trainer.history[0]["loss/value_avg"] > 0
    trainer.train_phase(1)
    assert not all(torch.equal(weight, policy[name]) for name, weight in start.named_parameters())


def test_a_training_that_moves_nothing_is_an_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no weight moved.*raise learning_rate"):
        trained(model, tmp_path, changes={"learning_rate": 1e-30})
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("rate", [1e30, 3e38])
@pytest.mark.parametrize("adapted", [False, True])
def test_weights_that_are_no_numbers_end_the_training(model: Path, tmp_path: Path, adapted: bool, rate: float) -> None:
    changes = {"learning_rate": rate, "num_ppo_epochs": 1}
    with pytest.raises(ModelError, match=r"nan.*lower learning_rate"):  # after the only step there is
        trained(model, tmp_path, changes=changes, peft_config=adapters() if adapted else None).save_model(
            tmp_path / "policy"
        )
    assert not (tmp_path / "policy").exists()


def test_the_supervised_loss_keeps_up_what_the_replies_of_others_teach(model: Path, tmp_path: Path) -> None:
    completion = [{"role": "assistant", "content": "Quite so."}]
    ptx = [{**row, "completion": completion} for row in ROWS]
    changes = {"total_episodes": 48, "learning_rate": 0.03, "ptx_coef": 5.0}
    history = trained(model, tmp_path, changes=changes, ptx_dataset=ptx).history
    assert history[-1]["loss/ptx_avg"] < 0.7 * history[0]["loss/ptx_avg"]


def test_what_cannot_be_trained_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    policy, tokenizer = load_model(model, dtype="float32")
    with pytest.raises(UsageError, match="nothing rewards a reply; give reward_model"):
        trained(model, tmp_path, reward_funcs=[])
    with pytest.raises(UsageError, match=r"2 reward_weights for 1 rewards \(even\)"):
        trained(model, tmp_path, changes={"reward_weights": [1.0, 2.0]})
    with pytest.raises(UsageError, match="a row's `prompt` is 'Why', and should be a conversation"):
        trained(model, tmp_path, train_dataset=[{"prompt": "Why"}])
    with pytest.raises(UsageError, match="of 8 prompts in train_dataset none has at most max_prompt_length=1 tokens"):
        trained(model, tmp_path, changes={"max_prompt_length": 1})
    with pytest.raises(UsageError, match=r"ptx_coef is 1\.0, and ptx_dataset has 0 rows"):
        trained(model, tmp_path, changes={"ptx_coef": 1.0})
    with pytest.raises(ConfigurationError, match=r"temperature is 0: .*greater than 0"):
        config(tmp_path, temperature=0)
    with pytest.raises(ConfigurationError, match="total_epochs"):
        config(tmp_path, total_epochs=1)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ModelError, match=r"its pad token .* also ends a turn"):
        PPOTrainer(policy, args=config(tmp_path), train_dataset=ROWS, processing_class=tokenizer, reward_funcs=[even])


def test_a_function_may_ask_where_the_training_is(model: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def falling(prompts: Any, completions: Any, trainer_state: Any, **_: Any) -> list[float]:  # noqa: ANN401, ARG001
        seen.append(trainer_state.global_step)
        return [len(completion[0]["content"]) / (1 + trainer_state.global_step) for completion in completions]

    trained(model, tmp_path, changes={"total_episodes": 24}, reward_funcs=[falling, even])
    assert seen == [0, 1, 2]  # steps that are done, as TRL says it


def test_a_model_in_16_bits_is_trained_in_32(model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    given = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    before = {name: weight.detach().float().clone() for name, weight in given.named_parameters()}
    trainer = trained(given, tmp_path, changes={"learning_rate": 1e-5}, processing_class=tokenizer)
    moved = sum(int((weight != before[name]).sum()) for name, weight in trainer.networks.policy.named_parameters())
    # In 16 bits a step of 1e-5 is lost on most weights, which are around 0.02.
    assert moved > 0.5 * sum(weight.numel() for weight in before.values())
    with pytest.raises(UsageError, match="KL would always be 0"):
        PPOTrainer(given, given, args=config(tmp_path / "b"), reward_funcs=[even], processing_class=tokenizer)


def test_under_autocast_a_reward_models_head_computes_in_32_bits(tmp_path: Path) -> None:
    import torch

    loaded, tokenizer = load_reward_model(tiny_model(tmp_path), new_head=True)
    scorer: Any = loaded
    with torch.no_grad():
        scorer.score.weight.mul_(100)  # scores of several units, whose steps in bfloat16 are 1/64 and more
    conversations = [(Message("user", "Why" + "?" * number), Message("assistant", "So.")) for number in range(8)]
    plain = raw_scores(scorer, tokenizer, conversations)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = raw_scores(scorer, tokenizer, conversations)
    assert scores != plain  # of the layers in 16 bits
    assert scores == pytest.approx(plain, abs=0.1 * max(map(abs, plain)))
    assert any(float(torch.tensor(score).bfloat16()) != score for score in scores)
