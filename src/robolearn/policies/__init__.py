"""Policies: from batches to losses, from observations to chunks of actions."""
