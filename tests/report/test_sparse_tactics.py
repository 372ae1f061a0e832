"""The page says of every layer why it has no sparse tactic."""

from masksparse_deploy.core.artifacts.sparse_tactics import SparseTactics
from masksparse_deploy.engine.build_log import parse_log
from masksparse_deploy.engine.why_not_sparse.explain import explain
from masksparse_deploy.report.render import render_report
from tests.engine.sparse_models import DENSE_SINGLE, SPARSE_HALF, engine_layer, make_engine, make_model, read
from tests.report.artifacts import make_inputs

GRAPH, LINT = read(make_model())


def page_of(report: SparseTactics) -> str:
    return render_report(make_inputs(why_not_sparse=report))


def test_counts_reasons_and_what_to_do() -> None:
    dense = make_engine(GRAPH, engine_layer("a", DENSE_SINGLE))
    page = page_of(explain(GRAPH, LINT, make_engine(GRAPH, engine_layer("a", SPARSE_HALF)), dense=dense))
    assert "1 sparse, 3 not eligible, 1 unknown of 5 layers with weights, on sm_80, batch 64." in page
    assert f"<code>{SPARSE_HALF}</code>" in page
    assert "fp16 <strong>(dense fp32)</strong>" in page
    assert "3 input channels: not a multiple of 4" in page
    assert "the sparse tactic adds up in FP16 where the dense one does in FP32" in page
    assert 'rarely win there <span class="quiet">(rule of thumb)</span>' in page
    assert "Contradiction:" not in page


def test_contradictions_hostile_names_and_a_runtime_without_kernels() -> None:
    log = parse_log("(Sparsity) Layers eligible for sparse math: <script>alert(1)</script>")
    page = page_of(explain(GRAPH, LINT, make_engine(GRAPH, backend="onnxruntime"), log=log))
    assert "Contradiction:" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert(1)" not in page
    assert "2 would be eligible where there are 2:4 kernels" in page
