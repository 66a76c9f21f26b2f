"""The shipped YAMLs, as data."""
