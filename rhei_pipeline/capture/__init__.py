"""How a change is learned of; each module holds one ChangeSource."""
