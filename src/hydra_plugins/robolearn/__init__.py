"""Launchers and a sweeper that know the runs of a sweep; Hydra looks for plugins in this package."""
