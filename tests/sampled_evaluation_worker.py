"""Evaluates a model by sampling and writes each process's metrics; `torchrun` starts it on two processes.

python sampled_evaluation_worker.py OUTPUT.json MODEL_FOLDER
"""

import json
import random
import sys
from pathlib import Path

from accelerate.utils import gather_object
from datasets import Dataset
from exact_on_cpu import EXACT_ON_CPU
from transformers import AutoModelForCausalLM, AutoTokenizer

from online_sft import SampledEvaluationCallback, WeightedSFTConfig, WeightedSFTTrainer


def moody(completion_ids, completions, **columns):
    """A grader that draws random numbers, as some do: they must not depend on what its process graded before."""
    return [1.0 if sum(ids) % 3 == 0 and random.random() < 0.7 else 0.0 for ids in completion_ids]


def metrics(folder: str) -> dict[str, float]:
    """Of 5 prompts with 4 samples each in 3 batches, which two processes cannot share evenly; within an evaluation."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [{"prompt": f"{a} + {7 * a} =", "completion": "3", "advantages": 1.0} for a in range(5)]
    data = Dataset.from_list(rows)
    args = WeightedSFTConfig(**EXACT_ON_CPU)
    trainer = WeightedSFTTrainer(model, args, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
    settings = {"ks": (1, 4), "num_generations": 4, "max_completion_length": 6, "batch_size": 7}
    trainer.add_callback(SampledEvaluationCallback(trainer, data.select_columns("prompt"), moody, **settings))
    found = trainer.evaluate()
    return {name: found[name] for name in found if "@" in name or name == "eval_unscorable"}


if __name__ == "__main__":
    output, folder = sys.argv[1:]
    everywhere = gather_object([metrics(folder)])
    from accelerate import PartialState

    if PartialState().is_main_process:
        Path(output).write_text(json.dumps(everywhere))
