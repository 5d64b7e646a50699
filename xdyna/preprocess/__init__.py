"""From a photo and a driving video to the model's inputs."""
