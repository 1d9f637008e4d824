"""What TRL 1.16 and vLLM lack on a CPU, for tests only: their own code runs, with gloo where they have NCCL.

`register` is a vLLM plugin, which vLLM calls in the server, the engine core and every worker; `patch_trl_client` is the
trainer's side.
"""

import types
from datetime import timedelta

CHUNK_BYTES = 200_000  # vLLM's own is 1 GB; a model of the tests shall need several


class GlooGroup:
    """What TRL and vLLM use of PyNcclCommunicator: `broadcast`, and `group.store` and `group.socket` on close."""

    def __init__(self, host, port, rank, world_size, timeout_s=60):
        import torch.distributed as dist

        timeout = timedelta(seconds=timeout_s)
        store = dist.TCPStore(host, port, world_size, is_master=rank == 0, timeout=timeout)
        self.processes = dist.ProcessGroupGloo(dist.PrefixStore("trl", store), rank, world_size, timeout)
        self.group = types.SimpleNamespace(store=store, socket=None)

    def broadcast(self, tensor, src=0, stream=None):
        import torch
        import torch.distributed as dist

        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        self.processes.broadcast([tensor.contiguous().view(-1).view(torch.uint8)], options).wait()


def register():
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    _keep_plain_parameters()
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("gloo", "trl_vllm_cpu.engine", "GlooWeightTransferEngine")


def _keep_plain_parameters():
    """vLLM would pack weights for oneDNN: updates in place then fail, or are ignored for a tied lm_head."""
    import vllm._custom_ops as ops
    import vllm.model_executor.layers.utils as utils

    ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda n, k, dtype: False


def patch_trl_client():
    import trl.generation.vllm_client as client
    from vllm.distributed.weight_transfer.packed_tensor import pack_tensors

    def broadcast_all(iterator, group, src, post_iter_func):
        # as for NCCL: a tensor is read when its chunk is full, and the iterator has gone on by then, or has ended
        while (chunk := pack_tensors(iterator, post_iter_func, CHUNK_BYTES)) is not None:
            group.broadcast(chunk.packed_tensor, src=src)

    init_communicator = client.VLLMClient.init_communicator
    client.open_trainer_endpoint = lambda info: GlooGroup(
        info["master_address"], info["master_port"], 0, info["world_size"]
    )
    client.packed_nccl_broadcast_producer = broadcast_all
    # "cuda" passes TRL's check of the device, and without an index nothing of CUDA is called
    client.VLLMClient.init_communicator = lambda self, device=0: init_communicator(self, device="cuda")
