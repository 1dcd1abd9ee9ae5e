"""pi0 (Black et al. 2024, arXiv:2410.24164): a vision-language model with an expert that makes actions flow."""

from robolearn.policies.pi0.pi0 import Pi0Policy

__all__ = ["Pi0Policy"]
