"""LeRobot's dataset format v2.0, v2.1 and v3.0 on disk: read, verified, written, converted."""
