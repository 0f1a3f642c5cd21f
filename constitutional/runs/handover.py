"""Hands a run's training by PPO or GRPO over to verl, OpenRLHF or NeMo-RL, as a folder that can be moved.

    FOLDER/
    ├── README.md            what to type there, and how the policy comes back
    ├── ppo.sh, grpo.sh      ready commands
    ├── data/                prompts to train on, and the preferences that the reward model learned
    ├── sft_model/           where the policy begins, and what it is held to
    ├── reward_model/        its deviation is folded into its head; of several reward models a folder each
    ├── reward.py            where the framework asks a function for the rewards
    └── constitution.yaml    the principles

Held-out prompts are not handed over: the policy that comes back is evaluated on them.
"""

import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from textwrap import fill
from typing import Final

from constitutional.base.errors import RunError
from constitutional.base.files import CARD, atomic_write, writing
from constitutional.base.progress import counted
from constitutional.base.records import Preference, Prompt
from constitutional.base.text import printable
from constitutional.constitution.constitution import Constitution
from constitutional.data.export import commands, files, reward_function
from constitutional.data.export.commands import ALGORITHMS, CLIPPED, VERSIONS, Algorithm, Framework, Material, Recipe
from constitutional.data.export.formats import FORMATS, Chosen
from constitutional.data.export.rows import Row, nemo_rl_prompt, openrlhf_prompt, verl_prompt
from constitutional.engines.chat import Tokenizer, end_of_turn, load_tokenizer
from constitutional.runs.compose import load
from constitutional.runs.folder import USED, RunStore
from constitutional.runs.settings import RunConfig
from constitutional.stages import grpo, ppo
from constitutional.training.reward_model import fold, has_members, moments
from constitutional.training.rewards import OnlineSettings
from constitutional.training.rows import chat, render, token_ids
from constitutional.training.saving import copy_model

UNFINISHED: Final = ".unfinished"
"""A file in the folder, until all the others are."""
LEARNING_RATE: Final = 1e-6
"""Where the run has none that is for all weights: what suits billions of them."""
WHOLE: Final = 8
"""A step has a multiple of so many prompts, where there are as many, so that eight GPUs can share it."""
_PROMPT_ROWS: Final[dict[Framework, Callable[[Prompt, str], Row]]] = {
    "verl": verl_prompt,
    "openrlhf": openrlhf_prompt,
    "nemo-rl": nemo_rl_prompt,
}
_COMES_BACK: Final[dict[Framework, str]] = {
    "verl": "`checkpoints/ppo/global_step_N/actor/huggingface`, N being the last step (for GRPO below "
    "`checkpoints/grpo`)",
    "openrlhf": "`policy_ppo` (for GRPO `policy_grpo`)",
    "nemo-rl": "`checkpoints/ppo/step_N` (for GRPO below `checkpoints/grpo`), from where NeMo-RL's "
    "`examples/converters/convert_dcp_to_hf.py` makes a folder that transformers loads",
}
_NORMALISED: Final[dict[Framework, str]] = {
    "verl": "verl serves it by vLLM, and `reward.py` asks it and takes the shift off",
    "openrlhf": "OpenRLHF takes the shift off, `mean` in its `config.json`, with `--reward.normalize_enable`, and "
    f"clips rewards at ±{CLIPPED} deviations",
    "nemo-rl": f"NeMo-RL takes the shift off by its `reward_scaling`, which clips at ±{CLIPPED} deviations",
}


def hand_over(store: RunStore, constitution: Constitution, to: Framework, folder: Path) -> Iterator[str]:
    """Write the folder; yields lines on what is in it, and on what is not.

    Raises:
        RunError: the run has no reward model or no prompt that the framework reads, or an ensemble that NeMo-RL cannot
            ask.
        ModelError: a model of the run cannot be handed over.
    """
    _check(store, to)
    config, digest = load(store.folder), constitution.digest
    prompts, left_out = _prompts(store, to)
    tokenizer = load_tokenizer(store.artifact("sft_model"))
    longest = max(len(token_ids(tokenizer, chat(prompt.messages), ask=True)) for prompt in prompts)
    yield f"{printable(str(folder))}: writing models, prompts and preferences"
    with writing(folder):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / UNFINISHED).touch()
    shifts = _reward_models(store.artifact("reward_model"), folder / "reward_model")
    copy_model(store.artifact("sft_model"), folder / "sft_model")
    atomic_write(folder / "constitution.yaml", (store.folder / USED).read_bytes())
    material = Material(longest, config.sample_pairs.max_tokens, shifts[0], len(shifts))
    replies = {algorithm: material._replace(reply=_reply(config, algorithm)) for algorithm in ALGORITHMS}
    preferences = Chosen(store.stream("preferences", Preference), FORMATS[to], "train")
    ending = FORMATS[to].endings[0]
    _write(folder / "data" / f"prompts{ending}", (_PROMPT_ROWS[to](prompt, digest) for prompt in prompts), digest)
    _write(folder / "data" / f"preferences{ending}", (FORMATS[to].row(row, digest) for row in preferences), digest)
    if to == "verl" or len(shifts) > 1:
        atomic_write(folder / "reward.py", Path(reward_function.__file__).read_bytes())
    for algorithm in ALGORITHMS:
        about = f"{algorithm.upper()} by {VERSIONS[to]}, from the run {printable(store.folder.resolve().name)}."
        words = commands.words(to, algorithm, _recipe(config, algorithm, len(prompts)), replies[algorithm])
        _write_script(folder / f"{algorithm}.sh", commands.script(about, words))
    notes = [*left_out, *preferences.notes(), *_other_rewards(config), *_other_settings(config)]
    if to == "openrlhf" and _goes_on(tokenizer):
        notes.append("what the chat template puts behind the end of a reply: OpenRLHF scores a reply without it")
    atomic_write(folder / CARD, _readme(store, constitution, to, material, notes).encode())
    (folder / UNFINISHED).unlink()
    models = counted(len(shifts), "reward model")
    rows = f"{counted(len(prompts), 'prompt')}, {counted(preferences.written.total(), 'preference')}"
    yield f"{printable(str(folder))}: {rows}, the SFT model, {models}, and the commands ppo.sh and grpo.sh"
    yield from (f"  {note}" for note in notes)


def _check(store: RunStore, to: Framework) -> None:
    made = store.artifacts()
    if missing := [name for name in ("sft_model", "preferences", "reward_model") if name not in made]:
        raise RunError(
            f"{store.folder}: has no {missing[0]} yet, and PPO and GRPO need a reward model; type the run's command "
            "with until=reward, and export again"
        )
    folder = store.artifact("reward_model")
    if not has_members(folder):
        raise RunError(
            f"{store.folder}: has no reward model, as it had no preference to learn from, so there is nothing to train "
            "on; constitutional report says why"
        )
    if to == "nemo-rl" and (count := len(moments(folder))) > 1:
        raise RunError(
            f"{store.folder}: has {count} reward models, and NeMo-RL asks one; type --to verl or --to openrlhf, which "
            "ask a function, or run again with reward.members=1"
        )


def _prompts(store: RunStore, to: Framework) -> tuple[list[Prompt], list[str]]:
    """The prompts to train on that the framework reads, and a line for those that it does not.

    Raises:
        RunError: none is left.
    """
    every = [prompt for prompt in store.stream("prompts", Prompt) if prompt.split == "train"]
    spoken = {"system", "user", "assistant"}
    kept = [prompt for prompt in every if all(row.role in spoken and not row.extra for row in prompt.messages)]
    tools, notes = len(every) - len(kept), list[str]()
    if tools:
        notes.append(f"{counted(tools, 'prompt')} with turns of tools: left out")
    if to == "nemo-rl":
        single = [prompt for prompt in kept if [row.role for row in prompt.messages] == ["user"]]
        if several := len(kept) - len(single):
            notes.append(f"{counted(several, 'prompt')} of several messages: left out, as NeMo-RL reads one message")
        kept = single
    if not kept:
        raise RunError(f"{store.folder}: none of its {len(every)} prompts can be handed over: {'; '.join(notes)}")
    return kept, notes


def _reward_models(source: Path, into: Path) -> list[float]:
    """Copy the reward models, normalised but for the shifts that are returned."""
    scales = moments(source)
    shutil.rmtree(into, ignore_errors=True)  # there may be more of them from an earlier export
    if len(scales) == 1:
        return [fold(source / "0", scales[0], into)]
    into.mkdir()
    return [fold(source / str(number), scale, into / str(number)) for number, scale in enumerate(scales)]


def _write(path: Path, rows: Iterator[Row], digest: str) -> None:
    """Rows as the ending says; a file of no rows is none."""
    path.unlink(missing_ok=True)
    first = next(rows, None)
    if first is None:
        return
    every = chain([first], rows)
    if path.suffix == ".parquet":
        files.write_parquet(path, every, {"constitution": digest})
    else:
        files.write_lines(path, every)


def _write_script(path: Path, text: str) -> None:
    atomic_write(path, text.encode())
    path.chmod(0o755)


def _recipe(config: RunConfig, algorithm: Algorithm, prompts: int) -> Recipe:
    """What the algorithm is told: the run's own settings, where that is its algorithm, and else our defaults."""
    chosen = config.algorithm
    if algorithm == "ppo":
        own = chosen if isinstance(chosen, ppo.Settings) else ppo.Settings()
        rate = own.learning_rate if own is chosen and own.lora is None else LEARNING_RATE
        return Recipe(
            step=_step(own.rows_per_step * own.mini_batches, prompts),
            replies=1,
            passes=max(1, round(own.episodes / prompts)),
            temperature=own.temperature,
            learning_rate=rate,
            kl=own.kl_coef,
            critic_rate=rate * own.critic_learning_rate_factor,
            lam=own.lam,
            clip=own.cliprange,
        )
    groups = chosen if isinstance(chosen, grpo.GrpoSettings) else grpo.GrpoSettings()
    return Recipe(
        step=_step(groups.prompts_per_step, prompts),
        replies=groups.num_generations,
        passes=max(1, round(groups.epochs)),
        temperature=groups.temperature,
        learning_rate=groups.learning_rate if groups is chosen and groups.lora is None else LEARNING_RATE,
        kl=groups.beta,
    )


def _reply(config: RunConfig, algorithm: Algorithm) -> int:
    """Most tokens in a reply: the run's own setting, where that is its algorithm, and else that of its pairs."""
    own = ppo.Settings if algorithm == "ppo" else grpo.GrpoSettings
    return config.algorithm.max_tokens if isinstance(config.algorithm, own) else config.sample_pairs.max_tokens


def _step(wanted: int, prompts: int) -> int:
    """Prompts in a step: as many as are wanted or there are, by eights where it is eight or more."""
    most = min(wanted, prompts)
    return most - most % WHOLE if most >= WHOLE else most


def _other_rewards(config: RunConfig) -> Iterator[str]:
    """What the run rewards beside the mean score of its reward models, and a training elsewhere does not."""
    if isinstance(config.algorithm, OnlineSettings):
        for reward in config.algorithm.rewards:
            if reward.kind == "reward_model" and reward.weight != 1:
                yield f"the weight of the reward model's score ({reward.weight:g}): not handed over, elsewhere it is 1"
            if reward.kind == "reward_model" and reward.ensemble_k and config.reward.members > 1:
                off = f"{reward.ensemble_k:g} deviations among the reward models that are taken off their mean"
                yield f"{off} (ensemble_k): not handed over"
        kinds = [reward.kind for reward in config.algorithm.rewards if reward.kind != "reward_model"]
        if kinds:
            yield f"rewards beside the reward model's ({', '.join(kinds)}): not handed over"
        if penalty := config.algorithm.missing_eos_penalty:
            yield f"the penalty of {penalty:g} for a reply that is cut off (missing_eos_penalty): not handed over"


_TOLD: Final[Mapping[str, object]] = {
    "epochs": 1,
    "mini_batches": 1,
    "gamma": 1.0,
    "critic_warmup": 0,
    "cliprange_high": None,
    "reward_clip": None,
    "kl_target": None,
    "length_penalty": 0.0,
    "entropy_coef": 0.0,
    "ptx_coef": 0.0,
    "lora": None,
    **{name: ppo.Settings.model_fields[name].default for name in ("vf_coef", "cliprange_value", "whiten_rewards")},
    **{name: ppo.Settings.model_fields[name].default for name in ("whiten_advantages", "loss_aggregation")},
}
"""What PPO is elsewhere, whatever the run says: by the name of the setting that is not handed over."""
_TOLD_GRPO: Final[Mapping[str, object]] = {
    "scale_rewards": "group",
    "lora": None,
    **{name: grpo.GrpoSettings.model_fields[name].default for name in ("weight_decay", "warmup", "schedule")},
}


def _other_settings(config: RunConfig) -> Iterator[str]:
    """Settings of the run's PPO or GRPO that the commands do not take."""
    chosen = config.algorithm
    if isinstance(chosen, ppo.Settings | grpo.GrpoSettings):
        told = _TOLD if isinstance(chosen, ppo.Settings) else _TOLD_GRPO
        for name, value in told.items():
            if (own := getattr(chosen, name)) != value:
                shown = "an adapter" if name == "lora" else own
                yield f"algorithm.{name} ({shown}): not handed over, see the framework's own option"


def _goes_on(tokenizer: Tokenizer) -> bool:
    """Whether the chat template puts something behind the token that ends a reply, as some put a line's end."""
    exchange = [{"role": "user", "content": "Yes?"}, {"role": "assistant", "content": "Yes."}]
    return render(tokenizer, exchange)[-1] != end_of_turn(tokenizer)


def _readme(
    store: RunStore, constitution: Constitution, to: Framework, material: Material, notes: Sequence[str]
) -> str:
    """What the folder is, what to type, and how the policy comes back."""
    name = store.folder.resolve().name
    typed = [shlex.quote(printable(word)) for word in (str(store.folder), f"name={name}-ppo")]
    where = ", in the folder of NeMo-RL and by the path of the scripts" if to == "nemo-rl" else ""
    checked = f"The options are of {VERSIONS[to]}"
    if to == "nemo-rl":
        checked += "'s example configurations; PyPI has no package by which they could be checked"
    if material.members == 1:
        reward = (
            f"The score of `reward_model` is in deviations of reference samples, and shifted by {material.shift:.6g}: "
            f"{_NORMALISED[to]}."
        )
    else:
        reward = (
            f"`reward.py` scores replies by {material.members} reward models where it is asked, normalises each, "
            "and gives their mean."
        )
    text = _README.format(
        framework=VERSIONS[to].partition(" ")[0],
        name=name,
        adopt=" ".join(["constitutional adopt", typed[0], "THAT_FOLDER", typed[1]]),
        constitution=printable(" ".join(constitution.name.split())),
        digest=constitution.digest,
        where=where,
        checked=checked,
        reward=reward,
        comes_back=_COMES_BACK[to],
        left_out="".join(["\nWhat was not carried over:\n\n", *(f"- {note}\n" for note in notes)] if notes else []),
    )
    return "\n\n".join(map(_wrapped, text.split("\n\n")))


def _wrapped(block: str) -> str:
    """A paragraph in lines of 120 characters; a heading, a command or a list as it is."""
    if block.startswith(("#", " ", "- ")):
        return block
    return fill(block, 120, break_long_words=False, break_on_hyphens=False)


_README: Final = """# PPO and GRPO by {framework}, from the run {name}

`constitutional` wrote this folder. The reward model learned preferences by the constitution {constitution}, SHA-256 of
its principles `{digest}` (`constitution.yaml`); the rows in `data/` name that digest too.

Type one of these{where}, with as many GPUs as a machine has, and `NODES=2` for more machines:

    GPUS=8 sh ppo.sh
    GPUS=8 sh grpo.sh

Options that are typed behind it overrule those of the script. {checked}. What no option says is the framework's own
default, so look at precision, parallelism and batch sizes before a long training.

{reward}

The policy comes out in {comes_back}. This evaluates it, on prompts that are not in this folder, and reports it as one
of the run's own:

    {adopt}
{left_out}"""
