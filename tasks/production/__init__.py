"""Versions: how they are recorded, registered, judged, promoted, restored and cleared away."""
