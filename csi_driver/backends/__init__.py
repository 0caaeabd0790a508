"""Storage technologies behind one protocol (base.py): each module here knows one of them."""
