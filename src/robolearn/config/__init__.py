"""From a command line to objects: schema, composition, validation, building."""
