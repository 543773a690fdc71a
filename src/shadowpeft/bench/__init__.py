"""How fast methods train and run side by side, and in how much memory: `shadowpeft bench`."""
