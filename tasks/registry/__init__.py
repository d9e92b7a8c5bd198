"""Versions: how they are recorded, registered, compared, promoted, restored and cleared away."""
