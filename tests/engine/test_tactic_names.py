"""Names of kernels as TensorRT's library and logs, cuDNN and CUTLASS have them."""

import pytest

from masksparse_deploy.engine.tactic_names import read_tactic

INT8 = "sm80_xmma_fprop_implicit_gemm_interleaved_i8f32_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw_tilesize64x32x64_stage6"


@pytest.mark.parametrize(
    ("tactic", "architecture", "kind", "operands", "sums", "output", "tile"),
    [
        (INT8, "sm80", "implicit gemm", "int8", "int32", "fp32", "64x32x64"),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize128x128x16", "sm80", "gemm", "fp32", "fp32", "fp32", "128x128x16"),
        ("sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc", "sm80", "implicit gemm", "fp16", "fp16", "fp16", ""),
        ("sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc", "sm80", "implicit gemm", "fp16", "fp32", "fp16", ""),
        ("ampere_fp16_s16816gemm_fp16_128x128_ldg8", "ampere", "gemm", "fp16", "fp32", "", ""),
        ("volta_h884cudnn_256x64_ldg8_relu_exp_small", "volta", "", "", "fp16", "", ""),
        ("ampere_scudnn_winograd_128x128_ldg1", "ampere", "winograd", "", "", "", ""),
        ("Conv", "", "convolution", "", "", "", ""),
        ("", "", "", "", "", "", ""),
    ],
)
def test_dense_names(tactic: str, architecture: str, kind: str, operands: str, sums: str, output: str, tile: str) -> None:
    read = read_tactic(tactic)
    assert (read.architecture, read.kind, read.operands, read.sums) == (architecture, kind, operands, sums)
    assert (read.output, read.tile, read.is_sparse) == (output, tile, False)


@pytest.mark.parametrize(
    ("tactic", "operands", "sums"),
    [
        ("sm90_xmma_sparse_fprop_implicit_gemm_i8i8_i8i32_f32_nhwckrsc_nhwc_tilesize128x64", "int8", "int32"),
        ("sm80_xmma_fprop_sparse_conv_f16f16_f16f16_f16_nhwckrsc_nhwc_sptensor16x8x32", "fp16", "fp16"),
        ("sm86_xmma_sparse_gemm_f16f16_f16f32_f32_nt_n_tilesize256x128x64_sptensor16x8x32", "fp16", "fp32"),
        ("sm80_xmma_fprop_avdt_sparse_int8int8_tilesize64x64x64_tapsperload3_r3s3_u1v1_scalebias_relu", "int8", ""),
    ],
)
def test_sparse_names(tactic: str, operands: str, sums: str) -> None:
    read = read_tactic(tactic)
    assert (read.is_sparse, read.operands, read.sums) == (True, operands, sums)
