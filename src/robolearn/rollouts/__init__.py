"""Episodes of a policy in simulators: evaluation, videos, and collection during training."""
