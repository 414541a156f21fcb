"""Estimates the resources that a run needs on its target devices by compiling its programs without those devices."""
