"""What happens by itself: changes open a sync session, the clock takes snapshots."""
