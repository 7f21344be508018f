"""Programs that run as they stand."""
