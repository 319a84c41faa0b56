"""Benchmarks, judges, and statistics of their figures."""
