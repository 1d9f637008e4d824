"""A synthetic environment: posts groups whose advantages have known shapes, to try out a trainer."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import AutoTokenizer

from online_sft.atropos.client import direct_session
from online_sft.patterns import PATTERNS, pattern_dataset

__all__ = ["WeightedSFTEnvironment"]

_PAUSE_S = 0.5


class WeightedSFTEnvironment:
    """Posts valid groups of random tokens to a running API of Atropos, with advantages of `online_sft.patterns`.

        environment = WeightedSFTEnvironment("Qwen/Qwen2.5-1.5B-Instruct", advantage_patterns=["increasing"])
        asyncio.run(environment.run_environment(num_samples=1000, delay=0.1))

    Args:
        tokenizer_name: a hub id or a folder; ids are drawn from its vocabulary.
        advantage_patterns: keys of `PATTERNS`, one sequence after the other. Default: all.
        api_url: of Atropos.
        group_size: sequences of a group; the trainer's batch size must be a multiple of it.
        max_token_length: of a sequence, in tokens.
        seed: equal seeds post equal groups.

    Raises:
        ValueError: for a pattern that does not exist.
    """

    def __init__(
        self,
        tokenizer_name: str,
        advantage_patterns: Sequence[str] = tuple(PATTERNS),
        *,
        api_url: str = "http://127.0.0.1:8000",
        group_size: int = 4,
        max_token_length: int = 64,
        seed: int = 0,
    ) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
        self._patterns, self._api_url = list(advantage_patterns), api_url.rstrip("/")
        self._group_size, self._max_token_length, self._seed = group_size, max_token_length, seed
        next(self.groups(1))

    def groups(self, num_samples: int) -> Iterator[dict[str, Any]]:
        """Groups with that many sequences in all, rounded up to whole groups; their scores are the mean advantages."""
        num_groups = -(-num_samples // self._group_size)
        rows = iter(
            pattern_dataset(
                len(self._tokenizer),
                patterns=self._patterns,
                num_rows=num_groups * self._group_size,
                lengths=(min(8, self._max_token_length - 1), self._max_token_length - 1),
                seed=self._seed,
            )
        )
        for _ in range(num_groups):
            group = list(itertools.islice(rows, self._group_size))
            yield {
                "tokens": [row["input_ids"] for row in group],
                "masks": [
                    [
                        token if is_loss else -100
                        for token, is_loss in zip(row["input_ids"], row["loss_mask"], strict=True)
                    ]
                    for row in group
                ],
                "scores": [sum(row["advantages"]) / sum(row["loss_mask"]) for row in group],
                "advantages": [row["advantages"] for row in group],
            }

    async def run_environment(self, num_samples: int = 1000, delay: float = 0.0) -> None:
        """Waits for the trainer, registers, and posts groups with `num_samples` sequences in all.

        Args:
            num_samples: rounded up to whole groups.
            delay: seconds between two groups.

        Raises:
            requests.RequestException: when the API refuses a group, or goes away.
        """
        env_id = await self._register()
        try:
            for group in self.groups(num_samples):
                await self._post("/scored_data", {**group, "env_id": env_id})
                await asyncio.sleep(delay)
        finally:
            await self._post("/disconnect-env", {"env_id": env_id})

    async def _register(self) -> int:
        about = {
            "max_token_length": self._max_token_length,
            "desired_name": "weighted_sft",
            "weight": 1.0,
            "group_size": self._group_size,
        }
        while (answer := await self._post("/register-env", about))["status"] != "success":
            await asyncio.sleep(_PAUSE_S)  # until the trainer has asked for its first batch
        return answer["env_id"]

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with direct_session() as session:
            answer = await asyncio.to_thread(session.post, self._api_url + path, json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()
