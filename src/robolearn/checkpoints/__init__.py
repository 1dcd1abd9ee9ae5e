"""Where weights come from and go to: a run's checkpoints, and LeRobot's."""
