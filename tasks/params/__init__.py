"""What params.yaml and the forms may say: typed, bounded, with one message for all faults."""
