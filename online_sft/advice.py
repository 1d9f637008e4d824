"""What to do about errors of other libraries that do not say so."""

import os
import re

__all__ = ["with_advice"]

_ADVICE = {
    "doesn't support bf16/gpu": "on a machine without a GPU set --use_cpu true --bf16 false",
    r"must be divisible by num_generations": "make per_device_train_batch_size or gradient_accumulation_steps a "
    "multiple of num_generations, or lower it",
    r"invalid float value": "write a number, as 0.1 or 1e-5",
    r"invalid int value": "write a whole number, as 1000",
    r"expected (one|at least one) argument": "write its value after it",
    r"are not used by the HfArgumentParser": "every option is written as --NAME VALUE",
    r"(True|False) is not a valid \w*Strategy": "YAML reads yes and no without quotes as True and False: write 'no'",
    r"Couldn't reach .* on the Hub": "if it is meant to be a folder or a file here, check the path, which is seen from "
    "{folder}",
    r"Unable to find '": "check the path, which is seen from {folder}",
    r"No such file or directory": "check the path, which is seen from {folder}",
    r"File exists": "a folder is needed where that file is: choose another output_dir",
    r"chat_template is not set": "give texts instead of messages, or save a tokenizer with a chat_template in the "
    "model's folder (`weighted` also takes one by --chat_template_path)",
    r"Target modules .* not found": "all-linear takes every linear layer",
    r"Number of reward weights": "give one of --reward_weights for each of --reward_funcs",
    r"(is available|found) in directory|no file named": "save the model there with save_pretrained",
}


def with_advice(message: str) -> str:
    """The message, and what to do about it where that is known."""
    advice = next((advice for pattern, advice in _ADVICE.items() if re.search(pattern, message)), None)
    return message if advice is None else f"{message.rstrip('. ')}; {advice.format(folder=os.getcwd())}"
