"""Users' reward functions: called as TRL calls reward functions, and their answers checked."""

import inspect
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from constitutional.base import user_function
from constitutional.base.errors import InputError
from constitutional.base.user_function import UserFunction
from constitutional.training.awaiting import is_async


class UserReward(UserFunction):
    """A user's reward function, whose answers are checked.

    It is `async` where the function is, as TRL allows: then a call has to be awaited.
    """

    def __call__(self, **columns: Any) -> Any:  # noqa: ANN401 - TRL's and the dataset's columns
        """The function's number for each of the `completions`; None where it has none.

        Raises:
            InputError: it returns something else.
        """
        return self._checked(self.function(**columns), len(columns["completions"]))

    def _checked(self, rewards: object, expected: int) -> list[float | None]:
        if isinstance(rewards, str) or not isinstance(rewards, Sequence):
            raise self._wrong(f"returned {rewards!r:.60}, and should return a list with a number for each completion")
        if len(rewards) != expected:
            raise self._wrong(f"returned {len(rewards)} rewards for {expected} completions; return one for each")
        return [self._number(reward) for reward in rewards]

    def check_signature(self) -> None:
        """Find out before a model is loaded whether it can be called as TRL calls reward functions.

        Raises:
            InputError: it cannot.
        """
        columns = ("prompts", "completions", "completion_ids", "prompt_id", "any_other", "trainer_state")
        try:
            inspect.signature(self.function).bind(**dict.fromkeys(columns))
        except TypeError as error:
            called = "is called with prompts=…, completions=…, completion_ids=… and more by name"
            write = f"write def {self.name}(prompts, completions, **others), which returns a number for each completion"
            raise self._wrong(f"{called}, which it does not take ({error}); {write}") from error
        except ValueError:
            return  # some functions that are written in C have no signature

    def _number(self, reward: object) -> float | None:
        if reward is None:
            return None
        if not isinstance(reward, Real) or not math.isfinite(reward):
            raise self._wrong(f"returned {reward!r:.60} as a reward; return a finite number, or None for no reward")
        return float(reward)

    def _wrong(self, problem: str) -> InputError:
        return self.wrong(f"the reward function '{self.name}' {problem}")


class AsyncUserReward(UserReward):
    """The same of an `async def`."""

    async def __call__(self, **columns: Any) -> list[float | None]:  # noqa: ANN401 - TRL's and the dataset's columns
        """As of any reward function, once it is awaited."""
        return self._checked(await self.function(**columns), len(columns["completions"]))


def load_reward(target: str) -> UserReward:
    """The reward function that a resolved target names.

    Raises:
        InputError: there is no such file, module or function, or it cannot be called as reward functions are.
        Exception: whatever the user's own code raises when it is imported.
    """
    loaded = user_function.load_function(target)
    kind = AsyncUserReward if is_async(loaded.function) else UserReward
    reward = kind(loaded.function, loaded.name, loaded.sources)
    reward.check_signature()
    return reward
