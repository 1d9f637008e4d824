"""A sharded LM head on two processes against the dense one: python sharded_head_worker.py OUTPUT.json"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from online_sft import weighted_linear_cross_entropy


def nll(rank: int, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum over this rank's tokens, and its hidden states."""
    generator = torch.Generator().manual_seed(rank)
    hidden = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, 11, (5,), generator=generator)
    weights = torch.randn(5, generator=generator, dtype=torch.float64)
    return weighted_linear_cross_entropy(hidden, weight, labels, weights, head_bias=bias).nll, hidden


def main() -> None:
    mesh = init_device_mesh("cpu", (2,))
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(9)
    weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((11, 4), (11,)))
    sharded = [distribute_tensor(x, mesh, [Shard(0)]).requires_grad_() for x in (weight, bias)]
    loss, hidden = nll(rank, *sharded)
    loss.backward()

    whole = [x.clone().requires_grad_() for x in (weight, bias)]
    losses, hiddens = zip(*(nll(each, *whole) for each in range(2)), strict=True)
    (sum(losses) / 2).backward()
    found = {
        "world_size": dist.get_world_size(),
        "rows_of_this_rank": len(sharded[0].grad.to_local()),
        "weight": (sharded[0].grad.full_tensor() - whole[0].grad).abs().max().item(),
        "bias": (sharded[1].grad.full_tensor() - whole[1].grad).abs().max().item(),
        "hidden": (hidden.grad - 2 * hiddens[rank].grad).abs().max().item(),
    }
    if rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
