"""The researcher's side of a federation: its REST API as Python calls. Imported as ``fedveil.connect``."""
