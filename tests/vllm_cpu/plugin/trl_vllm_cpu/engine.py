"""vLLM's side of the weight transfer by gloo."""

from dataclasses import dataclass, field

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from . import GlooGroup


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
        for name, dtype, shape in zip(info.names, info.dtype_names, info.shapes, strict=True):
            weights = torch.empty(shape, dtype=getattr(torch, dtype))
            self.group.broadcast(weights, src=0)
            self.model.load_weights([(name, weights)])

    def shutdown(self):
        self.group = None
