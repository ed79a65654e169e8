"""Measuring a guide and showing a data set: metrics, baselines, leak check, and pages that open offline."""
