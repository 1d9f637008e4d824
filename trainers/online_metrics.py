"""What `OnlineSFTTrainer` logs: means and quantiles over all completions of a log entry, of all ranks."""

from collections import defaultdict
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from online_sft.proposition3 import CompletionLoss

__all__ = ["OnlineMetrics"]

_QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


class OnlineMetrics:
    """Collects sums and values until the next log entry. TRL averages the means of micro-batches instead."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._totals: dict[str, Tensor] = {}  # (sum, count) of each metric
        self._values: dict[str, list[Tensor]] = defaultdict(list)

    def add_means(self, means: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Adds (values, mask) of each metric, of this rank, to its mean over all ranks."""
        sums = [torch.stack([x.detach().float()[m.bool()].sum(), m.bool().sum()]) for x, m in means.values()]
        for name, total in zip(means, self._accelerator.reduce(torch.stack(sums), reduction="sum"), strict=True):
            self._totals[name] = self._totals.get(name, 0.0) + total

    def add_ratio(self, name: str, numerator: float, denominator: float) -> None:
        """Adds to a quotient of sums; the numbers are those of all ranks already."""
        total = torch.tensor([float(numerator), float(denominator)], device=self._accelerator.device)
        self._totals[name] = self._totals.get(name, 0.0) + total

    def add_completions(self, terms: CompletionLoss, written: Tensor, off_policy: bool) -> None:
        """The estimator's terms of this rank's completions; `written` says which have a token of the policy."""
        means = {"log_prob": terms.log_prob, "advantage": terms.advantage}
        if not terms.kl.isnan().all():
            means |= {"kl": terms.kl, "kl_k3": terms.kl_k3}
        values = {"weight": terms.weight}
        if off_policy:
            means["importance/clipped"] = terms.importance_clipped
            values |= {"importance": terms.importance_ratio, "importance_weight": terms.importance_weight}
        self.add_means({name: (x, written) for name, x in means.items()})
        for name, x in values.items():
            self._values[name].append(self._accelerator.gather(x.masked_fill(~written, torch.nan)))

    def state_dict(self) -> dict[str, Any]:
        """What the next log entry has so far."""
        return {"totals": dict(self._totals), "values": dict(self._values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it up again."""
        self._totals, self._values = dict(state["totals"]), defaultdict(list, state["values"])

    def pop(self) -> dict[str, float]:
        """Everything since the last call. A metric without a single value is left out."""
        totals = {name: sums.tolist() for name, sums in self._totals.items()}
        metrics = {name: total / count for name, (total, count) in totals.items() if count}
        values = {name: torch.cat(parts).float() for name, parts in self._values.items()}
        values = {name: x[~x.isnan()] for name, x in values.items()}
        self._totals.clear()
        self._values.clear()
        if values.get("weight", torch.empty(0)).numel():
            metrics |= {f"weight/{name}": values["weight"].quantile(q).item() for name, q in _QUANTILES.items()}
        if values.get("importance", torch.empty(0)).numel():
            weights = values["importance_weight"]
            metrics["importance/min"] = values["importance"].min().item()
            metrics["importance/max"] = values["importance"].max().item()
            metrics["importance/ess"] = (weights.sum() ** 2 / weights.square().sum() / len(weights)).item()
        return metrics
