"""Fault campaigns, one module per idea; ``benchmarks/faults.py`` runs them."""
