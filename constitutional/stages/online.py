"""What the online algorithms (PPO, GRPO and RLOO) share: what they leave where there is nothing to learn."""

from constitutional.stages.context import StageContext
from constitutional.stages.summaries import OnlineSummary
from constitutional.training.saving import copy_model


def nothing_learned(context: StageContext) -> None:
    """Leave the SFT model as the policy: no comparison was decided, so no reward model says what a reply is worth."""
    context.warn("there is no reward model, as no comparison was decided: the policy is the SFT model")
    copy_model(context.model("sft_model"), context.output("policy"))
    context.write("rollouts", ())
    context.summarise(OnlineSummary(prompts=0, replies=0, steps=0, dropped={}))
