"""What is kept of a director in one file, and how it comes back: ``director backup`` and ``director restore``."""
