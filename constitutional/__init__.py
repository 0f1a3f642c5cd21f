"""Train a language model to behave as a written constitution says.

Importing this package loads neither torch nor anything else that is slow: heavy libraries are imported where used.
"""

__version__ = "0.1.0"
