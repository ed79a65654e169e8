"""The drawings of the pages."""

from __future__ import annotations

import re

from fieldguide.report.charts import Bar, comparison_chart
from fieldguide.report.metrics import Interval


def test_the_longest_name_of_the_comparison_is_not_cut() -> None:
    names = ("this guide", "linear probe, all features", "k-NN")
    chart = str(comparison_chart([Bar(name, 0.5, Interval(0.4, 0.6)) for name in names]))
    ends = {
        name: float(x) for x, name in re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="end">([^<]+)', chart)
    }
    assert set(names) <= set(ends)
    for name in names:
        assert ends[name] >= 6.5 * len(name)  # room to the left of the names' common end
