"""Draws PPO's replies with vLLM, in the process of the training, whose weights it takes over before every phase."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constitutional.base.errors import ConfigurationError
from constitutional.engines.base import Sampling
from constitutional.engines.chat import load_tokenizer
from constitutional.engines.settings import VllmSettings
from constitutional.engines.vllm import engine_arguments, reply_ends, vllm_version
from constitutional.engines.vllm_child import VllmCore, Work, take_over
from constitutional.training.ppo.rollout import Response

if TYPE_CHECKING:
    import torch


class VllmSampler:
    """Draws with vLLM, which starts at the first phase.

    Args:
        folder: the model that the training starts from, whose architecture and vocabulary the policy has.
        settings: how much memory vLLM takes, its number format, and how long a prompt with its reply may be.

    Raises:
        ConfigurationError: vLLM is not installed, or several processes train together.
    """

    def __init__(self, folder: Path, settings: VllmSettings) -> None:
        import torch

        vllm_version()
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise ConfigurationError(
                "several processes train the policy, and vLLM draws for one only; start one process, or type "
                "algorithm.sampler=transformers"
            )
        self.folder = folder
        self.ends = frozenset(reply_ends(folder, load_tokenizer(folder)))
        self.version = -1
        self._settings = settings
        self._core: VllmCore | None = None

    def sync(self, policy: Any, phase: int) -> None:  # noqa: ANN401 - a model of transformers, or PEFT's wrapper of one
        """Take over the policy's weights; adapters are merged into what vLLM is given, and not in the policy."""
        import torch

        with torch.no_grad():
            take_over(self._started().engine, merged_weights(policy))
        self.version = phase

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
    ) -> Iterator[tuple[int, Response]]:
        """One reply for each prompt, as it comes, behind the prompt's place."""
        core, ends = self._started(), tuple(sorted(self.ends))
        for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            core.add(str(row), Work(list(prompt), sampling, seed, ends, drawn=True))
        while core.busy:
            for key, result in core.step():
                ids = list(result.ids)
                yield int(key), Response(ids, list(result.logprobs), ids[-1] in self.ends, self.version)

    def close(self) -> None:
        """End vLLM."""
        if self._core is not None:
            self._core.close()
            self._core = None

    def _started(self) -> VllmCore:
        import torch

        if self._core is None:
            # Log-probabilities at the sampling temperature.
            arguments = engine_arguments(self.folder, self._settings) | {"logprobs_mode": "processed_logprobs"}
            set_threads = torch.set_num_threads  # vLLM turns it off on a CPU
            with torch.random.fork_rng():  # vLLM sets the seed of the whole process
                self._core = VllmCore(arguments)
            torch.set_num_threads = set_threads
        return self._core


def merged_weights(policy: Any) -> "Iterator[tuple[str, torch.Tensor]]":  # noqa: ANN401 - as above
    """The weights of the policy by the names that they have without adapters, with what active adapters add to them."""
    base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    layers = {name: module for name, module in base.named_modules() if hasattr(module, "get_delta_weight")}
    for name, weight in base.named_parameters():
        owner, inside, own = name.partition(".base_layer.")
        if inside:
            added = layers[owner].active_adapters if own == "weight" else []
            deltas = [layers[owner].get_delta_weight(adapter).to(weight.dtype) for adapter in added]
            yield f"{owner}.{own}", sum(deltas, weight.detach())
        elif not any(name.startswith(f"{layer}.") for layer in layers):
            yield name, weight.detach()
