"""Atropos as a source of `WeightedSFTTrainer`'s batches, and the policy's way back to its environments."""
