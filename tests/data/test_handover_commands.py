import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: TID251 - as verl reads them

from constitutional.data.export.commands import (
    ALGORITHMS,
    FRAMEWORKS,
    Algorithm,
    Framework,
    Material,
    Recipe,
    script,
    words,
)

PPO = Recipe(
    step=64, replies=1, passes=3, temperature=0.7, learning_rate=2e-6, kl=0.1, critic_rate=2e-5, lam=0.9, clip=0.3
)
GRPO = Recipe(step=8, replies=4, passes=1, temperature=1.0, learning_rate=1e-6, kl=0.04)
MATERIAL = Material(prompt=100, reply=256, shift=0.5)
RECIPES: dict[Algorithm, Recipe] = {"ppo": PPO, "grpo": GRPO}


@pytest.mark.parametrize(
    ("framework", "algorithm", "told"),
    [
        (
            "verl",
            "ppo",
            [
                "algorithm.adv_estimator=gae",
                "algorithm.kl_ctrl.kl_coef=0.1",
                "algorithm.lam=0.9",
                "actor_rollout_ref.actor.optim.lr=2e-06",
                "critic.optim.lr=2e-05",
                "critic.model.path='$QUOTED/reward_model'",
                "data.train_batch_size=64",
                "data.max_response_length=256",
                "reward.reward_model.model_path='$QUOTED/reward_model'",
                "trainer.total_epochs=3",
            ],
        ),
        (
            "verl",
            "grpo",
            [
                "algorithm.adv_estimator=grpo",
                "actor_rollout_ref.actor.use_kl_loss=True",
                "actor_rollout_ref.actor.kl_loss_coef=0.04",
                "actor_rollout_ref.rollout.n=4",
                "actor_rollout_ref.actor.ppo_mini_batch_size=8",
            ],
        ),
        (
            "openrlhf",
            "ppo",
            ["--data.max_len 356", "--train.batch_size 64", "--actor.eps_clip 0.3", "--algo.kl.init_coef 0.1"],
        ),
        (
            "openrlhf",
            "grpo",
            ["--train.batch_size 32", "--rollout.n_samples_per_prompt 4", "--algo.advantage.estimator group_norm"],
        ),
        (
            "nemo-rl",
            "ppo",
            [
                "++ppo.reward_scaling.source_min=-9.5",
                "++ppo.reward_scaling.source_max=10.5",
                "++loss_fn.ratio_clip_max=0.3",
                "++loss_fn.use_kl_in_reward=true",
                "++policy.max_total_sequence_length=356",
                "++env.reward_model.max_model_len=372",
                "++value.model_name='$QUOTED/reward_model'",
            ],
        ),
        ("nemo-rl", "grpo", ["++grpo.num_generations_per_prompt=4", "++policy.train_global_batch_size=32"]),
    ],
)
def test_a_command_tells_the_framework_what_the_training_is(
    framework: Framework, algorithm: Algorithm, told: list[str]
) -> None:
    command = words(framework, algorithm, RECIPES[algorithm], MATERIAL)
    assert [option for option in told if option not in command] == []
    names = [word.partition("=")[0].partition(" ")[0] for word in command]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_for_ppo_alone_is_not_told_to_grpo(algorithm: Algorithm) -> None:
    for framework in FRAMEWORKS:
        critics = [word for word in words(framework, algorithm, RECIPES[algorithm], MATERIAL) if "critic" in word]
        rates = [word for word in critics if word.endswith(("lr=2e-05", "lr 2e-05"))]
        assert bool(rates) == (algorithm == "ppo" and framework != "nemo-rl")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_shell_fills_in_the_folder_and_the_gpus_and_nothing_else(framework: Framework, tmp_path: Path) -> None:
    folder = tmp_path / "it's $HOME, of mine"
    folder.mkdir()
    for name in ("python3", "uv"):
        (folder / name).write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
        (folder / name).chmod(0o755)
    command = words(framework, "ppo", PPO, MATERIAL)
    file = folder / "ppo.sh"
    file.write_text(script("A test.", command))
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "GPUS": "2", "NODES": "3"}
    told = subprocess.run(
        ["/bin/sh", str(file), "mine=[1, 2]"], env=environment, check=True, capture_output=True, text=True
    )
    *said, mine, end = told.stdout.split("\0")
    assert (mine, end) == ("mine=[1, 2]", "")  # what is typed behind comes last, and so overrules
    quoted = str(folder).replace("'", "\\'")
    expected = " ".join(command).replace("$HERE", str(folder)).replace("$QUOTED", quoted)
    expected = expected.replace("$((GPUS * NODES))", "6")
    expected = expected.replace("$GPUS", "2").replace("$NODES", "3")
    assert f"{expected.split()[0]} {' '.join(said)}" == expected
    assert sum(str(folder) in word for word in said) + sum(quoted in word for word in said) >= 4
    if framework != "openrlhf":
        read = OverridesParser.create().parse_overrides([word for word in said if quoted in word])
        assert sum(str(override.value()).startswith(f"{folder}/") for override in read) >= 4
