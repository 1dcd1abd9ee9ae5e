"""The console scripts: what is typed becomes configurations, then objects."""
