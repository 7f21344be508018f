"""A site in a researcher's Python: the client of the federated API."""
