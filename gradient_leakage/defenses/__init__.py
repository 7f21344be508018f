"""Small pure transforms of what a site sends. Each is registered with the attackers that were made for it."""
