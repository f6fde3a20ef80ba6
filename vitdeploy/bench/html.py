from vitdeploy.bench.report import BenchReport


def render_html(report: BenchReport) -> str:
    return ""
