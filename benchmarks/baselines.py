"""Which baseline learns fastest, and why: the baselines of OnlineSFTTrainer and prototypes, on tasks of several kinds.

PYTHONPATH=. python benchmarks/baselines.py [--tasks sums signed ...] [--methods ...] [--seeds 0 1] [--steps 30]
PYTHONPATH=. python benchmarks/baselines.py --compare   # samples to the target, as in sample_efficiency.py
PYTHONPATH=. python benchmarks/baselines.py --noise MODEL ...     # the noise of the gradient with each baseline

Model, problems, settings and `area` are those of `sample_efficiency.py`. Every method runs at every learning rate of
the grid, and the table shows each at its best one. Prototypes, which the package does not have:

    batch       b_i = mean of all other rewards of the step
    running     exponential mean (0.9) of the mean rewards of earlier steps
    prompt      exponential mean (0.5) of the prompt's own earlier rewards; the step's others where it has none
    filter      leave_one_out, and a group of equal rewards is not counted in the loss's denominator
    optimal     b_i = sum_j g_j r_j / sum_j g_j over the other samples of the step, g = sum_t (1 - p_t)^2: the
                constant of least variance, with the logits' gradient in the place of the weights'
    optimal running     the same from exponential sums (0.9) over the steps before
    lowest      the lowest reward of all steps before
    reuse       none, two updates a batch, the second with the exact importance weight of the whole completion
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sample_efficiency as efficiency
import torch
from sample_efficiency import Bench, Method, Run, Task, area, plain
from torch import Tensor
from transformers import AutoModelForCausalLM

from online_sft import OnlineSFTConfig, OnlineSFTTrainer
from online_sft.baselines import group_mean, leave_one_out
from online_sft.estimators import prop3_stable


def batch(rewards: Tensor) -> Tensor:
    return leave_one_out(rewards.view(1, -1)).view_as(rewards)


class Running:
    """The first step compares within the batch."""

    def __init__(self) -> None:
        self.mean: Tensor | None = None

    def __call__(self, rewards: Tensor) -> Tensor:
        values = batch(rewards) if self.mean is None else torch.full_like(rewards, float(self.mean))
        mean = rewards.mean()
        self.mean = mean if self.mean is None else 0.9 * self.mean + 0.1 * mean
        return values


class Lowest:
    def __init__(self) -> None:
        self.lowest: float | None = None

    def __call__(self, rewards: Tensor) -> Tensor:
        lowest = rewards.min().item()
        values = torch.full_like(rewards, lowest if self.lowest is None else self.lowest)
        self.lowest = lowest if self.lowest is None else min(self.lowest, lowest)
        return values


class PerPrompt:
    def __init__(self, trainer: Any) -> None:
        self.means: dict[int, float] = {}
        self.index: list[int] = []
        calculate = trainer._calculate_rewards

        def calculate_and_remember(inputs: list[dict[str, Any]], *args: Any) -> Tensor:
            self.index = [row["index"] for row in inputs]
            return calculate(inputs, *args)

        trainer._calculate_rewards = calculate_and_remember

    def __call__(self, rewards: Tensor) -> Tensor:
        size = rewards.size(1)
        values = batch(rewards)
        for row, index in enumerate(self.index[::size]):
            if index in self.means:
                values[row] = self.means[index]
            mean = rewards[row].mean().item()
            self.means[index] = 0.5 * self.means.get(index, mean) + 0.5 * mean
        return values


def filtered(rewards: Tensor) -> Tensor:
    """NaN where all rewards of a group are equal: not counted."""
    return leave_one_out(rewards).masked_fill((rewards == rewards[:, :1]).all(1, keepdim=True), torch.nan)


def optimal(rewards: Tensor, size: Tensor) -> Tensor:
    """The constant of least variance, of the other samples. [B], [B] -> [B]."""
    others = (size.sum() - size).clamp(min=1e-8)
    return ((size * rewards).sum() - size * rewards) / others


def gradient_size(log_probs: Tensor, mask: Tensor) -> Tensor:
    """sum_t (1 - p_t)^2, the sampled token's share of the squared gradient of the logits. [B, T] -> [B]."""
    return ((1 - log_probs.exp()).square() * mask).sum(-1)


class Optimal(OnlineSFTTrainer):
    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        output = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self.log_probs = output[0].detach()
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        def estimator(log_prob: Tensor, ref_log_prob: Tensor | None, rewards: Tensor, *, beta: float) -> Tensor:
            size = gradient_size(self.log_probs, inputs["completion_mask"])
            return prop3_stable(log_prob, ref_log_prob, rewards, beta=beta, baseline=optimal(rewards, size))

        self._estimator = estimator
        return super()._compute_loss(model, inputs)


class OptimalRunning(Optimal):
    """The same constant from exponential sums over earlier steps: needs no large batch."""

    sums: Tensor | None = None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        def estimator(log_prob: Tensor, ref_log_prob: Tensor | None, rewards: Tensor, *, beta: float) -> Tensor:
            size = gradient_size(self.log_probs, inputs["completion_mask"])
            baseline = optimal(rewards, size) if self.sums is None else self.sums[0] / self.sums[1]
            new = torch.stack([(size * rewards).sum(), size.sum()])
            self.sums = new if self.sums is None else 0.9 * self.sums + new
            return prop3_stable(log_prob, ref_log_prob, rewards, beta=beta, baseline=baseline)

        self._estimator = estimator
        return OnlineSFTTrainer._compute_loss(self, model, inputs)


class Reuse(OnlineSFTTrainer):
    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        old = inputs.get("old_per_token_logps")

        def estimator(log_prob: Tensor, ref_log_prob: Tensor | None, rewards: Tensor, *, beta: float) -> Tensor:
            loss = prop3_stable(log_prob, ref_log_prob, rewards, beta=beta)
            old_log_prob = log_prob.detach() if old is None else (old * inputs["completion_mask"]).sum(-1)
            return (log_prob.detach() - old_log_prob).exp() * loss

        self._estimator = estimator
        return super()._compute_loss(model, inputs)


def ours(
    baseline: Callable[[Any], Any] | None = None, kind: type | None = None, group: int = 2, **options: Any
) -> Method:
    def prepare(trainer: Any) -> None:
        if baseline:
            trainer._baseline = baseline(trainer)
        if kind:
            trainer.__class__ = kind

    return Method(OnlineSFTTrainer, OnlineSFTConfig, {"baseline": "none", **options}, prepare, (group,))


def at_level(value: float) -> Method:
    return Method(OnlineSFTTrainer, OnlineSFTConfig, {"baseline": "constant", "baseline_value": value}, None, (2,))


METHODS = {
    "none": ours(),
    "none, group 1": ours(group=1),
    "none, group 4": ours(group=4),
    "none, group 8": ours(group=8),
    "constant 0.25": at_level(0.25),
    "constant 0.5": at_level(0.5),
    "constant 0.75": at_level(0.75),
    "leave_one_out": ours(lambda trainer: leave_one_out),
    "leave_one_out, group 4": ours(lambda trainer: leave_one_out, group=4),
    "leave_one_out, group 8": ours(lambda trainer: leave_one_out, group=8),
    "group_mean": ours(lambda trainer: group_mean),
    "batch": ours(lambda trainer: batch),
    "batch, group 1": ours(lambda trainer: batch, group=1),
    "running": ours(lambda trainer: Running()),
    "prompt": ours(PerPrompt),
    "filter": ours(lambda trainer: filtered),
    "optimal": ours(kind=Optimal),
    "optimal, group 1": ours(kind=Optimal, group=1),
    "optimal running": ours(kind=OptimalRunning),
    "lowest": ours(lambda trainer: Lowest()),
    "reuse": ours(kind=Reuse, num_iterations=2, max_steps=60),
    "TRL GRPO, group 4": Method(efficiency.GRPOTrainer, efficiency.GRPOConfig, {}, None, (4,)),
    "TRL GRPO, group 8": Method(efficiency.GRPOTrainer, efficiency.GRPOConfig, {}, None, (8,)),
}


def digits(right: bool, completion: str, solution: str, rng: torch.Generator) -> float:
    """Share of right characters."""
    answer = completion.split("Answer:")[-1].strip()
    return sum(a == b for a, b in zip(answer, solution, strict=False)) / max(len(answer), len(solution))


def signed(right: bool, *_: Any) -> float:
    return 2.0 * right - 1.0


def shifted(right: bool, *_: Any) -> float:
    return right + 5.0


def noisy(right: bool, completion: str, solution: str, rng: torch.Generator) -> float:
    return float(right != (torch.rand((), generator=rng).item() < 0.1))


def sparse(right: bool, completion: str, solution: str, rng: torch.Generator) -> float:
    return float(right and torch.rand((), generator=rng).item() < 0.2)


TASKS = {
    "sums": Task(),  # reward 1 or 0
    "signed": Task(signed),  # 1 or -1
    "shifted": Task(shifted),  # 6 or 5
    "digits": Task(digits),  # dense, 0 to 1
    "noisy": Task(noisy),  # 1 or 0, one in ten is wrong
    "weak": Task(plain, (0.95, 150)),  # 1 or 0, from a model that is right in 28 %
    "weaker": Task(plain, (0.97, 600)),  # 1 or 0, from a model that is right in 25 %
    "sparse": Task(sparse),  # 1 for one right answer in five, otherwise 0
    "beta": Task(plain, options={"beta": 0.05}),
    "few": Task(plain, problems=256),  # the same 256 problems again and again
}
efficiency.TASKS.update(TASKS)
METHODS |= efficiency.METHODS
efficiency.METHODS = METHODS


@torch.no_grad()
def sample(model: Any, tokenizer: Any, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    tokens = model.generate(**encoded, do_sample=True, max_new_tokens=efficiency.MAX_NEW_TOKENS, top_k=0, top_p=1.0)
    start = encoded["input_ids"].size(1)
    ended = (tokens[:, start:] == tokenizer.eos_token_id).long().cumsum(1)
    is_completion = (ended - (tokens[:, start:] == tokenizer.eos_token_id).long()) == 0
    return tokens, torch.cat([encoded["attention_mask"], is_completion.long()], 1), start


def noise(bench: Bench, folder: Path, group: int, batches: int = 48, size: int = 128) -> None:
    """Noise scale of each baseline's gradient: trace of the covariance over the squared mean, in samples.

    The cosine is that of the gradient of 256 samples to its expectation, as the noise scale has it.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    tokenizer, quickstart = bench.tokenizer, bench.quickstart
    torch.manual_seed(0)
    gradients: dict[str, list[Tensor]] = {}
    mean_reward = []
    for turn in range(batches):
        rows = quickstart.problems.train.select(range(turn * size // group, (turn + 1) * size // group))
        rows = rows.select([index for index in range(len(rows)) for _ in range(group)])
        tokens, mask, start = sample(model, tokenizer, list(rows["prompt"]))
        texts = tokenizer.batch_decode(tokens[:, start:], skip_special_tokens=True)
        grades = quickstart.reward(texts, solution=list(rows["solution"]), index=list(rows["index"]))
        rewards = torch.tensor(grades).view(-1, group)
        mean_reward.append(rewards.mean().item())
        position_ids = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=tokens, attention_mask=mask, position_ids=position_ids).logits[:, start - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(-1, tokens[:, start:].unsqueeze(-1)).squeeze(-1)
        written = mask[:, start:]
        log_prob = (log_probs * written).sum(-1)
        sizes = gradient_size(log_probs.detach(), written)
        weights = {"none": rewards, "1": torch.ones_like(rewards), "leave_one_out": rewards - leave_one_out(rewards)}
        weights["batch"] = rewards - batch(rewards)
        weights["optimal"] = rewards - optimal(rewards.flatten(), sizes).view_as(rewards)
        for name, weight in weights.items():
            gradient = torch.autograd.grad((weight.flatten() * log_prob).mean(), parameters, retain_graph=True)
            gradients.setdefault(name, []).append(torch.cat([g.flatten() for g in gradient]))
    stacked = {name: torch.stack(values) for name, values in gradients.items()}
    level = statistics.mean(mean_reward)
    ones = stacked.pop("1")
    reward = stacked["none"]
    centred = ones - ones.mean(0)
    best = ((reward - reward.mean(0)) * centred).sum() / centred.square().sum()
    for value in (0.25, 0.5, 0.75, 1.0):
        stacked[f"constant {value}"] = reward - value * ones
    stacked[f"best constant, {best:.2f}"] = reward - best * ones
    # all have the same mean; the least noisy estimate of its square serves all
    trace = {name: (values - values.mean(0)).square().sum() / (batches - 1) for name, values in stacked.items()}
    square = max(stacked[f"best constant, {best:.2f}"].mean(0).square().sum() - min(trace.values()) / batches, 1e-12)
    print(f"\n| {folder.name}, mean reward {level:.2f}, group {group} | variance to none's | noise scale | cosine |")
    print("|---|---|---|---|")
    is_known = square > 3 * min(trace.values()) / batches  # otherwise the mean gradient is lost in its noise
    for name, value in trace.items():
        scale = (value * size / square).item()
        cells = f"{scale:,.0f} | {(1 + scale / 256) ** -0.5:.2f}" if is_known else "- | -"
        print(f"| {name} | {value / trace['none']:.2f} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=["none", "optimal"], choices=list(METHODS))
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--compare", action="store_true", help="samples to the target, as in sample_efficiency.py")
    parser.add_argument("--noise", type=Path, nargs="*", help="folders of models; trains nothing")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/efficiency"))
    options = parser.parse_args()
    efficiency.quiet()
    bench = Bench(options.output_dir)
    for folder in options.noise or []:
        for group in (2, 8):
            noise(bench, folder, group)
    if options.noise:
        return
    if options.compare:
        for task in options.tasks:
            efficiency.compare(bench, task, options.methods, options.seeds, options.steps, options.rates)
        return
    for task in options.tasks:
        print(
            f"\n| {task} | rate | area, {options.steps} steps | right, last 5 | entropy, last |\n|---|---|---|---|---|"
        )
        for name in options.methods:
            method = METHODS[name]
            by_rate = {}
            for rate in options.rates:
                runs = [Run(task, name, rate, method.groups[0], seed) for seed in options.seeds]
                by_rate[rate] = [bench.run(run, method, options.steps, options.steps, False) for run in runs]
            best = max(by_rate, key=lambda rate: statistics.mean(area(r, options.steps) for r in by_rate[rate]))
            areas = ", ".join(f"{area(r, options.steps):.3f}" for r in by_rate[best])
            last = statistics.mean(statistics.mean(r["accuracy"][-5:]) for r in by_rate[best])
            entropy = statistics.mean(r["entropy"][-1] for r in by_rate[best])
            print(f"| {name} | {best:g} | {areas} | {last:.3f} | {entropy:.3f} |", flush=True)


if __name__ == "__main__":
    main()
