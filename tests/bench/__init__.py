"""Benchmarks: figures as ratios in one run, never assertions. ``make bench`` runs them all, smallest first."""
