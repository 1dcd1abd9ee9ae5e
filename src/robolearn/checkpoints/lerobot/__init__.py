"""LeRobot's checkpoints: configuration, parameter names, weights, export."""
