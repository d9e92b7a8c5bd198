"""What a stage executes: which modules, what they mean, and which versions of installed packages."""
