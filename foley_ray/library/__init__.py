"""Sound libraries: from a plan to named, measured, catalogued files."""
