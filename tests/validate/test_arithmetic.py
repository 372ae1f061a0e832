"""What kernels' names tell of their arithmetic. Names as TensorRT's libraries hold them; none was run."""

import pytest

from masksparse_deploy.validate.arithmetic import kernel_of


@pytest.mark.parametrize(
    ("tactic", "precision", "expected"),
    [
        ("Conv", "fp32", "fp32"),
        ("com.microsoft.FusedConv", "fp32", "fp32"),
        ("sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nhwckrsc_nhwc_tilesize128x64x8", "fp32", "fp32"),
        ("sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x128x16", "fp32", "tf32"),
        ("sm80_xmma_fprop_implicit_gemm_indexed_tf32f32_tf32f32_f32_nhwckrsc_nhwc", "fp32", "tf32"),
        ("cutlass_tensorop_s1688fprop_optimized_tf32_128x128_16x4_nhwc_align4", "fp32", "tf32"),
        ("sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x32", "fp16", "fp16 on tensor cores"),
        ("sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x128x32", "fp16", "fp16 sums"),
        ("sm90_xmma_sparse_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc", "fp16", "fp16 sums"),
        ("turing_h1688cudnn_256x64_ldg8_relu_exp_small_nhwc_tn_v1", "fp16", "fp16 sums"),
        ("volta_h884cudnn_256x64_ldg8_relu_exp_small_nhwc_tn_v1", "fp16", "fp16 sums"),
        ("ampere_fp16_s16816gemm_fp16_128x128_ldg8_f2f_stages_64x3_tn", "fp16", "fp16 on tensor cores"),
        ("volta_fp16_s884cudnn_fp16_128x128_ldg8_relu_f2f_exp_medium_nhwc_tn_v1", "fp16", "fp16 on tensor cores"),
        ("sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "bf16", "bf16 on tensor cores"),
        ("sm90_xmma_sparse_fprop_implicit_gemm_i8i8_i8i32_f32_nhwckrsc_nhwc", "int8", "int8"),
        ("QLinearConv", "int8", "int8"),
        ("com.microsoft.QGemm", "int8", "int8"),
        ("Conv", "int8", "int8 in fp32"),
        ("", "int8", "int8 in fp32"),
    ],
)
def test_names_that_tell(tactic: str, precision: str, expected: str) -> None:
    kernel = kernel_of(tactic, precision)
    assert kernel.arithmetic is not None
    assert (kernel.arithmetic.name, kernel.doubt) == (expected, None)


@pytest.mark.parametrize(
    ("tactic", "precision", "expected"),
    [
        (
            "ampere_scudnn_winograd_128x128_ldg1_ldg4_relu_tile148t_nt_v1",
            "fp32",
            "winograd algorithm, which the bound does not",
        ),
        ("sm80_xmma_winograd_i8i8_i8i32_f32", "int8", "winograd algorithm"),
        ("fft2d_r2c_32x32", "fp32", "fft algorithm"),
        ("sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwc", "fp32", "computes in fp16, the layer is fp32 in the file"),
        ("some_half_kernel", "fp32", "computes in fp16"),
        ("sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32_nhwc", "fp16", "computes in int8, the layer is fp16 in the file"),
        ("Conv", "fp16", "does not tell whether it keeps its sums in fp32"),
        ("", "bf16", "tactic without a name does not tell"),
        ("Conv", "fp64", "the layer is fp64 in the file, bounds are there for fp32, fp16, bf16 and int8"),
    ],
)
def test_what_stays_open(tactic: str, precision: str, expected: str) -> None:
    doubt = kernel_of(tactic, precision).doubt
    assert doubt is not None and expected in doubt


def test_leave_to_use_tf32_counts_where_the_name_does_not_rule_it_out() -> None:
    plain = "sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nhwckrsc_nhwc"
    names = [kernel_of(tactic, "fp32", tf32=True).arithmetic for tactic in ("", "cask_convolution", plain)]
    assert [arithmetic.name for arithmetic in names if arithmetic is not None] == ["tf32", "tf32", "fp32"]
