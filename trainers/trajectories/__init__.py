"""Behaviour cloning and world models on trajectories: what `TrajectorySFTTrainer` is made of.

`options` and `rows` make a data set; `kinds` gives actions and observations a denominator and metrics each; `policy`
samples; `collected` trains on what the policy collects, `evaluation` measures it on environments.
"""
