"""Several responses to each prompt, compared in pairs (Bai et al. 2022, section 4.1; Ouyang et al. 2022, section 3.5).

Bai et al. draw two responses from the SL model and compare them; Ouyang et al. draw K and compare all K(K−1)/2 pairs.
Either is a setting. What differs: equal responses are one, so no response is ever compared with itself, and one that
was cut off is left out, because a reward model cannot see that its end is missing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import combinations
from typing import Final, Literal, NamedTuple

from pydantic import Field

from constitutional.base.frozen import Frozen
from constitutional.base.records import Comparison, Prompt
from constitutional.base.seeds import rng_of, seed_of
from constitutional.base.shards import column_of
from constitutional.base.text import shortened
from constitutional.engines.base import Engine, Request, Sampling, without_thinking
from constitutional.engines.stories import ask_all, side_by_side
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import SamplePairsSummary

OFTEN: Final = 0.25
"""The share of responses that are cut off from which a run says so."""
COUNTED: Final = ("failed", "empty", "cut_off", "unspoken", "shortened", "repeated")
"""What is counted of all `Samples`."""


class Settings(Frozen):
    """How responses are drawn and paired."""

    samples: int = Field(default=2, ge=2, le=64)
    """Responses drawn for each prompt."""
    pairs_per_prompt: int | None = Field(default=None, ge=1)
    """How many pairs of them are kept, drawn at random; null keeps all."""
    temperature: float | None = Field(default=None, gt=0)
    """Greedy responses would all be the same, so it cannot be 0. In a run, null takes what the generation_config.json
    of the model that is trained recommends; where it recommends nothing, and elsewhere, 1."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Tokens are drawn from the most likely ones that together have this probability; null as for the temperature."""
    max_tokens: int = Field(default=256, ge=1)
    """Length in tokens at which a response is cut off."""
    cut_off: Literal["leave_out", "shorten"] = "leave_out"
    """What becomes of a response that was cut off: it is left out, or ends with its last whole sentence."""


class Samples(NamedTuple):
    """The responses to a prompt that can be compared."""

    prompt: Prompt
    texts: tuple[str, ...]
    """Different from each other, whatever the space around them."""
    failed: int
    """Responses that the model could not give."""
    empty: int
    """Responses that were left out because they say nothing."""
    cut_off: int
    """Responses that were left out because they reached `max_tokens`."""
    unspoken: int
    """Of these, those that were cut off in the thoughts before them."""
    shortened: int
    """Responses that reached it, and end with their last whole sentence."""
    repeated: int
    """Responses that were left out because another one says the same."""


async def sample(prompt: Prompt, engine: Engine, settings: Settings, seed: int) -> Samples:
    """The responses to a prompt, without those that cannot be compared."""
    sampling = Sampling.of(settings.temperature, settings.top_p, settings.max_tokens)
    # A seed of the response's own, so that other prompts may come and go.
    seeds = [seed_of(seed, "sample_pairs", prompt.id, index) for index in range(settings.samples)]
    replies = await ask_all(engine, [Request(prompt.messages, sampling, own) for own in seeds])
    answered = [reply for reply in replies if not reply.failed]
    whole = [reply.text for reply in answered if reply.finish != "length"]
    saying = [text for text in whole if text.strip()]
    cut_off = [reply.text for reply in answered if reply.finish == "length"]
    kept = list(filter(None, map(shortened, cut_off))) if settings.cut_off == "shorten" else []
    texts: dict[str, str] = {}
    for text in (*saying, *kept):
        texts.setdefault(text.strip(), text)
    return Samples(
        prompt,
        tuple(texts.values()),
        failed=len(replies) - len(answered),
        empty=len(whole) - len(saying),
        cut_off=len(cut_off) - len(kept),
        unspoken=sum(reply.unspoken for reply in answered),
        shortened=len(kept),
        repeated=len(saying) + len(kept) - len(texts),
    )


def pairs(samples: Samples, model: str, settings: Settings, seed: int) -> list[Comparison]:
    """All pairs of the responses, or as many drawn from them as are wanted, in the order of the responses."""
    every = list(combinations(samples.texts, 2))
    if settings.pairs_per_prompt is not None and settings.pairs_per_prompt < len(every):
        rng = rng_of(seed, "sample_pairs", samples.prompt.id)
        every = [every[index] for index in sorted(rng.sample(range(len(every)), settings.pairs_per_prompt))]
    return [Comparison(prompt=samples.prompt, a=a, b=b, model=model) for a, b in every]


def run(settings: Settings, context: StageContext) -> None:
    """Prompts for training become comparisons of the SL model's responses, which are written as they come."""
    engine, prompts, counts = context.engine("sft_model"), context.stream("prompts", Prompt), Counter[str]()

    def paired(drawn: Iterable[Samples]) -> Iterator[Comparison]:
        for samples in drawn:
            made = pairs(samples, engine.weights, settings, context.seed)
            counts.update({name: getattr(samples, name) for name in COUNTED}, without_pair=not made)
            yield from made

    total = sum(split == "train" for split in column_of(prompts, "split"))
    stories = (sample(prompt, engine, settings, context.seed) for prompt in prompts if prompt.split == "train")
    with context.task("sample pairs", total) as task, closing(side_by_side(stories, ended=task.update)) as drawn:
        comparisons = context.write("comparisons", paired(drawn))
    cut_off, shortened, repeated = (counts[name] for name in ("cut_off", "shortened", "repeated"))
    asked = total * settings.samples
    context.summarise(
        SamplePairsSummary(
            prompts=total,
            comparisons=comparisons,
            prompts_without_pair=counts["without_pair"],
            failed_responses=counts["failed"],
            empty_responses=counts["empty"],
            cut_off_responses=cut_off,
            shortened_responses=shortened,
            repeated_responses=repeated,
        )
    )
    remedy = f"type sample_pairs.max_tokens={2 * settings.max_tokens}"
    if cut_off > OFTEN * asked:
        other = "sample_pairs.cut_off=shorten to keep their whole sentences"
        if unspoken := counts["unspoken"]:
            other += f". The model still thought in {unspoken} of these: type more, or {without_thinking()}"
        context.warn(
            f"{cut_off} of {asked} responses were cut off at {settings.max_tokens} tokens and left out; {remedy}, or "
            f"{other}"
        )
    if shortened > OFTEN * asked:
        context.warn(
            f"{shortened} of {asked} responses were cut off at {settings.max_tokens} tokens, and end with their last "
            f"whole sentence; for longer ones {remedy}"
        )
    if repeated > asked / 2:
        temperature = 1.0 if settings.temperature is None else settings.temperature
        context.warn(
            f"{repeated} of {asked} responses say what another one to the same prompt says, so that nothing is to be "
            f"compared; raise sample_pairs.temperature, which is {temperature:g}"
        )
