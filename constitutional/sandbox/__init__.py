"""The CPU test-bed: a synthetic world whose truth is known, and a small model that plays every part in it.

The files in the order in which the data flows: `topics` are what prompts are about, `world` composes prompts and
responses, `prompts` draws a run's prompts, `principles` words what is asked of them, `teacher` writes what a perfect
critic, reviser and labeler would say, `detect` measures replies, `understand` asks the model what a principle means.
`model/` holds the shipped model; `scripts/sandbox_training` trains it.
"""

from pathlib import Path

from constitutional.base.shipped import MODEL_FOLDER as MODEL_FOLDER

TEXT_FOLDER = Path(__file__).parent / "text"
