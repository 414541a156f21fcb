"""What a run tells while it trains: logs, metrics files, TensorBoard, profiles."""
