"""Answers of models that were never taught the labels: they know them by name only."""
