"""Train robot policies from demonstrations, then online: composed by Hydra, exact to resume."""

__version__ = "0.1.0"
