"""A run's folder, and the loggers that write into it."""
