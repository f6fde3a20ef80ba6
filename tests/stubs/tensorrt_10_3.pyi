from __future__ import annotations

from typing import Any, overload

BASE = "tensorrt_10_13.pyi"
del IRuntimeConfig

class Builder:
    del build_serialized_network_to_stream
    del build_engine_with_config
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory: ...

class BuilderFlag:
    del EDITABLE_TIMING_CACHE
    del STRICT_NANS
    del MONITOR_MEMORY
    del FP4
    del DISTRIBUTIVE_INDEPENDENCE

class DataType:
    del FP4
    del E8M0

class HardwareCompatibilityLevel:
    del SAME_COMPUTE_CAPABILITY

class IBuilderConfig:
    del max_num_tactics
    del tiling_optimization_level
    del l2_limit_for_tiling
    del remote_auto_tuning_config

class ICudaEngine:
    del create_runtime_config
    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy = ...) -> IExecutionContext: ...

class IExecutionContext:
    del unfused_tensors_debug_state
    del get_runtime_config

class INetworkDefinition:
    del mark_unfused_tensors_as_debug_tensors
    del unmark_unfused_tensors_as_debug_tensors

class ITimingCache:
    del queryKeys
    del query
    del update

class LayerType:
    del SQUEEZE
    del UNSQUEEZE
    del CUMULATIVE
    del DYNAMIC_QUANTIZE

class NetworkDefinitionCreationFlag:
    del PREFER_AOT_PYTHON_PLUGINS
    del PREFER_JIT_PYTHON_PLUGINS

class OnnxParser:
    del load_model_proto
    del load_initializer
    del parse_model_proto

class OnnxParserRefitter:
    del load_model_proto
    del load_initializer
    del refit_model_proto

class Runtime:
    @overload
    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine: ...
    @overload
    def deserialize_cuda_engine(self, stream_reader: Any) -> ICudaEngine: ...
