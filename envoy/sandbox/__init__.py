"""The box in which a plan's code runs at a site."""
