"""Declarative plans: what the names of a recipe mean at this site."""
