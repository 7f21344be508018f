"""Who may do what in a federation, under which agreements and permits; and what became of its models."""
