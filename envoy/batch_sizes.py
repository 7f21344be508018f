"""How a number of examples is cut into batches."""

from __future__ import annotations


def batch_sizes(num_examples: int, batch_size: int) -> list[int]:
    """How many examples each batch has. A last batch of one example joins the one before it.

    >>> batch_sizes(9, 4), batch_sizes(10, 4), batch_sizes(1, 4), batch_sizes(0, 4)
    ([4, 5], [4, 4, 2], [1], [])
    """
    sizes = [batch_size] * (num_examples // batch_size)
    rest = num_examples % batch_size
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes
