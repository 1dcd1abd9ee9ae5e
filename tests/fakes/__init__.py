"""Stand-ins for policies, environments, datasets and runs, small enough for fast tests."""
