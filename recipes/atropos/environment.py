"""An Atropos environment: sums of two digits, with an advantage of its own for each token.

python -m recipes.atropos.environment serve --env.rollout_server_url http://127.0.0.1:8000

Samples from `online-sft serve` (recipes/atropos/README.md), nothing is downloaded. Options: `serve --help`.
"""

import random
from dataclasses import dataclass
from typing import Any

import aiohttp
from atroposlib.envs.base import APIServerConfig, BaseEnv, BaseEnvConfig, ScoredDataGroup

__all__ = ["ArithmeticEnv", "Sum"]

MODEL, SERVER = "runs/atropos/model", "http://127.0.0.1:9001"


@dataclass(frozen=True)
class Sum:
    """What is asked, and the right answer."""

    a: int
    b: int

    @property
    def prompt(self) -> str:
        return f"{self.a} + {self.b} ="

    @property
    def answer(self) -> str:
        return str(self.a + self.b)


class ArithmeticEnv(BaseEnv):
    """A sample is right if it is the sum and then ends; its tokens are judged one by one.

    The advantage of token t is its reward less the mean reward of the group's tokens at the same place: 1 for the right
    digit, and 1 for ending right after one digit.
    """

    name = "arithmetic"

    @classmethod
    def config_init(cls) -> tuple[BaseEnvConfig, list[APIServerConfig]]:
        env = BaseEnvConfig(
            tokenizer_name=MODEL,
            group_size=8,
            max_token_length=32,
            max_batches_offpolicy=1,
            ensure_scores_are_not_same=False,  # or the mean score would leave out what is learnt already
            total_steps=-1,  # as many as the trainer makes
            steps_per_eval=0,
            use_wandb=False,
            wandb_name=cls.name,  # Atropos registers the environment under it
            include_messages=False,
        )
        # a list: with anything else Atropos starts servers of its own
        server = APIServerConfig(
            model_name=MODEL, tokenizer_name=MODEL, base_url=f"{SERVER}/v1", api_key="none", server_type="vllm"
        )
        return env, [server]

    async def setup(self) -> None:
        self.random = random.Random(0)

    async def get_next_item(self) -> Sum:
        return Sum(self.random.randrange(5), self.random.randrange(5))

    async def collect_trajectories(self, item: Sum) -> tuple[ScoredDataGroup, list]:
        policy_version = await self.policy_version()
        async with self.server.managed_server(tokenizer=self.tokenizer) as server:
            await server.completion(
                prompt=item.prompt, n=self.config.group_size, max_tokens=4, temperature=1.0, top_p=1.0
            )
            nodes = server.get_state()["nodes"]
        completions = [[token for token in node.masked_tokens if token != -100] for node in nodes]
        rewards = [self.token_rewards(tokens, item) for tokens in completions]
        advantages = self.token_advantages(rewards)
        group = ScoredDataGroup(
            tokens=[node.tokens for node in nodes],
            masks=[node.masked_tokens for node in nodes],
            scores=[float(each[:2] == [1.0, 1.0]) for each in rewards],
            advantages=[
                [0.0] * (len(node.tokens) - len(of_tokens)) + of_tokens
                for node, of_tokens in zip(nodes, advantages, strict=True)
            ],
            inference_logprobs=[node.logprobs for node in nodes],
            generation_params={"temperature": 1.0, "policy_version": policy_version},
        )
        return group, []

    def token_rewards(self, tokens: list[int], item: Sum) -> list[float]:
        """Of each token of a completion: 1 or 0."""
        digit, end = self.tokenizer.convert_tokens_to_ids(item.answer), self.tokenizer.eos_token_id
        return [float(token == (digit if place == 0 else end)) for place, token in enumerate(tokens)]

    def token_advantages(self, rewards: list[list[float]]) -> list[list[float]]:
        """Of each token: its reward less the mean at its place."""
        longest = max(map(len, rewards))
        at_place = [[row[place] for row in rewards if len(row) > place] for place in range(longest)]
        means = [sum(column) / len(column) for column in at_place]
        return [[reward - means[place] for place, reward in enumerate(row)] for row in rewards]

    async def policy_version(self) -> int:
        """The optimizer steps of the weights that sample next; a batch's staleness is counted from it."""
        url = self.server.servers[0].config.base_url.removesuffix("/v1")
        async with aiohttp.ClientSession() as session, session.get(f"{url}/health") as response:
            return (await response.json())["policy_version"]

    async def evaluate(self, *args: Any, **kwargs: Any) -> None:
        """The trainer logs the mean score of what it trains on."""


if __name__ == "__main__":
    ArithmeticEnv.cli()
