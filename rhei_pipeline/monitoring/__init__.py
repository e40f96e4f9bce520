"""What others see of a running pipeline: metrics, health, and a page for people."""
