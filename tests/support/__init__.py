"""What the rigs of several directories share. A rig that one directory alone uses stays there."""
