"""vLLM's side of the weight transfer by gloo."""

import math
from dataclasses import dataclass, field

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.packed_tensor import unpack_tensor

from . import CHUNK_BYTES, GlooGroup


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    packed: bool = True


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    names: list = field(default_factory=list)
    dtype_names: list = field(default_factory=list)
    shapes: list = field(default_factory=list)


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def init_transfer_engine(self, info):
        parallel = self.parallel_config
        rank = parallel.data_parallel_index * parallel.world_size + parallel.rank + info.rank_offset
        self.group = GlooGroup(info.master_address, info.master_port, rank, info.world_size)

    def start_weight_update(self):
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def finish_weight_update(self):
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def update_weights(self, update_info):  # the base class ends with torch.accelerator.synchronize()
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, info):
        chunk, num_bytes = [], 0
        for name, dtype, shape in zip(info.names, info.dtype_names, info.shapes, strict=True):
            chunk.append((name, shape, getattr(torch, dtype)))
            num_bytes += math.prod(shape) * chunk[-1][2].itemsize
            if num_bytes > CHUNK_BYTES:
                self.receive_chunk(chunk, num_bytes)
                chunk, num_bytes = [], 0
        if chunk:
            self.receive_chunk(chunk, num_bytes)

    def receive_chunk(self, chunk, num_bytes):
        packed = torch.empty(num_bytes, dtype=torch.uint8)
        self.group.broadcast(packed, src=0)
        names, shapes, dtypes = map(list, zip(*chunk, strict=True))
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
        for name, weights in unpack_tensor(packed, names, shapes, dtypes, sizes):
            self.model.load_weights([(name, weights.clone())])

    def shutdown(self):
        self.group = None
