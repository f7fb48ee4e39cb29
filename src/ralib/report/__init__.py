"""A run's result as one self-contained HTML page, or as JSON with the same figures.

Nothing is computed here: that is `ralib.results.summary`.
"""

from ralib.report.contents import ReportContents
from ralib.report.page import render_report
from ralib.report.payload import figures

__all__ = ["ReportContents", "figures", "render_report"]
