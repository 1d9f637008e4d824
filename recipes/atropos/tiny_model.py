"""The policy to start from: a Qwen2 of 0.4 M parameters that answers sums with one digit, right in one of four cases.

python -m recipes.atropos.tiny_model [runs/atropos/model]
"""

import argparse
import random
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from online_sft.losses import weighted_nll_from_logits
from recipes.quickstart.tiny_model import build_model, build_tokenizer

__all__ = ["save_tiny_model"]

SHARE_RIGHT, STEPS, DEMONSTRATIONS_PER_STEP = 0.3, 150, 64


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.atropos.tiny_model", description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs/atropos/model"), help="(default: %(default)s)"
    )
    save_tiny_model(parser.parse_args(arguments).folder)


def save_tiny_model(folder: Path, seed: int = 0) -> None:
    """Imitates demonstrations of which most are wrong, and saves the model with its tokenizer."""
    tokenizer = build_tokenizer([" + ", " ="])
    model = build_model(tokenizer, seed=seed)
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(STEPS):
        tokens = torch.stack([_demonstration(tokenizer, rng) for _ in range(DEMONSTRATIONS_PER_STEP)])
        labels = tokens.clone()
        labels[:, :-2] = -100
        weights = torch.ones_like(tokens, dtype=torch.float32)
        loss = weighted_nll_from_logits(model(tokens).logits, labels, weights, denominator=2 * len(tokens))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _demonstration(tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> torch.Tensor:
    a, b = rng.randrange(5), rng.randrange(5)
    answer = a + b if rng.random() < SHARE_RIGHT else rng.randrange(9)
    return torch.tensor(tokenizer(f"{a} + {b} ={answer}")["input_ids"] + [tokenizer.eos_token_id])


if __name__ == "__main__":
    main()
