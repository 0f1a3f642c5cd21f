"""What libraries show and send of their own while a model is trained, turned off."""

import warnings
from contextlib import suppress


def quiet_libraries() -> None:
    """Turn off libraries' bars, which would hide our progress lines, and their telemetry."""
    import transformers
    from huggingface_hub import constants

    with suppress(ModuleNotFoundError):  # PPO needs no datasets
        import datasets  # type: ignore[import-untyped]

        datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    constants.HF_HUB_DISABLE_TELEMETRY = True
    # TRL's advice is to take kernels from a model hub in Liger's place.
    warnings.filterwarnings("ignore", "`use_liger_kernel=True` is deprecated", FutureWarning)
