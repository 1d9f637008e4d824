"""Checkpoints from which a run goes on as if it had never stopped.

`resumable` is what our trainers add to transformers' Trainer; `atomic` gives a checkpoint its name when all of it is
there; `manifest` says what it was made with; `choice` finds the last one, and refuses those from which a run would
not be the same; `cycle` keeps the rollouts between two generations, `stream` the place in a stream; `samplers` order
the data by seed and epoch alone; `steps` knows whether a step is being made, and `within_step` saves then.
"""
