"""Checkpoints from which a run goes on as if it had never stopped.

`resumable` is what our trainers add to transformers' Trainer; `atomic` gives a checkpoint its name when all of it is
there; `manifest` says what it was made with, and why a run would not be the same; `cycle` keeps the rollouts between
two generations; `samplers` order the data by seed and epoch alone; `last` finds the newest.
"""
