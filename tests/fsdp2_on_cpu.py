"""Real FSDP on the CPU, of which accelerate 1.15 silently makes DDP: goes before the script that is launched.

accelerate launch --config_file recipes/accelerate/fsdp2.yaml ... tests/fsdp2_on_cpu.py SCRIPT ARGUMENTS

accelerate takes FSDP only where its process group is one of GPUs. So the group (gloo) is made here, and accelerate told
that it is one of several GPUs, on the device "cpu". From the project's notes on distributed training, where it was
tried with torch 2.13, accelerate 1.15 and transformers 5.23.
"""

import datetime
import os
import runpy
import sys

import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def on_gloo(self, cpu=False, sagemaker_dp=False, backend=None):
    """Instead of `PartialState._prepare_backend`."""
    return "gloo", DistributedType.MULTI_GPU


if __name__ == "__main__":
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    PartialState._prepare_backend = on_gloo
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")
