"""The parts of an update: gradients, schedules, averaged weights, CUDA graphs, metrics."""
