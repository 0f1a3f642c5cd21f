"""What is in memory at the worst moments of a training, and while a model answers: sums for `plan.py`.

They follow what the stages do: which models are held together and in which number format, where gradients and the
optimizer's state are, and how many rows pass at once. All rows are taken to be as long as the settings allow. What one
model takes is found by `training/footprint.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal, NamedTuple

from constitutional.engines.decoding import MOST_LOGITS, READ_TOKENS, SPARE
from constitutional.stages import grpo, ppo
from constitutional.training.footprint import SIZES, Footprint, Pass
from constitutional.training.ppo.math import CHUNK, GPU_CHUNK
from constitutional.training.reward_model import SCORED_TOGETHER
from constitutional.training.trl import NetworkSettings, TrainingSettings

PARTS: Final = ("weights", "other models", "gradients", "optimizer", "activations", "logits", "cache")
"""What memory goes to: the model that is trained or answers; what is held beside it; and what it needs to work."""
GRADIENT: Final = 4
"""Bytes of the gradient of a weight that is trained, which is in 32 bits."""
ADAM: Final = 8
"""Bytes of the optimizer's state for such a weight: two moments in 32 bits."""
LIVE: Final = 1_000_000_000
"""Weights that DeepSpeed has whole at a time (its default of `stage3_max_live_parameters`)."""
BUCKET: Final = 500_000_000
"""Gradients that DeepSpeed gathers before it adds them up over processes (its default of `reduce_bucket_size`)."""


class Moment(NamedTuple):
    """What is in memory at one moment of a stage, in bytes by `PARTS`."""

    what: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.parts.values())


# --- A model that answers ---


def answering(  # noqa: PLR0913 - all that it depends on
    model: Footprint, dtype: str, batch: int, prompt: int, tokens: int, *, others: float = 0.0, top_p: float = 1.0
) -> Moment:
    """The local engine: a buffer of keys and values, and those of as many prompts that are read and wait for a place.

    Args:
        model: what answers.
        dtype: the number format of its weights.
        batch: requests at once.
        prompt: tokens of a prompt.
        tokens: the longest reply.
        others: bytes of models that are held beside it.
        top_p: of the sampling; below 1 the vocabulary is sorted.
    """
    size = SIZES[dtype]
    token = model.cache(size)
    together = max(1, min(batch, READ_TOKENS // prompt))
    reading = model.reading(Pass(together, prompt, dtype, masked=False), cached=True) - together * prompt * token
    # Logits in 32 bits, scaled, and as weights; where the vocabulary is sorted, with its order and the sums over it.
    logits = float(batch * model.vocabulary * (size + 12 + (28 if top_p < 1 else 0)))
    parts = {
        "weights": float(model.weights * size),
        "other models": others,
        "cache": float(batch * token * (2 * prompt + tokens + SPARE)),
    }
    return Moment("answering", parts | ({"activations": reading} if reading > logits else {"logits": logits}))


def weighing(model: Footprint, dtype: str, batch: int, prompt: int, tokens: int, *, others: float = 0.0) -> Moment:
    """The local engine while it finds how likely whole responses are: logits for each of their tokens.

    The arguments are those of `answering`; a response is a row of the batch.
    """
    size = SIZES[dtype]
    together = min(batch * tokens, max(tokens, MOST_LOGITS // model.vocabulary))
    parts = {
        "weights": float(model.weights * size),
        "other models": others,
        # Of prompts that are read once, and of these with the responses, row by row.
        "cache": float(batch * model.cache(size) * (2 * prompt + tokens)),
        # As they are, in 32 bits if they are not, and as logarithms.
        "logits": float(together * model.vocabulary * (size + (8 if size < 4 else 4))),
    }
    return Moment("weighing whole responses", parts)


def loading(model: Footprint) -> Moment:
    """On a CPU: a file in 16 bits is in memory as well while weights in 32 bits are made of it."""
    return Moment("loading", {"weights": 4.0 * model.weights, "other models": 2.0 * model.weights})


def beside_gpu(model: Footprint, dtype: str) -> float:
    """Bytes of the computer's own memory while weights are loaded for a GPU, from a file in 16 bits."""
    return loading(model).total if dtype == "float32" else float(SIZES[dtype] * model.weights)


def scoring(model: Footprint, length: int, *, autocast: bool = False) -> Moment:
    """A reward model, which is always in 32 bits, on replies of so many tokens with their prompts."""
    reading = _scoring(model, length, "float32", autocast=autocast)
    return Moment("scoring replies", {"weights": 4.0 * model.scorer_weights, "activations": reading})


def _scoring(model: Footprint, length: int, dtype: str, *, autocast: bool) -> float:
    return model.reading(Pass(SCORED_TOGETHER, length, dtype, autocast))


# --- A model that is trained ---


class TrainingGroup(NamedTuple):
    """Processes that train together, a GPU for each."""

    processes: int = 1
    shards: Literal["fsdp2", "zero3"] | None = None
    """Who gives each of them a part of weights, gradients and optimizer state; None where each holds all."""


ALONE: Final = TrainingGroup()


class Training(NamedTuple):
    """What is trained of a model, and in which number formats."""

    model: Footprint
    settings: NetworkSettings
    gpu: bool
    """Whether it computes in bfloat16, as all trainings on a GPU do."""
    scores: bool = False
    """Whether a score takes the place of the logits."""
    group: TrainingGroup = ALONE

    @property
    def parts(self) -> int:
        """Into how many weights, gradients and optimizer state are divided."""
        return self.group.processes if self.group.shards else 1

    @property
    def dtype(self) -> str:
        """Of the weights: what is trained is in 32 bits, and so are reward models (`load_reward_model`)."""
        return "bfloat16" if self.settings.lora and self.gpu and not self.scores else "float32"

    @property
    def rank(self) -> int | None:
        """Of the adapters, if these are what is trained."""
        return self.settings.lora.rank if self.settings.lora else None

    @property
    def parameters(self) -> int:
        """Of the model without adapters."""
        return self.model.scorer_weights if self.scores else self.model.weights

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return self.parameters if self.rank is None else self.model.adapter_weights(self.rank)

    @property
    def whole(self) -> float:
        """Bytes of all weights, with those of adapters, which are in 32 bits."""
        return float(self.parameters * SIZES[self.dtype] + (4 * self.trained if self.rank is not None else 0))

    @property
    def weights(self) -> float:
        """Bytes of the weights that a process holds. DeepSpeed has what is trained in 16 bits, and again in 32."""
        return (self.whole + (2.0 * self.trained if self.group.shards == "zero3" else 0.0)) / self.parts

    @property
    def optimizer(self) -> float:
        """Bytes of the optimizer's state that a process holds."""
        return float(ADAM * self.trained) / self.parts

    @property
    def ends(self) -> int:
        """Parameters of embeddings and head, which FSDP2 puts together at the start of a pass."""
        return self.model.embeddings * (1 if self.model.tied or self.scores else 2)

    @property
    def layer(self) -> float:
        """Parameters of a layer."""
        return (self.parameters - self.ends) / self.model.layers

    def together(self, layers: int) -> float:
        """Bytes of weights that are whole in a pass, beside the parts: in 16 bits, with so many layers at a time."""
        if not self.group.shards:
            return 0.0
        if self.group.shards == "zero3":
            return 2.0 * min(self.parameters, LIVE)
        return 2.0 * (self.ends + layers * self.layer)

    def summed(self, parameters: float) -> float:
        """Bytes of so many gradients on their way to the processes that hold them: in 16 bits, and in 32 to be sent.

        DeepSpeed sends them in 16 bits, in buckets that are filled while others are sent.
        """
        if not self.group.shards:
            return 0.0
        return 4.0 * min(self.trained, BUCKET) if self.group.shards == "zero3" else 6.0 * min(self.trained, parameters)

    @property
    def copies(self) -> float:
        """Bytes of the copies in 16 bits that autocast keeps of all trained weights in 32, where gradients are off too.

        Embeddings that are not the head are not multiplied, and have none.
        """
        looked_up = 0 if self.model.tied and not self.scores else self.model.embeddings
        return 2.0 * (self.parameters - looked_up) if self.gpu and self.rank is None and self.parts == 1 else 0.0

    @property
    def computed_size(self) -> int:
        """Bytes of a number that is computed."""
        return 2 if self.gpu else SIZES[self.dtype]

    def passes(self, rows: int, length: int, *, masked: bool = True) -> Pass:
        """A pass of rows of so many tokens. What is in shards is put together in 16 bits."""
        return Pass(rows, length, self.dtype if self.parts == 1 else "bfloat16", self.gpu, masked)

    def step(
        self, work: Pass, logits: float, held: Mapping[str, float], *, accumulates: bool, buckets: float = 0.0
    ) -> Iterator[Moment]:
        """The worst moments of a step of the optimizer, from the second step on.

        Args:
            work: a pass through the model.
            logits: bytes that the head and the loss take.
            held: what is in memory all the time.
            accumulates: whether a pass finds the gradients of earlier ones.
            buckets: bytes in which all gradients go to other processes.
        """
        found = self.model.training(work, rank=self.rank, checkpointing=self.settings.gradient_checkpointing)
        gradients = float(GRADIENT * self.trained) / self.parts
        held = {**held, "weights": held["weights"] + self.together(0)}
        before = {**held, "gradients": buckets + (gradients if accumulates else 0.0)}
        layers = {
            "weights": held["weights"] - self.together(0) + self.together(2),  # the next one is fetched meanwhile
            "gradients": before["gradients"] + self.summed(self.layer),
        }
        # The embeddings' gradient comes last; it is added to what is there already, be it the head's.
        twice = self.parts == 1 and self.rank is None and (accumulates or (self.model.tied and not self.scores))
        last = buckets + gradients + GRADIENT * self.model.embeddings * twice + self.summed(self.ends)
        yield Moment("the loss", before | {"activations": found.kept, "logits": logits})
        yield Moment("the backward pass", before | layers | {"activations": found.most})
        yield Moment("the last gradients", {**held, "gradients": last})


def by_trl(training: Training, settings: TrainingSettings, *, rows_each: int) -> list[Moment]:
    """SFT, DPO (whose reference is read beforehand) or a reward model, of so many rows for each of a batch."""
    rows = settings.batch_size * rows_each
    logits = 0.0 if training.scores else fused_logits(training, rows * settings.max_length)
    held = {"weights": training.weights, "optimizer": training.optimizer}
    accumulates = settings.gradient_accumulation > 1
    work = training.passes(rows, settings.max_length)
    buckets = float(GRADIENT * training.trained) if training.group.processes > training.parts else 0.0  # PyTorch's DDP
    step = training.step(work, logits, held, accumulates=accumulates, buckets=buckets)
    moments = [*step, *_saving(training, held)]
    if training.parts > 1:
        moments.append(Moment("before it is sharded", {"weights": training.whole}))
    return moments + ([scoring(training.model, settings.max_length)] if training.scores else [])


def fused_logits(training: Training, tokens: int) -> float:
    """What TRL's head takes, which holds a tile of the logits, and gradients."""
    return training.model.head(tokens, trained=training.rank is None, autocast=training.gpu, gpu=training.gpu)


def _saving(training: Training, held: Mapping[str, float]) -> Iterator[Moment]:
    """On a CPU what was written is read again to compare; with a GPU that is not in its memory."""
    if not training.gpu:
        again = held.get("other models", 0.0) + 4.0 * training.parameters
        yield Moment("saving", {**held, "other models": again})


def saved_beside_gpu(training: Training) -> float:
    """Bytes of the computer's own memory while a trained model is saved: its weights, and what is read again.

    Embeddings that are the head are copied from the GPU twice. Loading it takes less.
    """
    again = training.model.embeddings * (training.model.tied and not training.scores)
    return float(SIZES[training.dtype] * (2 * training.parameters + again))


# --- Trainings online ---


def drawing(
    training: Training, together: Pass, tokens: int, held: Mapping[str, float], *, in_place: bool
) -> Iterator[Moment]:
    """Replies drawn by the model that is trained: its prompts are read at once, then tokens are added one by one.

    Args:
        training: of the policy.
        together: the pass that reads the prompts.
        tokens: the longest reply.
        held: what is in memory all the time.
        in_place: whether there is room for all keys and values from the start; otherwise those of a layer are copied
            to be one token longer.
    """
    model, size = training.model, 2 if together.autocast else SIZES[together.dtype]
    copies = 2.0 * training.parameters if training.parts > 1 else training.copies
    held = {**held, "weights": held["weights"] + (copies if together.autocast else 0.0)}
    cache = float(together.rows * (together.length + tokens) * model.cache(size))
    of_prompts = {"cache": cache} if in_place else {}
    reading = model.reading(together, cached=not in_place)
    yield Moment("reading prompts", {**held, **of_prompts, "activations": reading})
    cache *= 1 if in_place else 1 + 1 / model.layers
    # Of the logits there are logarithms and probabilities in 32 bits, and sums of these in 64.
    logits = together.rows * model.vocabulary * (size + 20)
    yield Moment("drawing replies", {**held, "cache": cache, "logits": float(logits)})


Judge = Callable[[float], Mapping[str, float]]
"""What a labeler in this process takes as it scores replies, in bytes by `PARTS`, from how many bytes are held, its own
weights included."""


def by_grpo(
    model: Footprint,
    settings: grpo.GrpoSettings | grpo.RlooSettings,
    *,
    gpu: bool,
    members: int,
    beside: float,
    judge: Judge | None = None,
) -> list[Moment]:
    """GRPO and RLOO: all replies of a step are drawn at once, without autocast, and trained on in passes.

    The arguments are those of `by_ppo`.
    """
    policy = Training(model, settings, gpu)
    reference = 4.0 * model.weights if policy.rank is None and settings.beta else 0.0
    rewards = 4.0 * model.scorer_weights * members
    state = float(ADAM * policy.trained)
    held = {"weights": policy.weights, "optimizer": state, "other models": reference + rewards + beside}
    work = policy.passes(settings.batch_size, settings.max_length)
    logits = fused_logits(policy, settings.batch_size * settings.max_tokens)
    accumulates = settings.gradient_accumulation > 1
    moments = [*policy.step(work, logits, held, accumulates=accumulates), *_saving(policy, held)]
    if settings.sampler == "transformers":
        prompts = policy.passes(settings.rows_per_step, settings.max_length - settings.max_tokens)
        moments += drawing(policy, prompts._replace(autocast=False), settings.max_tokens, held, in_place=False)
    moments += _judged(judge, held)
    return moments + ([_rewarding(model, settings.max_length, held, autocast=False)] if members else [])


def by_ppo(  # noqa: PLR0913 - all that it depends on
    model: Footprint,
    settings: ppo.Settings,
    *,
    gpu: bool,
    members: int,
    beside: float,
    judge: Judge | None = None,
    group: TrainingGroup = ALONE,
) -> list[Moment]:
    """PPO: `training/ppo/networks.py` says which networks there are, and `update.py` that one has gradients at a time.

    Args:
        model: the architecture of policy, reference, critic and reward models.
        settings: of the algorithm.
        gpu: whether it computes in bfloat16.
        members: reward models that are held.
        beside: bytes of what else is.
        judge: a labeler that rewards, whose weights are in `beside`.
        group: what trains; PPO shards by FSDP2 alone, and adapters not at all.
    """
    adapted = settings.lora is not None  # then one backbone is policy, reference and critic
    group = TrainingGroup(group.processes, "fsdp2" if group.shards and not adapted else None)
    policy = Training(model, settings, gpu, group=group)
    critic = policy if adapted else Training(model, settings, gpu, scores=True, group=group)
    others = 4.0 * (critic.trained if adapted else model.weights + critic.parameters)
    others = (others + 4.0 * model.scorer_weights * members) / policy.parts + beside
    held = {"weights": policy.weights, "optimizer": policy.optimizer + critic.optimizer, "other models": others}
    moments: list[Moment] = []
    if settings.sampler == "transformers":
        prompts = policy.passes(settings.sampling_batch_size, settings.max_prompt_tokens)
        moments += drawing(policy, prompts, settings.max_tokens, held, in_place=True)
    moments += _judged(judge, held)
    length = settings.max_prompt_tokens + settings.max_tokens
    if members:  # under the autocast in which policy and critic have read the replies
        copied = {**held, "weights": policy.weights + policy.copies + critic.copies + critic.together(2)}
        moments.append(_rewarding(model, length, copied, autocast=gpu, dtype=policy.passes(1, length).dtype))
    # Rows are padded on the right, where nothing attends to the padding.
    work = policy.passes(settings.batch_size, length, masked=False)
    accumulates = settings.gradient_accumulation > 1
    logits = ppo_logits(policy, settings.batch_size * settings.max_tokens)
    for who, training, of_head in (("policy", policy, logits), ("critic", critic, 0.0)):
        for moment in training.step(work, of_head, held, accumulates=accumulates):
            moments.append(Moment(f"{moment.what} of the {who}", moment.parts))
    # Adapters are merged into a copy; on a CPU what was written is read again.
    copies = policy.weights * adapted + (0.0 if gpu else 4.0 * model.weights)
    return [*moments, Moment("saving", {**held, "other models": others + copies})]


def _judged(judge: Judge | None, held: Mapping[str, float]) -> Iterator[Moment]:
    """A labeler that scores replies, beside all else that is held."""
    if judge:
        yield Moment("the labeler scores replies", {**held, **judge(sum(held.values()))})


def _rewarding(
    model: Footprint, length: int, held: Mapping[str, float], *, autocast: bool, dtype: str = "float32"
) -> Moment:
    """Reward models that score replies beside all else that is held, themselves included."""
    return Moment("scoring replies", {**held, "activations": _scoring(model, length, dtype, autocast=autocast)})


def ppo_logits(policy: Training, tokens: int) -> float:
    """What the head takes in PPO: the logits of the replies' tokens, over which their gradient is written.

    Chunks of them are in 32 bits, three at a time. A head that is trained has a gradient.
    """
    model, size = policy.model, policy.computed_size
    chunk = min(GPU_CHUNK if policy.gpu else CHUNK, tokens * model.vocabulary)
    gradient = 0 if policy.rank is not None else model.embeddings * (GRADIENT + (size if policy.gpu else 0))
    return float(tokens * model.vocabulary * size + 12 * chunk + tokens * model.hidden * (size + 4) + gradient)
