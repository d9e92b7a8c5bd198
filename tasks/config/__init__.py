"""What params.yaml and the deployments' forms may say: typed, bounded, with one message for all faults."""
