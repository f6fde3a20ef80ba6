"""TensorRT's account of an engine's layers, as NVIDIA documents its fields in 10 and 11."""

from __future__ import annotations

from typing import Any


def layer(
    name: str, kind: str, reads: str, gives: str, nodes: list[str], tactic: str = "", key: str = "Format/Datatype"
) -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{"Name": f"{name}.in", "Location": "Device", "Dimensions": [1, 65, 384], key: reads}],
        "Outputs": [{"Name": f"{name}.out", "Location": "Device", "Dimensions": [1, 65, 384], key: gives}],
        "TacticName": tactic,
        "StreamId": 0,
        "Metadata": "".join(f"[ONNX Layer: {node}]" for node in nodes),
    }


LAYERS = [
    layer(
        "Reformatting CopyNode for image",
        "Reformat",
        "Row major linear UInt8 format",
        "Row major linear UInt8 format",
        [],
    ),
    layer("__myl_CastMul_myl0_0", "kgen", "UInt8", "Float", ["node_Cast_0", "node_Mul_1"]),
    layer(
        "qkv_myl0_1", "gemm", "Int8", "Half", ["q", "k", "v"], "sm80_xmma_gemm_i8f16_i8i32_f32_tn_n_tilesize64x64x64"
    ),
    layer("_gemm_mha_v2_myl0_2", "kgen", "Half", "Half", ["scores", "softmax", "context"], "_gemm_mha_v2_0xf2543c36"),
    layer(
        "fc1_myl0_3", "gemm", "Half", "Half", ["fc1", "gelu"], "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64"
    ),
    layer("__myl_AddCast_myl0_4", "kgen", "BFloat16", "Int8", ["add", "quantize"]),
    layer("pooled", "CaskGemmMatrixMultiply", "Row major INT8 format", "Row major linear FP16 format", ["fc2"]),
    layer("shape", "kgen", "Int64", "Int64", ["shape_of"]),
]
