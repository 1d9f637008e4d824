"""Trains, saves, and writes what the policy says next: its likeliest token, as text, and the log-prob.

python vllm_saving_worker.py KIND FOLDER PROMPT
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `recipes`, which is not installed


def main(kind, folder, prompt):
    import torch
    from resume_tools import trainer_of

    trainer = trainer_of(kind, f"{folder}/run", max_steps=3)
    trainer.train()
    save = trainer.save_merged_model if "lora" in kind else trainer.save_model
    save(f"{folder}/saved")
    tokenizer = trainer.processing_class
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        log_probs = trainer.model.eval()(input_ids=ids).logits[0, -1].log_softmax(-1)
    found = {"text": tokenizer.decode(log_probs.argmax().item()), "log_prob": log_probs.max().item()}
    Path(folder, "said.json").write_text(json.dumps({**found, "prompt_ids": ids[0].tolist()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
