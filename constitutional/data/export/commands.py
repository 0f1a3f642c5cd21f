"""The commands that train a policy elsewhere, PPO and GRPO by verl, OpenRLHF and NeMo-RL, each as a shell script.

The options are those of verl 0.9.1 and OpenRLHF 0.11.2, whose own parsers `make check-handover` puts the scripts to,
and of the example configurations of NeMo-RL 0.8, of which PyPI has no package to check them by. Paths in a script begin
at its own folder, so that the folder can be moved.
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

Framework = Literal["verl", "openrlhf", "nemo-rl"]
Algorithm = Literal["ppo", "grpo"]
FRAMEWORKS: Final[tuple[Framework, ...]] = ("verl", "openrlhf", "nemo-rl")
ALGORITHMS: Final[tuple[Algorithm, ...]] = ("ppo", "grpo")
VERSIONS: Final = {"verl": "verl 0.9.1", "openrlhf": "OpenRLHF 0.11.2", "nemo-rl": "NeMo-RL 0.8"}
"""What the options are of."""
CLIPPED: Final = 10
"""Deviations from the mean at which NeMo-RL clips a reward. OpenRLHF does so at 10, too; verl clips nothing."""
END_OF_TURN: Final = 16
"""Tokens that a chat template may put behind a reply."""


_QUOTED: Final = r"""QUOTED=$(printf %s "$HERE" | sed "s/'/\\\\'/g")"""
"""The folder as it stands between two apostrophes in a value of Hydra's."""


class Recipe(NamedTuple):
    """What an algorithm is told, whichever framework trains."""

    step: int
    """Prompts in a step."""
    replies: int
    """To each prompt of a step."""
    passes: int
    """Over all prompts."""
    temperature: float
    learning_rate: float
    kl: float
    """The penalty for a nat of KL from the SFT model, in deviations of the reward."""
    critic_rate: float = 0.0
    """The critic's learning rate; here and below: in PPO alone."""
    lam: float = 0.0
    """λ of the generalised advantage estimates."""
    clip: float = 0.0
    """The ratio of new to old probability is clipped at 1 ± this number."""


class Material(NamedTuple):
    """What the models and the prompts are like."""

    prompt: int
    """Tokens of the longest prompt."""
    reply: int
    """Most tokens in a reply."""
    shift: float
    """What is taken off the score of the reward model that is handed over, in deviations."""
    members: int = 1
    """Reward models; several are asked by `reward.py`."""

    @property
    def total(self) -> int:
        """Tokens of a prompt with its reply."""
        return self.prompt + self.reply


def words(framework: Framework, algorithm: Algorithm, recipe: Recipe, material: Material) -> list[str]:
    """The command, a word or an option with its value in each.

    The shell fills in `$GPUS`, `$NODES`, `$HERE` and, between the quotation marks of Hydra, `$QUOTED`.
    """
    make = {"verl": _verl, "openrlhf": _openrlhf, "nemo-rl": _nemo_rl}[framework]
    return make(algorithm, recipe, material)


def _verl(algorithm: Algorithm, recipe: Recipe, material: Material) -> list[str]:
    ours = "$QUOTED/reward_model" if material.members == 1 else "$QUOTED/reward_model/0"
    rewards = {"reward.custom_reward_function.path": "'$QUOTED/reward.py'"}
    if material.members == 1:  # verl serves one; reward.py asks it, and takes off the shift
        rewards |= {
            "reward.reward_model.enable": "True",
            "reward.reward_model.model_path": "'$QUOTED/reward_model'",
            "reward.reward_model.rollout.name": "vllm",
            "reward.reward_model.rollout.tensor_model_parallel_size": "1",
        }
    if algorithm == "ppo":
        own = {
            "algorithm.adv_estimator": "gae",
            "algorithm.lam": f"{recipe.lam:g}",
            "algorithm.use_kl_in_reward": "True",
            "algorithm.kl_ctrl.kl_coef": f"{recipe.kl:g}",
            "actor_rollout_ref.actor.clip_ratio_low": f"{recipe.clip:g}",
            "actor_rollout_ref.actor.clip_ratio_high": f"{recipe.clip:g}",
            "critic.model.path": f"'{ours}'",
            "critic.optim.lr": f"{recipe.critic_rate:g}",
        }
    else:
        own = {
            "algorithm.adv_estimator": "grpo",
            "actor_rollout_ref.actor.use_kl_loss": "True",
            "actor_rollout_ref.actor.kl_loss_coef": f"{recipe.kl:g}",
        }
    options = {
        **own,
        "data.train_files": "'$QUOTED/data/prompts.parquet'",
        "data.val_files": "'$QUOTED/data/prompts.parquet'",  # which verl reads even where nothing is validated
        "data.train_batch_size": f"{recipe.step}",
        "data.max_prompt_length": f"{material.prompt}",
        "data.max_response_length": f"{material.reply}",
        "actor_rollout_ref.model.path": "'$QUOTED/sft_model'",
        "actor_rollout_ref.actor.optim.lr": f"{recipe.learning_rate:g}",
        "actor_rollout_ref.actor.ppo_mini_batch_size": f"{recipe.step}",
        "actor_rollout_ref.actor.use_dynamic_bsz": "True",
        "actor_rollout_ref.actor.checkpoint.save_contents": "[model,optimizer,extra,hf_model]",
        "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.rollout.tensor_model_parallel_size": "1",
        "actor_rollout_ref.rollout.n": f"{recipe.replies}",
        "actor_rollout_ref.rollout.temperature": f"{recipe.temperature:g}",
        **rewards,
        "trainer.total_epochs": f"{recipe.passes}",
        "trainer.n_gpus_per_node": "$GPUS",
        "trainer.nnodes": "$NODES",
        "trainer.val_before_train": "False",
        "trainer.save_freq": "1000000",  # after the last step alone
        "trainer.logger": "[console]",
        "trainer.project_name": "constitutional",
        "trainer.experiment_name": algorithm,
        "trainer.default_local_dir": f"'$QUOTED/checkpoints/{algorithm}'",
    }
    return ["python3 -m verl.trainer.main_ppo", *(f"{name}={value}" for name, value in options.items())]


def _openrlhf(algorithm: Algorithm, recipe: Recipe, material: Material) -> list[str]:
    if material.members == 1:
        rewards = ["--reward.model_name_or_path $HERE/reward_model", "--reward.normalize_enable"]
        critic = "$HERE/reward_model"
    else:
        rewards, critic = ["--reward.remote_url $HERE/reward.py"], "$HERE/reward_model/0"
    if algorithm == "ppo":
        own = [
            "--algo.advantage.estimator gae",
            f"--algo.advantage.lambd {recipe.lam:g}",
            f"--actor.eps_clip {recipe.clip:g}",
            f"--critic.model_name_or_path {critic}",
            f"--critic.adam.lr {recipe.critic_rate:g}",
        ]
    else:
        own = ["--algo.advantage.estimator group_norm", "--algo.kl.use_loss", "--algo.kl.estimator k3"]
    roles = ("actor", "ref", "reward", "critic")
    return [
        "python3 -m openrlhf.cli.train_ppo_ray",
        *own,
        f"--algo.kl.init_coef {recipe.kl:g}",
        "--actor.model_name_or_path $HERE/sft_model",
        f"--actor.adam.lr {recipe.learning_rate:g}",
        *rewards,
        "--data.prompt_dataset $HERE/data/prompts.jsonl",
        "--data.input_key prompt",
        "--data.apply_chat_template",
        f"--data.max_len {material.total}",
        f"--rollout.max_new_tokens {material.reply}",
        f"--rollout.batch_size {recipe.step}",
        f"--rollout.n_samples_per_prompt {recipe.replies}",
        f"--rollout.temperature {recipe.temperature:g}",
        f"--train.batch_size {recipe.step * recipe.replies}",
        f"--train.num_episodes {recipe.passes}",
        *(f"--{role}.{option}" for role in roles for option in ("num_nodes $NODES", "num_gpus_per_node $GPUS")),
        "--train.colocate_all",
        "--vllm.num_engines $((GPUS * NODES))",
        "--vllm.gpu_memory_utilization 0.5",
        "--vllm.enable_sleep",
        "--ds.enable_sleep",
        "--ds.zero_stage 3",
        f"--ckpt.path $HERE/checkpoints/{algorithm}",
        f"--ckpt.output_dir $HERE/policy_{algorithm}",
    ]


def _nemo_rl(algorithm: Algorithm, recipe: Recipe, material: Material) -> list[str]:
    """`++` sets what the example configuration has, and adds what it has not."""
    configuration = {"ppo": "ppo_math_1B", "grpo": "grpo_math_1B"}[algorithm]
    loss = {"reference_policy_kl_penalty": f"{recipe.kl:g}"}
    own = dict[str, str]()
    if algorithm == "ppo":
        loss |= {"use_kl_in_reward": "true", "ratio_clip_min": f"{recipe.clip:g}"}
        loss |= {"ratio_clip_max": f"{recipe.clip:g}", "ratio_clip_c": "null"}
        own = {
            "ppo.ppo_epochs": "1",
            "ppo.skip_reference_policy_logprobs_calculation": "false",
            "ppo.reward_shaping.enabled": "false",
            "ppo.adv_estimator.gae_lambda": f"{recipe.lam:g}",
            "value.model_name": "'$QUOTED/reward_model'",
            "value.optimizer.kwargs.lr": f"{recipe.critic_rate:g}",
        }
    options = {
        f"{algorithm}.num_prompts_per_step": f"{recipe.step}",
        f"{algorithm}.num_generations_per_prompt": f"{recipe.replies}",
        f"{algorithm}.max_num_epochs": f"{recipe.passes}",
        f"{algorithm}.val_period": "0",
        f"{algorithm}.val_at_start": "false",
        f"{algorithm}.reward_scaling.enabled": "true",
        f"{algorithm}.reward_scaling.source_min": f"{material.shift - CLIPPED:.8g}",
        f"{algorithm}.reward_scaling.source_max": f"{material.shift + CLIPPED:.8g}",
        f"{algorithm}.reward_scaling.target_min": f"{-CLIPPED}",
        f"{algorithm}.reward_scaling.target_max": f"{CLIPPED}",
        **own,
        **{f"loss_fn.{name}": value for name, value in loss.items()},
        "policy.model_name": "'$QUOTED/sft_model'",
        "policy.optimizer.kwargs.lr": f"{recipe.learning_rate:g}",
        "policy.train_global_batch_size": f"{recipe.step * recipe.replies}",
        "policy.max_total_sequence_length": f"{material.total}",
        "policy.generation.max_new_tokens": f"{material.reply}",
        "policy.generation.temperature": f"{recipe.temperature:g}",
        "data.max_input_seq_length": f"{material.prompt}",
        "data.train.dataset_name": "ResponseDataset",
        "data.train.data_path": "'$QUOTED/data/prompts.jsonl'",
        "data.train.split_validation_size": "0",
        "data.validation": "null",
        "data.default.prompt_file": "null",
        "data.default.system_prompt_file": "null",
        "data.default.env_name": "reward_model",
        "env.reward_model.enabled": "true",
        "env.reward_model.model_name": "'$QUOTED/reward_model'",
        "env.reward_model.tokenizer.name": "'$QUOTED/reward_model'",
        "env.reward_model.precision": "bfloat16",
        "env.reward_model.batch_size": "4",
        "env.reward_model.logprob_batch_size": "4",
        "env.reward_model.checkpoint_path": "null",
        "env.reward_model.max_model_len": f"{material.total + END_OF_TURN}",
        "env.reward_model.resources.gpus_per_node": "1",
        "env.reward_model.resources.num_nodes": "1",
        "env.reward_model.dtensor_cfg._v2": "true",
        "env.reward_model.dtensor_cfg.enabled": "true",
        "env.reward_model.dtensor_cfg.cpu_offload": "false",
        "env.reward_model.dtensor_cfg.sequence_parallel": "false",
        "env.reward_model.dtensor_cfg.activation_checkpointing": "false",
        "env.reward_model.dtensor_cfg.tensor_parallel_size": "1",
        "env.reward_model.dtensor_cfg.context_parallel_size": "1",
        "env.reward_model.dtensor_cfg.custom_parallel_plan": "null",
        "checkpointing.checkpoint_dir": f"'$QUOTED/checkpoints/{algorithm}'",
        "checkpointing.metric_name": "null",
        "cluster.gpus_per_node": "$GPUS",
        "cluster.num_nodes": "$NODES",
    }
    return [
        f"uv run examples/run_{algorithm}.py",
        f"--config examples/configs/{configuration}.yaml",
        *(f"++{name}={value}" for name, value in options.items()),
    ]


def script(about: str, command: Sequence[str]) -> str:
    """A shell script that runs the command; what is typed behind the script's name stands behind it.

    Args:
        about: a line on what it does.
        command: as `words` makes it; the first line may hold several words, and a later one an option with a value.
    """
    lines = [
        "#!/bin/sh",
        f"# {about}",
        "# GPUS on each of NODES machines; options that are typed behind the name of this script overrule those below.",
        "set -eu",
        'HERE=$(cd "$(dirname "$0")" && pwd)',
        *([_QUOTED] if any("$QUOTED" in word for word in command) else []),
        "GPUS=${GPUS:-8}",
        "NODES=${NODES:-1}",
        f"exec {command[0]} \\",
        *(f"    {_quoted(word)} \\" for word in command[1:]),
        '    "$@"',
    ]
    return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
    """An option with its value, in which the shell fills in variables and changes nothing else."""
    name, space, value = word.partition(" ")
    if space:  # an option, and its value as a word of its own
        return f'{name} "{value}"'
    return word if name.startswith("--") else f'"{word}"'
