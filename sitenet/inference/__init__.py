"""What trained models are used for: prediction, evaluation and explanation."""
