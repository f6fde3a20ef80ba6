"""What TensorRT's Python classes have, by version: a table in the place of a module that needs a GPU to be of use.

From NVIDIA's Python API documentation of TensorRT 10.0 to 11.4 and the bindings' published source. `Span("10.0")` is
there since at least that release ("10.0" also stands for older ones), `Span("10.0", "11.0")` was removed in 11.0. Only
members that vitdeploy might use are listed; `tests/test_tensorrt_members.py` holds the code to them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MEMBERS", "RTX_ONLY", "Span"]


@dataclass(frozen=True)
class Span:
    """The releases that have a member: from `since` on, up to but without `gone`."""

    since: str
    gone: str | None = None

    def covers(self, version: str) -> bool:
        def number(text: str) -> tuple[int, ...]:
            return tuple(map(int, text.split(".")[:2]))

        return number(self.since) <= number(version) and (self.gone is None or number(version) < number(self.gone))


ALWAYS = Span("10.0")
WEAK_TYPING = Span("10.0", "11.0")  # FP16 and INT8 as builder flags, calibrators: removed with weak typing


def _all(names: str, **special: Span) -> dict[str, Span]:
    return dict.fromkeys(names.split(), ALWAYS) | special


MEMBERS: dict[str, dict[str, Span]] = {
    "module": _all(
        "Builder BuilderFlag DataType EngineInspector ExecutionContextAllocationStrategy HardwareCompatibilityLevel"
        " IBuilderConfig ICudaEngine IExecutionContext ILayer ILogger INetworkDefinition IOptimizationProfile"
        " IOutputAllocator IProgressMonitor ITensor ITimingCache LayerInformationFormat LayerType MemoryPoolType"
        " NetworkDefinitionCreationFlag OnnxParser OnnxParserRefitter ParserError ProfilingVerbosity Refitter Runtime"
        " TensorIOMode __version__ __name__",
        IInt8EntropyCalibrator2=WEAK_TYPING,
        QuantizationFlag=WEAK_TYPING,
    ),
    "Builder": _all(
        "build_serialized_network create_builder_config create_network create_optimization_profile error_recorder"
        " is_network_supported logger max_threads reset",
        platform_has_fast_fp16=WEAK_TYPING,
        platform_has_fast_int8=WEAK_TYPING,
    ),
    "IBuilderConfig": _all(
        "add_optimization_profile avg_timing_iterations builder_optimization_level clear_flag create_timing_cache flags"
        " get_flag get_memory_pool_limit get_timing_cache hardware_compatibility_level max_aux_streams"
        " num_optimization_profiles profile_stream profiling_verbosity progress_monitor reset set_flag"
        " set_memory_pool_limit set_preview_feature set_tactic_sources set_timing_cache",
        int8_calibrator=WEAK_TYPING,
        set_calibration_profile=WEAK_TYPING,
        tiling_optimization_level=Span("10.8"),
    ),
    "BuilderFlag": _all(
        "DEBUG DISABLE_TIMING_CACHE EDITABLE_TIMING_CACHE EXCLUDE_LEAN_RUNTIME GPU_FALLBACK REFIT REFIT_IDENTICAL"
        " STRIP_PLAN TF32 VERSION_COMPATIBLE WEIGHT_STREAMING",
        FP16=WEAK_TYPING,
        INT8=WEAK_TYPING,
        BF16=WEAK_TYPING,
        OBEY_PRECISION_CONSTRAINTS=WEAK_TYPING,
    ),
    "NetworkDefinitionCreationFlag": _all("STRONGLY_TYPED", EXPLICIT_BATCH=WEAK_TYPING),
    "INetworkDefinition": _all(
        "get_input get_layer get_output mark_output name num_inputs num_layers num_outputs remove_tensor"
    ),
    "ILayer": _all(
        "get_input get_output metadata name num_inputs num_outputs type",
        precision=WEAK_TYPING,
        set_output_type=WEAK_TYPING,
    ),
    "ITensor": _all("dtype is_shape_tensor name shape", dynamic_range=WEAK_TYPING),
    "IOptimizationProfile": _all("get_shape set_shape set_shape_input"),
    "OnnxParser": _all("clear_errors get_error num_errors parse parse_from_file set_flag supports_model_v2"),
    "OnnxParserRefitter": _all("clear_errors get_error num_errors refit_from_bytes refit_from_file"),
    "ParserError": _all(
        "code desc file func line local_function_stack local_function_stack_size node node_name node_operator"
    ),
    "Runtime": _all("deserialize_cuda_engine engine_host_code_allowed error_recorder logger max_threads"),
    "Refitter": _all("get_all_weights get_missing_weights refit_cuda_engine set_named_weights"),
    "EngineInspector": _all("execution_context get_engine_information get_layer_information"),
    "LayerInformationFormat": _all("JSON ONELINE"),
    "ICudaEngine": _all(
        "create_engine_inspector create_execution_context create_serialization_config engine_capability"
        " get_tensor_dtype get_tensor_location get_tensor_mode get_tensor_name get_tensor_profile_shape"
        " get_tensor_shape name num_aux_streams num_io_tensors num_layers num_optimization_profiles"
        " profiling_verbosity refittable serialize",
        create_execution_context_without_device_memory=Span("10.0", "11.0"),
        create_runtime_config=Span("10.13"),
        device_memory_size=Span("10.0", "11.0"),
        device_memory_size_v2=Span("10.1"),
        get_binding_name=Span("8.0", "10.0"),
        get_device_memory_size_for_profile=Span("10.0", "11.0"),
        get_device_memory_size_for_profile_v2=Span("10.1"),
        get_engine_stat=Span("10.13"),
        has_implicit_batch_dimension=Span("10.0", "11.0"),
    ),
    "IExecutionContext": _all(
        "active_optimization_profile device_memory execute_async_v3 execute_v2 get_max_output_size get_tensor_shape"
        " infer_shapes set_aux_streams set_input_shape set_optimization_profile_async set_output_allocator"
        " set_tensor_address update_device_memory_size_for_shapes",
        execute_async_v2=Span("8.0", "10.0"),
        set_binding_shape=Span("8.0", "10.0"),
        set_device_memory=Span("10.1"),
    ),
    "ExecutionContextAllocationStrategy": _all("ON_PROFILE_CHANGE STATIC USER_MANAGED"),
    "ILogger": _all("ERROR INFO INTERNAL_ERROR Severity VERBOSE WARNING __init__ log"),
    "IOutputAllocator": _all("__init__"),
    "IProgressMonitor": _all("__init__"),
    "HardwareCompatibilityLevel": _all("AMPERE_PLUS NONE", SAME_COMPUTE_CAPABILITY=Span("10.12")),
    "MemoryPoolType": _all("TACTIC_DRAM WORKSPACE"),
    "ProfilingVerbosity": _all("DETAILED LAYER_NAMES_ONLY NONE"),
    "TensorIOMode": _all("INPUT NONE OUTPUT"),
    "LayerType": _all(
        "CAST CONSTANT CONVOLUTION DEQUANTIZE IDENTITY MATRIX_MULTIPLY QUANTIZE SHUFFLE",
        SQUEEZE=Span("10.4"),
        UNSQUEEZE=Span("10.4"),
    ),
    "DataType": _all("BF16 BOOL FLOAT FP8 HALF INT32 INT4 INT64 INT8 UINT8"),
}

# What only TensorRT-RTX has, and the code uses only there.
RTX_ONLY = {
    "module": {"ComputeCapability", "CudaGraphStrategy"},
    "IBuilderConfig": {"num_compute_capabilities", "set_compute_capability"},
    "IRuntimeConfig": {"cuda_graph_strategy", "set_execution_context_allocation_strategy"},
    "ICudaEngine": {"create_runtime_config"},
    "CudaGraphStrategy": {"WHOLE_GRAPH_CAPTURE"},
    "ComputeCapability": {"__members__"},
}
