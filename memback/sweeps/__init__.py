"""Sweeps: a grid over a profile's keys, every point a dry run and, where there is a budget, a plan.

``grid`` says which points there are, ``point`` runs some, ``run`` has them run on all cores or on a Dask cluster,
``store`` keeps what is done as it comes, ``summary`` and ``html`` show it.
"""
