"""Real ZeRO-3 of a tiny model, of which DeepSpeed would keep all parameters whole: goes before the script.

accelerate launch --config_file recipes/accelerate/zero3.yaml ... tests/zero3_of_tiny_models.py SCRIPT ARGUMENTS

What has at most `stage3_param_persistence_threshold` numbers (1e5) stays on every process once it has been gathered.
accelerate's own settings do not have that one.
"""

import os
import runpy
import sys

from accelerate.utils import DeepSpeedPlugin

_of_accelerate = DeepSpeedPlugin.__post_init__


def that_keeps_nothing(self):
    """Instead of `DeepSpeedPlugin.__post_init__`."""
    _of_accelerate(self)
    self.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0


if __name__ == "__main__":
    DeepSpeedPlugin.__post_init__ = that_keeps_nothing
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")
