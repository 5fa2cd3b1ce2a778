"""foley_ray: foley from text, as a distributed job system on Ray. Importing it loads neither torch nor ray."""

__version__ = "0.1.0"
