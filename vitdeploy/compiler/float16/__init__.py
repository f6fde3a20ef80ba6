"""What 16 bits would spoil, and the cast of the rest."""
