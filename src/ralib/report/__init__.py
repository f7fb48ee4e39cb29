"""Run result -> one self-contained HTML page, or JSON with the same figures. Computes nothing:
`ralib.results.summary` does."""

from ralib.report.contents import ReportContents
from ralib.report.page import render_report
from ralib.report.payload import figures

__all__ = ["ReportContents", "figures", "render_report"]
