"""Evaluation reports: terminal output, plots and a standalone HTML file."""
