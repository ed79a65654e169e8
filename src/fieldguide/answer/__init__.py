"""Answers: labels chosen by scoring, reasons, calibration, and thousands of pictures at once."""
