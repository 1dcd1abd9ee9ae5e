"""Video and images to frames and back, and the cache of decoded frames."""
