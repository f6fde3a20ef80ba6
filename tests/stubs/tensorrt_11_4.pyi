from __future__ import annotations

from typing import Any, overload

BASE = "tensorrt_10_13.pyi"

class Builder:
    del platform_has_tf32
    del platform_has_fast_fp16
    del platform_has_fast_int8

class BuilderFlag:
    del FP16
    del BF16
    del INT8
    del OBEY_PRECISION_CONSTRAINTS
    del PREFER_PRECISION_CONSTRAINTS
    del REJECT_EMPTY_ALGORITHMS
    del FP8
    del WEIGHTLESS
    del INT4
    del FP4

class IBuilderConfig:
    del int8_calibrator
    del quantization_flags
    del clear_quantization_flag
    del set_quantization_flag
    del get_quantization_flag
    del set_calibration_profile
    del get_calibration_profile
    del algorithm_selector
    build_route: str
    all_build_routes: str

class ICudaEngine:
    del has_implicit_batch_dimension
    del create_execution_context_without_device_memory
    del get_device_memory_size_for_profile
    del device_memory_size
    del weight_streaming_budget
    del minimum_weight_streaming_budget
    def get_aliased_input_tensor(self, name: str) -> str: ...
    def get_engine_stat(self, stat: Any = ...) -> int: ...

class IExecutionContext:
    del all_shape_inputs_specified
    def set_communicator(self, communicator: Any) -> bool: ...
    def get_runtime_config(self) -> IRuntimeConfig: ...

class ILayer:
    del precision
    del precision_is_set
    del reset_precision
    del set_output_type
    del output_type_is_set
    del reset_output_type
    num_ranks: int

class IOptimizationProfile:
    profile_stream: int

class ITensor:
    del dynamic_range
    del set_dynamic_range
    del reset_dynamic_range

class LayerType:
    ATTENTION_INPUT: LayerType
    ATTENTION_OUTPUT: LayerType
    ROTARY_EMBEDDING: LayerType
    KV_CACHE_UPDATE: LayerType
    MOE: LayerType
    DIST_COLLECTIVE: LayerType

class NetworkDefinitionCreationFlag:
    del EXPLICIT_BATCH

class OnnxParser:
    del parse_with_weight_descriptors
    del supports_model
    def set_builder_config(self, builder_config: IBuilderConfig) -> bool: ...

class Refitter:
    del get_dynamic_range
    del set_dynamic_range
    del get_tensors_with_dynamic_range
    def release_refit_resources(self) -> bool: ...

class Runtime:
    @overload
    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine: ...
    @overload
    def deserialize_cuda_engine(self, stream_reader_v2: Any) -> ICudaEngine: ...
    dla_workspace_allocation_strategy: Any
