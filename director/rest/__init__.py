"""The director's door for people and other people's software: HTTPS and JSON."""
