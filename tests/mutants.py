"""Breaks the code on purpose, one line at a time, and expects a test to fail: `make mutants`.

Each mutant names the file, the text, what it becomes, and the tests that must notice. Everything happens in a copy.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOSSES, ESTIMATORS, BASELINES = "online_sft/losses.py", "online_sft/estimators.py", "online_sft/baselines.py"
WEIGHTED, ONLINE = "trainers/weighted_sft_trainer.py", "trainers/online_sft_trainer.py"
IN_SFT, IN_ONLINE = "weighted_sft_trainer", "online_sft_trainer"

MUTANTS = [
    # what is broken, file, from, to, tests/test_<this>.py
    ("the sign of the loss", LOSSES, "return -weighted_log", "return weighted_log", "losses"),
    ("the denominator", LOSSES, ".sum() / denominator", ".sum() / log_probs.numel() * 1 + 0 * denominator", "losses"),
    ("the label mask", LOSSES, ".squeeze(-1).masked_fill(ignored, 0.0)", ".squeeze(-1)", "losses"),
    ("the shift of the weights", LOSSES, "weights = weights[:, 1:]", "weights = weights[:, :-1]", "losses"),
    ("the shift of the labels", LOSSES, "labels = labels[:, 1:]", "labels = labels[:, :-1]", "losses"),
    ("the temperature", LOSSES, "(logits / temperature)", "logits", "losses"),
    ("the stop-gradient of the weights", LOSSES, "weights = weights.detach()", "weights = weights * 1", "losses"),
    ("0 * inf", LOSSES, "log_probs.masked_fill(weights == 0, 0.0)", "log_probs", "losses"),
    ("half precision", LOSSES, "logits = logits.float()", "pass", "losses"),
    ("the empty step", LOSSES, "denominator.masked_fill(denominator == 0, 1)", "denominator", "losses"),
    ("the live w", ESTIMATORS, "-(w * s + 0.5", "-(w.detach() * s + 0.5", "estimators"),
    ("the stop-gradient of w", ESTIMATORS, "0.5 * w.detach()", "0.5 * w", "estimators"),
    ("the half", ESTIMATORS, "0.5 * w", "w", "estimators"),
    ("the stop-gradient of A", ESTIMATORS, "adv.detach() * log_prob)", "adv * log_prob)", "estimators"),
    ("the pathwise term", ESTIMATORS, "-(adv + adv.detach() * log_prob)", "-(adv.detach() * log_prob)", "estimators"),
    ("the sign of the KL", ESTIMATORS, "adv - beta *", "adv + beta *", "estimators"),
    ("the reference", ESTIMATORS, "(log_prob - ref_log_prob.detach())", "log_prob", "estimators"),
    ("the guard at s = 0", ESTIMATORS, "log_prob.abs() >= denom_eps", "log_prob.abs() >= 0", "estimators"),
    ("leaving one out", BASELINES, " - rewards.nan_to_num()", "", "baselines"),
    ("the count of the others", BASELINES, " - (~rewards.isnan()).int()", "", "baselines"),
    ("unscored in the group mean", BASELINES, "rewards.nanmean(", "rewards.mean(", "baselines"),
    ("the weights in the trainer", WEIGHTED, "weighted_log_probs(outputs", "(lambda x, w: x)(outputs", IN_SFT),
    ("alignment in the trainer", WEIGHTED, "F.pad(advantages, (offset, 0))", "F.pad(advantages, (0, offset))", IN_SFT),
    ("the completion mask", WEIGHTED, "if masks:", "if False:", IN_SFT),
    ("the assistant masks", WEIGHTED, ', "assistant_masks")', ")", IN_SFT),
    ("truncated advantages", WEIGHTED, "advantages[:num_tokens]", "advantages[-num_tokens:]", IN_SFT),
    ("the signature column", WEIGHTED, 'if "advantages" not in self._sig', 'if "x" in self._sig', IN_SFT),
    ("the baseline", ONLINE, "rewards_by_group - self._baseline(rewards_by_group)", "rewards_by_group", IN_ONLINE),
    ("the completion mask of s", ONLINE, "(log_probs * mask).sum(-1)", "log_probs.mean(-1)", IN_ONLINE),
    ("unscored in the sum", ONLINE, "per_completion.masked_fill(~scored, 0.0)", "per_completion", IN_ONLINE),
    ("unscored in the count", ONLINE, '(~advantages.isnan()).sum()', "torch.tensor(len(advantages))", IN_ONLINE),
    ("the accumulation", ONLINE, "* self.current_gradient_accumulation_steps", "", IN_ONLINE),
    ("reward weights", ONLINE, "rewards_per_func * self.rew", "rewards_per_func + 0 * self.rew", IN_ONLINE),
    ("the number of processes", ONLINE, "/ self.accelerator.num_processes", "/ 1", "distributed"),
    ("the rank's own slice", ONLINE, "self.accelerator.process_index * len(inputs)", "0", "distributed"),
]  # fmt: skip


def killed_by(mutant: tuple[str, str, str, str, str], copy: Path) -> str | None:
    """The first test that fails on the mutant, or None when it survives."""
    _, file, before, after, tests = mutant
    path = copy / file
    source = path.read_text()
    assert source.count(before) >= 1, f"{file} no longer holds {before!r}"
    path.write_text(source.replace(before, after))
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    done = subprocess.run(
        [*pytest, f"tests/test_{tests}.py"],
        cwd=copy,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy)},
    )
    path.write_text(source)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stdout + done.stderr)
    failed = [line.split("::")[1].split(" ")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return failed[0] if failed else None


def main() -> None:
    wanted = sys.argv[1:]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "*_cache", "build"))
        for mutant in MUTANTS:
            if wanted and not any(word in mutant[0] or word in mutant[1] for word in wanted):
                continue
            killer = killed_by(mutant, copy)
            survivors += killer is None
            print(f"{'SURVIVED' if killer is None else 'killed'}  {mutant[0]}  {killer or ''}", flush=True)
    sys.exit(f"{survivors} mutants survived" if survivors else 0)


if __name__ == "__main__":
    main()
