"""Forward and backward of our weighted LM head beside TRL's fused one, alone: milliseconds and peak memory.

python benchmarks/lm_head.py [--device cuda] [--tokens 16384] [--hidden 2048] [--vocabulary 152064] [--chunk 256 1024]

The gradients of hidden states and head are computed by both, and entropy and top-1. On a GPU in bf16, TRL's path is its
Triton kernels; on a CPU in float32, its torch fallback.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from online_sft import weighted_linear_cross_entropy


def trl_nll(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    outputs = ("entropy", "is_top1")
    arguments = (1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, outputs)
    log_probs, *_ = ChunkedLogProbFunction.apply(hidden, weight, None, labels, *arguments)
    return -(weights * log_probs).sum()


def measure(nll: Callable[..., Tensor], given: tuple[Tensor, ...], rounds: int) -> tuple[list[float], str]:
    """Milliseconds of each round but the first, and peak MB of a GPU above what the inputs take."""
    cuda = given[0].is_cuda
    milliseconds = []
    before = 0
    for _ in range(rounds + 1):
        for tensor in given[:2]:
            tensor.grad = None
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        nll(*given).backward()
        if cuda:
            torch.cuda.synchronize()
        milliseconds.append(1000 * (time.perf_counter() - start))
    peak = f"{(torch.cuda.max_memory_allocated() - before) / 2**20:.0f}" if cuda else "-"
    return milliseconds[1:], peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=8 * 2048)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=152_064)
    parser.add_argument("--chunk", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    make = {"device": options.device, "dtype": dtype}
    torch.manual_seed(0)
    hidden = torch.randn(options.tokens, options.hidden, **make).requires_grad_()
    weight = (0.02 * torch.randn(options.vocabulary, options.hidden, **make)).requires_grad_()
    labels = torch.randint(0, options.vocabulary, (options.tokens,), device=options.device)
    weights = torch.randn(options.tokens, device=options.device)
    given = (hidden, weight, labels, weights)

    def ours(chunk: int) -> Callable[..., Tensor]:
        return lambda *given: weighted_linear_cross_entropy(*given, chunk_size=chunk, with_metrics=True).nll

    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{name}, {dtype}, {options.tokens} tokens, hidden {options.hidden}, vocabulary {options.vocabulary}\n")
    print("| | ms (min to max) | to TRL | peak MB |\n|---|---|---|---|")
    cases = {"TRL": trl_nll} | {f"ours, chunk {chunk}": ours(chunk) for chunk in options.chunk}
    base = 0.0
    for case, nll in cases.items():
        milliseconds, peak = measure(nll, given, options.rounds)
        middle = statistics.median(milliseconds)
        base = base or middle
        spread = f"{middle:.1f} ({min(milliseconds):.1f} to {max(milliseconds):.1f})"
        print(f"| {case} | {spread} | {middle / base:.2f} | {peak} |", flush=True)


if __name__ == "__main__":
    main()
