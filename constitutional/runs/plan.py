"""What memory a run needs, stage by stage, before anything is downloaded or asked: `constitutional plan`.

A stage has moments, such as drawing replies and training on them; the one that needs most counts. `moments.py` has the
sums. Where a stage does not fit, its settings are lowered until it does: first those that change no result.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import product
from typing import Any, Final, Literal, NamedTuple

from constitutional.base.errors import ConstitutionalError
from constitutional.engines.architecture import config_file
from constitutional.engines.divergence import TOKENS_TOGETHER
from constitutional.engines.local import MOST_ON_CPU, MOST_ON_GPU, USUAL_TOKENS, batch_beside
from constitutional.engines.models import LOADED
from constitutional.engines.settings import EngineSettings, ModelSettings, VllmSettings, role_settings
from constitutional.runs import moments
from constitutional.runs.context import trained
from constitutional.runs.distributed import check_settings, kind_of, processes_here
from constitutional.runs.launch_settings import AccelerateSettings, together
from constitutional.runs.machine import GIB, GPUS, Machine, named_gpu
from constitutional.runs.moments import ALONE, Moment, Training, TrainingGroup
from constitutional.runs.pipeline import outline, up_to
from constitutional.runs.settings import RunConfig
from constitutional.stages import adopted, dpo, grpo, online, ppo
from constitutional.stages.prompts import SandboxPrompts
from constitutional.training.footprint import SIZES, Footprint, Pass
from constitutional.training.processes import shared
from constitutional.training.reward_model import members
from constitutional.training.rewards import OnlineSettings
from constitutional.training.trl import LoraSettings

SHORTEST: Final = 256
"""Tokens below which no length is lowered."""
ADAPTERS: Final = LoraSettings(rank=64, alpha=128)
"""Those of the presets for models of some billion weights."""
MOST_GPUS: Final = 8
"""Of a machine, over which vLLM divides a model, and by which a model is trained in shards."""
_SERVED: Final = ("generator", "critic", "labeler")
"""Roles that a server may play in the place of a model here."""


class StagePlan(NamedTuple):
    """A stage, and the moment in which it needs most."""

    stage: str
    model: str
    """The path of the model that works then."""
    note: str
    """How much passes at once."""
    moments: tuple[Moment, ...]
    role: str = ""
    """Whose model it is; empty for the one that is trained."""
    lower: tuple[str, ...] = ()
    """Where it does not fit: settings with which it does; none where nothing is small enough."""
    shards: tuple[str, ...] = ()
    """Where it would fit with adapters at the most: with which words all weights are trained, on several such GPUs."""
    least: float = 0.0
    """Where nothing is small enough: what it needs with the smallest settings, in bytes."""
    host: float = 0.0
    """Bytes of the computer's own memory that models take beside a GPU, while they are loaded or saved; vLLM's are not
    reckoned. Pages of their files are in it, which the system takes back where it needs them."""

    @property
    def peak(self) -> Moment:
        """The moment that needs most."""
        return max(self.moments, key=lambda moment: moment.total)

    def fits(self, machine: Machine) -> bool:
        """Whether the machine has room for it."""
        return self.peak.total <= machine.usable


def plan(config: RunConfig, machine: Machine, told: Callable[[str], None] = lambda _: None) -> list[StagePlan]:
    """The stages of a run that need a model in memory, in running order, with what to lower where they do not fit.

    Args:
        config: the run.
        machine: where it is to run.
        told: of each stage before it is planned.

    Raises:
        ConfigurationError: a model's configuration is not there, or processes cannot train as they are told to.
        ModelError: it is of no model that transformers knows.
    """
    if launch := together(config.launch):
        check_settings(config, launch)
    plans: list[StagePlan] = []
    held: OrderedDict[object, _Model] = OrderedDict()
    for stage in up_to(config.until, outline(config)):
        told(stage.name)
        if stage.trains:
            held.clear()
            planned = _training(stage.name, config, machine)
            planned = planned if planned.fits(machine) else _lowered(planned, config, machine)
            plans.append(planned._replace(host=_host(stage.name, config, machine)))
        else:
            plans += _asking(stage.name, config, machine, held)
    return plans


@lru_cache
def footprint(path: str, revision: str | None = None) -> Footprint:
    """The memory of the architecture of a model, whose weights need not be there."""
    return Footprint(config_file(path, revision))


# --- Stages that ask models ---


class _Model(NamedTuple):
    """A model that answers."""

    role: str
    settings: ModelSettings | VllmSettings
    dtype: str
    tokens: int
    """The longest reply."""
    top_p: float
    weighs: int = 0
    """The longest response whose probability it is asked for."""

    @property
    def key(self) -> object:
        """Models that are the same are in memory once."""
        return self.role if self.role in ("sft_model", "policy") else self.settings

    @property
    def footprint(self) -> Footprint:
        return footprint(str(self.settings.path), self.settings.revision)

    @property
    def weights(self) -> float:
        """Bytes."""
        return float(self.footprint.weights * SIZES[self.dtype])

    def host(self, machine: Machine) -> float:
        """Bytes of the computer's own memory while it is loaded for a GPU."""
        vllm = isinstance(self.settings, VllmSettings)
        return moments.beside_gpu(self.footprint, self.dtype) if machine.gpu and not vllm else 0.0

    def resting(self, machine: Machine) -> float:
        """Bytes that it holds while another is asked."""
        vllm = isinstance(self.settings, VllmSettings)
        return self.settings.memory * machine.memory if vllm and machine.gpu else self.weights  # type: ignore[union-attr]


def _asked(stage: str, config: RunConfig) -> list[tuple[str, int, float]]:
    """Who is asked in a stage in turn, for how many tokens at most, and the `top_p` of the sampling."""
    revise, draw, score = config.critique_revise, config.sample_pairs, config.evaluate
    judges = [(role, config.label.max_tokens, 1.0) for role in config.judges.values()]
    if stage in ("labeler_check", "label"):
        return judges
    if stage == "sample_pairs":
        return [("sft_model", draw.max_tokens, draw.top_p or 1.0)]
    if stage == "critique_revise":
        longest, top_p = revise.revision_max_tokens, revise.top_p or 1.0
        longest = max(longest, revise.critique_max_tokens) if revise.critique else longest
        critic = [("critic", longest, top_p)] if revise.rounds else []
        return [("generator", revise.draft_max_tokens, top_p), *critic]
    if stage == "evaluate":
        models = [(name, score.max_tokens, score.top_p or 1.0) for name in ("base", "sft_model", "policy")]
        critic = [("critic", score.critique_max_tokens, 1.0)] if score.critiqued else []
        return [*models, *(judges[:1] if score.judged or _scores_gold(config) else []), *critic]
    return []


def _scores_gold(config: RunConfig) -> bool:
    """Whether the labeler may score replies of an online training in the evaluation (`evaluate.score_rollouts`)."""
    return (
        isinstance(config.algorithm, OnlineSettings)
        and config.evaluate.gold_replies > 0
        and not isinstance(config.prompts, SandboxPrompts)
        and not online.asks_labeler(config.algorithm)
        and config.label.method != "contrast"
    )


def _model(
    role: str, tokens: int, top_p: float, config: RunConfig, machine: Machine, *, weighs: int = 0
) -> _Model | None:
    """The model that plays a role; None where it is not in this machine's memory.

    Args:
        role: generator, critic, a labeler, or one of the models that are trained.
        tokens: the longest reply.
        top_p: of the sampling.
        config: the run.
        machine: where it is to run.
        weighs: the longest response whose probability the role is asked for.
    """
    roles: dict[str, Any] = {"generator": config.generator, "critic": config.critic, "labeler": config.labeler}
    roles |= {f"panel.{name}": settings for name, settings in config.panel.items()}
    settings: EngineSettings = role_settings(roles[role], config.model) if role in roles else trained(config)
    if not isinstance(settings, ModelSettings | VllmSettings):
        return None
    if machine.gpu and getattr(settings, "device", "").startswith("cpu"):
        return None
    dtype = settings.dtype or "auto"
    return _Model(role, settings, _usual_dtype(machine) if dtype == "auto" else dtype, tokens, top_p, weighs)


def _usual_dtype(machine: Machine) -> str:
    """What `auto` means (`placed`)."""
    return "bfloat16" if machine.gpu else "float32"


def _asking(
    stage: str, config: RunConfig, machine: Machine, held: "OrderedDict[object, _Model]"
) -> Iterator[StagePlan]:
    """A stage that asks models. The last of them stay in memory until a training begins (`engines/models.py`)."""
    # By contrast, a judge is asked how likely whole responses are: those of the stage.
    responses = (config.evaluate if stage == "evaluate" else config.sample_pairs).max_tokens
    weighing = config.judges.values() if config.label.method == "contrast" else ()
    asked = [
        model
        for role, tokens, top_p in _asked(stage, config)
        if (model := _model(role, tokens, top_p, config, machine, weighs=responses if role in weighing else 0))
    ]
    plans: list[StagePlan] = []
    if stage == "label":
        held.clear()  # it releases the SFT model
    # A panel's judges are asked side by side, and none is given up before all comparisons are judged.
    most = max(LOADED, len({model.key for model in asked})) if stage == "label" else LOADED
    # What is asked first is asked again beside what was asked after it; the evaluation releases every model in turn.
    for model in asked if stage == "evaluate" else [*asked, *asked]:
        if stage == "evaluate":
            held.clear()
        held.pop(model.key, None)
        while len(held) >= most or (held and _shares(model, held.values()) > 1):
            held.popitem(last=False)
        others = sum(other.resting(machine) for other in held.values())
        held[model.key] = model
        plans.append(_answers(stage, model, others, machine))
    if stage == "evaluate" and config.evaluate.compared:
        compared = _compared(config, machine)
        if not compared.fits(machine):
            others_fit = all(planned.fits(machine) for planned in plans)
            lower = ("evaluate.compared=0",) if others_fit else ()
            compared = compared._replace(lower=lower, least=compared.peak.total)
        plans.append(compared)
    if stage == "evaluate":
        plans += _held_out_scores(config)
    if plans:
        worst = max(plans, key=lambda planned: planned.peak.total)
        yield worst._replace(host=max(planned.host for planned in plans))


def _shares(model: _Model, held: Iterable[_Model]) -> float:
    """The shares of a GPU's memory that vLLM would take with the model; 0 where that is no question."""
    shares = [other.settings.memory for other in (model, *held) if isinstance(other.settings, VllmSettings)]
    return sum(shares) if isinstance(model.settings, VllmSettings) else 0.0


def _answers(stage: str, model: _Model, others: float, machine: Machine) -> StagePlan:
    settings, found = model.settings, model.footprint
    role = "" if model.role in ("base", "sft_model", "policy") else model.role
    if isinstance(settings, VllmSettings):
        note, moment = f"{model.role}, by vLLM", _by_vllm(model, others, settings, machine)
        planned = StagePlan(stage, str(settings.path), note, (moment,), role)
        return planned if planned.fits(machine) else _divided(planned, model, others, machine)

    moment, batch, wanted = _in_process(model, others, machine)
    halved = f", halved from {wanted}" if batch < wanted else ""
    loaded = () if machine.gpu or model.dtype != "float32" else (moments.loading(found),)
    note, host = f"{model.role}, {batch} at once{halved}", model.host(machine)
    planned = StagePlan(stage, settings.path, note, (moment, *loaded), role, host=host)
    if planned.fits(machine):
        return planned
    in_half = machine.gpu and model.dtype == "float32" and moment.total - model.weights / 2 <= machine.usable
    lower = (f"{role or 'model'}.dtype=bfloat16",) if in_half else ()
    return planned._replace(lower=lower, least=moment.total)


def _in_process(model: _Model, others: float, machine: Machine) -> tuple[Moment, int, int]:
    """What a model takes as it answers here; how many requests it answers at once, and how many it would like to."""
    settings, found = model.settings, model.footprint
    assert isinstance(settings, ModelSettings)

    def moment_of(batch: int) -> Moment:
        prompt = max(1, USUAL_TOKENS - (model.weighs or model.tokens))
        if model.weighs:
            return moments.weighing(found, model.dtype, batch, prompt, model.weighs, others=others)
        return moments.answering(found, model.dtype, batch, prompt, model.tokens, others=others, top_p=model.top_p)

    most = MOST_ON_GPU if machine.gpu else MOST_ON_CPU
    token = found.cache(SIZES[model.dtype])
    wanted = settings.batch_size or batch_beside(model.weights, token, machine.memory, most)
    # Where memory runs out the engine halves its batch by itself.
    sizes = [wanted >> halvings for halvings in range(wanted.bit_length())]
    batch = next((size for size in sizes if moment_of(size).total <= machine.usable), 1)
    return moment_of(batch), batch, wanted


def _by_vllm(model: _Model, others: float, settings: VllmSettings, machine: Machine) -> Moment:
    """VLLM takes its share of a GPU whatever it needs; what does not fit into the share makes it more."""
    weights, request = _least_by_vllm(model, settings)
    if not machine.gpu:
        return Moment("answering", {"weights": weights, "other models": others, "cache": 4 * settings.memory * GIB})
    share = min(settings.memory * machine.memory, machine.usable)  # its own libraries are in its share
    if weights + request > share:  # the share does not suffice, however much memory the GPU has
        return Moment(
            "answering in vLLM's share", {"weights": weights, "cache": request, "other models": machine.usable}
        )
    return Moment("answering", {"weights": weights, "other models": others, "cache": share - weights})


def _least_by_vllm(model: _Model, settings: VllmSettings) -> tuple[float, float]:
    """Bytes on a GPU of the weights, and of a single request's keys and values."""
    token = model.footprint.cache(SIZES[model.dtype])
    return (
        model.weights / settings.tensor_parallel,
        (settings.max_length or USUAL_TOKENS) * token / settings.tensor_parallel,
    )


def _divided(planned: StagePlan, model: _Model, others: float, machine: Machine) -> StagePlan:
    """The plan of what does not fit by vLLM, with as many GPUs as it fits on; attention heads are divided alike."""
    settings, least = model.settings, planned.peak.total
    assert isinstance(settings, VllmSettings)
    gpus = 2 * settings.tensor_parallel
    while machine.gpu and gpus <= MOST_GPUS and model.footprint.heads % gpus == 0:
        divided = settings.model_copy(update={"tensor_parallel": gpus})
        if _by_vllm(model, others, divided, machine).total <= machine.usable:
            return planned._replace(lower=(_word(planned.role or "generator", "tensor_parallel", gpus),))
        least = others + sum(_least_by_vllm(model, divided))
        gpus *= 2
    return planned._replace(least=least)


def _compared(config: RunConfig, machine: Machine) -> StagePlan:
    """How far the models have moved from each other: two of them read the same replies."""
    model, dtype = _policy(config), _usual_dtype(machine)
    size, reply, rows = SIZES[dtype], config.evaluate.max_tokens + 1, max(1, TOKENS_TOGETHER // USUAL_TOKENS)
    weights = float(model.weights * size)
    parts = {
        "weights": weights,
        "other models": weights,
        "activations": model.reading(Pass(rows, USUAL_TOKENS, dtype), cached=True),
        # Of both models, and those of a reply in 32 bits.
        "logits": float(model.vocabulary * (2 * rows * reply * size + 4 * reply * 4)),
    }
    return StagePlan("evaluate", config.model.path, "two models", (Moment("comparing two models", parts),))


def _held_out_scores(config: RunConfig) -> Iterator[StagePlan]:
    """The reward model that an online training did not use scores some of its replies, one member after another."""
    algorithm, folder = config.algorithm, config.evaluate.gold_reward_model
    if folder is None or not isinstance(algorithm, OnlineSettings) or not config.evaluate.gold_replies:
        return
    prompt = algorithm.max_prompt_tokens if isinstance(algorithm, ppo.Settings) else 0
    length = prompt + algorithm.max_tokens if prompt else algorithm.max_length  # type: ignore[union-attr]
    moment = moments.scoring(footprint(str(members(folder)[0])), length)
    yield StagePlan("evaluate", str(folder), "a reward model on replies", (moment,), least=moment.total)


# --- Stages that train ---


def _policy(config: RunConfig) -> Footprint:
    return footprint(config.model.path, config.model.revision)


def _settings_of(stage: str) -> str:
    """The group of settings of a stage that trains."""
    return stage if stage in ("sft", "reward") else "algorithm"


def _training(stage: str, config: RunConfig, machine: Machine) -> StagePlan:
    """A stage that trains, in one process or in several, which share the rows of a step."""
    here, group = _processes(stage, config, machine)
    if here == group.processes == 1:
        return _trained(stage, config, machine)
    name = _settings_of(stage)
    whole: Any = getattr(config, name)
    share = shared(whole.batch_size, whole.gradient_accumulation, group.processes)
    assert share is not None, "which is checked before"
    own = whole.model_copy(update=dict(zip(("batch_size", "gradient_accumulation"), share, strict=True)))
    found = _trained(stage, config.model_copy(update={name: own}), machine, group)
    if machine.gpu:
        return found._replace(note=f"{found.note}, on each of {group.processes} GPUs")
    # They share the memory of a machine.
    each = tuple(Moment(one.what, {part: here * size for part, size in one.parts.items()}) for one in found.moments)
    return found._replace(note=f"{found.note}, in each of {here} processes", moments=each)


def _processes(stage: str, config: RunConfig, machine: Machine) -> tuple[int, TrainingGroup]:
    """How many processes train a stage on a machine, and what they are with those of other machines."""
    launch = together(config.launch)
    if launch is None or stage not in ("sft", "reward", "dpo", "ppo"):
        return 1, ALONE
    here, kinds = processes_here(launch), dict[str, Literal["fsdp2", "zero3"]](FSDP="fsdp2", DEEPSPEED="zero3")
    return here, TrainingGroup(here * launch.machines, kinds.get(kind_of(launch)) if machine.gpu else None)


def _trained(stage: str, config: RunConfig, machine: Machine, group: TrainingGroup = ALONE) -> StagePlan:
    """What one of the processes takes."""
    model, gpu = _policy(config), machine.gpu
    if stage == "sft":
        sft = config.sft
        found = moments.by_trl(Training(model, sft, gpu, group=group), sft, rows_each=1)
        return StagePlan(stage, config.model.path, f"{sft.batch_size} rows of {sft.max_length} tokens", tuple(found))
    if stage == "reward":
        reward = config.reward
        rows = config.sample_pairs.samples if reward.pairs_together else 2
        training = Training(model, reward, gpu, scores=True, group=group)
        found = moments.by_trl(training, reward, rows_each=rows)
        note = f"{reward.batch_size * rows} rows of {reward.max_length} tokens"
        return StagePlan(stage, config.model.path, note, tuple(found))
    algorithm = config.algorithm
    if isinstance(algorithm, dpo.Settings):
        found = moments.by_trl(Training(model, algorithm, gpu, group=group), algorithm, rows_each=2)
        if algorithm.margin == "reward_model":
            found.append(moments.scoring(model, algorithm.max_length))
        note = f"{2 * algorithm.batch_size} rows of {algorithm.max_length} tokens"
        return StagePlan(stage, config.model.path, note, tuple(found))
    assert not isinstance(algorithm, adopted.Settings), "which trains nothing"
    return _online(algorithm, model, config, machine, group)


def _online(
    algorithm: ppo.Settings | grpo.GrpoSettings | grpo.RlooSettings,
    model: Footprint,
    config: RunConfig,
    machine: Machine,
    group: TrainingGroup,
) -> StagePlan:
    kinds, members = [row.kind for row in algorithm.rewards], _members(config)
    labeler = _model("labeler", config.label.max_tokens, 1.0, config, machine) if "constitution" in kinds else None
    beside = labeler.resting(machine) if labeler else 0.0
    judge = partial(_judging, labeler, machine) if labeler and isinstance(labeler.settings, ModelSettings) else None
    if algorithm.sampler == "vllm":
        beside += algorithm.sampler_memory * (machine.memory if machine.gpu else 4 * GIB)
    if isinstance(algorithm, ppo.Settings):
        gpu = machine.gpu
        found = moments.by_ppo(model, algorithm, gpu=gpu, members=members, beside=beside, judge=judge, group=group)
        length = algorithm.max_prompt_tokens + algorithm.max_tokens
        drawn = algorithm.sampling_batch_size
    else:
        found = moments.by_grpo(model, algorithm, gpu=machine.gpu, members=members, beside=beside, judge=judge)
        length, drawn = algorithm.max_length, algorithm.rows_per_step
    note = f"{drawn} replies at once, {algorithm.batch_size} rows of {length} tokens"
    return StagePlan(algorithm.kind, config.model.path, note, tuple(found))


def _judging(labeler: _Model, machine: Machine, held: float) -> Mapping[str, float]:
    """What a labeler in this process takes beside its weights as it scores replies, where so much is held with them."""
    moment, _, _ = _in_process(labeler, held - labeler.weights, machine)
    return {name: size for name, size in moment.parts.items() if name not in ("weights", "other models")}


def _host(stage: str, config: RunConfig, machine: Machine) -> float:
    """Bytes of the computer's own memory beside a GPU, as models are loaded, saved, or asked for rewards.

    Loading takes less than saving, but that all processes of a machine load, where one of them saves.
    """
    if not machine.gpu:
        return 0.0
    settings: Any = getattr(config, _settings_of(stage))
    here, group = _processes(stage, config, machine)
    training = Training(_policy(config), settings, gpu=True, scores=stage == "reward")
    labeler = _model("labeler", 1, 1.0, config, machine) if online.asks_labeler(settings) else None
    loaded = moments.beside_gpu(training.model, training.dtype)
    if isinstance(settings, ppo.Settings) and group.shards and training.rank is None:
        # All of PPO's networks, of which each process leaves itself its part.
        alone = moments.by_ppo(training.model, settings, gpu=True, members=_members(config), beside=0.0)[-1].parts
        loaded = alone["weights"] + alone["other models"]
    saved = moments.saved_beside_gpu(training)
    return max(saved, here * loaded if here > 1 else 0.0, labeler.host(machine) if labeler else 0.0)


def _members(config: RunConfig) -> int:
    """How many reward models an online training holds."""
    rewards = config.algorithm.rewards if isinstance(config.algorithm, OnlineSettings) else ()
    return config.reward.members if any(row.kind == "reward_model" for row in rewards) else 0


# --- What to lower ---


def _lowered(planned: StagePlan, config: RunConfig, machine: Machine) -> StagePlan:
    """The plan of a training that does not fit, with settings with which it does."""
    group = _settings_of(planned.stage)
    before, least = getattr(config, group), planned.peak.total

    def found(changes: Mapping[str, Any]) -> StagePlan:
        changed = config.model_copy(update={group: before.model_copy(update=dict(changes))})
        return _training(planned.stage, changed, machine)

    for changes in _gentler(before):
        smallest = changes | _smallest(before, changes)
        if not (last := found(smallest)).fits(machine):
            least = min(least, last.peak.total)
            continue
        best = next(each for each in _batches(before, changes) if found(each).fits(machine))
        words = tuple(_word(group, name, value) for name, value in best.items())
        return planned._replace(
            lower=words, shards=_in_shards(planned.stage, config, machine) if "lora" in best else ()
        )
    return planned._replace(least=least, shards=_in_shards(planned.stage, config, machine))


def _in_shards(stage: str, config: RunConfig, machine: Machine) -> tuple[str, ...]:
    """What to type for a training on as few such GPUs as its weights fit on in shards; nothing where none do."""
    group = _settings_of(stage)
    before = getattr(config, group)
    alone = together(config.launch) is None
    if not (machine.gpu and alone and before.lora is None):
        return ()
    for gpus, changes in product((2, 4, MOST_GPUS), ({}, {"gradient_checkpointing": True})):
        launch = AccelerateSettings(processes=gpus, config="fsdp2")
        try:
            check_settings(config, launch)
        except ConstitutionalError:
            continue
        for words in _batches(before, changes):
            changed = config.model_copy(update={group: before.model_copy(update=words), "launch": launch})
            if _training(stage, changed, machine).fits(machine):
                typed = (_word(group, name, value) for name, value in words.items())
                return ("launch=accelerate_fsdp2", f"launch.processes={gpus}", *typed)
    return ()


def _gentler(settings: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - of a training
    """Changes beside the size of batches, each more than the one before: none, slower, adapters, shorter rows."""
    changes: dict[str, Any] = {}
    yield dict(changes)
    for name, value in (("gradient_checkpointing", True), ("lora", ADAPTERS)):
        if not getattr(settings, name):
            changes[name] = value
            yield dict(changes)
    name = "max_prompt_tokens" if isinstance(settings, ppo.Settings) else "max_length"
    length = getattr(settings, name)
    shortest = SHORTEST + (settings.max_tokens if isinstance(settings, grpo.Settings) else 0)
    while length // 2 >= shortest:
        length //= 2
        yield changes | {name: length}


def _batches(settings: Any, changes: Mapping[str, Any]) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """The changes with smaller and smaller batches; as many rows in a step of the optimizer as before."""
    step = settings.batch_size * settings.gradient_accumulation
    sizes = [size for size in range(settings.batch_size, 0, -1) if settings.batch_size % size == 0]
    drawn = getattr(settings, "sampling_batch_size", None)
    for size in sizes:
        batch = {} if size == settings.batch_size else {"batch_size": size, "gradient_accumulation": step // size}
        together = drawn
        while together:
            yield {**changes, **batch, **({} if together == drawn else {"sampling_batch_size": together})}
            together //= 2
        if drawn is None:
            yield {**changes, **batch}


def _smallest(settings: Any, changes: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    *_, last = _batches(settings, changes)
    return last


def _word(group: str, name: str, value: object) -> str:
    """A setting as it is typed."""
    if isinstance(value, LoraSettings):
        return f"'{group}.{name}={{rank: {value.rank}, alpha: {value.alpha:g}}}'"
    return f"{group}.{name}={str(value).lower()}"


def refusals(plans: Iterable[StagePlan], machine: Machine) -> list[str]:
    """What to say of the stages that do not fit: what they need, and what to type."""
    said = []
    for planned in plans:
        if planned.fits(machine):
            continue
        needed, room = planned.peak.total / GIB, machine.usable / GIB
        line = f"{planned.stage} needs {needed:.1f} GiB ({planned.peak.what}), and {machine.name} has {room:.1f}"
        if planned.lower:
            line += f"; type {' '.join(planned.lower)}"
        else:
            larger = [gpu for gpu in map(named_gpu, GPUS) if gpu.usable >= planned.least]
            which = f" (--gpu {min(larger, key=lambda gpu: gpu.memory).name})" if larger else ""
            line += (
                f", and no setting is small enough: {planned.least / GIB:.1f} GiB are the least; take a smaller model "
                f"({planned.role or 'model'}.path=…), or a GPU with more memory{which}"
            )
            line += f", or let a server answer ({planned.role}=http)" if planned.role in _SERVED else ""
        line += f"; or on several GPUs {' '.join(planned.shards)}" if planned.shards else ""
        said.append(line)
    return said
