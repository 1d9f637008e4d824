"""The model in training generates, on each process other lengths: online SFT, and trajectories that it collects.

accelerate launch --config_file recipes/accelerate/MODE.yaml ... generation_worker.py FOLDER MODE

Each process writes FOLDER/MODE/generated.<rank>.json: of each trainer its log, and the lengths that it sampled.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `recipes`, which is not installed

from collection_tools import Dice
from datasets import Dataset
from distributed_worker import arguments
from modes_worker import assert_mode
from peft import LoraConfig
from transformers import AutoTokenizer, set_seed

from online_sft import OnlineSFTConfig, OnlineSFTTrainer, TrajectorySFTConfig, TrajectorySFTTrainer

KINDS = [f"{trainer} {size}" for trainer in ("online", "trajectories") for size in ("full", "lora")]
# tokens: while one process still generates, the other has done so
LONGEST = {"0": 12, "1": 3}


def online(folder, lengths, *, peft_config, **own):
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/model")

    def reward(completion_ids, **columns):
        lengths.extend(map(len, completion_ids))
        return [float(len(ids)) for ids in completion_ids]

    args = OnlineSFTConfig(**own, num_generations=2, beta=0.1, max_completion_length=LONGEST[os.environ["RANK"]])
    data = Dataset.from_list([{"prompt": f"{a} + {b} ="} for a in range(6) for b in range(2)])
    return OnlineSFTTrainer(f"{folder}/model", reward, args, data, processing_class=tokenizer, peft_config=peft_config)


def trajectories(folder, lengths, *, peft_config, **own):
    """Episodes of one to three turns, of which each process has others."""

    class Measured(Dice):
        def step(self, action):
            lengths.append(len(action))
            return super().step(action)

    sizes = {
        "collect_episodes": 3,
        "num_environments": 2,
        "max_completion_length": LONGEST[os.environ["RANK"]],
        "max_length": 200,
    }
    return TrajectorySFTTrainer(
        f"{folder}/chat_model",
        TrajectorySFTConfig(**own, **sizes),
        processing_class=AutoTokenizer.from_pretrained(f"{folder}/chat_model"),
        environments=[Measured],
        peft_config=peft_config,
    )


def main(folder, mode):
    found = {}
    for kind in KINDS:
        name, size = kind.split()
        own = {**arguments(2), "max_steps": 2, "output_dir": f"{folder}/{mode}/generated/{kind}"}
        lora = LoraConfig(r=4, target_modules="all-linear") if size == "lora" else None
        lengths = []
        set_seed(0)
        trainer = {"online": online, "trajectories": trajectories}[name](folder, lengths, peft_config=lora, **own)
        trainer.train()
        assert_mode(trainer, mode)
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        found[kind] = {"log": log, "lengths": sorted(lengths)}  # environments play at once
    Path(folder, mode, f"generated.{trainer.accelerator.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
