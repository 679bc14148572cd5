"""fer_scale."""
__version__ = "0.1.0"
