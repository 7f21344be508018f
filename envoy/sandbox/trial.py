"""What probing runs in a box: nothing."""


def main(_: list[str]) -> None:
    """Come to an end."""
