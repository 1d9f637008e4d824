"""Two steps of online SFT with group filtering on two processes, of which the second has nothing to replace at first.

torchrun ... filter_worker.py OUTPUT.json MODEL_FOLDER: each rank writes OUTPUT.json.<rank>.
"""

import json
import sys
from pathlib import Path

from datasets import Dataset
from exact_on_cpu import EXACT_ON_CPU
from modes_worker import whole_parameters
from transformers import AutoModelForCausalLM, AutoTokenizer

from online_sft import OnlineSFTConfig, OnlineSFTTrainer

NUM_PROMPTS, NUM_GENERATIONS = 40, 4
# rows of the first batch: two prompts for each rank
DATA = Dataset.from_list(
    [{"prompt": f"{i} + 1 =", "useful": i > 1 and (i < 4 or i % 3 > 0)} for i in range(NUM_PROMPTS)]
)


def train(folder: str) -> dict:
    sampled, used = [], []

    def reward(completion_ids, prompts, useful, **columns):
        sampled.append(len(prompts))
        pairs = zip(completion_ids, useful, strict=True)
        return [(sum(ids) + i) % 7 if ok else 1.0 for i, (ids, ok) in enumerate(pairs)]

    args = OnlineSFTConfig(
        **EXACT_ON_CPU,
        max_steps=2,
        per_device_train_batch_size=8,
        num_generations=NUM_GENERATIONS,
        max_completion_length=4,
        shuffle_dataset=False,
        filter_groups_enable=True,
        max_filter_retries=10,
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    trainer = OnlineSFTTrainer(model, reward, args, DATA, processing_class=tokenizer)
    compute_loss = trainer._compute_loss

    def recorded(model, inputs):
        used.append(tokenizer.batch_decode(inputs["prompt_ids"], skip_special_tokens=True))
        assert not inputs["advantages"].isnan().any()
        return compute_loss(model, inputs)

    trainer._compute_loss = recorded
    trainer.train()
    return {
        "world_size": trainer.accelerator.num_processes,
        "wrapper": type(trainer.model_wrapped).__name__,
        "rank": trainer.accelerator.process_index,
        "sampled": sampled,
        "used": used,
        "log": [entry for entry in trainer.state.log_history if "groups/kept" in entry],
        "parameters": whole_parameters(trainer).double().tolist()[::97],
    }


if __name__ == "__main__":
    output, folder = sys.argv[1:]
    result = train(folder)
    Path(f"{output}.{result['rank']}").write_text(json.dumps(result))
