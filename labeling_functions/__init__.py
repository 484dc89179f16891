"""Starter sets of labeling functions, and the demo's domain. A workspace has its own folder of this name."""
