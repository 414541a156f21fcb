"""What a run reports while it trains: logs, metrics files, TensorBoard, progress, profiles."""
