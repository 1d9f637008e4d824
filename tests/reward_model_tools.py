"""A small reward model, trained by TRL's RewardTrainer, and the slow, obvious way to score one row."""

import random

import torch
from datasets import Dataset
from exact_on_cpu import EXACT_ON_CPU
from transformers import Qwen2Config, Qwen2ForSequenceClassification
from trl import RewardConfig, RewardTrainer

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ ' + ' if m.role == 'user' else ' =' }}{{ m.content + eos_token }}{% endfor %}"
)


def build_classifier(tokenizer, *, num_labels=1, seed=0, **options):
    """Random weights, with a head large enough for scores of about one."""
    config = Qwen2Config(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128,
            "initializer_range": 0.1,
            "num_labels": num_labels,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            **options,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.mul_(10.0)
    return model.eval()


def pairs_of_sevens(num_pairs, seed):
    """Prompt, a completion with a 7 in it, and one of the same length without."""
    draw = random.Random(seed)
    rows = []
    for _ in range(num_pairs):
        rejected = [draw.choice("012345689") for _ in range(draw.randint(1, 6))]
        chosen = [draw.choice("012345689") for _ in rejected]
        chosen[draw.randrange(len(chosen))] = "7"
        prompt = f"{draw.randint(0, 99)} + {draw.randint(0, 9)} ="
        rows.append({"prompt": prompt, "chosen": "".join(chosen), "rejected": "".join(rejected)})
    return rows


def as_chat(row):
    """The same row as messages."""
    chat = {"prompt": [{"role": "user", "content": row["prompt"]}]}
    return chat | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}


def reward_trainer(model, tokenizer, rows, folder, max_steps=1):
    """TRL's, which tokenises the pairs and knows where the score is read."""
    limits = {"max_steps": max_steps, "per_device_train_batch_size": 32, "learning_rate": 3e-3}
    args = RewardConfig(**{**EXACT_ON_CPU, "output_dir": str(folder)}, **limits)
    return RewardTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def logits_of(model, ids, position=-1):
    """[num_labels]: the head at one position of one unpadded row, as float64 would round it to float32."""
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, position]
        return (model.score.weight @ hidden).float()
