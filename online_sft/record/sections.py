"""What a run spends its time on."""

__all__ = ["SECTIONS"]

SECTIONS = ("rollout", "reward", "sync", "data", "train", "evaluation", "saving")
