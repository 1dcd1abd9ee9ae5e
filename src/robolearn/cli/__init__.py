"""The console scripts: what is typed becomes configurations, then objects."""

from robolearn.system.streams import open_closed_descriptors

# Here, because it has to come before the imports of any command.
open_closed_descriptors()
